package haproxy

import (
	"errors"
	"slices"
	"strings"
)

// errNobody: a configuration is refused whatever apps are in it.
var errNobody = errors.New("no app is to blame")

// isolate finds which of suspects, together with everybody else, make a configuration
// fail. passes tells whether the configuration is good with the given suspects in it; it
// has failed with all of them. For k culprits among n suspects it asks about 2·k·log2(n)
// times. Of suspects that fail only together, the later ones in the list are blamed.
func isolate(suspects []string, passes func(in []string) (bool, error)) ([]string, error) {
	if ok, err := passes(nil); err != nil || !ok {
		return nil, errors.Join(err, errNobody)
	}
	var in, bad []string
	// search: in passes, in with all of among fails. Afterwards in has the innocent of among.
	var search func(among []string) error
	search = func(among []string) error {
		if len(among) == 1 {
			bad = append(bad, among[0])
			return nil
		}
		left, right := among[:len(among)/2], among[len(among)/2:]
		leftPasses, err := passes(append(slices.Clone(in), left...))
		if err != nil {
			return err
		}
		if leftPasses {
			in = append(in, left...)
			return search(right) // something has to be in it
		}
		if err := search(left); err != nil {
			return err
		}
		rightPasses, err := passes(append(slices.Clone(in), right...))
		if err != nil {
			return err
		}
		if rightPasses {
			in = append(in, right...)
			return nil
		}
		return search(right)
	}
	if len(suspects) == 0 {
		return nil, errNobody
	}
	if err := search(suspects); err != nil {
		return nil, err
	}
	return bad, nil
}

// cut says how much of an app's part is left out of a configuration.
type cut uint8

const (
	cutNone   cut = iota
	cutToGood     // its part as it was in the last configuration that HAProxy took
	cutAll        // all of it
)

// without gives cfg with the parts of some apps in their form of good (nil: there is
// none), or left out. Servers are never taken from good: they come from cfg as long as the
// backend is in it.
func without(cfg, good *Config, cuts map[string]cut) *Config {
	if len(cuts) == 0 {
		return cfg
	}
	if good == nil {
		good = &Config{}
	}
	out := *cfg
	out.Userlists = withoutSections(cfg.Userlists, good.Userlists, cuts)
	out.Frontends = withoutSections(cfg.Frontends, good.Frontends, cuts)
	out.Backends = make(map[string]*Backend, len(cfg.Backends))
	for name, b := range cfg.Backends {
		if cuts[b.Owner] == cutNone {
			out.Backends[name] = b
		}
	}
	for name, b := range good.Backends {
		if cuts[b.Owner] != cutToGood || out.Backends[name] != nil {
			continue
		}
		if now := cfg.Backends[name]; now != nil && now.Owner == b.Owner {
			old := *b
			old.Servers = slices.Clone(now.Servers)
			for i := range old.Servers {
				old.Servers[i].Options = "" // may be what is refused
			}
			b = &old
		}
		out.Backends[name] = b
	}
	for name, s := range out.Frontends {
		if s.Owner == "" {
			out.Frontends[name] = withoutLines(s, cuts, cfg, &out)
		}
	}
	return &out
}

func withoutSections(now, good map[string]*Section, cuts map[string]cut) map[string]*Section {
	out := make(map[string]*Section, len(now))
	for name, s := range now {
		if cuts[s.Owner] == cutNone {
			out[name] = s
		}
	}
	for name, s := range good {
		if cuts[s.Owner] == cutToGood && out[name] == nil {
			out[name] = s
		}
	}
	return out
}

// withoutLines takes out of a shared section the lines of apps that are cut, and those that
// send traffic to a backend that is no longer there: HAProxy refuses such a name.
func withoutLines(s *Section, cuts map[string]cut, before, after *Config) *Section {
	drop := func(i int) bool {
		if i < len(s.LineOwners) && cuts[s.LineOwners[i]] != cutNone {
			return true
		}
		fields := strings.Fields(s.Lines[i])
		return len(fields) > 1 && (fields[0] == "use_backend" || fields[0] == "default_backend") &&
			before.Backends[fields[1]] != nil && after.Backends[fields[1]] == nil
	}
	out := *s
	out.Lines, out.LineOwners = nil, nil
	for i, line := range s.Lines {
		if !drop(i) {
			out.Lines = append(out.Lines, line)
			if i < len(s.LineOwners) {
				out.LineOwners = append(out.LineOwners, s.LineOwners[i])
			}
		}
	}
	if len(out.Lines) == len(s.Lines) {
		return s // the same pointer, for the renderer's cache
	}
	return &out
}
