package zdd

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// app is one app of a deployment group as Marathon has it.
type app struct {
	id        string
	raw       json.RawMessage
	labels    map[string]string
	colour    string
	started   time.Time
	instances int
	checks    int
	ports     []int // service ports
	// target and goal are those of its deployment, -1 when the label is missing.
	target, goal int
	lastScaling  string // sorts by time; before Marathon 0.11 that of the last change of any kind
	deployments  int    // that hold it now
	tasks        []task // those not known to have ended, by id
}

// task is one instance.
type task struct {
	id      string
	host    string
	ips     []string
	ports   []int // on its host, else in its container
	stands  bool  // runs, and every health check says that it is alive
	killing bool
}

// standing is how many tasks serve.
func (a *app) standing() int {
	n := 0
	for _, t := range a.tasks {
		if t.stands {
			n++
		}
	}
	return n
}

// wireApp are the members of an app that matter here.
type wireApp struct {
	ID           string
	Instances    int
	Labels       map[string]string
	HealthChecks []json.RawMessage
	Version      string
	VersionInfo  struct{ LastScalingAt string }
	Deployments  []json.RawMessage
	Tasks        []wireTask
}

type wireTask struct {
	ID          string
	Host        string
	State       string
	StartedAt   string
	Ports       []int
	IPAddresses []struct{ IPAddress string }
	Results     []*struct{ Alive bool } `json:"healthCheckResults"`
}

// readApp decodes one app of Marathon's answer.
func readApp(raw json.RawMessage) (*app, error) {
	var w wireApp
	if err := json.Unmarshal(raw, &w); err != nil {
		return nil, fmt.Errorf("not an app: %w", err)
	}
	a := &app{
		id: w.ID, raw: raw, labels: w.Labels, colour: w.Labels[labelColour], instances: w.Instances, checks: len(w.HealthChecks),
		lastScaling: cmp.Or(w.VersionInfo.LastScalingAt, w.Version), deployments: len(w.Deployments), target: -1, goal: -1,
	}
	if n, err := strconv.Atoi(w.Labels[labelTarget]); err == nil && n >= 0 {
		a.target = n
	}
	if n, err := strconv.Atoi(w.Labels[labelNew]); err == nil && n >= 0 {
		a.goal = n
	}
	if v, ok := w.Labels[labelStarted]; ok {
		for _, layout := range []string{"2006-01-02T15:04:05", time.RFC3339, "2006-01-02 15:04:05"} {
			if t, err := time.Parse(layout, v); err == nil { // with any fraction of a second
				a.started = t
				break
			}
		}
		if a.started.IsZero() {
			return nil, fail(CodeMissing, "app %s: label %s: want a time such as %s, have %q", a.id, labelStarted, startedLayout, v)
		}
	}
	for _, p := range servicePorts(raw) {
		a.ports = append(a.ports, p.number)
	}
	container := containerPorts(raw)
	for _, t := range w.Tasks {
		if t.ended() {
			continue
		}
		read := task{id: t.ID, host: t.Host, ports: slices.Concat(t.Ports, container), killing: t.State == "TASK_KILLING"}
		for _, ip := range t.IPAddresses {
			read.ips = append(read.ips, ip.IPAddress)
		}
		read.stands = t.runs() && t.alive(a.checks)
		a.tasks = append(a.tasks, read)
	}
	slices.SortFunc(a.tasks, func(x, y task) int { return strings.Compare(x.id, y.id) })
	return a, nil
}

// ended: from Marathon 1.8 on tasks stay listed until they are replaced.
func (t *wireTask) ended() bool {
	switch t.State {
	case "TASK_FINISHED", "TASK_FAILED", "TASK_KILLED", "TASK_ERROR", "TASK_DROPPED", "TASK_GONE", "TASK_GONE_BY_OPERATOR":
		return true
	}
	return false
}

// runs: before Marathon 1.3 there is no state; a task that started runs.
func (t *wireTask) runs() bool {
	return t.State == "TASK_RUNNING" || t.State == "" && t.StartedAt != ""
}

// alive: Marathon 0.8 has null for a check without result, later ones leave it out.
func (t *wireTask) alive(checks int) bool {
	n := 0
	for _, r := range t.Results {
		if r != nil && r.Alive {
			n++
		}
	}
	return n >= checks
}

// containerPorts are where tasks with an address of their own are reached.
func containerPorts(raw []byte) []int {
	var ports []int
	for _, place := range [][]string{{"container", "portMappings"}, {"container", "docker", "portMappings"}} {
		var mappings []struct{ ContainerPort int }
		if json.Unmarshal(find(raw, place...), &mappings) == nil {
			for _, m := range mappings {
				ports = append(ports, m.ContainerPort)
			}
		}
	}
	var numbered []struct{ Number int }
	if json.Unmarshal(find(raw, "ipAddress", "discovery", "ports"), &numbered) == nil {
		for _, p := range numbered {
			ports = append(ports, p.Number)
		}
	}
	return ports
}

// view is everything that a step depends on, as it was at one moment.
type view struct {
	apps      []*app // of the group, older first: one or two
	balancers []*balancerView
	// drained is for how long a task was seen drained without a break.
	drained map[string]time.Duration
}

// sortApps puts the older deployment first.
func sortApps(apps []*app) error {
	slices.SortFunc(apps, func(a, b *app) int {
		return cmp.Or(a.started.Compare(b.started), strings.Compare(a.id, b.id))
	})
	if len(apps) == 2 && apps[0].started.Equal(apps[1].started) {
		return fail(CodeMissing, "apps %s and %s: label %s does not say which is the newer one", apps[0].id, apps[1].id, labelStarted)
	}
	if len(apps) > 2 {
		ids := make([]string, len(apps))
		for i, a := range apps {
			ids[i] = a.id
		}
		return fail(CodeArguments, "apps %s are in one deployment group, want two at most: delete what is not in use", strings.Join(ids, ", "))
	}
	return nil
}

// server is a task as one load balancer has it, over all ports of the task.
type server struct {
	present  bool
	ready    bool // gets new connections
	sessions int  // open or queued
}

// balancerView is what one load balancer says.
type balancerView struct {
	name    string
	servers map[string]server // by task id
	// busy says why what it tells does not hold yet: not synced, old processes.
	busy string
	// counts: it tells sessions.
	counts bool
}

// rows are servers by where they point, "ip:port", or by name.
type rows map[string]server

func (r rows) add(key string, s server) {
	if have, ok := r[key]; ok {
		s.ready = s.ready && have.ready
		s.sessions += have.sessions
	}
	s.present = true
	r[key] = s
}

// of is a task's server among rows, found by address or by the names that the dialects
// give servers. resolve tells the addresses of an agent.
func (r rows) of(t *task, resolve func(host string) []string) server {
	var found server
	seen := map[string]bool{}
	for _, port := range t.ports {
		for _, ip := range slices.Concat(resolve(t.host), t.ips) {
			name := cleaned(ip + "_" + strconv.Itoa(port))
			keys := []string{net.JoinHostPort(ip, strconv.Itoa(port)), name, ip + "_" + strconv.Itoa(port)}
			if t.host != ip {
				keys = append(keys, cleaned(t.host)+"_"+name)
			}
			for _, key := range keys {
				s, ok := r[key]
				if !ok || seen[key] {
					continue
				}
				seen[key] = true
				if found.present {
					s.ready = s.ready && found.ready
					s.sessions += found.sessions
				}
				found = s
				found.present = true
			}
		}
	}
	return found
}

// cleaned is how marathon-lb makes names.
func cleaned(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '-' || '0' <= r && r <= '9' || 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' {
			return r
		}
		return '_'
	}, s)
}
