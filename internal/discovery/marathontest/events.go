package marathontest

import (
	"strings"
	"time"
)

// Event is one event as it was published.
type Event struct {
	Seq  int64 // counts all events of the cluster, from 1
	Type string
	App  string    // app or run spec it is about, "" for none
	Task string    // task it is about, "" for none; for events that name an instance, the task of that instance
	At   time.Time // when it was handed to the streams; the state it tells of was visible before
	JSON []byte    // one line; light plans where the version has a choice

	heavy []byte // the same with root groups in the plan; nil if there is no such form
	frame []byte // as on the wire
	fat   []byte // heavy, as on the wire
}

const stampForm = "2006-01-02T15:04:05.000Z"

func stamp(t time.Time) string { return t.UTC().Format(stampForm) }

// publish hands an event to everyone who listens. The lock is held, so whoever
// asks after having read the event sees the state it tells of, or a newer one.
func (c *Cluster) publish(kind, app, task string, body *object) {
	c.publishBoth(kind, app, task, body, nil)
}

func (c *Cluster) publishBoth(kind, app, task string, body, heavy *object) {
	now := time.Now()
	finish := func(o *object) []byte {
		o.str("eventType", kind)
		o.str("timestamp", stamp(now))
		return o.end()
	}
	ev := &Event{Type: kind, App: app, Task: task, At: now, JSON: finish(body)}
	if heavy != nil {
		ev.heavy = finish(heavy)
	}
	c.deliver(ev)
}

func (c *Cluster) deliver(ev *Event) {
	c.seq++
	ev.Seq = c.seq
	ev.frame = c.profile.frame(ev.Type, ev.JSON)
	if ev.heavy != nil {
		ev.fat = c.profile.frame(ev.Type, ev.heavy)
	}
	c.counts[ev.Type]++
	if c.opts.OnEvent != nil {
		c.opts.OnEvent(*ev)
	}
	for _, s := range c.streams {
		c.route(s, ev)
	}
	for _, s := range c.subscriptions {
		c.route(s, ev)
	}
}

// frame is the event as the version writes it on a stream. The first versions wrote no event line.
func (p *profile) frame(kind string, data []byte) []byte {
	b := make([]byte, 0, len(kind)+len(data)+24)
	if p.eventLine {
		b = append(b, "event: "...)
		b = append(b, kind...)
		b = append(b, "\r\n"...)
	}
	b = append(b, "data: "...)
	b = append(b, data...)
	return append(b, "\r\n\r\n"...)
}

// statusEvent publishes a status_update_event, if the version sends one for this change.
func (c *Cluster) statusEvent(t *task, message string) {
	p := c.profile
	if !p.allStates && t.state != stateRunning && !t.terminal && t.state != stateLost {
		return
	}
	o := newObject(512)
	o.str("slaveId", t.agent)
	o.str("taskId", t.id)
	o.str("taskStatus", t.state)
	o.str("message", message)
	o.str("appId", t.app.id)
	o.str("host", t.host)
	if addresses := p.addresses(t); p.ipAddresses && (len(addresses) > 0 || p.ipList() || p.instances) {
		o.raw("ipAddresses", array(addresses...))
	}
	o.ints("ports", t.ports)
	o.str("version", t.def.version)
	c.publish("status_update_event", t.app.id, t.id, o)
}

func (c *Cluster) instanceEvent(t *task) {
	if !c.profile.instances {
		return
	}
	o := newObject(320)
	o.str("instanceId", t.instance)
	o.str("condition", t.condition)
	o.str("runSpecId", t.app.id)
	if t.condition == "Scheduled" {
		o.null("agentId")
		o.null("host")
	} else {
		o.str("agentId", t.agent)
		o.str("host", t.host)
	}
	o.str("runSpecVersion", t.def.version)
	// Hand-made serializer: timestamp before eventType.
	c.publishInstance("instance_changed_event", t, o)
}

func (c *Cluster) publishInstance(kind string, t *task, o *object) {
	now := time.Now()
	o.str("timestamp", stamp(now))
	o.str("eventType", kind)
	c.deliver(&Event{Type: kind, App: t.app.id, Task: t.id, At: now, JSON: o.end()})
}

// combinedHealthEvent publishes instance_health_changed_event if the combined verdict changed.
func (c *Cluster) combinedHealthEvent(t *task) {
	verdict := t.combined()
	if verdict == nil && t.healthy == nil || verdict != nil && t.healthy != nil && *verdict == *t.healthy {
		return
	}
	t.healthy = verdict
	native := len(t.def.checks) > 0 && t.def.checks[0].mesosNative()
	if !c.profile.instances || !native && !c.profile.combinedHealth {
		return
	}
	o := newObject(256)
	o.str("instanceId", t.instance)
	o.str("runSpecId", t.app.id)
	if verdict == nil {
		o.null("healthy")
	} else {
		o.bool("healthy", *verdict)
	}
	o.str("runSpecVersion", t.def.version)
	c.publishInstance("instance_health_changed_event", t, o)
}

// checkEvents publishes what one flip of one health check causes.
func (c *Cluster) checkEvents(t *task, i int) {
	p, h := c.profile, t.def.checks[i]
	if p.instances && h.mesosNative() {
		// Mesos tells of its own checks by repeating the status.
		c.statusEvent(t, "")
		return
	}
	if !t.checks[i].alive {
		o := newObject(384)
		o.str("appId", t.app.id)
		switch {
		case p.raml:
			o.str("taskId", t.instance) // the member's name stayed, its meaning did not
		case p.instances:
			o.str("instanceId", t.instance)
		default:
			o.str("taskId", t.id)
		}
		o.raw("healthCheck", p.healthCheck(h))
		c.publish("failed_health_check_event", t.app.id, t.id, o)
	}
	o := newObject(256)
	o.str("appId", t.app.id)
	if p.instances {
		o.str("instanceId", t.instance)
	} else {
		o.str("taskId", t.id)
	}
	o.str("version", t.def.version)
	o.bool("alive", t.checks[i].alive)
	c.publish("health_status_changed_event", t.app.id, t.id, o)
}

func (c *Cluster) addCheckEvents(d *definition) {
	for _, h := range d.checks {
		o := newObject(384)
		o.str("appId", d.id)
		o.str("version", d.version)
		o.raw("healthCheck", c.profile.healthCheck(h))
		c.publish("add_health_check_event", d.id, "", o)
	}
}

func (c *Cluster) unhealthyKillEvent(t *task, reason string) {
	p := c.profile
	if !p.since(1, 0, 0) {
		return
	}
	kind := "unhealthy_task_kill_event"
	o := newObject(384)
	o.str("appId", t.app.id)
	o.str("taskId", t.id)
	if p.instances {
		kind = "unhealthy_instance_kill_event"
		o.str("instanceId", t.instance)
	}
	o.str("version", t.def.version)
	o.str("reason", reason)
	o.str("host", t.host)
	o.str("slaveId", t.agent)
	c.publish(kind, t.app.id, t.id, o)
}

// postEvent publishes api_post_event with the definition as given.
func (c *Cluster) postEvent(clientIP, uri string, d *definition) {
	o := newObject(1024)
	o.str("clientIp", clientIP)
	o.str("uri", uri)
	o.raw("appDefinition", closed(c.profile.appJSON(d)))
	c.publish("api_post_event", d.id, "", o)
}

func (c *Cluster) groupEvent(group, version string) {
	o := newObject(128)
	o.str("groupId", group)
	o.str("version", version)
	c.publish("group_change_success", "", "", o)
}

// closed completes an object that was kept open for more members.
func closed(open []byte) []byte {
	return append(open[:len(open):len(open)], '}')
}

// deploymentEvent publishes one of the events that hold a plan.
func (c *Cluster) deploymentEvent(kind string, d *deployment, fill func(o *object, plan []byte)) {
	build := func(heavy bool) *object {
		o := newObject(512)
		fill(o, c.planJSON(d, heavy))
		return o
	}
	app := strings.Join(d.apps(), ",")
	switch {
	case c.profile.plan == planByQuery:
		c.publishBoth(kind, app, "", build(false), build(true))
	case c.profile.plan == planHeavy || c.opts.HeavyEvents:
		c.publish(kind, app, "", build(true))
	default:
		c.publish(kind, app, "", build(false))
	}
}

func (c *Cluster) stepEvent(kind string, d *deployment) {
	c.deploymentEvent(kind, d, func(o *object, plan []byte) {
		o.raw("plan", plan)
		o.raw("currentStep", member("actions", c.profile.actionsJSON(d.steps[d.step])))
	})
}

func (c *Cluster) resultEvent(d *deployment, reason string) {
	kind := "deployment_success"
	if reason != "" {
		kind = "deployment_failed"
	}
	fill := func(o *object, plan []byte) {
		o.str("id", d.id)
		if c.profile.planInResult {
			o.raw("plan", plan)
		}
		if reason != "" && c.profile.reasonInFailure {
			o.str("reason", reason)
		}
	}
	c.deploymentEvent(kind, d, fill)
}

func (p *profile) actionsJSON(actions []action) []byte {
	out := make([][]byte, len(actions))
	for i, a := range actions {
		o := newObject(64)
		o.str(p.actionKey, a.kind)
		o.str("app", a.app)
		out[i] = o.end()
	}
	return array(out...)
}

// planJSON is the plan of a deployment. The heavy form holds every app of the cluster twice.
func (c *Cluster) planJSON(d *deployment, heavy bool) []byte {
	steps := make([][]byte, len(d.steps))
	for i, s := range d.steps {
		steps[i] = member("actions", c.profile.actionsJSON(s))
	}
	o := newObject(256)
	o.str("id", d.id)
	if heavy {
		if d.original == nil {
			d.original = c.groupJSON("/", false, nil)
		}
		target := d.target
		if target == nil {
			target = d.original
		}
		o.raw("original", d.original)
		o.raw("target", target)
	}
	o.raw("steps", array(steps...))
	o.str("version", d.version)
	return o.end()
}
