package provision

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Bounds on what is read, so that a hostile file costs little.
const (
	maxBlueprint = 1 << 20
	maxDepth     = 32
	maxNodes     = 100_000 // counted where they are used: aliases multiply
)

// decoder fills a struct from YAML nodes. It goes on after a problem, so that
// all are reported at once, and notes where each path stands in the file.
type decoder struct {
	file     string
	pos      map[string]Position
	problems Problems
	nodes    int
	depth    int
}

// defaulter is implemented by types whose zero value is not their default;
// defaults are set before decoding, so that an explicit zero wins.
type defaulter interface{ setDefaults() }

// nodeDecoder is implemented by types with their own notation.
type nodeDecoder interface {
	decodeNode(d *decoder, path string, n *yaml.Node)
}

// parse reads the only document of text; ok is false when there is none to look at.
func (d *decoder) parse(text []byte) (*yaml.Node, bool) {
	if len(text) > maxBlueprint {
		d.problemAt(Position{}, "E01", "", fmt.Sprintf("the file has %d bytes, at most %d are read", len(text), maxBlueprint), "split it into several clusters")
		return nil, false
	}
	dec := yaml.NewDecoder(strings.NewReader(string(text)))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			d.problemAt(Position{}, "E01", "", "the file is empty", "start from `clusterctl init`")
			return nil, false
		}
		d.syntax(err)
		return nil, false
	}
	var second yaml.Node
	if err := dec.Decode(&second); err == nil {
		d.problemAt(Position{second.Line, second.Column}, "E01", "", "a second document begins here", "one file describes one cluster")
	} else if !errors.Is(err, io.EOF) {
		d.syntax(err)
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		d.problemAt(Position{}, "E01", "", "the file is empty", "start from `clusterctl init`")
		return nil, false
	}
	return doc.Content[0], true
}

var yamlLine = regexp.MustCompile(`^yaml: (?:unmarshal errors:\s*)?(?:line (\d+): )?(.*)$`)

// syntax reports what the YAML parser says; it knows lines but not columns.
func (d *decoder) syntax(err error) {
	text := strings.ReplaceAll(err.Error(), "\n", " ")
	pos := Position{}
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		if line, e := strconv.Atoi(m[1]); e == nil {
			pos = Position{line, 1}
		}
		text = m[2]
	}
	d.problemAt(pos, "E01", "", "not YAML: "+text, "check indentation, quotes and brackets near this line")
}

func (d *decoder) problem(n *yaml.Node, code, path, what, remedy string) {
	d.problemAt(Position{n.Line, n.Column}, code, path, what, remedy)
}

func (d *decoder) problemAt(pos Position, code, path, what, remedy string) {
	d.problems = append(d.problems, Problem{Code: code, Path: path, Pos: pos, What: what, Remedy: remedy, file: d.file})
}

// decode fills v, which is addressable, from n.
func (d *decoder) decode(path string, n *yaml.Node, v reflect.Value) {
	if d.depth++; d.depth > maxDepth {
		d.depth--
		d.problem(n, "E01", path, fmt.Sprintf("nested deeper than %d levels", maxDepth), "flatten it")
		return
	}
	defer func() { d.depth-- }()
	if d.nodes++; d.nodes > maxNodes {
		if d.nodes == maxNodes+1 {
			d.problem(n, "E01", path, fmt.Sprintf("more than %d values", maxNodes), "do not multiply aliases")
		}
		return
	}
	d.pos[path] = Position{n.Line, n.Column}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if own, ok := v.Addr().Interface().(nodeDecoder); ok {
		if !d.empty(path, n) {
			own.decodeNode(d, path, n)
		}
		return
	}
	switch v.Interface().(type) {
	case netip.Addr:
		decodeText(d, path, n, v, "an IPv4 address like 10.0.0.5", parseIPv4)
		return
	case netip.Prefix:
		decodeText(d, path, n, v, "a network like 10.0.0.0/24", parseNetwork)
		return
	case time.Duration:
		decodeText(d, path, n, v, "a duration like 90s or 10m", parseDuration)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.structure(path, n, v)
	case reflect.Slice:
		d.list(path, n, v)
	case reflect.Map:
		d.mapping(path, n, v)
	case reflect.Interface:
		if value, ok := d.any(path, n); ok && value != nil {
			v.Set(reflect.ValueOf(value))
		}
	default:
		d.scalar(path, n, v)
	}
}

// empty reports a key without a value.
func (d *decoder) empty(path string, n *yaml.Node) bool {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!null" {
		return false
	}
	d.problem(n, "E01", path, "has no value", "give it one or remove the key")
	return true
}

func (d *decoder) structure(path string, n *yaml.Node, v reflect.Value) {
	if d.empty(path, n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.problem(n, "E01", path, "want a mapping, have "+describe(n), "write its keys below it, indented")
		return
	}
	fields := fieldsOf(v.Type())
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name, ok := d.key(path, key, seen)
		if !ok {
			continue
		}
		at := slices.IndexFunc(fields, func(f field) bool { return f.name == name })
		if at < 0 {
			known := make([]string, len(fields))
			for i, f := range fields {
				known[i] = f.name
			}
			remedy, moved := movedKeys[join(path, name)]
			if !moved {
				remedy = didYouMean(name, known)
			}
			d.problem(key, "E01", join(path, name), unknownKey, remedy)
			continue
		}
		d.decode(join(path, name), value, v.Field(fields[at].index))
	}
}

// key checks a mapping's key.
func (d *decoder) key(path string, key *yaml.Node, seen map[string]bool) (string, bool) {
	if key.Kind == yaml.AliasNode {
		key = key.Alias
	}
	if key.Kind != yaml.ScalarNode {
		d.problem(key, "E01", path, "a key is not plain text", "write key: value")
		return "", false
	}
	if key.ShortTag() == "!!merge" {
		d.problem(key, "E01", path, "merge keys (<<) are not supported", "repeat the keys, or use an alias for a whole value")
		return "", false
	}
	if seen[key.Value] {
		d.problem(key, "E01", join(path, key.Value), "the key stands twice", "remove one of the two")
		return "", false
	}
	seen[key.Value] = true
	return key.Value, true
}

func (d *decoder) list(path string, n *yaml.Node, v reflect.Value) {
	if d.empty(path, n) {
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.problem(n, "E01", path, "want a list, have "+describe(n), "write [a, b], or one item per line after a dash")
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		e := out.Index(i)
		if def, ok := e.Addr().Interface().(defaulter); ok {
			def.setDefaults()
		}
		d.decode(fmt.Sprintf("%s[%d]", path, i), item, e)
	}
	v.Set(out)
}

func (d *decoder) mapping(path string, n *yaml.Node, v reflect.Value) {
	if d.empty(path, n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.problem(n, "E01", path, "want a mapping, have "+describe(n), "write key: value lines below it, or {}")
		return
	}
	out := reflect.MakeMapWithSize(v.Type(), len(n.Content)/2)
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, ok := d.key(path, n.Content[i], seen)
		if !ok {
			continue
		}
		e := reflect.New(v.Type().Elem()).Elem()
		d.decode(join(path, name), n.Content[i+1], e)
		out.SetMapIndex(reflect.ValueOf(name), e)
	}
	v.Set(out)
}

// any decodes a value without a schema.
func (d *decoder) any(path string, n *yaml.Node) (any, bool) {
	switch n.Kind {
	case yaml.MappingNode:
		var out map[string]any
		d.mapping(path, n, reflect.ValueOf(&out).Elem())
		return out, true
	case yaml.SequenceNode:
		var out []any
		d.list(path, n, reflect.ValueOf(&out).Elem())
		return out, true
	}
	var out any
	if err := n.Decode(&out); err != nil {
		d.problem(n, "E01", path, "not a value: "+err.Error(), "quote it")
		return nil, false
	}
	return out, true
}

func (d *decoder) scalar(path string, n *yaml.Node, v reflect.Value) {
	if d.empty(path, n) {
		return
	}
	if n.Kind != yaml.ScalarNode {
		d.problem(n, "E01", path, "want "+wanted(v.Kind())+", have "+describe(n), "write one value")
		return
	}
	tag := n.ShortTag()
	ok := false
	switch v.Kind() {
	case reflect.String:
		// Numbers and truth values are taken as they are written: port: 80 among flags is text.
		v.SetString(n.Value)
		ok = true
	case reflect.Bool:
		if tag == "!!bool" {
			v.SetBool(strings.EqualFold(n.Value, "true"))
			ok = true
		}
	case reflect.Int, reflect.Int64:
		i, err := strconv.ParseInt(n.Value, 10, 32)
		if ok = tag == "!!int" && err == nil; ok {
			v.SetInt(i)
		}
	case reflect.Float64:
		f, err := strconv.ParseFloat(n.Value, 64)
		if ok = (tag == "!!int" || tag == "!!float") && err == nil && f == f && f < 1e12 && f > -1e12; ok {
			v.SetFloat(f)
		}
	}
	if !ok {
		d.problem(n, "E01", path, "want "+wanted(v.Kind())+", have "+describe(n), remedyFor(v.Kind(), n.Value))
	}
}

func wanted(k reflect.Kind) string {
	switch k {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	}
	return "text"
}

func remedyFor(k reflect.Kind, have string) string {
	if k != reflect.Bool {
		return "write it without unit and quotes"
	}
	switch strings.ToLower(have) {
	case "yes", "on", "y", "1":
		return "write true"
	case "no", "off", "n", "0":
		return "write false"
	}
	return "write true or false"
}

// describe says what stands at n, without repeating a long value.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	if len(n.Value) > 40 || strings.ContainsAny(n.Value, "\n\r") {
		return fmt.Sprintf("text of %d bytes", len(n.Value))
	}
	return strconv.Quote(n.Value)
}

// decodeText decodes a scalar with its own notation.
func decodeText[T any](d *decoder, path string, n *yaml.Node, v reflect.Value, want string, parse func(string) (T, error)) {
	if d.empty(path, n) {
		return
	}
	if n.Kind != yaml.ScalarNode {
		d.problem(n, "E01", path, "want "+want+", have "+describe(n), "write one value")
		return
	}
	if n.Value == "" { // an explicit "" is the zero value
		return
	}
	value, err := parse(n.Value)
	if err != nil {
		d.problem(n, "E01", path, "want "+want+", have "+describe(n), "correct it")
		return
	}
	v.Set(reflect.ValueOf(value))
}

func parseNetwork(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err == nil && !p.Addr().Is4() {
		err = fmt.Errorf("%s is not IPv4", s)
	}
	return p, err
}

func parseDuration(s string) (time.Duration, error) {
	t, err := time.ParseDuration(s)
	if err == nil && t < 0 {
		err = fmt.Errorf("%s is negative", s)
	}
	return t, err
}

const unknownKey = "unknown key"

type field struct {
	name  string
	index int
}

// fieldsOf lists the YAML keys of a struct type, in its order.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("yaml"); name != "" && name != "-" {
			fields = append(fields, field{name, i})
		}
	}
	return fields
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// movedKeys are keys that people look for and that stand elsewhere, with where.
var movedKeys = map[string]string{
	"spec.name":                          "the name stands in metadata.name",
	"metadata.protect":                   "write it below spec",
	"spec.cluster":                       "write it below spec.provider.vsphere",
	"spec.datacenter":                    "write it below spec.provider.vsphere",
	"spec.template":                      "write it below spec.image",
	"spec.vsphere":                       "write it below spec.provider",
	"spec.provider.vsphere.insecure":     "pass --insecure, or better give tls.thumbprint",
	"spec.provider.vsphere.tls.insecure": "pass --insecure, or better give thumbprint",
	"spec.provider.vsphere.password":     "write it below auth, as a reference",
	"spec.provider.vsphere.user":         "write it below auth",
	"spec.hooks":                         "run `clusterctl plan -o json` and `apply` from a script instead",
	"spec.access.password":               "nodes have no passwords; give sshKeys",
}
