package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Guests is the other side of a plan: the services inside the nodes, for drains
// and gates. Its Apply has the contract of Provider.Apply.
type Guests interface {
	Apply(ctx context.Context, stage *Stage, run Run) error
}

// Runner runs plans.
type Runner struct {
	Provider Provider
	Guests   Guests // nil: drains and gates are passed over, which is said
	Render   GuestRenderer
	Secrets  SecretFunc // with real values
	Now      func() time.Time
}

// ErrPartial says that some of a plan was done and some was not.
var ErrPartial = errors.New("partly done")

// Run does a plan, stage by stage. A failed step does not stop its stage, but
// no further stage is started, because later ones rest on it. The error joins
// one *StepError per failed step; it is ErrPartial when anything was done.
// lease is checked before every stage that takes something away; it may be nil.
func (r *Runner) Run(ctx context.Context, want *Want, plan *Plan, lease Lease, run Run) error {
	done := 0
	for i := range plan.Stages {
		stage := &plan.Stages[i]
		report := func(e Event) {
			if e.Time.IsZero() {
				e.Time = r.Now()
			}
			e.Stage = stage.Name
			run.Report(e)
		}
		report(Event{State: StateRunning, Detail: fmt.Sprintf("stage %d of %d", i+1, len(plan.Stages))})
		err := r.stage(ctx, want, stage, lease, Run{Report: report, Stop: run.Stop, Gate: run.Gate, NoWait: run.NoWait})
		if err != nil {
			report(Event{State: StateFailed, Err: err.Error()})
			failed := failures(err)
			if done += len(stage.Steps) - failed; done > 0 {
				err = fmt.Errorf("%w: %w", ErrPartial, err)
			}
			return fmt.Errorf("stage %q: %w", stage.Name, err)
		}
		done += len(stage.Steps)
		report(Event{State: StateDone})
	}
	return nil
}

// failures counts the failed steps in an error of Apply, at least one.
func failures(err error) int {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		n := 0
		for _, e := range joined.Unwrap() {
			n += failures(e)
		}
		return max(1, n)
	}
	return 1
}

func (r *Runner) stage(ctx context.Context, want *Want, stage *Stage, lease Lease, run Run) error {
	select {
	case <-run.Stop:
		return ErrStopped
	default:
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if lease != nil && stage.Destructive() {
		if err := lease.Check(ctx); err != nil {
			return err
		}
	}
	if stage.Guest() {
		if r.Guests == nil || run.NoWait && stage.Steps[0].Kind == StepGate {
			for i := range stage.Steps {
				run.Report(Event{Step: stage.Steps[i].ID, Node: stage.Steps[i].Node, State: StateSkipped, Detail: "not asked for"})
			}
			return nil
		}
		return r.Guests.Apply(ctx, stage, run)
	}
	ready, err := r.fill(want, stage)
	if err != nil {
		return err
	}
	return r.Provider.Apply(ctx, ready, run)
}

// fill renders guest data for the steps that write it, with real secrets and
// only now, so that they are nowhere before and in no plan.
func (r *Runner) fill(want *Want, stage *Stage) (*Stage, error) {
	ready := &Stage{Name: stage.Name, Steps: slices.Clone(stage.Steps)}
	for i := range ready.Steps {
		s := &ready.Steps[i]
		anew := s.Kind == StepRestart && s.Have != nil && s.Want.Generation > s.Have.Marks.Generation
		if s.Kind != StepCreate && !anew {
			continue
		}
		guest, err := r.Render(want, s.Want, r.Secrets)
		if err != nil {
			return nil, &StepError{Step: s.ID, Node: s.Node, Err: fmt.Errorf("render guest files: %w", err)}
		}
		n := *s.Want
		n.UserData, n.MetaData = guest.UserData, guest.MetaData
		s.Want = &n
	}
	return ready, nil
}
