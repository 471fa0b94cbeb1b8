package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"bridged/internal/bridge"
	"bridged/internal/discovery/marathontest"
)

// show takes the tour, and unless once stays until ctx ends.
func (d *demo) show(ctx context.Context, once bool) error {
	tctx, cancel := context.WithTimeoutCause(ctx, demoLimit, fmt.Errorf("the tour took more than %v", demoLimit))
	defer cancel()
	err := d.tour(tctx)
	if ctx.Err() != nil {
		return nil // Ctrl-C
	}
	if err != nil {
		d.say.text("\n✗ %v", err)
		d.say.text("  bridged's log follows\n%s", d.tail())
		return errors.New("the demo did not work")
	}
	if once {
		return nil
	}
	d.invite()
	<-ctx.Done()
	d.say.text("\nending everything")
	return nil
}

// tour shows the main job, step by step. Its error is the first thing that did not
// work.
func (d *demo) tour(ctx context.Context) error {
	ports, err := freePorts(12)
	if err != nil {
		return err
	}
	web, api, many := ports[0], ports[1], ports[2:]
	d.say.text("bridged demo: a Marathon simulator, sample apps, bridged and an HAProxy of its own, in %s\n", d.dir)

	state, err := d.await(ctx, "bridged is ready", func(s *bridge.State) bool { return s.Ready })
	if err != nil {
		return err
	}
	d.say.line("Marathon %s at %s, HAProxy %s (pid %d), bridged at http://%s", state.Marathon.Version, d.marathon.URL(0), state.HAProxy.Version, state.HAProxy.Pid, d.bridge.Addr())

	d.say.line("deploy /web with 2 tasks on service port %d", web)
	mark := d.probes.mark()
	d.probes.watch("/web", probedApp{port: web})
	if err := d.deploy("/web", web, 2, false); err != nil {
		return err
	}
	if _, err := d.probes.await(ctx, mark, "live", "/web", 2); err != nil {
		return err
	}
	reloads, err := d.reloads()
	if err != nil {
		return err
	}
	traffic := startLoad(web)
	defer traffic.stop()
	d.say.line("  from here on a client sends requests to /web without a break")

	steps := []struct {
		what string
		do   func() error
		kind string
		app  string
		n    int
	}{
		{"scale /web from 2 to 6", func() error { return d.marathon.Scale("/web", 6) }, "live", "/web", 4},
		{"scale /web back to 3", func() error { return d.marathon.Scale("/web", 3) }, "gone", "/web", 3},
		{"kill a task of /web; Marathon starts another", func() error { return d.marathon.Kill(d.running("/web")) }, "live", "/web", 1},
	}
	for _, s := range steps {
		if err := d.settle(ctx); err != nil {
			return err
		}
		d.say.line("%s", s.what)
		mark := d.probes.mark()
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
		if _, err := d.probes.await(ctx, mark, s.kind, s.app, s.n); err != nil {
			return err
		}
	}
	if err := d.settle(ctx); err != nil {
		return err
	}
	after, err := d.reloads()
	if err != nil {
		return err
	}
	d.say.line("  reloads for all of that: %s", difference(reloads, after))

	d.say.line("deploy /api with 3 tasks and a health check on service port %d", api)
	mark = d.probes.mark()
	d.probes.watch("/api", probedApp{port: api, checks: true})
	if err := d.deploy("/api", api, 3, true); err != nil {
		return err
	}
	if _, err := d.probes.await(ctx, mark, "live", "/api", 3); err != nil {
		return err
	}
	sick := d.running("/api")
	for _, alive := range []bool{false, true} {
		what, kind := "fails", "gone"
		if alive {
			what, kind = "passes again", "live"
		}
		d.say.line("the health check of a task of /api %s", what)
		mark := d.probes.mark()
		if err := d.marathon.SetHealth(sick, alive); err != nil {
			return err
		}
		if _, err := d.probes.await(ctx, mark, kind, "/api", 1); err != nil {
			return err
		}
	}

	d.say.line("deploy %d apps at once", len(many))
	mark = d.probes.mark()
	d.probes.setQuiet(true)
	for i, port := range many {
		id := fmt.Sprintf("/many/app-%d", i)
		d.probes.watch(id, probedApp{port: port})
		if err := d.deploy(id, port, 1, false); err != nil {
			return err
		}
	}
	all, err := d.probes.await(ctx, mark, "live", "/many/", len(many))
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b result) int { return cmp.Compare(a.took, b.took) })
	d.say.line("  ✓ all live: the first %s after TASK_RUNNING, the last %s", millis(all[0].took), millis(all[len(all)-1].took))

	d.say.line("remove them")
	for i := range many {
		id := fmt.Sprintf("/many/app-%d", i)
		d.probes.unwatch(id)
		if err := d.marathon.Delete(id); err != nil {
			return err
		}
	}
	if _, err := d.await(ctx, "the apps are gone from HAProxy", func(s *bridge.State) bool {
		return s.Ready && !slices.ContainsFunc(s.Services, func(v bridge.ServiceView) bool { return v.App != "/web" && v.App != "/api" })
	}); err != nil {
		return err
	}
	d.probes.setQuiet(false)

	sent, failed := traffic.stop()
	d.say.line("requests to /web meanwhile: %d sent, %d failed", sent, len(failed))
	if len(failed) > 0 {
		return fmt.Errorf("%d of %d requests to /web failed, such as: %w", len(failed), sent, failed[0])
	}
	return d.servers(ctx)
}

// deploy posts an app as users do: over Marathon's API would be the same call.
func (d *demo) deploy(id string, port, instances int, check bool) error {
	spec := marathontest.AppSpec{
		ID: id, Instances: instances,
		Ports: []marathontest.Port{{Service: port}},
	}
	if check {
		spec.HealthChecks = []marathontest.HealthCheck{{Protocol: "HTTP", Path: "/"}}
	}
	if err := d.marathon.Deploy(spec); err != nil {
		return fmt.Errorf("deploy %s: %w", id, err)
	}
	return nil
}

// running is a task of an app that serves.
func (d *demo) running(app string) string {
	for _, t := range d.marathon.Tasks(app) {
		if t.Live() {
			return t.ID
		}
	}
	return ""
}

// settle waits until nothing is under way in Marathon.
func (d *demo) settle(ctx context.Context) error {
	if err := d.marathon.WaitQuiet(ctx); err != nil {
		return fmt.Errorf("wait for Marathon: %w", err)
	}
	return nil
}

// await asks bridged for its state until ok says so.
func (d *demo) await(ctx context.Context, what string, ok func(*bridge.State) bool) (*bridge.State, error) {
	for {
		s, err := d.bridge.State(ctx)
		if err == nil && ok(&s) {
			return &s, nil
		}
		select {
		case <-ctx.Done():
			if len(s.NotReady) > 0 {
				return nil, fmt.Errorf("wait until %s: %s: %w", what, s.NotReady[0], context.Cause(ctx))
			}
			return nil, fmt.Errorf("wait until %s: %w", what, context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// reloads counts bridged's reloads of HAProxy by reason.
func (d *demo) reloads() (map[string]int, error) {
	families, err := d.registry.Gather()
	if err != nil {
		return nil, fmt.Errorf("read bridged's metrics: %w", err)
	}
	count := map[string]int{}
	for _, f := range families {
		if f.GetName() != "bridged_reloads_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "reason" {
					count[l.GetValue()] += int(m.GetCounter().GetValue())
				}
			}
		}
	}
	return count, nil
}

// difference says how many reloads came between two counts, and why.
func difference(before, after map[string]int) string {
	n := 0
	var why []string
	for _, reason := range slices.Sorted(maps.Keys(after)) {
		if d := after[reason] - before[reason]; d > 0 {
			n += d
			why = append(why, reason)
		}
	}
	if n == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%s)", n, strings.Join(why, ", "))
}

// latency says what bridged itself measured, from an event's bytes to HAProxy's answer.
func (d *demo) latency() error {
	families, err := d.registry.Gather()
	if err != nil {
		return fmt.Errorf("read bridged's metrics: %w", err)
	}
	for _, f := range families {
		if f.GetName() != "bridged_event_to_live_seconds" {
			continue
		}
		for _, m := range f.GetMetric() {
			h := m.GetHistogram()
			if h.GetSampleCount() == 0 || len(m.GetLabel()) == 0 {
				continue
			}
			mean := time.Duration(h.GetSampleSum() / float64(h.GetSampleCount()) * float64(time.Second))
			d.say.text("bridged's own measure, event read to HAProxy acknowledged, %s lane: %s on average of %d",
				m.GetLabel()[0].GetValue(), millis(mean), h.GetSampleCount())
		}
	}
	return nil
}

// servers prints what HAProxy routes to.
func (d *demo) servers(ctx context.Context) error {
	s, err := d.await(ctx, "HAProxy matches", func(s *bridge.State) bool { return s.Ready })
	if err != nil {
		return err
	}
	d.say.text("\n%-12s %-8s %-22s %s", "PROXY", "PORT", "SERVER", "STATE")
	for _, svc := range s.Services {
		for _, srv := range svc.Servers {
			d.say.text("%-12s %-8d %-22s %s", svc.Proxy, svc.Port, srv.Addr, srv.State)
		}
	}
	d.say.text("")
	return d.latency()
}

// invite says what can be tried while everything runs.
func (d *demo) invite() {
	m, port := d.marathon.URL(0), 0
	d.probes.mu.Lock()
	port = d.probes.apps["/web"].port
	d.probes.mu.Unlock()
	d.say.text(`
Everything stays up until Ctrl-C. What happens is printed here; try in another terminal:

  curl http://%[1]s/                                        # a task of /web answers
  curl -X PUT -d '{"instances": 8}' %[2]s/v2/apps/web       # scale it
  curl -X DELETE '%[2]s/v2/apps/api/tasks'                  # kill the tasks of /api
  curl %[3]s/api/state
  curl -s %[3]s/metrics | grep event_to_live
  cat %[4]s/haproxy.cfg
  tail -f %[4]s/bridged.log
`, loopback(port), m, "http://"+d.bridge.Addr(), d.dir)
}
