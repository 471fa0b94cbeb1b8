package marathontest

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// active are the tasks that count as instances.
func (a *app) active() []*task {
	var out []*task
	for _, t := range a.tasks {
		if !t.killing && !t.terminal && !t.inactive {
			out = append(out, t)
		}
	}
	return out
}

// occupied is the number of instances whose place is taken: one that is being killed is replaced when it has ended.
func (a *app) occupied() int {
	n := 0
	for _, t := range a.tasks {
		if !t.terminal && !t.inactive {
			n++
		}
	}
	return n
}

func backwards(ts []*task) []*task {
	out := slices.Clone(ts)
	slices.Reverse(out)
	return out
}

// look schedules a look at an app after one of its tasks changed: the deployment
// that holds it goes on, or without one, tasks that ended are replaced.
func (c *Cluster) look(a *app) {
	if a.checking {
		return
	}
	a.checking = true
	c.after(0, func() {
		a.checking = false
		for _, d := range slices.Clone(c.deployments) {
			if slices.Contains(d.apps(), a.id) {
				c.advance(d)
				return
			}
		}
		if a.occupied() < a.def.instances && !a.deleting {
			c.after(c.opts.RelaunchDelay, func() {
				if !a.deleting {
					for range a.def.instances - a.occupied() {
						c.launch(a)
					}
				}
			})
		}
	})
}

// launch starts one instance, or from 1.8 on relaunches one that ended.
func (c *Cluster) launch(a *app) *task {
	t := &task{app: a, def: a.def, uuid: c.uuid(), launch: 1, ready: !a.def.readiness, condition: "Created"}
	for i, old := range a.tasks {
		if old.terminal && old.restart {
			t.uuid, t.launch = old.uuid, old.launch+1
			a.tasks = slices.Delete(a.tasks, i, i+1)
			delete(c.tasks, old.id)
			break
		}
	}
	t.checks = make([]checkResult, len(a.def.checks))
	t.name(c.profile)
	c.place(t)
	a.tasks = append(a.tasks, t)
	c.tasks[t.id] = t
	t.stagedAt = stamp(c.now())
	if c.profile.goalEvents {
		for _, condition := range []string{"Scheduled", "Provisioned"} {
			t.condition = condition
			c.instanceEvent(t)
		}
	} else {
		c.instanceEvent(t)
	}
	c.after(c.opts.StageDelay, func() { c.stage(t) })
	return t
}

func (c *Cluster) stage(t *task) {
	if t.killing || t.terminal {
		return
	}
	t.acted = true
	c.setState(t, stateStaging, "Staging", "")
	c.after(c.opts.StartDelay, func() { c.run(t) })
}

func (c *Cluster) run(t *task) {
	if t.killing || t.terminal {
		return
	}
	if c.profile.since(1, 6, 0) {
		c.setState(t, stateStarting, "Starting", "") // Mesos 1.5, which Marathon 1.6 wants, tells of it
	}
	t.startedAt = stamp(c.now())
	c.setState(t, stateRunning, "Running", "")
	if len(t.checks) > 0 && c.opts.HealthDelay >= 0 {
		c.after(c.opts.HealthDelay, func() { c.setHealth(t, -1, true) })
	}
	if !t.ready && c.opts.ReadyDelay >= 0 {
		c.after(c.opts.ReadyDelay, func() { c.setReady(t, true) })
	}
}

func (c *Cluster) setReady(t *task, ready bool) {
	t.ready = ready
	t.changed()
	c.look(t.app)
}

// place chooses agent, ports and address, and starts the backend if there is one.
func (c *Cluster) place(t *task) {
	n := c.placed
	c.placed++
	t.host = c.opts.Hosts[n%len(c.opts.Hosts)]
	t.agent = fmt.Sprintf("%s-S%d", c.frameworkID[:8], n%len(c.opts.Hosts))
	if t.def.network == ContainerNetwork {
		c.address++
		// Every address of 127/8 is local on Linux, so a task can have one of its own.
		t.addr = fmt.Sprintf("127.%d.%d.%d", 64+c.address>>16&63, c.address>>8&255, c.address&255)
	} else if t.def.network == BridgeNetwork {
		c.address++
		t.addr = fmt.Sprintf("172.17.%d.%d", c.address>>8&255, c.address&255)
	}
	for i, p := range t.def.ports {
		host, port := t.host, p.Host
		if p.Unmapped {
			host, port = t.addr, p.Container
		} else if port == 0 && c.opts.Backend == nil {
			port = c.hostPort(t.host)
		}
		if c.opts.Backend != nil {
			listen := netip.AddrPortFrom(parseHost(host), uint16(port))
			view := t.view()
			got, stop, err := c.opts.Backend(view, i, listen)
			if err != nil {
				c.backendErrors = append(c.backendErrors, fmt.Errorf("backend of %s port %d: %w", t.id, i, err))
				got = port
			}
			if stop != nil {
				t.stops = append(t.stops, stop)
			}
			port = got
		}
		if !p.Unmapped {
			t.ports = append(t.ports, port)
		}
	}
}

// parseHost is the address a backend listens on for a host; names are served on loopback.
func parseHost(host string) netip.Addr {
	if a, err := netip.ParseAddr(host); err == nil {
		return a
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// hostPort is the next port of Mesos' default range on a host that nothing listens on.
func (c *Cluster) hostPort(host string) int {
	port := max(c.hostPorts[host], 31000)
	c.hostPorts[host] = port + 1
	return port
}

// setState changes what is visible, then publishes it.
func (c *Cluster) setState(t *task, state, condition, message string) {
	same := t.condition == condition
	t.state, t.condition = state, condition
	t.changed()
	c.statusEvent(t, message)
	if !same {
		c.instanceEvent(t)
	}
	c.look(t.app)
}

// setHealth sets the result of one check, or of all for i < 0.
func (c *Cluster) setHealth(t *task, i int, alive bool) {
	if t.terminal || t.state != stateRunning && t.state != stateKilling {
		return
	}
	now := stamp(c.now())
	for n := range t.checks {
		if i >= 0 && n != i {
			continue
		}
		r := &t.checks[n]
		flipped := !r.known || r.alive != alive
		r.known, r.heard, r.alive = true, true, alive
		if alive {
			r.failures, r.lastSuccess = 0, now
			if r.firstSuccess == "" {
				r.firstSuccess = now
			}
		} else {
			r.failures++
			r.lastFailure = now
		}
		t.changed()
		if flipped {
			c.checkEvents(t, n)
		}
	}
	c.combinedHealthEvent(t)
	c.look(t.app)
}

// kill decides to end a task; it ends after the kill delay. relaunch: its instance is to run again.
func (c *Cluster) kill(t *task, relaunch bool) {
	if t.terminal && !relaunch {
		c.remove(t)
		return
	}
	if t.killing || t.terminal {
		return
	}
	t.killing, t.restart = true, relaunch
	if c.profile.goalEvents && !relaunch {
		c.instanceEvent(t) // the goal changed, the condition is repeated
	}
	if !t.acted {
		c.end(t, stateKilled, "Killed", "")
		return
	}
	c.after(c.opts.SignalDelay, func() {
		if t.terminal {
			return
		}
		if c.profile.since(1, 0, 0) && !c.opts.NoTaskKilling {
			c.setState(t, stateKilling, "Killing", "")
		}
		c.after(c.opts.KillDelay, func() { c.end(t, stateKilled, "Killed", "Command terminated with signal Terminated") })
	})
}

// end makes a task terminal. The process is gone before anybody is told.
func (c *Cluster) end(t *task, state, condition, message string) {
	if t.terminal {
		return
	}
	t.terminal = true
	c.stopBackends(t)
	if !c.profile.keepsTerminal || !t.restart {
		c.remove(t)
	}
	if state != stateKilled {
		t.app.last = &failure{t.id, t.host, state, message, stamp(c.now()), t.def.version}
	}
	if t.acted {
		c.setState(t, state, condition, message)
	} else {
		t.condition = condition
		c.instanceEvent(t)
	}
	c.look(t.app)
}

func (c *Cluster) remove(t *task) {
	t.app.tasks = slices.DeleteFunc(t.app.tasks, func(o *task) bool { return o == t })
	delete(c.tasks, t.id)
}

func (c *Cluster) stopBackends(t *task) {
	for _, stop := range t.stops {
		stop()
	}
	t.stops = nil
}

// sorted are the apps by id.
func (c *Cluster) sorted() []*app {
	if c.appOrder == nil {
		c.appOrder = make([]*app, 0, len(c.apps))
		for _, a := range c.apps {
			c.appOrder = append(c.appOrder, a)
		}
		slices.SortFunc(c.appOrder, func(a, b *app) int { return cmp.Compare(a.id, b.id) })
	}
	return c.appOrder
}
