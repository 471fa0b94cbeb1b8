package marathontest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Apps are the ids of all apps, sorted.
func (c *Cluster) Apps() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.apps))
}

// Tasks are the tasks of an app in order of launch, those being killed
// included; of all apps for "".
func (c *Cluster) Tasks(app string) []Task {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Task
	for _, a := range c.everyApp() {
		if app != "" && a.id != app {
			continue
		}
		for _, t := range a.tasks {
			out = append(out, t.view())
		}
	}
	return out
}

// everyApp is all apps and those that are going.
func (c *Cluster) everyApp() []*app {
	apps := slices.Clone(c.sorted())
	for _, id := range slices.Sorted(maps.Keys(c.leaving)) {
		apps = append(apps, c.leaving[id])
	}
	return apps
}

// Expected is the routing table that follows from the state: for each service
// port the sorted host:port of the tasks that should get its traffic, by
// [Task.Live]. Apps without such a task have an empty entry. It is made from the
// simulator's own state alone; nothing of it went over the wire. Two apps with
// one service port share an entry.
func (c *Cluster) Expected() map[int][]string { return c.ExpectedBy(Task.Live) }

// ExpectedBy is Expected with another opinion of which tasks are to be used.
func (c *Cluster) ExpectedBy(use func(Task) bool) map[int][]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	table := make(map[int][]string)
	for _, a := range c.everyApp() {
		if !a.deleting {
			for _, p := range a.def.ports {
				if p.Service != 0 && table[p.Service] == nil {
					table[p.Service] = []string{}
				}
			}
		}
		for _, t := range a.tasks {
			v := t.view()
			if a.deleting || !use(v) {
				continue
			}
			for i, e := range v.Endpoints {
				// A task of an older definition serves the ports of the present one by position.
				service := e.Service
				if i < len(a.def.ports) {
					service = a.def.ports[i].Service
				}
				if service != 0 && e.Addr != "" {
					table[service] = append(table[service], e.Addr)
				}
			}
		}
	}
	for port := range table {
		slices.Sort(table[port])
	}
	return table
}

// ServicePorts are the service ports of an app, nil if there is no such app.
func (c *Cluster) ServicePorts(app string) []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a := c.apps[app]; a != nil {
		return a.def.servicePorts()
	}
	return nil
}

// Deployments are the ids of the running deployments.
func (c *Cluster) Deployments() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []string
	for _, d := range c.deployments {
		ids = append(ids, d.id)
	}
	return ids
}

// Events counts what was published, by event type.
func (c *Cluster) Events() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.counts)
}

// BackendErrors are the errors that Options.Backend returned.
func (c *Cluster) BackendErrors() []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.backendErrors)
}

// Emit sends JSON as an event, whatever it says. Its eventType member names it on
// the stream; JSON that has none, or is none, goes out as "raw_event".
func (c *Cluster) Emit(raw []byte) {
	var head struct {
		EventType string `json:"eventType"`
		AppID     string `json:"appId"`
		TaskID    string `json:"taskId"`
	}
	json.Unmarshal(raw, &head) // what cannot be read is sent all the same
	c.lock()
	defer c.unlock()
	c.deliver(&Event{Type: orString(head.EventType, "raw_event"), App: head.AppID, Task: head.TaskID, At: c.now(), JSON: compact(raw)})
}

// Load fills the cluster for benchmarks: apps /load/app-0 … with tasks running
// tasks each, healthy, on as many agents as it takes. No event is sent, no
// backend started, and the tasks' addresses are loopback ones at which nobody
// listens. Service ports are assigned from the cluster's range.
func (c *Cluster) Load(apps, tasks int) {
	c.lock()
	defer c.unlock()
	version := c.newVersion()
	for i := range apps {
		id := fmt.Sprintf("/load/app-%d", i)
		def, err := parseDefinition(map[string]json.RawMessage{
			"id": appendQuoted(nil, id), "instances": fmt.Append(nil, tasks), "cmd": []byte(`"serve $PORT0"`),
			"cpus": []byte("0.1"), "mem": []byte("32"),
			"labels":       fmt.Appendf(nil, `{"HAPROXY_GROUP":"external","owner":"team-%d"}`, i%17),
			"healthChecks": []byte(`[{"protocol":"HTTP","path":"/health","portIndex":0}]`),
		})
		if err != nil {
			panic(err) // the definition is ours
		}
		def.version, def.scaledAt, def.configAt = version, version, version
		a := &app{id: id, def: def, history: []*definition{def}}
		if c.nextPort < c.opts.FirstServicePort {
			c.nextPort = c.opts.FirstServicePort
		}
		// The range is walked without asking who uses the ports: Load is for clusters that are empty.
		def.ports[0].Service = c.opts.FirstServicePort + (c.nextPort-c.opts.FirstServicePort)%(c.opts.LastServicePort-c.opts.FirstServicePort+1)
		c.nextPort++
		c.apps[id] = a
		for range tasks {
			c.loadTask(a, version)
		}
	}
	c.appOrder, c.rootVersion = nil, version
}

func (c *Cluster) loadTask(a *app, version string) {
	t := &task{
		app: a, def: a.def, uuid: c.uuid(), launch: 1, ready: true, acted: true, state: stateRunning, condition: "Running",
		stagedAt: version, startedAt: version, agent: c.frameworkID[:8] + "-S0",
		checks: []checkResult{{known: true, heard: true, alive: true, firstSuccess: version, lastSuccess: version}},
	}
	up := true
	t.healthy = &up
	// 1 000 tasks an agent; agents are 127.128.0.1, 127.128.0.2 …
	n := c.placed
	c.placed++
	host := n/1000 + 1
	t.host = fmt.Sprintf("127.%d.%d.%d", 128+host>>16, host>>8&255, host&255)
	t.ports = []int{31000 + n%1000}
	t.name(c.profile)
	a.tasks = append(a.tasks, t)
	c.tasks[t.id] = t
}

// Dump prints the state for people: apps, their ports, their tasks.
func (c *Cluster) Dump() string {
	var b strings.Builder
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(&b, "marathon %s leader=%d deployments=%d streams=%d\n", c.profile.version, c.leader, len(c.deployments), len(c.streams))
	for _, a := range c.everyApp() {
		fmt.Fprintf(&b, "%s version=%s instances=%d ports=%v\n", a.id, a.def.version, a.def.instances, a.def.servicePorts())
		for _, t := range a.tasks {
			fmt.Fprintf(&b, "  %s %s %s:%v health=%s\n", t.id, t.listedState(), t.host, t.ports, t.health())
		}
	}
	return b.String()
}
