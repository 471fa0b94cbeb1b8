package haproxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// What Adopt can find in place of a HAProxy that we may drive.
var (
	// ErrUnreachable: nobody answers on the socket (yet). The Proxy goes on trying.
	ErrUnreachable = errors.New("HAProxy not reachable")
	// ErrNotHAProxy: something answers that is not HAProxy.
	ErrNotHAProxy = errors.New("not a HAProxy stats socket")
	// ErrNotAdmin: HAProxy answers, but the socket does not have level admin.
	ErrNotAdmin = errors.New("stats socket lacks level admin")
	// ErrForeignConfig: the operator's haproxy.cfg cannot be kept beside ours.
	ErrForeignConfig = errors.New("haproxy.cfg cannot be taken over")
	// ErrTemplate: the template does not parse.
	ErrTemplate = errors.New("template of haproxy.cfg")
)

// Options says which HAProxy a Proxy drives and how. Zero values mean the default that
// stands with the field.
type Options struct {
	ConfigFile    string // path of haproxy.cfg; required
	Socket        string // stats socket, level admin; required
	MasterSocket  string // master CLI socket; "": ReloadCommand is used
	ReloadCommand string // words, run without a shell when there is no MasterSocket
	Supervise     bool   // start haproxy -W ourselves when none runs
	Binary        string // "haproxy"
	Template      string // text of haproxy.cfg's template; "": the embedded one

	MinReloadInterval time.Duration // 0: as the adaptive interval allows
	MaxOldWorkers     int           // 4
	SaveDelay         time.Duration // from a change at run time to its save; 0: none
	Drain             time.Duration // how long connections to a removed server may live; 0: not at all

	// Slots says when spare server slots stand in for servers made at run time: "auto" (where
	// the HAProxy version asks for them), "always" (also for backends whose server names are
	// a contract, where the version allows it), "never". "": auto.
	Slots string

	// CertDir is a directory of certificates, one PEM file each, that stands behind `crt` of
	// binds and is served by SNI. These files, and single .pem files that binds name, are
	// validated and copied to CertStore, from where HAProxy loads them; see Certificates.
	CertDir    string // "": none
	CertStore  string // "": bridged-certs beside ConfigFile
	SelfSigned bool   // make a certificate where CertDir has none

	Stderr *os.File // what a supervised HAProxy says; nil: our own. It outlives us: no pipe

	Logger     *slog.Logger          // nil: discards
	Registerer prometheus.Registerer // nil: metrics work, unregistered
}

// Lane says how a change reached, or will reach, HAProxy.
type Lane uint8

const (
	LaneNone Lane = iota // nothing to do
	LaneFast             // runtime commands
	LaneSlow             // a reload is needed, runtime commands may have been sent besides
)

func (l Lane) String() string { return [...]string{"none", "fast", "slow"}[l] }

// Result is what Apply did.
type Result struct {
	Lane     Lane
	Commands int      // runtime commands that HAProxy acknowledged
	Reasons  []Reason // why the slow lane, sorted; empty for the others
	Err      error    // what was refused or lost; it is retried, this is for the log
}

// Status is a snapshot of a Proxy for the status page and the readiness check.
type Status struct {
	Connected  bool     `json:"connected"`
	Version    string   `json:"version"` // as HAProxy says it
	Pid        int      `json:"pid"`
	Generation string   `json:"generation"` // of the running worker
	Degraded   []string `json:"degraded,omitempty"`

	// Matches: HAProxy runs what is wanted, as far as is known: connected, synced once and
	// nothing pending.
	Matches   bool     `json:"matches"`
	Pending   []Reason `json:"pending,omitempty"` // of the reload that is due or running
	Notes     []string `json:"notes,omitempty"`   // what was changed to fit into HAProxy's limits
	Reloading bool     `json:"reloading"`
	Reloads   int      `json:"reloads"` // that succeeded since start

	OldWorkers int            `json:"oldWorkers"`
	Rejected   []Rejected     `json:"rejected,omitempty"`
	LastError  string         `json:"lastError,omitempty"`
	Servers    map[string]int `json:"servers"` // by state: ready drain maint spare retired

	Certificates []Certificate `json:"certificates,omitempty"` // that HAProxy serves or should, sorted by file
}

// Rejected is a part of the configuration that HAProxy refused and that runs in its last
// good form, or not at all, until it changes.
type Rejected struct {
	Owner   string         `json:"owner"` // app
	Section string         `json:"section"`
	Reason  RejectedReason `json:"reason"`
	Detail  string         `json:"detail"` // HAProxy's own words, or what is in the way
}

// RejectedReason says what has to be done about a Rejected. The set is closed: reasons are
// values of a metric's label.
type RejectedReason string

const (
	// Refused: HAProxy does not take it as it stands; it has to be changed.
	Refused RejectedReason = "refused"
	// PortBusy: a listener cannot be had at present. It is tried again.
	PortBusy RejectedReason = "port_busy"
)

// Job is a completion of background work, to be handed to Finish.
type Job struct {
	finish func(context.Context)
}

// Proxy makes one HAProxy match what Apply was told. All methods but Done are called
// from one goroutine, which owns all of the state; background work gets copies and
// comes back as a Job.
type Proxy struct {
	opts Options
	log  *slog.Logger
	m    *metrics

	// Background work: everything that bg started sends its completion to jobs and ends with
	// life.
	life context.Context // ends with Close; kept here because background work outlives calls
	end  context.CancelFunc
	work sync.WaitGroup
	jobs chan Job

	// What is wanted, each part beside what the worker loaded. Empty until the first Apply:
	// before that nothing is changed in HAProxy.
	synced bool
	global struct {
		want, loaded *Global
		written      *Global // for loaded: less was asked for where the whole would not fit
	}
	userlists, frontends map[string]*sectionState
	backends             map[string]*backendState
	maps                 map[string]*mapState
	kept                 OperatorFile // parts of the operator's own configuration

	// The worker. conn is nil while there is none to talk to. known: structure is of what was
	// loaded in full, so that parts can be compared one by one.
	conn       *conn
	connecting bool
	info       Info
	structure  string // short hash in the running generation; "" for one that is not ours
	seq        int    // in the running generation
	known      bool
	caps       Capabilities
	binds      []Bind // of the worker; nil: unknown
	oldPids    []int  // workers that finish their connections, as far as known
	masterSays bool   // oldPids is what the master said, and not only the workers that we replaced

	epoch   uint64 // counts workers that we talked to
	clock   uint64 // counts changes of have and of want: see backendState.touched
	dirty   map[part]dirt
	dirtSeq uint64
	fresh   bool                 // dirty holds something that the last reload did not
	waiting map[Lane][]time.Time // when events were read whose changes are not live yet

	// The slow lane and saving share the file: at most one of them runs.
	files      *Files
	reloader   *Reloader
	renderer   *Renderer // of the wanted template
	proven     *Renderer // of the template that the worker's configuration came from
	provenText string    // that template
	template   string
	supervisor *Supervisor // nil: HAProxy is run by somebody else
	ourFile    bool        // haproxy.cfg is one of ours
	busy       bool        // saving or reloading
	reloading  bool
	pace       pace
	heldSince  time.Time                                     // when a reload was first held because of old workers
	reloadAt   time.Time                                     // when the reload timer fires; zero: none runs
	timers     struct{ save, reap, probe, hold, ports bool } // those that are running
	unsaved    bool                                          // HAProxy runs servers that haproxy.cfg does not have
	badSaves   int                                           // in a row
	spare      spares

	leftovers []leftover
	auditing  bool
	certs     certState

	rejected  []Rejected
	notes     []string
	portRetry time.Duration // until busy ports are tried again; doubled each time up to lastPortRetry
	lastError string
	unreached string // why there was no connection when last one was tried
	reloads   int
	totals    [serverStates]int
}

// New checks o and makes a Proxy. It touches nothing outside. A template that does not
// parse is ErrTemplate.
func New(o Options) (*Proxy, error) {
	for _, missing := range []struct{ name, value string }{{"config", o.ConfigFile}, {"socket", o.Socket}} {
		if missing.value == "" {
			return nil, fmt.Errorf("haproxy.%s: want a path, have none", missing.name)
		}
	}
	switch SlotPolicy(o.Slots) {
	case SlotsAuto, SlotsAlways, SlotsNever:
	case "":
		o.Slots = string(SlotsAuto)
	default:
		return nil, fmt.Errorf("haproxy.slots: want auto, always or never, have %q", o.Slots)
	}
	o.MaxOldWorkers = cmp.Or(o.MaxOldWorkers, 4)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Proxy{
		opts: o, log: o.Logger.With("component", "haproxy"), m: newMetrics(o.Registerer),
		jobs:      make(chan Job),
		userlists: make(map[string]*sectionState), frontends: make(map[string]*sectionState),
		backends: make(map[string]*backendState), maps: make(map[string]*mapState),
		dirty: make(map[part]dirt), waiting: make(map[Lane][]time.Time),
		template: o.Template, portRetry: firstPortRetry,
	}
	p.pace.least = o.MinReloadInterval
	p.life, p.end = context.WithCancel(context.Background())
	if err := p.wire(); err != nil {
		p.end()
		return nil, err
	}
	return p, nil
}

// Done delivers completions of background work. It is never closed.
func (p *Proxy) Done() <-chan Job { return p.jobs }

// Finish takes in what background work found or did.
func (p *Proxy) Finish(ctx context.Context, j Job) { j.finish(ctx) }

// Close ends background work, waits for it and closes the connection. HAProxy goes on,
// with the servers it has.
func (p *Proxy) Close() error {
	p.end()
	p.work.Wait()
	p.disconnect()
	return nil
}

// bg runs work beside the loop and then what it returns on the loop. nil: nothing to
// tell. work ends soon after its context does.
func (p *Proxy) bg(work func(context.Context) func(context.Context)) {
	p.work.Go(func() {
		finish := work(p.life)
		if finish == nil {
			return
		}
		p.tell(finish)
	})
}

// tell has finish run on the loop. For background work, which it holds up until then.
func (p *Proxy) tell(finish func(context.Context)) {
	select {
	case p.jobs <- Job{finish}:
	case <-p.life.Done():
	}
}

// after calls then on the loop when d has passed. running is the flag of this timer: while
// it is set, further calls do nothing.
func (p *Proxy) after(d time.Duration, running *bool, then func(context.Context)) {
	if *running {
		return
	}
	*running = true
	p.bg(func(ctx context.Context) func(context.Context) {
		timer := time.NewTimer(max(d, 0))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
		return func(ctx context.Context) {
			*running = false
			then(ctx)
		}
	})
}

// Status says where the Proxy stands. It costs nothing that grows with the servers.
func (p *Proxy) Status() Status {
	st := Status{
		Connected: p.conn != nil, Version: p.info.Version, Pid: p.info.Pid, Generation: p.info.Description,
		Degraded: p.caps.Degraded(), Reloading: p.reloading, Reloads: p.reloads, OldWorkers: len(p.oldPids),
		Rejected: slices.Clone(p.rejected), LastError: p.lastError, Pending: p.reasons(), Notes: p.notes,
		Servers: make(map[string]int, serverStates), Certificates: p.certs.status,
	}
	if p.conn == nil {
		st.LastError = cmp.Or(p.unreached, p.lastError)
	}
	st.Matches = st.Connected && p.synced && p.known && len(p.dirty) == 0
	for s, n := range p.totals {
		st.Servers[serverStateText[s]] = n
	}
	return st
}
