package zdd

import (
	"fmt"
	"time"
)

// direction is which of the two apps is to stay.
type direction int

const (
	forward direction = iota // the newer one
	back                     // the older one
)

// goal is where a run goes. It is found out again, from Marathon alone, by each run.
type goal struct {
	direction direction
	// stay is how many instances the app that stays is to have in the end; fewer than
	// target when both apps go on together.
	stay   int
	target int // instances of both together

	linear    int           // instances added at a time; 0: half of those there are
	drain     time.Duration // for load balancers that count no sessions
	killAfter time.Duration // 0: never kill a task that has sessions
}

type action int

const (
	wait action = iota
	create
	scale
	kill
	remove
	done
)

func (a action) String() string {
	return [...]string{"wait", "create", "scale", "kill", "delete", "done"}[a]
}

// step is what to do next.
type step struct {
	action    action
	app       string // id
	instances int    // of scale
	tasks     []string
	force     bool   // of remove: deployments of the app don't matter
	why       string // what is waited for, or why it is done
}

func waitFor(format string, args ...any) step {
	return step{action: wait, why: fmt.Sprintf(format, args...)}
}

// decide chooses the next step towards g. It is pure, and safe to ask again after a step
// whose outcome is not known.
//
// lead is the app that stays, trail the one that goes. With both at hand load balancers drain, of
// the app that was begun first, as many tasks as the other's can stand in for; but when
// the older app was scaled last it is the other way round (marathon-lb's rule, and
// bridged's). So lead has to be the one scaled last whenever there is something to drain.
func decide(g goal, v *view) step {
	if len(v.apps) == 1 {
		return single(v.apps[0], v)
	}
	lead, trail := v.apps[1], v.apps[0]
	if g.direction == back {
		lead, trail = trail, lead
	}
	// The app that is given up may hang in a deployment that never ends: that is why it is given up.
	for _, a := range v.apps {
		if a.deployments > 0 && !(g.direction == back && a == trail) {
			return waitFor("%s: Marathon deploys, %d of %d healthy", a.id, a.standing(), a.instances)
		}
	}
	if g.direction == back && lead.instances < g.stay {
		return step{action: scale, app: lead.id, instances: g.stay, why: "going back"}
	}
	if n := lead.standing(); n < lead.instances {
		return waitFor("%s: %d of %d healthy", lead.id, n, lead.instances)
	}
	if s, ok := routed(lead, v, drainsOf(lead, v, g)); !ok {
		return s
	}
	surplus := lead.standing() + min(trail.standing(), trail.instances) - g.target
	switch n := min(trail.standing(), lead.standing(), surplus); {
	case n > 0 && leads(lead, v):
		return release(g, v, lead, trail, n)
	case n > 0 && lead.instances < g.stay:
		return step{action: scale, app: lead.id, instances: grown(lead.instances, g), why: "so that the other app drains"}
	case n > 0:
		// Nothing can be added: the load balancers drain tasks of the app that stays.
		// Those are replaced, which makes it the one that was scaled last.
		return release(g, v, trail, lead, min(n, lead.standing()))
	case lead.instances < g.stay:
		return step{action: scale, app: lead.id, instances: grown(lead.instances, g), why: "next step"}
	case g.stay < g.target:
		return step{action: done, why: fmt.Sprintf("%s has %d instances beside %d of %s, as asked for", lead.id, lead.instances, trail.instances, trail.id)}
	case serves(trail, v) != "":
		return waitFor("%s", serves(trail, v))
	}
	return step{action: remove, app: trail.id, force: g.direction == back, why: "none of its tasks serves"}
}

// single is the end of a deployment, or the first one of an app.
func single(a *app, v *view) step {
	if a.deployments > 0 {
		return waitFor("%s: Marathon deploys, %d of %d healthy", a.id, a.standing(), a.instances)
	}
	if n := a.standing(); n < a.instances {
		return waitFor("%s: %d of %d healthy", a.id, n, a.instances)
	}
	if s, ok := routed(a, v, 0); !ok {
		return s
	}
	return step{action: done, why: fmt.Sprintf("%s serves with %d instances", a.id, a.instances)}
}

// leads says whether load balancers drain the other app in favour of this one.
func leads(a *app, v *view) bool {
	old, fresh := v.apps[0], v.apps[1]
	swapped := fresh.goal >= 0 && old.lastScaling > fresh.lastScaling
	return (a == fresh) != swapped
}

// drainsOf is how many tasks of lead load balancers may have drained: none when it leads.
func drainsOf(lead *app, v *view, g goal) int {
	if leads(lead, v) {
		return 0
	}
	return lead.standing()
}

// routed says whether every load balancer knows each healthy task of an app, and sends
// connections to all but some of them.
func routed(a *app, v *view, but int) (step, bool) {
	for _, b := range v.balancers {
		if b.busy != "" {
			return waitFor("%s: %s", b.name, b.busy), false
		}
		ready := 0
		for _, t := range a.tasks {
			s := b.servers[t.id]
			if t.stands && !s.present {
				return waitFor("%s does not have task %s yet", b.name, t.id), false
			}
			if t.stands && s.ready {
				ready++
			}
		}
		if want := a.standing() - but; ready < want {
			return waitFor("%s routes to %d of %d tasks of %s", b.name, ready, want, a.id), false
		}
	}
	return step{}, true
}

// serves says which load balancer still sends connections to an app.
func serves(a *app, v *view) string {
	for _, b := range v.balancers {
		for _, t := range a.tasks {
			if s := b.servers[t.id]; s.ready || s.sessions > 0 {
				return fmt.Sprintf("%s still has connections for task %s", b.name, t.id)
			}
		}
	}
	return ""
}

// release ends n tasks of trail, or trail itself, once they are drained and idle.
func release(g goal, v *view, lead, trail *app, n int) step {
	drained, why := drainedTasks(v, lead, trail, n, lead.instances+trail.instances-g.target)
	if drained == nil {
		return waitFor("%s", why)
	}
	standing := 0
	for _, t := range drained {
		if t.stands {
			standing++
		}
		if why := busy(g, v, t); why != "" {
			return waitFor("%s", why)
		}
	}
	all := len(drained) == len(trail.tasks)
	leaving := (g.direction == forward) == (trail == v.apps[0])
	if all && leaving && lead.instances >= g.stay && g.stay >= g.target {
		return step{action: remove, app: trail.id, force: g.direction == back, tasks: ids(drained), why: "all of its tasks are drained"}
	}
	if leaving && g.direction == back {
		// Killing some would make it the app that was scaled last.
		return waitFor("%d of %d tasks of %s drain", len(drained), len(trail.tasks), trail.id)
	}
	return step{action: kill, app: trail.id, tasks: ids(drained),
		why: fmt.Sprintf("drained, %d go on", lead.standing()+trail.standing()-standing)}
}

// drainedTasks are n standing tasks of trail that every load balancer has drained, and some
// that don't stand, most in all; nil and a reason when there are not so many. Without
// load balancers they are those that one would drain: the first by id.
func drainedTasks(v *view, lead, trail *app, n, most int) ([]task, string) {
	var list []task
	taken := 0
	for _, t := range trail.tasks {
		out := true
		for _, b := range v.balancers {
			if s := b.servers[t.id]; s.ready {
				out = false
			}
		}
		if !out || t.stands && taken == n || !t.stands && len(list)-taken >= most-n {
			continue
		}
		if t.stands {
			taken++
		}
		list = append(list, t)
	}
	if taken < n {
		return nil, fmt.Sprintf("%d of %d tasks of %s drain, for %d of %s", taken, n, trail.id, lead.standing(), lead.id)
	}
	return list, ""
}

// busy says why a drained task cannot be killed yet.
func busy(g goal, v *view, t task) string {
	if !t.stands {
		return ""
	}
	for _, b := range v.balancers {
		if n := b.servers[t.id].sessions; n > 0 && (g.killAfter == 0 || v.drained[t.id] < g.killAfter) {
			return fmt.Sprintf("%s has %d sessions at drained task %s", b.name, n, t.id)
		}
	}
	for _, b := range v.balancers {
		if b.counts {
			return ""
		}
	}
	if v.drained[t.id] < g.drain {
		return fmt.Sprintf("task %s is drained since %v, of %v", t.id, v.drained[t.id].Round(time.Second), g.drain)
	}
	return ""
}

// grown is the number of instances after the next step.
func grown(n int, g goal) int {
	more := g.linear
	if more <= 0 {
		more = (n + 1) / 2
	}
	return min(g.stay, n+max(1, more))
}

func ids(tasks []task) []string {
	list := make([]string, len(tasks))
	for i, t := range tasks {
		list[i] = t.id
	}
	return list
}
