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

// Defaults of the blueprint's timeouts.
const (
	defaultClone     = 30 * time.Minute
	defaultBoot      = 10 * time.Minute
	defaultBootstrap = 20 * time.Minute
	defaultShutdown  = 2 * time.Minute
	powerTimeout     = 10 * time.Minute // power and configuration tasks take seconds, minutes on a busy host
)

func withTimeout(ctx context.Context, d, otherwise time.Duration) (context.Context, context.CancelFunc) {
	if d <= 0 {
		d = otherwise
	}
	return context.WithTimeout(ctx, d)
}

// target is the VM a step is done to.
func (a *applying) target(ctx context.Context, s *provision.Step) (ref, error) {
	if s.Have != nil && s.Have.Ref != "" {
		return ref{Type: "VirtualMachine", Value: s.Have.Ref}, nil
	}
	if vm, ok := a.p.noted(s.Node); ok {
		return vm, nil
	}
	return a.child(ctx, s.Node)
}

// machine reads one VM as it is now. It is nil when the VM is gone; its Marks
// are zero when they are not this cluster's.
func (a *applying) machine(ctx context.Context, vm ref) (*machine, error) {
	found, err := a.p.read(ctx, []ref{vm}, "VirtualMachine", a.p.machinePaths()...)
	if err != nil {
		return nil, fmt.Errorf("read the VM: %w", err)
	}
	o := found[vm]
	if o == nil {
		return nil, nil
	}
	m := newMachine(o, nil, nil, nil)
	marks, ours, err := provision.DecodeMarks(a.p.cluster.Metadata.Name, map[string]string{
		provision.MarkCluster: o.extra(provision.MarkCluster), provision.MarkNode: o.extra(provision.MarkNode),
	})
	if err == nil && ours {
		m.Marks = marks
	}
	return m, nil
}

// own is machine for a VM that is about to be changed: only ours will do.
func (a *applying) own(ctx context.Context, name string, vm ref) (*machine, error) {
	m, err := a.machine(ctx, vm)
	switch {
	case err != nil:
		return nil, err
	case m == nil:
		return nil, errGone
	case m.Marks.Node != name && m.Marks.Node+partSuffix != name:
		return nil, &foreignError{name: name}
	}
	return m, nil
}

func (a *applying) powerOn(ctx context.Context, vm ref) error {
	ctx, cancel := context.WithTimeout(ctx, powerTimeout)
	defer cancel()
	res, err := methods.PowerOnVM_Task(ctx, a.p.client, &types.PowerOnVM_Task{This: vm})
	if err == nil {
		_, err = a.p.task(ctx, res.Returnval, nil)
	}
	if existing, ok := invalidPower(err); ok && existing == types.VirtualMachinePowerStatePoweredOn {
		return nil
	}
	return err
}

// invalidPower tells in which state a VM was that was to be put into another.
func invalidPower(err error) (types.VirtualMachinePowerState, bool) {
	var f *types.InvalidPowerState
	if _, ok := fault.As(err, &f); ok {
		return f.ExistingState, true
	}
	return "", false
}

// powerOff shuts the guest down politely when there is one that listens, and
// switches the VM off when that takes too long.
func (a *applying) powerOff(ctx context.Context, m *machine, polite bool, say func(string)) error {
	if m.Power == provision.PoweredOff {
		return nil
	}
	if polite && m.tools && m.Power == provision.PoweredOn {
		say("shut down the guest")
		_, err := methods.ShutdownGuest(ctx, a.p.client, &types.ShutdownGuest{This: m.ref})
		if err == nil {
			short, cancel := withTimeout(ctx, a.p.cluster.Spec.Timeouts.Shutdown, defaultShutdown)
			err = a.p.poll.watch(short, m.ref, func(o *object) bool {
				return o.props["runtime.powerState"] == types.VirtualMachinePowerStatePoweredOff
			})
			cancel()
		}
		if state, ok := invalidPower(err); err == nil || errors.Is(err, errGone) || ok && state == types.VirtualMachinePowerStatePoweredOff {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	say("power off")
	ctx, cancel := context.WithTimeout(ctx, powerTimeout)
	defer cancel()
	res, err := methods.PowerOffVM_Task(ctx, a.p.client, &types.PowerOffVM_Task{This: m.ref})
	if err == nil {
		_, err = a.p.task(ctx, res.Returnval, nil)
	}
	if state, ok := invalidPower(err); gone(err) || ok && state == types.VirtualMachinePowerStatePoweredOff {
		return nil
	}
	return err
}

// gone reports that the object of a call or task exists no more.
func gone(err error) bool {
	return errors.Is(err, errGone) || fault.Is(err, &types.ManagedObjectNotFound{})
}

// reconfigure makes the VM's configuration what the node asks for, with the
// guest data if guest is set. A VM that somebody changed between read and write
// is read again.
func (a *applying) reconfigure(ctx context.Context, n *provision.Node, vm ref, guest bool) error {
	ctx, cancel := context.WithTimeout(ctx, powerTimeout)
	defer cancel()
	for try := 0; ; try++ {
		m, err := a.own(ctx, n.Name, vm)
		if err != nil {
			return err
		}
		spec, err := a.difference(n, m, guest)
		if err != nil || spec == nil {
			return err
		}
		res, err := methods.ReconfigVM_Task(ctx, a.p.client, &types.ReconfigVM_Task{This: vm, Spec: *spec})
		if err == nil {
			_, err = a.p.task(ctx, res.Returnval, nil)
		}
		if try < 3 && (fault.Is(err, &types.ConcurrentAccess{}) || fault.Is(err, &types.TaskInProgress{})) {
			continue
		}
		return err
	}
}

// difference is what has to be configured on the VM; nil when nothing has.
func (a *applying) difference(n *provision.Node, m *machine, guest bool) (*types.VirtualMachineConfigSpec, error) {
	spec := &types.VirtualMachineConfigSpec{ChangeVersion: m.version}
	changed := false
	if m.CPUs != n.CPUs {
		spec.NumCPUs, changed = int32(n.CPUs), true
	}
	if n.CoresPerSocket > 0 && m.CoresPerSocket != n.CoresPerSocket {
		spec.NumCoresPerSocket, changed = new(int32(n.CoresPerSocket)), true
	}
	if m.MemoryMiB != n.MemoryMiB {
		spec.MemoryMB, changed = n.MemoryMiB, true
	}
	if n.ReservedMHz != m.ReservedMHz || n.ReservedMiB != m.ReservedMiB {
		spec.CpuAllocation = &types.ResourceAllocationInfo{Reservation: new(int64(n.ReservedMHz))}
		spec.MemoryReservationLockedToMax = new(n.ReservedMiB > 0 && n.ReservedMiB == n.MemoryMiB)
		spec.MemoryAllocation = &types.ResourceAllocationInfo{Reservation: new(n.ReservedMiB)}
		changed = true
	}
	if m.InstanceUUID != n.InstanceUUID && n.InstanceUUID != "" {
		spec.InstanceUuid, changed = n.InstanceUUID, true
	}
	nics, err := a.place.nicChanges(m.devices, n.NICs)
	if err != nil {
		return nil, err
	}
	drives, err := diskChanges(m.devices, a.imageDisks(n), n.RootMiB, n.Disks)
	if err != nil {
		return nil, err
	}
	spec.DeviceChange = append(nics, drives...)
	values := n.Marks()
	if guest {
		if values, err = guestValues(n); err != nil {
			return nil, err
		}
		// The report of the first boot that was is not that of the one to come.
		values[provision.StatusKey] = ""
	} else if m.Marks.Generation == n.Generation && m.Marks.Hash == n.Hash {
		values = nil
	}
	spec.ExtraConfig = extraConfig(values)
	if !changed && len(spec.DeviceChange) == 0 && len(spec.ExtraConfig) == 0 {
		return nil, nil
	}
	return spec, nil
}

// imageDisks is how many disks of a node's VM came with its image.
func (a *applying) imageDisks(n *provision.Node) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if m := a.sources[n.Image]; m != nil {
		return len(m.Disks)
	}
	return max(1, a.place.imageDisks)
}

// restart changes a machine that has to be off for it.
func (a *applying) restart(ctx context.Context, s *provision.Step, say func(string)) error {
	vm, err := a.target(ctx, s)
	if err != nil {
		return err
	}
	m, err := a.own(ctx, s.Node, vm)
	if err != nil {
		return err
	}
	free, err := a.p.slots.take(ctx, "", "")
	if err != nil {
		return err
	}
	defer free()
	if err := a.powerOff(ctx, m, true, say); err != nil {
		return fmt.Errorf("power off: %w", err)
	}
	say("reconfigure")
	if err := a.reconfigure(ctx, s.Want, vm, s.Want.UserData != nil); err != nil {
		return fmt.Errorf("reconfigure: %w", err)
	}
	say("power on")
	return a.powerOn(ctx, vm)
}

// remove destroys a VM with its disks, if it is ours.
func (a *applying) remove(ctx context.Context, s *provision.Step, say func(string)) error {
	vm, err := a.target(ctx, s)
	if err != nil {
		if s.Have == nil || s.Have.Ref == "" {
			return nil // it is not there
		}
		return err
	}
	m, err := a.own(ctx, s.Node, vm)
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return err
	}
	free, err := a.p.slots.take(ctx, "", "")
	if err != nil {
		return err
	}
	defer free()
	if err := a.powerOff(ctx, m, m.Report.Phase != provision.PhaseNone, say); err != nil {
		return fmt.Errorf("power off: %w", err)
	}
	say("destroy")
	ctx, cancel := context.WithTimeout(ctx, powerTimeout)
	defer cancel()
	res, err := methods.Destroy_Task(ctx, a.p.client, &types.Destroy_Task{This: vm})
	if err == nil {
		_, err = a.p.task(ctx, res.Returnval, nil)
	}
	if err != nil && !gone(err) {
		return err
	}
	a.p.mu.Lock()
	delete(a.p.made, s.Node)
	a.p.mu.Unlock()
	return nil
}

// await waits until the guest reports that it is ready, which is not bounded by
// any limit of operations: nothing happens in vCenter meanwhile.
func (a *applying) await(ctx context.Context, s *provision.Step, say func(string)) error {
	vm, err := a.target(ctx, s)
	if err != nil {
		return err
	}
	timeouts := a.p.cluster.Spec.Timeouts
	boot, bootstrap := timeouts.Boot, timeouts.Bootstrap
	if boot <= 0 {
		boot = defaultBoot
	}
	if bootstrap <= 0 {
		bootstrap = defaultBootstrap
	}
	limited, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	deadline := time.AfterFunc(boot, func() { cancel(errStalled) })
	defer deadline.Stop()

	var (
		mu     sync.Mutex // guards the rest: a wait may end while the poller looks
		last   provision.Report
		result error
		off    bool
	)
	err = a.p.poll.watch(limited, vm, func(o *object) bool {
		mu.Lock()
		defer mu.Unlock()
		off = o.props["runtime.powerState"] == types.VirtualMachinePowerStatePoweredOff
		r := parseReport(o.extra(provision.StatusKey))
		if r.Generation != s.Want.Generation || r.Phase == provision.PhaseNone {
			return false // nothing yet, or the last words of the machine before
		}
		if last.Phase == provision.PhaseNone {
			deadline.Reset(bootstrap)
		}
		if r.Phase != last.Phase || r.Step != last.Step {
			say(describe(r))
		}
		last = r
		switch r.Phase {
		case provision.PhaseReady:
			return true
		case provision.PhaseFailed:
			result = &guestError{report: r}
			return true
		}
		return false
	})
	mu.Lock()
	defer mu.Unlock()
	switch {
	case err == nil:
		return result
	case context.Cause(limited) == errStalled && ctx.Err() == nil:
		limit := bootstrap
		if last.Phase == provision.PhaseNone {
			limit = boot
		}
		return &guestError{report: last, stalled: limit, off: off}
	}
	return err
}

var errStalled = errors.New("stalled")

// describe is a report as a word of progress.
func describe(r provision.Report) string {
	if r.Step == "" {
		return string(r.Phase)
	}
	return string(r.Phase) + ": " + r.Step
}

// guestError is a first boot that failed or does not go on.
type guestError struct {
	report  provision.Report
	stalled time.Duration // 0: it reported failure itself
	off     bool
}

func (e *guestError) Error() string {
	switch {
	case e.stalled == 0 && e.report.Step != "":
		return fmt.Sprintf("the first boot failed at %q: %s", e.report.Step, e.report.Err)
	case e.stalled == 0:
		return "the first boot failed: " + e.report.Err
	case e.off:
		return fmt.Sprintf("no report from the guest within %v, and the VM is powered off", e.stalled)
	case e.report.Phase == provision.PhaseNone:
		return fmt.Sprintf("no report from the guest within %v of power-on", e.stalled)
	}
	return fmt.Sprintf("stalled for more than %v, last report %q", e.stalled, describe(e.report))
}
