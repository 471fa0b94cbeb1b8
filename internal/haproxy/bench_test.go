package haproxy

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"bridged/internal/haproxy/haproxytest"
)

// bigConfig has backends of ten servers each that nobody ever connects to, and whose
// checks are off.
func bigBackend(name string, number, servers int) *Backend {
	b := &Backend{Section: Section{Kind: KindBackend, Name: name, Mode: TCP}, Balance: "leastconn"}
	for i := range servers {
		n := number*servers + i
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, byte(n >> 8), byte(n)}), uint16(20000+n%10000))
		b.Servers = append(b.Servers, Server{Name: fmt.Sprintf("127_0_%d_%d_%d", n>>8&255, n&255, addr.Port()), Addr: addr, Weight: -1})
	}
	return b
}

func bigChange(global *Global, servers int) Change {
	c := Change{Global: global, Backends: make(map[string]*Backend)}
	for i := range servers / 10 {
		name := fmt.Sprintf("app-%d", i)
		c.Backends[name] = bigBackend(name, i, 10)
	}
	return c
}

// without takes the i-th server out of b.
func withoutServer(b *Backend, i int) *Backend {
	c := *b
	c.Servers = slices.Delete(slices.Clone(b.Servers), i, i+1)
	return &c
}

func BenchmarkDiff(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000} {
		for _, s := range []string{"dynamic-3.0", "slotted-2.6"} {
			b.Run(fmt.Sprintf("servers=%d/%s", n, s), func(b *testing.B) {
				how, caps := strategies[s].how, strategies[s].caps
				want := bigBackend("be", 0, n)
				have := loadedFrom(fileBackend(want, want, nil, how, sparesDouble))
				less := withoutServer(want, n/2)
				b.ReportAllocs()
				for b.Loop() {
					var p plan
					p.diffBackend("be", have, less, how, caps)
					if len(p.shrink) != 1 {
						b.Fatal(p)
					}
				}
			})
		}
	}
}

// report adds percentiles of samples in µs.
func report(b *testing.B, name string, samples []time.Duration) {
	slices.Sort(samples)
	for _, p := range []int{50, 99} {
		at := min(len(samples)-1, len(samples)*p/100)
		b.ReportMetric(float64(samples[at].Nanoseconds())/1e3, fmt.Sprintf("%s-p%d-µs", name, p))
	}
}

// BenchmarkApply is one task change, from the Change to HAProxy's answer, with a real
// HAProxy. raw is the same pair of commands written by hand on the same socket, empty a
// command that does nothing: the floor of this machine in this moment.
func BenchmarkApply(b *testing.B) {
	for _, bin := range haproxytest.Versions(b) {
		for _, n := range []int{100, 10000} {
			b.Run(fmt.Sprintf("haproxy=%s/servers=%d", bin.Name(), n), func(b *testing.B) {
				r := newDriver(b, bin)
				r.apply(bigChange(r.global, n))
				r.settle()
				all := r.backends["app-7"].want
				less := withoutServer(all, 3)
				raw, err := dial(b.Context(), r.opts.Socket)
				if err != nil {
					b.Fatal(err)
				}
				defer raw.close()
				h := &r.backends["app-8"].have.servers[0]
				pair := []Command{
					{Verb: SetState, Backend: "app-8", Server: h.Name, State: Maint},
					{Verb: SetState, Backend: "app-8", Server: h.Name, State: Ready},
				}
				var apply, base, empty []time.Duration
				b.ReportAllocs()
				for b.Loop() {
					for _, be := range []*Backend{less, all} {
						began := time.Now()
						res := r.Apply(b.Context(), Change{Backends: map[string]*Backend{"app-7": be}})
						apply = append(apply, time.Since(began))
						if res.Lane != LaneFast || res.Err != nil {
							b.Fatal(res)
						}
					}
					began := time.Now()
					if _, err := raw.batch(b.Context(), pair, func(int, []byte) {}); err != nil {
						b.Fatal(err)
					}
					base = append(base, time.Since(began))
					began = time.Now()
					if _, err := raw.query(b.Context(), "get weight app-8/"+h.Name); err != nil {
						b.Fatal(err)
					}
					empty = append(empty, time.Since(began))
				}
				report(b, "apply", apply)
				report(b, "raw-pair", base)
				report(b, "empty", empty)
			})
		}
	}
}

// BenchmarkApplyBulk is many changes at once beside the same commands written by hand
// without reading replies one by one: what HAProxy alone needs.
func BenchmarkApplyBulk(b *testing.B) {
	for _, bin := range haproxytest.Versions(b) {
		for _, n := range []int{1000, 10000} {
			b.Run(fmt.Sprintf("haproxy=%s/changes=%d", bin.Name(), n), func(b *testing.B) {
				r := newDriver(b, bin)
				full := bigChange(r.global, n)
				r.apply(full)
				r.settle()
				off := Change{Backends: make(map[string]*Backend)}
				for name := range full.Backends {
					be := *full.Backends[name]
					be.Servers = slices.Clone(be.Servers)
					for i := range be.Servers {
						be.Servers[i].State = Drain
					}
					off.Backends[name] = &be
				}
				on := Change{Backends: full.Backends}
				var lines [2][]Command
				for name, bs := range r.backends {
					for i := range bs.have.servers {
						if h := &bs.have.servers[i]; h.State == Ready {
							lines[0] = append(lines[0], Command{Verb: SetState, Backend: name, Server: h.Name, State: Drain})
							lines[1] = append(lines[1], Command{Verb: SetState, Backend: name, Server: h.Name, State: Ready})
						}
					}
				}
				raw, err := dial(b.Context(), r.opts.Socket)
				if err != nil {
					b.Fatal(err)
				}
				defer raw.close()
				var apply, base time.Duration
				for b.Loop() {
					began := time.Now()
					for _, c := range []Change{off, on} {
						if res := r.Apply(b.Context(), c); res.Err != nil || res.Commands != n {
							b.Fatal(res)
						}
					}
					apply += time.Since(began)
					began = time.Now()
					for _, commands := range lines {
						if _, err := raw.batch(b.Context(), commands, func(int, []byte) {}); err != nil {
							b.Fatal(err)
						}
					}
					base += time.Since(began)
				}
				b.ReportMetric(float64(apply.Microseconds())/float64(2*b.N*n), "apply-µs/change")
				b.ReportMetric(float64(base.Microseconds())/float64(2*b.N*n), "raw-µs/change")
				b.ReportMetric(float64(apply)/float64(base), "ratio")
			})
		}
	}
}

// BenchmarkMemory is what a Proxy keeps for its servers, wanted ones included, once
// everything has settled.
func BenchmarkMemory(b *testing.B) {
	for _, bin := range []haproxytest.Binary{haproxytest.Default(b), haproxytest.Newest(b)} {
		b.Run(fmt.Sprintf("haproxy=%s/servers=10000", bin.Name()), func(b *testing.B) {
			heap := func() int64 {
				var m runtime.MemStats
				runtime.GC()
				runtime.GC()
				runtime.ReadMemStats(&m)
				return int64(m.HeapAlloc)
			}
			for b.Loop() {
				r := newDriver(b, bin)
				before := heap()
				r.apply(bigChange(r.global, 10000))
				r.settle()
				b.ReportMetric(float64(heap()-before)/1e6, "MB")
				r.Close()
			}
		})
	}
}

// BenchmarkFirstConvergence is a bridge that starts beside an empty HAProxy, from the first
// Change to all servers served; reload is what HAProxy itself needs for the same file.
func BenchmarkFirstConvergence(b *testing.B) {
	for _, bin := range haproxytest.Versions(b) {
		b.Run(fmt.Sprintf("haproxy=%s/servers=10000", bin.Name()), func(b *testing.B) {
			var ours, own time.Duration
			for b.Loop() {
				r := newDriver(b, bin)
				change := bigChange(r.global, 10000)
				began := time.Now()
				r.apply(change)
				r.until("HAProxy matches", func() bool { return r.Status().Matches })
				ours += time.Since(began)
				r.settle()
				began = time.Now()
				r.hap.Reload(b)
				own += time.Since(began)
				r.Close()
				r.hap.Stop()
			}
			b.ReportMetric(float64(ours.Milliseconds())/float64(b.N), "bridged-ms")
			b.ReportMetric(float64(own.Milliseconds())/float64(b.N), "haproxy-ms")
			b.ReportMetric(float64(ours)/float64(own), "ratio")
		})
	}
}
