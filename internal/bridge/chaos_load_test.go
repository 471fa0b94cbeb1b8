package bridge_test

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"bridged/internal/discovery/marathontest"
)

// ledger keeps what happened in a chaos run, as seen by those it happened to, and tells
// which failed requests routing is to blame for.
type ledger struct {
	notice time.Duration // from the decision to end a task to its end

	mu       sync.Mutex               // guards what follows
	born     map[string]time.Time     // of tasks that live
	tasksOf  map[string][]string      // ids by app, all there ever were
	deaths   map[string]*death        // by task
	windows  []*window                // in order of begin
	requests map[string]int           // that succeeded, by kind
	failures []failure                // that were not judged yet
	excused  map[string]int           // by why
	longest  map[string]time.Duration // of windows, by what
}

// death is the end of a task: its listener and, when it crashed, its connections were
// closed between from and to.
type death struct {
	from, to time.Time
	crashed  bool
}

// window is a time in which something was broken on purpose. A zero to: it still is.
type window struct {
	what     string
	from, to time.Time
	lived    map[string][]string // tasks by app when it began
}

// failure is a request that went wrong.
type failure struct {
	kind, app  string
	task       string    // that had been reached, if any
	opened     time.Time // when the connection was, for exchanges on one that is kept; else zero
	began, end time.Time
	err        error
}

func newLedger(notice time.Duration) *ledger {
	return &ledger{notice: notice, born: map[string]time.Time{}, tasksOf: map[string][]string{}, deaths: map[string]*death{},
		requests: map[string]int{}, excused: map[string]int{}, longest: map[string]time.Duration{}}
}

func (l *ledger) birth(app, task string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.born[task] = time.Now()
	l.tasksOf[app] = append(l.tasksOf[app], task)
}

// die runs end, which stops a task, and notes when. Only the first call for a task counts.
func (l *ledger) die(task string, crashed bool, end func()) {
	l.mu.Lock()
	d := l.deaths[task]
	first := d == nil
	if first {
		d = &death{from: time.Now(), crashed: crashed}
		l.deaths[task] = d
	}
	l.mu.Unlock()
	end()
	if first {
		l.mu.Lock()
		d.to = time.Now()
		delete(l.born, task)
		l.mu.Unlock()
	}
}

// broken notes that something is broken from now on; the returned function says that it
// is not any more.
func (l *ledger) broken(what string) (mended func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &window{what: what, from: time.Now(), lived: map[string][]string{}}
	for app, tasks := range l.tasksOf {
		for _, t := range tasks {
			if l.deaths[t] == nil {
				w.lived[app] = append(w.lived[app], t)
			}
		}
	}
	l.windows = append(l.windows, w)
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		w.to = time.Now()
		l.longest[what] = max(l.longest[what], w.to.Sub(w.from))
	})
}

func (l *ledger) answered(kind string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests[kind]++
}

func (l *ledger) failed(f failure) {
	f.end = time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, f)
}

const haproxyDead = "no HAProxy process lived"

// judge returns the failed requests that routing is to blame for, and counts the others by
// why it is not.
func (l *ledger) judge() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var blamed []string
	for _, f := range l.failures {
		if why := l.excuse(f); why != "" {
			l.excused[why]++
		} else {
			blamed = append(blamed, fmt.Sprintf("%s of %s (task %q), %s for %v: %v", f.kind, f.app, f.task,
				f.began.Format("15:04:05.000"), f.end.Sub(f.began).Round(time.Millisecond), f.err))
		}
	}
	l.failures = nil
	return blamed
}

// excuse says why routing is not to blame for f, "" when it is.
func (l *ledger) excuse(f failure) string {
	for _, w := range l.windows {
		if w.what == haproxyDead && w.overlaps(f.began, f.end) {
			return haproxyDead
		}
	}
	if d := l.deaths[f.task]; d != nil && d.crashed && !f.opened.IsZero() && f.opened.Before(d.to) {
		return "a task died without notice" // and its connections with it
	}
	for _, t := range l.tasksOf[f.app] {
		d := l.deaths[t]
		if d == nil || d.from.After(f.end) || !d.to.IsZero() && d.to.Before(f.began) {
			continue
		}
		// The request was under way when the task closed its listener.
		if d.crashed {
			return "a task died without notice"
		}
		for _, w := range l.windows {
			if w.overlaps(d.from.Add(-l.notice), d.from) {
				return "a task's notice could not be heard: " + w.what
			}
		}
	}
	for _, w := range l.windows {
		if !w.overlaps(f.began, f.end) || len(w.lived[f.app]) == 0 {
			continue
		}
		ended := func(t string) bool { d := l.deaths[t]; return d != nil && d.from.Before(f.end) }
		if !slices.ContainsFunc(w.lived[f.app], func(t string) bool { return !ended(t) }) {
			return "all tasks that could be known had ended: " + w.what
		}
	}
	return ""
}

func (w *window) overlaps(from, to time.Time) bool {
	return w.from.Before(to) && (w.to.IsZero() || w.to.After(from))
}

// settle drops what is over: requests that are under way now began after it.
func (l *ledger) settle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := time.Now().Add(-2 * hangs)
	l.windows = slices.DeleteFunc(l.windows, func(w *window) bool { return !w.to.IsZero() && w.to.Before(before) })
	for app, tasks := range l.tasksOf {
		l.tasksOf[app] = slices.DeleteFunc(tasks, func(t string) bool {
			d := l.deaths[t]
			return d != nil && !d.to.IsZero() && d.to.Before(before)
		})
	}
}

// report is what to say of the run, one line each.
func (l *ledger) report() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, kind := range slices.Sorted(maps.Keys(l.requests)) {
		out = append(out, fmt.Sprintf("%-28s %7d answered", kind, l.requests[kind]))
	}
	out = append(out, fmt.Sprintf("%-28s %7d began, %d ended", "tasks", len(l.born)+len(l.deaths), len(l.deaths)))
	for _, why := range slices.Sorted(maps.Keys(l.excused)) {
		out = append(out, fmt.Sprintf("told apart: %6d requests, %s", l.excused[why], why))
	}
	if d := l.longest[haproxyDead]; d > 0 {
		out = append(out, fmt.Sprintf("longest time without a HAProxy process: %v", d.Round(time.Millisecond)))
	}
	return out
}

// echoes serve TCP for tasks: a line with app and task, then whatever is sent. A task that
// ends closes its listener and lets the connections that it has end by themselves; one that
// crashes does not.
type echoes struct {
	mu      sync.Mutex // guards what follows
	tasks   map[string]*echo
	running sync.WaitGroup
}

type echo struct {
	ready bool // its process listens for requests; before that it hangs up
	ln    net.Listener
	conns map[net.Conn]struct{}
	gone  bool
}

func (e *echoes) serve(t marathontest.Task, listen netip.AddrPort) (int, func(), error) {
	ln, err := net.Listen("tcp", listen.String())
	if err != nil {
		return 0, nil, err
	}
	b := &echo{ln: ln, conns: map[net.Conn]struct{}{}}
	e.mu.Lock()
	if e.tasks == nil {
		e.tasks = map[string]*echo{}
	}
	e.tasks[t.ID] = b
	e.mu.Unlock()
	e.running.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return // it ended
			}
			e.mu.Lock()
			b.conns[conn] = struct{}{}
			ready, gone := b.ready, b.gone
			e.mu.Unlock()
			if !ready || gone {
				e.drop(b, conn)
				continue
			}
			e.running.Go(func() {
				defer e.drop(b, conn)
				fmt.Fprintf(conn, "%s %s\n", t.App, t.ID)
				io.Copy(conn, conn)
			})
		}
	})
	return ln.Addr().(*net.TCPAddr).Port, func() { ln.Close() }, nil
}

func (e *echoes) drop(b *echo, conn net.Conn) {
	conn.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(b.conns, conn)
}

// ready lets a task serve.
func (e *echoes) ready(task string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if b := e.tasks[task]; b != nil {
		b.ready = true
	}
}

// crash ends a task with all that it has, and all tasks for "".
func (e *echoes) crash(task string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, b := range e.tasks {
		if task == "" || id == task {
			b.gone = true
			b.ln.Close()
			for c := range b.conns {
				c.Close()
			}
		}
	}
}

// greeted asks an echo through HAProxy which task it is.
func greeted(port int) (string, error) {
	conn, err := net.DialTimeout("tcp", "127.0.0.1:"+strconv.Itoa(port), hangs)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(hangs)); err != nil {
		return "", err
	}
	greeting, err := bufio.NewReader(conn).ReadString('\n')
	_, task, _ := strings.Cut(strings.TrimSpace(greeting), " ")
	return task, err
}

var errEcho = errors.New("not what was sent")

// load asks without a break, as clients of several kinds do.
type load struct {
	ledger *ledger
	ctx    context.Context
	wg     sync.WaitGroup
	cancel context.CancelFunc
}

func newLoad(l *ledger) *load {
	ld := &load{ledger: l}
	ld.ctx, ld.cancel = context.WithCancel(context.Background())
	return ld
}

// stop ends the load and waits for the last answers.
func (ld *load) stop() {
	ld.cancel()
	ld.wg.Wait()
}

const (
	pace    = 4 * time.Millisecond    // between requests of one client
	hangs   = 15 * time.Second        // a request that takes so long has failed
	tenancy = 1500 * time.Millisecond // life of a kept-open connection, so that workers of old configurations can end
)

// client runs turn until the load is stopped, then end. Each turn is one request or one
// connection.
func (ld *load) client(turn, end func()) {
	ld.wg.Go(func() {
		defer end()
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				turn()
			case <-ld.ctx.Done():
				return
			}
		}
	})
}

// http asks an app over HTTP, with a new connection each time or over kept-open ones.
func (ld *load) http(app string, port uint16, keep bool) {
	kind := "HTTP, new connections"
	if keep {
		kind = "HTTP, kept-open connections"
	}
	transport := &http.Transport{DisableKeepAlives: !keep}
	client := &http.Client{Transport: transport, Timeout: hangs}
	since := time.Now()
	url := "http://127.0.0.1:" + strconv.Itoa(int(port)) + "/"
	ld.client(func() {
		if time.Since(since) > tenancy {
			transport.CloseIdleConnections()
			since = time.Now()
		}
		f := failure{kind: kind, app: app, began: time.Now()}
		resp, err := client.Get(url)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			f.task = resp.Header.Get("X-Task")
			switch got := resp.Header.Get("X-App"); {
			case err != nil:
			case resp.StatusCode != http.StatusOK:
				err = fmt.Errorf("answer %s: the task was not ready", resp.Status)
			case got != app:
				err = fmt.Errorf("answered by app %q", got)
			}
		}
		if f.err = err; err != nil {
			ld.ledger.failed(f)
			return
		}
		ld.ledger.answered(kind)
	}, transport.CloseIdleConnections)
}

// tcp asks an app over TCP: one exchange a connection, or as many as fit into its life.
func (ld *load) tcp(app string, port uint16, long bool) {
	kind := "TCP, new connections"
	if long {
		kind = "TCP, exchanges on long connections"
	}
	ld.client(func() {
		f := failure{kind: kind, app: app, began: time.Now()}
		if f.err = ld.session(&f, port, kind, long); f.err != nil {
			ld.ledger.failed(f)
		}
	}, func() {})
}

func (ld *load) session(f *failure, port uint16, kind string, long bool) error {
	conn, err := net.DialTimeout("tcp", "127.0.0.1:"+strconv.Itoa(int(port)), hangs)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(hangs)); err != nil {
		return err
	}
	in := bufio.NewReader(conn)
	greeting, err := in.ReadString('\n')
	if err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	app, task, _ := strings.Cut(strings.TrimSpace(greeting), " ")
	if f.task = task; app != f.app {
		return fmt.Errorf("answered by app %q", app)
	}
	tick := time.NewTicker(10 * pace)
	defer tick.Stop()
	for opened := time.Now(); ; {
		if _, err := io.WriteString(conn, "ping\n"); err != nil {
			return err
		}
		if got, err := in.ReadString('\n'); err != nil || got != "ping\n" {
			return fmt.Errorf("echo %q, %w", got, cmp.Or(err, errEcho))
		}
		ld.ledger.answered(kind)
		if !long || time.Since(opened) > tenancy {
			return nil
		}
		f.opened, f.began = opened, time.Now() // the exchange that fails is the one to judge
		select {
		case <-tick.C:
		case <-ld.ctx.Done():
			return nil
		}
	}
}
