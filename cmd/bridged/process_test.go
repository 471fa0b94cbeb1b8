package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bridged/internal/discovery/marathontest"
	"bridged/internal/haproxy/haproxytest"
)

// process is bridged as a process of its own.
type process struct {
	*exec.Cmd
	stdout, stderr output
	exited         chan struct{}
}

// output is written by the process's copier and read by the test.
type output struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// start runs this test binary as bridged. It is killed when the test ends.
func start(t testing.TB, environ []string, args ...string) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{Cmd: exec.Command(exe), exited: make(chan struct{})}
	p.Env = append(append(os.Environ(), environ...), "BRIDGED_TEST_ARGS="+strings.Join(args, "\n"))
	p.Stdout, p.Stderr = &p.stdout, &p.stderr
	// A supervised HAProxy inherits our stderr and keeps it open.
	p.WaitDelay = time.Second
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.Wait(); close(p.exited) }()
	t.Cleanup(func() {
		p.Process.Kill()
		<-p.exited
		if t.Failed() {
			t.Logf("bridged %s said:\n%s%s", strings.Join(args, " "), p.stdout.String(), p.stderr.String())
		}
	})
	return p
}

// ends waits for the process and returns its exit code.
func (p *process) ends(t testing.TB, within time.Duration) int {
	t.Helper()
	select {
	case <-p.exited:
		return p.ProcessState.ExitCode()
	case <-time.After(within):
		t.Fatalf("bridged still runs after %v", within)
		return 0
	}
}

// The tour works, in time, and leaves nothing behind.
func TestDemoOnce(t *testing.T) {
	bin := haproxytest.Default(t)
	p := start(t, nil, "demo", "--once", "--haproxy-binary", bin.Path)
	if code := p.ends(t, 40*time.Second); code != exitOK {
		t.Errorf("exit code %d, want 0", code)
	}
	out := p.stdout.String()
	for _, want := range []string{"deploy /web", "scale /web", "kill a task", "after TASK_RUNNING", "after TASK_KILLING", " 0 failed", "SERVER"} {
		if !strings.Contains(out, want) {
			t.Errorf("the tour does not say %q", want)
		}
	}
	nothingLeft(t, out)
}

// Without --once everything stays up until Ctrl-C, which ends all of it.
func TestDemoEndsWithCtrlC(t *testing.T) {
	bin := haproxytest.Default(t)
	p := start(t, nil, "demo", "--haproxy-binary", bin.Path)
	haproxytest.Eventually(t, "the demo invites to play", func() error {
		if !strings.Contains(p.stdout.String(), "Everything stays up until Ctrl-C") {
			return errors.New("not yet")
		}
		return nil
	})
	p.Process.Signal(os.Interrupt)
	if code := p.ends(t, 20*time.Second); code != exitOK {
		t.Errorf("exit code %d, want 0", code)
	}
	nothingLeft(t, p.stdout.String())
}

// nothingLeft fails when a demo left its directory or a process that names it.
func nothingLeft(t *testing.T, stdout string) {
	t.Helper()
	_, rest, ok := strings.Cut(stdout, ", in ")
	dir, _, _ := strings.Cut(rest, "\n")
	if !ok || !strings.HasPrefix(dir, "/tmp/bridged-demo-") {
		t.Fatalf("the demo names no directory:\n%s", stdout)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left (%v)", dir, err)
	}
	if pids := processesOf(dir); len(pids) > 0 {
		t.Errorf("processes %v are left", pids)
	}
}

func TestDemoWithoutHAProxy(t *testing.T) {
	got := command(t, nil, "demo", "--haproxy-binary", "/nonexistent/haproxy")
	want := "bridged: --haproxy-binary: no /nonexistent/haproxy on this machine; install it (apt install haproxy) or name the program\n"
	if got.code != exitError || got.stderr != want {
		t.Errorf("exit code %d, stderr %q, want %d, %q", got.code, got.stderr, exitError, want)
	}
}

// supervised is a directory with a configuration in which bridged starts HAProxy.
type supervised struct {
	dir, config, listen string
	marathon            *marathontest.Cluster
}

func newSupervised(t testing.TB) *supervised {
	t.Helper()
	bin := haproxytest.Default(t)
	dir, err := os.MkdirTemp("/tmp", "bridged-test-") // short, for the paths of sockets
	if err != nil {
		t.Fatal(err)
	}
	s := &supervised{dir: dir, listen: fmt.Sprintf("127.0.0.1:%d", haproxytest.FreePorts(t, 1)[0])}
	backends := &marathontest.Backends{}
	s.marathon = marathontest.New(marathontest.Options{Backend: backends.Serve})
	t.Cleanup(func() {
		if err := stopHAProxy(dir); err != nil {
			t.Error(err)
		}
		s.marathon.Close()
		backends.Wait()
		os.RemoveAll(dir)
	})
	if err := s.marathon.Start(); err != nil {
		t.Fatal(err)
	}
	s.config = writeFile(t, dir, "bridged.yaml", fmt.Sprintf(`marathon: {urls: [%[1]s]}
haproxy:
  config: %[2]s/haproxy.cfg
  socket: %[2]s/admin.sock
  master_socket: %[2]s/master.sock
  supervise: true
  binary: %[3]s
  bind: 127.0.0.1
listen: %[4]s
state_dir: %[2]s/state
`, s.marathon.URL(0), dir, bin.Path, s.listen))
	return s
}

func (s *supervised) master() string { return filepath.Join(s.dir, "master.sock") }

// ready waits until /readyz is 200.
func (s *supervised) ready(t testing.TB) {
	t.Helper()
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	haproxytest.Eventually(t, "bridged is ready", func() error {
		resp, err := client.Get("http://" + s.listen + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", resp.Status, body)
		}
		return err
	})
}

// haproxy is the process of the master and how often it was reloaded, as it says itself.
func (s *supervised) haproxy(t *testing.T) (pid, reloads int) {
	t.Helper()
	haproxytest.Eventually(t, "the master answers", func() error {
		// After a reload an old master refuses connections for a moment.
		conn, err := net.Dial("unix", s.master())
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "show proc;quit\n"); err != nil {
			return err
		}
		for sc := bufio.NewScanner(conn); sc.Scan(); {
			if f := strings.Fields(sc.Text()); len(f) > 2 && f[1] == "master" {
				_, err := fmt.Sscan(f[0]+" "+f[2], &pid, &reloads)
				return err
			}
		}
		return errors.New("show proc names no master")
	})
	return pid, reloads
}

// A bridged that is killed with -9 under traffic loses no request; the HAProxy that it
// had started goes on, and the next bridged adopts it without a reload.
func TestKilledBridgedIsReplacedWithoutAReload(t *testing.T) {
	s := newSupervised(t)
	port := int(haproxytest.FreePorts(t, 1)[0])
	first := start(t, nil, "run", "--config", s.config)
	s.ready(t)
	if err := s.marathon.Deploy(marathontest.AppSpec{ID: "/web", Instances: 3, Ports: []marathontest.Port{{Service: port}}}); err != nil {
		t.Fatal(err)
	}
	answers(t, port, 3)
	s.ready(t)
	traffic := startLoad(port)
	defer traffic.stop()
	pid, reloads := s.haproxy(t)

	first.Process.Kill()
	first.ends(t, 10*time.Second)
	answers(t, port, 3)
	second := start(t, nil, "run", "--config", s.config)
	s.ready(t)
	answers(t, port, 3)
	if gotPid, got := s.haproxy(t); gotPid != pid || got != reloads {
		t.Errorf("HAProxy %d with %d reloads after the restart, want %d with %d", gotPid, got, pid, reloads)
	}
	if err := s.marathon.Scale("/web", 4); err != nil {
		t.Fatal(err)
	}
	answers(t, port, 4)
	if gotPid, got := s.haproxy(t); gotPid != pid || got != reloads {
		t.Errorf("HAProxy %d with %d reloads after a task was added, want %d with %d", gotPid, got, pid, reloads)
	}

	// An ordinary end is as harmless.
	second.Process.Signal(syscall.SIGTERM)
	if code := second.ends(t, 10*time.Second); code != exitOK {
		t.Errorf("exit code %d after SIGTERM, want 0", code)
	}
	answers(t, port, 4)
	if sent, failed := traffic.stop(); len(failed) > 0 {
		t.Errorf("%d of %d requests failed, such as: %v", len(failed), sent, failed[0])
	}
}

// answers waits until the n tasks of /web answer on port.
func answers(t *testing.T, port, n int) {
	t.Helper()
	client := fresh()
	haproxytest.Eventually(t, fmt.Sprintf("%d tasks answer", n), func() error {
		seen := map[string]bool{}
		for range 3 * n {
			task, err := ask(context.Background(), client, port)
			if err != nil {
				return err
			}
			seen[task] = true
		}
		if len(seen) != n {
			return fmt.Errorf("%d tasks answered: %v", len(seen), seen)
		}
		return nil
	})
}

// The service manager hears of the start, of signs of life, of reloads and of the end.
func TestServiceManagerIsToldOurState(t *testing.T) {
	s := newSupervised(t)
	path := filepath.Join(s.dir, "notify")
	ln, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	heard := make(chan string, 1024)
	go func() {
		defer close(heard)
		buf := make([]byte, 4096)
		for {
			n, err := ln.Read(buf)
			if err != nil {
				return
			}
			heard <- string(buf[:n])
		}
	}()
	await := func(prefix string) {
		t.Helper()
		for deadline := time.After(30 * time.Second); ; {
			select {
			case got := <-heard:
				if strings.HasPrefix(got, prefix) {
					return
				}
			case <-deadline:
				t.Fatalf("the service manager does not hear %s", prefix)
			}
		}
	}
	p := start(t, []string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=300000"}, "run", "--config", s.config)
	await("READY=1")
	await("WATCHDOG=1")
	await("STATUS=in step with Marathon")
	await("WATCHDOG=1")
	p.Process.Signal(syscall.SIGHUP)
	await("RELOADING=1\nMONOTONIC_USEC=")
	await("READY=1")
	p.Process.Signal(syscall.SIGTERM)
	await("STOPPING=1")
	if code := p.ends(t, 10*time.Second); code != exitOK {
		t.Errorf("exit code %d, want 0", code)
	}
}
