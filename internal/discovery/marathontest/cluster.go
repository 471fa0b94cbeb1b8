package marathontest

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Options say what cluster to play. The zero value is one node of the newest
// version that does everything at once.
type Options struct {
	// Version of Marathon, default "1.11.0". See [Versions].
	Version string
	// Nodes is the number of Marathon nodes, default 1. The first one leads.
	Nodes int
	// NodeVersions, if set, gives each node a version of its own, as during a
	// rolling upgrade. The cluster speaks as its leader does.
	NodeVersions []string

	// Heartbeat is the interval of heartbeats on event streams, default 10 s as in Marathon.
	Heartbeat time.Duration
	// QueueLimit is how many events may wait for one stream before events are dropped or the stream is closed.
	// 0: as the version has it (50 or 1024). Negative: no limit.
	QueueLimit int
	// LeaderWait is how long a request is held while nobody leads, default 2.75 s.
	LeaderWait time.Duration
	// ProxyTimeout ends what a standby proxies after this time without a byte, default 10 s.
	ProxyTimeout time.Duration

	// Delays of a task's life. Zero: at once, in the same call. Negative HealthDelay
	// and ReadyDelay: not before SetHealth and SetReady.
	StageDelay    time.Duration // until Mesos takes the launch
	StartDelay    time.Duration // staging to running
	HealthDelay   time.Duration // running to alive
	ReadyDelay    time.Duration // running to ready, for apps with readiness checks
	SignalDelay   time.Duration // from the decision to kill to the signal, when TASK_KILLING is told
	KillDelay     time.Duration // from the signal to the end of the process
	RelaunchDelay time.Duration // from the end to a replacement
	// RecheckDelay is how long a new leader knows nothing of health. Zero: until
	// the election is done; negative: until [Cluster.Recheck].
	RecheckDelay time.Duration
	// CommitDelay is the time between deployment_info and the moment the new definitions can be read.
	CommitDelay time.Duration

	// Hosts are the agents, default 127.0.0.1. Tasks are spread over them in turn.
	Hosts []string
	// Range of service ports that Marathon assigns from, default 10000 to 20000.
	FirstServicePort, LastServicePort int

	// Backend, if set, is called for each port of each task that starts. It serves
	// on listen (port 0: any free one) and returns the port and how to stop. It is
	// called with the cluster locked and must not call the cluster.
	// See [Backends] for one that is ready to use.
	Backend func(t Task, port int, listen netip.AddrPort) (got int, stop func(), err error)

	// OnEvent is called for each event just before it goes to the streams, in the
	// order of publication. It must not call the cluster.
	OnEvent func(Event)

	BasicUser, BasicPassword string   // both set: basic authentication on every path
	Tokens                   []string // DC/OS tokens that are accepted in "Authorization: token=…"
	DCOS                     *DCOS    // service accounts that may log in; their tokens are accepted besides

	// TLS, if set, is what the nodes serve with. Plain HTTP is disabled then, as with --disable_http.
	TLS *tls.Config

	BasePath      string // path prefix of everything, as behind DC/OS' Admin Router: "/service/marathon"
	NoTaskKilling bool   // the task_killing feature is off: no TASK_KILLING
	NoCallbacks   bool   // no --event_subscriber: /v2/eventSubscriptions answers 400
	NoCompression bool   // --disable_http_compression
	HeavyEvents   bool   // --deprecated_features=api_heavy_events

	// Listen and Dial replace the network; see [MemoryNetwork].
	Listen func(node int) (net.Listener, error)
	Dial   func(ctx context.Context, network, address string) (net.Conn, error)
	// Callback carries the POSTs to callback URLs, default a transport of its own.
	Callback http.RoundTripper

	Seed       uint64 // of ids and of faults with chance
	RequestLog int    // requests kept for [Cluster.Requests], default 10000
}

// Cluster is a running Marathon cluster. All methods may be called from any goroutine.
type Cluster struct {
	opts    Options
	nodes   []*node
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	started bool

	callbacks *http.Transport

	requests requestLog
	faults   faultSet

	mu      sync.Mutex // guards everything below
	closed  bool
	profile *profile // the leader's
	leader  int      // -1: nobody
	term    int      // counts elections
	rng     *rand.Rand

	apps          map[string]*app
	appOrder      []*app          // sorted cache of apps; nil after a change
	leaving       map[string]*app // deleted, their tasks are ending
	tasks         map[string]*task
	deployments   []*deployment
	rootVersion   string
	frameworkID   string
	placed        int
	address       int
	nextPort      int
	hostPorts     map[string]int
	backendErrors []error
	lastTime      time.Time

	streams       []*stream
	streamCount   int
	subscriptions []*subscription
	seq           int64
	counts        map[string]int

	queue   []func() // to run before the lock is released
	pending map[*time.Timer]struct{}
	busy    int           // timers and deliveries under way
	changes chan struct{} // closed at the next change, if somebody waits
	waiters atomic.Int32  // how many wait; not guarded
}

// New makes a cluster. Start opens it; nothing else may be called before.
func New(opts Options) *Cluster {
	or := func(d *time.Duration, otherwise time.Duration) {
		if *d == 0 {
			*d = otherwise
		}
	}
	or(&opts.Heartbeat, 10*time.Second)
	or(&opts.LeaderWait, 2750*time.Millisecond)
	or(&opts.ProxyTimeout, 10*time.Second)
	if opts.Version == "" {
		opts.Version = "1.11.0"
	}
	if len(opts.Hosts) == 0 {
		opts.Hosts = []string{"127.0.0.1"}
	}
	if opts.FirstServicePort == 0 {
		opts.FirstServicePort, opts.LastServicePort = 10000, 20000
	}
	opts.Nodes = max(1, opts.Nodes, len(opts.NodeVersions))
	if opts.RequestLog == 0 {
		opts.RequestLog = 10000
	}
	if opts.Dial == nil {
		opts.Dial = (&net.Dialer{Timeout: 5 * time.Second}).DialContext
	}
	c := &Cluster{
		opts: opts, apps: make(map[string]*app), leaving: make(map[string]*app), tasks: make(map[string]*task),
		hostPorts: make(map[string]int), counts: make(map[string]int), pending: make(map[*time.Timer]struct{}),
		rng: rand.New(rand.NewPCG(opts.Seed, 0x6d61726174686f6e)),
	}
	c.callbacks = &http.Transport{DialContext: opts.Dial, MaxIdleConnsPerHost: 8}
	c.requests.keep = opts.RequestLog
	c.faults.rng = rand.New(rand.NewPCG(opts.Seed, 0x6661756c74))
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.frameworkID = c.uuid() + "-0000"
	return c
}

// Start opens the nodes. It fails if a version is not known or no port can be
// had; what was opened by then is closed again.
func (c *Cluster) Start() error {
	if c.started {
		return errors.New("marathontest: the cluster was started before")
	}
	c.started = true
	for i := range c.opts.Nodes {
		version := c.opts.Version
		if i < len(c.opts.NodeVersions) {
			version = c.opts.NodeVersions[i]
		}
		p, err := newProfile(version)
		if err == nil {
			n := &node{c: c, index: i, profile: p}
			if err = n.open(); err == nil {
				c.nodes = append(c.nodes, n)
				continue
			}
		}
		c.Close()
		return fmt.Errorf("node %d: %w", i, err)
	}
	c.lock()
	defer c.unlock()
	c.profile = c.nodes[0].profile
	c.rootVersion = c.newVersion()
	return nil
}

// Close ends everything at once: connections are cut, backends stopped, timers
// dropped. It returns when no goroutine of the cluster is left.
func (c *Cluster) Close() {
	c.lock()
	if c.closed {
		c.unlock()
		return
	}
	c.closed = true
	c.queue = nil
	for t := range c.pending {
		if t.Stop() {
			c.wg.Done()
		}
	}
	streams := slices.Clone(c.streams)
	for _, t := range c.tasks {
		c.stopBackends(t)
	}
	for _, a := range c.leaving {
		for _, t := range a.tasks {
			c.stopBackends(t)
		}
	}
	c.unlock()
	c.cancel()
	for _, s := range streams {
		s.close(true)
	}
	for _, n := range c.nodes {
		n.shut(true)
	}
	c.wg.Wait()
	c.callbacks.CloseIdleConnections()
	for _, n := range c.nodes {
		n.transport.CloseIdleConnections()
	}
}

func (c *Cluster) lock() { c.mu.Lock() }

// unlock first does what the change set off, so that a call without delays
// returns when all of its consequences are visible.
func (c *Cluster) unlock() {
	for len(c.queue) > 0 {
		next := c.queue[0]
		c.queue = c.queue[1:]
		next()
	}
	if c.changes != nil {
		close(c.changes)
		c.changes = nil
	}
	c.mu.Unlock()
}

// after runs f with the lock held, d from now; for d ≤ 0 before the lock is released.
func (c *Cluster) after(d time.Duration, f func()) {
	if c.closed {
		return
	}
	if d <= 0 {
		c.queue = append(c.queue, f)
		return
	}
	c.busy++
	c.wg.Add(1)
	var timer *time.Timer
	timer = time.AfterFunc(d, func() {
		defer c.wg.Done()
		c.lock()
		defer c.unlock()
		delete(c.pending, timer)
		c.busy--
		if !c.closed {
			f()
		}
	})
	c.pending[timer] = struct{}{}
}

// pause releases the lock for d.
func (c *Cluster) pause(d time.Duration) {
	c.unlock()
	defer c.lock()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.ctx.Done():
	}
}

// now is the time in milliseconds.
func (c *Cluster) now() time.Time { return time.Now().Truncate(time.Millisecond) }

// newVersion is the time, but later than every version given before.
func (c *Cluster) newVersion() string {
	now := c.now()
	if !now.After(c.lastTime) {
		now = c.lastTime.Add(time.Millisecond)
	}
	c.lastTime = now
	return stamp(now)
}

func (c *Cluster) uuid() string {
	a, b := c.rng.Uint64(), c.rng.Uint64()
	return fmt.Sprintf("%08x-%04x-11e6-%04x-%012x", a>>32, a&0xffff, 0x8000|b>>48&0x3fff, b&0xffffffffffff)
}

// Wait returns when ok does, which is asked after each change of the cluster,
// with the cluster unlocked. It ends early with the context's error.
func (c *Cluster) Wait(ctx context.Context, ok func() bool) error {
	c.waiters.Add(1)
	defer c.waiters.Add(-1)
	for {
		c.mu.Lock()
		if c.changes == nil {
			c.changes = make(chan struct{})
		}
		changed := c.changes
		c.mu.Unlock()
		if ok() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-c.ctx.Done():
			return errClosed
		}
	}
}

// WaitQuiet returns when nothing is under way: no deployment, no timer, no event
// that a stream still has to write. Events held back by a stalled or silent
// stream do not count.
func (c *Cluster) WaitQuiet(ctx context.Context) error {
	err := c.Wait(ctx, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.busy > 0 || len(c.deployments) > 0 {
			return false
		}
		for _, s := range c.streams {
			if !s.drained() {
				return false
			}
		}
		return true
	})
	if err != nil {
		return fmt.Errorf("waiting for quiet: %w", err)
	}
	return nil
}

// notify wakes those who Wait, for changes made without the lock.
func (c *Cluster) notify() {
	if c.waiters.Load() > 0 {
		c.mu.Lock()
		c.unlock()
	}
}

// Deploy creates the app or changes it to what the spec says, overriding a
// running deployment of it. It returns when the change is committed; with zero
// delays, when its tasks run.
func (c *Cluster) Deploy(spec AppSpec) error {
	members, err := spec.encode()
	if err != nil {
		return err
	}
	return c.deploy(members)
}

// DeployJSON is Deploy for a definition as one would POST it, in the form of any era.
func (c *Cluster) DeployJSON(raw []byte) error {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		return fmt.Errorf("app definition: %w", err)
	}
	return c.deploy(members)
}

func (c *Cluster) deploy(members map[string]json.RawMessage) error {
	def, err := parseDefinition(members)
	if err != nil {
		return fmt.Errorf("app definition: %w", err)
	}
	c.lock()
	defer c.unlock()
	_, err = c.commit(change{want: []*definition{def}, group: def.group(), force: true, post: def, uri: "/v2/apps/" + def.id, client: "127.0.0.1"})
	return err
}

// modify changes some members of an app, as a partial PUT does.
func (c *Cluster) modify(id string, members map[string]any, redo bool) error {
	raw := make(map[string]json.RawMessage, len(members))
	for k, v := range members {
		b, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("app %s: member %s: %w", id, k, err)
		}
		raw[k] = b
	}
	c.lock()
	defer c.unlock()
	a := c.apps[id]
	if a == nil {
		return fmt.Errorf("app %s: %w", id, ErrNoApp)
	}
	def, err := parseDefinition(a.def.update(raw))
	if err != nil {
		return fmt.Errorf("app %s: %w", id, err)
	}
	ch := change{want: []*definition{def}, group: def.group(), force: true, redo: redo, client: "127.0.0.1"}
	if !redo {
		ch.post, ch.uri = def, "/v2/apps/"+id
	}
	_, err = c.commit(ch)
	return err
}

// Scale sets the number of instances.
func (c *Cluster) Scale(app string, instances int) error {
	return c.modify(app, map[string]any{"instances": instances}, false)
}

// SetLabels replaces the app's labels, which restarts its tasks.
func (c *Cluster) SetLabels(app string, labels map[string]string) error {
	return c.modify(app, map[string]any{"labels": labels}, false)
}

// Restart replaces all tasks of the app within its upgrade strategy.
func (c *Cluster) Restart(app string) error { return c.modify(app, nil, true) }

// Delete removes the app; its tasks are killed.
func (c *Cluster) Delete(id string) error {
	c.lock()
	defer c.unlock()
	if c.apps[id] == nil {
		return fmt.Errorf("app %s: %w", id, ErrNoApp)
	}
	_, err := c.commit(c.deletion(id, true, "/v2/apps/"+id, "127.0.0.1"))
	return err
}

// on runs f for a task that has not ended.
func (c *Cluster) on(taskID string, f func(t *task)) error {
	c.lock()
	defer c.unlock()
	t := c.tasks[taskID]
	if t == nil || t.terminal {
		return fmt.Errorf("task %s: %w", taskID, ErrNoTask)
	}
	f(t)
	return nil
}

// Kill ends the task as an operator would; another one replaces it.
func (c *Cluster) Kill(taskID string) error {
	return c.on(taskID, func(t *task) { c.kill(t, true) })
}

// Fail crashes the task; another one replaces it.
func (c *Cluster) Fail(taskID string) error {
	return c.on(taskID, func(t *task) {
		t.restart = !t.killing
		c.end(t, stateFailed, "Failed", "Command exited with status 1")
	})
}

// Finish ends the task by itself with success; another one replaces it.
func (c *Cluster) Finish(taskID string) error {
	return c.on(taskID, func(t *task) {
		t.restart = !t.killing
		c.end(t, stateFinished, "Finished", "Command exited with status 0")
	})
}

// KillUnhealthy ends the task as Marathon does when its health checks failed too often.
func (c *Cluster) KillUnhealthy(taskID string) error {
	return c.on(taskID, func(t *task) {
		c.unhealthyKillEvent(t, "connection refused")
		c.kill(t, true)
	})
}

// SetHealth makes all health checks of the task succeed or fail.
func (c *Cluster) SetHealth(taskID string, alive bool) error { return c.SetCheck(taskID, -1, alive) }

// SetCheck makes one health check of the task succeed or fail.
func (c *Cluster) SetCheck(taskID string, check int, alive bool) error {
	return c.on(taskID, func(t *task) { c.setHealth(t, check, alive) })
}

// SetReady sets what the task's readiness checks say.
func (c *Cluster) SetReady(taskID string, ready bool) error {
	return c.on(taskID, func(t *task) { c.setReady(t, ready) })
}

// Unreachable makes Mesos lose sight of the task's agent. The process lives on.
// Before 1.4 the state is TASK_LOST, which until 0.15.3 ends the task for good.
func (c *Cluster) Unreachable(taskID string) error {
	return c.on(taskID, c.lose)
}

func (c *Cluster) lose(t *task) {
	p := c.profile
	switch {
	case p.instances:
		c.setState(t, stateUnreachable, "Unreachable", "agent is unreachable")
	case p.since(0, 15, 4):
		c.setState(t, stateLost, "Unreachable", "agent is lost")
	default:
		t.restart = true
		c.end(t, stateLost, "Gone", "agent is lost")
	}
}

// Reachable brings a task back that Unreachable or Inactive took away. Marathon 1.0 to 1.1.0 tells nobody.
func (c *Cluster) Reachable(taskID string) error {
	return c.on(taskID, func(t *task) {
		t.inactive = false
		if c.profile.since(1, 0, 0) && !c.profile.allStates {
			t.state, t.condition = stateRunning, "Running"
			t.changed()
			return
		}
		c.setState(t, stateRunning, "Running", "")
	})
}

// Inactive makes an unreachable task inactive: REST shows no ports for it, and another one is started beside it.
func (c *Cluster) Inactive(taskID string) error {
	return c.on(taskID, func(t *task) {
		t.inactive, t.condition = true, "UnreachableInactive"
		t.changed()
		c.instanceEvent(t)
		c.look(t.app)
	})
}

// Expunge removes a task without any status: from 1.4 on only an instance event tells of it, before nothing does.
func (c *Cluster) Expunge(taskID string) error {
	return c.on(taskID, func(t *task) {
		t.terminal, t.condition = true, "Killed"
		c.stopBackends(t)
		c.remove(t)
		c.instanceEvent(t)
		c.look(t.app)
	})
}

// FailHost makes every task of an agent unreachable.
func (c *Cluster) FailHost(host string) {
	c.lock()
	defer c.unlock()
	for _, a := range c.sorted() {
		for _, t := range slices.Clone(a.tasks) {
			if t.host == host && !t.terminal {
				c.lose(t)
			}
		}
	}
}
