package haproxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bridged/internal/haproxy/haproxytest"
)

// newSupervisor gives a supervisor in a short directory; HAProxy is stopped with the test.
func newSupervisor(t *testing.T, bin haproxytest.Binary) (*Supervisor, SupervisorOptions) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sup")
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	o := SupervisorOptions{Binary: bin.Path, Config: filepath.Join(dir, "haproxy.cfg"), Stderr: log,
		Socket: filepath.Join(dir, "admin.sock"), MasterSocket: filepath.Join(dir, "master.sock")}
	s := NewSupervisor(o)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
		if text, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("HAProxy said:\n%s", text)
		}
		log.Close()
		os.RemoveAll(dir)
	})
	return s, o
}

func TestSupervisedHAProxyOutlivesItsBridgeAndIsAdopted(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		first, o := newSupervisor(t, bin)
		_, err := first.Ensure(t.Context())
		if _, ok := errors.AsType[*StartError](err); !ok {
			t.Fatalf("start without a file: %v, want a StartError", err)
		}

		files := NewFiles(FilesOptions{Config: o.Config})
		reloader, err := NewReloader(ReloaderOptions{Files: files, Socket: o.Socket, MasterSocket: o.MasterSocket,
			Supervisor: first, Binary: bin.Path, Timeout: 30 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		port := haproxytest.FreePorts(t, 1)[0]
		cfg := &Config{Global: &Global{Socket: o.Socket, MaxConn: 100, KeptGlobal: []string{"daemon"}}, Backends: map[string]*Backend{
			"app": tcpApp("app", port, Server{Name: "s", Addr: haproxytest.Server(t, "app"), Weight: -1})}}
		cfg.Backends["app"].ServerOptions = ""
		renderer := newRenderer(t, "", capsOf(t, bin))
		w, err := reloader.Reload(t.Context(), ReloadRequest{Config: cfg, Renderer: renderer, Generation: FormatGeneration("0123456789ab", 1)})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := haproxytest.Ask(port); err != nil || got != "app" {
			t.Errorf("answer %q, %v", got, err)
		}

		// The bridge is gone without a word. The next one finds what runs and starts nothing.
		second := NewSupervisor(o)
		started, err := second.Ensure(t.Context())
		if err != nil || started {
			t.Errorf("second bridge: started %v, %v; want adopted", started, err)
		}
		info, err := askInfo(t.Context(), o.Socket)
		if err != nil || info.Pid != w.Pid || info.Description != w.Generation {
			t.Errorf("running: %+v, %v; want pid %d", info, err, w.Pid)
		}
		// In a session of its own: what ends our process group or terminal does not end it.
		procs, err := masterProcs(t.Context(), o.MasterSocket)
		if err != nil {
			t.Fatal(err)
		}
		if group, err := syscall.Getpgid(procs.Master); err != nil || group == syscall.Getpgrp() {
			t.Errorf("master is in our process group %d (%v)", group, err)
		}

		// A killed worker takes its master along; Ensure brings it back from the file.
		if err := syscall.Kill(w.Pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		haproxytest.Eventually(t, "the master has ended", func() error {
			if _, err := askMaster(t.Context(), o.MasterSocket, "show proc", time.Second); err == nil {
				return errors.New("still answers")
			}
			return nil
		})
		if started, err := first.Ensure(t.Context()); err != nil || !started {
			t.Errorf("after the crash: started %v, %v", started, err)
		}
		if got, err := haproxytest.Ask(port); err != nil || got != "app" {
			t.Errorf("after the crash: answer %q, %v", got, err)
		}
	})
}

func TestSupervisedStartOfARefusedFileNamesTheReason(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		s, o := newSupervisor(t, bin)
		reloader, err := NewReloader(ReloaderOptions{Files: NewFiles(FilesOptions{Config: o.Config}), Socket: o.Socket,
			MasterSocket: o.MasterSocket, Supervisor: s, Binary: bin.Path, Timeout: 30 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		ports := haproxytest.FreePorts(t, 2)
		cfg := &Config{Global: &Global{Socket: o.Socket, MaxConn: 100}, Backends: map[string]*Backend{
			"bad": tcpApp("bad", ports[0]), "good": tcpApp("good", ports[1], Server{Name: "s", Addr: haproxytest.Server(t, "good"), Weight: -1})}}
		cfg.Backends["bad"].Lines = []string{"no-such-keyword"} // and not marked as unproven
		cfg.Backends["good"].ServerOptions = ""
		w, err := reloader.Reload(t.Context(), ReloadRequest{Config: cfg, Renderer: newRenderer(t, "", capsOf(t, bin)), Generation: FormatGeneration("0123456789ab", 1)})
		if err != nil {
			t.Fatal(err)
		}
		if len(w.Rejected) != 1 || w.Rejected[0].Owner != "/bad" || !strings.Contains(w.Rejected[0].Detail, "no-such-keyword") {
			t.Errorf("rejected %+v", w.Rejected)
		}
		if got, err := haproxytest.Ask(ports[1]); err != nil || got != "good" {
			t.Errorf("answer %q, %v", got, err)
		}
	})
}

func TestEnvironmentOfAStartedHAProxy(t *testing.T) {
	got := haproxyEnv([]string{"PATH=/bin", "NOTIFY_SOCKET=/x", "WATCHDOG_USEC=1", "LISTEN_FDS=1", "HAPROXY_MWORKER_REEXEC=1", "HOME=/"})
	if want := "[PATH=/bin HOME=/]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}
