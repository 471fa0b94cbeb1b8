package provision

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Provider is the seam between the plan and the hypervisor: what exists, and
// making a stage of a plan true. A Provider is made for one Cluster.
type Provider interface {
	// Inventory reads what exists now, in a number of calls that does not grow
	// with the number of machines (except for paging). It changes nothing.
	// Before it reads it waits for tasks that a dead run of ours left running
	// on our machines. Missing names are Facts, not an error.
	Inventory(ctx context.Context, scope Scope) (*Inventory, error)

	// Apply runs the steps of one stage. Steps of one node run in their order,
	// nodes in parallel up to the cluster's limits. Every step is idempotent:
	// what is already so is success. A failed step stops its node only; the
	// error joins one *StepError per failed step, in the plan's order.
	// When run.Stop is closed no further step is started, the running ones are
	// finished, and ErrStopped is among the joined errors. When ctx ends Apply
	// returns as soon as it can.
	// All calls of run.Report are done before Apply returns.
	Apply(ctx context.Context, stage *Stage, run Run) error

	// Acquire takes the cluster's lease for holder, creating what the lease
	// needs (such as the cluster's folder). It returns a *HeldError when
	// somebody else has it. The lease is renewed in the background until
	// Release; a holder that died loses it after its TTL.
	Acquire(ctx context.Context, holder Holder) (Lease, error)

	// Close ends the session.
	Close(ctx context.Context) error
}

// Scope says how much of the inventory to read.
type Scope int

// Scopes.
const (
	ScopeCluster Scope = iota // the cluster's own objects and the names the blueprint needs
	ScopeOnline               // besides, all that validation against the provider needs
)

// Run is what Apply needs from its caller.
type Run struct {
	Report func(Event)     // safe for concurrent use; never nil
	Stop   <-chan struct{} // closed: finish what runs, start nothing; may be nil
	Gate   GateMode
	NoWait bool // StepWait is done at once
}

// GateMode says whom to ask whether a node is ready.
type GateMode string

// Gate modes.
const (
	GateAuto      GateMode = "auto"      // guestinfo, and the services where they can be reached
	GateGuestinfo GateMode = "guestinfo" // only what the node reports through the hypervisor
	GateDirect    GateMode = "direct"    // the services themselves
)

// Holder is who holds a lease.
type Holder struct {
	ID      string // unique per run
	Who     string // user@host pid 123, for people
	Expires time.Time
}

// Lease is a held lease.
type Lease interface {
	// Check reads the lease back; it fails with a *HeldError when it was lost.
	// It is called before every stage that removes something.
	Check(ctx context.Context) error
	// Release gives the lease back. Not an error when it, or the folder it
	// stood in, is gone already.
	Release(ctx context.Context) error
}

// HeldError says that another run holds the cluster's lease.
type HeldError struct {
	Cluster string
	Holder  Holder
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("cluster %s: lease is held by %s until %s; wait for it, or stop that run (a dead one loses the lease by itself)",
		e.Cluster, e.Holder.Who, e.Holder.Expires.UTC().Format(time.RFC3339))
}

// ErrStopped says that steps were left out because a stop was asked for.
var ErrStopped = errors.New("stopped on request")

// StepError is one failed step.
type StepError struct {
	Step   string // Step.ID
	Node   string // "" for objects of the cluster
	Remedy string // what the operator can do, "" when a second apply is the remedy
	Err    error
}

func (e *StepError) Error() string {
	if e.Remedy == "" {
		return fmt.Sprintf("%s: %v", e.Step, e.Err)
	}
	return fmt.Sprintf("%s: %v; %s", e.Step, e.Err, e.Remedy)
}

func (e *StepError) Unwrap() error { return e.Err }

// Event is one line of progress.
type Event struct {
	Time   time.Time  `json:"time"`
	Stage  string     `json:"stage"`
	Step   string     `json:"step,omitempty"` // Step.ID; "" for the stage itself
	Node   string     `json:"node,omitempty"`
	State  EventState `json:"state"`
	Detail string     `json:"detail,omitempty"` // "clone 40 %", "packages: installing mesos"
	Err    string     `json:"error,omitempty"`
}

// EventState is how a step stands.
type EventState string

// Event states.
const (
	StateRunning EventState = "running"
	StateDone    EventState = "done"
	StateFailed  EventState = "failed"
	StateSkipped EventState = "skipped" // a step before it failed, or a stop was asked for
)
