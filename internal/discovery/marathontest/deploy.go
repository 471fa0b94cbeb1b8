package marathontest

import (
	"errors"
	"fmt"
	"math"
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

	errClosed = errors.New("marathontest: the cluster was closed")
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
		if c.closed {
			return nil, errClosed
		}
		if d.done {
			return nil, fmt.Errorf("deployment %s was cancelled by a forced change", d.id)
		}
	}
	for _, id := range ch.gone {
		a := c.apps[id]
		if len(a.def.checks) > 0 {
			o := newObject(128)
			o.str("appId", id)
			c.publish("remove_health_check_event", id, "", o)
		}
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
	for _, def := range ch.want {
		if def.configAt == version {
			c.addCheckEvents(def)
		}
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
	for _, t := range slices.Clone(a.tasks) {
		if t.terminal {
			c.remove(t) // it was to run again, but others have taken its place
		}
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
