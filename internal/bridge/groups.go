package bridge

import (
	"maps"
	"slices"

	"bridged/internal/discovery"
)

// mergedUnit is what the apps of a unit amount to.
type mergedUnit struct {
	owner    *member // whose definition and labels count
	parts    []*member
	draining map[string]bool // ids of tasks to drain
}

// mergeUnit folds the apps of a deployment group into one, in the order of their ids,
// by marathon-lb's formula: the older app's definition with the tasks of both, where
// as many old tasks drain as new ones can stand in for. It returns nil for an empty unit.
func mergeUnit(u *unit) *mergedUnit {
	var g *mergedUnit
	for _, id := range slices.Sorted(maps.Keys(u.members)) {
		m := u.members[id]
		if g == nil {
			g = &mergedUnit{owner: m, parts: []*member{m}}
			continue
		}
		g = g.merge(m)
	}
	return g
}

// merge adds the next app of a deployment group. It counts what stands, where
// marathon-lb counts what was asked for: the two differ while tasks start and while they
// are killed, and then an app without checks would drain the old one before a task of
// the new one runs, and the tasks that a deployment tool has drained and now kills would
// get traffic again for as long as they live.
func (g *mergedUnit) merge(cur *member) *mergedUnit {
	old, fresh := g, &mergedUnit{owner: cur, parts: []*member{cur}}
	if !g.owner.dep.started.Before(cur.dep.started) {
		old, fresh = fresh, old
	}
	target := 1
	if fresh.owner.dep.hasNewInstances {
		// The target is that of this deployment, whichever way it goes: the older app's label
		// is about the deployment that brought it.
		target = old.app().Instances
		if fresh.owner.dep.hasTarget {
			target = fresh.owner.dep.target
		}
		// An operator who scaled the old app last is going back: the roles swap.
		if old.app().LastScaling > fresh.app().LastScaling {
			old, fresh = fresh, old
		}
	}
	out := &mergedUnit{owner: old.owner, parts: slices.Concat(old.parts, fresh.parts), draining: make(map[string]bool)}
	maps.Copy(out.draining, g.draining)
	healthy, leaving := fresh.standing()
	out.drain(fresh, leaving)
	have, leaving := old.standing()
	out.drain(old, leaving+max(0, min(healthy, healthy+have-target)))
	return out
}

// drain marks the first n tasks of a part, in the order of their ids.
func (g *mergedUnit) drain(part *mergedUnit, n int) {
	ids := part.tasks()
	for _, id := range ids[:min(n, len(ids))] {
		g.draining[id] = true
	}
}

func (g *mergedUnit) app() *discovery.App { return g.owner.app() }

// app is the definition that the app's services share.
func (m *member) app() *discovery.App { return m.depFrom }

// tasks lists the ids of all tasks.
func (g *mergedUnit) tasks() []string {
	ids := make(map[string]bool)
	for _, m := range g.parts {
		for _, s := range m.services {
			for i := range s.Tasks {
				ids[s.Tasks[i].ID] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(ids))
}

// standing counts the tasks that serve and are to go on: running and healthy, at most as
// many as the apps have instances. leaving are those beyond, which Marathon is about
// to kill.
func (g *mergedUnit) standing() (stay, leaving int) {
	for _, m := range g.parts {
		serving := make(map[string]bool)
		for _, s := range m.services {
			for i := range s.Tasks {
				t := &s.Tasks[i]
				if t.State == discovery.Running && t.Ready && (t.Health == discovery.Alive || t.Health == discovery.NoChecks) {
					serving[t.ID] = true
				}
			}
		}
		n := min(len(serving), m.app().Instances)
		stay += n
		leaving += len(serving) - n
	}
	return stay, leaving
}
