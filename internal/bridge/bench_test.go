package bridge_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"bridged/internal/bridge"
	"bridged/internal/discovery/marathontest"
	"bridged/internal/haproxy/haproxytest"
)

// BenchmarkEventToLive measures the whole way of one event with real parts: from the
// moment Marathon writes it on the stream to the moment HAProxy has acknowledged the
// change. p50 and p99 are what an operator would see; ns/op holds the pause between two
// events besides.
func BenchmarkEventToLive(b *testing.B) {
	bin := haproxytest.Newest(b)
	for _, servers := range []int{100, 1000, 10000} {
		for _, event := range []string{"task-started", "task-gone", "health"} {
			b.Run(fmt.Sprintf("servers=%d/event=%s/haproxy=%s", servers, event, bin.Name()), func(b *testing.B) {
				benchmarkEventToLive(b, bin, servers, event)
			})
		}
	}
}

func benchmarkEventToLive(b *testing.B, bin haproxytest.Binary, servers int, event string) {
	const perApp = 20
	var told atomic.Int64 // when the event under test was written, in ns
	what := map[string]string{"task-started": `"TASK_RUNNING"`, "task-gone": `"TASK_FAILED"`, "health": `"health_status_changed_event"`}[event]
	acked := &ackLog{live: make(chan time.Time, 64)}
	r := &rig{t: b, dir: b.TempDir(), delay: "250ms"}
	r.marathon = marathontest.New(marathontest.Options{
		// What follows a failed task comes later than what is measured.
		StartDelay: 20 * time.Millisecond,
		OnEvent: func(ev marathontest.Event) {
			if bytes.Contains(ev.JSON, []byte(what)) {
				told.Store(ev.At.UnixNano())
			}
		},
	})
	b.Cleanup(r.marathon.Close)
	r.startMarathon()
	var checks []marathontest.HealthCheck
	if event == "health" {
		checks = append(checks, marathontest.HealthCheck{Protocol: "HTTP", Path: "/"})
	}
	ports := haproxytest.FreePorts(b, servers/perApp)
	for i := range servers / perApp {
		r.deploy(fmt.Sprintf("/bench/app-%d", i), ports[i], perApp, checks...)
	}
	if err := r.marathon.WaitQuiet(b.Context()); err != nil {
		b.Fatal(err)
	}
	r.hap = haproxytest.Start(b, haproxytest.Options{Binary: bin})
	// Nobody listens where the tasks would be, so HAProxy must not check them.
	r.configure("health: marathon\n")
	cfg, err := r.load()
	if err != nil {
		b.Fatal(err)
	}
	br, err := bridge.New(bridge.Options{Config: cfg, Logger: slog.New(acked)})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- br.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	haproxytest.Eventually(b, "the bridge is ready", func() error {
		s, err := br.State(b.Context())
		if err == nil && !s.Ready {
			err = fmt.Errorf("%v", s.NotReady)
		}
		return err
	})

	apps := r.marathon.Apps()
	live := func() time.Time {
		select {
		case at := <-acked.live:
			return at
		case <-time.After(10 * time.Second):
			b.Fatal("a change was not live in time")
			return time.Time{}
		}
	}
	var took []time.Duration
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		if err := r.marathon.WaitQuiet(b.Context()); err != nil {
			b.Fatal(err)
		}
		drain(acked.live)
		tasks := r.marathon.Tasks(apps[(i*7919)%len(apps)])
		task := tasks[i%len(tasks)].ID
		i++
		b.StartTimer()
		var err error
		if event == "health" {
			err = r.marathon.SetHealth(task, false)
		} else {
			err = r.marathon.Fail(task)
		}
		if err != nil {
			b.Fatal(err)
		}
		at := live()
		if event == "task-started" {
			at = live() // the failed one's replacement, StartDelay later
		}
		took = append(took, at.Sub(time.Unix(0, told.Load())))
		b.StopTimer()
		if event == "health" {
			// Marathon dates verdicts to the millisecond, and the later one counts.
			time.Sleep(2 * time.Millisecond)
			if err := r.marathon.SetHealth(task, true); err != nil {
				b.Fatal(err)
			}
			live()
			time.Sleep(2 * time.Millisecond)
		}
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

func drain(c <-chan time.Time) {
	for {
		select {
		case <-c:
		default:
			return
		}
	}
}

// ackLog hears from the bridge's log when HAProxy has acknowledged a change.
type ackLog struct{ live chan time.Time }

func (l *ackLog) Enabled(_ context.Context, level slog.Level) bool { return true }
func (l *ackLog) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l *ackLog) WithGroup(string) slog.Handler                    { return l }

func (l *ackLog) Handle(_ context.Context, r slog.Record) error {
	if r.Message != "change applied" {
		return nil
	}
	at := time.Now()
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "commands" && a.Value.Int64() > 0 {
			select {
			case l.live <- at:
			default:
			}
		}
		return true
	})
	return nil
}
