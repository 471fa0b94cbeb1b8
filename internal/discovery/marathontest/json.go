package marathontest

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
)

// object builds one JSON object, members in the order they are added. Members
// come and go with the version, and 10 000 tasks have to be written in
// milliseconds, so structs and reflection do not serve here.
type object struct{ b []byte }

func newObject(capacity int) *object {
	return &object{b: append(make([]byte, 0, capacity), '{')}
}

func (o *object) key(k string) {
	if len(o.b) > 1 {
		o.b = append(o.b, ',')
	}
	o.b = append(o.b, '"')
	o.b = append(o.b, k...)
	o.b = append(o.b, '"', ':')
}

func (o *object) str(k, v string) { o.key(k); o.b = appendQuoted(o.b, v) }
func (o *object) int(k string, v int) {
	o.key(k)
	o.b = strconv.AppendInt(o.b, int64(v), 10)
}
func (o *object) bool(k string, v bool)  { o.key(k); o.b = strconv.AppendBool(o.b, v) }
func (o *object) null(k string)          { o.key(k); o.b = append(o.b, "null"...) }
func (o *object) raw(k string, v []byte) { o.key(k); o.b = append(o.b, v...) }

// strOrNull writes null for "".
func (o *object) strOrNull(k, v string) {
	if v == "" {
		o.null(k)
		return
	}
	o.str(k, v)
}

func (o *object) ints(k string, vs []int) {
	o.key(k)
	o.b = append(o.b, '[')
	for i, v := range vs {
		if i > 0 {
			o.b = append(o.b, ',')
		}
		o.b = strconv.AppendInt(o.b, int64(v), 10)
	}
	o.b = append(o.b, ']')
}

// strMap writes vs with sorted keys.
func (o *object) strMap(k string, vs map[string]string) {
	keys := make([]string, 0, len(vs))
	for key := range vs {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	o.key(k)
	o.b = append(o.b, '{')
	for i, key := range keys {
		if i > 0 {
			o.b = append(o.b, ',')
		}
		o.b = appendQuoted(o.b, key)
		o.b = append(o.b, ':')
		o.b = appendQuoted(o.b, vs[key])
	}
	o.b = append(o.b, '}')
}

// end closes the object and returns its bytes.
func (o *object) end() []byte { return append(o.b, '}') }

// array joins encoded values.
func array(values ...[]byte) []byte {
	size := 2 + len(values)
	for _, v := range values {
		size += len(v)
	}
	b := append(make([]byte, 0, size), '[')
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, v...)
	}
	return append(b, ']')
}

// member wraps v as {"k":v}.
func member(k string, v []byte) []byte {
	o := newObject(len(k) + len(v) + 6)
	o.raw(k, v)
	return o.end()
}

func appendQuoted(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= 0x7f {
			return appendEscaped(b, s)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

func appendEscaped(b []byte, s string) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false) // Marathon does not escape <, > and &
	enc.Encode(s)            // a string always encodes
	return append(b, bytes.TrimSuffix(buf.Bytes(), []byte("\n"))...)
}

// compact returns v without white space, so that posted JSON is one line in events.
func compact(v []byte) []byte {
	var buf bytes.Buffer
	if json.Compact(&buf, v) != nil {
		return v
	}
	return buf.Bytes()
}
