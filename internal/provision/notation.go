package provision

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The notations of values that are more than a YAML scalar.

func (b *Bytes) decodeNode(d *decoder, path string, n *yaml.Node) {
	decodeText(d, path, n, reflect.ValueOf(b).Elem(), "a size with unit MiB, GiB or TiB, in whole MiB", ParseBytes)
}

func (m *MHz) decodeNode(d *decoder, path string, n *yaml.Node) {
	decodeText(d, path, n, reflect.ValueOf(m).Elem(), "a frequency like 500MHz or 2GHz", ParseMHz)
}

func (h *Heap) decodeNode(d *decoder, path string, n *yaml.Node) {
	decodeText(d, path, n, reflect.ValueOf(h).Elem(), "auto, or a size like 1GiB", func(s string) (Heap, error) {
		if s == "auto" {
			return 0, nil
		}
		b, err := ParseBytes(s)
		return Heap(b), err
	})
}

func (r *Range) decodeNode(d *decoder, path string, n *yaml.Node) {
	decodeText(d, path, n, reflect.ValueOf(r).Elem(), "an IPv4 address, or first-last in ascending order", ParseRange)
}

func (p *Percent) decodeNode(d *decoder, path string, n *yaml.Node) {
	decodeText(d, path, n, reflect.ValueOf(p).Elem(), "a share like 50%", func(s string) (Percent, error) {
		i, err := parsePercent(s)
		return Percent(i), err
	})
}

func parsePercent(s string) (int, error) {
	number, ok := strings.CutSuffix(s, "%")
	i, err := strconv.Atoi(number)
	if !ok || err != nil || i < 0 || i > 100 {
		return 0, fmt.Errorf("want 0%% to 100%%, have %q", s)
	}
	return i, nil
}

func (c *Count) decodeNode(d *decoder, path string, n *yaml.Node) {
	decodeText(d, path, n, reflect.ValueOf(c).Elem(), "a number, or a share like 10%", func(s string) (Count, error) {
		if strings.HasSuffix(s, "%") {
			i, err := parsePercent(s)
			if err == nil && i == 0 {
				err = fmt.Errorf("0%% changes nothing")
			}
			return Count{Percent: i}, err
		}
		i, err := strconv.ParseUint(s, 10, 16)
		return Count{N: int(i)}, err
	})
}

func (r *Role) decodeNode(d *decoder, path string, n *yaml.Node) {
	var name string
	d.scalar(path, n, reflect.ValueOf(&name).Elem())
	*r = Role(name)
	if slices.Contains(Roles, *r) || n.Kind != yaml.ScalarNode {
		return
	}
	what, remedy := "unknown role "+shown(name), ""
	switch name {
	case "docker", "haproxy", "bridged":
		what, remedy = name+" is not a role: it is on every node", "remove it"
	case "mesos-agent", "slave", "agent":
		remedy = "write mesos-slave"
	case "master":
		remedy = "write mesos-master"
	default:
		known := make([]string, len(Roles))
		for i, r := range Roles {
			known[i] = string(r)
		}
		remedy = didYouMean(name, known)
	}
	d.problem(n, "E01", path, what, remedy)
}

// decodeNode of addresses: the word dhcp, or a list of ranges.
func (a *Addresses) decodeNode(d *decoder, path string, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		if n.Value != "dhcp" {
			d.problem(n, "E01", path, "want dhcp or a list of addresses, have "+describe(n), "write [10.0.0.5-10.0.0.9] or dhcp")
			return
		}
		a.DHCP = true
		return
	}
	d.list(path, n, reflect.ValueOf(&a.Ranges).Elem())
}

// reference is the mapping form of a Value.
type reference struct {
	Env  string   `yaml:"env"`
	File string   `yaml:"file"`
	Exec []string `yaml:"exec"`
}

// decodeNode never repeats what it reads: it may be a secret in the wrong place.
func (v *Value) decodeNode(d *decoder, path string, n *yaml.Node) {
	switch n.Kind {
	case yaml.ScalarNode:
		v.Text = n.Value
	case yaml.MappingNode:
		var r reference
		d.structure(path, n, reflect.ValueOf(&r).Elem())
		v.take(d, path, n, r)
	default:
		d.problem(n, "E01", path, "want text or a reference, have a list", "write {env: NAME}, {file: path} or {exec: [command]}")
	}
}

func (v *Value) take(d *decoder, path string, n *yaml.Node, r reference) {
	given := 0
	for _, set := range []bool{r.Env != "", r.File != "", len(r.Exec) > 0} {
		if set {
			given++
		}
	}
	if given != 1 {
		if !d.tainted(path) {
			d.problem(n, "E01", path, fmt.Sprintf("want one of env, file and exec, have %d of them", given), "write {env: NAME}, {file: path} or {exec: [command]}")
		}
		return
	}
	v.Env, v.File, v.Exec = r.Env, r.File, r.Exec
}

// secretMapping is the mapping form of a Secret.
type secretMapping struct {
	Env        string   `yaml:"env"`
	File       string   `yaml:"file"`
	Exec       []string `yaml:"exec"`
	Derive     bool     `yaml:"derive"`
	Generation int      `yaml:"generation"`
}

func (s *Secret) decodeNode(d *decoder, path string, n *yaml.Node) {
	switch n.Kind {
	case yaml.ScalarNode:
		switch n.Value {
		case "none", "":
		case "derive":
			s.Derive = true
		default:
			s.Value.Text = n.Value // refused by Validate, without repeating it
		}
	case yaml.MappingNode:
		var m secretMapping
		d.structure(path, n, reflect.ValueOf(&m).Elem())
		s.Generation = m.Generation
		s.Derive = m.Derive
		if !m.Derive || m.Env != "" || m.File != "" || len(m.Exec) > 0 {
			s.Value.take(d, path, n, reference{m.Env, m.File, m.Exec})
			if m.Derive {
				d.problem(n, "E01", path, "derive stands beside a reference", "remove one of the two")
			}
		}
	default:
		d.problem(n, "E01", path, "want none, derive or a reference, have a list", "write {env: NAME}, {file: path} or {exec: [command]}")
	}
}

func (r *DistroRef) decodeNode(d *decoder, path string, n *yaml.Node) {
	if n.Kind == yaml.MappingNode {
		r.Inline = new(Distro)
		r.Inline.setDefaults()
		d.structure(path, n, reflect.ValueOf(r.Inline).Elem())
		r.Name = r.Inline.Name
		return
	}
	d.scalar(path, n, reflect.ValueOf(&r.Name).Elem())
}
