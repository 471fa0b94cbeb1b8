package bridge

import (
	"fmt"
	"strings"
)

// tmpl is a text with replacement fields, in the part of Python's format language that
// marathon-lb's templates use: {name}, {name[key]}, and {{ and }} for braces.
type tmpl struct {
	parts []tmplPart
}

// tmplPart is literal text, or a field when name is set.
type tmplPart struct {
	text      string
	name, key string
}

// params are the fields of one expansion. "name[key]" is a field of its own.
type params map[string]string

// substituteError names what a template has that cannot be expanded. It repeats
// field names only when they are identifiers.
type substituteError struct{ detail string }

func (e *substituteError) Error() string { return e.detail }

// parseTemplate reads a template.
func parseTemplate(text string) (*tmpl, error) {
	t := new(tmpl)
	var literal strings.Builder
	flush := func() {
		if literal.Len() > 0 {
			t.parts = append(t.parts, tmplPart{text: literal.String()})
			literal.Reset()
		}
	}
	for i := 0; i < len(text); {
		c := text[i]
		switch {
		case (c == '{' || c == '}') && i+1 < len(text) && text[i+1] == c:
			literal.WriteByte(c)
			i += 2
		case c == '}':
			return nil, &substituteError{"a } stands alone: write }} for a brace"}
		case c == '{':
			end := strings.IndexByte(text[i:], '}')
			if end < 0 {
				return nil, &substituteError{"a { is not closed: write {{ for a brace"}
			}
			part, err := parseField(text[i+1 : i+end])
			if err != nil {
				return nil, err
			}
			flush()
			t.parts = append(t.parts, part)
			i += end + 1
		default:
			literal.WriteByte(c)
			i++
		}
	}
	flush()
	return t, nil
}

// parseField reads what stands between braces.
func parseField(field string) (tmplPart, error) {
	name, key, indexed := strings.Cut(field, "[")
	if indexed {
		var closed bool
		if key, closed = strings.CutSuffix(key, "]"); !closed || !identifier(key) {
			return tmplPart{}, &substituteError{"a field is not of the form {name} or {name[key]}"}
		}
	}
	switch {
	case strings.ContainsAny(field, "!:"):
		return tmplPart{}, &substituteError{"conversions and format specifications ({name!r}, {name:spec}) are not supported: use {name}"}
	case strings.Contains(name, "."):
		return tmplPart{}, &substituteError{"attributes ({name.attr}) are not supported: use {name} or {name[key]}"}
	case !identifier(name):
		return tmplPart{}, &substituteError{"a field has no name: use {name}, and {{ and }} for braces"}
	}
	return tmplPart{name: name, key: key}, nil
}

func identifier(s string) bool {
	for i, r := range s {
		if r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// expand fills the fields in.
func (t *tmpl) expand(p params) (string, error) {
	var b strings.Builder
	for _, part := range t.parts {
		if part.name == "" {
			b.WriteString(part.text)
			continue
		}
		field := part.name
		if part.key != "" {
			field += "[" + part.key + "]"
		}
		v, ok := p[field]
		if !ok {
			return "", &substituteError{fmt.Sprintf("field {%s} is not known in this template", field)}
		}
		b.WriteString(v)
	}
	return b.String(), nil
}
