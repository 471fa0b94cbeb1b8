package provision

import (
	"bytes"
	"fmt"
	"strconv"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Edits change a few bytes of a blueprint and leave the rest, comments and all,
// as the operator wrote it.

// SetCount writes the count of a group.
func SetCount(text []byte, group string, count int) ([]byte, error) {
	root, err := parseForEdit(text)
	if err != nil {
		return nil, err
	}
	groups := lookup(root, "spec", "groups")
	if groups == nil || groups.Kind != yaml.SequenceNode {
		return nil, fmt.Errorf("spec.groups: not a list")
	}
	var names []string
	for i, g := range groups.Content {
		name := lookup(g, "name")
		if name == nil {
			continue
		}
		names = append(names, name.Value)
		if name.Value != group {
			continue
		}
		value := lookup(g, "count")
		if value == nil {
			return nil, fmt.Errorf("spec.groups[%d].count: is missing", i)
		}
		return replaceScalar(text, value, fmt.Sprintf("spec.groups[%d].count", i), strconv.Itoa(count))
	}
	return nil, fmt.Errorf("there is no group %q; %s", group, didYouMean(group, names))
}

// SetDistro writes the name of the distro.
func SetDistro(text []byte, name string) ([]byte, error) {
	root, err := parseForEdit(text)
	if err != nil {
		return nil, err
	}
	value := lookup(root, "spec", "distro")
	if value == nil {
		return nil, fmt.Errorf("spec.distro: is missing")
	}
	if value.Kind == yaml.MappingNode {
		return nil, fmt.Errorf("spec.distro: the manifest stands in the blueprint itself; edit it there")
	}
	return replaceScalar(text, value, "spec.distro", name)
}

// Rotate counts a secret's generation up.
func Rotate(text []byte, name string) ([]byte, error) {
	root, err := parseForEdit(text)
	if err != nil {
		return nil, err
	}
	path := "spec.secrets." + name
	value := lookup(root, "spec", "secrets", name)
	switch {
	case value == nil:
		return nil, fmt.Errorf("%s: is missing", path)
	case value.Kind == yaml.ScalarNode && value.Value == "derive":
		return replaceScalar(text, value, path, "{derive: true, generation: 1}")
	case value.Kind != yaml.MappingNode || len(value.Content) == 0:
		return nil, fmt.Errorf("%s: is not a secret that can be rotated", path)
	}
	if generation := lookup(value, "generation"); generation != nil {
		n, err := strconv.Atoi(generation.Value)
		if err != nil {
			return nil, fmt.Errorf("%s.generation: want a whole number, have %q", path, generation.Value)
		}
		return replaceScalar(text, generation, path+".generation", strconv.Itoa(n+1))
	}
	// Before the first key, where both styles of mapping take another one.
	first := value.Content[0]
	at, err := offset(text, first)
	if err != nil {
		return nil, err
	}
	insert := "generation: 1, "
	if value.Style&yaml.FlowStyle == 0 {
		line := bytes.LastIndexByte(text[:at], '\n') + 1
		if len(bytes.TrimLeft(text[line:at], " ")) > 0 {
			return nil, fmt.Errorf("%s: write it as {env: …} or with its keys on lines of their own", path)
		}
		insert = "generation: 1\n" + string(text[line:at])
	}
	return splice(text, at, at, insert), nil
}

func parseForEdit(text []byte) (*yaml.Node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, fmt.Errorf("the blueprint is empty")
	}
	return doc.Content[0], nil
}

// lookup walks down mappings by key, nil where there is none.
func lookup(n *yaml.Node, keys ...string) *yaml.Node {
	for _, key := range keys {
		if n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		if n.Kind != yaml.MappingNode {
			return nil
		}
		var found *yaml.Node
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				found = n.Content[i+1]
			}
		}
		if found == nil {
			return nil
		}
		n = found
	}
	return n
}

// replaceScalar puts another value where a plain or quoted scalar stands.
func replaceScalar(text []byte, n *yaml.Node, path, value string) ([]byte, error) {
	if n.Kind != yaml.ScalarNode || n.Anchor != "" {
		return nil, fmt.Errorf("%s (line %d): shared with another place by an anchor or alias; edit it by hand", path, n.Line)
	}
	from, err := offset(text, n)
	if err != nil {
		return nil, err
	}
	old := n.Value
	if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 {
		old = string(text[from]) + n.Value + string(text[from])
	}
	if !bytes.HasPrefix(text[from:], []byte(old)) {
		return nil, fmt.Errorf("%s (line %d): written in a way that can't be edited; edit it by hand", path, n.Line)
	}
	return splice(text, from, from+len(old), value), nil
}

// offset finds where a node begins; YAML counts columns in characters.
func offset(text []byte, n *yaml.Node) (int, error) {
	at := 0
	for range n.Line - 1 {
		next := bytes.IndexByte(text[at:], '\n')
		if next < 0 {
			return 0, fmt.Errorf("line %d is not in the file", n.Line)
		}
		at += next + 1
	}
	for range n.Column - 1 {
		if at >= len(text) {
			return 0, fmt.Errorf("line %d has no column %d", n.Line, n.Column)
		}
		_, size := utf8.DecodeRune(text[at:])
		at += size
	}
	if at >= len(text) {
		return 0, fmt.Errorf("line %d has no column %d", n.Line, n.Column)
	}
	return at, nil
}

func splice(text []byte, from, to int, value string) []byte {
	out := make([]byte, 0, len(text)+len(value))
	out = append(out, text[:from]...)
	out = append(out, value...)
	return append(out, text[to:]...)
}
