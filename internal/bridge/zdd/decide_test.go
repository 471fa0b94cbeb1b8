package zdd

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// world is a Marathon and some load balancers, reduced to what decide sees. Load balancers
// are told late, sessions end when they like, and tasks take their time.
type world struct {
	rng    *rand.Rand
	clock  int
	apps   []*app // older first
	lbs    []map[string]server
	target int
}

func newWorld(rng *rand.Rand, target, balancers int) *world {
	w := &world{rng: rng, target: target}
	for range balancers {
		w.lbs = append(w.lbs, map[string]server{})
	}
	w.add("/web-blue", target)
	for i := range w.apps[0].tasks {
		w.apps[0].tasks[i].stands = true
	}
	w.add("/web-green", 1)
	return w
}

func (w *world) add(id string, n int) {
	a := &app{id: id, target: w.target}
	w.apps = append(w.apps, a)
	w.scale(a, n)
}

func (w *world) scale(a *app, n int) {
	for len(a.tasks) < n {
		w.clock++
		a.tasks = append(a.tasks, task{id: fmt.Sprintf("%s.%d", a.id, w.clock)})
	}
	a.instances = n
	w.clock++
	a.lastScaling = fmt.Sprintf("%09d", w.clock)
}

// rule is which tasks a load balancer drains: those of the app begun first, as many as the
// other has healthy ones beyond the target, or the other way round when the first was
// scaled last (marathon_lb.py, merge of deployment groups).
func (w *world) rule() map[string]bool {
	if len(w.apps) < 2 {
		return nil
	}
	old, fresh := w.apps[0], w.apps[1]
	if old.lastScaling > fresh.lastScaling {
		old, fresh = fresh, old
	}
	n := max(0, min(fresh.standing(), fresh.standing()+min(old.standing(), old.instances)-w.target))
	drained := map[string]bool{}
	for _, t := range old.tasks[:min(n, len(old.tasks))] {
		drained[t.id] = true
	}
	return drained
}

// passes is a moment in which something may happen by itself.
func (w *world) passes() {
	for _, a := range w.apps {
		for i := range a.tasks {
			if !a.tasks[i].stands && w.rng.IntN(3) == 0 {
				a.tasks[i].stands = true
			}
		}
	}
	for _, lb := range w.lbs {
		if w.rng.IntN(2) == 0 {
			continue
		}
		drained := w.rule()
		seen := map[string]server{}
		for _, a := range w.apps {
			for _, t := range a.tasks {
				s := server{present: t.stands, ready: t.stands && !drained[t.id], sessions: lb[t.id].sessions}
				if s.ready {
					s.sessions = w.rng.IntN(3)
				} else if w.rng.IntN(2) == 0 {
					s.sessions = 0
				}
				seen[t.id] = s
			}
		}
		clear(lb)
		for id, s := range seen {
			lb[id] = s
		}
	}
}

func (w *world) view() *view {
	v := &view{}
	for _, a := range w.apps {
		seen := *a
		seen.tasks = slices.Clone(a.tasks)
		for _, t := range a.tasks {
			if !t.stands {
				seen.deployments = 1
			}
		}
		v.apps = append(v.apps, &seen)
	}
	for i, lb := range w.lbs {
		v.balancers = append(v.balancers, &balancerView{name: fmt.Sprint("lb", i), servers: lb, counts: true})
	}
	return v
}

// standing counts the tasks of all apps that serve.
func (w *world) standing() int {
	n := 0
	for _, a := range w.apps {
		n += a.standing()
	}
	return n
}

func (w *world) take(t *testing.T, s step) {
	i := slices.IndexFunc(w.apps, func(a *app) bool { return a.id == s.app })
	switch s.action {
	case scale:
		if s.instances <= w.apps[i].instances {
			t.Errorf("scaled down to %d: which tasks end is not ours to say then", s.instances)
		}
		w.scale(w.apps[i], s.instances)
	case kill, remove:
		gone := s.tasks
		if s.action == remove {
			gone = ids(w.apps[i].tasks)
		}
		for _, id := range gone {
			for _, lb := range w.lbs {
				if have := lb[id]; have.ready || have.sessions > 0 {
					t.Errorf("task %s is killed with %d sessions, ready %v", id, have.sessions, have.ready)
				}
			}
		}
		a := w.apps[i]
		a.tasks = slices.DeleteFunc(a.tasks, func(u task) bool { return slices.Contains(gone, u.id) })
		w.scale(a, a.instances-len(gone))
		if s.action == remove {
			w.apps = slices.Delete(w.apps, i, i+1)
		}
	}
}

// However late things happen and however often the operator turns round, no task is
// killed that has sessions, capacity never falls below the target, and in the end the
// app that was asked for is left, with all its instances.
func TestWalk(t *testing.T) {
	for seed := range uint64(2000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		w := newWorld(rng, 1+rng.IntN(9), rng.IntN(3))
		var log []string
		modes := []Mode{Resume, Complete, Abort}
		mode := Resume
		left := rng.IntN(4) // turns of the operator
		finished := false
		for turn := 0; turn < 5000 && !finished; turn++ {
			w.passes()
			if len(w.apps) < 2 {
				break
			}
			if left > 0 && rng.IntN(12) == 0 {
				left--
				mode = modes[rng.IntN(3)]
				log = append(log, fmt.Sprint("mode ", mode))
			}
			v := w.view()
			r := &runner{o: Options{Mode: mode, Linear: rng.IntN(2)}} // died, and started anew
			for _, a := range v.apps {
				a.goal = 0
			}
			g, _, err := r.begin(v)
			if err != nil {
				t.Fatal(err)
			}
			s := decide(g, v)
			if s.action != wait {
				log = append(log, fmt.Sprintf("%d/%d  %s %s", w.standing(), w.target, describe(s), s.why))
			}
			w.take(t, s)
			if n := w.standing(); n < w.target {
				t.Errorf("%d tasks serve, target %d", n, w.target)
			}
			finished = s.action == done
			if t.Failed() {
				break
			}
		}
		if len(w.apps) != 1 {
			t.Errorf("not done: %s", decide(goal{target: w.target, stay: w.target, direction: map[bool]direction{true: back}[mode == Abort]}, w.view()).why)
		} else if a := w.apps[0]; a.instances != w.target || mode == Complete && a.id != "/web-green" || mode == Abort && a.id != "/web-blue" {
			t.Errorf("in the end %s with %d instances of %d is left", a.id, a.instances, w.target)
		}
		if t.Failed() {
			t.Fatalf("seed %d, mode %d:\n%s", seed, mode, strings.Join(log, "\n"))
		}
	}
}
