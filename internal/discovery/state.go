package discovery

import (
	"net/netip"
	"slices"
	"strings"
	"time"
	"unique"
)

// state is the picture of one Marathon: apps, their tasks, and what is remembered of
// tasks that ended. It does no I/O and reads no clock. Not for concurrent use.
//
// Marathon promises no order of events, may repeat them, and answers requests while
// events are on their way. The picture comes out the same in every order, because
//   - a report carries an absolute state and Marathon's own timestamp: of two reports on
//     one task the later counts;
//   - an ended task leaves a tombstone that absorbs what comes late;
//   - what is said of an instance before its task is known waits with the instance;
//   - an answer replaces what was heard before its request and yields to what was heard after.
type state struct {
	source string
	// lookup gives the address of an agent. It remembers what it could not answer, and
	// whoever learns the answer calls rehost.
	lookup func(host string) (netip.Addr, bool)

	apps  map[string]*app
	insts map[string]*instance // by instanceKey

	seq     uint64 // events applied so far
	request uint64 // requests started so far
	judged  uint64 // counts changes of verdicts
	epoch   uint32 // streams attached so far: see instance.epoch
	version version

	touched []*app // their services may differ from what was taken last
	wants   []want
	agents  map[string]*agent // by host name; "" is noAgent
	absent  map[string]uint64 // app that Marathon did not have → number of that request
	graves  graveyard
	counts  counts
}

// app is what is known of one app. It exists from the first event of a task on;
// without a definition nothing is published of it.
type app struct {
	id        string
	def       *App
	defSeq    uint64 // event that brought def, 0 for an answer
	seq       uint64 // newest event about the app or its tasks
	answered  uint64 // newest request that def and tasks were merged from
	deploying bool

	tasks    []*task    // those not ended, sorted by id
	services []*Service // as published last
	sent     int        // how many of them
	counts   counts     // of what was published

	touched bool
	rebuild bool    // all of its tasks are to be looked at
	changed []*task // else these
	gone    bool
}

// instance is what Marathon calls one, or one task where there are no instances.
// Tasks and instances meet in the UUID that both ids hold. An instance of Marathon 1.8
// and newer keeps its UUID while its tasks follow each other.
type instance struct {
	key   string
	first *task // linked by task.next, newest first; nearly always one

	// Timestamps are compared within one attached stream only: two leaders have two
	// clocks. An instance of an older epoch forgets its timestamps.
	epoch uint32

	verdict    Health
	verdictAt  int64
	verdictSeq uint64

	// killAt is when Marathon decided to kill, 0 for never; killHeard is when we heard
	// of a kill, Unix milliseconds of our own clock.
	killAt    int64
	killHeard int64
	// goneAt is the newest terminal condition, offAt the newest UnreachableInactive.
	goneAt  int64
	goneSeq uint64
	offAt   int64

	cond   conditions
	spare  *task // room for the first task
	buried int64 // newest entry in the graveyard, Unix milliseconds
}

// task is one Mesos task, live or (phaseGone) as a tombstone.
type task struct {
	id      string
	app     *app // nil for a tombstone
	inst    *instance
	next    *task
	host    *agent
	version unique.Handle[string]
	ports   []uint16
	addrs   []netip.Addr
	layout  *App   // definition that it was started from, when its ports differ from app.def's
	since   int64  // Marathon's time of the first report that it runs; longAgo from an answer
	at      int64  // Marathon's time of the newest report; 0 from an answer
	seq     uint64 // newest report's number
	sync    uint64 // newest request whose answer held it
	phase   phase
	ready   bool

	slot     uint32    // where it stood in its services when they were made; a hint
	changed  bool      // is in app.changed
	counted  TaskState // 1 + the state that it was counted as, 0 for none
	unplaced bool      // counted as unresolved
}

// agent is a host that tasks run on. Tasks share it, so that an event needs no lookup
// for each of its app's tasks.
type agent struct {
	name    string
	addr    netip.Addr // invalid: not known
	waiting []string   // apps to build again when it is
}

var noAgent = &agent{} // of tasks that were never placed

// want asks for an app to be fetched, or for the definition of an old version of it.
type want struct {
	app     string
	version string // "" for the app itself
	after   time.Duration

	// announced: the event is about the app's definition, so that it is there, or will
	// be, whatever an earlier answer said.
	announced bool
}

// counts are tasks by state, and services.
type counts struct {
	staging, running, killing, unreachable, unresolved, services int
}

func (c *counts) add(d counts, sign int) {
	c.staging += sign * d.staging
	c.running += sign * d.running
	c.killing += sign * d.killing
	c.unreachable += sign * d.unreachable
	c.unresolved += sign * d.unresolved
	c.services += sign * d.services
}

func newState(source string, lookup func(string) (netip.Addr, bool)) *state {
	return &state{
		source: source, lookup: lookup,
		apps: map[string]*app{}, insts: map[string]*instance{},
		agents: map[string]*agent{"": noAgent}, absent: map[string]uint64{},
	}
}

// Delays of fetches. Marathon says "state before event", so that an answer shows what
// the event was about; what is waited for is more of the same, or something that comes by itself.
const (
	debounce     = 20 * time.Millisecond
	addressDelay = time.Second // a container's address follows in the next report
)

const (
	// longAgo is a moment before every timestamp of this epoch, and not none.
	longAgo = 1

	// killSticks is how long the wish to kill a task outlives answers that show it
	// running: they don't show the wish, and a kill may be given up.
	killSticks = 2 * time.Minute
)

// attached begins a new epoch: a stream to a leader, maybe another one.
func (s *state) attached() { s.epoch++ }

// apply folds one event into s and marks the apps it touches. Events may come late,
// twice or in any order. Cost is that of the app's tasks at most, whatever the size of
// the cluster. Changes of definitions are only noted; see changes.
func (s *state) apply(e *event) {
	s.seq++
	switch e.typ {
	case statusUpdate:
		s.status(e)
	case taskTerminated:
		s.end(s.instance(instanceKey(e.task)), e.task, e)
	case instanceChanged:
		s.condition(e)
	case instanceTerminated:
		s.terminal(e)
	case healthStatus, instanceHealth:
		s.health(e)
	case taskKill, instanceKill:
		s.kill(e)
	}
}

// status folds a report on one task.
func (s *state) status(e *event) {
	in := s.instance(instanceKey(e.task))
	p := e.phase
	if p == phaseLost {
		// Up to 0.15.3 lost was lost for good; since then such tasks come back.
		if s.version.known() && s.version.before(0, 15, 4) {
			p = phaseGone
		} else {
			p = phaseUnreachable
		}
	}
	if p == phaseGone {
		s.end(in, e.task, e)
		return
	}
	t := in.task(e.task)
	if t != nil && t.phase == phaseGone {
		return
	}
	if t == nil {
		if in.goneAt > e.at {
			return
		}
		t = s.add(in, e.task, e.app)
		t.app.seq = s.seq
	}
	if p == phaseRunning && (t.since == 0 || e.at < t.since) {
		t.since = e.at
	}
	if len(t.addrs) == 0 && len(e.addrs) > 0 && (t.app.def == nil || t.app.def.Network == ContainerNetwork) {
		t.addrs = e.addrs
	}
	s.touchTask(t.app, t)
	if e.at < t.at || e.at == t.at && p <= t.phase {
		return
	}
	started := p == phaseRunning && t.phase != phaseRunning
	t.at, t.seq, t.phase = e.at, s.seq, p
	if e.host != "" {
		t.host = s.agent(e.host)
	}
	if e.version != "" {
		t.version = unique.Make(e.version)
	}
	if len(e.ports) > 0 {
		t.ports = e.ports
	}
	if p == phaseKilling {
		s.killed(in, e.at, e.received)
	}
	s.checkTask(t, started)
	if e.phase == phaseLost && p == phaseUnreachable && s.version.before(1, 4, 0) {
		// 1.0 and 1.1.0 don't say when a lost task is back.
		for _, after := range []time.Duration{5 * time.Second, 30 * time.Second, 90 * time.Second} {
			s.want(t.app.id, after)
		}
	}
}

// checkTask asks for what the report on t could not tell.
func (s *state) checkTask(t *task, started bool) {
	a := t.app
	v := t.version.Value()
	switch {
	case a.def == nil || v > a.def.Version:
		s.want(a.id, debounce)
	case t.phase != phaseRunning:
	case a.def.Network == ContainerNetwork && len(t.addrs) == 0:
		s.want(a.id, addressDelay)
	case v != "" && v < a.def.LastConfigChange && t.layout == nil:
		s.findLayout(t)
	}
	if started && a.def != nil && a.def.Readiness {
		t.ready = false
		s.want(a.id, debounce)
	}
}

// end removes a task for good.
func (s *state) end(in *instance, id string, e *event) {
	t := in.task(id)
	if t == nil {
		if e.app == "" {
			return
		}
		t = in.newTask()
		*t = task{id: id, inst: in, next: in.first, host: noAgent, version: noText}
		in.first = t
		t.phase = phaseGone
		s.graves.bury(in, e.received)
	} else if t.phase != phaseGone {
		s.bury(t, e.received)
	}
	t.at, t.seq = max(t.at, e.at), s.seq
}

// bury makes t a tombstone.
func (s *state) bury(t *task, now time.Time) {
	if t.phase == phaseGone {
		return
	}
	s.detach(t)
	t.phase = phaseGone
	t.ports, t.addrs, t.layout = nil, nil, nil
	s.graves.bury(t.inst, now)
}

// forget removes t without a tombstone.
func (s *state) forget(t *task) {
	if t.phase != phaseGone {
		s.detach(t)
	}
	in := t.inst
	for p := &in.first; *p != nil; p = &(*p).next {
		if *p == t {
			*p = t.next
			break
		}
	}
	if in.first == nil && in.goneAt == 0 {
		delete(s.insts, in.key)
	}
}

// detach takes t from its app's tasks.
func (s *state) detach(t *task) {
	a := t.app
	if i, ok := a.find(t.id); ok {
		a.tasks = slices.Delete(a.tasks, i, i+1)
	}
	t.app = nil
	s.touchTask(a, t)
	if a.def == nil && len(a.tasks) == 0 {
		s.removeApp(a)
	}
}

// condition folds what is said of an instance. Its tasks have reports of their own, so
// that this tells only what those don't: a forced expunge, a wish to kill, giving up.
func (s *state) condition(e *event) {
	switch e.phase {
	case phaseGone:
		s.terminal(e)
		return
	case phaseKilling:
		s.kill(e)
	}
	in := s.instance(instanceKey(e.instance))
	if e.phase == phaseInactive && e.at > in.offAt {
		in.offAt = e.at
		s.touchTasks(in)
	}
	if s.version.goals() {
		repeated := in.cond.repeated()
		in.cond.note(e.phase, e.at)
		if in.cond.repeated() != repeated {
			in.killHeard = e.received.UnixMilli()
			s.touchTasks(in)
		}
	}
	s.linger(in, e.received)
}

// terminal folds the end of an instance. Marathon may start it again under the same
// UUID, so that the end holds for what was reported before it.
func (s *state) terminal(e *event) {
	in := s.instance(instanceKey(e.instance))
	if e.at > in.goneAt {
		in.goneAt = e.at
	}
	in.goneSeq = s.seq
	for t := in.first; t != nil; t = t.next {
		if t.phase != phaseGone && t.at <= e.at {
			t.seq = s.seq
			s.bury(t, e.received)
		}
	}
	if s.version.goals() {
		in.cond.note(phaseGone, e.at)
	}
	s.graves.bury(in, e.received)
}

func (s *state) health(e *event) {
	id := e.instance
	if id == "" {
		id = e.task
	}
	if e.health == HealthUnknown {
		return // Marathon forgot, which says nothing of the task
	}
	if a := s.apps[e.app]; a != nil && a.def != nil && len(a.def.Checks) > 1 {
		// One check that passes does not make the task healthy. Newer Marathons tell
		// the sum of all checks in an event of its own.
		combines := s.version.combinesHealth()
		if !combines {
			s.want(e.app, debounce)
		}
		if e.health == Alive && (e.typ == healthStatus || !combines) {
			return
		}
	}
	in := s.instance(instanceKey(id))
	s.setVerdict(in, e.health, e.at)
	s.linger(in, e.received)
}

func (s *state) setVerdict(in *instance, v Health, at int64) {
	if at < in.verdictAt || at == in.verdictAt && v <= in.verdict {
		return
	}
	in.verdict, in.verdictAt, in.verdictSeq = v, at, s.seq
	s.judged++
	s.touchTasks(in)
}

func (s *state) kill(e *event) {
	id := e.instance
	if id == "" {
		id = e.task
	}
	in := s.instance(instanceKey(id))
	if e.health == Dead {
		s.setVerdict(in, Dead, e.at)
	}
	s.killed(in, e.at, e.received)
	s.linger(in, e.received)
}

func (s *state) killed(in *instance, at int64, now time.Time) {
	if at <= in.killAt {
		return
	}
	in.killAt, in.killHeard = at, now.UnixMilli()
	s.touchTasks(in)
}

// linger keeps what was said of an instance without tasks for as long as a tombstone.
func (s *state) linger(in *instance, now time.Time) {
	if in.first == nil {
		s.graves.bury(in, now)
	}
}

// want asks for a fetch of one app.
func (s *state) want(id string, after time.Duration) {
	s.wants = append(s.wants, want{app: id, after: after})
}

// announce asks for a fetch of an app whose definition was just posted.
func (s *state) announce(id string) {
	s.wants = append(s.wants, want{app: id, after: debounce, announced: true})
}

// touch marks all of a to be published again.
func (s *state) touch(a *app) {
	a.rebuild = true
	s.list(a)
}

// touchTask marks one task, which is or was a's.
func (s *state) touchTask(a *app, t *task) {
	if !t.changed {
		t.changed = true
		a.changed = append(a.changed, t)
	}
	s.list(a)
}

func (s *state) touchTasks(in *instance) {
	for t := in.first; t != nil; t = t.next {
		if t.phase != phaseGone {
			s.touchTask(t.app, t)
		}
	}
}

func (s *state) list(a *app) {
	if !a.touched {
		a.touched = true
		s.touched = append(s.touched, a)
	}
}

// defined reports whether the definition of an app is known.
func (s *state) defined(id string) bool {
	a := s.apps[id]
	return a != nil && a.def != nil
}

// app finds or makes an app.
func (s *state) app(id string) *app {
	a := s.apps[id]
	if a == nil {
		a = &app{id: id, seq: s.seq}
		s.apps[a.id] = a
	}
	return a
}

// instance finds or makes an instance, in the present epoch.
func (s *state) instance(key string) *instance {
	in := s.insts[key]
	if in == nil {
		// Nearly every instance has one task: what belongs together stands together.
		pair := new(struct {
			instance
			task
		})
		in = &pair.instance
		in.key, in.epoch, in.spare = key, s.epoch, &pair.task
		s.insts[in.key] = in
	}
	if in.epoch != s.epoch {
		in.epoch = s.epoch
		in.age()
	}
	return in
}

// age puts all timestamps of in before those of any stream to come, in the order that they
// have: a task that was started after a kill stays one that is not killed.
func (in *instance) age() {
	if in.cond.repeated() {
		in.killAt = max(in.killAt, in.cond.to)
	}
	in.cond = conditions{}
	in.goneAt = 0
	var room [16]int64
	times := append(room[:0], in.verdictAt, in.killAt, in.offAt)
	for t := in.first; t != nil; t = t.next {
		times = append(times, t.at, t.since)
	}
	slices.Sort(times)
	times = slices.Compact(times)
	rank := func(at int64) int64 {
		if at == 0 {
			return 0 // never
		}
		i, _ := slices.BinarySearch(times, at)
		return longAgo + int64(i)
	}
	in.verdictAt, in.killAt, in.offAt = rank(in.verdictAt), rank(in.killAt), rank(in.offAt)
	for t := in.first; t != nil; t = t.next {
		t.at, t.since = rank(t.at), rank(t.since)
	}
}

func (in *instance) newTask() *task {
	if t := in.spare; t != nil {
		in.spare = nil
		return t
	}
	return new(task)
}

// agent finds or makes the agent of a task.
func (s *state) agent(host string) *agent {
	a := s.agents[host]
	if a == nil {
		a = &agent{name: host}
		s.agents[host] = a
	}
	return a
}

// add makes a task. Its phase is set by the caller.
func (s *state) add(in *instance, id, appID string) *task {
	a := s.app(appID)
	t := in.newTask()
	*t = task{id: id, app: a, inst: in, next: in.first, host: noAgent, version: noText, ready: true}
	in.first = t
	i, _ := a.find(id)
	a.tasks = slices.Insert(a.tasks, i, t)
	s.touchTask(a, t)
	return t
}

func (in *instance) task(id string) *task {
	for t := in.first; t != nil; t = t.next {
		if t.id == id {
			return t
		}
	}
	return nil
}

func (a *app) find(id string) (int, bool) {
	return slices.BinarySearchFunc(a.tasks, id, func(t *task, id string) int { return strings.Compare(t.id, id) })
}
