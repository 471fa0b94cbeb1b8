package discovery

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bridged/internal/discovery/marathontest"
)

func web(instances int) marathontest.AppSpec {
	return marathontest.AppSpec{
		ID: "/web", Instances: instances, Ports: []marathontest.Port{{Service: 10000}},
		HealthChecks: []marathontest.HealthCheck{{Protocol: "HTTP", Path: "/"}},
	}
}

// within fails the test unless ok holds after at most d of the bubble's time, and
// returns how long it took.
func (w *world) within(d time.Duration, what string, ok func() bool) time.Duration {
	w.t.Helper()
	began := time.Now()
	for {
		synctest.Wait()
		if ok() {
			return time.Since(began)
		}
		if time.Since(began) > d {
			w.t.Fatalf("%s: not within %v\n%s", what, d, w.dump())
		}
		time.Sleep(time.Millisecond)
	}
}

func (w *world) connected() bool { return w.watcher.Status().Connected }

// inSync: connected, and everything was read since.
func (w *world) inSync(since time.Time) func() bool {
	return func() bool {
		s := w.watcher.Status()
		return s.Connected && s.Synced && !s.LastSync.Before(since)
	}
}

func (w *world) counter(name string, labels ...string) float64 {
	w.t.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != "bridged_"+name {
			continue
		}
	series:
		for _, m := range f.GetMetric() {
			for i := 0; i < len(labels); i += 2 {
				found := false
				for _, l := range m.GetLabel() {
					found = found || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
				}
				if !found {
					continue series
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

func bubble(t *testing.T, mo marathontest.Options, o Options, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, mo, o)
		w.t = t
		defer w.cluster.Close()
		w.run()
		defer w.stop()
		f(w)
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestDroppedStreamHealsWithin100ms(t *testing.T) {
	for _, away := range []time.Duration{0, 300 * time.Millisecond, 5 * time.Second, time.Minute} {
		t.Run(away.String(), func(t *testing.T) {
			bubble(t, marathontest.Options{}, Options{}, func(w *world) {
				must(t, w.cluster.Deploy(web(3)))
				w.settle(3 * time.Second)
				w.matches("at first")
				w.cluster.Stop(0, marathontest.Refuse)
				w.settle(away)
				must(t, w.cluster.Kill(w.cluster.Tasks("/web")[0].ID)) // nobody hears it
				w.settle(0)
				must(t, w.cluster.Resume(0))
				w.within(100*time.Millisecond, "healed", w.inSync(time.Now()))
				w.matches("healed")
				if w.counter("stream_reconnects_total", "reason", "eof") != 1 {
					t.Error("the lost stream is not counted")
				}
			})
		})
	}
}

func TestCutStreamsHeal(t *testing.T) {
	bubble(t, marathontest.Options{}, Options{}, func(w *world) {
		must(t, w.cluster.Deploy(web(3)))
		w.settle(3 * time.Second)
		for range 3 {
			w.cluster.CutStreams(false)
			w.within(100*time.Millisecond, "healed", w.inSync(time.Now()))
			w.settle(2 * time.Second)
		}
	})
}

func TestLeaderChangeHealsWithinASecond(t *testing.T) {
	for _, version := range testVersions {
		t.Run(version, func(t *testing.T) {
			bubble(t, marathontest.Options{Version: version, Nodes: 3, RecheckDelay: 20 * time.Second}, Options{}, func(w *world) {
				must(t, w.cluster.Deploy(web(5)))
				w.settle(3 * time.Second)
				w.matches("at first")
				before := w.routes()
				w.cluster.Stop(0, marathontest.Refuse)
				must(t, w.cluster.Elect(-1))
				w.settle(2 * time.Second)
				must(t, w.cluster.Elect(1))
				w.within(time.Second, "connected to the new leader", func() bool {
					return w.watcher.Status().Leader == w.cluster.URL(1) && w.inSync(time.Now().Add(-time.Second))()
				})
				// The new leader knows nothing of health.
				w.settle(time.Second)
				if got := w.routes(); fmt.Sprint(got) != fmt.Sprint(before) {
					t.Errorf("routes after failover: %v, want %v as before", got, before)
				}
				w.settle(30 * time.Second)
				w.matches("after recheck")
			})
		})
	}
}

func TestSilentStreamIsLeftWithin25s(t *testing.T) {
	bubble(t, marathontest.Options{Nodes: 2}, Options{}, func(w *world) {
		must(t, w.cluster.Deploy(web(3)))
		w.settle(3 * time.Second)
		w.cluster.SilenceStreams(true)
		took := w.within(25*time.Second+100*time.Millisecond, "another stream", func() bool {
			return w.counter("stream_reconnects_total", "reason", "silence") == 1 && w.connected()
		})
		t.Logf("left after %v", took)
		must(t, w.cluster.Scale("/web", 4))
		w.settle(time.Second)
		w.matches("on the new stream")
	})
}

func TestLostEventsAreFoundWithin5s(t *testing.T) {
	bubble(t, marathontest.Options{}, Options{}, func(w *world) {
		must(t, w.cluster.Deploy(web(5)))
		w.settle(3 * time.Second)
		w.cluster.Inject(marathontest.Fault{Kind: marathontest.LoseEvent})
		must(t, w.cluster.Kill(w.cluster.Tasks("/web")[0].ID))
		must(t, w.cluster.Scale("/web", 8))
		w.within(7*time.Second, "noticed", func() bool { return fmt.Sprint(w.routes()) == fmt.Sprint(w.cluster.Expected()) })
		if w.counter("resyncs_total", "reason", "audit", "result", "corrected") == 0 {
			t.Error("the correction is not counted")
		}
	})
}

func TestReorderedAndRepeatedEvents(t *testing.T) {
	for _, version := range testVersions {
		t.Run(version, func(t *testing.T) {
			mo := marathontest.Options{Version: version, StartDelay: 3 * time.Millisecond, HealthDelay: 5 * time.Millisecond, KillDelay: 4 * time.Millisecond, RelaunchDelay: 2 * time.Millisecond}
			bubble(t, mo, Options{}, func(w *world) {
				must(t, w.cluster.Deploy(web(5)))
				w.settle(3 * time.Second)
				w.cluster.Inject(marathontest.Fault{Kind: marathontest.ReorderEvents, Window: 8, Delay: 30 * time.Millisecond})
				w.cluster.Inject(marathontest.Fault{Kind: marathontest.DuplicateEvent, Chance: 0.3})
				for i := range 10 {
					must(t, w.cluster.Scale("/web", 3+(i*7)%11))
					w.settle(200 * time.Millisecond)
					tasks := w.cluster.Tasks("/web")
					must(t, w.cluster.Kill(tasks[i%len(tasks)].ID))
					w.settle(200 * time.Millisecond)
				}
				w.settle(time.Second)
				w.matches("after disorder")
				w.auditsFindNothing()
			})
		})
	}
}

func TestBrokenEventsAndAnswers(t *testing.T) {
	kinds := map[string]marathontest.Fault{
		"garbled":     {Kind: marathontest.GarbleEvent, Chance: 0.3},
		"joined":      {Kind: marathontest.JoinEvents, Chance: 0.5},
		"split":       {Kind: marathontest.SplitData, Chance: 0.5},
		"lf":          {Kind: marathontest.BareLF},
		"cr":          {Kind: marathontest.LoneCR},
		"cut-inside":  {Kind: marathontest.CutInside, Chance: 0.1, Times: 3},
		"cut-after":   {Kind: marathontest.CutAfter, Chance: 0.1, Times: 3},
		"5xx":         {Kind: marathontest.FailRequest, Chance: 0.5, Times: 20},
		"reset":       {Kind: marathontest.ResetRequest, Chance: 0.5, Times: 20},
		"truncated":   {Kind: marathontest.TruncateBody, Path: "/v2/apps", Chance: 0.5, Times: 10},
		"cut-body":    {Kind: marathontest.CutBody, Path: "/v2/apps", Chance: 0.5, Times: 10},
		"eof-streams": {Kind: marathontest.EndStream, Times: 5},
		"slow":        {Kind: marathontest.DelayRequest, Delay: 400 * time.Millisecond, Path: "/v2/apps"},
	}
	for name, fault := range kinds {
		t.Run(name, func(t *testing.T) {
			bubble(t, marathontest.Options{}, Options{}, func(w *world) {
				must(t, w.cluster.Deploy(web(4)))
				w.settle(3 * time.Second)
				in := w.cluster.Inject(fault)
				w.cluster.CutStreams(false)
				for i := range 8 {
					must(t, w.cluster.Scale("/web", 4+i%3))
					w.settle(500 * time.Millisecond)
				}
				in.Remove()
				w.settle(20 * time.Second)
				w.matches("after " + name)
				if in.Count() == 0 {
					t.Error("the fault never struck")
				}
			})
		})
	}
}

func TestImplausiblePictureIsHeld(t *testing.T) {
	for name, kind := range map[string]marathontest.FaultKind{"no-apps": marathontest.EmptyApps, "no-tasks": marathontest.NoTasks} {
		t.Run(name, func(t *testing.T) {
			bubble(t, marathontest.Options{}, Options{}, func(w *world) {
				must(t, w.cluster.Deploy(web(6)))
				w.settle(3 * time.Second)
				in := w.cluster.Inject(marathontest.Fault{Kind: kind, Path: "/v2/apps"})
				w.settle(20 * time.Second)
				w.matches("while held")
				if w.watcher.Status().Held == "" {
					t.Fatalf("not held: %+v", w.watcher.Status())
				}
				in.Remove()
				w.settle(20 * time.Second)
				if w.watcher.Status().Held != "" {
					t.Fatalf("still held: %+v", w.watcher.Status())
				}
				// The same again for good.
				w.cluster.Inject(marathontest.Fault{Kind: kind, Path: "/v2/apps"})
				w.settle(15 * time.Second)
				w.matches("held again")
				w.settle(60 * time.Second)
				for port, addrs := range w.routes() {
					if len(addrs) > 0 {
						t.Errorf("port %d still routed to %v", port, addrs)
					}
				}
			})
		})
	}
}

func TestUnhurtByOneBrokenApp(t *testing.T) {
	bubble(t, marathontest.Options{}, Options{}, func(w *world) {
		must(t, w.cluster.Deploy(web(2)))
		must(t, w.cluster.Deploy(marathontest.AppSpec{ID: "/odd", Instances: 1, Ports: []marathontest.Port{{Service: 10500}}}))
		w.cluster.Inject(marathontest.Fault{Kind: marathontest.EditBody, Path: "/v2/apps", Edit: func(b []byte) []byte {
			return []byte(strings.Replace(string(b), `"id":"/odd"`, `"id":"/odd","labels":[1],"x":1`, 1))
		}})
		w.settle(10 * time.Second)
		if got := w.routes(); len(got[10000]) != 2 {
			t.Errorf("routes: %v", got)
		}
		s := w.watcher.Status()
		if s.Broken["/odd"] == "" || !s.Synced {
			t.Errorf("status: %+v", s)
		}
	})
}

func TestMarathonAwayAtStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, marathontest.Options{Nodes: 2}, Options{})
		defer w.cluster.Close()
		must(t, w.cluster.Deploy(web(2)))
		w.cluster.Stop(0, marathontest.Refuse)
		w.cluster.Stop(1, marathontest.Refuse)
		w.run()
		defer w.stop()
		w.settle(10 * time.Minute)
		s := w.watcher.Status()
		if s.Connected || s.Synced || s.Err == "" || len(w.received()) != 0 {
			t.Errorf("status: %+v, %d updates", s, len(w.received()))
		}
		if n := w.dials.Load(); n > 2*7000 {
			t.Errorf("%d connections tried in ten minutes", n)
		}
		must(t, w.cluster.Resume(0))
		w.settle(3 * time.Second)
		w.matches("at last")
		if !w.received()[0].Full {
			t.Error("the first update is not full")
		}
	})
}

func TestSlowReceiverGetsOneMergedUpdate(t *testing.T) {
	bubble(t, marathontest.Options{}, Options{}, func(w *world) {
		must(t, w.cluster.Deploy(web(2)))
		w.settle(3 * time.Second)
		resume := make(chan struct{})
		w.mu.Lock()
		w.paused = resume
		w.mu.Unlock()
		// The receiver is inside a receive still: this one ends it.
		began := time.Now()
		must(t, w.cluster.Scale("/web", 3))
		w.settle(100 * time.Millisecond)
		for i := range 20 {
			must(t, w.cluster.Scale("/web", 3+i))
			w.settle(100 * time.Millisecond)
		}
		w.mu.Lock()
		n := len(w.updates)
		w.paused = nil
		w.mu.Unlock()
		close(resume)
		w.settle(100 * time.Millisecond)
		w.matches("after the pause")
		w.mu.Lock()
		defer w.mu.Unlock()
		merged := w.updates[n:]
		if len(merged) != 1 {
			t.Fatalf("%d updates after the pause, want one", len(merged))
		}
		u := merged[0]
		if len(u.Services) != 1 || u.Events < 20 || u.Received.Before(began) || u.Received.Sub(began) > 200*time.Millisecond {
			t.Errorf("merged update: %d services, %d events, received %v after the first", len(u.Services), u.Events, u.Received.Sub(began))
		}
	})
}

func TestCredentialsStayHome(t *testing.T) {
	bubble(t, marathontest.Options{Nodes: 2, BasicUser: "u", BasicPassword: "p"}, Options{URLs: []string{"http://u:p@192.0.2.1:8080"}}, func(w *world) {
		must(t, w.cluster.Deploy(web(2)))
		w.settle(3 * time.Second)
		w.matches("with the user of the URL")
		// The leader is not configured, but announced by a member that is.
		must(t, w.cluster.Elect(1))
		w.settle(3 * time.Second)
		w.matches("from the announced leader")
		w.cluster.Inject(marathontest.Fault{Kind: marathontest.RedirectRequest, URL: "http://192.0.2.9:8080/v2/apps", Path: "/v2/apps"})
		foreign := make(chan *http.Request, 100)
		l, err := w.net.Listen(8)
		must(t, err)
		server := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { foreign <- r })}
		go server.Serve(l)
		defer server.Close()
		w.settle(time.Minute)
		if len(foreign) > 0 {
			r := <-foreign
			t.Errorf("followed to a foreign host with Authorization %q", r.Header.Get("Authorization"))
		}
	})
}

// TestEventsNeedNoReading: what an event tells is not asked for again, or hundreds of
// bridges would ask at once.
func TestEventsNeedNoReading(t *testing.T) {
	bubble(t, marathontest.Options{}, Options{}, func(w *world) {
		must(t, w.cluster.Deploy(web(2)))
		w.settle(3 * time.Second)
		before := w.requests("/v2/apps/")
		must(t, w.cluster.Scale("/web", 12))
		must(t, w.cluster.Kill(w.cluster.Tasks("/web")[0].ID))
		must(t, w.cluster.SetHealth(w.cluster.Tasks("/web")[1].ID, false))
		w.settle(time.Second)
		w.matches("from events alone")
		if n := w.requests("/v2/apps/") - before; n != 0 {
			t.Errorf("%d apps were read", n)
		}
		must(t, w.cluster.Delete("/web"))
		w.settle(time.Second)
		w.matches("deleted")
		if n := w.requests("/v2/apps/") - before; n < 1 || n > 3 {
			t.Errorf("%d apps were read for a deletion", n)
		}
	})
}

// TestPodsAreAskedForRarely: events of pods look like those of apps that are not known.
func TestPodsAreAskedForRarely(t *testing.T) {
	bubble(t, marathontest.Options{}, Options{}, func(w *world) {
		w.settle(3 * time.Second)
		for i := range 100 {
			w.cluster.Emit(fmt.Appendf(nil, `{"eventType":"status_update_event","timestamp":%q,"taskId":"pod.instance-%08x-0000-0000-0000-000000000000.web.1","taskStatus":"TASK_RUNNING","appId":"/pod","host":"10.1.0.1","ports":[1],"version":"2024-05-01T09:00:00.000Z"}`,
				time.Now().UTC().Format("2006-01-02T15:04:05.000Z"), i))
			w.settle(100 * time.Millisecond)
		}
		if n := w.requests("/v2/apps//pod") + w.requests("/v2/apps/pod"); n < 1 || n > 2 {
			t.Errorf("an app that is none was asked for %d times in 10 s", n)
		}
		if len(w.routes()) != 0 {
			t.Errorf("routes: %v", w.routes())
		}
	})
}

// TestStructureComesFirst: a new app is sent before its first task runs.
func TestStructureComesFirst(t *testing.T) {
	for _, version := range testVersions {
		t.Run(version, func(t *testing.T) {
			bubble(t, marathontest.Options{Version: version, StageDelay: time.Second, StartDelay: 2 * time.Second}, Options{}, func(w *world) {
				w.settle(3 * time.Second)
				began := time.Now()
				must(t, w.cluster.Deploy(web(1)))
				took := w.within(500*time.Millisecond, "the service", func() bool { return w.service(Key{App: "/web"}) != nil })
				if n := len(w.service(Key{App: "/web"}).Tasks); n != 0 {
					t.Errorf("%d tasks already", n)
				}
				w.within(4*time.Second, "the task", func() bool { return len(w.service(Key{App: "/web"}).Tasks) == 1 })
				t.Logf("service after %v, task after %v", took, time.Since(began))
			})
		})
	}
}

// TestDrainComesBeforeTheKill: a task that is to be killed is said to be so before it
// gets its signal, and until it ends.
func TestDrainComesBeforeTheKill(t *testing.T) {
	for _, version := range []string{"1.3.0", "1.5.0", "1.8.180", "1.11.0"} {
		t.Run(version, func(t *testing.T) {
			bubble(t, marathontest.Options{Version: version, KillDelay: 8 * time.Second}, Options{}, func(w *world) {
				must(t, w.cluster.Deploy(web(4)))
				w.settle(20 * time.Second)
				must(t, w.cluster.Scale("/web", 2))
				states := func() (running, killing int) {
					for _, task := range w.service(Key{App: "/web"}).Tasks {
						switch task.State {
						case Running:
							running++
						case Killing:
							killing++
						}
					}
					return running, killing
				}
				w.within(100*time.Millisecond, "draining", func() bool {
					running, killing := states()
					return running == 2 && killing == 2
				})
				w.settle(7 * time.Second) // audits come and go
				if running, killing := states(); running != 2 || killing != 2 {
					t.Errorf("%d running, %d killing in the meantime", running, killing)
				}
				w.settle(3 * time.Second)
				if running, killing := states(); running != 2 || killing != 0 {
					t.Errorf("%d running, %d killing at the end", running, killing)
				}
			})
		})
	}
}
