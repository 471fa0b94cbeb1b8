package bridge

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"bridged/internal/discovery"
)

// benchWorld is n services of 10 tasks, each with a vhost of its own.
func benchWorld(n int) []*discovery.Service {
	services := make([]*discovery.Service, n)
	for i := range services {
		app := &discovery.App{ID: fmt.Sprintf("/team%d/app%d", i%50, i), Version: "1", Instances: 10,
			Ports:  []discovery.Port{{Service: uint16(10000 + i), Protocol: "tcp"}},
			Labels: map[string]string{"HAPROXY_GROUP": "external", "HAPROXY_0_VHOST": fmt.Sprintf("app%d.example.com", i), "owner": "team"},
			Checks: []discovery.HealthCheck{{Protocol: "HTTP", Path: "/health"}}}
		services[i] = &discovery.Service{Key: discovery.Key{App: app.ID}, App: app, Port: app.Ports[0]}
		for task := range 10 {
			services[i].Tasks = append(services[i].Tasks, discovery.Task{ID: fmt.Sprintf("%d.%d", i, task), App: app.ID, Host: fmt.Sprintf("agent%d", task),
				Addr:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(task)}), 31000),
				State: discovery.Running, Health: discovery.Alive, Ready: true})
		}
	}
	return services
}

// One service of many changes: a task dies and comes back in turn. The cost must not
// depend on the number of services.
func BenchmarkTranslate(b *testing.B) {
	for _, dialect := range []Dialect{DialectBridge, DialectMarathonLB} {
		for _, n := range []int{10, 100, 1000, 10000} {
			b.Run(fmt.Sprintf("dialect=%s/services=%d", dialect, n), func(b *testing.B) {
				tr := NewTranslator(TranslateOptions{Dialect: dialect})
				services := benchWorld(n)
				tr.Apply(&discovery.Update{Full: true, Services: services}, time.Time{})
				one := services[n/2]
				fewer := *one
				fewer.Tasks = one.Tasks[:9]
				updates := [2]*discovery.Update{{Services: []*discovery.Service{&fewer}}, {Services: []*discovery.Service{one}}}
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					c := tr.Apply(updates[i%2], time.Time{})
					if len(c.Backends) != 1 {
						b.Fatalf("%d backends changed", len(c.Backends))
					}
					i++
				}
			})
		}
	}
}

// The first update of a start, and a resync that changes nothing.
func BenchmarkTranslateAll(b *testing.B) {
	for _, n := range []int{100, 1000} {
		services := benchWorld(n)
		b.Run(fmt.Sprintf("first/services=%d", n), func(b *testing.B) {
			for b.Loop() {
				NewTranslator(TranslateOptions{}).Apply(&discovery.Update{Full: true, Services: services}, time.Time{})
			}
		})
		b.Run(fmt.Sprintf("resync/services=%d", n), func(b *testing.B) {
			tr := NewTranslator(TranslateOptions{})
			for b.Loop() {
				tr.Apply(&discovery.Update{Full: true, Services: services}, time.Time{})
			}
		})
	}
}

// What one touched service costs in memory does not grow with the number of services.
func TestTranslateAllocationsAreFlat(t *testing.T) {
	allocs := func(n int) float64 {
		tr := NewTranslator(TranslateOptions{})
		services := benchWorld(n)
		tr.Apply(&discovery.Update{Full: true, Services: services}, time.Time{})
		fewer := *services[0]
		fewer.Tasks = fewer.Tasks[:9]
		updates := [2]*discovery.Update{{Services: []*discovery.Service{&fewer}}, {Services: services[:1]}}
		i := 0
		return testing.AllocsPerRun(100, func() { tr.Apply(updates[i%2], time.Time{}); i++ })
	}
	if few, many := allocs(10), allocs(3000); many > few+1 {
		t.Errorf("one of 10 services takes %.0f allocations, one of 3000 takes %.0f", few, many)
	}
}
