package marathontest

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
)

// Mesos task states, as Marathon writes them.
const (
	stateStaging     = "TASK_STAGING"
	stateStarting    = "TASK_STARTING"
	stateRunning     = "TASK_RUNNING"
	stateKilling     = "TASK_KILLING"
	stateKilled      = "TASK_KILLED"
	stateFinished    = "TASK_FINISHED"
	stateFailed      = "TASK_FAILED"
	stateLost        = "TASK_LOST"
	stateUnreachable = "TASK_UNREACHABLE"
)

// checkResult is what Marathon knows of one health check of one task.
type checkResult struct {
	known        bool // lost when leadership changes
	alive        bool
	heard        bool // alive is true to life, even while the leader has forgotten it
	failures     int
	firstSuccess string
	lastSuccess  string
	lastFailure  string
}

// task is one launch of one instance. It is guarded by the cluster's lock.
type task struct {
	id       string
	uuid     string
	instance string // instance id; "" before 1.4
	launch   int    // counts launches of the instance, from 1
	app      *app
	def      *definition // started from
	host     string
	agent    string
	ports    []int  // host ports
	addr     string // the task's own address, "" for host network

	state     string
	condition string
	acted     bool // Mesos knows it: it has been staged
	inactive  bool // unreachable for too long: REST shows no ports
	terminal  bool
	killing   bool
	restart   bool // its instance is to run again when it ends
	ready     bool
	stagedAt  string
	startedAt string
	checks    []checkResult
	healthy   *bool // combined verdict as last published
	stops     []func()

	json []byte // rendered as embedded in apps; nil after a change
}

// Task is a task as tests and backends see it.
type Task struct {
	ID         string
	InstanceID string // "" before Marathon 1.4
	App        string
	Version    string // of the app, that it was started from
	Host       string
	Address    string // the task's own IP address; "" with host network
	Ports      []int  // host ports
	State      string // Mesos state, as in TASK_RUNNING
	Killing    bool   // a kill was decided
	Ready      bool   // readiness checks passed, or there are none
	Endpoints  []Endpoint

	// Health is the truth about the task, which Marathon may have forgotten: "alive", "dead", "unknown"
	// (not checked yet) or "none" (no health checks).
	Health string
}

// Endpoint is where one port of a task is reached.
type Endpoint struct {
	Service int    // service port, 0 for none
	Addr    string // host:port
}

// Live tells whether traffic should be sent to the task: it runs or is at least
// not known to have stopped, no kill was decided, and its checks pass.
func (t Task) Live() bool {
	switch t.State {
	case stateRunning, stateUnreachable, stateLost:
		return !t.Killing && (t.Health == "alive" || t.Health == "none")
	}
	return false
}

func (t *task) running() bool { return t.state == stateRunning && !t.killing }

// serves tells whether the task counts towards the app's capacity in a deployment.
func (t *task) serves() bool {
	return t.running() && t.ready && t.health() != "dead" && t.health() != "unknown"
}

func (t *task) health() string {
	if len(t.def.checks) == 0 {
		return "none"
	}
	for _, c := range t.checks {
		if !c.heard {
			return "unknown"
		}
		if !c.alive {
			return "dead"
		}
	}
	return "alive"
}

// combined is the verdict of instance_health_changed_event: nil while any check has no result.
func (t *task) combined() *bool {
	if len(t.checks) == 0 {
		return nil
	}
	all := true
	for _, c := range t.checks {
		if !c.known {
			return nil
		}
		all = all && c.alive
	}
	return &all
}

func (t *task) changed() { t.json = nil }

func (t *task) view() Task {
	v := Task{
		ID: t.id, InstanceID: t.instance, App: t.app.id, Version: t.def.version, Host: t.host, Address: t.addr,
		Ports: slices.Clone(t.ports), State: t.state, Killing: t.killing, Ready: t.ready, Health: t.health(),
	}
	if v.State == "" {
		v.State = stateStaging
	}
	// Walk the ports as Marathon does: a mapped one takes the next host port, an
	// unmapped one takes none.
	next := 0
	for _, p := range t.def.ports {
		e := Endpoint{Service: p.Service}
		if p.Unmapped {
			e.Addr = net.JoinHostPort(t.addr, strconv.Itoa(p.Container))
		} else if next < len(t.ports) {
			e.Addr = net.JoinHostPort(t.host, strconv.Itoa(t.ports[next]))
			next++
		}
		v.Endpoints = append(v.Endpoints, e)
	}
	return v
}

// name gives the task its ids, in the form of the profile.
func (t *task) name(p *profile) {
	safe := strings.ReplaceAll(strings.TrimPrefix(t.app.id, "/"), "/", "_")
	t.id = safe + "." + t.uuid
	switch {
	case p.instanceTasks:
		t.instance = safe + ".instance-" + t.uuid
		t.id = fmt.Sprintf("%s._app.%d", t.instance, t.launch)
	case p.instances:
		t.instance = safe + ".marathon-" + t.uuid
		if t.launch > 1 {
			t.id = fmt.Sprintf("%s.%d", t.id, t.launch)
		}
	}
}

// taskJSON is the task as the profile's version writes it: TaskWrites and
// EnrichedTaskWrites of Formats.scala to 1.5, task.raml from 1.6 on.
func (p *profile) taskJSON(t *task, servicePorts bool) []byte {
	o := newObject(512)
	if p.emptyLists {
		p.ramlTask(o, t, servicePorts)
		return o.end()
	}
	o.str("id", t.id)
	if p.taskState && !p.instances {
		o.strOrNull("slaveId", t.agent)
		o.str("host", t.host)
	}
	if p.taskState {
		o.str("state", t.listedState())
	}
	if !p.instances {
		if !p.taskState {
			o.strOrNull("host", t.host)
		}
		if !t.inactive {
			o.ints("ports", t.ports)
			o.strOrNull("startedAt", t.startedAt)
			o.strOrNull("stagedAt", t.stagedAt)
			o.str("version", t.def.version)
		}
		if p.slaveID && !p.taskState {
			o.strOrNull("slaveId", t.agent)
		}
	} else if !t.inactive && !t.terminal {
		o.strOrNull("startedAt", t.startedAt)
		o.strOrNull("stagedAt", t.stagedAt)
		o.ints("ports", t.ports)
		o.str("version", t.def.version)
	}
	p.addressesOf(o, t)
	o.str("appId", t.app.id)
	if p.instances {
		o.strOrNull("slaveId", t.agent)
		o.str("host", t.host)
	}
	if servicePorts && len(t.def.ports) > 0 {
		o.ints("servicePorts", t.def.servicePorts())
	}
	if results := p.healthResults(t); len(results) > 0 {
		o.raw("healthCheckResults", array(results...))
	}
	return o.end()
}

func (p *profile) ramlTask(o *object, t *task, servicePorts bool) {
	active := !t.inactive && !t.terminal
	o.str("appId", t.app.id)
	o.raw("healthCheckResults", array(p.healthResults(t)...))
	o.str("host", t.host)
	o.str("id", t.id)
	p.addressesOf(o, t)
	if active {
		o.ints("ports", t.ports)
	} else {
		o.ints("ports", nil)
	}
	if servicePorts {
		o.ints("servicePorts", t.def.servicePorts())
	} else {
		o.ints("servicePorts", nil)
	}
	o.str("slaveId", t.agent)
	o.str("state", t.listedState())
	if active {
		o.str("stagedAt", t.stagedAt)
		if t.startedAt != "" {
			o.str("startedAt", t.startedAt)
		}
		o.str("version", t.def.version)
	}
	o.ints("localVolumes", nil)
	o.str("region", "primary")
	o.str("zone", "a")
	if p.role {
		o.str("role", "*")
	}
}

// listedState is the state REST shows; a task that Mesos has not heard of is staging.
func (t *task) listedState() string {
	if t.state == "" {
		return stateStaging
	}
	return t.state
}

func (p *profile) addressesOf(o *object, t *task) {
	switch addresses := p.addresses(t); {
	case !p.ipAddresses:
	case len(addresses) > 0 || p.emptyLists || p.ipList():
		o.raw("ipAddresses", array(addresses...))
	}
}

// ipList tells whether ipAddresses is written even when Mesos gave none: 0.14 to 1.0 did.
func (p *profile) ipList() bool { return p.ipAddresses && !p.since(1, 1, 0) }

func (p *profile) addresses(t *task) [][]byte {
	if t.addr == "" || !t.acted || t.state == stateStaging {
		return nil
	}
	protocol := "IPv4"
	if strings.Contains(t.addr, ":") {
		protocol = "IPv6"
	}
	o := newObject(64)
	o.str("ipAddress", t.addr)
	o.str("protocol", protocol)
	return [][]byte{o.end()}
}

func (p *profile) healthResults(t *task) [][]byte {
	var out [][]byte
	for _, c := range t.checks {
		if !c.known {
			if !p.since(0, 9, 0) {
				out = append(out, []byte("null"))
			}
			continue
		}
		o := newObject(256)
		o.bool("alive", c.alive)
		o.int("consecutiveFailures", c.failures)
		if p.emptyLists {
			for _, m := range [...]struct{ name, at string }{
				{"firstSuccess", c.firstSuccess}, {"instanceId", t.instance},
				{"lastSuccess", c.lastSuccess}, {"lastFailure", c.lastFailure},
			} {
				if m.at != "" {
					o.str(m.name, m.at)
				}
			}
			if !c.alive {
				o.str("lastFailureCause", "connection refused")
			}
			out = append(out, o.end())
			continue
		}
		o.strOrNull("firstSuccess", c.firstSuccess)
		o.strOrNull("lastFailure", c.lastFailure)
		o.strOrNull("lastSuccess", c.lastSuccess)
		if p.since(1, 0, 0) {
			if c.alive {
				o.null("lastFailureCause")
			} else {
				o.str("lastFailureCause", "connection refused")
			}
		}
		if p.instances {
			o.str("instanceId", t.instance)
		} else {
			o.str("taskId", t.id)
		}
		out = append(out, o.end())
	}
	return out
}
