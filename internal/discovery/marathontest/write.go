package marathontest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// writeApps answers POST, PUT, PATCH and DELETE below /v2/apps. The cluster is locked.
func (c *Cluster) writeApps(r *http.Request, rest string) answer {
	id := "/" + strings.Trim(rest, "/")
	force := r.URL.Query().Get("force") == "true"
	switch {
	case r.Method == http.MethodPost && id == "/":
		return c.createApp(r, force)
	case r.Method == http.MethodPost && strings.HasSuffix(id, "/restart"):
		app := c.apps[strings.TrimSuffix(id, "/restart")]
		if app == nil {
			return noApp(strings.TrimSuffix(id, "/restart"))
		}
		def, err := parseDefinition(app.def.update(nil))
		if err != nil {
			return invalid(err)
		}
		return c.respond(change{want: []*definition{def}, group: def.group(), force: force, redo: true}, http.StatusOK)
	case (r.Method == http.MethodPut || r.Method == http.MethodPatch) && id != "/":
		return c.updateApp(r, id, force)
	case r.Method == http.MethodPut || r.Method == http.MethodPatch:
		return c.updateApps(r, force)
	case r.Method == http.MethodDelete && c.apps[id] != nil:
		return c.respond(c.deletion(id, force, r.URL.Path, remoteAddress(r)), http.StatusOK)
	case r.Method == http.MethodDelete:
		return c.deleteAppTasks(r, id)
	}
	return answer{status: http.StatusMethodNotAllowed}
}

// deletion is the change that removes an app.
func (c *Cluster) deletion(id string, force bool, uri, client string) change {
	ch := change{gone: []string{id}, group: parentGroup(id), force: force}
	if c.profile.postBefore {
		// Up to 0.10 a delete is announced by a default app with only its id right.
		ch.post = &definition{id: id, network: HostNetwork, instances: 1, upgrade: UpgradeStrategy{1, 1}}
		ch.uri, ch.client = uri, client
	}
	return ch
}

func invalid(err error) answer {
	o := newObject(256)
	o.str("message", "Object is not valid")
	detail := newObject(128)
	detail.str("path", "/")
	detail.raw("errors", array(appendQuoted(nil, err.Error())))
	o.raw("details", array(detail.end()))
	return jsonAnswer(http.StatusUnprocessableEntity, o.end())
}

// respond commits a change and tells of its deployment.
func (c *Cluster) respond(ch change, status int) answer {
	d, err := c.commit(ch)
	if err != nil {
		return refused(err)
	}
	o := newObject(128)
	o.str("version", d.version)
	o.str("deploymentId", d.id)
	a := jsonAnswer(status, o.end())
	a.header = http.Header{"Marathon-Deployment-Id": {d.id}}
	return a
}

func refused(err error) answer {
	if locked, ok := errors.AsType[*LockedError](err); ok {
		o := newObject(256)
		o.str("message", "App is locked by one or more deployments. Override with the option '?force=true'. View details at '/v2/deployments/<DEPLOYMENT_ID>'.")
		var ids [][]byte
		for _, id := range locked.Deployments {
			ids = append(ids, member("id", appendQuoted(nil, id)))
		}
		o.raw("deployments", array(ids...))
		return jsonAnswer(http.StatusConflict, o.end())
	}
	if errors.Is(err, ErrNoApp) || errors.Is(err, ErrNoTask) {
		return messageAnswer(http.StatusNotFound, err.Error())
	}
	return messageAnswer(http.StatusConflict, err.Error())
}

func (c *Cluster) createApp(r *http.Request, force bool) answer {
	var members map[string]json.RawMessage
	if err := decodeBody(r, &members); err != nil {
		return messageAnswer(http.StatusBadRequest, "Invalid JSON: "+err.Error())
	}
	def, err := parseDefinition(members)
	if err != nil {
		return invalid(err)
	}
	if c.apps[def.id] != nil {
		return messageAnswer(http.StatusConflict, fmt.Sprintf("An app with id [%s] already exists.", def.id))
	}
	d, err := c.commit(change{want: []*definition{def}, group: def.group(), force: force, post: def, uri: r.URL.Path, client: remoteAddress(r)})
	if err != nil {
		return refused(err)
	}
	o := &object{b: append([]byte(nil), c.profile.appJSON(def)...)}
	for _, name := range []string{"tasksStaged", "tasksRunning", "tasksHealthy", "tasksUnhealthy"} {
		o.int(name, 0)
	}
	o.raw("deployments", array(member("id", appendQuoted(nil, d.id))))
	o.raw("tasks", array())
	a := jsonAnswer(http.StatusCreated, o.end())
	a.header = http.Header{"Location": {def.id}, "Marathon-Deployment-Id": {d.id}}
	return a
}

// newDefinition is the definition that a PUT body asks for: a partial change of
// the present one unless ?partialUpdate=false, or a new app.
func (c *Cluster) newDefinition(id string, members map[string]json.RawMessage, partial bool) (*definition, error) {
	members["id"] = appendQuoted(nil, id)
	if a := c.apps[id]; a != nil && partial {
		return parseDefinition(a.def.update(members))
	}
	return parseDefinition(members)
}

func (c *Cluster) updateApp(r *http.Request, id string, force bool) answer {
	var members map[string]json.RawMessage
	if err := decodeBody(r, &members); err != nil || members == nil {
		return messageAnswer(http.StatusBadRequest, fmt.Sprintf("Invalid JSON: %v", err))
	}
	created := c.apps[id] == nil
	if created && r.Method == http.MethodPatch {
		return noApp(id)
	}
	def, err := c.newDefinition(id, members, r.URL.Query().Get("partialUpdate") != "false")
	if err != nil {
		return invalid(err)
	}
	status := http.StatusOK
	if created {
		status = http.StatusCreated
	}
	return c.respond(change{want: []*definition{def}, group: def.group(), force: force, post: def, uri: r.URL.Path, client: remoteAddress(r)}, status)
}

// updateApps changes several apps in one deployment. No api_post_event tells of it.
func (c *Cluster) updateApps(r *http.Request, force bool) answer {
	var list []map[string]json.RawMessage
	if err := decodeBody(r, &list); err != nil {
		return messageAnswer(http.StatusBadRequest, "Invalid JSON: "+err.Error())
	}
	ch := change{group: "/", force: force}
	for _, members := range list {
		def, err := parseDefinition(members)
		if err == nil {
			def, err = c.newDefinition(def.id, members, r.URL.Query().Get("partialUpdate") != "false")
		}
		if err != nil {
			return invalid(err)
		}
		ch.want = append(ch.want, def)
	}
	return c.respond(ch, http.StatusOK)
}

// deleteAppTasks kills tasks: DELETE /v2/apps/{id}/tasks[/{task}][?scale=true][&host=].
func (c *Cluster) deleteAppTasks(r *http.Request, path string) answer {
	id, taskID, ok := strings.Cut(path, "/tasks")
	a := c.apps[id]
	if !ok || a == nil {
		return noApp(id)
	}
	taskID = strings.Trim(taskID, "/")
	host := r.URL.Query().Get("host")
	var victims []*task
	for _, t := range a.tasks {
		if (taskID == "" || t.id == taskID) && (host == "" || t.host == host) && !t.terminal {
			victims = append(victims, t)
		}
	}
	if taskID != "" && len(victims) == 0 {
		return messageAnswer(http.StatusNotFound, fmt.Sprintf("Task '%s' does not exist", taskID))
	}
	return c.killAll(r, victims, taskID != "")
}

// deleteTasks answers POST /v2/tasks/delete with {"ids":[…]}.
func (c *Cluster) deleteTasks(r *http.Request) answer {
	var body struct {
		IDs []string `json:"ids"`
	}
	if err := decodeBody(r, &body); err != nil {
		return messageAnswer(http.StatusBadRequest, "Invalid JSON: "+err.Error())
	}
	var victims []*task
	for _, id := range body.IDs {
		if t := c.tasks[id]; t != nil && !t.terminal {
			victims = append(victims, t)
		}
	}
	return c.killAll(r, victims, false)
}

func (c *Cluster) killAll(r *http.Request, victims []*task, one bool) answer {
	var shown [][]byte
	for _, t := range victims {
		shown = append(shown, c.profile.taskJSON(t, false))
	}
	if r.URL.Query().Get("scale") == "true" {
		return c.scaleAway(r, victims)
	}
	for _, t := range victims {
		c.kill(t, true)
	}
	if one {
		return jsonAnswer(http.StatusOK, member("task", shown[0]))
	}
	return jsonAnswer(http.StatusOK, member("tasks", array(shown...)))
}

// scaleAway kills the victims and scales their apps down by as many, so that nothing replaces them.
func (c *Cluster) scaleAway(r *http.Request, victims []*task) answer {
	ch := change{group: "/", force: r.URL.Query().Get("force") == "true"}
	fewer := make(map[string]int)
	var order []string
	for _, t := range victims {
		if fewer[t.app.id]++; fewer[t.app.id] == 1 {
			order = append(order, t.app.id)
		}
	}
	for _, id := range order {
		def := c.apps[id].def
		change := map[string]json.RawMessage{"instances": fmt.Append(nil, max(0, def.instances-fewer[id]))}
		next, err := parseDefinition(def.update(change))
		if err != nil {
			return invalid(err)
		}
		ch.want, ch.group = append(ch.want, next), next.group()
	}
	if err := c.unlockApps(order, ch.force); err != nil {
		return refused(err)
	}
	for _, t := range victims {
		c.kill(t, false)
	}
	return c.respond(ch, http.StatusOK)
}

// writeGroup answers PUT, POST and DELETE of groups. No api_post_event tells of it.
func (c *Cluster) writeGroup(r *http.Request, id string) answer {
	ch := change{group: id, force: r.URL.Query().Get("force") == "true"}
	switch r.Method {
	case http.MethodDelete:
		for _, a := range c.sorted() {
			if id == "/" || strings.HasPrefix(a.id, id+"/") {
				ch.gone = append(ch.gone, a.id)
			}
		}
		if len(ch.gone) == 0 {
			return messageAnswer(http.StatusNotFound, fmt.Sprintf("Group '%s' does not exist", id))
		}
		return c.respond(ch, http.StatusOK)
	case http.MethodPut, http.MethodPost:
		var g wireGroup
		if err := decodeBody(r, &g); err != nil {
			return messageAnswer(http.StatusBadRequest, "Invalid JSON: "+err.Error())
		}
		if g.ID != "" {
			id = join(id, g.ID)
		}
		wanted := make(map[string]bool)
		if err := c.collect(&ch, id, g, wanted); err != nil {
			return invalid(err)
		}
		for _, a := range c.sorted() { // a PUT says all that is in the group
			if r.Method == http.MethodPut && !wanted[a.id] && (id == "/" || strings.HasPrefix(a.id, id+"/")) {
				ch.gone = append(ch.gone, a.id)
			}
		}
		ch.group = id
		status := http.StatusOK
		if r.Method == http.MethodPost {
			status = http.StatusCreated
		}
		return c.respond(ch, status)
	}
	return answer{status: http.StatusMethodNotAllowed}
}

type wireGroup struct {
	ID     string                       `json:"id"`
	Apps   []map[string]json.RawMessage `json:"apps"`
	Groups []wireGroup                  `json:"groups"`
}

// join makes an id that may be relative absolute.
func join(group, id string) string {
	if strings.HasPrefix(id, "/") {
		return id
	}
	return strings.TrimSuffix(group, "/") + "/" + id
}

func (c *Cluster) collect(ch *change, group string, g wireGroup, wanted map[string]bool) error {
	for _, members := range g.Apps {
		var id string
		if err := json.Unmarshal(members["id"], &id); err != nil {
			return fmt.Errorf("app in group %s: id: %w", group, err)
		}
		def, err := c.newDefinition(join(group, id), members, false)
		if err != nil {
			return err
		}
		wanted[def.id] = true
		ch.want = append(ch.want, def)
	}
	for _, inner := range g.Groups {
		if err := c.collect(ch, join(group, inner.ID), inner, wanted); err != nil {
			return err
		}
	}
	return nil
}

// cancelDeployment stops a deployment where it is. Marathon then deploys the state of before; with
// ?force=true it does not, which is what is played here.
func (c *Cluster) cancelDeployment(id string) answer {
	for _, d := range c.deployments {
		if d.id == id {
			c.finish(d, "cancelled")
			return answer{status: http.StatusAccepted}
		}
	}
	return messageAnswer(http.StatusNotFound, fmt.Sprintf("DeploymentPlan %s does not exist", id))
}
