package discovery

import "time"

// instanceKey is what the ids of an instance and of its tasks have in common: the UUID,
// or the whole id where there is none.
//
//	shop_cart.0f3bc0de-…            0.8 to 1.7
//	shop_cart.marathon-0f3bc0de-…   1.4 to 1.7, the instance
//	shop_cart.instance-0f3bc0de-…._app.2   1.8 and newer
func instanceKey(id string) string {
	const length = 36 // 8-4-4-4-12
	// The UUID is near the end, behind the last dots: app ids may hold anything.
	for i := len(id) - length; i >= 0; i-- {
		if id[i+8] == '-' && (i == 0 || id[i-1] == '.' || id[i-1] == '-') && isUUID(id[i:i+length]) {
			return id[i : i+length]
		}
	}
	return id
}

func isUUID(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
				return false
			}
		}
	}
	return true
}

// conditions is the newest run of equal conditions of an instance. From Marathon 1.8 on
// a condition is repeated when only the goal changed: a kill is wanted. The run comes
// out the same in whatever order the events come.
type conditions struct {
	phase    phase
	from, to int64 // first and last event of the run
	broken   int64 // newest event of another condition before the run's end
	answered bool  // from is a task's start as an answer tells it
}

// startSlack is how much later than a task's start its event may be stamped, in
// milliseconds: the two are read off different clocks.
const startSlack = 10_000

func (c *conditions) note(p phase, at int64) {
	newer := at > c.to || at == c.to && p > c.phase
	switch {
	case c.phase == phaseNone:
		*c = conditions{phase: p, from: at, to: at}
	case newer && p != c.phase:
		*c = conditions{phase: p, from: at, to: at, broken: c.to}
	case newer:
		if c.answered && at-c.from < startSlack {
			c.from = at // the start itself
		}
		c.to, c.answered = at, false
	case p != c.phase:
		c.broken = max(c.broken, at)
		if c.from < at {
			c.from = c.to
		}
	case at > c.broken && !c.answered:
		c.from = min(c.from, at)
	}
}

// repeated: the instance was said to run, twice, and nothing else between.
func (c *conditions) repeated() bool { return c.phase == phaseRunning && c.to > c.from }

const (
	graveLife = 10 * time.Minute
	maxGraves = 16 << 10
)

// graveyard lets tombstones rest for graveLife, the oldest for less when there are too
// many. Late events come within seconds.
type graveyard struct {
	queue []grave // oldest first
	head  int
}

type grave struct {
	in *instance
	at int64 // Unix milliseconds
}

func (g *graveyard) bury(in *instance, now time.Time) {
	in.buried = now.UnixMilli()
	g.queue = append(g.queue, grave{in, in.buried})
}

// expire removes what rested long enough by now.
func (s *state) expire(now time.Time) {
	g := &s.graves
	old := now.Add(-graveLife).UnixMilli()
	for g.head < len(g.queue) {
		first := g.queue[g.head]
		if first.at > old && len(g.queue)-g.head <= maxGraves {
			break
		}
		g.queue[g.head] = grave{}
		g.head++
		if first.in.buried == first.at {
			s.exhume(first.in)
		}
	}
	if g.head > len(g.queue)/2 {
		g.queue = append([]grave(nil), g.queue[g.head:]...)
		g.head = 0
	}
}

// exhume forgets the tombstones of in, and in itself when nothing else is known of it.
func (s *state) exhume(in *instance) {
	for p := &in.first; *p != nil; {
		if (*p).phase == phaseGone {
			*p = (*p).next
		} else {
			p = &(*p).next
		}
	}
	in.goneAt = 0
	if in.first == nil && s.insts[in.key] == in {
		delete(s.insts, in.key)
	}
}
