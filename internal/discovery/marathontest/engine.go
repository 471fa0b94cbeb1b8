package marathontest

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
)

// app is an app with its tasks, guarded by the cluster's lock. A deleted app lives on until its last task ended.
type app struct {
	id       string
	def      *definition
	history  []*definition // all versions, oldest first
	tasks    []*task       // in order of launch; terminal ones only while their instance waits for relaunch
	last     *failure
	deleting bool
	checking bool // a look at the app is due
}

type failure struct{ task, host, state, message, at, version string }

type action struct{ kind, app string }

// deployment is one running deployment.
type deployment struct {
	id       string
	version  string
	steps    [][]action
	step     int
	done     bool
	original []byte // root group before and after, for heavy plans; made when needed
	target   []byte
}

func (d *deployment) apps() []string {
	var ids []string
	for _, step := range d.steps {
		for _, a := range step {
			if !slices.Contains(ids, a.app) {
				ids = append(ids, a.app)
			}
		}
	}
	return ids
}

// LockedError says that an app is under deployment and the change was not forced.
type LockedError struct {
	App         string
	Deployments []string
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("app %s is locked by deployment %s: force the change or wait", e.App, strings.Join(e.Deployments, ", "))
}

// ErrNoApp says that there is no such app, ErrNoTask that there is no such task.
var (
	ErrNoApp  = errors.New("no such app")
	ErrNoTask = errors.New("no such task")
)

// change is one change of definitions, as asked for by one request.
type change struct {
	want   []*definition // new or updated apps
	gone   []string      // deleted apps
	group  string        // for group_change_success
	force  bool
	post   *definition // definition for api_post_event, nil for none
	uri    string
	client string
	redo   bool // restart although nothing changed
}

// commit carries out a change of definitions and starts its deployment. The
// order of events and visibility is Marathon's: deployment_info may be sent
// before the new definition can be read, group_change_success and (from 0.11
// on) api_post_event come after.
func (c *Cluster) commit(ch change) (*deployment, error) {
	touched := slices.Clone(ch.gone)
	for _, d := range ch.want {
		touched = append(touched, d.id)
	}
	if err := c.unlockApps(touched, ch.force); err != nil {
		return nil, err
	}
	version := c.newVersion()
	d := &deployment{id: c.uuid(), version: version}
	for _, id := range ch.gone {
		if c.apps[id] == nil {
			return nil, fmt.Errorf("%s: %w", id, ErrNoApp)
		}
		d.steps = append(d.steps, []action{{"StopApplication", id}})
	}
	var posted definition
	if ch.post != nil {
		posted = *ch.post
		posted.ports = slices.Clone(posted.ports) // the assigned ports are not in what was posted
		posted.version = version                  // and no versionInfo, as nothing is stored yet
	}
	for _, def := range ch.want {
		c.plan(d, def, version, ch.redo)
		if ch.post == def && c.apps[def.id] != nil {
			posted = *def // an update carries the stored definition
		}
	}
	if ch.post != nil && c.profile.postBefore {
		c.postEvent(ch.client, ch.uri, &posted)
	}
	if len(d.steps) > 0 {
		c.deployments = append(c.deployments, d)
		c.stepEvent("deployment_info", d)
	}
	if c.opts.CommitDelay > 0 {
		c.pause(c.opts.CommitDelay)
		if d.done {
			return nil, fmt.Errorf("deployment %s was cancelled by a forced change", d.id)
		}
	}
	for _, id := range ch.gone {
		a := c.apps[id]
		a.deleting = true
		delete(c.apps, id)
		c.leaving[id] = a
	}
	for _, def := range ch.want {
		a := c.apps[def.id]
		if a == nil {
			a = &app{id: def.id}
			c.apps[def.id] = a
		}
		a.def = def
		a.history = append(a.history, def)
	}
	c.appOrder = nil
	c.rootVersion = version
	if d.original != nil {
		d.target = c.groupJSON("/", false, nil)
	}
	c.groupEvent(ch.group, version)
	if ch.post != nil && !c.profile.postBefore {
		c.postEvent(ch.client, ch.uri, &posted)
	}
	c.after(0, func() { c.advance(d) })
	return d, nil
}

// plan completes a new definition from the one it replaces and adds what has to be done for it to d.
func (c *Cluster) plan(d *deployment, def *definition, version string, redo bool) {
	def.version, def.scaledAt, def.configAt = version, version, version
	old := c.apps[def.id]
	if old == nil {
		c.assignPorts(def, nil)
		d.steps = append(d.steps, []action{{"StartApplication", def.id}}, []action{{"ScaleApplication", def.id}})
		return
	}
	c.assignPorts(def, old.def)
	switch {
	case redo || !old.def.sameConfig(def):
		d.steps = append(d.steps, []action{{"RestartApplication", def.id}})
		def.scaledAt = version
	case old.def.instances != def.instances:
		def.configAt = old.def.configAt
		d.steps = append(d.steps, []action{{"ScaleApplication", def.id}})
	default:
		def.configAt, def.scaledAt = old.def.configAt, old.def.scaledAt
	}
}

// sameConfig tells whether going from d to other needs no restart. Marathon
// restarts for every member but the number of instances; labels count too.
func (d *definition) sameConfig(other *definition) bool {
	if !slices.EqualFunc(d.ports, other.ports, func(a, b Port) bool {
		return a.Service == b.Service && a.Container == b.Container && a.Host == b.Host && a.Protocol == b.Protocol && a.Name == b.Name
	}) {
		return false
	}
	names := make(map[string]bool)
	for name := range d.members {
		names[name] = true
	}
	for name := range other.members {
		names[name] = true
	}
	for name := range names {
		switch name {
		case "id", "instances", "version", "versionInfo", "upgradeStrategy", "portDefinitions", "ports":
			continue
		}
		if string(compact(d.members[name])) != string(compact(other.members[name])) {
			return false
		}
	}
	return true
}

// assignPorts gives a service port to every port that asks for one: the one it
// had at the same position, else a free one of Marathon's range.
func (c *Cluster) assignPorts(def, old *definition) {
	for i := range def.ports {
		p := &def.ports[i]
		if p.Service != 0 {
			continue
		}
		if old != nil && i < len(old.ports) {
			p.Service = old.ports[i].Service
			continue
		}
		p.Service = c.freeServicePort(def)
	}
	if def.network == HostNetwork && def.require {
		for i := range def.ports {
			def.ports[i].Host = def.ports[i].Service
		}
	}
}

// freeServicePort is the next port of the range that no app uses.
func (c *Cluster) freeServicePort(pending *definition) int {
	used := make(map[int]bool)
	for _, p := range pending.ports {
		used[p.Service] = true
	}
	for _, a := range c.apps {
		for _, p := range a.def.ports {
			used[p.Service] = true
		}
	}
	first, last := c.opts.FirstServicePort, c.opts.LastServicePort
	for range last - first + 1 {
		if c.nextPort < first || c.nextPort > last {
			c.nextPort = first
		}
		port := c.nextPort
		c.nextPort++
		if !used[port] {
			return port
		}
	}
	return 0 // the range is used up: Marathon refuses then, here the port stays unassigned
}

// unlockApps cancels the deployments that hold the apps, or says that they are locked.
func (c *Cluster) unlockApps(ids []string, force bool) error {
	for _, d := range slices.Clone(c.deployments) {
		for _, id := range d.apps() {
			if !slices.Contains(ids, id) {
				continue
			}
			if !force {
				return &LockedError{App: id, Deployments: []string{d.id}}
			}
			c.finish(d, "cancelled")
			break
		}
	}
	return nil
}

// advance brings a deployment as far as it can go now.
func (c *Cluster) advance(d *deployment) {
	for !d.done {
		if d.step == len(d.steps) {
			c.finish(d, "")
			return
		}
		complete := true
		for _, a := range d.steps[d.step] {
			complete = c.work(a) && complete
		}
		if !complete {
			return
		}
		for _, a := range d.steps[d.step] {
			if a.kind == "StopApplication" {
				delete(c.leaving, a.app)
				o := newObject(128)
				o.str("appId", a.app)
				c.publish("app_terminated_event", a.app, "", o)
			}
		}
		c.stepEvent("deployment_step_success", d)
		d.step++
		if d.step < len(d.steps) {
			c.stepEvent("deployment_info", d)
		}
	}
}

func (c *Cluster) finish(d *deployment, reason string) {
	d.done = true
	c.deployments = slices.DeleteFunc(c.deployments, func(o *deployment) bool { return o == d })
	if len(d.steps) > 0 {
		c.resultEvent(d, reason)
	}
}

// work does what an action needs done now and tells whether the action is complete.
func (c *Cluster) work(a action) bool {
	switch a.kind {
	case "ScaleApplication":
		if app := c.apps[a.app]; app != nil {
			return c.scale(app)
		}
	case "RestartApplication":
		if app := c.apps[a.app]; app != nil {
			return c.roll(app)
		}
	case "StopApplication":
		app := c.leaving[a.app]
		if app == nil {
			return true
		}
		for _, t := range slices.Clone(app.tasks) {
			c.kill(t, false)
		}
		return len(app.tasks) == 0
	}
	return true
}

// scale launches what is missing and kills what is too much, youngest first.
func (c *Cluster) scale(a *app) bool {
	active := a.active()
	for _, t := range backwards(active)[:max(0, len(active)-a.def.instances)] {
		c.kill(t, false)
	}
	for range a.def.instances - len(active) {
		c.launch(a)
	}
	ready := 0
	for _, t := range a.tasks {
		if t.killing {
			return false
		}
		if t.serves() {
			ready++
		}
	}
	return ready >= a.def.instances
}

// roll replaces tasks of older definitions within the bounds of the upgrade strategy.
func (c *Cluster) roll(a *app) bool {
	n := a.def.instances
	least := int(math.Ceil(float64(n) * a.def.upgrade.MinimumHealthCapacity))
	most := n + int(math.Floor(float64(n)*a.def.upgrade.MaximumOverCapacity))
	if most <= least {
		most = least + 1 // Marathon lets a restart that could never start go over by one
	}
	var old, fresh []*task
	serving, alive := 0, 0
	for _, t := range a.tasks {
		if t.terminal {
			continue
		}
		alive++
		if t.killing {
			continue
		}
		if t.serves() {
			serving++
		}
		if t.def.version < a.def.configAt {
			old = append(old, t)
		} else {
			fresh = append(fresh, t)
		}
	}
	for len(fresh) < n && alive < most {
		fresh = append(fresh, c.launch(a))
		alive++
	}
	for _, t := range old {
		if !t.serves() {
			c.kill(t, false)
		} else if serving > least || serving > 0 && least == 0 || n == 0 {
			serving--
			c.kill(t, false)
		}
	}
	for _, t := range backwards(fresh)[:max(0, len(fresh)-n)] {
		c.kill(t, false)
	}
	ready := 0
	for _, t := range a.tasks {
		if t.terminal {
			continue
		}
		if t.killing || t.def.version < a.def.configAt {
			return false
		}
		if t.serves() {
			ready++
		}
	}
	return ready >= n
}

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
		if len(a.active()) < a.def.instances && !a.deleting {
			c.after(c.opts.RelaunchDelay, func() {
				for range a.def.instances - len(a.active()) {
					if a.deleting {
						return
					}
					c.launch(a)
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
	if c.profile.since(1, 0, 0) && !c.opts.NoTaskKilling {
		c.setState(t, stateKilling, "Killing", "")
	}
	c.after(c.opts.KillDelay, func() { c.end(t, stateKilled, "Killed", "Command terminated with signal Terminated") })
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
