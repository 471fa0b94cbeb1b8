package vsphere_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"bridged/internal/provision"
	"bridged/internal/provision/vsim"
)

func TestSecondOperatorIsToldWhoHoldsTheLease(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{})
	alice := newOperator(t, vc, small())
	p, err := alice.connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close(ctx)
	lease, err := p.Acquire(ctx, provision.Holder{ID: "1", Who: "alice@lab pid 7"})
	if err != nil {
		t.Fatal(err)
	}
	bob := newOperator(t, vc, small())
	err = bob.apply(ctx)
	held, ok := errors.AsType[*provision.HeldError](err)
	if !ok || held.Holder.Who != "alice@lab pid 7" || held.Holder.Expires.Before(time.Now()) {
		t.Errorf("bob: %v, want that alice holds the lease", err)
	}
	if err := lease.Check(ctx); err != nil {
		t.Errorf("alice: %v", err)
	}
	if err := lease.Release(ctx); err != nil {
		t.Error(err)
	}
	bob.mustApply(ctx)
}

func TestDeadHoldersLeaseExpires(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{})
	alice := newOperator(t, vc, small())
	p, err := alice.connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	lease, err := p.Acquire(ctx, provision.Holder{ID: "1", Who: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(ctx); err != nil { // without a Release, as a dead run
		t.Fatal(err)
	}
	vc.Advance(time.Minute + time.Second)
	bob := newOperator(t, vc, small())
	bob.mustApply(ctx)
	// Alice was only asleep. She must not remove anything now.
	p, err = alice.connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close(ctx)
	if err := lease.Check(ctx); err == nil {
		t.Error("a lease that was lost checks out")
	}
}

func TestLeaseIsRenewed(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{})
	o := newOperator(t, vc, small())
	o.ttl = 1200 * time.Millisecond
	p, err := o.connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close(ctx)
	renewed := make(chan struct{})
	var once sync.Once
	n := 0
	vc.Hook(func(c vsim.Call, done bool) vsim.Verdict {
		if c.Method == "Rename_Task" && done {
			if n++; n == 3 {
				once.Do(func() { close(renewed) })
			}
		}
		return vsim.Pass
	})
	lease, err := p.Acquire(ctx, provision.Holder{ID: "1", Who: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-renewed:
	case <-ctx.Done():
		t.Fatal("the lease is not renewed")
	}
	vc.Hook(nil)
	if err := lease.Release(ctx); err != nil {
		t.Error(err)
	}
	if strings.Contains(vc.Dump(), "/vm/t") {
		t.Errorf("something is left of lease and folder:\n%s", vc.Dump())
	}
}

func TestFiveOperatorsAtOnce(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{})
	var wg sync.WaitGroup
	results := make([]error, 5)
	for i := range results {
		wg.Go(func() {
			o := newOperator(t, vc, blueprint(1, 3))
			o.name = fmt.Sprintf("operator %d", i)
			results[i] = o.apply(ctx)
		})
	}
	wg.Wait()
	won := 0
	for i, err := range results {
		held, refused := errors.AsType[*provision.HeldError](err)
		switch {
		case err == nil:
			won++
		case !refused:
			t.Errorf("operator %d: %v", i, err)
		case !strings.HasPrefix(held.Holder.Who, "operator "):
			t.Errorf("operator %d is not told who: %v", i, err)
		}
	}
	if won == 0 {
		t.Error("nobody did it")
	}
	newOperator(t, vc, blueprint(1, 3)).mustBeDone(ctx)
	if got, want := vc.VMs(), 5; len(got) != want {
		t.Errorf("%d VMs, want %d: %v", len(got), want, got)
	}
}

func TestSessionsEndWhileApplying(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{})
	n := 0
	var mu sync.Mutex
	vc.Hook(func(c vsim.Call, done bool) vsim.Verdict {
		mu.Lock()
		defer mu.Unlock()
		if done || c.Method == "Login" {
			return vsim.Pass
		}
		if n++; n%5 == 0 {
			vc.LoseSessions()
		}
		return vsim.Pass
	})
	o := newOperator(t, vc, blueprint(1, 5))
	if err := o.apply(ctx); err != nil {
		t.Errorf("apply: %v", err)
	}
	vc.Hook(nil)
	if logins := vc.Calls()["Login"]; logins < 3 {
		t.Errorf("%d sign-ins, want several", logins)
	}
	o.mustBeDone(ctx)
}

func TestStopFinishesWhatRuns(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{})
	stop := make(chan struct{})
	var once sync.Once
	vc.Hook(func(c vsim.Call, done bool) vsim.Verdict {
		if c.Method == "CloneVM_Task" && !done {
			once.Do(func() { close(stop) })
		}
		return vsim.Pass
	})
	o := newOperator(t, vc, blueprint(1, 6, "limits: {parallel: 1}"))
	o.stop = stop
	err := o.apply(ctx)
	vc.Hook(nil)
	if !errors.Is(err, provision.ErrStopped) {
		t.Errorf("error %v, want ErrStopped", err)
	}
	o.stop = nil
	o.mustApply(ctx)
}

func TestCancelledRunReturnsAtOnce(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{Clone: 20 * time.Millisecond, Sick: func(string) vsim.Sickness { return vsim.Sickness{Silent: true} }})
	running, cancel := context.WithCancel(ctx)
	var once sync.Once
	o := newOperator(t, vc, small())
	o.report = func(e provision.Event) {
		if strings.HasPrefix(e.Step, "wait") && e.State == provision.StateRunning {
			once.Do(cancel)
		}
	}
	if err := o.apply(running); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want Canceled", err)
	}
}
