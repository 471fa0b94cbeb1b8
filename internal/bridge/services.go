package bridge

import (
	"cmp"
	"slices"
	"strings"

	"bridged/internal/discovery"
	"bridged/internal/haproxy"
)

// ServiceState is what became of one service, for people and metrics.
type ServiceState struct {
	App     string
	Index   int
	Port    uint16 // service port in force, 0: none
	Proxy   string // proxy name, "" when it is not served
	Mode    haproxy.Mode
	Tasks   int
	Servers []haproxy.Server // belongs to the Translator: read only
	Vhosts  []string
}

// Services lists every service, by app and index. It costs time in proportion to all
// services: it is for a page, not for an event.
func (t *Translator) Services() []ServiceState {
	var list []ServiceState
	for _, u := range t.units {
		for _, e := range u.entries {
			s := ServiceState{App: u.key.id, Index: e.index}
			if f := e.frag; f != nil {
				s.Port, s.Tasks = f.view.number, len(f.view.tasks)
			}
			if f := e.live; f != nil {
				s.Proxy, s.Mode, s.Servers, s.Vhosts = f.name, f.mode, f.backend.Servers, f.view.set.vhosts
			}
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b ServiceState) int {
		return cmp.Or(strings.Compare(a.App, b.App), cmp.Compare(a.Index, b.Index), strings.Compare(a.Proxy, b.Proxy))
	})
	return list
}

// TaskCounts counts the tasks of all services by state: alive, dead, unknown, unready,
// killing, unreachable.
func (t *Translator) TaskCounts() map[string]int {
	counts := map[string]int{"alive": 0, "dead": 0, "unknown": 0, "unready": 0, "killing": 0, "unreachable": 0}
	for _, m := range t.apps {
		seen := make(map[string]bool)
		for _, s := range m.services {
			for i := range s.Tasks {
				if task := &s.Tasks[i]; !seen[task.ID] {
					seen[task.ID] = true
					counts[taskKind(task)]++
				}
			}
		}
	}
	return counts
}

func taskKind(task *discovery.Task) string {
	switch {
	case task.State == discovery.Killing:
		return "killing"
	case task.State == discovery.Unreachable:
		return "unreachable"
	case !task.Ready:
		return "unready"
	case task.Health == discovery.Dead:
		return "dead"
	case task.Health == discovery.HealthUnknown:
		return "unknown"
	}
	return "alive"
}
