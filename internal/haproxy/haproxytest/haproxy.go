package haproxytest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for HAProxy. It is long because it only has to tell a
// slow machine from a hang; no wait takes longer than what it waits for.
const patience = 60 * time.Second

// Options say how to start HAProxy. The zero value is the default binary with a
// configuration that has the stats socket and nothing else.
type Options struct {
	Binary Binary // zero: Default

	// Config is the whole haproxy.cfg, Sections what follows the default global and
	// defaults sections; at most one is given. $DIR and $SOCKET in them stand for the
	// test's directory and the path of the stats socket.
	Config   string
	Sections string

	Args  []string // further arguments
	Stall bool     // return without waiting for the stats socket
}

// HAProxy is a running master with its worker. Its methods may be called from several
// goroutines, except Restart and Stop, which the test itself calls.
type HAProxy struct {
	Binary

	Dir          string
	ConfigFile   string
	Socket       string // stats socket, level admin, behind Faults
	DirectSocket string // the same socket without Faults in between
	MasterSocket string
	Faults       *Faults

	args []string
	mu   sync.Mutex // guards the fields below
	proc *process
}

// process is one master from its start to its end.
type process struct {
	pid    int
	exited chan struct{} // closed when the master has been waited for
	state  *os.ProcessState
	stderr lockedBuffer
}

const defaultConfig = `global
    stats socket $SOCKET mode 600 level admin expose-fd listeners
    stats timeout 1h
    maxconn 500
    nbthread 2
    hard-stop-after 10s

defaults
    mode tcp
    option redispatch
    timeout connect 2s
    timeout client 10s
    timeout server 10s

`

// Start runs HAProxy until the test ends and returns when its stats socket answers.
func Start(t testing.TB, opt Options) *HAProxy {
	t.Helper()
	if opt.Binary.Path == "" {
		opt.Binary = Default(t)
	}
	// Not t.TempDir: HAProxy binds a unix socket under a longer temporary name first, and
	// the name of a subtest easily makes the path longer than a socket's may be.
	dir, err := os.MkdirTemp("", "hap")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &HAProxy{
		Binary:       opt.Binary,
		Dir:          dir,
		ConfigFile:   filepath.Join(dir, "haproxy.cfg"),
		Socket:       filepath.Join(dir, "faulty.sock"),
		DirectSocket: filepath.Join(dir, "admin.sock"),
		MasterSocket: filepath.Join(dir, "master.sock"),
		args:         opt.Args,
	}
	text := opt.Config
	if text == "" {
		text = defaultConfig + opt.Sections
	}
	text = strings.NewReplacer("$DIR", dir, "$SOCKET", h.DirectSocket).Replace(text)
	if err := os.WriteFile(h.ConfigFile, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	h.Faults = newFaults(t, h.Socket, h.DirectSocket)
	t.Cleanup(func() {
		h.Stop()
		if t.Failed() {
			t.Logf("HAProxy %s said:\n%s", h.Version, h.Log())
		}
	})
	h.start(t)
	if !opt.Stall {
		h.WaitReady(t)
	}
	return h
}

// start runs the program from the file that stands on disk now.
func (h *HAProxy) start(t testing.TB) {
	t.Helper()
	p := &process{exited: make(chan struct{})}
	args := append([]string{"-W", "-S", h.MasterSocket, "-f", h.ConfigFile}, h.args...)
	cmd := exec.Command(h.Path, args...)
	cmd.Stdout, cmd.Stderr = &p.stderr, &p.stderr
	cmd.Dir = h.Dir
	// The master must not outlive a test process that is killed; its worker ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// Pdeathsig is sent when the thread that started the process ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			_ = cmd.Wait() // the state below says how it ended
			p.state = cmd.ProcessState
			close(p.exited)
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", h.Path, err)
	}
	h.mu.Lock()
	h.proc = p
	h.mu.Unlock()
}

func (h *HAProxy) process() *process {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.proc
}

// WaitReady waits until the stats socket answers.
func (h *HAProxy) WaitReady(t testing.TB) {
	t.Helper()
	p := h.process()
	Eventually(t, "HAProxy's stats socket answers", func() error {
		select {
		case <-p.exited:
			t.Fatalf("HAProxy %s ended with %v:\n%s", h.Version, p.state, h.Log())
		default:
		}
		_, err := h.info()
		return err
	})
}

// MasterPid is the process id of the master.
func (h *HAProxy) MasterPid() int { return h.process().pid }

// Alive reports whether the master runs.
func (h *HAProxy) Alive() bool {
	select {
	case <-h.process().exited:
		return false
	default:
		return true
	}
}

// Log is what the current master and its workers wrote to stdout and stderr.
func (h *HAProxy) Log() string { return h.process().stderr.String() }

// Pid is the process id of the worker that accepts new connections on the stats socket.
func (h *HAProxy) Pid(t testing.TB) int {
	t.Helper()
	pid, err := strconv.Atoi(h.Info(t)["Pid"])
	if err != nil {
		t.Fatalf("Pid in show info: %v", err)
	}
	return pid
}

// Info is `show info` of the worker that accepts new connections.
func (h *HAProxy) Info(t testing.TB) map[string]string {
	t.Helper()
	info, err := h.info()
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func (h *HAProxy) info() (map[string]string, error) {
	out, err := ask(h.DirectSocket, "show info", patience)
	if err != nil {
		return nil, err
	}
	info := map[string]string{}
	for line := range strings.Lines(out) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
			info[key] = value
		}
	}
	if info["Pid"] == "" {
		return nil, fmt.Errorf("show info answered %q", out)
	}
	return info, nil
}

// Command sends one line to the stats socket on a connection of its own, past Faults,
// and returns the answer.
func (h *HAProxy) Command(t testing.TB, line string) string {
	t.Helper()
	out, err := ask(h.DirectSocket, line, patience)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return out
}

// MasterCommand sends one line to the master socket.
func (h *HAProxy) MasterCommand(t testing.TB, line string) string {
	t.Helper()
	var out string
	// The master executes itself anew after start and at each reload, and meanwhile
	// refuses connections or drops those it has accepted.
	Eventually(t, "the master socket answers", func() (err error) {
		out, err = ask(h.MasterSocket, line, 5*time.Second)
		if err == nil && out == "" {
			err = errors.New("empty answer")
		}
		return err
	})
	return out
}

var (
	// 2.2 has a column "relative PID" before the reloads, newer ones the failed reloads behind them.
	masterLine = regexp.MustCompile(`(?m)^\d+\s+master\s+(?:\d+\s+)?(\d+)\s+(?:\[failed: \d+\]\s+)?\d+d`)
	workerLine = regexp.MustCompile(`(?m)^(\d+)\s+worker\s`)
)

// Reloads is how often the master was told to reload since it started, failed reloads
// included, as the master itself counts them.
func (h *HAProxy) Reloads(t testing.TB) int {
	t.Helper()
	out := h.MasterCommand(t, "show proc")
	m := masterLine.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("show proc: no master in %q", out)
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// Workers are the process ids of all workers, old ones included.
func (h *HAProxy) Workers(t testing.TB) []int {
	t.Helper()
	var pids []int
	for _, m := range workerLine.FindAllStringSubmatch(h.MasterCommand(t, "show proc"), -1) {
		pid, _ := strconv.Atoi(m[1])
		pids = append(pids, pid)
	}
	return pids
}

// Reload reloads from the file on disk, as an operator would, and returns when a new
// worker accepts connections on the stats socket and the master is ready for the next
// reload: 2.6 loses a signal that comes before that.
func (h *HAProxy) Reload(t testing.TB) {
	t.Helper()
	old, count := h.Pid(t), h.Reloads(t)
	if err := syscall.Kill(h.MasterPid(), syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "a new worker serves", func() error {
		info, err := h.info()
		if err != nil {
			return err
		}
		if info["Pid"] == strconv.Itoa(old) || info["Stopping"] == "1" {
			return fmt.Errorf("worker %d still answers; HAProxy said:\n%s", old, h.Log())
		}
		if n := h.Reloads(t); n <= count {
			return fmt.Errorf("the master counts %d reloads", n)
		}
		return nil
	})
}

// KillWorker kills the serving worker without warning. The master then ends too; use
// Restart to do what a service manager does.
func (h *HAProxy) KillWorker(t testing.TB) {
	t.Helper()
	if err := syscall.Kill(h.Pid(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-h.process().exited
}

// Restart stops HAProxy if it runs and starts it from the file on disk.
func (h *HAProxy) Restart(t testing.TB) {
	t.Helper()
	h.Stop()
	h.start(t)
	h.WaitReady(t)
}

// Stop ends HAProxy at once, connections and old workers included.
func (h *HAProxy) Stop() {
	p := h.process()
	if p == nil {
		return
	}
	// The whole group: a hard-stopped master does not take workers of earlier
	// generations with it.
	_ = syscall.Kill(-p.pid, syscall.SIGKILL)
	<-p.exited
}

// Check runs haproxy -c on the file that stands on disk and returns what it says.
func (h *HAProxy) Check(t testing.TB) (string, error) {
	t.Helper()
	return Check(h.Binary, h.ConfigFile)
}

// Check runs haproxy -c on file.
func Check(bin Binary, file string) (string, error) {
	out, err := exec.Command(bin.Path, "-c", "-f", file).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("haproxy %s -c: %w: %s", bin.Version, err, out)
	}
	return string(out), err
}

// ask sends one line on a new connection and reads until the peer closes.
func ask(socket, line string, timeout time.Duration) (string, error) {
	conn, err := net.DialTimeout("unix", socket, timeout)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return "", err
	}
	// The master of 2.6 keeps the connection open until it is told that nothing follows.
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		return "", err
	}
	out, err := io.ReadAll(conn)
	return string(out), err
}

// Eventually calls check until it returns nil, and fails the test with its last error
// when that takes longer than any working HAProxy needs.
func Eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, patience, err)
		}
		<-tick.C
	}
}

// lockedBuffer is written by the process's output copier and read by the test.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
