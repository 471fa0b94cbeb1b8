package discovery

import (
	"context"
	"testing"
	"time"

	"bridged/internal/discovery/marathontest"
)

// BenchmarkHeal is how long it takes after a fault until events are heard again and
// the whole picture was read, on real sockets. The metric ms/heal is the time from the
// moment at which Marathon can be reached.
func BenchmarkHeal(b *testing.B) {
	for name, fault := range map[string]func(c *marathontest.Cluster) error{
		"fault=dropped-stream": func(c *marathontest.Cluster) error {
			c.CutStreams(true)
			return nil
		},
		"fault=restart": func(c *marathontest.Cluster) error {
			c.Stop(c.Leader(), marathontest.Reset)
			return c.Resume(c.Leader())
		},
		"fault=leader-change": func(c *marathontest.Cluster) error { return c.Elect(1 - c.Leader()) },
	} {
		b.Run(name, func(b *testing.B) {
			c := marathontest.New(marathontest.Options{Nodes: 2})
			if err := c.Start(); err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			c.Load(50, 20)
			w, err := NewWatcher(Options{URLs: c.URLs()})
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error, 1)
			go func() { done <- w.Run(ctx) }()
			go func() {
				for {
					select {
					case <-w.Updates():
					case <-ctx.Done():
						return
					}
				}
			}()
			tick := time.NewTicker(200 * time.Microsecond)
			defer tick.Stop()
			healed := func(since time.Time) {
				for s := w.Status(); !s.Connected || !s.LastSync.After(since); s = w.Status() {
					<-tick.C
				}
			}
			healed(time.Time{})
			var sum time.Duration
			n := 0
			for b.Loop() {
				// A stream that ends at once is taken for a node that is not ready yet.
				b.StopTimer()
				<-time.After(1100 * time.Millisecond)
				b.StartTimer()
				began := time.Now()
				if err := fault(c); err != nil {
					b.Fatal(err)
				}
				healed(began)
				sum += time.Since(began)
				n++
			}
			b.ReportMetric(float64(sum.Microseconds())/1000/float64(n), "ms/heal")
			cancel()
			if err := <-done; err != nil {
				b.Error(err)
			}
		})
	}
}
