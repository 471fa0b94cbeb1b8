package haproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"bridged/internal/haproxy/haproxytest"
)

// driver is a Proxy before a real HAProxy, and the loop that drives it.
type driver struct {
	*Proxy
	t      testing.TB
	hap    *haproxytest.HAProxy
	global *Global
	opts   Options
}

// testLog keeps the log for when the test fails.
func testLog(t testing.TB) *slog.Logger {
	out := &lockedLog{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", out.buf.String())
		}
	})
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type lockedLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lockedLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// newDriver starts a HAProxy that has nothing of ours, and adopts it.
func newDriver(t testing.TB, bin haproxytest.Binary) *driver {
	t.Helper()
	hap := haproxytest.Start(t, haproxytest.Options{Binary: bin})
	r := &driver{t: t, hap: hap, global: &Global{Socket: hap.DirectSocket, MaxConn: 1000, CheckInterval: "10s", OldWorkers: 4}}
	r.opts = Options{
		ConfigFile: hap.ConfigFile, Socket: hap.Socket, MasterSocket: hap.MasterSocket, Binary: bin.Path,
		SaveDelay: time.Millisecond, Drain: 30 * time.Second, Logger: testLog(t),
	}
	r.open()
	return r
}

// open makes a Proxy and adopts the HAProxy that runs.
func (r *driver) open() {
	r.t.Helper()
	p, err := New(r.opts)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Proxy = p
	r.t.Cleanup(func() { p.Close() })
	if err := p.Adopt(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

// until drives the loop until check is content.
func (r *driver) until(what string, check func() bool) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	for !check() {
		select {
		case j := <-r.Done():
			r.Finish(ctx, j)
		case <-ctx.Done():
			r.t.Fatalf("%s: not within a minute; status %+v", what, r.Status())
		}
	}
}

// settle drives the loop until HAProxy matches and everything is saved.
func (r *driver) settle() {
	r.t.Helper()
	r.until("HAProxy matches", func() bool {
		return r.Status().Matches && !r.unsaved && !r.busy
	})
}

func (r *driver) apply(c Change) Result {
	r.t.Helper()
	result := r.Apply(r.t.Context(), c)
	if result.Err != nil {
		r.t.Fatalf("apply: %v", result.Err)
	}
	return result
}

// listen is a backend as the default dialect makes them.
func listen(name string, port uint16, addrs ...netip.AddrPort) *Backend {
	b := &Backend{
		Section: Section{Kind: KindBackend, Name: name, Mode: TCP, Binds: []Bind{{Addr: "127.0.0.1", Port: port}}, Owner: "/" + name},
		Balance: "leastconn", ServerOptions: "check inter 10s fastinter 1s",
	}
	for _, a := range addrs {
		b.Servers = append(b.Servers, Server{Name: fmt.Sprintf("127_0_0_1_%d", a.Port()), Addr: a, Weight: -1})
	}
	return b
}

// served asks the port often enough that every server has had its turn.
func served(t testing.TB, port uint16) []string {
	t.Helper()
	var names []string
	for range 24 {
		name, err := haproxytest.Ask(port)
		if err != nil {
			name = "error: " + err.Error()
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (r *driver) wantServed(port uint16, want ...string) {
	r.t.Helper()
	slices.Sort(want)
	if got := served(r.t, port); !slices.Equal(got, want) {
		r.t.Fatalf("port %d is served by %v, want %v", port, got, want)
	}
}

func liveServers(t testing.TB, names ...string) []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, name := range names {
		addrs = append(addrs, haproxytest.Server(t, name))
	}
	return addrs
}

// The life of an app: published with one reload, then changed without any, with the file
// always behind what runs by no more than one save.
func TestProxyLife(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newDriver(t, bin)
		port := haproxytest.FreePorts(t, 1)[0]
		a := liveServers(t, "a", "b", "c", "d")
		be := listen("web", port, a[0], a[1])

		res := r.apply(Change{Global: r.global, Backends: map[string]*Backend{"web": be}})
		if res.Lane != LaneSlow || !slices.Equal(res.Reasons, []Reason{ReasonTakeover}) {
			t.Fatalf("first change: %+v, want the slow lane for %s", res, ReasonTakeover)
		}
		r.settle()
		r.wantServed(port, "a", "b")
		reloads, pid := r.hap.Reloads(t), r.hap.Pid(t)

		step := func(what string, be *Backend, want ...string) {
			t.Helper()
			res := r.apply(Change{Backends: map[string]*Backend{"web": be}, Received: time.Now()})
			if res.Lane != LaneFast || res.Commands == 0 {
				t.Fatalf("%s: %+v, want the fast lane", what, res)
			}
			r.wantServed(port, want...) // at once, before anything else may happen
			r.settle()
			r.wantServed(port, want...)
		}
		step("added", listen("web", port, a...), "a", "b", "c", "d")
		step("removed", listen("web", port, a[2]), "c")
		step("returned", listen("web", port, a[2], a[0]), "a", "c")
		drained := listen("web", port, a[2], a[0])
		drained.Servers[0].State = Drain
		step("drained", drained, "a")
		weighted := listen("web", port, a[2], a[0])
		weighted.Servers[0].Weight = 7
		step("undrained", weighted, "a", "c")
		off := listen("web", port, a[2], a[0])
		off.Servers[1].State = Maint
		step("unhealthy", off, "c")
		step("replaced", listen("web", port, a[3]), "d")

		if got := r.hap.Reloads(t); got != reloads || r.hap.Pid(t) != pid {
			t.Errorf("HAProxy was reloaded %d times by task changes", got-reloads)
		}
		if out, err := r.hap.Check(t); err != nil {
			t.Errorf("the file does not pass: %v\n%s", err, out)
		}
		// Somebody's reload gives the same servers.
		r.hap.Reload(t)
		r.wantServed(port, "d")
		r.until("the other worker is adopted", func() bool { return r.info.Pid == r.hap.Pid(t) && r.Status().Matches })
		r.wantServed(port, "d")
		step("after somebody's reload", listen("web", port, a[0], a[1]), "a", "b")
		if got := testutil.ToFloat64(r.m.drift.WithLabelValues("worker")); got != 1 {
			t.Errorf("drift of kind worker: %v, want 1", got)
		}
		// And so does a restart of HAProxy.
		r.hap.Restart(t)
		r.wantServed(port, "a", "b")
		r.until("the restarted HAProxy is adopted", func() bool { return r.info.Pid == r.hap.Pid(t) && r.Status().Matches })
		step("after a restart", listen("web", port, a[1], a[2]), "b", "c")
		if n := r.hap.Reloads(t); n != 0 {
			t.Errorf("%d reloads after a restart from our own file, want none", n)
		}
	})
}

// A bridge that ends and starts again finds its own work and changes nothing.
func TestProxyAdoptsItsOwnWork(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newDriver(t, bin)
		port := haproxytest.FreePorts(t, 1)[0]
		a := liveServers(t, "a", "b", "c")
		first := listen("web", port, a[0])
		r.apply(Change{Global: r.global, Backends: map[string]*Backend{"web": first}})
		r.settle()
		r.apply(Change{Backends: map[string]*Backend{"web": listen("web", port, a[0], a[1])}})
		reloads := r.hap.Reloads(t)

		r.Close() // as if killed: the file may be older than the worker
		r.open()
		if st := r.Status(); !st.Connected || st.Matches {
			t.Fatalf("before the first change: %+v", st)
		}
		res := r.apply(Change{Global: r.global, Backends: map[string]*Backend{"web": listen("web", port, a[1], a[2])}})
		if res.Commands == 0 {
			t.Fatalf("the servers were not repaired at once: %+v", res)
		}
		r.wantServed(port, "b", "c")
		r.settle()
		r.wantServed(port, "b", "c")
		if got := r.hap.Reloads(t); got != reloads {
			t.Errorf("%d reloads at adoption, want none", got-reloads)
		}
	})
}

// Supervised: the first change starts HAProxy, also when it has no app in it; whatever ends,
// bridge or HAProxy, what ran last serves again at once, and only one master ever runs.
func TestProxySupervises(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		_, o := newSupervisor(t, bin)
		r := &driver{t: t, global: &Global{Socket: o.Socket, MaxConn: 100}}
		r.opts = Options{ConfigFile: o.Config, Socket: o.Socket, MasterSocket: o.MasterSocket, Binary: bin.Path,
			Supervise: true, Stderr: o.Stderr, SaveDelay: time.Millisecond, Drain: 30 * time.Second, Logger: testLog(t)}
		open := func(want error) {
			t.Helper()
			p, err := New(r.opts)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { p.Close() })
			if err := p.Adopt(t.Context()); !errors.Is(err, want) {
				t.Fatalf("adopt: %v, want %v", err, want)
			}
			r.Proxy = p
		}
		open(ErrUnreachable)
		res := r.apply(Change{Global: r.global})
		if res.Lane != LaneSlow || !slices.Equal(res.Reasons, []Reason{ReasonStart}) {
			t.Fatalf("first change: %+v, want the slow lane for %s", res, ReasonStart)
		}
		r.settle()
		if n := r.Status().Reloads; n != 1 {
			t.Errorf("%d reloads to start it, want one", n)
		}
		procs, err := masterProcs(t.Context(), o.MasterSocket)
		if err != nil {
			t.Fatal(err)
		}
		port := haproxytest.FreePorts(t, 1)[0]
		a := liveServers(t, "a", "b")
		r.apply(Change{Backends: map[string]*Backend{"web": listen("web", port, a[0])}})
		r.settle()
		r.wantServed(port, "a")
		r.apply(Change{Backends: map[string]*Backend{"web": listen("web", port, a[1])}})
		r.settle()
		r.wantServed(port, "b")
		again, err := masterProcs(t.Context(), o.MasterSocket)
		if err != nil || again.Master != procs.Master {
			t.Errorf("master %d became %d (%v)", procs.Master, again.Master, err)
		}

		// A worker that is killed takes its master along; it comes back without being asked.
		pid := r.info.Pid
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		r.until("HAProxy runs again", func() bool { st := r.Status(); return st.Pid != pid && st.Matches })
		r.wantServed(port, "b")
		r.apply(Change{Backends: map[string]*Backend{"web": listen("web", port, a[0], a[1])}})
		r.settle()

		// Both end. What ran last serves before anything is known of what is wanted.
		supervisor := r.supervisor
		r.Close()
		if err := supervisor.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		open(nil)
		r.wantServed(port, "a", "b")
		if st := r.Status(); !st.Connected || st.Matches {
			t.Errorf("status %+v", st)
		}
		reloads := r.Status().Reloads
		r.apply(Change{Global: r.global, Backends: map[string]*Backend{"web": listen("web", port, a[0])}})
		r.wantServed(port, "a")
		r.settle()
		if got := r.Status().Reloads - reloads; got != 0 {
			t.Errorf("%d reloads although nothing differs but servers", got)
		}
		r.Close()
	})
}
