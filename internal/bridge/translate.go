package bridge

import (
	"cmp"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"bridged/internal/discovery"
	"bridged/internal/haproxy"
)

// Translator turns services into HAProxy's words, one service at a time: the work of
// Apply is proportional to the services that an update names and to those that share a
// port, a name, a vhost or a deployment group with them, never to all there are. It
// does no I/O and reads no clock. Not for concurrent use.
//
// A service whose definition cannot be used stays in its last good form, with its
// present tasks, and is listed by Rejected; nothing of it reaches the other services.
type Translator struct {
	opts    TranslateOptions
	dialect dialect
	local   map[netip.Addr]bool

	apps  map[appKey]*member
	units map[unitKey]*unit

	contests map[claim]*contest
	routes   *routeTable
	auto     map[uint16]*entry // ports assigned to services that have none of their own
	rejected map[*entry]bool   // entries that have anything to report

	shared      map[string]sharedSection // what is out, by name
	sharedStale bool
}

// NewTranslator returns a Translator that knows no service.
func NewTranslator(o TranslateOptions) *Translator {
	o = o.withDefaults()
	t := &Translator{
		opts:     o,
		local:    make(map[netip.Addr]bool),
		apps:     make(map[appKey]*member),
		units:    make(map[unitKey]*unit),
		contests: make(map[claim]*contest),
		routes:   newRouteTable(),
		auto:     make(map[uint16]*entry),
		rejected: make(map[*entry]bool),
	}
	t.configure(o)
	return t
}

// configure takes options over.
func (t *Translator) configure(o TranslateOptions) {
	t.opts = o
	t.routes.longestFirst = o.MarathonLB.LongestPathFirst
	t.sharedStale = true
	t.regroup(o.Dialect == DialectMarathonLB && o.MarathonLB.GroupHTTPSByVhost)
	clear(t.local)
	for _, a := range o.LocalAddrs {
		t.local[a.Unmap()] = true
	}
	if o.Dialect == DialectMarathonLB {
		t.dialect = newMLBDialect(&t.opts)
	} else {
		t.dialect = &bridgeDialect{opts: &t.opts, ts: builtinTemplates()}
	}
}

// Reconfigure takes new options and translates every known service with them. The
// Change is the difference to what was out. A last good form that the new options do
// not admit is forgotten.
func (t *Translator) Reconfigure(o TranslateOptions, now time.Time) haproxy.Change {
	t.configure(o.withDefaults())
	w := newWork(now)
	for _, u := range t.units {
		for _, e := range u.entries {
			w.entries[e] = true
			e.defFrom, e.defErr = nil, nil
			if e.good != nil {
				if set, err := parseSettings(e.good.app, e.index, &t.opts); err == nil {
					e.good = &definition{app: e.good.app, port: e.good.port, set: set}
				} else {
					e.good = nil
				}
			}
		}
	}
	for host := range t.routes.hosts {
		t.routes.dirty[host] = true
	}
	return t.run(w, time.Time{})
}

// work is what one Apply has to look at again.
type work struct {
	now     time.Time
	entries map[*entry]bool // translate again
	claims  map[claim]bool  // decide again
	affect  map[*entry]bool // compare with what is live
}

func newWork(now time.Time) *work {
	return &work{now: now, entries: make(map[*entry]bool), claims: make(map[claim]bool), affect: make(map[*entry]bool)}
}

// Apply takes in what changed and returns what HAProxy shall change. now dates
// rejections.
func (t *Translator) Apply(u *discovery.Update, now time.Time) haproxy.Change {
	w := newWork(now)
	if u.Full {
		t.dropAbsent(u.Services, w)
	}
	for _, k := range u.Gone {
		t.remove(k, w)
	}
	for _, s := range u.Services {
		t.take(s, w)
	}
	return t.run(w, u.Received)
}

// run does the work: translate, decide who gets what, write the difference.
func (t *Translator) run(w *work, received time.Time) haproxy.Change {
	todo := sortedEntries(w.entries)
	for _, e := range todo {
		t.translate(e, w)
	}
	for _, e := range todo {
		// Its servers are checked on the ports of a sibling that may have been translated after it.
		if e.frag != nil && e.frag.view.set.checkIndex >= 0 {
			t.translate(e, w)
		}
	}
	for cl := range w.claims {
		t.decide(cl, w)
	}
	c := haproxy.Change{
		Userlists: make(map[string]*haproxy.Section),
		Frontends: make(map[string]*haproxy.Section),
		Backends:  make(map[string]*haproxy.Backend),
		Maps:      make(map[string]map[string]string),
		Received:  received,
	}
	t.emit(w, &c)
	return c
}

// dropAbsent removes what a full update does not name.
func (t *Translator) dropAbsent(services []*discovery.Service, w *work) {
	present := make(map[discovery.Key]bool, len(services))
	for _, s := range services {
		present[s.Key] = true
	}
	for app, m := range t.apps {
		for index := range m.services {
			if k := (discovery.Key{App: app.id, Index: index, Source: app.source}); !present[k] {
				t.remove(k, w)
			}
		}
	}
}

// take stores a service and marks what it touches.
func (t *Translator) take(s *discovery.Service, w *work) {
	app := appKey{s.Key.Source, s.Key.App}
	m := t.apps[app]
	if m == nil {
		m = &member{id: s.Key.App, services: make(map[int]*discovery.Service)}
		t.apps[app] = m
	}
	m.services[s.Key.Index] = s
	if !sameLabels(m.depFrom, s.App) {
		if dep, err := parseDeployment(s.App); err == nil || m.unit == nil {
			// A group label that cannot be read leaves the app where it was.
			m.dep, m.depErr = dep, err
		} else {
			m.depErr = err
		}
	}
	m.depFrom = s.App
	key := unitKey{source: app.source, id: m.id}
	if m.dep.group != "" {
		key = unitKey{source: app.source, id: m.dep.group, group: true}
	}
	if m.unit == nil || m.unit.key != key {
		t.leave(m, w)
		t.join(m, key, w)
	}
	t.touch(m.unit, s.Key.Index, w)
}

func (t *Translator) remove(k discovery.Key, w *work) {
	app := appKey{k.Source, k.App}
	m := t.apps[app]
	if m == nil || m.services[k.Index] == nil {
		return
	}
	delete(m.services, k.Index)
	u := m.unit
	t.touch(u, k.Index, w)
	if len(m.services) == 0 {
		t.leave(m, w)
		delete(t.apps, app)
	}
}

// join puts an app into its unit, leave takes it out.
func (t *Translator) join(m *member, key unitKey, w *work) {
	u := t.units[key]
	if u == nil {
		u = &unit{key: key, members: make(map[string]*member), entries: make(map[int]*entry)}
		t.units[key] = u
	}
	u.members[m.id] = m
	m.unit = u
	for index := range m.services {
		t.touch(u, index, w)
	}
}

func (t *Translator) leave(m *member, w *work) {
	u := m.unit
	if u == nil {
		return
	}
	delete(u.members, m.id)
	m.unit = nil
	for _, e := range u.entries {
		w.entries[e] = true
	}
}

// touch marks the entries that a change of service port index may concern. In a group,
// and where a service's checks go to the port of another, that is the whole unit.
func (t *Translator) touch(u *unit, index int, w *work) {
	e := u.entries[index]
	if e == nil {
		e = &entry{unit: u, index: index}
		u.entries[index] = e
	}
	w.entries[e] = true
	for _, other := range u.entries {
		if u.key.group || other.good != nil && other.good.set.checkIndex >= 0 {
			w.entries[other] = true
		}
	}
}

// sortedEntries puts entries in the order of app id and index, so that equal input gives
// equal output.
func sortedEntries(set map[*entry]bool) []*entry {
	list := slices.Collect(maps.Keys(set))
	slices.SortFunc(list, func(a, b *entry) int {
		return cmp.Or(strings.Compare(a.unit.key.id, b.unit.key.id), cmp.Compare(a.index, b.index),
			boolCompare(a.unit.key.group, b.unit.key.group), strings.Compare(a.unit.key.source, b.unit.key.source))
	})
	return list
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// translate makes an entry's fragment anew and enters its claims.
func (t *Translator) translate(e *entry, w *work) {
	w.affect[e] = true
	before := e.frag
	e.bad = nil
	merged := mergeUnit(e.unit)
	var service *discovery.Service
	if merged != nil {
		service = merged.owner.services[e.index]
	}
	if service == nil {
		delete(e.unit.entries, e.index)
		if len(e.unit.entries) == 0 && len(e.unit.members) == 0 {
			delete(t.units, e.unit.key)
		}
		e.good, e.frag = nil, nil
		t.setClaims(e, w)
		return
	}
	def, err := t.define(e, merged.owner, service, w)
	if def == nil {
		e.report(merged.owner.id, err, false)
		e.frag = nil
		t.setClaims(e, w)
		return
	}
	v := t.view(e, merged, def)
	frag, buildErr := t.build(v)
	if buildErr != nil {
		frag = before
		if def != e.good && e.good != nil {
			if f, err := t.build(t.view(e, merged, e.good)); err == nil {
				frag = f
			}
		}
	}
	switch {
	case buildErr != nil:
		if e.defErr == nil || e.defErr.Error() != buildErr.Error() {
			e.defErr, e.defSince = buildErr, w.now
		}
		e.report(merged.owner.id, buildErr, frag != nil)
	case err != nil:
		e.report(merged.owner.id, err, frag != nil)
	default:
		e.good, e.defErr = def, nil
	}
	e.frag = frag
	t.setClaims(e, w)
}

// report turns an error into the entry's rejection.
func (e *entry) report(app string, err error, lastGood bool) {
	reason := ReasonBadApp
	if le, ok := errors.AsType[*LabelError](err); ok {
		reason = le.Reason
	} else if fe, ok := errors.AsType[*fragmentError](err); ok {
		reason = fe.reason
	}
	e.bad = &Rejection{App: app, Index: e.index, Reason: reason, LastGood: lastGood, Since: e.defSince,
		Detail: strings.ReplaceAll(err.Error(), "\n", "; ")}
}

// define understands the present definition. When that fails it returns the last good
// one, or nil, and the reason.
func (t *Translator) define(e *entry, m *member, s *discovery.Service, w *work) (*definition, error) {
	if e.good != nil && e.defErr == nil && e.good.app == s.App && e.good.port.Service == s.Port.Service {
		return e.good, nil
	}
	if e.defErr != nil && e.defFrom == s.App {
		return e.good, e.defErr
	}
	set, err := t.settings(e, s)
	if err == nil {
		err = m.depErr
	}
	if err == nil && !validAppID(s.App.ID) {
		err = &fragmentError{ReasonBadApp, "the app's id has other characters than Marathon allows"}
	}
	e.defFrom = s.App
	if err != nil {
		if e.defErr == nil || e.defErr.Error() != err.Error() {
			e.defSince = w.now
		}
		e.defErr = err
		return e.good, err
	}
	e.defErr = nil
	return &definition{app: s.App, port: s.Port, set: set}, nil
}

// settings parses labels, or keeps the parsed ones where the labels are the same.
func (t *Translator) settings(e *entry, s *discovery.Service) (*settings, error) {
	if e.good != nil && sameLabels(e.good.app, s.App) {
		return e.good.set, nil
	}
	return parseSettings(s.App, e.index, &t.opts)
}

// view joins a definition with the tasks.
func (t *Translator) view(e *entry, g *mergedUnit, def *definition) *view {
	v := &view{definition: def, id: e.unit.key.id, owner: g.owner.id, number: def.port.Service, draining: g.draining, entry: e}
	if def.set.port != 0 {
		v.number, v.override = def.set.port, true
	}
	for _, m := range g.parts {
		if s := m.services[e.index]; s != nil {
			for i := range s.Tasks {
				v.tasks = append(v.tasks, &s.Tasks[i])
			}
		}
	}
	v.sibling = func(rank int, taskID string) uint16 {
		if f := siblingByRank(e.unit, rank); f != nil {
			for _, task := range f.view.tasks {
				if task.ID == taskID {
					return task.Addr.Port()
				}
			}
		}
		return 0
	}
	return v
}

// build makes the fragment of a view; nil when the service is not to be served at all.
func (t *Translator) build(v *view) (*fragment, error) {
	if !v.set.enabled || !t.serves(v) || v.port.Protocol == "udp" ||
		t.opts.MarathonLB.FrameworkName != "" && strings.TrimPrefix(v.id, "/") == t.opts.MarathonLB.FrameworkName {
		return nil, nil
	}
	if v.number == 0 && !t.assignPort(v) {
		return nil, nil
	}
	if t.opts.DropEmpty && len(v.tasks) == 0 {
		return nil, nil
	}
	f, err := t.dialect.shape(v)
	if err != nil {
		return nil, err
	}
	f.view = v
	servers := make([]haproxy.Server, 0, len(v.tasks))
	for _, task := range v.tasks {
		state, ok := t.admit(v, task)
		if !ok {
			continue
		}
		if s, ok := t.dialect.server(f, v, task, state); ok {
			servers = append(servers, s)
		}
	}
	if servers, err = t.dialect.finish(f, v, servers); err != nil {
		return nil, err
	}
	f.backend.Servers = servers
	return f, nil
}

// serves says whether this bridge's groups include the service's.
func (t *Translator) serves(v *view) bool {
	if len(t.opts.Groups) == 0 || slices.Contains(t.opts.Groups, "*") {
		return true
	}
	for _, g := range v.set.groups {
		if slices.Contains(t.opts.Groups, g) {
			return true
		}
	}
	return false
}

// Rejected lists what is not served as asked, by app and index.
func (t *Translator) Rejected() []Rejection {
	var list []Rejection
	for e := range t.rejected {
		for _, r := range []*Rejection{e.bad, e.lost, e.shaded()} {
			if r != nil {
				list = append(list, *r)
			}
		}
	}
	slices.SortFunc(list, func(a, b Rejection) int {
		return cmp.Or(strings.Compare(a.App, b.App), cmp.Compare(a.Index, b.Index), strings.Compare(string(a.Reason), string(b.Reason)))
	})
	return list
}
