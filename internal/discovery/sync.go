package discovery

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// answer is one reading of Marathon being merged: of everything, of a group, or of one
// app. Apps are merged one by one as they come. What the answer lacks is removed only
// at its end, when it is known to be whole and plausible.
type answer struct {
	number uint64 // of the request
	since  uint64 // events applied when the request went out

	apps        int
	nameless    bool    // an app could not even be named: nothing absent is surely gone
	missing     []*task // tasks that the answer lacks
	routed      int     // tasks in state Running or Unreachable before
	unexplained int     // of these, how many are missing without their app having been scaled down
	corrected   int     // apps in which the answer differed from the picture
}

// begin numbers a request. Call it when the request goes out.
func (s *state) begin() *answer {
	s.request++
	return &answer{number: s.request, since: s.seq}
}

// merge takes in one app of an answer. What was heard before the request is in the
// answer (Marathon changes its state before it publishes the event), so that the answer
// counts; what was heard after it may be or not, so that the event counts.
func (s *state) merge(r *answer, d *appData, now time.Time) {
	r.apps++
	if d.id == "" {
		r.nameless = true
		return
	}
	a := s.apps[d.id]
	if gone, ok := s.absent[d.id]; ok && gone > r.number {
		return // a later request found it deleted
	}
	if a != nil && a.answered > r.number {
		return
	}
	if a == nil {
		a = s.app(d.id)
		a.seq = 0
		s.touch(a)
	}
	before := len(s.touched)
	wasTouched := a.touched
	delete(s.absent, d.id)
	a.answered = r.number
	if d.broken != nil {
		return // stays as it was
	}
	a.deploying = d.deploying
	if a.defSeq <= r.since || a.def == nil || d.def.Version >= a.def.Version {
		s.define(a, d.def, 0)
	}
	running := 0
	for i := range d.tasks {
		if t := &d.tasks[i]; t.phase != phaseGone {
			if t.phase == phaseRunning {
				running++
			}
			s.mergeTask(r, a, t, now)
		}
	}
	s.lacking(r, a, running)
	if !wasTouched && len(s.touched) > before {
		r.corrected++
	}
	if a.def.Readiness && a.deploying && slices.ContainsFunc(a.tasks, func(t *task) bool { return !t.ready }) {
		s.want(a.id, time.Second) // no event tells
	}
}

// lacking notes which tasks of a the answer does not have, and how many of them nothing
// explains: after a change of leader Marathon may answer before it knows its tasks.
func (s *state) lacking(r *answer, a *app, running int) {
	missing := 0
	for _, t := range a.tasks {
		routed := t.phase == phaseRunning || t.phase == phaseUnreachable
		if routed {
			r.routed++
		}
		if t.sync == r.number || t.seq > r.since {
			continue
		}
		r.missing = append(r.missing, t)
		if routed {
			missing++
		}
	}
	if a.def != nil {
		missing = min(missing, a.def.Instances-running)
	}
	r.unexplained += max(missing, 0)
}

func (s *state) mergeTask(r *answer, a *app, d *taskData, now time.Time) {
	in := s.instance(instanceKey(d.id))
	t := in.task(d.id)
	switch {
	case t != nil && t.phase == phaseGone && t.seq > r.since:
		return
	case t == nil && in.goneSeq > r.since && in.goneAt != 0:
		return
	case t != nil && t.phase == phaseGone:
		// A terminal report that the answer does not confirm: it was wrong.
		s.forget(t)
		in = s.instance(instanceKey(d.id))
		t = nil
	}
	if t == nil {
		since := int64(longAgo)
		if in.first != nil || in.killAt != 0 || in.verdictAt != 0 {
			since = max(since, d.started) // what was said of the instance may be about an earlier task
			if d.phase == phaseStaging {
				since = 0 // until it runs
			}
		}
		t = s.add(in, d.id, a.id)
		t.since = since
	}
	t.sync = r.number
	if t.app != a {
		return // an id in two apps: Marathon does not do that
	}
	changed := false
	if t.seq <= r.since {
		changed = t.phase != d.phase || !slices.Equal(t.ports, d.ports) || !slices.Equal(t.addrs, d.addrs) || t.host.name != d.host.Value()
		if d.phase == phaseRunning && in.offAt != 0 {
			changed = changed || t.at <= in.offAt
			in.offAt = 0
		}
		if t.since == 0 && d.phase == phaseRunning {
			t.since = max(longAgo, d.started)
		}
		t.phase, t.host = d.phase, s.agent(d.host.Value())
		if len(d.ports) > 0 || d.phase != phaseRunning {
			t.ports = d.ports
		}
		t.addrs = d.addrs
		if d.phase == phaseLost {
			t.phase = phaseUnreachable
		}
	}
	if t.version == noText || t.seq <= r.since {
		changed = changed || t.version != d.version
		t.version = d.version
	}
	if len(t.addrs) == 0 && len(d.addrs) > 0 {
		t.addrs, changed = d.addrs, true
	}
	if t.ready != d.ready {
		t.ready, changed = d.ready, true
	}
	if d.health != HealthUnknown && (d.health != in.verdict || in.verdictAt < t.since) && in.verdictSeq <= r.since {
		in.verdict, changed = d.health, true
		s.judged++
		in.verdictAt = max(in.verdictAt, t.since, longAgo)
	}
	if s.mergeKill(in, d, now) || changed {
		s.touchTask(a, t)
	}
	if v := t.version.Value(); v != "" && v < a.def.LastConfigChange && t.layout == nil {
		s.findLayout(t)
	}
}

// mergeKill forgets a kill that was decided long ago and that Marathon did not carry
// out, and learns since when the task runs, to know a goal change from its start.
func (s *state) mergeKill(in *instance, d *taskData, now time.Time) (changed bool) {
	if d.phase != phaseRunning {
		return false
	}
	if in.killAt != 0 || in.cond.repeated() {
		if now.UnixMilli()-in.killHeard < killSticks.Milliseconds() {
			return false
		}
		in.killAt, changed = 0, true
		in.cond = conditions{}
	}
	if in.cond.phase == phaseNone && d.started != 0 {
		in.cond = conditions{phase: phaseRunning, from: d.started, to: d.started, answered: true}
	}
	return changed
}

// absentees adds what a whole answer lacks besides tasks of the apps in it: apps. Only
// those for which in says yes are in the scope of the answer.
func (s *state) absentees(r *answer, in func(id string) bool) (gone []*app) {
	if r.nameless {
		return nil
	}
	for _, a := range s.apps {
		if a.answered >= r.number || a.seq > r.since || !in(a.id) {
			continue
		}
		gone = append(gone, a)
		for _, t := range a.tasks {
			if t.phase == phaseRunning || t.phase == phaseUnreachable {
				r.routed++
				r.unexplained++
			}
		}
	}
	slices.SortFunc(gone, func(a, b *app) int { return strings.Compare(a.id, b.id) })
	return gone
}

// finish removes what r lacks. It was found whole and plausible.
func (s *state) finish(r *answer, gone []*app) {
	for _, t := range r.missing {
		if t.phase != phaseGone && t.seq <= r.since && t.sync <= r.number {
			s.forget(t)
			r.corrected++
		}
	}
	for _, a := range gone {
		if !a.gone && a.seq <= r.since {
			s.drop(a)
			r.corrected++
		}
	}
}

// missingApp takes in that Marathon answered r with "no such app".
func (s *state) missingApp(r *answer, id string) {
	if a := s.apps[id]; a != nil && a.answered <= r.number && a.seq <= r.since {
		s.drop(a)
	}
	s.absent[id] = max(s.absent[id], r.number)
	// What is remembered only keeps older answers out.
	if len(s.absent) > 1024 {
		maps.DeleteFunc(s.absent, func(_ string, n uint64) bool { return n+1024 < s.request })
	}
}

// drop removes an app and its tasks.
func (s *state) drop(a *app) {
	for _, t := range slices.Clone(a.tasks) {
		s.forget(t)
	}
	s.removeApp(a)
}

func (s *state) removeApp(a *app) {
	if a.gone {
		return
	}
	a.gone = true
	s.touch(a)
	if s.apps[a.id] == a {
		delete(s.apps, a.id)
	}
}

// define replaces the definition of a. seq is the event that brought it, 0 for an answer.
func (s *state) define(a *app, def *App, seq uint64) {
	old := a.def
	a.defSeq = seq
	if seq != 0 {
		a.seq = seq
	}
	if old != nil && sameApp(old, def) {
		return
	}
	def.Source = s.source
	a.def = def
	s.touch(a)
	for _, t := range a.tasks {
		switch {
		case t.layout == nil && old != nil && !samePorts(old, def) && t.version.Value() < def.LastConfigChange:
			t.layout = old
		case t.layout != nil && samePorts(t.layout, def):
			t.layout = nil
		}
	}
}

// sameApp: Source aside, which is set once.
func sameApp(a, b *App) bool {
	x, y := *a, *b
	x.Source, y.Source = "", ""
	return reflect.DeepEqual(x, y)
}

// findLayout looks for the ports of the definition that t was started from: with
// another task of its version, else it asks Marathon for that version.
func (s *state) findLayout(t *task) {
	a := t.app
	for _, other := range a.tasks {
		if other != t && other.version == t.version {
			t.layout = other.layout // nil: it was asked for, or the present ports serve
			return
		}
	}
	mapped := 0
	for _, p := range a.def.Ports {
		if p.Mapped {
			mapped++
		}
	}
	if mapped != len(t.ports) && t.phase == phaseRunning {
		s.wants = append(s.wants, want{app: a.id, version: t.version.Value()})
	}
}

// layout takes in the definition that tasks of an old version were started from.
func (s *state) layout(id, version string, def *App) {
	a := s.apps[id]
	if a == nil || a.def == nil || samePorts(a.def, def) {
		return
	}
	for _, t := range a.tasks {
		if t.version.Value() == version && t.layout == nil {
			t.layout = def
			s.touch(a)
		}
	}
}

// offer takes in the definition of an api_post_event: Marathon 0.11 and newer send it
// after the change, but as posted, so that service ports may still be missing. It
// reports whether the definition needs no fetch.
func (s *state) offer(def *App) bool {
	if !s.version.hasDefinitions() || def.Version == "" {
		return false
	}
	for _, p := range def.Ports {
		if p.Service == 0 {
			return false
		}
	}
	a := s.app(def.ID)
	a.seq = s.seq
	if a.def == nil || def.Version > a.def.Version {
		s.define(a, def, s.seq)
	}
	return true
}
