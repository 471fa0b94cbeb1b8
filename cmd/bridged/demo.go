package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"bridged/internal/bridge"
	"bridged/internal/discovery/marathontest"
)

const (
	// demoPort is where the demo looks for free service ports from.
	demoPort = 10080
	// demoLimit ends a tour that hangs.
	demoLimit = 38 * time.Second
	// demoStop is how long HAProxy may take to end.
	demoStop = 5 * time.Second
)

func newDemoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the whole job on this machine: Marathon simulator, apps, bridged and HAProxy",
		Long: `Run a Marathon simulator with sample apps that really serve HTTP, bridged, and an
HAProxy of its own, all on free loopback ports and below one temporary directory. A
short tour deploys, scales, kills and removes apps, and says after how long a request
through HAProxy saw each change. Then everything stays up to be played with, until
Ctrl-C ends it.`,
		Args: noArgs,
	}
	var once, verbose bool
	var binary string
	cmd.Flags().BoolVar(&once, "once", false, "end after the tour; exit code 0 when all of it worked, else 1")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "print bridged's own log too")
	cmd.Flags().StringVar(&binary, "haproxy-binary", "haproxy", "HAProxy's program")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		// HAProxy would outlive a demo that is not ended in order: by a terminal that is
		// closed, or a pipe that nobody reads.
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP, syscall.SIGPIPE)
		defer stop()
		path, err := exec.LookPath(binary)
		if err != nil {
			return fmt.Errorf("--haproxy-binary: no %s on this machine; install it (apt install haproxy) or name the program", binary)
		}
		d, err := startDemo(ctx, path, cmd.OutOrStdout(), cmd.ErrOrStderr(), verbose)
		if err != nil {
			return err
		}
		err = d.show(ctx, once)
		return errors.Join(err, d.stop())
	}
	return cmd
}

// demo is everything that runs during one.
type demo struct {
	say      *teller
	dir      string
	marathon *marathontest.Cluster
	backends *marathontest.Backends
	probes   *probes
	bridge   *bridge.Bridge
	registry *prometheus.Registry
	log      *os.File

	cancel  context.CancelFunc // ends bridged
	bridged sync.WaitGroup
	failed  error // of bridged, after bridged ended
}

// startDemo brings everything up, with no app deployed.
func startDemo(ctx context.Context, binary string, stdout, stderr io.Writer, verbose bool) (_ *demo, err error) {
	// Below /tmp and not TMPDIR: the path of a unix socket has room for 107 bytes.
	dir, err := os.MkdirTemp("/tmp", "bridged-demo-")
	if err != nil {
		return nil, err
	}
	d := &demo{say: &teller{w: stdout, start: time.Now()}, dir: dir, backends: &marathontest.Backends{}, registry: prometheus.NewRegistry()}
	d.probes = newProbes(d.say)
	defer func() {
		if err != nil {
			err = errors.Join(err, d.stop())
		}
	}()

	d.marathon = marathontest.New(marathontest.Options{
		StartDelay:    150 * time.Millisecond,
		HealthDelay:   200 * time.Millisecond,
		KillDelay:     400 * time.Millisecond,
		RelaunchDelay: 300 * time.Millisecond,
		Backend:       d.backends.Serve,
		OnEvent:       d.probes.event,
		Seed:          uint64(time.Now().UnixNano()),
	})
	if err := d.marathon.Start(); err != nil {
		return nil, fmt.Errorf("start the Marathon simulator: %w", err)
	}

	// A file, as an operator has it; it stays readable while the demo runs.
	file := filepath.Join(dir, "bridged.yaml")
	text := fmt.Sprintf(`marathon:
  urls: [%s]
haproxy:
  config: %[2]s/haproxy.cfg
  socket: %[2]s/admin.sock
  master_socket: %[2]s/master.sock
  supervise: true
  binary: %[3]s
  bind: 127.0.0.1
state_dir: %[2]s/state
listen: 127.0.0.1:0
log: {level: debug}
`, strings.Join(d.marathon.URLs(), ", "), dir, binary)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	// No variables: what is set for the real one must not reach the demo.
	load := func() (*bridge.Config, error) { return bridge.Load(bridge.Sources{File: file}) }
	cfg, err := load()
	if err != nil {
		return nil, err
	}
	if d.log, err = os.Create(filepath.Join(dir, "bridged.log")); err != nil {
		return nil, err
	}
	var logTo io.Writer = d.log
	if verbose {
		logTo = io.MultiWriter(d.log, stderr)
	}
	d.bridge, err = bridge.New(bridge.Options{
		Config:        cfg,
		Load:          load,
		Version:       version,
		Registry:      d.registry,
		HAProxyOutput: d.log,
		Logger:        slog.New(slog.NewTextHandler(logTo, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		return nil, err
	}
	ctx, d.cancel = context.WithCancel(ctx)
	d.bridged.Go(func() { d.failed = d.bridge.Run(ctx) })
	return d, nil
}

// stop ends everything and removes what it left on disk.
func (d *demo) stop() error {
	var errs []error
	if d.probes != nil {
		d.probes.stop()
	}
	if d.cancel != nil {
		d.cancel()
		d.bridged.Wait()
		errs = append(errs, d.failed)
	}
	// It outlives bridged by design, so it is ended here.
	errs = append(errs, stopHAProxy(d.dir))
	if d.marathon != nil {
		d.marathon.Close()
		d.backends.Wait()
	}
	if d.log != nil {
		d.log.Close()
	}
	errs = append(errs, os.RemoveAll(d.dir))
	return errors.Join(errs...)
}

// stopHAProxy ends the HAProxy that runs from dir. Its master may be in the middle of a
// reload, when it answers to nobody, so its processes are found by their command lines,
// which name dir.
func stopHAProxy(dir string) error {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		for deadline := time.Now().Add(demoStop); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			pids := processesOf(dir)
			if len(pids) == 0 {
				return nil
			}
			for _, pid := range pids {
				_ = syscall.Kill(pid, sig) // gone meanwhile is as good
			}
		}
	}
	return fmt.Errorf("haproxy does not end (processes %v); kill it", processesOf(dir))
}

// processesOf lists the processes, other than ours, with a file below dir as argument.
func processesOf(dir string) (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// Empty for a process that is dead and not waited for yet.
		args, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err == nil && strings.Contains(string(args), "\x00"+dir+"/") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// teller prints lines with the time since the start.
type teller struct {
	mu    sync.Mutex
	w     io.Writer
	start time.Time
}

// line prints what happens.
func (t *teller) line(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.w, "%8.3fs  %s\n", time.Since(t.start).Seconds(), fmt.Sprintf(format, args...))
}

// text prints without the time.
func (t *teller) text(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.w, format+"\n", args...)
}

// freePorts finds n ports on loopback that nobody listens on, from demoPort up.
func freePorts(n int) ([]int, error) {
	var ports []int
	for port := demoPort; len(ports) < n && port < demoPort+20000; port++ {
		ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		ln.Close()
		ports = append(ports, port)
	}
	if len(ports) < n {
		return nil, fmt.Errorf("fewer than %d free ports above %d on loopback", n, demoPort)
	}
	return ports, nil
}

// fresh is a client that connects anew for each request, as different clients do.
func fresh() *http.Client {
	return &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true},
	}
}

// tail is the end of bridged's log, for when something did not work.
func (d *demo) tail() string {
	text, err := os.ReadFile(d.log.Name())
	if err != nil {
		return err.Error()
	}
	lines := strings.SplitAfter(string(text), "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "")
}
