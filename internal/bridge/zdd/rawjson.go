package zdd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
)

// element is one member of an object or one element of an array: where its value stands.
type element struct {
	name       string // of a member; the index of an element
	start, end int    // doc[start:end] is the value
}

// elements lists what a JSON object or array holds, in order.
func elements(doc []byte) ([]element, error) {
	d := json.NewDecoder(bytes.NewReader(doc))
	open, err := d.Token()
	if err != nil {
		return nil, err
	}
	if open != json.Delim('{') && open != json.Delim('[') {
		return nil, fmt.Errorf("want an object or a list, have %v", open)
	}
	var list []element
	for i := 0; d.More(); i++ {
		e := element{name: strconv.Itoa(i)}
		if open == json.Delim('{') {
			name, err := d.Token()
			if err != nil {
				return nil, err
			}
			e.name = name.(string)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		e.end = int(d.InputOffset())
		e.start = e.end - len(value)
		list = append(list, e)
	}
	_, err = d.Token()
	return list, err
}

// find is the value at a path, nil when there is none. Of members of one name the last
// counts, as for those who read the document.
func find(doc []byte, path ...string) json.RawMessage {
	for _, name := range path {
		list, err := elements(doc)
		if err != nil {
			return nil
		}
		i := lastNamed(list, name)
		if i < 0 {
			return nil
		}
		doc = doc[list[i].start:list[i].end]
	}
	return doc
}

func lastNamed(list []element, name string) int {
	for i, e := range slices.Backward(list) {
		if e.name == name {
			return i
		}
	}
	return -1
}

// set replaces the value at a path, or adds it as the first member of its object. Every
// other byte of the document stays as it is.
func set(doc []byte, value []byte, path ...string) ([]byte, error) {
	if len(path) == 0 {
		return value, nil
	}
	list, err := elements(doc)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path[0], err)
	}
	if i := lastNamed(list, path[0]); i >= 0 {
		e := list[i]
		inner, err := set(doc[e.start:e.end], value, path[1:]...)
		if err != nil {
			return nil, err
		}
		return slices.Concat(doc[:e.start], inner, doc[e.end:]), nil
	}
	brace := bytes.IndexByte(doc, '{')
	if brace < 0 || len(bytes.TrimSpace(doc[:brace])) > 0 {
		return nil, fmt.Errorf("%s: there is no such element", path[0])
	}
	if len(path) > 1 {
		if value, err = set([]byte("{}"), value, path[1:]...); err != nil {
			return nil, err
		}
	}
	name, err := json.Marshal(path[0])
	if err != nil {
		return nil, err
	}
	comma := []byte(",")
	if len(list) == 0 {
		comma = nil
	}
	return slices.Concat(doc[:brace+1], name, []byte(":"), value, comma, doc[brace+1:]), nil
}

// str is s as a JSON string.
func str(s string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		panic(err) // a string can always be written
	}
	return bytes.TrimSpace(b.Bytes())
}
