package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"bridged/internal/discovery/marathontest"
)

const (
	// probeLimit is how long a change may take to be seen.
	probeLimit = 15 * time.Second
	// probeQuiet is how long a task that is leaving must not have answered to count as gone.
	probeQuiet = 150 * time.Millisecond
)

// probes measures, by requests through HAProxy, how long after an event the change it
// tells of is in force. It knows nothing of bridged: events come from Marathon, answers
// from the tasks.
type probes struct {
	say    *teller
	client *http.Client
	ctx    context.Context // ends with stop
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex // guards what follows
	apps    map[string]probedApp
	started map[string]bool // measurements by what they wait for
	results []result
	changed chan struct{} // closed at the next result
	quiet   bool          // results are counted and not printed
}

// probedApp is an app whose changes are measured.
type probedApp struct {
	port   int
	checks bool // live when its health check says so, not when it runs
}

// result is a change that was seen, or was not within probeLimit.
type result struct {
	kind   string // live or gone
	app    string
	task   string
	event  string // that told of it
	took   time.Duration
	missed bool
}

func newProbes(say *teller) *probes {
	p := &probes{say: say, client: fresh(), apps: map[string]probedApp{}, started: map[string]bool{}, changed: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

func (p *probes) stop() {
	p.cancel()
	p.wg.Wait()
}

// watch measures the tasks of an app from now on.
func (p *probes) watch(app string, a probedApp) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.apps[app] = a
}

// unwatch stops that, and measures when the app's port is closed.
func (p *probes) unwatch(app string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.apps, app)
}

// event is told each event before Marathon sends it. It runs with the cluster locked.
func (p *probes) event(ev marathontest.Event) {
	var body struct {
		TaskStatus string `json:"taskStatus"`
		Alive      *bool  `json:"alive"`
	}
	if json.Unmarshal(ev.JSON, &body) != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	app, ok := p.apps[ev.App]
	if !ok || ev.Task == "" {
		return
	}
	switch {
	case ev.Type == "status_update_event" && body.TaskStatus == "TASK_RUNNING" && !app.checks:
		p.measure("live", body.TaskStatus, ev, app)
	case ev.Type == "health_status_changed_event" && body.Alive != nil && *body.Alive:
		p.measure("live", "health alive", ev, app)
	case ev.Type == "health_status_changed_event" && body.Alive != nil:
		p.measure("gone", "health dead", ev, app)
	case ev.Type == "status_update_event" && (body.TaskStatus == "TASK_KILLING" || body.TaskStatus == "TASK_FAILED"):
		p.measure("gone", body.TaskStatus, ev, app)
	}
}

// measure starts one measurement; mu is held.
func (p *probes) measure(kind, event string, ev marathontest.Event, app probedApp) {
	key := kind + " " + event + " " + ev.Task
	if event == "TASK_RUNNING" && p.started[key] {
		return // Marathon repeats it
	}
	p.started[key] = true
	r := result{kind: kind, app: ev.App, task: ev.Task, event: event}
	p.wg.Go(func() {
		if kind == "live" {
			r.took, r.missed = p.untilAnswers(app.port, ev.Task, ev.At)
		} else {
			r.took, r.missed = p.untilSilent(app.port, ev.Task, ev.At)
		}
		p.add(r)
	})
}

// untilAnswers asks until the task answers.
func (p *probes) untilAnswers(port int, task string, since time.Time) (time.Duration, bool) {
	for time.Since(since) < probeLimit && p.ctx.Err() == nil {
		got, err := ask(p.ctx, p.client, port)
		if err == nil && got == task {
			return time.Since(since), false
		}
		if err != nil {
			pause(p.ctx, time.Millisecond) // refused: do not burn the CPU that HAProxy needs to start
		}
	}
	return 0, true
}

// untilSilent asks until the task has not answered for a while, and returns when the
// last request that it answered began.
func (p *probes) untilSilent(port int, task string, since time.Time) (last time.Duration, missed bool) {
	for time.Since(since)-last < probeQuiet {
		if time.Since(since) > probeLimit || p.ctx.Err() != nil {
			return 0, true
		}
		begin := time.Since(since)
		if got, err := ask(p.ctx, p.client, port); err == nil && got == task {
			last = begin
		}
		pause(p.ctx, 200*time.Microsecond)
	}
	return last, false
}

func (p *probes) add(r result) {
	p.mu.Lock()
	p.results = append(p.results, r)
	close(p.changed)
	p.changed = make(chan struct{})
	quiet := p.quiet
	p.mu.Unlock()
	switch {
	case p.ctx.Err() != nil || quiet && !r.missed:
	case r.missed:
		p.say.line("  ✗ %s %s: not %s within %v of %s", r.app, short(r.task), r.kind, probeLimit, r.event)
	case r.kind == "gone" && r.took == 0:
		p.say.line("  ✓ %s %s: no request reached it after %s", r.app, short(r.task), r.event)
	default:
		p.say.line("  ✓ %s %s: %s %s after %s", r.app, short(r.task), r.kind, millis(r.took), r.event)
	}
}

// await returns when there are n results of a kind for app since the mark, or fails.
func (p *probes) await(ctx context.Context, mark int, kind, app string, n int) ([]result, error) {
	for {
		p.mu.Lock()
		var got []result
		missed := 0
		for _, r := range p.results[mark:] {
			if r.kind == kind && strings.HasPrefix(r.app, app) {
				got = append(got, r)
				if r.missed {
					missed++
				}
			}
		}
		changed := p.changed
		p.mu.Unlock()
		if missed > 0 {
			return got, fmt.Errorf("%d of %d tasks of %s were not %s in time", missed, n, app, kind)
		}
		if len(got) >= n {
			return got, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return got, fmt.Errorf("%d of %d tasks of %s are %s: %w", len(got), n, app, kind, context.Cause(ctx))
		}
	}
}

// mark is the place in the results from which await counts.
func (p *probes) mark() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.results)
}

func (p *probes) setQuiet(quiet bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.quiet = quiet
}

// ask sends one request to a service port and returns the task that answered.
func ask(ctx context.Context, client *http.Client, port int) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+loopback(port)+"/", nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s", resp.Status)
	}
	return resp.Header.Get("X-Task"), nil
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// pause waits d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// load is a client that never stops, to find out whether a change loses a request.
type load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex // guards what follows
	sent   int
	errors []error
}

// startLoad sends a request to port every few milliseconds.
func startLoad(port int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel}
	client := fresh()
	l.wg.Go(func() {
		for ctx.Err() == nil {
			_, err := ask(ctx, client, port)
			if ctx.Err() != nil {
				return
			}
			l.mu.Lock()
			l.sent++
			if err != nil {
				l.errors = append(l.errors, err)
			}
			l.mu.Unlock()
			pause(ctx, 3*time.Millisecond)
		}
	})
	return l
}

// stop ends the load and says how many requests were sent and which failed.
func (l *load) stop() (sent int, failed []error) {
	l.cancel()
	l.wg.Wait()
	return l.sent, l.errors
}

func millis(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

// short is enough of a task's id to tell the tasks of a demo apart: the start of its
// random part, and how often Marathon has started it again.
func short(task string) string {
	_, rest, _ := strings.Cut(task, ".")
	rest = strings.TrimPrefix(rest, "instance-")
	id := rest[:min(8, len(rest))]
	if _, n, ok := strings.Cut(rest, "._app."); ok && n != "1" {
		id += "." + n
	}
	return id
}
