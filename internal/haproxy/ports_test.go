package haproxy

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"bridged/internal/haproxy/haproxytest"
)

// hog holds a port as a foreign process would.
func hog(t *testing.T) (net.Listener, uint16) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// A port that somebody took while HAProxy was down costs its own app alone, and only for as
// long as it is held. A bridge that starts meanwhile finds that all that can run runs.
func TestBusyPortAtTheStart(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		s, o := newSupervisor(t, bin)
		r := &driver{t: t, global: &Global{Socket: o.Socket, MaxConn: 100}}
		r.opts = Options{ConfigFile: o.Config, Socket: o.Socket, MasterSocket: o.MasterSocket, Binary: bin.Path,
			Supervise: true, Stderr: o.Stderr, SaveDelay: time.Millisecond, Logger: testLog(t)}
		start := func() {
			t.Helper()
			p, err := New(r.opts)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { p.Close() })
			if err := p.Adopt(t.Context()); err != nil && !errors.Is(err, ErrUnreachable) {
				t.Fatal(err)
			}
			r.Proxy = p
		}
		a := liveServers(t, "a", "b")
		holder, busy := hog(t)
		free := haproxytest.FreePorts(t, 1)[0]
		all := func() Change {
			return Change{Global: r.global, Backends: map[string]*Backend{"a": listen("a", free, a[0]), "b": listen("b", busy, a[1])}}
		}

		// Both run, with the port free.
		holder.Close()
		start()
		r.apply(all())
		r.settle()
		r.wantServed(busy, "b")
		r.Close()
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}

		// The machine comes up again, and somebody else was first.
		holder, err := net.Listen("tcp4", holder.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer holder.Close()
		start()
		r.apply(all())
		r.settle()
		r.wantServed(free, "a")
		if got := r.Status().Rejected; len(got) != 1 || got[0].Owner != "/b" || got[0].Reason != PortBusy {
			t.Fatalf("rejected %+v, want /b for its port", got)
		}

		// Another bridge starts: nothing it could do about it, so no reload.
		pid := r.Status().Pid
		r.Close()
		start()
		r.portRetry = time.Millisecond
		r.apply(all())
		r.settle()
		if st := r.Status(); st.Pid != pid || st.Reloads != 0 || len(st.Rejected) != 1 {
			t.Errorf("after a restart: %+v, want worker %d, no reload and /b rejected", st, pid)
		}

		// The holder goes.
		holder.Close()
		r.until("the rejected app is served", func() bool { st := r.Status(); return st.Matches && len(st.Rejected) == 0 })
		r.wantServed(busy, "b")
		r.wantServed(free, "a")
		r.Close()
	})
}

// Old workers are told by the master: also those that an earlier bridge has left, and where
// the processes themselves cannot be seen.
func TestMasterTellsOldWorkers(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newDriver(t, bin)
		l, _ := hog(t)
		port := haproxytest.FreePorts(t, 1)[0]
		web := listen("web", port, l.Addr().(*net.TCPAddr).AddrPort())
		web.ServerOptions = ""
		r.apply(Change{Global: r.global, Backends: map[string]*Backend{"web": web}})
		r.settle()
		client, err := net.Dial("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		served, err := l.Accept() // keeps the worker alive
		if err != nil {
			t.Fatal(err)
		}
		defer served.Close()
		old := r.Status().Pid
		r.apply(Change{Backends: map[string]*Backend{"more": listen("more", haproxytest.FreePorts(t, 1)[0])}})
		r.settle()
		r.Close()

		r.open()
		r.until("the old worker is known", func() bool { return r.Status().OldWorkers == 1 })
		if r.oldPids[0] != old {
			t.Errorf("old worker %d, want %d", r.oldPids[0], old)
		}
		client.Close()
		served.Close()
		r.until("the old worker has ended", func() bool { return r.Status().OldWorkers == 0 })
	})
}

// What is dropped to fit into HAProxy's limits is said and counted.
func TestDroppedChecksAreCounted(t *testing.T) {
	r := newDriver(t, haproxytest.Default(t))
	procs, err := masterProcs(t.Context(), r.hap.MasterSocket)
	if err != nil {
		t.Fatal(err)
	}
	const limit = 1500
	if err := unix.Prlimit(procs.Master, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: limit}, nil); err != nil {
		t.Fatal(err)
	}
	b := listen("web", haproxytest.FreePorts(t, 1)[0])
	a := liveServers(t, "a")[0]
	for i := range limit {
		b.Servers = append(b.Servers, Server{Name: "s" + strconv.Itoa(i), Addr: a, Weight: -1})
	}
	r.apply(Change{Global: r.global, Backends: map[string]*Backend{"web": b}})
	r.settle()
	if got := testutil.ToFloat64(r.m.unchecked); got < limit {
		t.Errorf("bridged_unchecked_servers is %v, want at least %d", got, limit)
	}
	if notes := strings.Join(r.Status().Notes, "\n"); !strings.Contains(notes, "health checks of") {
		t.Errorf("status does not tell: %q", notes)
	}
}

// Zero means zero: the save follows at once, and so does the end of connections.
func TestZeroDelays(t *testing.T) {
	p, err := New(Options{ConfigFile: "/x/haproxy.cfg", Socket: "/x/s", MasterSocket: "/x/m"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.opts.SaveDelay != 0 || p.opts.Drain != 0 {
		t.Errorf("save delay %v, drain %v; want none", p.opts.SaveDelay, p.opts.Drain)
	}
}

func TestSocketThatIsNone(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	adopt := func(socket string) (*Proxy, error) {
		p, err := New(Options{ConfigFile: filepath.Join(dir, "haproxy.cfg"), Socket: socket, MasterSocket: filepath.Join(dir, "m")})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		return p, p.Adopt(t.Context())
	}
	if _, err := adopt(file); !errors.Is(err, ErrNotHAProxy) || errors.Is(err, ErrUnreachable) {
		t.Errorf("plain file: %v, want ErrNotHAProxy", err)
	}
	if _, err := adopt(filepath.Join(dir, "absent")); !errors.Is(err, ErrUnreachable) {
		t.Errorf("absent: %v, want ErrUnreachable", err)
	}

	// A socket that nothing is read from.
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	silent := filepath.Join(dir, "silent")
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: silent}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 8); err != nil {
		t.Fatal(err)
	}
	p, err := adopt(silent)
	if !errors.Is(err, ErrUnreachable) {
		t.Errorf("silent: %v, want ErrUnreachable", err)
	}
	if said := p.Status().LastError; !strings.Contains(said, "answers nothing") || !strings.Contains(said, "ss -xlp") {
		t.Errorf("status says %q, want what is wrong and how to go on", said)
	}
}
