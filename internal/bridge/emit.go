package bridge

import (
	"slices"

	"bridged/internal/haproxy"
)

// emit compares what each affected entry should be with what HAProxy was told and
// writes the difference into c. Removals come before additions, so that a name or a map
// key that moved from one service to another ends with the new one.
func (t *Translator) emit(w *work, c *haproxy.Change) {
	entries := sortedEntries(w.affect)
	want := make([]*fragment, len(entries))
	for i, e := range entries {
		lost := e.lost
		e.lost = nil
		if e.frag != nil {
			if e.lost = t.standing(e); e.lost == nil {
				want[i] = e.frag
			} else if e.lost.Since = w.now; lost != nil && lost.Reason == e.lost.Reason {
				e.lost.Since = lost.Since
			}
		}
		if e.live != nil {
			t.withdraw(e, want[i], c)
		}
	}
	for i, e := range entries {
		if want[i] != nil {
			t.publish(e, want[i], c)
		}
		e.live = want[i]
		if e.frag == nil {
			t.freePort(e)
		}
		t.note(e)
		t.routes.touchUnit(e.unit)
	}
	t.routes.emit(t, w, c)
	if t.sharedStale || t.routes.chunksChanged {
		t.emitShared(c)
	}
}

// emitShared writes the sections that belong to no service.
func (t *Translator) emitShared(c *haproxy.Change) {
	want := make(map[string]sharedSection)
	for _, s := range t.dialect.shared(t) {
		name := ""
		if s.frontend != nil {
			name = s.frontend.Name
		} else {
			name = s.backend.Name
		}
		have := t.shared[name]
		if s.frontend != nil && have.frontend != nil && equalSection(have.frontend, s.frontend) {
			s.frontend = have.frontend
		} else if s.frontend != nil {
			c.Frontends[name] = s.frontend
		}
		if s.backend != nil && have.backend != nil && equalBackend(have.backend, s.backend) {
			s.backend = have.backend
		} else if s.backend != nil {
			c.Backends[s.backend.Name] = s.backend
		}
		want[name] = s
	}
	for name, have := range t.shared {
		if have.frontend != nil && want[name].frontend == nil {
			c.Frontends[name] = nil
		}
		if have.backend != nil && want[name].backend == nil {
			c.Backends[have.backend.Name] = nil
		}
	}
	t.nameMaps(c)
	t.shared = want
	t.sharedStale, t.routes.chunksChanged = false, false
}

// note keeps the list of entries that have something to report.
func (t *Translator) note(e *entry) {
	if e.bad != nil || e.lost != nil || len(e.shades) > 0 {
		t.rejected[e] = true
	} else {
		delete(t.rejected, e)
	}
}

// withdraw takes out what the live fragment has and the wanted one has not.
func (t *Translator) withdraw(e *entry, want *fragment, c *haproxy.Change) {
	live := e.live
	if want == nil || want.name != live.name {
		c.Backends[live.name] = nil
		if live.frontend != nil {
			c.Frontends[live.frontend.Name] = nil
		}
	}
	if live.userlist != nil && (want == nil || want.userlist == nil || want.userlist.Name != live.userlist.Name) {
		c.Userlists[live.userlist.Name] = nil
	}
	if want == nil || want.name != live.name || !slices.Equal(want.routes, live.routes) {
		t.routes.remove(e, live)
	}
	if want == nil || want.name != live.name || want.view.set != live.view.set {
		t.routes.group(e, live, false)
	}
	if live.chunk != nil && (want == nil || !live.chunk.equal(want.chunk)) {
		t.routes.removeChunk(e)
	}
}

// publish puts in what the wanted fragment has and the live one has not. Parts that are
// equal keep their pointers: that is how everybody downstream sees what did not change.
func (t *Translator) publish(e *entry, want *fragment, c *haproxy.Change) {
	live := e.live
	same := live != nil && live.name == want.name
	if same && equalBackend(live.backend, want.backend) {
		want.backend = live.backend
	} else {
		c.Backends[want.name] = want.backend
	}
	if want.frontend != nil {
		if same && live.frontend != nil && equalSection(live.frontend, want.frontend) {
			want.frontend = live.frontend
		} else {
			c.Frontends[want.frontend.Name] = want.frontend
		}
	}
	if want.userlist != nil {
		if same && live.userlist != nil && equalSection(live.userlist, want.userlist) {
			want.userlist = live.userlist
		} else {
			c.Userlists[want.userlist.Name] = want.userlist
		}
	}
	if !same || !slices.Equal(want.routes, live.routes) {
		t.routes.add(e, want)
	}
	if !same || want.view.set != live.view.set {
		t.routes.group(e, want, true)
	}
	if want.chunk != nil && (live == nil || !want.chunk.equal(live.chunk)) {
		t.routes.addChunk(e, want.chunk)
	}
}

func equalSection(a, b *haproxy.Section) bool {
	return a.Kind == b.Kind && a.Name == b.Name && a.Mode == b.Mode && a.Owner == b.Owner && a.Unproven == b.Unproven &&
		a.Order == b.Order && slices.Equal(a.Binds, b.Binds) && slices.Equal(a.Lines, b.Lines) &&
		slices.Equal(a.LineOwners, b.LineOwners)
}

func equalBackend(a, b *haproxy.Backend) bool {
	return a.Balance == b.Balance && a.ServerOptions == b.ServerOptions && a.Named == b.Named &&
		slices.Equal(a.Servers, b.Servers) && equalSection(&a.Section, &b.Section)
}
