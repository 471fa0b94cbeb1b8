package haproxy

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Standalone renders cfg as a file that passes `haproxy -c` on a bare machine: without
// users and groups that do not exist here and without listeners whose certificate is
// missing. With a dir, map files are named below it and returned for the caller to write;
// without one, what they hold is written as rules.
func (r *Renderer) Standalone(cfg *Config, dir string) (text []byte, files map[string][]byte, err error) {
	bare := *cfg
	global := *cfg.Global
	global.SocketMode = knownOwners(global.SocketMode)
	global.KeptGlobal = slices.DeleteFunc(slices.Clone(global.KeptGlobal), namesUnknown)
	bare.Global = &global
	bare.Frontends = make(map[string]*Section, len(cfg.Frontends))
	for name, s := range cfg.Frontends {
		s = withoutCertificates(s)
		if dir == "" {
			if s, err = inlineMaps(s, cfg.Maps); err != nil {
				return nil, nil, err
			}
		}
		bare.Frontends[name] = s
	}
	bare.Backends = make(map[string]*Backend, len(cfg.Backends))
	for name, b := range cfg.Backends {
		s := withoutCertificates(&b.Section)
		if dir == "" {
			if s, err = inlineMaps(s, cfg.Maps); err != nil {
				return nil, nil, err
			}
		}
		if s != &b.Section {
			changed := *b
			changed.Section = *s
			b = &changed
		}
		bare.Backends[name] = b
	}
	out, err := r.Render(&bare)
	if err != nil {
		return nil, nil, err
	}
	files = make(map[string][]byte)
	path := func(name string) string { return filepath.Join(dir, name+".map") }
	if dir != "" {
		for name, content := range out.Maps {
			files[path(name)] = content
		}
	}
	return out.Bytes(FormatGeneration(out.Structure, 0), path), files, nil
}

// knownOwners leaves out of a stats socket's options users and groups that do not exist
// here: HAProxy refuses a file that names them.
func knownOwners(options string) string {
	var out []string
	fields := strings.Fields(options)
	for i := 0; i < len(fields); i++ {
		if i+1 < len(fields) && (fields[i] == "user" || fields[i] == "group") && namesUnknown(fields[i]+" "+fields[i+1]) {
			i++
			continue
		}
		out = append(out, fields[i])
	}
	return strings.Join(out, " ")
}

// namesUnknown reports a line of global that asks for a user, group or directory that is
// not there.
func namesUnknown(line string) bool {
	word, value, _ := strings.Cut(words(line), " ")
	var err error
	switch word {
	case "user":
		_, err = user.Lookup(value)
	case "group":
		_, err = user.LookupGroup(value)
	case "chroot":
		_, err = os.Stat(value)
	}
	return err != nil
}

// withoutCertificates is s without listeners whose certificate cannot be read here.
func withoutCertificates(s *Section) *Section {
	missing := func(b Bind) bool {
		fields := strings.Fields(b.Options)
		at := slices.Index(fields, "crt")
		if !slices.Contains(fields, "ssl") {
			return false
		}
		if at < 0 || at+1 >= len(fields) {
			return !slices.Contains(fields, "crt-list")
		}
		if info, err := os.Stat(fields[at+1]); err != nil || !info.IsDir() {
			return err != nil
		}
		entries, err := os.ReadDir(fields[at+1])
		return err != nil || len(entries) == 0
	}
	if !slices.ContainsFunc(s.Binds, missing) {
		return s
	}
	out := *s
	out.Binds = slices.DeleteFunc(slices.Clone(s.Binds), missing)
	return &out
}

var (
	// "{ EXPRESSION,map_beg(%map(NAME)) -m found }", the question whether a map has a key.
	mapFound = regexp.MustCompile(`\{ (\S+),map_(\w+)\(%map\(([^)]+)\)\) -m found \}`)
	// "http-request set-var(V) EXPRESSION,map_beg(%map(NAME))[ if …]".
	mapSetVar = regexp.MustCompile(`^(http-request set-var\([^)]*\)) (\S+),map_(\w+)\(%map\(([^)]+)\)\)((?: if .*)?)$`)
	// "use_backend %[EXPRESSION,map_str(%map(NAME),DEFAULT)][ if …]".
	mapUseBackend = regexp.MustCompile(`^use_backend %\[(\S+),map_(\w+)\(%map\(([^),]+)\)(?:,([^)]*))?\)\]((?: if .*)?)$`)
)

// inlineMaps is s with rules in place of look-ups in maps. HAProxy has no map without a
// file; rules do the same at a cost that grows with the number of keys, which is why only
// a file to look at is written this way.
func inlineMaps(s *Section, all map[string]*Map) (*Section, error) {
	if !slices.ContainsFunc(s.Lines, func(line string) bool { return strings.Contains(line, mapToken) }) {
		return s, nil
	}
	out := *s
	out.Lines, out.LineOwners = nil, nil
	for _, line := range s.Lines {
		lines, err := inlineLine(line, all)
		if err != nil {
			return nil, &RenderError{Section: fmt.Sprintf("%s %s", s.Kind, s.Name), Owner: s.Owner, Detail: err.Error()}
		}
		out.Lines = append(out.Lines, lines...)
	}
	return &out, nil
}

func inlineLine(line string, all map[string]*Map) ([]string, error) {
	line = mapFound.ReplaceAllStringFunc(line, func(found string) string {
		m := mapFound.FindStringSubmatch(found)
		keys := keysInOrder(all[m[3]])
		if len(keys) == 0 {
			return "{ always_false }"
		}
		return fmt.Sprintf("{ %s -m %s -- %s }", m[1], m[2], strings.Join(keys, " "))
	})
	if !strings.Contains(line, mapToken) {
		return []string{line}, nil
	}
	var out []string
	if m := mapSetVar.FindStringSubmatch(line); m != nil && all[m[4]] != nil && !strings.Contains(m[5], "||") {
		for _, key := range keysInOrder(all[m[4]]) {
			// The last rule that matches sets the variable: the longest prefix, as in a map.
			out = append(out, fmt.Sprintf("%s str(%s)%s { %s -m %s -- %s }",
				m[1], all[m[4]].Entries[key], cmp.Or(m[5], " if"), m[2], m[3], key))
		}
		return out, nil
	}
	if m := mapUseBackend.FindStringSubmatch(line); m != nil && all[m[3]] != nil && !strings.Contains(m[5], "||") {
		keys := keysInOrder(all[m[3]])
		slices.Reverse(keys) // the first rule that matches decides
		for _, key := range keys {
			out = append(out, fmt.Sprintf("use_backend %s%s { %s -m %s -- %s }",
				all[m[3]].Entries[key], cmp.Or(m[5], " if"), m[1], m[2], key))
		}
		if m[4] != "" {
			out = append(out, "use_backend "+m[4]+m[5])
		}
		return out, nil
	}
	return nil, fmt.Errorf("line %.60q cannot be written without a map file; render into a directory", line)
}

// keysInOrder are a map's keys, shorter ones first.
func keysInOrder(m *Map) []string {
	if m == nil {
		return nil
	}
	return slices.SortedFunc(maps.Keys(m.Entries), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
	})
}
