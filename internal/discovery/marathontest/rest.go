package marathontest

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
)

// resource answers a request as the leader does.
func (n *node) resource(r *http.Request, faults []*Injected) answer {
	c, p := n.c, n.profile
	path := strings.TrimSuffix(r.URL.Path, "/")
	get := r.Method == http.MethodGet || r.Method == http.MethodHead
	v := view{faults: faults}
	c.lock()
	defer c.unlock()
	v.alone = c.leader < 0
	switch {
	case path == "/ping":
		return answer{status: http.StatusOK, body: []byte("pong\n"), kind: "text/plain"}
	case path == "/v2/info" && get:
		return jsonAnswer(http.StatusOK, n.infoJSON())
	case path == "/v2/leader":
		return n.leaderResource(r)
	case path == "/v2/apps" && get:
		return c.appList(r, &v)
	case strings.HasPrefix(path, "/v2/apps"):
		return c.appResource(r, strings.TrimPrefix(path, "/v2/apps"), get, &v)
	case path == "/v2/tasks" && get:
		return c.taskList(r, &v)
	case path == "/v2/tasks/delete" && r.Method == http.MethodPost:
		return c.deleteTasks(r)
	case strings.HasPrefix(path, "/v2/groups"):
		return c.groupResource(r, strings.TrimPrefix(path, "/v2/groups"), get, &v)
	case path == "/v2/deployments" && get:
		return jsonAnswer(http.StatusOK, c.deploymentsJSON())
	case strings.HasPrefix(path, "/v2/deployments/") && r.Method == http.MethodDelete:
		return c.cancelDeployment(strings.TrimPrefix(path, "/v2/deployments/"))
	case path == "/v2/eventSubscriptions" && p.callbacks:
		return c.subscriptionResource(r)
	case p.instances && get && (path == "/v2/pods" || path == "/v2/pods/::status"):
		return jsonAnswer(http.StatusOK, []byte("[]"))
	case p.instances && get && strings.HasPrefix(path, "/v2/pods/"):
		id := strings.TrimSuffix(strings.TrimPrefix(path, "/v2/pods"), "::status")
		return messageAnswer(http.StatusNotFound, fmt.Sprintf("Pod '%s' does not exist", id))
	case path == "/v2/queue" && get:
		return jsonAnswer(http.StatusOK, []byte(`{"queue":[]}`))
	}
	return answer{status: http.StatusNotFound, body: []byte("HTTP 404 Not Found\n"), kind: "text/plain"}
}

// view is how one request sees the state: faults may show less of it.
type view struct {
	faults []*Injected
	alone  bool // a node of 0.8 without a leader: it knows no tasks
}

func (v *view) has(kind FaultKind) bool {
	return slices.ContainsFunc(v.faults, func(f *Injected) bool { return f.fault.Kind == kind })
}

func (v *view) apps(apps []*app) []*app {
	switch {
	case v.has(EmptyApps):
		return nil
	case v.has(HalfApps):
		return apps[:len(apps)/2]
	}
	return apps
}

func (v *view) tasks(a *app) []*task {
	if v.alone || v.has(NoTasks) {
		return nil
	}
	return a.tasks
}

// embeds says what is written with each app besides its definition.
type embeds struct{ tasks, counts, deployments, failure, readiness bool }

// parseEmbeds reads ?embed=. Up to 0.10 only the first one counts, and it must be
// written exactly; later any of several prefixes will do.
func (p *profile) parseEmbeds(values []string) embeds {
	e := embeds{counts: true, deployments: true}
	if p.singleEmbed && len(values) > 1 {
		values = values[:1]
	}
	for _, v := range values {
		name := v
		if !p.singleEmbed {
			for _, prefix := range []string{"group.", "apps.", "app."} {
				name = strings.TrimPrefix(name, prefix)
			}
		} else if !strings.HasPrefix(v, "apps.") {
			continue
		} else {
			name = strings.TrimPrefix(v, "apps.")
		}
		switch name {
		case "tasks":
			e.tasks = true
		case "failures":
			e.tasks, e.failure = true, true
		case "lastTaskFailure":
			e.failure = !p.singleEmbed
		case "readiness":
			e.readiness = p.since(1, 1, 0)
		}
	}
	return e
}

func (c *Cluster) appList(r *http.Request, v *view) answer {
	q := r.URL.Query()
	e := c.profile.parseEmbeds(q["embed"])
	var out [][]byte
	for _, a := range v.apps(c.sorted()) {
		if id := q.Get("id"); id != "" && !strings.Contains(a.id, id) {
			continue
		}
		if cmd := q.Get("cmd"); cmd != "" && !strings.Contains(string(a.def.members["cmd"]), cmd) {
			continue
		}
		if label := q.Get("label"); label != "" && c.profile.since(0, 8, 2) && !a.def.hasLabel(label) {
			continue
		}
		out = append(out, c.appInfo(a, e, v))
	}
	return jsonAnswer(http.StatusOK, member("apps", array(out...)))
}

// hasLabel takes the selectors "name" and "name==value".
func (d *definition) hasLabel(selector string) bool {
	name, value, exact := strings.Cut(selector, "==")
	have, ok := d.labels[name]
	return ok && (!exact || have == value)
}

// appInfo is an app as REST shows it: the definition and what is embedded.
func (c *Cluster) appInfo(a *app, e embeds, v *view) []byte {
	p := c.profile
	open := p.appJSON(a.def)
	tasks := v.tasks(a)
	o := &object{b: append(make([]byte, 0, len(open)+256+len(tasks)*640), open...)}
	if e.counts {
		var staged, running, healthy, unhealthy int
		for _, t := range tasks {
			switch {
			case t.terminal:
			case t.state == stateRunning:
				running++
			case t.state == stateStaging || t.state == stateStarting || !t.acted:
				staged++
			}
			if verdict := t.combined(); verdict != nil && !v.has(ForgetHealth) {
				if *verdict {
					healthy++
				} else {
					unhealthy++
				}
			}
		}
		o.int("tasksStaged", staged)
		o.int("tasksRunning", running)
		if p.since(0, 8, 2) {
			o.int("tasksHealthy", healthy)
			o.int("tasksUnhealthy", unhealthy)
		}
	}
	if e.deployments {
		var ids [][]byte
		for _, d := range c.deployments {
			if slices.Contains(d.apps(), a.id) {
				ids = append(ids, member("id", appendQuoted(nil, d.id)))
			}
		}
		o.raw("deployments", array(ids...))
	}
	if e.readiness {
		var results [][]byte
		for _, t := range tasks {
			if a.def.readiness && t.running() {
				results = append(results, t.readinessJSON())
			}
		}
		o.raw("readinessCheckResults", array(results...))
	}
	if e.tasks {
		o.raw("tasks", c.tasksJSON(tasks, v))
	}
	if e.failure && a.last != nil {
		o.raw("lastTaskFailure", a.failureJSON())
	}
	return o.end()
}

func (t *task) readinessJSON() []byte {
	o := newObject(128)
	o.str("name", "readiness")
	o.str("taskId", t.id)
	o.bool("ready", t.ready)
	return o.end()
}

func (a *app) failureJSON() []byte {
	f := a.last
	o := newObject(256)
	o.str("appId", a.id)
	o.str("host", f.host)
	o.str("message", f.message)
	o.str("state", f.state)
	o.str("taskId", f.task)
	o.str("timestamp", f.at)
	o.str("version", f.version)
	return o.end()
}

func (c *Cluster) tasksJSON(tasks []*task, v *view) []byte {
	p := c.profile
	out := make([][]byte, len(tasks))
	for i, t := range tasks {
		if v.has(ForgetHealth) {
			bare := *t
			bare.checks = make([]checkResult, len(t.checks))
			out[i] = p.taskJSON(&bare, false)
			continue
		}
		if t.json == nil {
			t.json = p.taskJSON(t, false)
		}
		out[i] = t.json
	}
	return array(out...)
}

// appResource answers what is below /v2/apps: one app, a group's apps, and the resources of an app.
func (c *Cluster) appResource(r *http.Request, rest string, get bool, v *view) answer {
	if !get {
		return c.writeApps(r, rest)
	}
	id := "/" + strings.Trim(rest, "/")
	if group, ok := strings.CutSuffix(id, "/*"); ok {
		var out [][]byte
		e := c.profile.parseEmbeds(r.URL.Query()["embed"])
		e.tasks = true
		for _, a := range v.apps(c.sorted()) {
			if strings.HasPrefix(a.id, group+"/") {
				out = append(out, c.appInfo(a, e, v))
			}
		}
		return jsonAnswer(http.StatusOK, member("*", array(out...)))
	}
	if a := c.apps[id]; a != nil && !v.has(EmptyApps) {
		e := c.profile.parseEmbeds(r.URL.Query()["embed"])
		e.tasks, e.failure = true, true
		return jsonAnswer(http.StatusOK, member("app", c.appInfo(a, e, v)))
	}
	if app, version, ok := strings.Cut(id, "/versions"); ok && c.apps[app] != nil {
		return c.versionResource(c.apps[app], strings.Trim(version, "/"))
	}
	if app, ok := strings.CutSuffix(id, "/tasks"); ok && c.apps[app] != nil {
		var out [][]byte
		for _, t := range v.tasks(c.apps[app]) {
			out = append(out, c.profile.taskJSON(t, false))
		}
		return jsonAnswer(http.StatusOK, member("tasks", array(out...)))
	}
	return noApp(id)
}

func noApp(id string) answer {
	return messageAnswer(http.StatusNotFound, fmt.Sprintf("App '%s' does not exist", id))
}

func (c *Cluster) versionResource(a *app, version string) answer {
	if version == "" {
		var out [][]byte
		for _, d := range slices.Backward(a.history) {
			out = append(out, appendQuoted(nil, d.version))
		}
		return jsonAnswer(http.StatusOK, member("versions", array(out...)))
	}
	for _, d := range a.history {
		if d.version == version {
			return jsonAnswer(http.StatusOK, closed(c.profile.appJSON(d)))
		}
	}
	return messageAnswer(http.StatusNotFound, fmt.Sprintf("App '%s' does not exist in version %s", a.id, version))
}

// taskList answers GET /v2/tasks: JSON if asked for, else the lossy text form.
func (c *Cluster) taskList(r *http.Request, v *view) answer {
	if !strings.Contains(strings.Join(r.Header.Values("Accept"), ","), "application/json") {
		return answer{status: http.StatusOK, body: c.tasksText(v), kind: "text/plain"}
	}
	status := r.URL.Query()["status"]
	var out [][]byte
	for _, a := range v.apps(c.sorted()) {
		for _, t := range v.tasks(a) {
			kind := "staging"
			if t.startedAt != "" {
				kind = "running"
			}
			if len(status) == 0 || slices.Contains(status, kind) {
				out = append(out, c.profile.taskJSON(t, true))
			}
		}
	}
	return jsonAnswer(http.StatusOK, member("tasks", array(out...)))
}

// tasksText is one line for each app and service port: id, port, addresses. Running tasks only, no health.
func (c *Cluster) tasksText(v *view) []byte {
	var b []byte
	for _, a := range v.apps(c.sorted()) {
		if a.def.network == ContainerNetwork {
			continue
		}
		safe := strings.ReplaceAll(strings.TrimPrefix(a.id, "/"), "/", "_")
		for i, p := range a.def.ports {
			b = fmt.Appendf(b, "%s\t%d\t", safe, p.Service)
			for _, t := range v.tasks(a) {
				if t.running() && i < len(t.ports) {
					b = fmt.Appendf(b, "%s\t", net.JoinHostPort(t.host, fmt.Sprint(t.ports[i])))
				}
			}
			b = append(b, '\n')
		}
	}
	return b
}

// groupResource answers GET /v2/groups and below.
func (c *Cluster) groupResource(r *http.Request, rest string, get bool, v *view) answer {
	id := "/" + strings.Trim(rest, "/")
	if !get {
		return c.writeGroup(r, id)
	}
	if id != "/" && !slices.ContainsFunc(c.sorted(), func(a *app) bool { return strings.HasPrefix(a.id, id+"/") }) {
		return messageAnswer(http.StatusNotFound, fmt.Sprintf("Group '%s' does not exist", id))
	}
	withTasks := slices.ContainsFunc(r.URL.Query()["embed"], func(e string) bool {
		return strings.HasSuffix(e, "apps.tasks")
	})
	return jsonAnswer(http.StatusOK, c.groupJSON(id, withTasks, v))
}

// groupJSON is a group with all that is below it.
func (c *Cluster) groupJSON(id string, tasks bool, v *view) []byte {
	prefix := strings.TrimSuffix(id, "/") + "/"
	var apps, groups [][]byte
	seen := ""
	for _, a := range c.sorted() { // sorted, so that a group's apps are side by side
		below, ok := strings.CutPrefix(a.id, prefix)
		if !ok {
			continue
		}
		name, _, deeper := strings.Cut(below, "/")
		switch {
		case !deeper && tasks:
			apps = append(apps, c.appInfo(a, embeds{tasks: true}, v))
		case !deeper:
			apps = append(apps, closed(c.profile.appJSON(a.def)))
		case prefix+name != seen:
			seen = prefix + name
			groups = append(groups, c.groupJSON(seen, tasks, v))
		}
	}
	o := newObject(256)
	o.str("id", id)
	o.raw("apps", array(apps...))
	o.raw("groups", array(groups...))
	if c.profile.instances {
		o.raw("pods", []byte("[]"))
	}
	o.raw("dependencies", []byte("[]"))
	o.str("version", c.rootVersion)
	return o.end()
}

// deploymentsJSON is GET /v2/deployments. It also tells of the readiness of new tasks.
func (c *Cluster) deploymentsJSON() []byte {
	p := c.profile
	var out [][]byte
	for _, d := range c.deployments {
		o := newObject(512)
		o.str("id", d.id)
		o.str("version", d.version)
		var apps [][]byte
		for _, id := range d.apps() {
			apps = append(apps, appendQuoted(nil, id))
		}
		o.raw("affectedApps", array(apps...))
		if p.instances {
			o.raw("affectedPods", []byte("[]"))
		}
		var steps [][]byte
		for _, s := range d.steps {
			if p.stepsAsArrays {
				steps = append(steps, actionsFor("action", s, nil))
			} else {
				steps = append(steps, member("actions", p.actionsJSON(s)))
			}
		}
		o.raw("steps", array(steps...))
		key := p.actionKey
		if p.stepsAsArrays {
			key = "action"
		}
		o.raw("currentActions", actionsFor(key, d.steps[d.step], func(o *object, id string) {
			if a := c.apps[id]; p.since(1, 1, 0) {
				var results [][]byte
				if a != nil && a.def.readiness {
					for _, t := range a.tasks {
						results = append(results, t.readinessJSON())
					}
				}
				o.raw("readinessCheckResults", array(results...))
			}
		}))
		o.int("currentStep", d.step+1)
		o.int("totalSteps", len(d.steps))
		out = append(out, o.end())
	}
	return array(out...)
}

func actionsFor(key string, actions []action, more func(o *object, id string)) []byte {
	out := make([][]byte, len(actions))
	for i, a := range actions {
		o := newObject(128)
		o.str(key, a.kind)
		o.str("app", a.app)
		if more != nil {
			more(o, a.app)
		}
		out[i] = o.end()
	}
	return array(out...)
}

// leaderResource answers GET and DELETE /v2/leader. Without other nodes the one that abdicates is elected again.
func (n *node) leaderResource(r *http.Request) answer {
	c := n.c
	if c.leader < 0 {
		return messageAnswer(http.StatusNotFound, "There is no leader")
	}
	switch r.Method {
	case http.MethodGet:
		return jsonAnswer(http.StatusOK, member("leader", appendQuoted(nil, c.nodes[c.leader].addr)))
	case http.MethodDelete:
		next := (c.leader + 1) % len(c.nodes)
		c.wg.Go(func() { c.Elect(next) }) // the number is valid; it locks the cluster
		return messageAnswer(http.StatusOK, "Leadership abdicated")
	}
	return answer{status: http.StatusMethodNotAllowed}
}
