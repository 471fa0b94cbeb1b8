package discovery

import (
	"maps"
	"slices"
	"time"
)

// changes follows changes of definitions, which Marathon tells in pieces: which group
// changed, which apps a deployment is about, and sometimes the new definition itself.
// No piece is enough alone, none is sure to come, and they come in any order. What
// they have in common is the version of the change.
type changes struct {
	known map[string]*change // by version
	next  time.Time          // when the first of them is due, zero for never
}

// change is one change of definitions.
type change struct {
	group   string   // that changed; "" while only the deployment is known
	apps    []string // named by the deployment
	settled bool     // an api_post_event told it all, or the fetches are under way
	due     time.Time
	expires time.Time
}

const (
	// companionWait is how long a change of a group waits for the event that names
	// its apps or holds the definition: they follow each other within milliseconds.
	companionWait = 50 * time.Millisecond
	// groupWait is how long a deployment waits for its change of a group, before which
	// its definitions can't be read.
	groupWait  = time.Second
	changeLife = time.Minute
)

// reload is what a change needs to be read again.
type reload struct {
	apps  []string
	group string // all below it, when the apps are not known; "/" for everything
}

func newChanges() *changes { return &changes{known: map[string]*change{}} }

// apply notes what e says of changes, and what needs no waiting in s.
func (c *changes) apply(e *event, s *state) {
	switch e.typ {
	case apiPost:
		switch {
		case !s.version.hasDefinitions():
			// Up to 0.10 it comes before the change, and even when the change then
			// fails. While the version is not known, it is better to ask.
			if s.version.known() {
				return
			}
			s.announce(e.app)
		case e.def == nil || !s.offer(e.def):
			s.announce(e.app)
		}
		if e.def != nil && e.def.Version != "" {
			c.at(e.def.Version, e.received).settled = true
		}
	case groupChange:
		ch := c.at(e.version, e.received)
		if ch.group == "" {
			ch.group = e.group
			c.wait(ch, e.received.Add(companionWait))
		}
	case deploymentInfo, deploymentStep, deploymentSuccess, deploymentFailed:
		if e.version == "" {
			return
		}
		ch, seen := c.known[e.version]
		if !seen {
			ch = c.at(e.version, e.received)
			c.wait(ch, e.received.Add(groupWait))
		}
		for _, id := range e.apps {
			if !slices.Contains(ch.apps, id) {
				ch.apps = append(ch.apps, id)
			}
		}
		if e.typ != deploymentInfo && !ch.settled {
			c.wait(ch, e.received) // it is under way or done: the definitions can be read
		}
	case appTerminated:
		s.want(e.app, debounce)
	}
}

func (c *changes) at(version string, now time.Time) *change {
	ch := c.known[version]
	if ch == nil {
		ch = &change{}
		c.known[version] = ch
	}
	ch.expires = now.Add(changeLife)
	return ch
}

func (c *changes) wait(ch *change, until time.Time) {
	ch.due = until
	c.next = sooner(c.next, until)
}

// due returns what has to be read by now, and when to ask again (zero: never).
func (c *changes) due(now time.Time) (reloads []reload, next time.Time) {
	if c.next.IsZero() || c.next.After(now) {
		return nil, c.next
	}
	c.next = time.Time{}
	for _, ch := range c.known {
		switch {
		case ch.settled || ch.due.IsZero():
		case ch.due.After(now):
			c.next = sooner(c.next, ch.due)
		default:
			ch.settled = true
			if len(ch.apps) > 0 {
				reloads = append(reloads, reload{apps: ch.apps})
			} else if ch.group != "" {
				reloads = append(reloads, reload{group: ch.group})
			}
		}
	}
	if len(c.known) > 64 {
		maps.DeleteFunc(c.known, func(_ string, ch *change) bool { return ch.expires.Before(now) })
	}
	return reloads, c.next
}
