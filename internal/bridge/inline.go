package bridge

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"bridged/internal/haproxy"
)

// A directive of ours reads a map in one of two ways, and each has a longer form that
// needs no map file: one rule per entry.
var (
	// set-var(VAR) EXPRESSION,map_beg(%map(NAME)) if CONDITION
	setFromMap = regexp.MustCompile(`^(.*set-var\(([^)]+)\)) (.+),map_(beg|str|int)\(%map\(([^)]+)\)\)( if .*)?$`)
	// { EXPRESSION,map_beg(%map(NAME)) -m found }
	foundInMap = regexp.MustCompile(`\{ (\S+),map_(beg|str|int)\(%map\(([^)]+)\)\) -m found \}`)
)

// InlineMaps renders again with every map written out as rules, so that one file is
// all there is. It is for eyes and for haproxy -c; what runs reads maps, which can be
// changed while it runs.
func (r *Rendering) InlineMaps() error {
	if len(r.Config.Maps) == 0 {
		return nil
	}
	c := *r.Config
	c.Frontends = maps.Clone(c.Frontends)
	for name, s := range c.Frontends {
		inlined, err := inlineSection(*s, c.Maps)
		if err != nil {
			return err
		}
		c.Frontends[name] = &inlined
	}
	c.Backends = maps.Clone(c.Backends)
	for name, b := range c.Backends {
		section, err := inlineSection(b.Section, c.Maps)
		if err != nil {
			return err
		}
		copied := *b
		copied.Section = section
		c.Backends[name] = &copied
	}
	c.Maps = nil
	rendered, err := r.renderer.Render(&c)
	if err != nil {
		return fmt.Errorf("render without maps: %w", err)
	}
	r.Rendered = rendered
	return nil
}

func inlineSection(s haproxy.Section, all map[string]*haproxy.Map) (haproxy.Section, error) {
	var lines []string
	for _, line := range s.Lines {
		line = foundInMap.ReplaceAllStringFunc(line, func(match string) string {
			m := foundInMap.FindStringSubmatch(match)
			keys := longestFirst(all[m[3]])
			if len(keys) == 0 {
				return "{ always_false }"
			}
			return "{ " + m[1] + " -m " + m[2] + " " + strings.Join(keys, " ") + " }"
		})
		m := setFromMap.FindStringSubmatch(line)
		if m == nil {
			if strings.Contains(line, "%map(") {
				return s, fmt.Errorf("section %s uses a map in a way that one file cannot hold; use --dir", s.Name)
			}
			lines = append(lines, line)
			continue
		}
		set, variable, expr, kind, condition := m[1], m[2], m[3], m[4], strings.TrimPrefix(m[6], " if")
		// The first of several rules that match is the one that counts, as in a map.
		entries := all[m[5]]
		for _, key := range longestFirst(entries) {
			lines = append(lines, fmt.Sprintf("%s str(%s) if { %s -m %s %s } !{ var(%s) -m found }%s",
				set, entries.Entries[key], expr, kind, key, variable, condition))
		}
	}
	s.Lines = lines
	return s, nil
}

// longestFirst is the order in which the keys of a prefix map win.
func longestFirst(m *haproxy.Map) []string {
	if m == nil {
		return nil
	}
	return slices.SortedFunc(maps.Keys(m.Entries), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(b), len(a)), strings.Compare(a, b))
	})
}
