package haproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bridged/internal/haproxy/haproxytest"
)

// The variables with which a test process calls itself as a bridge that is killed.
const (
	crashDir     = "BRIDGED_TEST_CRASH_DIR"
	crashStep    = "BRIDGED_TEST_CRASH_STEP" // -1: runs to its end
	crashBinary  = "BRIDGED_TEST_CRASH_BINARY"
	crashPorts   = "BRIDGED_TEST_CRASH_PORTS" // "port=server port=server": the apps
	crashSuperv  = "BRIDGED_TEST_CRASH_SUPERVISE"
	crashTimeout = time.Minute
)

// TestBridgeThatIsKilled is not a test of its own: it is the process that
// TestKilledAtEachStep kills.
func TestBridgeThatIsKilled(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		t.Skip("runs only as a process of TestKilledAtEachStep")
	}
	at, err := strconv.Atoi(os.Getenv(crashStep))
	if err != nil {
		t.Fatal(err)
	}
	step := func(s Step) {
		if int(s) == at {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // until it takes effect
		}
	}
	bin, err := haproxytest.Inspect(os.Getenv(crashBinary))
	if err != nil {
		t.Fatal(err)
	}
	o := ReloaderOptions{Files: NewFiles(FilesOptions{Config: dir + "/haproxy.cfg", Step: step}), Socket: dir + "/admin.sock",
		MasterSocket: dir + "/master.sock", Binary: bin.Path, Step: step, Timeout: crashTimeout}
	if os.Getenv(crashSuperv) != "" {
		o.Supervisor = NewSupervisor(SupervisorOptions{Binary: bin.Path, Config: dir + "/haproxy.cfg", Socket: o.Socket,
			MasterSocket: o.MasterSocket, Step: step})
	}
	reloader, err := NewReloader(o)
	if err != nil {
		t.Fatal(err)
	}
	cfg := &Config{Global: &Global{Socket: o.Socket, MaxConn: 100}, Backends: map[string]*Backend{},
		Maps: map[string]*Map{"m": {Entries: map[string]string{}}}}
	for i, app := range strings.Fields(os.Getenv(crashPorts)) {
		port, server, _ := strings.Cut(app, "=")
		number, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("app-%d", i)
		b := tcpApp(name, uint16(number), Server{Name: "s", Addr: netip.MustParseAddrPort(server), Weight: -1})
		b.ServerOptions, b.Lines = "", []string{"acl known src,map_str(%map(m)) -m found"}
		cfg.Backends[name] = b
		cfg.Maps["m"].Entries["127.0.0."+strconv.Itoa(i+1)] = name
	}
	renderer := newRenderer(t, "", capsOf(t, bin))
	out, err := renderer.Render(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reloader.Reload(t.Context(), ReloadRequest{Config: cfg, Renderer: renderer, Rendered: out,
		Generation: FormatGeneration(out.Structure, len(cfg.Backends))}); err != nil {
		t.Fatal(err)
	}
}

// A bridge that is killed at any step leaves a HAProxy that serves and a file that it can
// start from, and the next bridge brings it where it should be.
func TestKilledAtEachStep(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		h := haproxytest.Start(t, haproxytest.Options{Binary: bin})
		ports := haproxytest.FreePorts(t, int(Steps)+1)
		bridge := func(apps int, at Step) error {
			t.Helper()
			var list []string
			for i := range apps {
				list = append(list, fmt.Sprintf("%d=%s", ports[i], haproxytest.Server(t, fmt.Sprint("app-", i))))
			}
			return runBridge(t, h.Dir, bin, at, "", list)
		}
		if err := bridge(1, -1); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		wg.Go(func() {
			for ctx.Err() == nil {
				if got, err := haproxytest.Ask(ports[0]); err != nil || got != "app-0" {
					t.Errorf("lost a connection: %q, %v", got, err)
				}
			}
		})
		for step := range StepStarted {
			apps := int(step) + 2
			if err := bridge(apps, step); err == nil {
				t.Fatalf("%v: the bridge was not killed", step)
			}
			if _, err := h.Check(t); err != nil {
				t.Fatalf("killed at %v: HAProxy could not start from the file: %v", step, err)
			}
			if err := bridge(apps, -1); err != nil {
				t.Fatalf("killed at %v: the next bridge failed: %v", step, err)
			}
			for i := range apps {
				if got, err := haproxytest.Ask(ports[i]); err != nil || got != fmt.Sprint("app-", i) {
					t.Errorf("killed at %v: app-%d answered %q, %v", step, i, got, err)
				}
			}
		}
		// Restarted by somebody, HAProxy comes up as it was.
		cancel()
		wg.Wait()
		want := h.Info(t)["description"]
		h.Restart(t)
		if got := h.Info(t)["description"]; got != want {
			t.Errorf("after a restart: %q, want %q", got, want)
		}
	})
}

// A bridge that is killed right after it started HAProxy leaves it to the next one.
func TestKilledAfterStartingHAProxy(t *testing.T) {
	bin := haproxytest.Newest(t)
	s, o := newSupervisor(t, bin)
	dir := strings.TrimSuffix(o.Config, "/haproxy.cfg")
	port := haproxytest.FreePorts(t, 1)[0]
	apps := []string{fmt.Sprintf("%d=%s", port, haproxytest.Server(t, "app-0"))}
	if err := runBridge(t, dir, bin, StepStarted, "yes", apps); err == nil {
		t.Fatal("the bridge was not killed")
	}
	if started, err := s.Ensure(t.Context()); err != nil || started {
		t.Errorf("started %v, %v; want the HAProxy of the killed bridge", started, err)
	}
	if got, err := haproxytest.Ask(port); err != nil || got != "app-0" {
		t.Errorf("answer %q, %v", got, err)
	}
}

// runBridge runs this test binary as a bridge that is killed at a step. A process that was
// not killed and failed ends the test.
func runBridge(t *testing.T, dir string, bin haproxytest.Binary, at Step, supervise string, apps []string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*crashTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestBridgeThatIsKilled$")
	cmd.Env = append(os.Environ(), crashDir+"="+dir, crashStep+"="+strconv.Itoa(int(at)), crashBinary+"="+bin.Path,
		crashPorts+"="+strings.Join(apps, " "), crashSuperv+"="+supervise)
	cmd.WaitDelay = time.Second // a HAProxy that it started holds its output open
	said, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		t.Fatalf("the bridge failed by itself: %v\n%s", err, said)
	}
	return err
}
