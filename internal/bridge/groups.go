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

// merge adds the next app of a deployment group.
func (g *mergedUnit) merge(cur *member) *mergedUnit {
	old, fresh := g, &mergedUnit{owner: cur, parts: []*member{cur}}
	if !g.owner.dep.started.Before(cur.dep.started) {
		old, fresh = fresh, old
	}
	target := 1
	if fresh.owner.dep.hasNewInstances {
		// An operator who scaled the old app last is going back: the roles swap.
		if old.app().LastScaling > fresh.app().LastScaling {
			old, fresh = fresh, old
		}
		target = old.app().Instances
		if fresh.owner.dep.hasTarget {
			target = fresh.owner.dep.target
		}
	}
	healthy := fresh.app().Instances
	if len(cur.app().Checks) > 0 {
		healthy = 0
		for _, alive := range fresh.tasks() {
			if alive {
				healthy++
			}
		}
	}
	oldTasks := old.tasks()
	drain := max(0, min(len(oldTasks), healthy, healthy+old.app().Instances-target))
	out := &mergedUnit{owner: old.owner, parts: slices.Concat(old.parts, fresh.parts), draining: make(map[string]bool)}
	maps.Copy(out.draining, g.draining)
	for _, id := range slices.Sorted(maps.Keys(oldTasks))[:drain] {
		out.draining[id] = true
	}
	return out
}

func (g *mergedUnit) app() *discovery.App { return g.owner.app() }

// app is the definition that the app's services share.
func (m *member) app() *discovery.App { return m.depFrom }

// tasks lists the ids of all tasks and whether they are alive.
func (g *mergedUnit) tasks() map[string]bool {
	tasks := make(map[string]bool)
	for _, m := range g.parts {
		for _, s := range m.services {
			for i := range s.Tasks {
				tasks[s.Tasks[i].ID] = s.Tasks[i].Health == discovery.Alive
			}
		}
	}
	return tasks
}
