package guest

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// ordered is a YAML mapping that keeps the order in which its keys were set. Keys are
// plain words of ours or paths. Values are string, bool, int, ordered, flow, []string,
// []any, []ordered and [][]string. A cluster of a thousand nodes renders a thousand
// documents for each plan, so that they are written as text at once.
type ordered struct {
	keys   []string
	values []any
}

// flow is a list that stands on one line.
type flow []string

func (o *ordered) set(key string, value any) {
	o.keys = append(o.keys, key)
	o.values = append(o.values, value)
}

// appendTo appends the mapping as a document.
func (o ordered) appendTo(out []byte) []byte { return o.appendAt(out, 0, true) }

// appendAt appends the mapping with its keys indented by depth; the first key is not
// indented when something stands before it on its line.
func (o ordered) appendAt(out []byte, depth int, lineStart bool) []byte {
	for i, key := range o.keys {
		if i > 0 || lineStart {
			out = appendIndent(out, depth)
		}
		out = append(appendScalar(out, key, depth), ':')
		out = appendValue(out, o.values[i], depth)
	}
	return out
}

// appendValue appends what follows a key's colon, with the line's end.
func appendValue(out []byte, v any, depth int) []byte {
	switch v := v.(type) {
	case ordered:
		if len(v.keys) == 0 {
			return append(out, " {}\n"...)
		}
		return v.appendAt(append(out, '\n'), depth+1, true)
	case []ordered:
		return appendList(out, v, depth)
	case [][]string:
		lines := make([]flow, len(v))
		for i := range v {
			lines[i] = v[i]
		}
		return appendList(out, lines, depth)
	case []string:
		return appendList(out, v, depth)
	case []any:
		return appendList(out, v, depth)
	}
	return append(appendInline(append(out, ' '), v, depth), '\n')
}

func appendList[T any](out []byte, list []T, depth int) []byte {
	if len(list) == 0 {
		return append(out, " []\n"...)
	}
	out = append(out, '\n')
	for _, item := range list {
		out = append(appendIndent(out, depth+1), "- "...)
		if o, ok := any(item).(ordered); ok {
			out = o.appendAt(out, depth+2, false)
			continue
		}
		out = append(appendInline(out, item, depth+1), '\n')
	}
	return out
}

// appendInline appends what stands on one line, or begins a block scalar.
func appendInline(out []byte, v any, depth int) []byte {
	switch v := v.(type) {
	case string:
		return appendScalar(out, v, depth)
	case bool:
		return strconv.AppendBool(out, v)
	case int:
		return strconv.AppendInt(out, int64(v), 10)
	case flow:
		out = append(out, '[')
		for i, s := range v {
			if i > 0 {
				out = append(out, ", "...)
			}
			if plain(s) {
				out = append(out, s...)
			} else {
				out = appendQuoted(out, s)
			}
		}
		return append(out, ']')
	}
	panic("guest: no YAML for this type") // a mistake in this package
}

// appendScalar appends a string: plain where nobody can read it as something else, as a
// block where it has lines, else quoted.
func appendScalar(out []byte, s string, depth int) []byte {
	switch {
	case plain(s):
		return append(out, s...)
	case block(s):
		switch {
		case !strings.HasSuffix(s, "\n"):
			out = append(out, "|-\n"...)
		case strings.HasSuffix(s, "\n\n"):
			out = append(out, "|+\n"...)
		default:
			out = append(out, "|\n"...)
		}
		for line := range strings.Lines(s) {
			if line != "\n" {
				out = appendIndent(out, depth+1)
			}
			out = append(out, line...)
		}
		if out[len(out)-1] == '\n' {
			out = out[:len(out)-1] // the caller ends the line
		}
		return out
	}
	return appendQuoted(out, s)
}

// plain reports whether s needs no quotes in any YAML of any age.
func plain(s string) bool {
	if s == "" || !letter(s[0]) && s[0] != '/' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !letter(c) && (c < '0' || c > '9') && !strings.ContainsRune("/_.@-", rune(c)) {
			return false
		}
	}
	switch strings.ToLower(s) {
	case "y", "n", "yes", "no", "on", "off", "true", "false", "null", "inf", "nan":
		return false
	}
	return true
}

func letter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }

// block reports whether s can be a literal block scalar: lines of printable text, the
// first of which tells the indentation.
func block(s string) bool {
	if !strings.Contains(s, "\n") || s[0] == ' ' || s[0] == '\n' || s[0] == '\t' {
		return false
	}
	for _, r := range s {
		if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f {
			return false
		}
	}
	return true
}

// appendQuoted appends s as JSON does, which YAML reads alike but for a few
// characters that it wants escaped.
func appendQuoted(out []byte, s string) []byte {
	text, err := json.Marshal(s)
	if err != nil { // a string
		panic(err)
	}
	for _, r := range string(text) {
		if 0x7f <= r && r < 0xa0 || r == 0xfeff || r == 0xfffe || r == 0xffff {
			out = fmt.Appendf(out, `\u%04x`, r)
		} else {
			out = utf8.AppendRune(out, r)
		}
	}
	return out
}

func appendIndent(out []byte, depth int) []byte {
	for range depth {
		out = append(out, "  "...)
	}
	return out
}
