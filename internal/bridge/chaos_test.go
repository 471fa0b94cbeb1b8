package bridge_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bridged/internal/discovery/marathontest"
	"bridged/internal/haproxy/haproxytest"
)

// A random walk over what happens to a cluster, under load, with real parts: Marathon's
// protocol, HAProxy, tasks, and a bridge that is a process of its own. No request may fail
// because of routing, and whenever things are quiet HAProxy's servers are the live tasks
// and the file on disk is what HAProxy runs.
//
// CHAOS is how long to walk, such as 5m, divided between the HAProxy versions here; without
// it each version gets a walk of a few rounds. CHAOS_SEED repeats a walk: what is done
// follows from the seed alone, when it takes effect does not. CHAOS_HAPROXY names one version.
func TestChaos(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute of load")
	}
	seed := uint64(1)
	var each time.Duration
	if text := os.Getenv("CHAOS"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("CHAOS: want a duration such as 5m: %v", err)
		}
		each = d
		seed = uint64(time.Now().UnixNano())
	}
	if text := os.Getenv("CHAOS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("CHAOS_SEED: %v", err)
		}
	}
	bins := haproxytest.Versions(t)
	if name := os.Getenv("CHAOS_HAPROXY"); name != "" {
		bins = slices.DeleteFunc(slices.Clone(bins), func(b haproxytest.Binary) bool { return b.Name() != name })
	} else if each == 0 {
		bins = []haproxytest.Binary{haproxytest.Default(t), haproxytest.Newest(t)}
	}
	each /= time.Duration(max(1, len(bins)))
	for _, bin := range bins {
		t.Run(bin.Name(), func(t *testing.T) {
			c := newChaos(t, bin, seed)
			c.walk(each)
		})
	}
}

// Delays of the simulated cluster: short, and long enough for a notice to be one.
const (
	chaosStart  = 30 * time.Millisecond
	chaosHealth = 60 * time.Millisecond
	chaosSignal = 100 * time.Millisecond
	chaosKill   = 400 * time.Millisecond
	chaosTasks  = 3 // of an app, at least
)

// chaosApp is an app that is asked all the time.
type chaosApp struct {
	id   string
	port uint16
	tcp  bool
}

type chaos struct {
	*rig
	seed   uint64
	rng    *rand.Rand
	ledger *ledger
	load   *load
	echoes echoes

	apps   []chaosApp
	others []uint16 // ports of apps that come and go, which nobody asks

	listen  string // the bridge's own address
	process *bridgeProcess
	log     *logBuffer
	mended  map[string]func() // what is broken now, and how to say that it is not
	done    map[string]int    // actions, by name
	trail   []string          // what was done since the last quiet point
	rounds  int
}

func newChaos(t *testing.T, bin haproxytest.Binary, seed uint64) *chaos {
	h := fnv.New64a()
	h.Write([]byte(bin.Name()))
	c := &chaos{
		seed: seed, rng: rand.New(rand.NewPCG(seed, h.Sum64())), ledger: newLedger(chaosSignal + chaosKill),
		log: &logBuffer{}, mended: map[string]func(){}, done: map[string]int{},
	}
	t.Logf("HAProxy %s, CHAOS_SEED=%d", bin.Version, seed)
	c.rig = newRig(t, rigOptions{binary: bin, marathon: marathontest.Options{
		Nodes: 3, Heartbeat: time.Second, LeaderWait: 500 * time.Millisecond, Seed: seed,
		StageDelay: chaosStart, StartDelay: chaosStart, HealthDelay: chaosHealth, SignalDelay: chaosSignal, KillDelay: chaosKill,
		RelaunchDelay: chaosStart, RecheckDelay: 2 * chaosHealth,
		Backend: c.backend, OnEvent: c.heard,
	}})
	c.backends.Graceful = true
	t.Cleanup(func() { c.echoes.crash(""); c.echoes.running.Wait() })
	ports := haproxytest.FreePorts(t, 9)
	c.listen = fmt.Sprintf("127.0.0.1:%d", ports[0])
	for i, port := range ports[1:6] {
		c.apps = append(c.apps, chaosApp{id: fmt.Sprintf("/chaos/http-%d", i), port: port})
		if i >= 3 {
			c.apps[i].id, c.apps[i].tcp = fmt.Sprintf("/chaos/tcp-%d", i), true
		}
	}
	c.others, c.greets = ports[6:], map[int]bool{}
	for _, app := range c.apps {
		c.greets[int(app.port)] = app.tcp
	}
	return c
}

// backend serves a task. It gets no request before it can answer one with 200.
func (c *chaos) backend(task marathontest.Task, port int, listen netip.AddrPort) (int, func(), error) {
	serve := c.backends.Serve
	if strings.Contains(task.App, "/tcp-") {
		serve = func(t marathontest.Task, _ int, l netip.AddrPort) (int, func(), error) { return c.echoes.serve(t, l) }
	} else {
		c.backends.SetStatus(task.ID, http.StatusServiceUnavailable)
	}
	got, stop, err := serve(task, port, listen)
	if err != nil {
		return got, stop, err
	}
	c.ledger.birth(task.App, task.ID)
	return got, func() { c.ledger.die(task.ID, false, stop) }, nil
}

// heard makes a task able to answer in the moment in which Marathon says so: apps over HTTP
// have a health check, the others are ready when they run.
func (c *chaos) heard(e marathontest.Event) {
	switch e.Type {
	case "health_status_changed_event":
		c.backends.SetStatus(e.Task, http.StatusOK)
	case "status_update_event":
		if strings.Contains(string(e.JSON), `"TASK_RUNNING"`) {
			c.echoes.ready(e.Task)
			if !strings.Contains(e.App, "/http-") {
				c.backends.SetStatus(e.Task, http.StatusOK)
			}
		}
	}
}

// crash ends a task without notice; Marathon sees it a moment later.
func (c *chaos) crash(task string) error {
	c.ledger.die(task, true, func() { c.backends.Crash(task); c.echoes.crash(task) })
	return c.marathon.Fail(task)
}

// breaks notes that something is broken until mends is called or things are quiet.
func (c *chaos) breaks(what string) {
	if c.mended[what] == nil {
		c.mended[what] = c.ledger.broken(what)
	}
}

func (c *chaos) mends(what string) {
	if mended := c.mended[what]; mended != nil {
		mended()
		delete(c.mended, what)
	}
}

const bridgeDead = "no bridge lived"

func (c *chaos) startBridge() {
	c.process = c.startBridgeProcess(c.log, "BRIDGED_LISTEN="+c.listen, "BRIDGED_HAPROXY_CHECK_INTERVAL=1s", "BRIDGED_MARATHON_RESYNC=20s")
}

func (c *chaos) killBridge() {
	c.breaks(bridgeDead)
	c.process.kill()
}

// readyNow waits until the bridge says that it is in step.
func (c *chaos) readyNow() {
	c.t.Helper()
	haproxytest.Eventually(c.t, "/readyz", func() error {
		resp, err := c.client.Get("http://" + c.listen + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
}

// action is one thing that happens. It returns what to write into the trail.
type action struct {
	name   string
	weight int
	do     func(c *chaos) string
}

// app and one choose from what the seed says, whatever the state.
func (c *chaos) app() chaosApp { return c.apps[c.rng.IntN(len(c.apps))] }

// one is a task of app that runs, "" for none.
func (c *chaos) one(app string) string {
	n := c.rng.IntN(1 << 16)
	tasks := slices.DeleteFunc(c.marathon.Tasks(app), func(t marathontest.Task) bool { return !t.Live() })
	if len(tasks) < chaosTasks {
		return "" // too few are left to take one away
	}
	return tasks[n%len(tasks)].ID
}

// said is what became of a command. That an app is being deployed is an answer, too.
func said(what string, err error) string {
	if err != nil {
		return what + ": " + err.Error()
	}
	return what
}

var ordinary = []action{
	{"scale", 4, func(c *chaos) string {
		app, n := c.app(), chaosTasks+c.rng.IntN(5)
		return said(fmt.Sprintf("scale %s to %d", app.id, n), c.marathon.Scale(app.id, n))
	}},
	{"kill a task", 3, func(c *chaos) string {
		task := c.one(c.app().id)
		if task == "" {
			return "kill nobody"
		}
		return said("kill "+task, c.marathon.Kill(task))
	}},
	{"crash a task", 2, func(c *chaos) string {
		task := c.one(c.app().id)
		if task == "" {
			return "crash nobody"
		}
		return said("crash "+task, c.crash(task))
	}},
	{"flip health", 3, func(c *chaos) string {
		app := c.app()
		task, back := c.one(app.id), time.Duration(100+c.rng.IntN(300))*time.Millisecond
		if task == "" || app.tcp {
			return "flip nobody"
		}
		err := c.marathon.SetHealth(task, false)
		c.pause(back)
		return said(fmt.Sprintf("health of %s flips for %v", task, back), errors.Join(err, c.known(c.marathon.SetHealth(task, true))))
	}},
	{"rolling replacement", 2, func(c *chaos) string {
		app := c.app()
		return said("restart "+app.id, c.marathon.Restart(app.id))
	}},
	{"label: weight", 1, func(c *chaos) string {
		app, w := c.app(), 1+c.rng.IntN(200)
		return said(fmt.Sprintf("weight %d for %s", w, app.id), c.marathon.SetLabels(app.id, map[string]string{"HAPROXY_0_WEIGHT": strconv.Itoa(w)}))
	}},
	{"label: balance", 1, func(c *chaos) string {
		app, how := c.app(), []string{"roundrobin", "leastconn", "static-rr"}[c.rng.IntN(3)]
		return said(how+" for "+app.id, c.marathon.SetLabels(app.id, map[string]string{"HAPROXY_0_BALANCE": how}))
	}},
	{"deploy an app", 2, func(c *chaos) string {
		i, n := c.rng.IntN(len(c.others)), 1+c.rng.IntN(3)
		id := fmt.Sprintf("/other/app-%d", i)
		return said(fmt.Sprintf("deploy %s with %d tasks", id, n), c.marathon.Deploy(marathontest.AppSpec{
			ID: id, Instances: n, Ports: []marathontest.Port{{Service: int(c.others[i])}}}))
	}},
	{"delete an app", 1, func(c *chaos) string {
		id := fmt.Sprintf("/other/app-%d", c.rng.IntN(len(c.others)))
		return said("delete "+id, c.known(c.marathon.Delete(id)))
	}},
}

var disturbing = []action{
	{"kill -9 of the bridge", 3, func(c *chaos) string {
		down := time.Duration(c.rng.IntN(300)) * time.Millisecond
		c.killBridge()
		c.pause(down)
		c.startBridge()
		return fmt.Sprintf("bridge killed, started again after %v", down)
	}},
	{"crash of HAProxy's worker", 1, func(c *chaos) string {
		c.breaks(haproxyDead)
		c.hap.KillWorker(c.t)
		c.hap.Restart(c.t)
		// Requests that its end or its start has cut come back before anything else is asked.
		c.mends(haproxyDead)
		c.breaks("HAProxy was restarted from its file")
		return "HAProxy's worker killed, HAProxy restarted"
	}},
	{"somebody else's reload", 2, func(c *chaos) string {
		c.breaks("somebody else reloaded HAProxy")
		return said("reload by somebody else", syscall.Kill(c.hap.MasterPid(), syscall.SIGUSR2))
	}},
	{"leader change", 2, func(c *chaos) string {
		node, gap := c.rng.IntN(3), time.Duration(c.rng.IntN(200))*time.Millisecond
		c.breaks("Marathon had no leader, or a new one")
		err := c.marathon.Elect(-1)
		c.pause(gap)
		return said(fmt.Sprintf("no leader for %v, then %d", gap, node), errors.Join(err, c.marathon.Elect(node)))
	}},
	{"streams cut", 2, func(c *chaos) string {
		hard := c.rng.IntN(2) == 0
		c.breaks("the stream was cut")
		c.marathon.CutStreams(hard)
		return fmt.Sprintf("streams cut, by reset: %v", hard)
	}},
	{"stream fault", 3, func(c *chaos) string {
		kinds := []marathontest.FaultKind{marathontest.LoseEvent, marathontest.DuplicateEvent, marathontest.SwapEvent, marathontest.ReorderEvents,
			marathontest.CutBefore, marathontest.CutAfter, marathontest.CutInside, marathontest.ResetInside, marathontest.GarbleEvent, marathontest.BareLF, marathontest.SplitData}
		f := marathontest.Fault{Kind: kinds[c.rng.IntN(len(kinds))], Skip: c.rng.IntN(4), Times: 1 + c.rng.IntN(4)}
		c.breaks("events were lost, doubled, reordered or broken")
		c.marathon.Inject(f)
		return fmt.Sprintf("events: fault %d, %d times", f.Kind, f.Times)
	}},
	{"Marathon's answers broken", 2, func(c *chaos) string {
		kinds := []marathontest.FaultKind{marathontest.FailRequest, marathontest.DropRequest, marathontest.ResetRequest, marathontest.TruncateBody,
			marathontest.CutBody, marathontest.ContentType, marathontest.ForgetHealth}
		f := marathontest.Fault{Kind: kinds[c.rng.IntN(len(kinds))], Path: "/v2/apps", Times: 1 + c.rng.IntN(3)}
		if f.Kind == marathontest.ContentType {
			f.Body = "text/html"
		}
		c.breaks("Marathon answered badly")
		c.marathon.Inject(f)
		c.marathon.CutStreams(false) // so that it is asked
		return fmt.Sprintf("answers: fault %d, %d times", f.Kind, f.Times)
	}},
}

// known lets pass that what a command is about has gone meanwhile.
func (c *chaos) known(err error) error {
	if errors.Is(err, marathontest.ErrNoTask) || errors.Is(err, marathontest.ErrNoApp) {
		return nil
	}
	return err
}

// pause is the time between two things that happen; the walk does not wait for anything.
func (c *chaos) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

func (c *chaos) choose(from []action) action {
	sum := 0
	for _, a := range from {
		sum += a.weight
	}
	n := c.rng.IntN(sum)
	for _, a := range from {
		if n -= a.weight; n < 0 {
			return a
		}
	}
	panic("weights")
}

func (c *chaos) act(from []action) {
	a := c.choose(from)
	at := time.Now()
	what := a.do(c)
	c.done[a.name]++
	c.trail = append(c.trail, at.Format("15:04:05.000 ")+what)
}

// walk goes on for as long as it is told, or for a few rounds.
func (c *chaos) walk(d time.Duration) {
	t := c.t
	began := time.Now()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("CHAOS_SEED=%d CHAOS_HAPROXY=%s; since the last quiet point:\n%s\nMarathon, with deployments %v:\n%s\nlog of the bridge:\n%s",
				c.seed, c.hap.Binary.Name(), strings.Join(c.trail, "\n"), c.marathon.Deployments(), c.marathon.Dump(), c.log.tail(300))
		}
	})
	c.startBridge()
	for _, app := range c.apps {
		spec := marathontest.AppSpec{ID: app.id, Instances: chaosTasks + 1, Ports: []marathontest.Port{{Service: int(app.port)}},
			Upgrade: &marathontest.UpgradeStrategy{MinimumHealthCapacity: 1, MaximumOverCapacity: 0.5}}
		if !app.tcp {
			spec.HealthChecks = []marathontest.HealthCheck{{Protocol: "HTTP", Path: "/"}}
		}
		c.must(c.marathon.Deploy(spec))
	}
	c.quiet()
	c.load = newLoad(c.ledger)
	stop := sync.OnceFunc(c.load.stop)
	defer stop()
	for _, app := range c.apps {
		for _, kept := range []bool{false, true} {
			if app.tcp {
				c.load.tcp(app.id, app.port, kept)
			} else {
				c.load.http(app.id, app.port, kept)
			}
		}
	}
	for ; !t.Failed() && (d == 0 && c.rounds < 5 || d > 0 && time.Since(began) < d); c.rounds++ {
		// Every other round nothing is broken, so that nothing is told apart but crashes.
		broken := c.rounds%2 == 1
		for range 4 + c.rng.IntN(6) {
			if broken && c.rng.IntN(2) == 0 {
				c.act(disturbing)
			} else {
				c.act(ordinary)
			}
			c.pause(time.Duration(c.rng.IntN(200)) * time.Millisecond)
		}
		c.quiet()
		if blamed := c.ledger.judge(); len(blamed) > 0 {
			t.Errorf("%d requests failed because of routing:\n%s", len(blamed), strings.Join(blamed[:min(len(blamed), 20)], "\n"))
			return
		}
		c.trail = nil
		c.ledger.settle()
	}
	stop()
	if !t.Failed() {
		c.converged("at the end")
	}
	if blamed := c.ledger.judge(); len(blamed) > 0 {
		t.Errorf("%d requests failed because of routing:\n%s", len(blamed), strings.Join(blamed, "\n"))
	}
	lines := append(c.ledger.report(), fmt.Sprintf("%d quiet points in %v", c.rounds, time.Since(began).Round(time.Second)))
	for _, list := range [][]action{ordinary, disturbing} {
		for _, a := range list {
			lines = append(lines, fmt.Sprintf("%-28s %7d", a.name, c.done[a.name]))
		}
	}
	t.Logf("HAProxy %s, CHAOS_SEED=%d:\n%s", c.hap.Version, c.seed, strings.Join(lines, "\n"))
}

// quiet waits until nothing happens any more and holds that HAProxy routes to the live
// tasks, that the file says so too, and that a HAProxy which starts from it would.
func (c *chaos) quiet() {
	c.t.Helper()
	c.marathon.ClearFaults()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	if err := c.marathon.WaitQuiet(ctx); err != nil {
		c.t.Fatalf("Marathon does not come to rest: %v", err)
	}
	c.readyNow()
	c.settled(fmt.Sprintf("quiet point %d", c.rounds))
	haproxytest.Eventually(c.t, "checks of HAProxy agree", func() error { return c.up() })
	for what := range c.mended {
		c.mends(what)
	}
	if errs := c.marathon.BackendErrors(); len(errs) > 0 {
		c.t.Fatal(errs[0])
	}
}

var serverState = regexp.MustCompile(`(?m)^\d+ \S+ \d+ (\S+) (\S+) (\d) 0 `)

// up is an error when HAProxy's own checks hold a server down that is wanted.
func (c *chaos) up() error {
	for _, m := range serverState.FindAllStringSubmatch(c.hap.Command(c.t, "show servers state"), -1) {
		if m[3] == "0" {
			return fmt.Errorf("server %s at %s is down", m[1], m[2])
		}
	}
	return nil
}
