package bridge

import (
	"bridged/internal/discovery"
	"bridged/internal/haproxy"
)

// admit decides whether a task gets traffic. ok is false when it has no server at all.
//
// A task that was never ready or never judged is left out: it has nothing to lose. One
// that is on its way out drains. One that Marathon calls dead is held in maintenance,
// since it may come back; dialect marathon-lb leaves it out, because its deployment
// tools take a server in maintenance for one that finished draining.
func (t *Translator) admit(v *view, task *discovery.Task) (state haproxy.State, ok bool) {
	if !task.Addr.IsValid() {
		return 0, false
	}
	if !task.Ready {
		return 0, false
	}
	if t.opts.Health.asksMarathon() {
		switch task.Health {
		case discovery.HealthUnknown:
			return 0, false
		case discovery.Dead:
			return haproxy.Maint, t.opts.Dialect != DialectMarathonLB
		}
	}
	switch {
	case task.State == discovery.Killing, v.draining[task.ID]:
		// marathon-lb drops a task that is being killed; draining is kinder to the requests
		// in flight.
		return haproxy.Drain, true
	case task.State == discovery.Running, task.State == discovery.Unreachable && !t.opts.DropUnreachable:
		return haproxy.Ready, true
	}
	return 0, false
}
