package discovery

import (
	"context"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Watcher keeps the picture of one Marathon and says what changes in it.
type Watcher struct {
	opts    Options
	client  *client
	metrics *metrics
	log     *slog.Logger
	updates chan *Update
	kick    chan struct{} // level: the members have changed, for who waits to try again
	members chan struct{} // the same, for the loop
	refresh chan struct{} // level: the whole picture is asked for

	status    atomic.Pointer[Status]
	lastByte  atomic.Int64 // Unix milliseconds, 0 for never
	lastEvent atomic.Int64
}

// Status is what an operator, /readyz and /api/state ask of a Watcher.
type Status struct {
	Source    string    `json:"source,omitempty"`
	Transport Transport `json:"transport"` // the one in use
	Connected bool      `json:"connected"` // the event stream is attached (poll: the last answer was good)
	Synced    bool      `json:"synced"`    // a whole picture was read and believed at least once
	Leader    string    `json:"leader"`    // URL of the Marathon that is asked, "" for none
	Proxied   bool      `json:"proxied,omitempty"`
	Version   string    `json:"version"` // of that Marathon, "" while unknown
	LastByte  time.Time `json:"lastByte,omitzero"`
	LastEvent time.Time `json:"lastEvent,omitzero"`
	LastSync  time.Time `json:"lastSync,omitzero"` // when the last whole picture was believed
	Apps      int       `json:"apps"`
	Services  int       `json:"services"`
	Tasks     int       `json:"tasks"`      // in state Running, Killing or Unreachable
	Waiting   int       `json:"unresolved"` // of these, how many wait for the address of their agent

	// Held is why a whole picture was read and not believed yet, "" for none.
	Held      string    `json:"held,omitempty"`
	HeldSince time.Time `json:"heldSince,omitzero"`
	// Err is what keeps the Watcher from being connected or synced, "" for nothing.
	Err string `json:"error,omitempty"`
	// Broken are apps that could not be understood and are left as they were, id → reason.
	Broken map[string]string `json:"broken,omitempty"`
}

// NewWatcher checks o and reads the files it names. Nothing is connected before Run.
func NewWatcher(o Options) (*Watcher, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	if o.Transport == "" {
		o.Transport = TransportAuto
	}
	if o.Resync == 0 {
		o.Resync = defaultResync
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c, err := newClient(o)
	if err != nil {
		return nil, err
	}
	w := &Watcher{
		opts: o, client: c, metrics: newMetrics(o.Registerer), log: o.Logger.With("component", "discovery"),
		updates: make(chan *Update), kick: make(chan struct{}, 1), members: make(chan struct{}, 1),
		refresh: make(chan struct{}, 1),
	}
	if o.Source != "" {
		w.log = w.log.With("source", o.Source)
	}
	w.status.Store(&Status{Source: o.Source, Transport: o.Transport})
	return w, nil
}

// Updates is where changes arrive, unbuffered: while nobody receives, the pending
// Update grows by what changes. The first one is Full. It is never closed.
func (w *Watcher) Updates() <-chan *Update { return w.updates }

// Status may be called from any goroutine.
func (w *Watcher) Status() Status {
	s := *w.status.Load()
	if ms := w.lastByte.Load(); ms != 0 {
		s.LastByte = time.UnixMilli(ms)
	}
	if ms := w.lastEvent.Load(); ms != 0 {
		s.LastEvent = time.UnixMilli(ms)
	}
	return s
}

// SetURLs replaces the members of the Marathon cluster. A stream that is attached to a
// member that stays is kept. It may be called from any goroutine.
func (w *Watcher) SetURLs(urls []string) error {
	o := w.opts
	o.URLs = urls
	if err := o.validate(); err != nil {
		return err
	}
	if err := w.client.setURLs(urls); err != nil {
		return err
	}
	for _, level := range []chan struct{}{w.kick, w.members} {
		select {
		case level <- struct{}{}:
		default:
		}
	}
	return nil
}

// Refresh has the whole picture read again. It may be called from any goroutine and
// returns at once.
func (w *Watcher) Refresh() {
	select {
	case w.refresh <- struct{}{}:
	default: // one is asked for already
	}
}

// Run watches until ctx ends and then returns nil. Lasting trouble is in Status and the
// log, and is no reason to return. It has ended everything it started when it returns.
// Call it once.
func (w *Watcher) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := newLoop(w)
	l.restore()
	defer w.client.close()
	defer func() {
		cancel()
		l.group.Wait()
		l.saveLast(time.Now())
	}()

	l.group.Go(func() { l.listen(ctx) })
	for {
		l.advance(ctx, time.Now())
		var out chan<- *Update
		if l.synced && l.pending.update != nil {
			out = w.updates
		}
		// One thing at a time: what a transport heard, a piece of an answer, an address,
		// a receiver that is ready, other members, or the next thing that was put off.
		select {
		case <-ctx.Done():
			return nil
		case in := <-l.inputs:
			l.input(in)
		case p := <-l.answers:
			l.answer(p)
		case r := <-l.addresses.results:
			l.resolved(r)
		case out <- l.pending.update:
			l.pending.sent()
		case <-w.members:
			l.checkMember()
		case <-w.refresh:
			l.resync(resyncDoubt)
		case <-l.timer.C:
		}
	}
}

// loop is what Run owns: the picture and everything that is under way to keep it.
type loop struct {
	w         *Watcher
	state     *state
	changes   *changes
	pending   *pending
	addresses *addresses
	timer     *time.Timer
	wake      time.Time // what timer is set to
	group     sync.WaitGroup

	inputs  chan input
	answers chan piece

	at     *attachment // nil: events are not heard
	base   *url.URL    // whom to ask: at's, or the last one's
	leader string      // host:port that answers named as the leader, "" for not told
	reason failure     // why at is nil, "" while it is not

	jobs    map[string]*job
	running int                  // jobs under way
	absent  map[string]time.Time // app that Marathon does not have → until when that is believed
	burst   burst

	synced bool
	sync   *syncRun     // under way
	wanted resyncReason // "" for none
	due    time.Time    // of the next reading that nothing asked for
	// notBefore keeps a wanted reading until a burst is over.
	notBefore time.Time
	barrier   time.Time // until when the first event of a new stream is waited for
	early     bool      // no first event came: the picture may have been read before the subscription
	failed    retry     // readings of the whole picture that failed
	hold      hold
	known     int // tasks that were routed in an earlier life, before the first sync

	tick  time.Time // of the slow housekeeping
	prune time.Time // of agents without tasks
	saved saved
	shown Status // as stored
	drawn counts // as shown by the gauges
}

func newLoop(w *Watcher) *loop {
	l := &loop{
		w: w, changes: newChanges(), pending: newPending(), addresses: newAddresses(w.opts.Resolver),
		timer: time.NewTimer(time.Hour), inputs: make(chan input, 4), answers: make(chan piece),
		jobs: map[string]*job{}, absent: map[string]time.Time{}, shown: Status{Source: w.opts.Source, Transport: w.opts.Transport},
	}
	l.state = newState(w.opts.Source, l.addresses.lookup)
	l.saved.written = make(chan error, 1)
	return l
}

// input takes in what the transport says.
func (l *loop) input(in input) {
	switch {
	case in.attached != nil:
		l.attach(in.attached)
	case in.lost != nil:
		l.lose(in.lost)
	}
	if len(in.events)+len(in.bad) > 0 {
		l.events(in)
	}
}

// events folds what one read brought, and publishes what it touched.
func (l *loop) events(in input) {
	var oldest time.Time
	for i := range in.events {
		e := &in.events[i]
		l.w.metrics.events[e.typ].Inc()
		l.state.apply(e)
		l.changes.apply(e, l.state)
		if oldest.IsZero() || e.received.Before(oldest) {
			oldest = e.received
		}
	}
	for _, bad := range in.bad {
		l.w.metrics.undecoded.Inc()
		l.w.log.Warn("event not understood", "type", eventNames[bad.typ], "app", bad.app, "err", bad.err)
		if bad.app != "" && checkAppID(bad.app) == nil {
			l.state.want(bad.app, debounce)
		} else {
			l.resync(resyncDoubt)
		}
	}
	if !oldest.IsZero() {
		l.w.lastEvent.Store(oldest.UnixMilli())
	}
	if l.at != nil && !l.barrier.IsZero() {
		l.barrier = time.Time{} // the subscription is live
		l.resync(resyncConnect)
	}
	if l.state.version.losesBursts() && l.burst.add(len(in.events), time.Now()) {
		l.postpone(resyncBurst)
	}
	l.collect(oldest)
	if l.synced && len(l.state.touched) > 0 {
		l.pending.heard(oldest, len(in.events))
		l.state.take(l.pending)
	}
}

// resolved takes in an address.
func (l *loop) resolved(r resolved) {
	known, changed, err := l.addresses.finish(r, time.Now())
	if err != nil {
		l.w.log.Warn("host name does not resolve; its tasks wait, or keep their last address", "host", r.host, "err", err)
	}
	if known {
		l.state.judged++ // worth keeping as verdicts are
		l.state.rehost(r.host, changed)
		l.publish()
	}
}

// publish adds what was touched without an event to the pending update.
func (l *loop) publish() {
	if l.synced && len(l.state.touched) > 0 {
		l.state.take(l.pending)
	}
}

// attach begins to trust a source of events. The whole picture is read behind the first
// event, which proves that the subscription is live: earlier, an event could be lost
// between the answer and the subscription.
func (l *loop) attach(at *attachment) {
	now := time.Now()
	l.at, l.base, l.leader, l.early = at, at.base, "", false
	l.reason = ""
	l.state.attached()
	l.state.version = at.version
	l.failed.reset()
	l.w.log.Info("connected", "marathon", at.base.Redacted(), "transport", at.transport, "version", at.text)
	s := &l.shown
	s.Transport, s.Connected, s.Leader, s.Proxied, s.Version, s.Err = at.transport, true, at.base.Redacted(), at.proxied, at.text, ""
	l.show()
	l.abandonSync()
	if at.barrier {
		l.barrier = now.Add(barrierWait)
		return
	}
	l.barrier = time.Time{}
	l.resync(resyncConnect)
}

// lose notes that events are not heard, and why.
func (l *loop) lose(lost *loss) {
	l.w.metrics.reconnects.WithLabelValues(string(lost.reason)).Inc()
	level := slog.LevelDebug // the same again
	if lost.reason != l.reason {
		level = slog.LevelWarn
	}
	l.w.log.Log(context.Background(), level, "not connected", "reason", lost.reason, "err", lost.err)
	l.reason = lost.reason
	l.at, l.barrier = nil, time.Time{}
	l.shown.Connected, l.shown.Err = false, lost.err.Error()
	l.show()
}

// checkMember gives up a Marathon that is no longer configured.
func (l *loop) checkMember() {
	if l.at != nil && l.at.drop != nil && !slices.ContainsFunc(l.w.client.urls(), func(m *url.URL) bool { return hostPort(m) == hostPort(l.at.base) }) {
		l.at.drop(failedURLs)
	}
}

// show makes the status visible.
func (l *loop) show() {
	s := l.shown
	c := &l.state.counts
	s.Apps, s.Services, s.Tasks, s.Waiting = len(l.state.apps), c.services, c.running+c.killing+c.unreachable, c.unresolved
	l.shown = s
	l.w.status.Store(&s)
	l.w.metrics.connected.Set(oneIf(s.Connected))
	l.w.metrics.held.Set(oneIf(s.Held != ""))
}

// advance does what is due by now, and sets the timer for what comes next.
func (l *loop) advance(ctx context.Context, now time.Time) {
	if !l.tick.After(now) {
		l.tick = now.Add(housekeeping)
		l.state.expire(now)
		l.addresses.expire(now)
		if !l.prune.After(now) {
			l.prune = now.Add(pruneEvery)
			l.addresses.forget(l.state.forgetAgents())
		}
		maps.DeleteFunc(l.absent, func(_ string, until time.Time) bool { return until.Before(now) })
	}
	if !l.barrier.IsZero() && !l.barrier.After(now) {
		l.barrier = time.Time{}
		l.resync(resyncConnect)
		l.early = true
	}
	reloads, next := l.changes.due(now)
	for _, r := range reloads {
		l.reload(r, now)
	}
	l.addresses.start(ctx, l.group.Go)
	next = sooner(next, l.startSync(ctx, now))
	next = sooner(next, l.startJobs(ctx, now))
	next = sooner(next, l.barrier)
	next = sooner(next, l.tick)
	next = sooner(next, l.save(now))
	if c := l.state.counts; c != l.drawn || l.shown.Apps != len(l.state.apps) {
		l.w.metrics.picture(len(l.state.apps), c, l.drawn)
		l.drawn = c
		l.show()
	}
	if !next.Equal(l.wake) {
		l.wake = next
		l.timer.Reset(max(next.Sub(now), 0))
	}
}

const (
	barrierWait  = 2 * time.Second
	secondLook   = 15 * time.Second
	housekeeping = 10 * time.Second
	pruneEvery   = time.Hour
)

// sooner of two moments, of which zero is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
