package haproxy

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
)

// part names what can make a reload necessary.
type part struct {
	kind partKind
	name string
}

type partKind uint8

const (
	partAll partKind = iota // we do not know what structure runs
	partGlobal
	partTemplate
	partUserlist
	partFrontend
	partBackend
	partServers // of a backend: what no runtime command could do
	partMap
	partCerts // certificates that no runtime command could bring
)

// sectionState is a section on its way to the worker.
type sectionState struct {
	want   *Section // nil: shall not be
	loaded *Section // that the worker loaded; nil: it has none, or nothing is known
	// refused is the last wanted one that HAProxy did not take: it is no reason to try again.
	refused *Section
}

// backendState is a backend on its way to the worker.
type backendState struct {
	want    *Backend
	loaded  *Backend // its lines other than servers are what the worker has
	refused *Backend
	have    *running // nil: the worker does not have it

	// gaveUp is the wanted value whose commands HAProxy refused and that has cost a reload
	// already: it does not cost another.
	gaveUp *Backend

	// touched is the Proxy's clock when have was last changed or meant to be. What was
	// read or written by a slower hand since then is stale.
	touched uint64

	file     *Backend            // cache of what is written to haproxy.cfg for want; nil: stale
	counts   [serverStates]int32 // of have, as counted in the metrics
	strategy strategy
}

// mapState is a map on its way to the worker.
type mapState struct {
	want    *Map // entries are ours; nil: shall not be
	loaded  bool
	have    *runningMap // nil: the worker does not have it
	touched uint64
}

// merge takes c into what is wanted. It returns the backends, and per map the keys, that
// have to be compared with HAProxy.
func (p *Proxy) merge(c *Change) (backends []string, keys map[string][]string) {
	if c.Global != nil {
		g := *c.Global
		if len(g.KeptGlobal)+len(g.KeptDefaults)+len(g.KeptSections) == 0 { // else they stand in place of the file's
			g.KeptGlobal, g.KeptDefaults, g.KeptSections = p.kept.KeptGlobal, p.kept.KeptDefaults, p.kept.KeptSections
		}
		g.SocketMode = cmp.Or(p.kept.SocketMode, g.SocketMode) // by which we got in
		p.global.want = &g
		p.judgeGlobal()
	}
	mergeSections(p.userlists, c.Userlists)
	mergeSections(p.frontends, c.Frontends)
	for name := range c.Userlists {
		p.judgeSection(p.userlists, name, partUserlist, ReasonUserlist)
	}
	for name := range c.Frontends {
		p.judgeSection(p.frontends, name, partFrontend, ReasonFrontend)
	}
	backends = slices.Sorted(maps.Keys(c.Backends)) // sorted: the same change gives the same batch
	for _, name := range backends {
		bs := p.backend(name)
		bs.want, bs.file = c.Backends[name], nil
		p.judgeBackend(name, bs)
	}
	keys = make(map[string][]string, len(c.Maps))
	for name, entries := range c.Maps {
		ms := p.maps[name]
		if entries == nil {
			if ms != nil {
				ms.want = nil
				p.judgeMap(name, ms)
			}
			continue
		}
		if ms == nil {
			ms = new(mapState)
			p.maps[name] = ms
		}
		if ms.want == nil {
			ms.want = &Map{Kind: cmp.Or(c.MapKinds[name], "str"), Entries: make(map[string]string, len(entries))}
		}
		ms.touched = p.clock
		for key, value := range entries {
			if value == "" {
				delete(ms.want.Entries, key)
			} else {
				ms.want.Entries[key] = value
			}
			keys[name] = append(keys[name], key)
		}
		slices.Sort(keys[name])
		p.judgeMap(name, ms)
	}
	return backends, keys
}

func mergeSections(have map[string]*sectionState, changed map[string]*Section) {
	for name, section := range changed {
		st := have[name]
		if st == nil {
			st = new(sectionState)
			have[name] = st
		}
		st.want = section
	}
}

func (p *Proxy) backend(name string) *backendState {
	bs := p.backends[name]
	if bs == nil {
		bs = new(backendState)
		p.backends[name] = bs
	}
	return bs
}

// dirt says that a part of the worker's structure is not as wanted.
type dirt struct {
	reason Reason
	seq    uint64 // order in which parts became so: the first gives a reload its reason
}

// mark notes that part is different from what the worker loaded, or with reason "" that it
// is not.
func (p *Proxy) mark(part part, reason Reason) {
	if reason == "" {
		delete(p.dirty, part)
		return
	}
	old, there := p.dirty[part]
	if !there {
		p.dirtSeq++
		old.seq = p.dirtSeq
	}
	if old.reason != reason {
		p.fresh = true
	}
	p.dirty[part] = dirt{reason, old.seq}
}

// reasons of what is dirty, in the order in which it became so.
func (p *Proxy) reasons() []Reason {
	first := make(map[Reason]uint64)
	for _, d := range p.dirty {
		if seq, there := first[d.reason]; !there || d.seq < seq {
			first[d.reason] = d.seq
		}
	}
	return slices.SortedFunc(maps.Keys(first), func(a, b Reason) int { return cmp.Compare(first[a], first[b]) })
}

// The judges compare one wanted part with what the worker loaded. As long as we do not
// know what that is, partAll stands for every part and they find nothing.

func (p *Proxy) judgeGlobal() {
	if !p.known || reflect.DeepEqual(p.global.want, p.global.loaded) {
		p.mark(part{partGlobal, ""}, "")
		return
	}
	p.fresh = true
	p.mark(part{partGlobal, ""}, ReasonGlobal)
}

func (p *Proxy) judgeSection(all map[string]*sectionState, name string, kind partKind, reason Reason) {
	st := all[name]
	switch {
	case !p.known, sameSection(st.want, st.loaded), st.want != nil && sameSection(st.want, st.refused):
		p.mark(part{kind, name}, "")
		if p.known && st.want == nil {
			delete(all, name)
		}
	default:
		p.fresh = true
		p.mark(part{kind, name}, reason)
	}
}

func (p *Proxy) judgeBackend(name string, bs *backendState) {
	reason := ReasonBackend
	switch {
	case !p.known, sameStructure(bs.want, bs.loaded), bs.want != nil && sameStructure(bs.want, bs.refused):
		p.mark(part{partBackend, name}, "")
		if p.known && bs.want == nil {
			p.mark(part{partServers, name}, "")
			p.count(bs, nil)
			delete(p.backends, name)
		}
		return
	case bs.loaded == nil:
		reason = ReasonBackendAdded
	case bs.want == nil:
		reason = ReasonBackendRemoved
	}
	p.fresh = true
	p.mark(part{partBackend, name}, reason)
}

func (p *Proxy) judgeMap(name string, ms *mapState) {
	if !p.known || (ms.want != nil) == ms.loaded {
		p.mark(part{partMap, name}, "")
		if p.known && ms.want == nil {
			delete(p.maps, name)
		}
		return
	}
	p.fresh = true
	p.mark(part{partMap, name}, ReasonMap)
}

// judgeAll compares everything wanted with everything loaded.
func (p *Proxy) judgeAll() {
	p.judgeGlobal()
	for name := range p.userlists {
		p.judgeSection(p.userlists, name, partUserlist, ReasonUserlist)
	}
	for name := range p.frontends {
		p.judgeSection(p.frontends, name, partFrontend, ReasonFrontend)
	}
	for name, bs := range p.backends {
		p.judgeBackend(name, bs)
	}
	for name, ms := range p.maps {
		p.judgeMap(name, ms)
	}
}

// sameSection reports whether two sections are the same text in haproxy.cfg, and at the
// same place in it.
func sameSection(a, b *Section) bool {
	if a == b {
		return true
	}
	return a != nil && b != nil && a.Kind == b.Kind && a.Name == b.Name && a.Mode == b.Mode && a.Order == b.Order &&
		a.Unproven == b.Unproven && slices.Equal(a.Binds, b.Binds) && slices.Equal(a.Lines, b.Lines)
}

// sameStructure reports whether two backends differ in nothing but their servers.
func sameStructure(a, b *Backend) bool {
	if a == b {
		return true
	}
	return a != nil && b != nil && a.Balance == b.Balance && a.ServerOptions == b.ServerOptions &&
		a.Named == b.Named && sameSection(&a.Section, &b.Section)
}
