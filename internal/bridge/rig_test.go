package bridge_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"bridged/internal/bridge"
	"bridged/internal/discovery/marathontest"
	"bridged/internal/haproxy/haproxytest"
)

func TestMain(m *testing.M) {
	if os.Getenv(bridgeConfig) != "" {
		os.Exit(runAsBridge())
	}
	goleak.VerifyTestMain(m)
}

// rig is the whole job with real parts: a Marathon that speaks the protocol, tasks that
// serve HTTP, a bridge and an HAProxy.
type rig struct {
	t        testing.TB
	marathon *marathontest.Cluster
	backends *marathontest.Backends
	hap      *haproxytest.HAProxy
	client   *http.Client
	greets   map[int]bool // service ports where tasks say "app task" over TCP

	dir    string
	config string        // path of bridged.yaml
	delay  string        // save_delay
	wait   time.Duration // Options.Patience
	bridge *running

	marathonKeys string // further keys of the section marathon, for configure
}

// running is one bridge from its start to its end.
type running struct {
	*bridge.Bridge
	stop func() error // ends it and returns what Run returned
	log  *logBuffer
	kick chan struct{}
}

type rigOptions struct {
	binary   haproxytest.Binary
	marathon marathontest.Options // without Backend: the rig's own
	away     bool                 // Marathon is not started
	keys     string               // further lines of bridged.yaml

	saveDelay string // default 20ms
}

// newRig starts Marathon and HAProxy, and no bridge yet.
func newRig(t testing.TB, o rigOptions) *rig {
	t.Helper()
	r := &rig{t: t, delay: cmp.Or(o.saveDelay, "20ms"), backends: &marathontest.Backends{}, dir: t.TempDir(),
		client: &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}}
	if o.marathon.Backend == nil {
		o.marathon.Backend = r.backends.Serve
	}
	r.marathon = marathontest.New(o.marathon)
	t.Cleanup(func() { r.marathon.Close(); r.backends.Wait() })
	r.hap = haproxytest.Start(t, haproxytest.Options{Binary: o.binary})
	if !o.away {
		r.startMarathon()
	}
	r.configure(o.keys)
	return r
}

func (r *rig) startMarathon() {
	r.t.Helper()
	if err := r.marathon.Start(); err != nil {
		r.t.Fatal(err)
	}
}

// configure writes bridged.yaml, with keys behind what the rig needs.
func (r *rig) configure(keys string) {
	r.t.Helper()
	list := "# Marathon of the test\n"
	if r.marathon.Leader() >= 0 {
		list += strings.Join(r.marathon.URLs(), "\n") + "\n"
	}
	marathons := r.write("marathons", list)
	more := ""
	if r.marathonKeys != "" {
		more = ", " + r.marathonKeys
	}
	r.config = r.write("bridged.yaml", fmt.Sprintf(`marathon: {urls_file: %s%s}
haproxy:
  config: %s
  socket: %s
  master_socket: %s
  binary: %s
  bind: 127.0.0.1
  save_delay: %s
state_dir: %s
listen: 127.0.0.1:0
log: {level: debug}
%s
`, marathons, more, r.hap.ConfigFile, r.hap.DirectSocket, r.hap.MasterSocket, r.hap.Path, r.delay, filepath.Join(r.dir, "state"), keys))
}

// write replaces a file of the rig's directory as an editor does: by rename.
func (r *rig) write(name, text string) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		r.t.Fatal(err)
	}
	return path
}

func (r *rig) load() (*bridge.Config, error) {
	return bridge.Load(bridge.Sources{File: r.config})
}

// start runs a bridge until the test or its stop ends it.
func (r *rig) start() *running {
	r.t.Helper()
	cfg, err := r.load()
	if err != nil {
		r.t.Fatal(err)
	}
	run := &running{log: &logBuffer{}, kick: make(chan struct{}, 1)}
	run.Bridge, err = bridge.New(bridge.Options{
		Config: cfg, Load: r.load, Kick: run.kick, Version: "test", Patience: r.wait,
		Logger: slog.New(slog.NewTextHandler(run.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run.Run(ctx) }()
	run.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	r.t.Cleanup(func() {
		if err := run.stop(); err != nil {
			r.t.Errorf("bridge ended with: %v", err)
		}
		if r.t.Failed() {
			r.t.Logf("log of the bridge:\n%s", run.log.tail(120))
		}
	})
	r.bridge = run
	return run
}

// must runs a command on Marathon.
func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// deploy posts an app with one service port, and a health check when asked for.
func (r *rig) deploy(id string, port uint16, instances int, checks ...marathontest.HealthCheck) {
	r.t.Helper()
	r.must(r.marathon.Deploy(marathontest.AppSpec{
		ID: id, Instances: instances, HealthChecks: checks,
		Ports: []marathontest.Port{{Service: int(port)}},
	}))
}

// converged waits until HAProxy routes to the tasks that Marathon has, and then proves
// it by requests. Nobody else may ask meanwhile: balancing would go by that.
func (r *rig) converged(what string) {
	r.t.Helper()
	r.settled(what)
	for port, want := range r.expected() {
		r.answering(what, port, want)
	}
}

// settled waits until HAProxy has the servers that Marathon has as tasks, as counted by
// the simulator and read from HAProxy itself, and until the file on disk has them too;
// HAProxy must be able to start from it.
func (r *rig) settled(what string) {
	r.t.Helper()
	haproxytest.Eventually(r.t, what, func() error {
		return r.matches(serversOf(r.t, r.hap.Command(r.t, "show servers state")))
	})
	haproxytest.Eventually(r.t, what+": haproxy.cfg follows", func() error {
		text, err := os.ReadFile(r.hap.ConfigFile)
		if err != nil {
			return err
		}
		return r.matches(serversOfFile(string(text)))
	})
	if out, err := r.hap.Check(r.t); err != nil {
		r.t.Fatalf("%s: haproxy -c on the file: %v\n%s", what, err, out)
	}
}

// expected is the routing table of the simulator without ports that nobody serves.
func (r *rig) expected() map[int][]string {
	table := r.marathon.Expected()
	maps.DeleteFunc(table, func(_ int, addrs []string) bool { return len(addrs) == 0 })
	return table
}

func (r *rig) matches(got map[int][]string) error {
	if diff := gocmp.Diff(r.expected(), got); diff != "" {
		return fmt.Errorf("servers by service port (-tasks of Marathon +HAProxy):\n%s", diff)
	}
	return nil
}

// answering fails unless exactly the tasks at want answer on a service port.
func (r *rig) answering(what string, port int, want []string) {
	r.t.Helper()
	tasks := map[string]bool{} // seen yet, by task
	for _, t := range r.marathon.Tasks("") {
		for _, e := range t.Endpoints {
			if e.Service == port && slices.Contains(want, e.Addr) {
				tasks[t.ID] = false
			}
		}
	}
	missing := len(tasks)
	// Balancing may ask the same one twice; many times the number of tasks in a row is
	// not balancing any more.
	for i := 0; missing > 0; i++ {
		if i > 50*len(tasks)+50 {
			r.t.Fatalf("%s: port %d: of %d tasks %d never answered", what, port, len(tasks), missing)
		}
		task, err := r.ask(port)
		if err != nil {
			r.t.Fatalf("%s: port %d: %v", what, port, err)
		}
		seen, known := tasks[task]
		if !known {
			r.t.Fatalf("%s: port %d: %q answers, which should get no traffic", what, port, task)
		}
		if !seen {
			tasks[task] = true
			missing--
		}
	}
}

// ask sends one request through HAProxy and returns the task that answered.
func (r *rig) ask(port int) (string, error) {
	if r.greets[port] {
		return greeted(port)
	}
	resp, err := r.client.Get("http://127.0.0.1:" + strconv.Itoa(port) + "/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s", resp.Status)
	}
	return resp.Header.Get("X-Task"), nil
}

// get asks the bridge's own listener.
func (r *rig) get(path string) (int, string) {
	r.t.Helper()
	resp, err := r.client.Get("http://" + r.bridge.Addr() + path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// ready waits until /readyz says what is wanted.
func (r *rig) ready(want int) {
	r.t.Helper()
	haproxytest.Eventually(r.t, fmt.Sprintf("/readyz %d", want), func() error {
		if code, body := r.get("/readyz"); code != want {
			return fmt.Errorf("%d: %s", code, body)
		}
		return nil
	})
}

// state is what /api/state says.
func (r *rig) state() bridge.State {
	r.t.Helper()
	code, body := r.get("/api/state")
	if code != http.StatusOK {
		r.t.Fatalf("/api/state: %d: %s", code, body)
	}
	var s bridge.State
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		r.t.Fatal(err)
	}
	return s
}

// metric sums the samples of a metric whose labels hold match.
func (r *rig) metric(name, match string) float64 {
	r.t.Helper()
	_, body := r.get("/metrics")
	sum := 0.0
	for line := range strings.Lines(body) {
		head, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if ok && (head == name || strings.HasPrefix(head, name+"{") && strings.Contains(head, match)) {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				r.t.Fatalf("metric %q: %v", line, err)
			}
			sum += v
		}
	}
	return sum
}

// serversOf reads the servers that take traffic out of `show servers state`: address by
// service port, which our proxy names end in.
func serversOf(t testing.TB, reply string) map[int][]string {
	t.Helper()
	table := map[int][]string{}
	for line := range strings.Lines(reply) {
		f := strings.Fields(line)
		if len(f) < 19 || strings.HasPrefix(line, "#") {
			continue
		}
		port, ok := portOf(f[1])
		admin, err := strconv.Atoi(f[6])
		// Bit 2 says that the server was disabled in the file, not that it still is. Draining is
		// a bit or, as the file writes it, a weight of 0.
		if !ok || err != nil || admin&^4 != 0 || f[7] == "0" {
			continue
		}
		table[port] = append(table[port], f[4]+":"+f[18])
	}
	return sorted(table)
}

var (
	sectionLine = regexp.MustCompile(`^(?:listen|backend) (\S+)`)
	serverLine  = regexp.MustCompile(`^\s+server \S+ (\S+:\d+)(.*)$`)
)

// serversOfFile reads the same out of haproxy.cfg.
func serversOfFile(text string) map[int][]string {
	table := map[int][]string{}
	port, ok := 0, false
	for line := range strings.Lines(text) {
		if m := sectionLine.FindStringSubmatch(line); m != nil {
			port, ok = portOf(m[1])
		}
		m := serverLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil || !ok || strings.Contains(m[2]+" ", " disabled ") || strings.Contains(m[2]+" ", " weight 0 ") {
			continue
		}
		table[port] = append(table[port], m[1])
	}
	return sorted(table)
}

func sorted(table map[int][]string) map[int][]string {
	for _, addrs := range table {
		slices.Sort(addrs)
	}
	return table
}

// portOf is the service port that a proxy name <app>-<port> ends in.
func portOf(proxy string) (int, bool) {
	i := strings.LastIndexByte(proxy, '-')
	if i < 0 {
		return 0, false
	}
	port, err := strconv.Atoi(proxy[i+1:])
	return port, err == nil
}

// restarted starts another HAProxy from what stands on disk, on sockets of its own, and
// returns the servers that it has.
func (r *rig) restarted() map[int][]string {
	r.t.Helper()
	text, err := os.ReadFile(r.hap.ConfigFile)
	if err != nil {
		r.t.Fatal(err)
	}
	config := regexp.MustCompile(`(?m)^    bind 127\.0\.0\.1:(\d+)`).ReplaceAllString(string(text), "    bind unix@$$DIR/$1")
	config = strings.ReplaceAll(config, r.hap.DirectSocket, "$SOCKET")
	second := haproxytest.Start(r.t, haproxytest.Options{Binary: r.hap.Binary, Config: config})
	defer second.Stop()
	return serversOf(r.t, second.Command(r.t, "show servers state"))
}

// logBuffer holds what a bridge logs.
type logBuffer struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logBuffer) tail(n int) string {
	lines := strings.SplitAfter(l.String(), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}
