package bridge_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bridged/internal/discovery/marathontest"
	"bridged/internal/haproxy/haproxytest"
)

// The life of an app, end to end. At each step the tasks that answer through HAProxy
// are the live tasks of Marathon, and so are the servers in haproxy.cfg; what a task
// does costs no reload, as counted by HAProxy.
func TestLifeOfAnApp(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newRig(t, rigOptions{binary: bin})
		ports := haproxytest.FreePorts(t, 51)
		web, many := ports[0], ports[1:]
		r.start()
		r.ready(http.StatusOK)

		r.deploy("/web", web, 2, marathontest.HealthCheck{Protocol: "HTTP", Path: "/"})
		r.converged("deployed")
		reloads := r.hap.Reloads(t)
		free := func(what string, most int) {
			t.Helper()
			now := r.hap.Reloads(t)
			if now-reloads > most {
				t.Errorf("%s cost %d reloads, want at most %d (reasons: %v)", what, now-reloads, most, r.state().HAProxy.Pending)
			}
			reloads = now
		}
		// Slots are there for twice the tasks, so growing fivefold may need one reload where
		// servers cannot be made at run time.
		grow := 1
		if bin.AtLeast(3, 0) {
			grow = 0
		}

		r.must(r.marathon.Scale("/web", 10))
		r.converged("scaled from 2 to 10")
		free("scaling from 2 to 10", grow)
		if diff := cmp.Diff(r.expected(), r.restarted()); diff != "" {
			t.Errorf("HAProxy started from the file (-tasks +servers):\n%s", diff)
		}

		r.must(r.marathon.Scale("/web", 3))
		r.converged("scaled from 10 to 3")
		r.must(r.marathon.Fail(r.marathon.Tasks("/web")[0].ID))
		r.converged("a task failed and was replaced")
		r.must(r.marathon.Kill(r.marathon.Tasks("/web")[0].ID))
		r.converged("a task was killed and replaced")

		sick := r.marathon.Tasks("/web")[1].ID
		r.must(r.marathon.SetHealth(sick, false))
		r.converged("health lost")
		r.must(r.marathon.SetHealth(sick, true))
		r.converged("health regained")
		free("what tasks did", 0)

		r.must(r.marathon.SetLabels("/web", map[string]string{"HAPROXY_0_BALANCE": "roundrobin"}))
		haproxytest.Eventually(t, "the label is in force", func() error {
			text, err := os.ReadFile(r.hap.ConfigFile)
			if err == nil && !strings.Contains(string(text), "balance roundrobin") {
				err = errors.New("haproxy.cfg does not say balance roundrobin")
			}
			return err
		})
		r.converged("label changed")
		r.ready(http.StatusOK)

		reloads = r.hap.Reloads(t)
		for i, port := range many {
			r.deploy(fmt.Sprintf("/many/app-%d", i), port, 1)
		}
		r.converged("50 apps at once")
		r.ready(http.StatusOK)
		free("50 apps at once", 10)
		if diff := cmp.Diff(r.expected(), r.restarted()); diff != "" {
			t.Errorf("HAProxy started from the file (-tasks +servers):\n%s", diff)
		}

		r.must(r.marathon.Delete("/web"))
		r.converged("app removed")
		haproxytest.Eventually(t, "the port of a removed app is closed", func() error {
			if _, err := r.ask(int(web)); !errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("asked: %v", err)
			}
			return nil
		})
	})
}

// traffic asks without a break until it is stopped.
type traffic struct {
	done   chan struct{}
	wg     sync.WaitGroup
	sent   atomic.Int64
	mu     sync.Mutex // guards failed
	failed []error
}

func (r *rig) traffic(port uint16) *traffic {
	tr := &traffic{done: make(chan struct{})}
	for range 2 {
		tr.wg.Go(func() {
			for {
				select {
				case <-tr.done:
					return
				default:
				}
				_, err := r.ask(int(port))
				tr.sent.Add(1)
				if err != nil {
					tr.mu.Lock()
					tr.failed = append(tr.failed, err)
					tr.mu.Unlock()
				}
			}
		})
	}
	return tr
}

// reach waits until n more requests were answered.
func (tr *traffic) reach(t testing.TB, n int64) {
	t.Helper()
	until := tr.sent.Load() + n
	haproxytest.Eventually(t, "traffic goes on", func() error {
		if have := tr.sent.Load(); have < until {
			return fmt.Errorf("%d of %d requests", have, until)
		}
		return nil
	})
}

func (tr *traffic) stop(t testing.TB) {
	t.Helper()
	close(tr.done)
	tr.wg.Wait()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if len(tr.failed) > 0 {
		t.Errorf("%d of %d requests failed, such as: %v", len(tr.failed), tr.sent.Load(), tr.failed[0])
	}
}

func TestMarathonAwayAtStartAndLater(t *testing.T) {
	r := newRig(t, rigOptions{away: true})
	// The list of Marathons names one that refuses connections until it starts.
	port := haproxytest.FreePorts(t, 2)
	r.write("marathons", fmt.Sprintf("127.0.0.1:%d\n", port[0]))
	r.start()
	r.ready(http.StatusServiceUnavailable)
	if code, _ := r.get("/healthz"); code != http.StatusOK {
		t.Errorf("/healthz %d while Marathon is away, want 200", code)
	}

	// It comes, under another address: the list is watched.
	r.startMarathon()
	r.write("marathons", strings.Join(r.marathon.URLs(), "\n"))
	r.deploy("/web", port[1], 2)
	r.converged("Marathon came")
	r.ready(http.StatusOK)

	tr := r.traffic(port[1])
	tr.reach(t, 20)
	before := r.hap.Reloads(t)
	r.marathon.Stop(0, marathontest.Refuse)
	r.ready(http.StatusServiceUnavailable)
	if got := r.metric("bridged_stream_connected", ""); got != 0 {
		t.Errorf("bridged_stream_connected %v while Marathon is away, want 0", got)
	}
	tr.reach(t, 50)
	r.must(r.marathon.Resume(0))
	r.ready(http.StatusOK)
	r.must(r.marathon.Scale("/web", 3))
	r.converged("Marathon is back")
	tr.stop(t)
	if now := r.hap.Reloads(t); now != before {
		t.Errorf("Marathon's absence cost %d reloads", now-before)
	}
}

func TestDroppedStreamIsHealed(t *testing.T) {
	r := newRig(t, rigOptions{})
	port := haproxytest.FreePorts(t, 1)[0]
	r.start()
	r.deploy("/web", port, 1)
	r.converged("deployed")
	for range 3 {
		r.marathon.Inject(marathontest.Fault{Kind: marathontest.CutInside, Event: "status_update_event", Times: 1})
		r.must(r.marathon.Scale("/web", 2))
		r.must(r.marathon.Scale("/web", 1))
		r.converged("after a stream that broke inside an event")
	}
}

// A bridge that ends, however, leaves HAProxy alone, and the next one takes it over
// without a reload when nothing differs.
func TestRestartedBridgeAdoptsWithoutReload(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newRig(t, rigOptions{binary: bin})
		port := haproxytest.FreePorts(t, 1)[0]
		first := r.start()
		r.deploy("/web", port, 3)
		r.converged("deployed")
		tr := r.traffic(port)
		tr.reach(t, 20)
		reloads, worker := r.hap.Reloads(t), r.hap.Pid(t)

		r.must(first.stop())
		tr.reach(t, 20)
		r.start()
		r.ready(http.StatusOK)
		r.converged("adopted")
		tr.reach(t, 20)
		if got := r.hap.Reloads(t); got != reloads || r.hap.Pid(t) != worker {
			t.Errorf("adoption cost %d reloads", got-reloads)
		}

		// What changed while no bridge ran is caught up with.
		r.must(r.bridge.stop())
		r.must(r.marathon.Scale("/web", 4))
		r.start()
		r.converged("caught up")
		tr.stop(t)
		if got := r.hap.Reloads(t); got != reloads {
			t.Errorf("catching up with a task cost %d reloads", got-reloads)
		}
	})
}

// Whoever reads haproxy.cfg at any moment reads a whole one.
func TestReaderOfTheFileNeverSeesLessThanAWholeOne(t *testing.T) {
	saves, reloads := 1000, 20
	if testing.Short() { // the reader takes a core for itself
		saves, reloads = 100, 10
	}
	r := newRig(t, rigOptions{saveDelay: "1ms"})
	ports := haproxytest.FreePorts(t, 2)
	r.start()
	r.deploy("/web", ports[0], 1)
	r.converged("deployed")

	done := make(chan struct{})
	var wg sync.WaitGroup
	var reads int
	var versions atomic.Int64
	wg.Go(func() {
		last := ""
		for {
			select {
			case <-done:
				return
			default:
			}
			text, err := os.ReadFile(r.hap.ConfigFile)
			if err != nil {
				t.Errorf("read haproxy.cfg: %v", err)
				return
			}
			if s := string(text); s != last {
				last = s
				versions.Add(1)
				if !strings.HasPrefix(s, "# Written by bridged") || !strings.HasSuffix(s, "\n") || !strings.Contains(s, "listen web-") {
					t.Errorf("a file that is not whole:\n%s", s)
					return
				}
			}
			reads++
		}
	})
	seen := func(what string, n int64) {
		t.Helper()
		haproxytest.Eventually(t, what, func() error {
			if got := versions.Load(); got < n {
				return fmt.Errorf("%d versions of haproxy.cfg were seen, want %d", got, n)
			}
			return nil
		})
	}
	for i := range saves {
		before := versions.Load()
		r.must(r.marathon.SetLabels("/web", map[string]string{"HAPROXY_0_WEIGHT": strconv.Itoa(1 + i%250)}))
		seen("another weight is saved", before+1)
	}
	began := r.hap.Reloads(t)
	for range reloads / 2 {
		r.deploy("/other", ports[1], 1)
		r.converged("reloaded for an app")
		r.must(r.marathon.Delete("/other"))
		r.converged("reloaded without it")
		r.ready(http.StatusOK)
	}
	close(done)
	wg.Wait()
	t.Logf("%d reads saw %d versions of haproxy.cfg", reads, versions.Load())
	if got := r.hap.Reloads(t) - began; got < reloads {
		t.Errorf("%d reloads, want %d for the test to mean something", got, reloads)
	}
}

// A configuration that cannot be used changes nothing while bridged runs, and a metric
// says so until it is corrected.
func TestRefusedConfigurationKeepsTheOldOne(t *testing.T) {
	r := newRig(t, rigOptions{})
	port := haproxytest.FreePorts(t, 1)[0]
	r.start()
	r.deploy("/web", port, 2)
	r.converged("deployed")
	r.ready(http.StatusOK)
	good, err := os.ReadFile(r.config)
	r.must(err)
	await := func(want float64) {
		t.Helper()
		haproxytest.Eventually(t, fmt.Sprintf("bridged_config_last_reload_successful %v", want), func() error {
			if got := r.metric("bridged_config_last_reload_successful", ""); got != want {
				return fmt.Errorf("is %v", got)
			}
			return nil
		})
	}

	for name, bad := range map[string]struct{ text, says string }{
		"unknown-key":     {string(good) + "listne: x\n", "listne: unknown key; did you mean listen?"},
		"not-yaml":        {"{", "not valid YAML"},
		"needs-a-restart": {strings.Replace(string(good), "listen: 127.0.0.1:0", "listen: 127.0.0.1:1", 1), "listen: cannot change while bridged runs; restart bridged"},
		"bad-template":    {strings.Replace(string(good), "haproxy:\n", "haproxy:\n  template: "+r.write("bad.tmpl", "{{.Nonsense")+"\n", 1), "haproxy.template: cannot be used"},
		"bad-template-and-other-members": {strings.NewReplacer("haproxy:\n", "haproxy:\n  template: "+r.write("bad.tmpl", "{{.Nonsense")+"\n",
			"urls_file: "+filepath.Join(r.dir, "marathons"), "urls: [127.0.0.1:1]").Replace(string(good)), "haproxy.template: cannot be used"},
		"absent-marathons": {strings.Replace(string(good), "/marathons", "/nowhere", 1), "cannot read the list of Marathons"},
	} {
		t.Run(name, func(t *testing.T) {
			r.write("bridged.yaml", bad.text)
			await(0)
			c := r.state().Config
			if !strings.Contains(c.LastError, bad.says) {
				t.Errorf("error %q, want %q in it", c.LastError, bad.says)
			}
			if diff := cmp.Diff(r.marathon.URLs(), c.Marathons); diff != "" {
				t.Errorf("Marathons that are followed (-want +got):\n%s", diff)
			}
			r.must(r.marathon.Scale("/web", 3))
			r.converged("the old configuration works")
			r.must(r.marathon.Scale("/web", 2))
			r.write("bridged.yaml", string(good))
			await(1)
			if got := r.state().Config.LastError; got != "" {
				t.Errorf("error %q after it was corrected, want none", got)
			}
			r.converged("and the corrected one")
		})
	}
}

// Keys of the translation take effect without a restart.
func TestChangedConfigurationTakesEffect(t *testing.T) {
	r := newRig(t, rigOptions{})
	ports := haproxytest.FreePorts(t, 2)
	r.start()
	r.must(r.marathon.Deploy(marathontest.AppSpec{ID: "/in", Instances: 1, Labels: map[string]string{"HAPROXY_GROUP": "external"}, Ports: []marathontest.Port{{Service: int(ports[0])}}}))
	r.deploy("/out", ports[1], 1)
	r.converged("everything is served")
	r.configure("groups: [external]")
	haproxytest.Eventually(t, "one group is left", func() error {
		servers := serversOf(t, r.hap.Command(t, "show servers state"))
		if len(servers) != 1 || len(servers[int(ports[0])]) != 1 {
			return fmt.Errorf("servers: %v", servers)
		}
		return nil
	})
	r.configure("")
	r.converged("everything is served again")
	// SIGHUP does the same as a change of the file.
	loaded := r.state().Config.Loaded
	r.bridge.kick <- struct{}{}
	haproxytest.Eventually(t, "the configuration is read when asked", func() error {
		if now := r.state().Config.Loaded; !now.After(loaded) {
			return fmt.Errorf("last read at %v", now.Format(time.RFC3339Nano))
		}
		return nil
	})
}
