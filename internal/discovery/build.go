package discovery

import (
	"net/netip"
	"slices"
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
	s.counts.add(a.counts, -1)
	a.counts = counts{}
	ports := 0
	if !a.gone {
		if a.def != nil {
			ports = len(a.def.Ports)
			s.build(a, p)
		}
		a.counts.services = ports
		s.counts.add(a.counts, 1)
	}
	for i := ports; i < a.sent; i++ {
		p.remove(Key{App: a.id, Index: i, Source: s.source})
	}
	a.sent = ports
}

// build makes the services of a, which has a definition.
func (s *state) build(a *app, p *pending) {
	services := make([]*Service, len(a.def.Ports))
	for i, port := range a.def.Ports {
		services[i] = &Service{Key: Key{App: a.id, Index: i, Source: s.source}, App: a.def, Port: port}
	}
	for _, t := range a.tasks {
		state := s.stateOf(t)
		a.counts.task(state)
		if state == Staging || state == Gone || len(services) == 0 {
			continue
		}
		task := Task{
			ID: t.id, App: a.id, Host: t.host.Value(), State: state, Health: s.healthOf(t),
			Ready: t.ready, Version: t.version.Value(),
		}
		if s.place(t, services, task) {
			a.counts.unresolved++
		}
	}
	for _, sv := range services {
		p.put(sv)
	}
}

func (c *counts) task(s TaskState) {
	switch s {
	case Staging:
		c.staging++
	case Running:
		c.running++
	case Killing:
		c.killing++
	case Unreachable:
		c.unreachable++
	}
}

// place appends task to the services that it serves. It reports whether the task has
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
			sv.Tasks = append(sv.Tasks, task)
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
	host := t.host.Value()
	if host == "" {
		return netip.Addr{}, false
	}
	addr, ok := s.lookup(host)
	if !ok {
		if apps := s.waiting[host]; !slices.Contains(apps, t.app.id) {
			s.waiting[host] = append(apps, t.app.id)
		}
	}
	return addr, ok
}

// rehost says that lookup has a new answer for host. changed: it had another before, so
// that apps are affected which don't wait for it.
func (s *state) rehost(host string, changed bool) {
	for _, id := range s.waiting[host] {
		if a := s.apps[id]; a != nil {
			s.touch(a)
		}
	}
	delete(s.waiting, host)
	if !changed {
		return
	}
	// An agent that changes its address is rare enough to look at every task for it.
	for _, a := range s.apps {
		for _, t := range a.tasks {
			if t.host.Value() == host {
				s.touch(a)
				break
			}
		}
	}
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
