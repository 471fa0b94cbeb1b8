package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bridged/internal/bridge"
	"bridged/internal/bridge/zdd"
	"bridged/internal/discovery/marathontest"
	"bridged/internal/haproxy/haproxytest"
)

// zddRig is a Marathon whose tasks serve HTTP, an HAProxy and a bridge, and a load that
// never pauses.
type zddRig struct {
	t        *testing.T
	marathon *marathontest.Cluster
	port     uint16 // service port of the app
	stats    string // URL of HAProxy's statistics
	bridge   string // URL of the bridge
	dir      string
}

func newZDDRig(t *testing.T, bin haproxytest.Binary) *zddRig {
	t.Helper()
	var backends marathontest.Backends
	r := &zddRig{t: t, dir: t.TempDir()}
	// This Marathon tells nobody that it kills a task before the task is dead: what was not
	// drained by then loses requests.
	r.marathon = marathontest.New(marathontest.Options{Version: "1.4.0", Backend: backends.Serve, NoTaskKilling: true,
		StartDelay: 20 * time.Millisecond, HealthDelay: 20 * time.Millisecond, KillDelay: 20 * time.Millisecond})
	t.Cleanup(func() { r.marathon.Close(); backends.Wait() })
	if err := r.marathon.Start(); err != nil {
		t.Fatal(err)
	}
	ports := haproxytest.FreePorts(t, 2)
	r.port = ports[0]
	// The operator's own section stays when bridged takes the file over.
	hap := haproxytest.Start(t, haproxytest.Options{Binary: bin, Sections: fmt.Sprintf(
		"listen stats\n    bind 127.0.0.1:%d\n    mode http\n    stats enable\n    stats uri /haproxy?stats\n    stats show-legends\n", ports[1])})
	r.stats = fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	config := writeFile(t, r.dir, "bridged.yaml", fmt.Sprintf(`marathon: {urls: [%s]}
haproxy:
  config: %s
  socket: %s
  master_socket: %s
  binary: %s
  bind: 127.0.0.1
  save_delay: 20ms
health: marathon
state_dir: %s
listen: 127.0.0.1:0
`, r.marathon.URLs()[0], hap.ConfigFile, hap.DirectSocket, hap.MasterSocket, hap.Path, filepath.Join(r.dir, "state")))
	load := func() (*bridge.Config, error) { return bridge.Load(bridge.Sources{File: config}) }
	cfg, err := load()
	if err != nil {
		t.Fatal(err)
	}
	b, err := bridge.New(bridge.Options{Config: cfg, Load: load, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	r.bridge = "http://" + b.Addr()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.Run(ctx); err != nil {
			t.Errorf("bridge: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return r
}

// definition writes version n of the app.
func (r *zddRig) definition(n int) string {
	return writeFile(r.t, r.dir, fmt.Sprintf("v%d.json", n), fmt.Sprintf(
		`{"id":"/web","cmd":"serve v%d","instances":4,"labels":{"HAPROXY_DEPLOYMENT_GROUP":"web"},
		"ports":[%d],"healthChecks":[{"protocol":"HTTP","path":"/"}]}`, n, r.port))
}

// zdd runs bridged zdd as a process of its own. It is killed, with no chance to say
// anything, as soon as it told of so many changes (0: it isn't). The events it told are returned.
func (r *zddRig) zdd(changes int, args ...string) (events []zdd.Event, code int) {
	r.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	args = append([]string{"zdd", "--force", "-o", "json", "--step-delay", "10ms", "--marathon", r.marathon.URLs()[0]}, args...)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "BRIDGED_TEST_ARGS="+strings.Join(args, "\n"))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var e zdd.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			r.t.Fatalf("line %q: %v", lines.Text(), err)
		}
		events = append(events, e)
		if !slices.Contains([]string{"wait", "note", "done"}, e.Step) {
			if changes--; changes == 0 {
				cmd.Process.Kill()
			}
		}
	}
	cmd.Wait()
	if code = cmd.ProcessState.ExitCode(); code > 0 {
		r.t.Logf("bridged zdd said: %s", stderr.String())
	}
	return events, code
}

// ask sends one request and returns the app that answered. The answer takes a moment, so
// that a task that is killed has requests to lose: a connection that is refused HAProxy
// would send elsewhere.
func (r *zddRig) ask() (string, error) {
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/?delay=60ms", r.port))
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return "", err
	}
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s", res.Status)
	}
	return res.Header.Get("X-App"), nil
}

// load asks from several sides at once until the test ends, and fails it for every
// request that is not answered.
func (r *zddRig) load() (sent *atomic.Int64, stop func()) {
	sent = new(atomic.Int64)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := r.ask(); err != nil {
					r.t.Errorf("a request failed: %v", err)
				}
				sent.Add(1)
			}
		})
	}
	return sent, sync.OnceFunc(func() { close(done); wg.Wait() })
}

// serves waits until one app alone answers.
func (r *zddRig) serves(app string) {
	r.t.Helper()
	haproxytest.Eventually(r.t, app+" serves", func() error {
		for range 12 {
			got, err := r.ask()
			if err != nil {
				return err
			}
			if got != app {
				return fmt.Errorf("%s answers", got)
			}
		}
		return nil
	})
	if apps := r.marathon.Apps(); !slices.Equal(apps, []string{app}) {
		r.t.Errorf("apps %v, want %s alone", apps, app)
	}
}

// Deployments under a load that never pauses, each killed several times in the middle and
// gone on with, forward and back, and not one request fails.
func TestZDDLosesNoRequest(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newZDDRig(t, bin)
		for name, lb := range map[string][]string{
			"statistics": {"--marathon-lb", r.stats},
			"bridge":     {"--bridge", r.bridge, "--drain", "50ms"},
		} {
			t.Run(name, func(t *testing.T) {
				r.t = t
				with := func(args ...string) []string { return append(args, lb...) }
				if len(r.marathon.Apps()) == 0 {
					if _, code := r.zdd(0, with("--json", r.definition(1))...); code != zdd.CodeDone {
						t.Fatalf("first deployment: exit code %d", code)
					}
				}
				now := r.marathon.Apps()[0]
				r.serves(now)
				next := map[string]string{"/web-blue": "/web-green", "/web-green": "/web-blue"}[now]
				sent, stop := r.load()
				defer stop()

				// Forward, killed after its second and again after its next second change.
				file := r.definition(len(name))
				r.zdd(2, with("--json", file)...)
				r.zdd(2, with("--resume", "--json", file)...)
				if apps := r.marathon.Apps(); len(apps) != 2 {
					t.Errorf("in the middle there are %v, want both apps", apps)
				}
				if _, code := r.zdd(0, with("--json", file)...); code != zdd.CodeDone {
					t.Fatalf("the same command again: exit code %d", code)
				}
				r.serves(next)

				// Forward again, killed, and back, killed, and resumed.
				r.zdd(4, with("--json", file, "--redeploy")...)
				r.zdd(2, with("--abort", "--deployment-group", "web")...)
				if _, code := r.zdd(0, with("--abort", "--deployment-group", "web")...); code != zdd.CodeDone {
					t.Fatalf("abort: exit code %d", code)
				}
				r.serves(next)
				stop()
				t.Logf("%d requests", sent.Load())
			})
		}
	})
}

// Arguments that make no sense end the run before anything is asked, with zdd.py's codes.
func TestZDDArguments(t *testing.T) {
	dir := t.TempDir()
	good := writeFile(t, dir, "app.json", `{"id":"/a","labels":{"HAPROXY_DEPLOYMENT_GROUP":"a"},"ports":[80]}`)
	groupless := writeFile(t, dir, "groupless.json", `{"id":"/a","ports":[80]}`)
	for _, tc := range []struct {
		args string
		code int
		says string
	}{
		{"", zdd.CodeArguments, "--json FILE: missing"},
		{"--resume", zdd.CodeArguments, "--json FILE or --deployment-group NAME: missing"},
		{"-j " + good + " -r -c", zdd.CodeArguments, "exclude each other"},
		{"-j " + good + " --abort -n 2", zdd.CodeArguments, "--new-instances belongs to the beginning"},
		{"-j " + good + " -i 0", zdd.CodeArguments, "--initial-instances wants at least 1"},
		{"-j " + good + " -o yaml", zdd.CodeArguments, "--output: want text or json"},
		{"-j " + good + " --dcos-auth-credentials {}", zdd.CodeArguments, "--marathon-auth-dcos-file"},
		{"-j " + dir + "/none -m http://127.0.0.1:1", zdd.CodeArguments, "no such file"},
		{"-j " + groupless + " -m http://127.0.0.1:1", zdd.CodeMissing, "labels.HAPROXY_DEPLOYMENT_GROUP: missing"},
		{"-j " + good + " -m http://127.0.0.1:1", zdd.CodeDeclined, "say yes beforehand with --force"},
		{"-j " + good + " -m http://127.0.0.1:1 -f", zdd.CodeMarathon, "connection refused"},
		{"-j " + good + " -m http://127.0.0.1:1 -f -l ftp://x", zdd.CodeArguments, "a load balancer: want a URL"},
		{"--nonsense", zdd.CodeOther, "unknown flag: --nonsense"},
	} {
		got := command(t, nil, append([]string{"zdd"}, strings.Fields(tc.args)...)...)
		if got.code != tc.code || !strings.Contains(got.stderr, tc.says) {
			t.Errorf("zdd %s: exit code %d, want %d; said: %swant in it: %s", tc.args, got.code, tc.code, got.stderr, tc.says)
		}
	}
}
