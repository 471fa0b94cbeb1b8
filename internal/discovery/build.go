package discovery

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// take adds what changed since the last call to p. Cost is that of the touched apps.
func (s *state) take(p *pending) {
	for _, a := range s.touched {
		a.touched = false
		s.publish(a, p)
	}
	clear(s.touched)
	s.touched = s.touched[:0]
}

func (s *state) publish(a *app, p *pending) {
	before := a.counts
	ports := 0
	switch {
	case a.gone:
		a.counts = counts{}
	case a.def == nil:
	case a.rebuild || len(a.services) != len(a.def.Ports) || len(a.changed) > 1+len(a.tasks)/4:
		s.build(a)
	default:
		s.patch(a)
	}
	if !a.gone && a.def != nil {
		ports = len(a.def.Ports)
		for _, sv := range a.services {
			p.put(sv)
		}
	}
	for i := ports; i < a.sent; i++ {
		p.remove(Key{App: a.id, Index: i, Source: s.source})
	}
	a.sent, a.rebuild = ports, false
	for _, t := range a.changed {
		t.changed = false
	}
	clear(a.changed)
	a.changed = a.changed[:0]
	a.counts.services = ports
	s.counts.add(before, -1)
	s.counts.add(a.counts, 1)
}

// build makes the services of a afresh, from all of its tasks.
func (s *state) build(a *app) {
	a.counts = counts{}
	a.services = make([]*Service, len(a.def.Ports))
	for i, port := range a.def.Ports {
		a.services[i] = &Service{Key: Key{App: a.id, Index: i, Source: s.source}, App: a.def, Port: port}
	}
	for _, t := range a.tasks {
		t.counted, t.unplaced = 0, false
		s.show(a, t)
	}
}

// patch makes the services of a from those that were published, which nobody may
// modify any more, and from the tasks that changed since: a copy of what stands
// together costs less than a walk over tasks that are strewn over the memory.
func (s *state) patch(a *app) {
	services := make([]*Service, len(a.services))
	for i, old := range a.services {
		sv := *old
		sv.Tasks = make([]Task, len(old.Tasks), len(old.Tasks)+len(a.changed))
		copy(sv.Tasks, old.Tasks)
		services[i] = &sv
	}
	a.services = services
	for _, t := range a.changed {
		a.counts.task(t.counted, -1)
		if t.unplaced {
			a.counts.unresolved--
		}
		t.counted, t.unplaced = 0, false
		// What is not shown again stays Gone, and goes.
		for _, sv := range services {
			if i, ok := sv.find(t); ok {
				sv.Tasks[i].State = Gone
			}
		}
		if t.app == a {
			s.show(a, t)
		}
		for _, sv := range services {
			if i, ok := sv.find(t); ok && sv.Tasks[i].State == Gone {
				sv.Tasks = slices.Delete(sv.Tasks, i, i+1)
			}
		}
	}
}

// show counts t and adds it to the services that it serves.
func (s *state) show(a *app, t *task) {
	state := s.stateOf(t)
	t.counted = 1 + state
	a.counts.task(t.counted, 1)
	if state == Staging || state == Gone || len(a.services) == 0 {
		return
	}
	t.unplaced = s.place(t, a.services, Task{
		ID: t.id, App: a.id, Host: t.host.name, State: state, Health: s.healthOf(t),
		Ready: t.ready, Version: t.version.Value(),
	})
	if t.unplaced {
		a.counts.unresolved++
	}
}

// task adds n tasks that were counted as state-1; 0 is not counted.
func (c *counts) task(counted TaskState, n int) {
	switch counted {
	case 1 + Staging:
		c.staging += n
	case 1 + Running:
		c.running += n
	case 1 + Killing:
		c.killing += n
	case 1 + Unreachable:
		c.unreachable += n
	}
}

// find is where t stands among the service's tasks, or would stand. It is tried first
// where it stood last: ids are far apart in memory, and a search reads several.
func (sv *Service) find(t *task) (int, bool) {
	n := len(sv.Tasks)
	if i := int(t.slot); i < n && sv.Tasks[i].ID == t.id {
		return i, true
	}
	if n == 0 || sv.Tasks[n-1].ID < t.id {
		return n, false
	}
	return slices.BinarySearchFunc(sv.Tasks, t.id, func(t Task, id string) int { return strings.Compare(t.ID, id) })
}

// place adds task to the services that it serves. It reports whether the task has
// to wait for the address of its agent.
//
// Ports are matched as Marathon itself does it: in order, where a port that is not
// mapped to the agent takes none of the task's ports and is reached at the task's own
// first address. Plainly pairing the two lists is wrong when both kinds mix.
func (s *state) place(t *task, services []*Service, task Task) (unresolved bool) {
	def := t.app.def
	if t.layout != nil {
		def = t.layout
	}
	var agent netip.Addr
	next := 0
	for i, port := range def.Ports {
		addr, number := netip.Addr{}, uint16(0)
		if port.Mapped {
			if next >= len(t.ports) {
				break
			}
			number = t.ports[next]
			next++
			if !agent.IsValid() {
				var ok bool
				if agent, ok = s.address(t); !ok {
					return true
				}
			}
			addr = agent
		} else {
			number = port.Container
			if len(t.addrs) > 0 {
				addr = t.addrs[0]
			}
		}
		at := i
		if t.layout != nil {
			at = counterpart(t.layout.Ports, i, t.app.def.Ports)
		}
		if at >= 0 && addr.IsValid() && number != 0 {
			task.Addr = netip.AddrPortFrom(addr, number)
			sv := services[at]
			if sv.Tasks == nil {
				sv.Tasks = make([]Task, 0, len(t.app.tasks))
			}
			switch j, ok := sv.find(t); {
			case !ok:
				sv.Tasks = slices.Insert(sv.Tasks, j, task)
				t.slot = uint32(j)
			case sv.Tasks[j].State == Gone: // its place in what was published before
				sv.Tasks[j] = task
				t.slot = uint32(j)
			default: // two of its ports stand for one: the first counts
			}
		}
	}
	return false
}

// counterpart is the port of the present definition that port i of an older one stands
// for: the one with its service port, else the one in its place, if that is as new as
// port i is old; else -1.
func counterpart(old []Port, i int, now []Port) int {
	with := func(ports []Port, service uint16) int {
		if service == 0 {
			return -1
		}
		return slices.IndexFunc(ports, func(p Port) bool { return p.Service == service })
	}
	if j := with(now, old[i].Service); j >= 0 {
		return j
	}
	if i < len(now) && with(old, now[i].Service) < 0 {
		return i
	}
	return -1
}

func (s *state) address(t *task) (netip.Addr, bool) {
	h := t.host
	if h.addr.IsValid() || h == noAgent {
		return h.addr, h.addr.IsValid()
	}
	if addr, ok := s.lookup(h.name); ok {
		h.addr = addr
		return addr, true
	}
	if !slices.Contains(h.waiting, t.app.id) {
		h.waiting = append(h.waiting, t.app.id)
	}
	return netip.Addr{}, false
}

// rehost says that lookup has a new answer for host. changed: it had another before, so
// that apps are affected which don't wait for it.
func (s *state) rehost(host string, changed bool) {
	h := s.agents[host]
	if h == nil {
		return
	}
	h.addr = netip.Addr{}
	for _, id := range h.waiting {
		if a := s.apps[id]; a != nil {
			s.touch(a)
		}
	}
	h.waiting = nil
	if !changed {
		return
	}
	// An agent that changes its address is rare enough to look at every task for it.
	for _, a := range s.apps {
		if slices.ContainsFunc(a.tasks, func(t *task) bool { return t.host == h }) {
			s.touch(a)
		}
	}
}

// forgetAgents forgets agents without tasks, and names them. It looks at every task.
func (s *state) forgetAgents() (names []string) {
	used := map[*agent]bool{noAgent: true}
	for _, a := range s.apps {
		for _, t := range a.tasks {
			used[t.host] = true
		}
	}
	for name, h := range s.agents {
		if !used[h] {
			delete(s.agents, name)
			names = append(names, name)
		}
	}
	return names
}

// stateOf is what the task's own reports and those on its instance come to.
func (s *state) stateOf(t *task) TaskState {
	in := t.inst
	switch t.phase {
	case phaseKilling:
		return Killing
	case phaseRunning, phaseUnreachable:
	case phaseGone:
		return Gone
	default:
		return Staging
	}
	if in.offAt != 0 && t.at <= in.offAt {
		return Staging // given up on: not routed, but it may come back
	}
	if in.killAt > t.since || in.cond.repeated() && in.cond.to > t.since {
		return Killing
	}
	if t.phase == phaseUnreachable {
		return Unreachable
	}
	return Running
}

func (s *state) healthOf(t *task) Health {
	if len(t.app.def.Checks) == 0 {
		return NoChecks
	}
	if t.inst.verdictAt < t.since {
		return HealthUnknown // of an earlier task of the instance
	}
	return t.inst.verdict
}

// pending is an Update in the making, and where in it each key stands. It is merged
// into until it is received, so that a slow receiver costs memory for what changed and
// not for how often it changed.
type pending struct {
	update *Update // nil: nothing to send
	pos    map[Key]int
	gone   map[Key]int
}

func newPending() *pending {
	return &pending{pos: map[Key]int{}, gone: map[Key]int{}}
}

func (p *pending) open() *Update {
	if p.update == nil {
		p.update = &Update{}
	}
	return p.update
}

func (p *pending) put(sv *Service) {
	u := p.open()
	if i, ok := p.gone[sv.Key]; ok {
		last := len(u.Gone) - 1
		u.Gone[i] = u.Gone[last]
		p.gone[u.Gone[i]] = i
		u.Gone = u.Gone[:last]
		delete(p.gone, sv.Key)
	}
	if i, ok := p.pos[sv.Key]; ok {
		u.Services[i] = sv
		return
	}
	p.pos[sv.Key] = len(u.Services)
	u.Services = append(u.Services, sv)
}

func (p *pending) remove(k Key) {
	u := p.open()
	if i, ok := p.pos[k]; ok {
		last := len(u.Services) - 1
		u.Services[i] = u.Services[last]
		p.pos[u.Services[i].Key] = i
		u.Services[last] = nil
		u.Services = u.Services[:last]
		delete(p.pos, k)
	}
	if _, ok := p.gone[k]; !ok && !u.Full {
		p.gone[k] = len(u.Gone)
		u.Gone = append(u.Gone, k)
	}
}

// heard says that events are part of the update. received is that of the oldest.
func (p *pending) heard(received time.Time, events int) {
	u := p.open()
	if u.Received.IsZero() || received.Before(u.Received) {
		u.Received = received
	}
	u.Events += events
}

// sent forgets the update, which belongs to its receiver now.
func (p *pending) sent() {
	if len(p.pos)+len(p.gone) > 256 {
		// Clearing costs what a map once held, and the first Update holds everything.
		p.pos, p.gone = map[Key]int{}, map[Key]int{}
	}
	p.update = nil
	clear(p.pos)
	clear(p.gone)
}
