package bridge

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// marathonsKey is the list of several Marathons. It has no flag and no variable: what
// they would have to say has members of its own.
const marathonsKey = "marathons"

// sourceName is how a Marathon may be called: the name stands in logs, metrics and file names.
var sourceName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

// sources are the Marathons of c: the only one, or several.
func (c *Config) sources() []MarathonConfig {
	if len(c.Marathons) > 0 {
		return c.Marathons
	}
	return []MarathonConfig{c.Marathon}
}

// marathons reads the list. Each entry has a name and the keys of the section marathon.
func (r *yamlReader) marathons(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return
	}
	if n.Kind != yaml.SequenceNode {
		r.add(n, marathonsKey, "want a list, each entry with a name and the keys of the section marathon")
		return
	}
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", marathonsKey, i)
		r.c.origins[at] = origin{fromFile, fmt.Sprintf("%s:%d", r.path, item.Line)}
		if item.Kind != yaml.MappingNode {
			r.add(item, at, "want a name and the keys of the section marathon")
			continue
		}
		// The entry is read as the section marathon of a configuration of its own.
		one := &yamlReader{c: &Config{Marathon: marathonDefaults(), origins: map[string]origin{}}, path: r.path, seen: map[string]int{}}
		name, rest := "", &yaml.Node{Kind: yaml.MappingNode, Line: item.Line}
		for k := 0; k+1 < len(item.Content); k += 2 {
			if item.Content[k].Value != "name" {
				rest.Content = append(rest.Content, item.Content[k], item.Content[k+1])
			} else if item.Content[k+1].Kind == yaml.ScalarNode {
				name = item.Content[k+1].Value
			}
		}
		one.mapping("marathon.", rest)
		for _, err := range one.problems {
			if p, ok := err.(*Problem); ok {
				p.Key = at + strings.TrimPrefix(p.Key, "marathon")
			}
			r.problems = append(r.problems, err)
		}
		for key, o := range one.c.origins {
			r.c.origins[at+strings.TrimPrefix(key, "marathon")] = o
		}
		m := one.c.Marathon
		m.Name = name
		r.c.Marathons = append(r.c.Marathons, m)
	}
}

// marathons checks the only Marathon, or each of several.
func (v *validator) marathons(offline bool) {
	if len(v.c.Marathons) == 0 {
		v.marathon("marathon", &v.c.Marathon, offline)
		return
	}
	for _, s := range configKeys {
		if strings.HasPrefix(s.Key, "marathon.") && v.c.origins[s.Key].layer != fromDefault {
			v.add(s.Key, "marathons is set too; move it to the entries there, or remove one of them", nil)
		}
	}
	names, listens := map[string]bool{}, map[string]bool{}
	for i := range v.c.Marathons {
		m := &v.c.Marathons[i]
		at := fmt.Sprintf("%s[%d]", marathonsKey, i)
		switch {
		case !sourceName.MatchString(m.Name):
			v.add(at, fmt.Sprintf("name: want letters, digits and _.- that tell this Marathon from the others, have %q", m.Name), nil)
		case names[m.Name]:
			v.add(at, fmt.Sprintf("name: %q is taken by an earlier entry; give each its own", m.Name), nil)
		}
		names[m.Name] = true
		if l := m.Callback.Listen; l != "" {
			if listens[l] {
				v.add(at+".callback.listen", l+" is taken by an earlier entry; give each Marathon its own", nil)
			}
			listens[l] = true
		}
		v.marathon(at, m, offline)
	}
}

// marathon checks one, whose keys stand below at.
func (v *validator) marathon(at string, m *MarathonConfig, offline bool) {
	switch {
	case len(m.URLs) > 0 && m.URLsFile != "":
		v.add(at+".urls_file", at+".urls is set too; keep one of them", nil)
	case len(m.URLs) == 0 && m.URLsFile == "" && !offline:
		v.add(at+".urls", "no Marathon to follow; set it here, with --marathon URL or BRIDGED_MARATHON_URLS, or list host:port lines in "+LegacyMarathonsFile, nil)
	}
	for _, u := range m.URLs {
		if _, err := marathonURL(u); err != nil {
			v.add(at+".urls", err.Error(), nil)
		}
	}
	if m.URLsFile != "" {
		if _, err := readMarathonsFile(m.URLsFile); err != nil {
			v.problems = append(v.problems, err)
		}
	}
	v.oneOf(at+".transport", m.Transport, "auto", "sse", "callback", "poll")
	v.callback(at, m)
	v.readable(at+".auth.basic_file", m.Auth.BasicFile)
	v.readable(at+".auth.token_file", m.Auth.TokenFile)
	v.readable(at+".auth.dcos_file", m.Auth.DCOSFile)
	if n := countSet(m.Auth.BasicFile, m.Auth.TokenFile, m.Auth.DCOSFile); n > 1 {
		v.add(at+".auth", fmt.Sprintf("%d kinds of credentials are set; keep one of basic_file, token_file and dcos_file", n), nil)
	}
	v.readable(at+".tls.ca_file", m.TLS.CAFile)
	v.readable(at+".tls.cert_file", m.TLS.CertFile)
	v.readable(at+".tls.key_file", m.TLS.KeyFile)
	if (m.TLS.CertFile == "") != (m.TLS.KeyFile == "") {
		v.add(at+".tls.cert_file", "a client certificate needs both cert_file and key_file; set or remove both", nil)
	}
	v.atLeast(at+".resync", m.Resync, time.Second)
}

// urls returns the members of one Marathon, read from its file where it names one.
func (c *Config) urls(m *MarathonConfig) ([]string, error) {
	if m.URLsFile != "" {
		return readMarathonsFile(m.URLsFile)
	}
	urls := make([]string, 0, len(m.URLs))
	for _, s := range m.URLs {
		u, err := marathonURL(s)
		if err != nil {
			return nil, c.Problem("marathon.urls", err.Error(), nil)
		}
		if !slices.Contains(urls, u) {
			urls = append(urls, u)
		}
	}
	return urls, nil
}

// sameMarathons reports whether the watchers of a serve b too: all but the members is
// the same.
func sameMarathons(a, b []MarathonConfig) bool {
	return slices.EqualFunc(a, b, func(a, b MarathonConfig) bool {
		a.URLs, b.URLs, a.URLsFile, b.URLsFile = nil, nil, "", ""
		return reflect.DeepEqual(a, b)
	})
}
