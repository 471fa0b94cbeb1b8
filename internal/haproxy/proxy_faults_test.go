package haproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"bridged/internal/haproxy/haproxytest"
	"bridged/templates"
)

// start publishes backend web with the given servers and returns its port.
func (r *driver) start(addrs int) (port uint16, change func(on ...int) Change) {
	r.t.Helper()
	port = haproxytest.FreePorts(r.t, 1)[0]
	var names []string
	for i := range addrs {
		names = append(names, fmt.Sprintf("%c", 'a'+i))
	}
	all := liveServers(r.t, names...)
	change = func(on ...int) Change {
		be := listen("web", port)
		for _, i := range on {
			be.Servers = append(be.Servers, listen("web", port, all[i]).Servers...)
		}
		return Change{Backends: map[string]*Backend{"web": be}}
	}
	first := change(0, 1)
	first.Global = r.global
	r.apply(first)
	r.settle()
	return port, change
}

// forBoth runs test on the default HAProxy, which has slots, and on the newest.
func forBoth(t *testing.T, test func(t *testing.T, bin haproxytest.Binary)) {
	for _, bin := range []haproxytest.Binary{haproxytest.Default(t), haproxytest.Newest(t)} {
		t.Run(bin.Name(), func(t *testing.T) { test(t, bin) })
	}
}

// Wherever the connection is cut in a batch, what is true afterwards is found out and the
// rest is done, without a reload.
func TestConnectionCutInABatch(t *testing.T) {
	forBoth(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newDriver(t, bin)
		port, change := r.start(6)
		reloads := r.hap.Reloads(t)
		for n := range int64(12) {
			r.hap.Faults.CutAfter(n * 23)
			on, want := []int{2, 3, 4}, []string{"c", "d", "e"}
			if n%2 == 1 {
				on, want = []int{5, 0}, []string{"a", "f"}
			}
			c := change(on...)
			c.Received = time.Now()
			res := r.Apply(t.Context(), c)
			if res.Lane != LaneFast {
				t.Fatalf("cut after %d bytes: %+v", n*23, res)
			}
			r.hap.Faults.Heal()
			r.settle()
			r.wantServed(port, want...)
		}
		if got := r.hap.Reloads(t) - reloads; got != 0 {
			t.Errorf("%d reloads", got)
		}
		if got := testutil.CollectAndCount(r.m.eventToLive); got != 2 {
			t.Errorf("event_to_live has %d series, want 2 lanes", got)
		}
	})
}

// A HAProxy that hangs does not hold the loop for longer than the caller allows.
func TestSilentHAProxy(t *testing.T) {
	r := newDriver(t, haproxytest.Default(t))
	port, change := r.start(3)
	r.hap.Faults.Silence()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	res := r.Apply(ctx, change(2))
	if res.Err == nil || r.Status().Connected {
		t.Fatalf("%+v, status %+v; want a lost connection", res, r.Status())
	}
	if res := r.Apply(t.Context(), change(2, 1)); res.Err != nil || res.Commands != 0 || res.Lane != LaneFast {
		t.Errorf("without a connection: %+v", res)
	}
	r.hap.Faults.Heal()
	r.settle()
	r.wantServed(port, "b", "c")
}

// What somebody changes by hand is noticed, counted by kind and put right.
func TestAuditRepairs(t *testing.T) {
	forBoth(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newDriver(t, bin)
		port, change := r.start(3)
		audit := func() {
			t.Helper()
			if err := r.Audit(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.until("the audit is over", func() bool { return !r.auditing })
		}
		drift := func(kind driftKind) float64 { return testutil.ToFloat64(r.m.drift.WithLabelValues(string(kind))) }
		audit()
		for _, kind := range driftKinds {
			if drift(kind) != 0 {
				t.Errorf("drift %s without any", kind)
			}
		}
		first, second := r.backends["web"].have.servers[0].Name, r.backends["web"].have.servers[1].Name
		r.hap.Command(t, "set server web/"+first+" state maint")
		r.hap.Command(t, "set server web/"+second+" weight 77")
		audit()
		r.settle()
		r.wantServed(port, "a", "b")
		if drift(driftState) != 1 || drift(driftWeight) != 1 {
			t.Errorf("drift state %v, weight %v; want 1 each", drift(driftState), drift(driftWeight))
		}
		if r.caps.DynamicServers {
			r.hap.Command(t, "set server web/"+first+" state maint")
			haproxytest.Eventually(t, "the server is deleted by hand", func() error {
				if out := r.hap.Command(t, "del server web/"+first); !strings.Contains(out, "deleted") {
					return fmt.Errorf("del server: %s", out)
				}
				return nil
			})
			stray := liveServers(t, "stray")[0]
			r.hap.Command(t, "add server web/stray "+stray.String())
			r.hap.Command(t, "set server web/stray state ready")
			audit()
			r.settle()
			r.wantServed(port, "a", "b")
			if drift(driftMissing) != 1 || drift(driftUnknown) != 1 {
				t.Errorf("drift missing %v, unknown %v; want 1 each", drift(driftMissing), drift(driftUnknown))
			}
		} else {
			r.hap.Command(t, fmt.Sprintf("set server web/%s addr 127.0.0.1 port 1", first))
			audit()
			r.settle()
			r.wantServed(port, "a", "b")
			if drift(driftAddr) != 1 {
				t.Errorf("drift address %v, want 1", drift(driftAddr))
			}
		}
		// Found by a change before any audit: the command is refused, and the truth is read.
		third := change(0, 1, 2).Backends["web"].Servers[2]
		if r.caps.DynamicServers {
			r.hap.Command(t, fmt.Sprintf("add server web/%s 127.0.0.1:1", third.Name))
			res := r.Apply(t.Context(), change(0, 1, 2))
			if !slices.Contains(r.reasons(), ReasonServer) || res.Lane != LaneSlow {
				t.Errorf("a foreign server under our name: %+v, reasons %v", res, r.reasons())
			}
			r.settle()
			r.wantServed(port, "a", "b", "c")
		}
	})
}

// A removed server is deleted when its connections have ended, and these are ended when
// the drain time is over; where deleting is not safe it never happens.
func TestReaper(t *testing.T) {
	forBoth(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newDriver(t, bin)
		// A server that keeps its connections.
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		accepted := make(chan net.Conn, 16) // the health check connects too
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				accepted <- c
			}
		}()
		t.Cleanup(func() { l.Close(); <-ended })
		port, change := r.start(1 + 1)
		long := change()
		long.Backends["web"].Servers = listen("web", port, l.Addr().(*net.TCPAddr).AddrPort()).Servers
		r.apply(long)
		client, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		served := <-accepted
		defer served.Close()
		name := r.server(l.Addr().String())

		r.apply(change(0))
		r.wantServed(port, "a")
		r.until("a delete is tried", func() bool {
			return !r.caps.DynamicServers || testutil.ToFloat64(r.m.commands[DelServer][refused]) > 0
		})
		served.SetReadDeadline(time.Now().Add(time.Minute))
		fmt.Fprintln(client, "still here")
		if line := make([]byte, 11); true {
			if _, err := io.ReadFull(served, line); err != nil || string(line) != "still here\n" {
				t.Fatalf("the connection ended before its time: %q, %v", line, err)
			}
		}
		// The drain time passes.
		for i := range r.leftovers {
			r.leftovers[i].since = time.Now().Add(-time.Hour)
			r.leftovers[i].next = time.Now()
		}
		r.reap(t.Context())
		client.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := client.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("the connection goes on after the drain time: %v", err)
		}
		r.until("nothing is left over", func() bool { return len(r.leftovers) == 0 })
		state := r.hap.Command(t, "show servers state web")
		if there := strings.Contains(state, " "+name+" "); there == r.caps.DynamicServers {
			t.Errorf("server %s is there: %t\n%s", name, there, state)
		}
		if n := testutil.ToFloat64(r.m.commands[DelServer][done]); (n > 0) != r.caps.DynamicServers {
			t.Errorf("%v servers deleted", n)
		}
		r.settle()
	})
}

// server finds the name of the server at addr in what is believed to run.
func (r *driver) server(addr string) string {
	r.t.Helper()
	for _, s := range r.backends["web"].have.servers {
		if s.Addr.String() == addr && s.State == Ready {
			return s.Name
		}
	}
	r.t.Fatalf("no server at %s in %+v", addr, r.backends["web"].have)
	return ""
}

// Task changes go to the old worker while a reload runs, and to the new one after it.
func TestChangesDuringAReload(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newDriver(t, bin)
		port, change := r.start(6)
		ports := haproxytest.FreePorts(t, 2)
		for round, on := range [][]int{{2, 3}, {4}, {0, 5, 1}} {
			other := listen("other", ports[round%2], change(0).Backends["web"].Servers[0].Addr)
			res := r.apply(Change{Backends: map[string]*Backend{"other": other}})
			if res.Lane != LaneSlow {
				t.Fatalf("a changed bind: %+v", res)
			}
			r.until("the reload runs", func() bool { return r.reloading })
			var want []string
			for _, i := range on {
				want = append(want, fmt.Sprintf("%c", 'a'+i))
			}
			c := change(on...)
			if res := r.apply(c); res.Lane != LaneFast || res.Commands == 0 {
				t.Fatalf("a task change during a reload: %+v", res)
			}
			r.until("the reload is over", func() bool { return !r.reloading })
			r.wantServed(port, want...)
			r.settle()
			r.wantServed(port, want...)
			r.wantServed(ports[round%2], "a")
		}
		// An app that goes while the reload that brings it runs.
		r.apply(Change{Backends: map[string]*Backend{"brief": listen("brief", haproxytest.FreePorts(t, 1)[0])}})
		r.until("the reload runs", func() bool { return r.reloading })
		r.apply(Change{Backends: map[string]*Backend{"brief": nil}})
		r.settle()
		if out := r.hap.Command(t, "show backend"); strings.Contains(out, "brief") {
			t.Errorf("a removed backend is there:\n%s", out)
		}
		if len(r.backends) != 2 {
			t.Errorf("%d backends are remembered, want web and other", len(r.backends))
		}
	})
}

// Growing beyond the spare slots costs one reload, with that reason; not growing costs none.
func TestSlotsGrow(t *testing.T) {
	bin := haproxytest.Default(t)
	if CapabilitiesOf(Version{bin.Major, bin.Minor}).DynamicServers {
		t.Skipf("HAProxy %s has no need of slots", bin.Name())
	}
	r := newDriver(t, bin)
	port, change := r.start(9)
	reloads := r.hap.Reloads(t)
	r.apply(change(0, 1, 2, 3))
	r.settle()
	if got := r.hap.Reloads(t) - reloads; got != 0 {
		t.Fatalf("%d reloads for four of four slots", got)
	}
	res := r.apply(change(0, 1, 2, 3, 4))
	if res.Lane != LaneSlow || !slices.Equal(res.Reasons, []Reason{ReasonSlots}) {
		t.Fatalf("five servers in four slots: %+v", res)
	}
	r.settle()
	r.wantServed(port, "a", "b", "c", "d", "e")
	if got := r.hap.Reloads(t) - reloads; got != 1 {
		t.Errorf("%d reloads, want 1", got)
	}
	if got := testutil.ToFloat64(r.m.reloads.WithLabelValues(string(ReasonSlots), "ok")); got != 1 {
		t.Errorf("reloads_total{slots,ok} = %v, want 1", got)
	}
	r.apply(change(0, 1, 2, 3, 4, 5, 6, 7, 8))
	r.settle()
	r.wantServed(port, "a", "b", "c", "d", "e", "f", "g", "h", "i")
	if got := r.hap.Reloads(t) - reloads; got != 1 {
		t.Errorf("%d reloads, want still 1", got)
	}
	if st := r.Status(); st.Servers["ready"] != 9 || st.Servers["spare"] != 7 {
		t.Errorf("servers %v, want 9 ready and 7 spare", st.Servers)
	}
}

// Maps change at run time, and what is in the file is what runs.
func TestMaps(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newDriver(t, bin)
		port := haproxytest.FreePorts(t, 1)[0]
		addrs := liveServers(t, "a", "b")
		backend := func(name string, addr int) *Backend {
			b := listen(name, 0, addrs[addr])
			b.Binds = nil
			return b
		}
		front := &Section{Kind: KindFrontend, Name: "range", Mode: TCP, Binds: []Bind{{Addr: "127.0.0.1", Port: port}},
			Lines: []string{"use_backend %[dst_port,map_int(%map(ports))]"}}
		key := fmt.Sprint(port)
		r.apply(Change{Global: r.global, Frontends: map[string]*Section{"range": front},
			Backends: map[string]*Backend{"be_a": backend("be_a", 0), "be_b": backend("be_b", 1)},
			Maps:     map[string]map[string]string{"ports": {key: "be_a"}}, MapKinds: map[string]string{"ports": "int"}})
		r.settle()
		r.wantServed(port, "a")
		reloads := r.hap.Reloads(t)
		route := func(to, want string) {
			t.Helper()
			if res := r.apply(Change{Maps: map[string]map[string]string{"ports": {key: to}}}); res.Lane != LaneFast || res.Commands != 1 {
				t.Fatalf("route to %q: %+v", to, res)
			}
			if want != "" {
				r.wantServed(port, want)
			}
			r.settle()
		}
		route("be_b", "b")
		route("", "")
		route("be_a", "a")
		route("be_b", "b")
		if got := r.hap.Reloads(t) - reloads; got != 0 {
			t.Errorf("%d reloads by map changes", got)
		}
		r.hap.Restart(t)
		r.wantServed(port, "b")
		r.until("the restarted HAProxy is adopted", func() bool { return r.info.Pid == r.hap.Pid(t) && r.Status().Matches })
		route("be_a", "a")
		// By hand, and found.
		path := r.maps["ports"].have.path
		r.hap.Command(t, "del map "+path+" "+key)
		r.hap.Command(t, "add map "+path+" 1 be_b")
		if err := r.Audit(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.until("the audit is over", func() bool { return !r.auditing })
		r.wantServed(port, "a")
		if got := testutil.ToFloat64(r.m.drift.WithLabelValues("map")); got != 2 {
			t.Errorf("drift of kind map: %v, want 2", got)
		}
		// Refused because somebody else was faster: read back and done.
		r.hap.Command(t, "del map "+path+" "+key)
		route("be_b", "b")
		// Gone with the lines that use it.
		r.apply(Change{Frontends: map[string]*Section{"range": nil}, Maps: map[string]map[string]string{"ports": nil}})
		r.settle()
		if len(r.maps) != 0 {
			t.Errorf("maps left: %v", r.maps)
		}
		if out := r.hap.Command(t, "show map"); strings.Contains(out, "ports") {
			t.Errorf("HAProxy still has it:\n%s", out)
		}
	})
}

// What HAProxy refuses does not keep the rest from going live, does not make it reload
// again and again, and is taken when it is put right.
func TestRejectedApp(t *testing.T) {
	forBoth(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newDriver(t, bin)
		port, change := r.start(3)
		ports := haproxytest.FreePorts(t, 2)
		addr := change(0).Backends["web"].Servers[0].Addr
		bad := listen("bad", ports[0], addr)
		bad.Lines, bad.Unproven = []string{"no-such-directive at all"}, true
		r.apply(Change{Backends: map[string]*Backend{"bad": bad, "good": listen("good", ports[1], addr)}})
		r.settle()
		r.wantServed(ports[1], "a")
		if st := r.Status(); len(st.Rejected) != 1 || st.Rejected[0].Owner != "/bad" {
			t.Fatalf("rejected %+v, want /bad", st.Rejected)
		}
		reloads := r.hap.Reloads(t)
		again := *bad
		again.Servers = listen("bad", 0, addr, change(1).Backends["web"].Servers[0].Addr).Servers
		r.apply(Change{Backends: map[string]*Backend{"bad": &again}})
		r.apply(change(2))
		r.settle()
		r.wantServed(port, "c")
		if got := r.hap.Reloads(t) - reloads; got != 0 {
			t.Errorf("%d reloads for a task of a rejected app", got)
		}
		r.apply(Change{Backends: map[string]*Backend{"bad": listen("bad", ports[0], addr)}})
		r.settle()
		r.wantServed(ports[0], "a")
		if st := r.Status(); len(st.Rejected) != 0 {
			t.Errorf("still rejected: %+v", st.Rejected)
		}
	})
}

// A runtime command that HAProxy refuses for good costs one reload and not one after the
// other.
func TestRefusedCommand(t *testing.T) {
	r := newDriver(t, haproxytest.Default(t))
	port, change := r.start(2)
	static := func(weight int, state State) Change {
		c := change(0, 1)
		c.Backends["web"].Balance = "static-rr"
		c.Backends["web"].Servers[0].Weight = weight
		c.Backends["web"].Servers[0].State = state
		return c
	}
	r.apply(static(10, Ready))
	r.settle()
	reloads := r.hap.Reloads(t)
	res := r.Apply(t.Context(), static(20, Ready)) // "only accepts weights '0%' and '100%'"
	if res.Lane != LaneSlow || !slices.Equal(res.Reasons, []Reason{ReasonRefused}) || res.Err == nil {
		t.Fatalf("%+v, want the slow lane for %s", res, ReasonRefused)
	}
	r.settle()
	if got := r.hap.Reloads(t) - reloads; got != 1 {
		t.Errorf("%d reloads, want 1", got)
	}
	// Drained at a reload, it has weight 0 in the file and asks for no other until it is ready.
	r.apply(static(20, Drain))
	r.apply(Change{Frontends: map[string]*Section{"f": {Kind: KindFrontend, Name: "f", Mode: TCP,
		Binds: []Bind{{Addr: "127.0.0.1", Port: haproxytest.FreePorts(t, 1)[0]}}, Lines: []string{"default_backend web"}}}})
	r.settle()
	r.wantServed(port, "b")
	reloads = r.hap.Reloads(t)
	r.Apply(t.Context(), static(20, Ready))
	r.settle()
	r.wantServed(port, "a", "b")
	if got := r.hap.Reloads(t) - reloads; got != 1 {
		t.Errorf("%d reloads to undrain, want 1", got)
	}
}

// A reload is held while old workers are too many, and goes when one has ended.
func TestReloadHeldByOldWorkers(t *testing.T) {
	r := newDriver(t, haproxytest.Default(t))
	r.Proxy.opts.MaxOldWorkers = 1
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := haproxytest.FreePorts(t, 1)[0]
	r.apply(Change{Global: r.global, Backends: map[string]*Backend{"web": listen("web", port, l.Addr().(*net.TCPAddr).AddrPort())}})
	r.settle()
	client, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	served, err := l.Accept() // keeps the worker alive
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	more := func(name string) Change {
		return Change{Backends: map[string]*Backend{name: listen(name, haproxytest.FreePorts(t, 1)[0])}}
	}
	r.apply(more("one"))
	r.settle()
	if st := r.Status(); st.OldWorkers != 1 {
		t.Fatalf("%d old workers, want 1", st.OldWorkers)
	}
	reloads := r.hap.Reloads(t)
	r.apply(more("two"))
	r.until("the reload is held", func() bool { return !r.heldSince.IsZero() })
	if got := r.hap.Reloads(t); got != reloads {
		t.Errorf("%d reloads while held", got-reloads)
	}
	client.Close()
	served.Close()
	r.settle()
	if got := r.hap.Reloads(t) - reloads; got != 1 {
		t.Errorf("%d reloads, want 1", got)
	}
	if got := testutil.ToFloat64(r.m.reloadHolds.WithLabelValues("released")); got != 1 {
		t.Errorf("reload_holds_total{released} = %v, want 1", got)
	}
}

// Until it is told what is wanted, a Proxy changes nothing in HAProxy.
func TestNothingIsTouchedBeforeTheFirstApply(t *testing.T) {
	r := newDriver(t, haproxytest.Default(t))
	_, change := r.start(2)
	r.settle()
	r.Close()
	r.hap.Command(t, "set server web/"+r.backends["web"].have.servers[0].Name+" state maint")
	before, err := os.ReadFile(r.hap.ConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	state := r.hap.Command(t, "show servers state web")
	r.open()
	if err := r.Audit(t.Context()); err != nil {
		t.Fatal(err)
	}
	probes := 0
	r.until("two probes have looked", func() bool { probes++; return probes > 4 })
	r.Close()
	if after := r.hap.Command(t, "show servers state web"); columns(after) != columns(state) {
		t.Errorf("servers changed:\n%s\nwere\n%s", after, state)
	}
	if after, err := os.ReadFile(r.hap.ConfigFile); err != nil || string(after) != string(before) {
		t.Errorf("the file changed (%v)", err)
	}
	_ = change
}

// columns are those of `show servers state` that do not count time.
func columns(state string) string {
	var out strings.Builder
	for line := range strings.Lines(state) {
		if f := strings.Fields(line); len(f) > 20 {
			fmt.Fprintln(&out, f[1], f[3], f[4], f[5], f[6], f[7], f[18])
		}
	}
	return out.String()
}

// A disk that takes no file costs nothing but the file.
func TestSaveFails(t *testing.T) {
	r := newDriver(t, haproxytest.Default(t))
	port, change := r.start(3)
	if os.Geteuid() == 0 {
		// Root writes everywhere: a directory in place of the file does what a full disk does.
		if err := os.Rename(r.hap.ConfigFile, r.hap.ConfigFile+".aside"); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(r.hap.ConfigFile, 0o755); err != nil {
			t.Fatal(err)
		}
	} else if err := os.Chmod(filepath.Dir(r.hap.ConfigFile), 0o555); err != nil {
		t.Fatal(err)
	}
	r.apply(change(2))
	r.wantServed(port, "c")
	r.until("a save has failed", func() bool { return testutil.ToFloat64(r.m.saves.WithLabelValues("failed")) > 0 })
	if st := r.Status(); st.LastError == "" || !st.Matches {
		t.Errorf("status %+v", st)
	}
	r.apply(change(1))
	r.wantServed(port, "b")
	if os.Geteuid() == 0 {
		if err := os.Remove(r.hap.ConfigFile); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(r.hap.ConfigFile+".aside", r.hap.ConfigFile); err != nil {
			t.Fatal(err)
		}
	} else if err := os.Chmod(filepath.Dir(r.hap.ConfigFile), 0o755); err != nil {
		t.Fatal(err)
	}
	r.settle()
	r.hap.Restart(t)
	r.wantServed(port, "b")
}

// A HAProxy that comes back in another version is given what that version understands,
// and its servers the strategy that is right there.
func TestHAProxyUpgraded(t *testing.T) {
	old, newest := haproxytest.Default(t), haproxytest.Newest(t)
	if old.Path == newest.Path {
		t.Skipf("only HAProxy %s is here", old.Name())
	}
	r := newDriver(t, old)
	port, change := r.start(4)
	r.hap.Binary = newest
	r.hap.Restart(t)
	r.wantServed(port, "a", "b") // from the file, slots and all
	r.until("the other version is adopted", func() bool { return r.caps.Version == Version{newest.Major, newest.Minor} })
	r.settle()
	r.wantServed(port, "a", "b")
	added := testutil.ToFloat64(r.m.commands[AddServer][done])
	res := r.apply(change(2, 3))
	if more := testutil.ToFloat64(r.m.commands[AddServer][done]) - added; res.Lane != LaneFast || more != 2 {
		t.Errorf("%+v, %v servers added; want two in the fast lane", res, more)
	}
	r.wantServed(port, "c", "d")
	r.until("nothing is left over", func() bool { return len(r.leftovers) == 0 })
	if st := r.Status(); st.Servers["ready"] != 2 || st.Servers["spare"]+st.Servers["retired"] != 0 {
		t.Errorf("servers %v, want two ready and no others", st.Servers)
	}
}

// A template is used when HAProxy takes it; one that does not parse changes nothing, and one
// that HAProxy refuses is given up, so that nothing else waits for it.
func TestSetTemplate(t *testing.T) {
	r := newDriver(t, haproxytest.Default(t))
	port, change := r.start(3)
	good := templates.HAProxy
	if err := r.SetTemplate(t.Context(), good+"{{"); !errors.Is(err, ErrTemplate) {
		t.Errorf("error %v, want %v", err, ErrTemplate)
	}
	if !r.Status().Matches {
		t.Errorf("a template that does not parse: %+v", r.Status())
	}
	reloads := r.hap.Reloads(t)
	if err := r.SetTemplate(t.Context(), strings.Replace(good, "global\n", "global\n  no-such-keyword\n", 1)); err != nil {
		t.Fatal(err)
	}
	r.until("it is given up", func() bool { return r.Status().LastError != "" && !r.reloading })
	r.apply(change(2))
	r.settle()
	r.wantServed(port, "c")
	if got := r.hap.Reloads(t) - reloads; got != 0 {
		t.Errorf("%d reloads of a template that HAProxy refuses", got)
	}
	if err := r.SetTemplate(t.Context(), strings.Replace(good, "global\n", "global\n  # of our own\n", 1)); err != nil {
		t.Fatal(err)
	}
	r.settle()
	if text, err := os.ReadFile(r.hap.ConfigFile); err != nil || !strings.Contains(string(text), "# of our own") {
		t.Errorf("the new template is not in use (%v)", err)
	}
	r.apply(change(0))
	r.settle()
	if text, err := os.ReadFile(r.hap.ConfigFile); err != nil || !strings.Contains(string(text), "# of our own") {
		t.Errorf("a save has lost the new template (%v)", err)
	}
}
