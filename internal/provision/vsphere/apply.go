package vsphere

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"bridged/internal/provision"
)

// applying is one run of a stage.
type applying struct {
	p     *Provider
	place *place
	stage *provision.Stage
	run   provision.Run

	rules sync.Mutex // held while rules are changed, which vCenter does one at a time

	mu      sync.Mutex // guards what follows
	sources map[string]*machine
	errs    []error // by step, in the plan's order
	stopped bool
}

// Apply runs one stage. See provision.Provider.
func (p *Provider) Apply(ctx context.Context, stage *provision.Stage, run provision.Run) error {
	pl, err := p.current(ctx)
	if err != nil {
		return p.explain(err)
	}
	a := &applying{
		p: p, place: pl, stage: stage, run: run,
		sources: map[string]*machine{}, errs: make([]error, len(stage.Steps)),
	}
	// Steps of a node in their order, nodes and other objects side by side.
	lanes := map[string][]int{}
	var order []string
	for i := range stage.Steps {
		key := stage.Steps[i].Node
		if key == "" {
			key = "object " + stage.Steps[i].Object
		}
		if lanes[key] == nil {
			order = append(order, key)
		}
		lanes[key] = append(lanes[key], i)
	}
	var wg sync.WaitGroup
	for _, key := range order {
		wg.Go(func() { a.lane(ctx, lanes[key]) })
	}
	wg.Wait()
	a.restartPriorities(ctx)
	a.decorate(ctx)

	var list []error
	for _, err := range a.errs {
		if err != nil {
			list = append(list, err)
		}
	}
	if a.stopped {
		list = append(list, provision.ErrStopped)
	}
	if ctx.Err() != nil {
		list = append(list, ctx.Err())
	}
	return errors.Join(list...)
}

// current is the place found by the last Inventory.
func (p *Provider) current(ctx context.Context) (*place, error) {
	p.mu.Lock()
	pl := p.place
	p.mu.Unlock()
	if pl != nil {
		return pl, nil
	}
	pl, err := p.resolve(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.place = pl
	return pl, nil
}

// lane runs the steps of one node.
func (a *applying) lane(ctx context.Context, steps []int) {
	failed := false
	for _, i := range steps {
		s := &a.stage.Steps[i]
		if failed || ctx.Err() != nil || a.stop() {
			a.event(s, provision.StateSkipped, "", nil)
			continue
		}
		a.event(s, provision.StateRunning, "", nil)
		err := a.do(ctx, s)
		if err != nil {
			failed = true
			err = a.p.stepError(s, err)
			a.mu.Lock()
			a.errs[i] = err
			a.mu.Unlock()
			a.event(s, provision.StateFailed, "", err)
			continue
		}
		a.event(s, provision.StateDone, "", nil)
	}
}

// stop reports whether no further step is to be started.
func (a *applying) stop() bool {
	select {
	case <-a.run.Stop: // a nil channel never is
		a.mu.Lock()
		a.stopped = true
		a.mu.Unlock()
		return true
	default:
		return false
	}
}

func (a *applying) event(s *provision.Step, state provision.EventState, detail string, err error) {
	e := provision.Event{Time: time.Now(), Stage: a.stage.Name, Step: s.ID, Node: s.Node, State: state, Detail: detail}
	if err != nil {
		e.Err = err.Error()
	}
	a.run.Report(e)
}

func (a *applying) do(ctx context.Context, s *provision.Step) error {
	say := func(detail string) { a.event(s, provision.StateRunning, detail, nil) }
	switch s.Kind {
	case provision.StepFolder:
		return a.makeFolder(ctx)
	case provision.StepPool:
		return a.makePool(ctx)
	case provision.StepImage:
		return a.importImage(ctx, s, say)
	case provision.StepCreate:
		return a.create(ctx, s, say)
	case provision.StepPower:
		vm, err := a.target(ctx, s)
		if err != nil {
			return err
		}
		return a.slot(ctx, func() error { return a.powerOn(ctx, vm) })
	case provision.StepReconfigure:
		vm, err := a.target(ctx, s)
		if err != nil {
			return err
		}
		return a.slot(ctx, func() error { return a.reconfigure(ctx, s.Want, vm, false) })
	case provision.StepRestart:
		return a.restart(ctx, s, say)
	case provision.StepWait:
		if a.run.NoWait {
			return nil
		}
		return a.await(ctx, s, say)
	case provision.StepDelete:
		return a.remove(ctx, s, say)
	case provision.StepPutRule:
		return a.putRule(ctx, s.Rule)
	case provision.StepRemoveRule:
		return a.removeRule(ctx, s)
	case provision.StepRemovePool:
		return a.removePool(ctx)
	case provision.StepRemoveFolder:
		return a.removeFolder(ctx)
	}
	return fmt.Errorf("vsphere: no such step: %s", s.Kind)
}

// slot runs f as one of the operations that are done at once.
func (a *applying) slot(ctx context.Context, f func() error) error {
	free, err := a.p.slots.take(ctx, "", "")
	if err != nil {
		return err
	}
	defer free()
	return f()
}

// makeFolder makes the cluster's folder.
func (a *applying) makeFolder(ctx context.Context) error {
	folder, _, err := a.p.ensureFolder(ctx, a.place)
	if err != nil {
		return err
	}
	return a.noteFolder(folder)
}

func (a *applying) noteFolder(folder ref) error {
	a.p.mu.Lock()
	defer a.p.mu.Unlock()
	a.place.folder = folder
	return nil
}

// ensureFolder makes the cluster's folder unless it is there.
func (p *Provider) ensureFolder(ctx context.Context, pl *place) (folder ref, made bool, err error) {
	p.mu.Lock()
	folder = pl.folder
	p.mu.Unlock()
	if folder.Value != "" {
		return folder, false, nil
	}
	if pl.parent.Value == "" {
		return ref{}, false, fmt.Errorf("the folder that the cluster's folder lies in was not found: %w", missingError(pl.missing))
	}
	res, err := methods.CreateFolder(ctx, p.client, &types.CreateFolder{This: pl.parent, Name: p.cluster.Metadata.Name})
	var duplicate *types.DuplicateName
	if _, ok := fault.As(err, &duplicate); ok {
		if duplicate.Object.Type != "Folder" {
			return ref{}, false, fmt.Errorf("the name %s is taken by a %s", pl.folderPath, duplicate.Object.Type)
		}
		return duplicate.Object, false, nil
	}
	if err != nil {
		return ref{}, false, fmt.Errorf("create folder %s: %w", pl.folderPath, err)
	}
	return res.Returnval, true, nil
}

// missingError names what the blueprint refers to and does not exist.
func missingError(list []provision.Missing) error {
	var errs []error
	for _, m := range list {
		errs = append(errs, fmt.Errorf("%s: no %s %q", m.Path, m.Kind, m.Name))
	}
	return errors.Join(errs...)
}

// makePool makes the cluster's resource pool.
func (a *applying) makePool(ctx context.Context) error {
	pl := a.place
	if pl.pool.Value == "" {
		return fmt.Errorf("the parent resource pool was not found: %w", missingError(pl.missing))
	}
	shares := types.ResourceAllocationInfo{
		Reservation: new(int64(0)), ExpandableReservation: new(true), Limit: new(int64(-1)),
		Shares: &types.SharesInfo{Level: types.SharesLevelNormal},
	}
	res, err := methods.CreateResourcePool(ctx, a.p.client, &types.CreateResourcePool{
		This: pl.pool, Name: a.p.cluster.Metadata.Name,
		Spec: types.ResourceConfigSpec{CpuAllocation: shares, MemoryAllocation: shares},
	})
	var duplicate *types.DuplicateName
	pool := ref{}
	if _, ok := fault.As(err, &duplicate); ok {
		pool = duplicate.Object
	} else if err != nil {
		return fmt.Errorf("create resource pool: %w", err)
	} else {
		pool = res.Returnval
	}
	a.p.mu.Lock()
	defer a.p.mu.Unlock()
	pl.ownPool = pool
	return nil
}

// removePool removes the cluster's pool when nothing is in it.
func (a *applying) removePool(ctx context.Context) error {
	pool := a.place.ownPool
	if pool.Value == "" {
		return nil
	}
	found, err := a.p.read(ctx, []ref{pool}, "ResourcePool", "vm", "resourcePool")
	if err != nil {
		return err
	}
	o := found[pool]
	if o == nil {
		return nil
	}
	if vms, pools := len(o.refs("vm")), len(o.refs("resourcePool")); vms+pools > 0 {
		return &notEmptyError{what: "resource pool " + a.place.poolPath + "/" + a.p.cluster.Metadata.Name, left: fmt.Sprintf("%d VMs and %d pools", vms, pools)}
	}
	return a.destroy(ctx, pool)
}

// removeFolder removes the cluster's folder when nothing but our lease is in it.
func (a *applying) removeFolder(ctx context.Context) error {
	if a.place.folder.Value == "" {
		return nil
	}
	c, err := a.p.readCluster(ctx, &place{folder: a.place.folder})
	if err != nil {
		return err
	}
	ours := ref{}
	for _, l := range c.leases {
		if a.p.holds(&l) {
			ours = l.folder
		}
	}
	left := c.children - len(c.leases)
	if l := c.liveLease(a.p.session.now()); l != nil && !a.p.holds(l) {
		return &provision.HeldError{Cluster: a.p.cluster.Metadata.Name, Holder: l.holder}
	}
	if left > 0 {
		return &notEmptyError{what: "folder " + a.place.folderPath, left: fmt.Sprintf("%d objects that are not the cluster's", left)}
	}
	if err := a.p.removeTags(ctx); err != nil {
		a.p.log.Warn("remove tags", "err", err)
	}
	// A folder is destroyed with what is in it, so it is emptied first: what
	// somebody puts into it now is then not lost unseen. Our lease is the last.
	for _, l := range c.leases {
		if l.folder != ours {
			if err := a.destroy(ctx, l.folder); err != nil {
				return err
			}
		}
	}
	if ours.Value != "" {
		a.p.dropLease()
		if err := a.destroy(ctx, ours); err != nil {
			return err
		}
	}
	if err := a.destroy(ctx, a.place.folder); err != nil {
		return err
	}
	return a.noteFolder(ref{})
}

// notEmptyError says that something cannot be removed because others use it.
type notEmptyError struct{ what, left string }

func (e *notEmptyError) Error() string { return e.what + " is not empty: " + e.left }

// destroy removes an object; one that is gone is as good.
func (a *applying) destroy(ctx context.Context, o ref) error { return a.p.destroy(ctx, o) }

func (p *Provider) destroy(ctx context.Context, o ref) error {
	ctx, cancel := context.WithTimeout(ctx, powerTimeout)
	defer cancel()
	res, err := methods.Destroy_Task(ctx, p.client, &types.Destroy_Task{This: o})
	if err == nil {
		_, err = p.task(ctx, res.Returnval, nil)
	}
	if gone(err) {
		return nil
	}
	return err
}
