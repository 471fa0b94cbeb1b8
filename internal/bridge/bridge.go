package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"bridged/internal/discovery"
	"bridged/internal/haproxy"
)

const (
	// auditInterval is how often HAProxy is read back to find what others changed.
	auditInterval = 10 * time.Second
	// beatInterval is how often the loop looks at itself: readiness, its log line and the
	// service manager's watchdog.
	beatInterval = time.Second
	// hardStop is how long a worker of an earlier configuration may live.
	hardStop = "10m"
)

// Options is what Run needs. Config is required.
type Options struct {
	Config *Config
	// Load reads the configuration again; nil: changes of files are not followed.
	Load func() (*Config, error)
	// Kick asks for that by hand (SIGHUP).
	Kick <-chan struct{}

	Version  string
	Logger   *slog.Logger   // nil: discards
	LogLevel *slog.LevelVar // follows log.level; nil: fixed

	// Notify tells the service manager a state in the words of sd_notify(3); nil: there is
	// none. It must not block.
	Notify func(state string)
	// Watchdog: Notify expects WATCHDOG=1 at least this often; 0: not at all.
	Watchdog time.Duration

	Registry *prometheus.Registry // nil: one of its own
	// HAProxyOutput is where a supervised HAProxy writes what it says; nil: our stderr. It
	// outlives us, so it must not be a pipe.
	HAProxyOutput *os.File
	Resolver      discovery.Resolver // nil: the system's
	// Interfaces returns the addresses of this node; nil: net.InterfaceAddrs.
	Interfaces func() ([]net.Addr, error)
	// Patience is how long a start waits for those of several Marathons that are away; 0: 30s.
	Patience time.Duration
}

// Bridge is one Marathon joined to one HAProxy. Its fields below loop belong to the
// goroutine of Run.
type Bridge struct {
	opts     Options
	log      *slog.Logger
	metrics  *metrics
	started  time.Time
	asks     chan func()
	files    *fileWatcher
	certs    *fileWatcher // of certificates: they need no reload of the configuration
	again    level        // the configuration is to be read again
	audit    level        // HAProxy is to be read back
	current  current      // metrics of the source
	listener net.Listener
	second   net.Listener // of metrics_listen, or nil

	// The loop's own.
	config     *Config
	loaded     time.Time
	lastError  string // why a later configuration was refused
	source     *source
	translator *Translator
	proxy      *haproxy.Proxy
	template   string // the operator's, "" for none
	exporter   bool   // HAProxy is built with its Prometheus exporter
	synced     bool   // the first full picture was applied
	several    several
	saving     sync.WaitGroup // of pictures
	wasReady   bool
	notReady   string            // what was last logged
	certFiles  []string          // that certs watches
	reported   map[report]string // what the log has as rejected, with its detail
	addrs      []netip.Addr      // of this node, as the translator has them
	addrsRead  time.Time
}

// New checks what can be checked without touching HAProxy: it opens the listeners and
// parses the template. An error that the operator has to correct is a *ConfigError.
func New(opts Options) (*Bridge, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Notify == nil {
		opts.Notify = func(string) {}
	}
	if opts.Registry == nil {
		opts.Registry = prometheus.NewRegistry()
	}
	if opts.Interfaces == nil {
		opts.Interfaces = net.InterfaceAddrs
	}
	b := &Bridge{
		opts:    opts,
		log:     opts.Logger.With("component", "bridge"),
		started: time.Now(),
		asks:    make(chan func()),
		again:   make(level, 1),
		audit:   make(level, 1),
		config:  opts.Config,
		loaded:  time.Now(),
	}
	b.files, b.certs = newFileWatcher(b.log), newFileWatcher(b.log)
	cfg := opts.Config

	options, err := cfg.DiscoveryOptions()
	if err != nil {
		return nil, &ConfigError{Problems: []error{err}}
	}
	if b.source, err = b.newSource(cfg, options); err != nil {
		return nil, err
	}
	if b.template, err = readTemplate(cfg); err != nil {
		return nil, err
	}
	if b.proxy, err = newProxy(cfg, b.template, opts); err != nil {
		return nil, err
	}
	if b.listener, err = listen(cfg, "listen", cfg.Listen); err != nil {
		b.proxy.Close()
		return nil, err
	}
	if cfg.MetricsListen != "" {
		if b.second, err = listen(cfg, "metrics_listen", cfg.MetricsListen); err != nil {
			b.listener.Close()
			b.proxy.Close()
			return nil, err
		}
	}
	opts.Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	b.metrics = newMetrics(opts.Registry, opts.Version)
	opts.Registry.MustRegister(&b.current)
	b.exporter = HasExporter(context.Background(), cfg.HAProxy.Binary)
	b.translator = NewTranslator(b.translateOptions(cfg))
	return b, nil
}

// newProxy makes the Proxy that cfg describes. Nothing is touched before it adopts.
func newProxy(cfg *Config, template string, opts Options) (*haproxy.Proxy, error) {
	o := cfg.haproxyOptions()
	o.Template, o.Stderr, o.Logger, o.Registerer = template, opts.HAProxyOutput, opts.Logger, opts.Registry
	p, err := haproxy.New(o)
	if errors.Is(err, haproxy.ErrTemplate) {
		return nil, templateProblem(cfg, err)
	}
	if err != nil {
		return nil, fmt.Errorf("set up HAProxy's side: %w", err)
	}
	return p, nil
}

// haproxyOptions says which HAProxy c is about and how it is driven.
func (c *Config) haproxyOptions() haproxy.Options {
	h := c.HAProxy
	return haproxy.Options{
		ConfigFile:        h.Config,
		Socket:            h.Socket,
		MasterSocket:      h.MasterSocket,
		ReloadCommand:     h.ReloadCommand,
		Supervise:         h.Supervise,
		Binary:            h.Binary,
		MinReloadInterval: h.MinReloadInterval,
		MaxOldWorkers:     h.MaxOldWorkers,
		SaveDelay:         h.SaveDelay,
		Drain:             c.Drain,
		Slots:             h.Slots,
		CertDir:           c.TLS.Dir,
		SelfSigned:        c.TLS.SelfSigned,
	}
}

// readTemplate returns the operator's template, "" for none.
func readTemplate(cfg *Config) (string, error) {
	if cfg.HAProxy.Template == "" {
		return "", nil
	}
	text, err := os.ReadFile(cfg.HAProxy.Template)
	if err != nil {
		return "", cfg.Problem("haproxy.template", "cannot read "+cfg.HAProxy.Template+": "+remedyForFile(err), reasonOf(err))
	}
	return string(text), nil
}

func listen(cfg *Config, key, addr string) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		if oe, ok := errors.AsType[*net.OpError](err); ok {
			err = oe.Err // the address stands in the message already
		}
		return nil, cfg.Problem(key, "cannot listen on "+addr+"; stop what holds it or choose another address", err)
	}
	return ln, nil
}

// translateOptions is what the translator needs to know of cfg and of this node.
func (b *Bridge) translateOptions(cfg *Config) TranslateOptions {
	o := TranslateOptionsOf(cfg)
	if cfg.Dialect == DialectMarathonLB {
		o.MarathonLB.Exporter = b.exporter
		if cfg.MarathonLB.Endpoints {
			o.MarathonLB.API = b.apiAddr()
		}
	}
	if addrs, err := localAddrs(b.opts.Interfaces); err == nil {
		b.addrs = addrs
	} else {
		b.log.Warn("addresses of this node cannot be read, clashes of service ports with local tasks may not be foreseen", "err", err)
	}
	b.addrsRead = time.Now()
	o.LocalAddrs = b.addrs
	o.Incumbents = incumbents(cfg.HAProxy.Config)
	o.Reserved = map[uint16]string{}
	for _, ln := range []net.Listener{b.listener, b.second} {
		if ln == nil {
			continue
		}
		if a, ok := ln.Addr().(*net.TCPAddr); ok {
			o.Reserved[uint16(a.Port)] = "bridged's own listener"
		}
	}
	for _, m := range cfg.sources() {
		_, text, _ := net.SplitHostPort(m.Callback.Listen)
		if port, err := parsePort(text); err == nil && port != 0 {
			o.Reserved[port] = "bridged's own listener"
		}
	}
	return o
}

// haproxyTime writes d as HAProxy reads it.
func haproxyTime(d time.Duration) string {
	return strconv.FormatInt(d.Milliseconds(), 10) + "ms"
}

// Addr is where the listener is, for a configured port of 0.
func (b *Bridge) Addr() string { return b.listener.Addr().String() }

// Run joins the two until ctx ends, and returns nil then. It returns early with a
// *ConfigError when what answers on haproxy.socket cannot be driven, and with another
// error when a listener breaks. HAProxy goes on in every case. Call it once.
func (b *Bridge) Run(ctx context.Context) error {
	defer b.proxy.Close()
	defer b.listener.Close()
	if b.second != nil {
		defer b.second.Close()
	}

	if err := b.adopt(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	h := &handlers{ask: b.ask, health: b.health, state: b.state, registry: b.opts.Registry, log: b.log}
	serve := func(ln net.Listener, mux *http.ServeMux) {
		g.Go(func() error { return serveHTTP(ctx, ln, mux, b.log) })
	}
	local := h.local()
	b.marathonLBEndpoints(local)
	serve(b.listener, local)
	if b.second != nil {
		serve(b.second, h.public())
	}
	g.Go(func() error { return b.files.Run(ctx) })
	g.Go(func() error { return b.certs.Run(ctx) })
	g.Go(func() error { return b.loop(ctx) })
	return g.Wait()
}

// adopt reads what HAProxy runs. That nobody answers is no error: HAProxy may start
// after us, and the Proxy goes on trying.
func (b *Bridge) adopt(ctx context.Context) error {
	cfg := b.config
	switch err := b.proxy.Adopt(ctx); {
	case err == nil:
		s := b.proxy.Status()
		b.log.Info("haproxy adopted", "version", s.Version, "pid", s.Pid, "generation", s.Generation)
		return nil
	case errors.Is(err, haproxy.ErrUnreachable):
		b.log.Warn("haproxy not reachable, waiting for it", "socket", cfg.HAProxy.Socket, "err", err)
		return nil
	case errors.Is(err, haproxy.ErrNotHAProxy):
		return cfg.Problem("haproxy.socket", cfg.HAProxy.Socket+" does not answer as HAProxy does; name its stats socket", err)
	case errors.Is(err, haproxy.ErrNotAdmin):
		return cfg.Problem("haproxy.socket", `add "level admin" to the line "stats socket `+cfg.HAProxy.Socket+`" of haproxy.cfg and reload HAProxy once`, err)
	case errors.Is(err, haproxy.ErrForeignConfig):
		return cfg.Problem("haproxy.config", cfg.HAProxy.Config+" cannot be taken over without losing something; correct it, or name another file", err)
	default:
		return fmt.Errorf("adopt the HAProxy at %s: %w", cfg.HAProxy.Socket, err)
	}
}

// loop is where everything meets. It alone touches the translator and the Proxy, so
// neither has a lock. Each case is short: what takes long runs elsewhere and comes
// back as a case.
func (b *Bridge) loop(ctx context.Context) error {
	b.source.start(ctx)
	b.current.source.Store(b.source.registry)
	defer func() { b.source.end() }()
	allRead := b.several.begin(b)
	defer func() { b.savePictures(time.Now(), true) }()
	b.watchFiles()
	defer b.opts.Notify("STOPPING=1")
	b.opts.Notify("READY=1")

	beat := time.NewTicker(b.beatInterval())
	defer beat.Stop()
	audit := time.NewTimer(jitter(auditInterval))
	defer audit.Stop()
	b.beat()
	for {
		select {
		// Services of Marathon changed.
		case u := <-b.source.updates:
			b.apply(ctx, u)
		// Background work on HAProxy's side ended: a reload, a save, a reconnect.
		case job := <-b.proxy.Done():
			b.proxy.Finish(ctx, job)
		// Certificates changed.
		case <-b.certs.Changed():
			b.proxy.Certificates(ctx)
		// A file of the operator changed, or they ask to look.
		case <-b.files.Changed():
			b.reload(ctx, "file changed")
		case <-b.opts.Kick:
			b.reload(ctx, "asked")
		case <-b.again:
			b.reload(ctx, "asked")
		// Somebody looks at us.
		case f := <-b.asks:
			f()
		case <-beat.C:
			b.beat()
			b.followAddrs(ctx, time.Now())
			b.watchCertificates(ctx)
			b.savePictures(time.Now(), false)
		// Some of several Marathons are away since the start.
		case <-allRead:
			b.goWithout(ctx)
		case <-b.audit:
			b.readBack(ctx)
		case <-audit.C:
			b.readBack(ctx)
			audit.Reset(jitter(auditInterval))
		case err := <-b.source.ended:
			b.source.ended <- err // for who waits for it
			if ctx.Err() == nil {
				return fmt.Errorf("follow Marathon: %w", err)
			}
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// readBack has what HAProxy runs compared with what is wanted.
func (b *Bridge) readBack(ctx context.Context) {
	if err := b.proxy.Audit(ctx); err != nil {
		b.log.Debug("audit not done", "err", err)
	}
}

// apply carries one Update to HAProxy. This is the event path: its cost follows from
// the services in u alone.
func (b *Bridge) apply(ctx context.Context, u *discovery.Update) {
	change := b.translator.Apply(u, time.Now())
	if !b.synced {
		if !u.Full {
			// The first is full by contract; anything else would make HAProxy drop what is
			// not in it.
			if b.several.collect(u) {
				return
			}
			b.log.Error("first update is not a full picture, ignored")
			return
		}
		change.Global = b.nodeGlobal(b.config)
		b.synced = true
	}
	b.push(ctx, change, len(u.Services)+len(u.Gone))
}

// push hands change to the Proxy and says in the log what came of it.
func (b *Bridge) push(ctx context.Context, change haproxy.Change, services int) {
	begin := time.Now()
	r := b.proxy.Apply(ctx, change)
	switch {
	case r.Err != nil:
		b.log.Warn("haproxy did not take a change, it is tried again", "services", services, "lane", r.Lane.String(), "err", r.Err)
	case r.Lane == haproxy.LaneSlow:
		b.log.Info("change needs a reload", "services", services, "reason", r.Reasons)
	case b.log.Enabled(ctx, slog.LevelDebug):
		attrs := []any{"services", services, "lane", r.Lane.String(), "commands", r.Commands, "took", time.Since(begin)}
		if !change.Received.IsZero() {
			attrs = append(attrs, "latency", time.Since(change.Received))
		}
		b.log.Debug("change applied", attrs...)
	}
}

// ask runs f on the loop's goroutine and returns after it did.
func (b *Bridge) ask(ctx context.Context, f func()) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	done := make(chan struct{})
	select {
	case b.asks <- func() { f(); close(done) }:
		// The loop has taken it and does nothing else before: f runs to its end.
		<-done
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the loop does not answer: %w", context.Cause(ctx))
	}
}

// State is where the bridge stands. It may be called from any goroutine while Run
// runs.
func (b *Bridge) State(ctx context.Context) (State, error) {
	var s State
	err := b.ask(ctx, func() { s = b.state() })
	return s, err
}

// state is State on the loop's goroutine. Its cost follows from all services, so it
// is for a page and not for a probe.
func (b *Bridge) state() State {
	s := b.health()
	s.Services = viewsOf(b.translator.Services())
	return s
}

// health is state without the services. It sets the gauges that follow from it.
func (b *Bridge) health() State {
	m, h := b.source.statuses(), b.proxy.Status()
	reasons := notReady(m, h)
	s := State{
		Version:  b.opts.Version,
		Started:  b.started,
		Ready:    len(reasons) == 0,
		NotReady: reasons,
		Config:   ConfigState{File: b.config.File, Loaded: b.loaded, LastError: b.lastError, Marathons: b.source.urls()},

		Marathon:  overall(m),
		Marathons: named(m),
		HAProxy:   h,
		Rejected:  b.translator.Rejected(),
		Refused:   h.Rejected,
	}
	b.metrics.setReady(s.Ready)
	b.metrics.setRejected(s.Rejected, s.Refused)
	return s
}

// beat notices changes of readiness and feeds the watchdog: what does not run through
// here any more is restarted.
func (b *Bridge) beat() {
	if b.opts.Watchdog > 0 {
		b.opts.Notify("WATCHDOG=1")
	}
	h := b.proxy.Status()
	b.reportRejected(b.translator.Rejected(), h.Rejected)
	reasons := notReady(b.source.statuses(), h)
	ready := len(reasons) == 0
	first := ""
	if !ready {
		first = reasons[0]
	}
	if ready == b.wasReady && first == b.notReady {
		return
	}
	b.metrics.setReady(ready)
	switch {
	case ready:
		s := overall(b.source.statuses())
		b.log.Info("ready", "apps", s.Apps, "tasks", s.Tasks)
		b.opts.Notify("STATUS=in step with Marathon")
	case b.wasReady:
		b.log.Warn("not ready", "reason", first)
		b.opts.Notify("STATUS=" + first)
	default:
		b.log.Info("not ready yet", "reason", first)
		b.opts.Notify("STATUS=" + first)
	}
	b.wasReady, b.notReady = ready, first
}

func (b *Bridge) beatInterval() time.Duration {
	if b.opts.Watchdog > 0 {
		return min(beatInterval, b.opts.Watchdog/3)
	}
	return beatInterval
}

// jitter keeps bridges of one cluster out of step.
func jitter(d time.Duration) time.Duration {
	return d*3/4 + rand.N(d/2)
}

// stateDir is the directory of cfg when it can be used. Without it the bridge works as
// well, and forgets verdicts and addresses at a restart.
func (b *Bridge) stateDir(cfg *Config) string {
	if cfg.StateDir == "" {
		return ""
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		b.log.Warn("state_dir cannot be used, verdicts and addresses are forgotten at a restart", "state_dir", cfg.StateDir, "err", reasonOf(err))
		return ""
	}
	return cfg.StateDir
}

func (b *Bridge) watchFiles() {
	if b.opts.Load == nil {
		return
	}
	c := b.config
	paths := []string{c.File, c.HAProxy.Template, c.watchedTemplates()}
	for _, m := range c.sources() {
		paths = append(paths, m.URLsFile)
	}
	b.files.Watch(paths...)
}
