package haproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bridged/internal/haproxy/haproxytest"
)

// rig is a Reloader on a running HAProxy.
type rig struct {
	t        *testing.T
	h        *haproxytest.HAProxy
	files    *Files
	reloader *Reloader
	renderer *Renderer
	cfg      *Config
	seq      int
	worker   Worker
}

func newRig(t *testing.T, bin haproxytest.Binary, opts ...func(*ReloaderOptions)) *rig {
	t.Helper()
	h := haproxytest.Start(t, haproxytest.Options{Binary: bin})
	files := NewFiles(FilesOptions{Config: h.ConfigFile})
	o := ReloaderOptions{Files: files, Socket: h.Socket, MasterSocket: h.MasterSocket, Binary: bin.Path, Timeout: 30 * time.Second}
	for _, opt := range opts {
		opt(&o)
	}
	reloader, err := NewReloader(o)
	if err != nil {
		t.Fatal(err)
	}
	return &rig{t: t, h: h, files: files, reloader: reloader,
		renderer: newRenderer(t, "", capsOf(t, bin)),
		cfg:      &Config{Global: &Global{Socket: h.DirectSocket, MaxConn: 200}, Backends: map[string]*Backend{}}}
}

// put adds an app that answers with its name.
func (r *rig) put(name string, port uint16, lines ...string) *Backend {
	b := tcpApp(name, port, Server{Name: "s1", Addr: haproxytest.Server(r.t, name), Weight: -1})
	b.ServerOptions, b.Lines, b.Unproven = "", lines, len(lines) > 0
	next := *r.cfg
	next.Backends = make(map[string]*Backend)
	for n, have := range r.cfg.Backends {
		next.Backends[n] = have
	}
	next.Backends[name] = b
	r.cfg = &next
	return b
}

func (r *rig) reload() (Worker, error) {
	r.t.Helper()
	out, err := r.renderer.Render(r.cfg)
	if err != nil {
		out = nil
	}
	structure := strings.Repeat("0", structureDigits)
	if out != nil {
		structure = out.Structure
	}
	r.seq++
	req := ReloadRequest{Config: r.cfg, Renderer: r.renderer, Rendered: out, Generation: FormatGeneration(structure, r.seq)}
	if r.worker.Rendered != nil {
		req.OldBinds = r.worker.Rendered.Binds
	}
	w, err := r.reloader.Reload(r.t.Context(), req)
	if err == nil {
		r.worker = w
	}
	return w, err
}

func (r *rig) mustReload() Worker {
	r.t.Helper()
	w, err := r.reload()
	if err != nil {
		r.t.Fatal(err)
	}
	return w
}

func (r *rig) answers(port uint16, want string) {
	r.t.Helper()
	if got, err := haproxytest.Ask(port); err != nil || got != want {
		r.t.Errorf("port %d answered %q, %v; want %q", port, got, err, want)
	}
}

func TestReloadIsConfirmedByTheNewWorker(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newRig(t, bin)
		ports := haproxytest.FreePorts(t, 6)
		before := r.h.Pid(t)
		// Back to back: a reload that is asked for while the master still loads is lost on 2.6.
		for i, port := range ports {
			r.put(fmt.Sprintf("app-%d", i), port)
			w := r.mustReload()
			if w.Pid == before || w.Pid != r.h.Pid(t) {
				t.Fatalf("worker %d, HAProxy says %d, before %d", w.Pid, r.h.Pid(t), before)
			}
			before = w.Pid
			if got := r.h.Info(t)["description"]; got != w.Generation {
				t.Fatalf("generation %q, want %q", got, w.Generation)
			}
			for j := range ports[:i+1] {
				r.answers(ports[j], fmt.Sprintf("app-%d", j))
			}
		}
		if got := r.h.Reloads(t); got != len(ports) {
			t.Errorf("HAProxy counts %d reloads, want %d", got, len(ports))
		}
		if _, err := os.Stat(r.h.ConfigFile + backupSuffix); err != nil {
			t.Errorf("no copy of the file before the takeover: %v", err)
		}
	})
}

func TestBusyPortIsRejectedAndTheOthersGoOn(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newRig(t, bin)
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		busy := l.Addr().(*net.TCPAddr).AddrPort().Port()
		ports := haproxytest.FreePorts(t, 2)
		r.put("first", ports[0])
		r.mustReload()
		r.put("busy", busy)
		r.put("other", ports[1])
		w := r.mustReload()
		if len(w.Rejected) != 1 || w.Rejected[0].Owner != "/busy" || !strings.Contains(w.Rejected[0].Detail, "in use") {
			t.Fatalf("rejected %+v, want /busy", w.Rejected)
		}
		if structure, _, _ := ParseGeneration(w.Generation); !strings.HasPrefix(w.Structure, structure) {
			t.Errorf("generation %s does not name structure %s", w.Generation, w.Structure)
		}
		r.answers(ports[0], "first")
		r.answers(ports[1], "other")

		// A port that comes free is had with the next reload.
		l.Close()
		if w := r.mustReload(); len(w.Rejected) != 0 {
			t.Errorf("rejected %+v after the port came free", w.Rejected)
		}
		r.answers(busy, "busy")
	})
}

func TestRefusedAppIsIsolatedAndStaysOutUntilItChanges(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newRig(t, bin)
		ports := haproxytest.FreePorts(t, 9)
		for i := range 7 {
			r.put(fmt.Sprintf("app-%d", i), ports[i])
		}
		r.put("changing", ports[7], "option tcplog")
		r.mustReload()
		r.put("changing", ports[7], "no-such-keyword")
		r.put("new", ports[8], "neither-this")
		r.reloader.check.runs = 0
		w := r.mustReload()
		if len(w.Rejected) != 2 || w.Rejected[0].Owner != "/changing" || w.Rejected[1].Owner != "/new" {
			t.Fatalf("rejected %+v, want /changing and /new", w.Rejected)
		}
		if !strings.Contains(w.Rejected[0].Detail, "no-such-keyword") || strings.Contains(w.Rejected[0].Detail, "neither-this") {
			t.Errorf("detail of /changing: %q", w.Rejected[0].Detail)
		}
		for i := range 7 {
			r.answers(ports[i], fmt.Sprintf("app-%d", i))
		}
		r.answers(ports[7], "changing") // in its last good form
		if _, err := haproxytest.Ask(ports[8]); err == nil {
			t.Error("an app that was refused is served")
		}
		// Only two apps have changed: 1 check finds the fault, some more the culprits.
		if runs := r.reloader.check.runs; runs > 8 {
			t.Errorf("%d checks", runs)
		}

		r.reloader.check.runs = 0
		if w := r.mustReload(); len(w.Rejected) != 2 {
			t.Errorf("rejected %+v, want the same two", w.Rejected)
		}
		if runs := r.reloader.check.runs; runs != 0 {
			t.Errorf("%d checks for what is known", runs)
		}
		r.put("new", ports[8], "option tcplog")
		if w := r.mustReload(); len(w.Rejected) != 1 {
			t.Errorf("rejected %+v, want /changing alone", w.Rejected)
		}
		r.answers(ports[8], "new")
	})
}

func TestRefusalThatNobodyExpectedIsIsolatedToo(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newRig(t, bin)
		ports := haproxytest.FreePorts(t, 2)
		r.put("good", ports[0])
		r.mustReload()
		r.put("bad", ports[1], "no-such-keyword").Unproven = false // as if our own translation were wrong
		r.put("good", ports[0], "option tcplog").Unproven = false
		w := r.mustReload()
		if len(w.Rejected) != 1 || w.Rejected[0].Owner != "/bad" {
			t.Fatalf("rejected %+v, want /bad", w.Rejected)
		}
		r.answers(ports[0], "good")
	})
}

func TestRefusedTemplateRollsBack(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newRig(t, bin)
		port := haproxytest.FreePorts(t, 1)[0]
		r.put("app", port)
		w := r.mustReload()
		good, err := os.ReadFile(r.h.ConfigFile)
		if err != nil {
			t.Fatal(err)
		}
		global := *r.cfg.Global
		global.KeptGlobal = []string{"no-such-keyword"}
		next := *r.cfg
		next.Global = &global
		r.cfg = &next
		// With the check, and without a haproxy to check with.
		for _, binary := range []string{bin.Path, "/does/not/exist"} {
			r.reloader.check.binary = binary
			_, err = r.reload()
			failure, ok := errors.AsType[*ReloadError](err)
			if !ok {
				t.Fatalf("error %v, want a ReloadError", err)
			}
			if binary == bin.Path && (failure.Stage != "check" || !strings.Contains(err.Error(), "no-such-keyword")) {
				t.Errorf("error %v does not name the keyword", err)
			}
			if got, err := os.ReadFile(r.h.ConfigFile); err != nil || string(got) != string(good) {
				t.Errorf("haproxy.cfg was not rolled back: %v\n%s", err, got)
			}
			if got := r.h.Info(t)["description"]; got != w.Generation {
				t.Errorf("HAProxy runs %q, want %q", got, w.Generation)
			}
			r.answers(port, "app")
		}
		plain := global
		plain.KeptGlobal = nil
		r.cfg.Global = &plain
		r.put("app", port, "option tcplog")
		r.reloader.check.binary = bin.Path
		r.mustReload() // a failed reload leaves the next one working
		r.answers(port, "app")
	})
}

func TestReloadCommandRunsWithoutAShell(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newRig(t, bin)
		pid := r.h.MasterPid()
		r.h.MasterCommand(t, "show proc") // a signal before the master is ready would be lost
		var err error
		r.reloader, err = NewReloader(ReloaderOptions{Files: r.files, Socket: r.h.Socket, Binary: bin.Path,
			ReloadCommand: fmt.Sprintf("kill -USR2 %d", pid), Timeout: 30 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		port := haproxytest.FreePorts(t, 1)[0]
		r.put("app", port)
		r.mustReload()
		r.answers(port, "app")

		r.reloader.command = []string{"false"}
		r.put("app", port, "option tcplog")
		_, err = r.reload()
		if failure, ok := errors.AsType[*ReloadError](err); !ok || failure.Stage != "confirm" {
			t.Errorf("error %v, want one of the command", err)
		}
	})
}

func TestReloadCommandWithoutEffectIsRunAgain(t *testing.T) {
	r := newRig(t, haproxytest.Default(t))
	flag := filepath.Join(r.h.Dir, "flag")
	r.h.MasterCommand(t, "show proc")
	script := fmt.Sprintf("if [ -e %s ]; then kill -USR2 %d; else touch %s; fi", flag, r.h.MasterPid(), flag)
	var err error
	r.reloader, err = NewReloader(ReloaderOptions{Files: r.files, Socket: r.h.Socket,
		ReloadCommand: "sh -c '" + script + "'", Timeout: 8 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	port := haproxytest.FreePorts(t, 1)[0]
	r.put("app", port)
	r.mustReload()
	r.answers(port, "app")
}

func TestSplitCommand(t *testing.T) {
	got, err := splitCommand(`systemctl  reload 'ha proxy' a"b c"d ""`)
	if want := "systemctl|reload|ha proxy|ab cd|"; err != nil || strings.Join(got, "|") != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if _, err := splitCommand(`a 'b`); err == nil {
		t.Error("an open quote was accepted")
	}
}

func TestReaderNeverSeesAMissingOrPartialFile(t *testing.T) {
	r := newRig(t, haproxytest.Default(t))
	b := r.put("app", haproxytest.FreePorts(t, 1)[0])
	r.cfg.Maps = map[string]*Map{"m": {Entries: map[string]string{}}}
	w := r.mustReload()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	reads := 0
	wg.Go(func() {
		for ctx.Err() == nil {
			text, err := os.ReadFile(r.h.ConfigFile)
			if err != nil {
				t.Errorf("haproxy.cfg: %v", err)
				return
			}
			if !strings.HasPrefix(string(text), "# Written by bridged") || !strings.HasSuffix(string(text), "# end\n") {
				t.Errorf("partial file:\n%s", text)
				return
			}
			reads++
		}
	})
	saves := 1000
	if testing.Short() {
		saves = 100
	}
	for i := range saves {
		next := *b
		next.Servers = []Server{{Name: fmt.Sprintf("s%d", i), Addr: b.Servers[0].Addr, Weight: -1}}
		r.cfg.Backends["app"] = &next
		r.cfg.Maps["m"].Entries["k"] = fmt.Sprint(i)
		out, err := r.renderer.Render(r.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.files.Save(t.Context(), out, w.Generation); err != nil {
			t.Fatal(err)
		}
		if i%(saves/20) == 0 {
			r.mustReload()
		}
	}
	cancel()
	wg.Wait()
	if reads == 0 {
		t.Error("the reader read nothing")
	}
	if maps, _ := filepath.Glob(filepath.Join(r.h.Dir, "m.*.map")); len(maps) == 0 {
		t.Error("no map file is left")
	}
}

func TestReloadWritesAFileThatIsGone(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newRig(t, bin)
		port := haproxytest.FreePorts(t, 1)[0]
		r.put("app", port)
		r.mustReload()
		// Without its file the master of 3.x would end, and all listeners with it.
		if err := os.Remove(r.h.ConfigFile); err != nil {
			t.Fatal(err)
		}
		r.mustReload()
		r.answers(port, "app")
		if !r.h.Alive() {
			t.Error("the master is gone")
		}
	})
}

// Somebody else reloads all the time: ours is seen through, and the ports answer.
func TestReloadsOfSomebodyElseDoNotSwallowOurs(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newRig(t, bin)
		ports := haproxytest.FreePorts(t, 4)
		for i, port := range ports {
			r.put(fmt.Sprintf("app-%d", i), port)
			for range 3 {
				if err := syscall.Kill(r.h.MasterPid(), syscall.SIGUSR2); err != nil {
					t.Fatal(err)
				}
			}
			if w := r.mustReload(); r.h.Info(t)["description"] != w.Generation {
				t.Errorf("reload %d: HAProxy runs %q, want %q", i, r.h.Info(t)["description"], w.Generation)
			}
			for j := range i + 1 {
				r.answers(ports[j], fmt.Sprintf("app-%d", j))
			}
		}
	})
}
