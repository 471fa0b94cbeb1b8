package haproxy

import (
	"context"
	"errors"
	"log/slog"
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
)

// Options says which HAProxy a Proxy drives and how. Zero values mean the default that
// stands with the field.
type Options struct {
	ConfigFile    string // path of haproxy.cfg; required
	Socket        string // stats socket, level admin; required
	MasterSocket  string // master CLI socket; "": ReloadCommand is used
	ReloadCommand string // run by /bin/sh -c when there is no MasterSocket
	Supervise     bool   // start haproxy -W ourselves when none runs
	Binary        string // "haproxy"
	Template      string // text of haproxy.cfg's template; "": the embedded one

	MinReloadInterval time.Duration // 0: as the adaptive interval allows
	MaxOldWorkers     int           // 4
	SaveDelay         time.Duration // 250ms
	Drain             time.Duration // 30s: how long leftovers of a removed server may live

	// Slots says when spare server slots stand in for servers made at run time: "auto" (where
	// the HAProxy version asks for them), "always" (also for backends whose server names are
	// a contract, where the version allows it), "never". "": auto.
	Slots string

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
	Connected  bool
	Version    string // as HAProxy says it
	Pid        int
	Generation string // of the running worker
	Degraded   []string

	// Matches: HAProxy runs what is wanted, as far as is known: connected, synced once and
	// nothing pending.
	Matches   bool
	Pending   []Reason // of the reload that is due or running
	Reloading bool
	Reloads   int // that succeeded since start

	OldWorkers int
	Rejected   []Rejected
	LastError  string
	Servers    map[string]int // by state: ready drain maint spare retired
}

// Rejected is a part of the configuration that HAProxy refused and that runs in its last
// good form, or not at all, until it changes.
type Rejected struct {
	Owner   string // app
	Section string
	Detail  string // HAProxy's own words
}

// Job is a completion of background work, to be handed to Finish.
type Job struct {
	finish func(context.Context)
}

// Proxy makes one HAProxy match what Apply was told. All methods but Done are called
// from one goroutine.
type Proxy struct {
	opts Options
	jobs chan Job
}

// New checks o and makes a Proxy. It touches nothing outside.
func New(o Options) (*Proxy, error) {
	return &Proxy{opts: o, jobs: make(chan Job)}, nil
}

// Adopt connects and reads what runs.
func (p *Proxy) Adopt(ctx context.Context) error { return nil }

// Apply merges c into what is wanted and brings HAProxy there.
func (p *Proxy) Apply(ctx context.Context, c Change) Result { return Result{} }

// Done delivers completions of background work.
func (p *Proxy) Done() <-chan Job { return p.jobs }

// Finish takes in a completion.
func (p *Proxy) Finish(ctx context.Context, j Job) { j.finish(ctx) }

// Audit starts reading back what HAProxy runs.
func (p *Proxy) Audit(ctx context.Context) error { return nil }

// Status says where the Proxy stands.
func (p *Proxy) Status() Status { return Status{} }

// Close ends background work and closes the connection. HAProxy goes on.
func (p *Proxy) Close() error { return nil }
