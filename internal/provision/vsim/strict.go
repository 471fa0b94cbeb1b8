package vsim

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// intercept is the registry's handler: it refuses calls that a fault matches
// and puts a stricter object before the simulator's own.
func (s *Server) intercept(ctx *simulator.Context, m *simulator.Method) (mo.Reference, types.BaseMethodFault) {
	obj := ctx.Map.Get(m.This)
	fault := s.calls.refused(m.Name, subject(ctx, obj, m))
	if fault != nil && fault.Err != nil {
		return nil, fault.Err
	}
	if o, ok := obj.(*simulator.SessionManager); ok && ctx.Session == nil {
		return &sessions{SessionManager: o, server: s}, nil
	}
	var broken types.BaseMethodFault
	if fault != nil {
		broken = fault.Task
	}
	var strict mo.Reference
	switch o := obj.(type) {
	case *simulator.VirtualMachine:
		strict = &virtualMachine{VirtualMachine: o, server: s, broken: broken}
	case *simulator.Folder:
		if m.Name == "Destroy_Task" {
			strict = &folder{Folder: o, server: s, broken: broken}
		}
	case *simulator.ResourcePool:
		if m.Name == "Destroy_Task" { // others keep objects in the session
			strict = &pool{ResourcePool: o, server: s, broken: broken}
		}
	case *simulator.ClusterComputeResource:
		strict = &cluster{ClusterComputeResource: o, server: s, broken: broken}
	case *simulator.AuthorizationManager:
		strict = &authorization{AuthorizationManager: o, denied: s.opt.Denied}
	}
	if strict == nil || ctx.Session == nil {
		return nil, nil
	}
	// The session's view of an object wins over what a handler returns, so
	// the strict one goes there. A Session is made anew for every call.
	ctx.Session.Registry = simulator.NewRegistry()
	ctx.Session.Registry.Put(strict)
	return strict, nil
}

// notEntity hides the Entity method of what it is embedded beside: Registry.Put
// writes to entities, without their lock.
type notEntity struct{}

// Entity has another signature than mo.Entity's.
func (notEntity) Entity() {}

// subject is the name that a Fault's Name is compared with.
func subject(ctx *simulator.Context, obj mo.Reference, m *simulator.Method) string {
	switch req := m.Body.(type) {
	case *types.CloneVM_Task:
		return req.Name
	case *types.InstantClone_Task:
		return req.Spec.Name
	}
	if vm, ok := obj.(*simulator.VirtualMachine); ok {
		name := ""
		ctx.WithLock(vm, func() { name = vm.Name })
		return name
	}
	return ""
}

// run starts a task of our own, which unlike the simulator's holds no lock
// while it takes its time.
func (s *Server) run(ctx *simulator.Context, entity mo.Reference, id string, do func(bg *simulator.Context) (types.AnyType, types.BaseMethodFault)) types.ManagedObjectReference {
	task := simulator.CreateTask(entity, id, nil)
	n := s.tasks.Add(1)
	task.Self = types.ManagedObjectReference{Type: "Task", Value: fmt.Sprintf("task-vsim-%d", n)}
	task.Info.Key, task.Info.Task = task.Self.Value, task.Self
	task.Info.EventChainId = int32(n)
	task.Info.State = types.TaskInfoStateRunning
	if ctx.Session != nil {
		task.Info.Reason = &types.TaskReasonUser{UserName: ctx.Session.UserName}
	}
	now := time.Now()
	task.Info.StartTime = &now
	ctx.Map.Put(task)

	s.work.Go(func() {
		bg := s.background()
		result, fault := do(bg)
		changes := []types.PropertyChange{{Name: "info.completeTime", Val: time.Now()}}
		if fault != nil {
			changes = append(changes,
				types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateError},
				types.PropertyChange{Name: "info.error", Val: types.LocalizedMethodFault{Fault: fault, LocalizedMessage: fmt.Sprintf("%T", fault)}})
		} else {
			changes = append(changes,
				types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateSuccess},
				types.PropertyChange{Name: "info.result", Val: result})
		}
		s.alone(func() { bg.Map.AtomicUpdate(bg, task, changes) })
	})
	return task.Self
}

// inner runs a simulator's method that starts a task, and waits for it.
func (s *Server) inner(bg *simulator.Context, obj mo.Reference, call func() soap.HasFault) (result types.AnyType, fault types.BaseMethodFault) {
	s.alone(func() { result, fault = runInner(bg, obj, call) })
	return result, fault
}

func runInner(bg *simulator.Context, obj mo.Reference, call func() soap.HasFault) (types.AnyType, types.BaseMethodFault) {
	var body soap.HasFault
	bg.WithLock(obj, func() { body = call() })
	if f := body.Fault(); f != nil {
		if fault, ok := f.VimFault().(types.BaseMethodFault); ok {
			return nil, fault
		}
		return nil, &types.SystemError{Reason: f.String}
	}
	var ref types.ManagedObjectReference
	switch b := body.(type) {
	case *methods.CloneVM_TaskBody:
		ref = b.Res.Returnval
	case *methods.PowerOnVM_TaskBody:
		ref = b.Res.Returnval
	case *methods.PowerOffVM_TaskBody:
		ref = b.Res.Returnval
	case *methods.ReconfigVM_TaskBody:
		ref = b.Res.Returnval
	case *methods.Destroy_TaskBody:
		ref = b.Res.Returnval
	case *methods.ReconfigureComputeResource_TaskBody:
		ref = b.Res.Returnval
	default:
		return nil, &types.SystemError{Reason: fmt.Sprintf("vsim: unexpected %T", body)}
	}
	task, ok := bg.Map.Get(ref).(*simulator.Task)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: ref}
	}
	task.Wait()
	var result types.AnyType
	var fault types.BaseMethodFault
	bg.WithLock(task, func() {
		result = task.Info.Result
		if task.Info.Error != nil {
			fault = task.Info.Error.Fault
		}
	})
	return result, fault
}

// virtualMachine is a VM as vCenter has it.
type virtualMachine struct {
	*simulator.VirtualMachine
	notEntity
	server *Server
	broken types.BaseMethodFault // what the task of this call fails with
}

func (v *virtualMachine) CloneVMTask(ctx *simulator.Context, req *types.CloneVM_Task) soap.HasFault {
	ref := v.server.run(ctx, v.VirtualMachine, "cloneVm", func(bg *simulator.Context) (types.AnyType, types.BaseMethodFault) {
		return v.clone(bg, req)
	})
	return &methods.CloneVM_TaskBody{Res: &types.CloneVM_TaskResponse{Returnval: ref}}
}

func (v *virtualMachine) InstantCloneTask(ctx *simulator.Context, req *types.InstantClone_Task) soap.HasFault {
	ref := v.server.run(ctx, v.VirtualMachine, "instantClone", func(bg *simulator.Context) (types.AnyType, types.BaseMethodFault) {
		state := types.VirtualMachinePowerStatePoweredOff
		var parent types.ManagedObjectReference
		v.server.alone(func() {
			bg.WithLock(v.VirtualMachine, func() { state, parent = v.Runtime.PowerState, *v.Parent })
		})
		if state != types.VirtualMachinePowerStatePoweredOn {
			return nil, &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: state}
		}
		if req.Spec.Location.Folder != nil {
			parent = *req.Spec.Location.Folder
		}
		return v.clone(bg, &types.CloneVM_Task{This: req.This, Folder: parent, Name: req.Spec.Name, Spec: types.VirtualMachineCloneSpec{
			Location: req.Spec.Location, PowerOn: true,
			Config: &types.VirtualMachineConfigSpec{ExtraConfig: req.Spec.Config, InstanceUuid: req.Spec.BiosUuid},
		}})
	})
	return &methods.InstantClone_TaskBody{Res: &types.InstantClone_TaskResponse{Returnval: ref}}
}

// clone makes the VM at once and lets the rest of the time pass with it there,
// as vCenter shows a VM while it is still being cloned.
func (v *virtualMachine) clone(bg *simulator.Context, req *types.CloneVM_Task) (types.AnyType, types.BaseMethodFault) {
	started := time.Now()
	var refused types.BaseMethodFault
	v.server.alone(func() { refused = v.checkClone(bg, req) })
	if refused != nil {
		return nil, refused
	}
	powerOn := req.Spec.PowerOn
	req.Spec.PowerOn = false
	result, fault := v.server.inner(bg, v.VirtualMachine, func() soap.HasFault { return v.VirtualMachine.CloneVMTask(bg, req) })
	if fault != nil {
		return nil, fault
	}
	made, ok := bg.Map.Get(result.(types.ManagedObjectReference)).(*simulator.VirtualMachine)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: result.(types.ManagedObjectReference)}
	}
	v.server.alone(func() {
		bg.WithLock(made, func() {
			hot := v.server.opt.HotAdd
			made.Config.CpuHotAddEnabled, made.Config.MemoryHotAddEnabled = &hot, &hot
		})
	})
	if c := req.Spec.Config; c != nil {
		// The simulator takes only a part of it.
		rest := &types.VirtualMachineConfigSpec{
			NumCoresPerSocket: c.NumCoresPerSocket, Annotation: c.Annotation,
			CpuAllocation: c.CpuAllocation, MemoryAllocation: c.MemoryAllocation, ManagedBy: c.ManagedBy,
			MemoryReservationLockedToMax: c.MemoryReservationLockedToMax,
		}
		if _, fault := v.server.inner(bg, made, func() soap.HasFault {
			return made.ReconfigVMTask(bg, &types.ReconfigVM_Task{This: made.Self, Spec: *rest})
		}); fault != nil {
			return nil, fault
		}
	}
	if err := v.server.sleep(v.server.opt.Clone - time.Since(started)); err != nil {
		return nil, &types.SystemError{Reason: err.Error()}
	}
	if v.broken != nil {
		// vCenter removes what a failed clone has made so far.
		if _, fault := v.server.inner(bg, made, func() soap.HasFault {
			return made.DestroyTask(bg, &types.Destroy_Task{This: made.Self})
		}); fault != nil {
			return nil, fault
		}
		return nil, v.broken
	}
	if powerOn {
		if err := v.server.sleep(v.server.opt.PowerOn); err != nil {
			return nil, &types.SystemError{Reason: err.Error()}
		}
		if _, fault := v.server.inner(bg, made, func() soap.HasFault {
			return made.PowerOnVMTask(bg, &types.PowerOnVM_Task{This: made.Self})
		}); fault != nil {
			return nil, fault
		}
	}
	return made.Self, nil
}

func (v *virtualMachine) checkClone(bg *simulator.Context, req *types.CloneVM_Task) types.BaseMethodFault {
	var size int64
	var snapshots []types.VirtualMachineSnapshotTree
	var home []types.ManagedObjectReference
	bg.WithLock(v.VirtualMachine, func() {
		for _, d := range v.Config.Hardware.Device {
			if disk, ok := d.(*types.VirtualDisk); ok {
				size += disk.CapacityInKB << 10
			}
		}
		if v.Snapshot != nil {
			snapshots = v.Snapshot.RootSnapshotList
		}
		home = v.Datastore
	})
	if req.Spec.Location.DiskMoveType == string(types.VirtualMachineRelocateDiskMoveOptionsCreateNewChildDiskBacking) {
		if req.Spec.Snapshot == nil || !hasSnapshot(snapshots, *req.Spec.Snapshot) {
			return &types.InvalidArgument{InvalidProperty: "spec.snapshot"}
		}
		size = 0
	}
	if req.Spec.Config != nil {
		for _, c := range req.Spec.Config.DeviceChange {
			spec := c.GetVirtualDeviceConfigSpec()
			if disk, ok := spec.Device.(*types.VirtualDisk); ok && spec.Operation == types.VirtualDeviceConfigSpecOperationAdd {
				size += disk.CapacityInKB << 10
			}
		}
	}
	target := req.Spec.Location.Datastore
	if target == nil && len(home) > 0 {
		target = &home[0]
	}
	if target == nil {
		return nil
	}
	ds, ok := bg.Map.Get(*target).(*simulator.Datastore)
	if !ok {
		return &types.ManagedObjectNotFound{Obj: *target}
	}
	var fault types.BaseMethodFault
	bg.WithLock(ds, func() {
		if ds.Summary.FreeSpace < size {
			fault = &types.NoDiskSpace{FileFault: types.FileFault{File: "[" + ds.Name + "] " + req.Name}, Datastore: ds.Name}
		}
	})
	return fault
}

func hasSnapshot(tree []types.VirtualMachineSnapshotTree, ref types.ManagedObjectReference) bool {
	return slices.ContainsFunc(tree, func(t types.VirtualMachineSnapshotTree) bool {
		return t.Snapshot == ref || hasSnapshot(t.ChildSnapshotList, ref)
	})
}

// timed runs a method of the VM as a task that takes d.
func (v *virtualMachine) timed(ctx *simulator.Context, id string, d time.Duration, call func(bg *simulator.Context) soap.HasFault) types.ManagedObjectReference {
	return v.server.run(ctx, v.VirtualMachine, id, func(bg *simulator.Context) (types.AnyType, types.BaseMethodFault) {
		if err := v.server.sleep(d); err != nil {
			return nil, &types.SystemError{Reason: err.Error()}
		}
		if v.broken != nil {
			return nil, v.broken
		}
		return v.server.inner(bg, v.VirtualMachine, func() soap.HasFault { return call(bg) })
	})
}

func (v *virtualMachine) PowerOnVMTask(ctx *simulator.Context, req *types.PowerOnVM_Task) soap.HasFault {
	return &methods.PowerOnVM_TaskBody{Res: &types.PowerOnVM_TaskResponse{
		Returnval: v.timed(ctx, "powerOn", v.server.opt.PowerOn, func(bg *simulator.Context) soap.HasFault {
			return v.VirtualMachine.PowerOnVMTask(bg, req)
		})}}
}

func (v *virtualMachine) PowerOffVMTask(ctx *simulator.Context, req *types.PowerOffVM_Task) soap.HasFault {
	return &methods.PowerOffVM_TaskBody{Res: &types.PowerOffVM_TaskResponse{
		Returnval: v.timed(ctx, "powerOff", v.server.opt.PowerOff, func(bg *simulator.Context) soap.HasFault {
			return v.VirtualMachine.PowerOffVMTask(bg, req)
		})}}
}

func (v *virtualMachine) DestroyTask(ctx *simulator.Context, req *types.Destroy_Task) soap.HasFault {
	return &methods.Destroy_TaskBody{Res: &types.Destroy_TaskResponse{
		Returnval: v.server.run(ctx, v.VirtualMachine, "destroy", func(bg *simulator.Context) (types.AnyType, types.BaseMethodFault) {
			if err := v.server.sleep(v.server.opt.Destroy); err != nil {
				return nil, &types.SystemError{Reason: err.Error()}
			}
			if v.broken != nil {
				return nil, v.broken
			}
			var result types.AnyType
			var fault types.BaseMethodFault
			v.server.alone(func() {
				result, fault = runInner(bg, v.VirtualMachine, func() soap.HasFault { return v.VirtualMachine.DestroyTask(bg, req) })
				waitForFiles(bg)
				if fault == nil {
					v.server.forget(bg, v.Self)
				}
			})
			return result, fault
		})}}
}

// waitForFiles waits, under the race detector, until the simulator has deleted the files
// of a destroyed VM: it does so in a task that nobody waits for, without a lock.
func waitForFiles(bg *simulator.Context) {
	if !raceDetector {
		return
	}
	for _, e := range bg.Map.AllReference("Task") {
		if task, ok := e.(*simulator.Task); ok && strings.Contains(strings.ToLower(task.Info.Name), "deletedatastorefile") {
			task.Wait()
		}
	}
}

// forget takes a destroyed VM out of the rules and groups of its cluster.
func (s *Server) forget(bg *simulator.Context, vm types.ManagedObjectReference) {
	gone := func(r types.ManagedObjectReference) bool { return r == vm }
	isVM := func(d types.ClusterDasVmConfigInfo) bool { return d.Key == vm }
	for _, e := range bg.Map.All("ClusterComputeResource") {
		c, ok := e.(*simulator.ClusterComputeResource)
		if !ok {
			continue
		}
		bg.WithLock(c, func() {
			config, ok := c.ConfigurationEx.(*types.ClusterConfigInfoEx)
			if !ok {
				return
			}
			for _, r := range config.Rule {
				if rule, ok := r.(*types.ClusterAntiAffinityRuleSpec); ok {
					rule.Vm = slices.DeleteFunc(rule.Vm, gone)
				}
			}
			for _, g := range config.Group {
				if group, ok := g.(*types.ClusterVmGroup); ok {
					group.Vm = slices.DeleteFunc(group.Vm, gone)
				}
			}
			config.DasVmConfig = slices.DeleteFunc(config.DasVmConfig, isVM)
		})
	}
}

func (v *virtualMachine) ReconfigVMTask(ctx *simulator.Context, req *types.ReconfigVM_Task) soap.HasFault {
	ref := v.server.run(ctx, v.VirtualMachine, "reconfigVm", func(bg *simulator.Context) (types.AnyType, types.BaseMethodFault) {
		if err := v.server.sleep(v.server.opt.Reconfigure); err != nil {
			return nil, &types.SystemError{Reason: err.Error()}
		}
		if v.broken != nil {
			return nil, v.broken
		}
		var fault types.BaseMethodFault
		v.server.alone(func() {
			bg.WithLock(v.VirtualMachine, func() { fault = v.checkReconfigure(&req.Spec) })
		})
		if fault != nil {
			return nil, fault
		}
		return v.server.inner(bg, v.VirtualMachine, func() soap.HasFault { return v.VirtualMachine.ReconfigVMTask(bg, req) })
	})
	return &methods.ReconfigVM_TaskBody{Res: &types.ReconfigVM_TaskResponse{Returnval: ref}}
}

// checkReconfigure refuses what vCenter refuses. The VM is locked.
func (v *virtualMachine) checkReconfigure(spec *types.VirtualMachineConfigSpec) types.BaseMethodFault {
	if spec.ChangeVersion != "" && spec.ChangeVersion != v.Config.ChangeVersion {
		return &types.ConcurrentAccess{}
	}
	on := v.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
	hot := func(b *bool) bool { return b != nil && *b }
	if on && spec.NumCPUs != 0 && spec.NumCPUs != v.Config.Hardware.NumCPU &&
		(!hot(v.Config.CpuHotAddEnabled) || spec.NumCPUs < v.Config.Hardware.NumCPU) {
		return &types.CpuHotPlugNotSupported{}
	}
	if on && spec.MemoryMB != 0 && spec.MemoryMB != int64(v.Config.Hardware.MemoryMB) &&
		(!hot(v.Config.MemoryHotAddEnabled) || spec.MemoryMB < int64(v.Config.Hardware.MemoryMB)) {
		return &types.MemoryHotPlugNotSupported{}
	}
	devices := object.VirtualDeviceList(v.Config.Hardware.Device)
	for _, c := range spec.DeviceChange {
		change := c.GetVirtualDeviceConfigSpec()
		disk, ok := change.Device.(*types.VirtualDisk)
		if !ok || change.Operation != types.VirtualDeviceConfigSpecOperationEdit {
			continue
		}
		if have, ok := devices.FindByKey(disk.Key).(*types.VirtualDisk); ok && disk.CapacityInKB < have.CapacityInKB {
			return &types.InvalidDeviceSpec{InvalidVmConfig: types.InvalidVmConfig{Property: "capacityInKB"}}
		}
	}
	return nil
}

func (v *virtualMachine) ShutdownGuest(ctx *simulator.Context, req *types.ShutdownGuest) soap.HasFault {
	if v.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
		if v.Guest == nil || v.Guest.ToolsRunningStatus != string(types.VirtualMachineToolsRunningStatusGuestToolsRunning) {
			return &methods.ShutdownGuestBody{Fault_: simulator.Fault("", &types.ToolsUnavailable{})}
		}
		if !v.server.sick(v.Name).IgnoreShutdown {
			v.timed(ctx, "shutdownGuest", v.server.opt.PowerOff, func(bg *simulator.Context) soap.HasFault {
				return v.VirtualMachine.PowerOffVMTask(bg, &types.PowerOffVM_Task{This: v.Self})
			})
		}
		return &methods.ShutdownGuestBody{Res: &types.ShutdownGuestResponse{}}
	}
	return v.VirtualMachine.ShutdownGuest(ctx, req)
}

// folder is a folder that does not take VMs down with it.
type folder struct {
	*simulator.Folder
	notEntity
	server *Server
	broken types.BaseMethodFault
}

func (f *folder) DestroyTask(ctx *simulator.Context, req *types.Destroy_Task) soap.HasFault {
	children := len(f.ChildEntity)
	ref := f.server.run(ctx, f.Folder, "destroy", func(bg *simulator.Context) (types.AnyType, types.BaseMethodFault) {
		if f.broken != nil {
			return nil, f.broken
		}
		if children > 0 {
			// vCenter would destroy what is inside. Nobody may ask for that here.
			slog.Error("vsim: destroy of a folder that is not empty", "folder", f.Name, "children", children)
			return nil, &types.InvalidState{}
		}
		return f.server.inner(bg, f.Folder, func() soap.HasFault { return f.Folder.DestroyTask(bg, req) })
	})
	return &methods.Destroy_TaskBody{Res: &types.Destroy_TaskResponse{Returnval: ref}}
}

type pool struct {
	*simulator.ResourcePool
	notEntity
	server *Server
	broken types.BaseMethodFault
}

func (p *pool) DestroyTask(ctx *simulator.Context, req *types.Destroy_Task) soap.HasFault {
	ref := p.server.run(ctx, p.ResourcePool, "destroy", func(bg *simulator.Context) (types.AnyType, types.BaseMethodFault) {
		if p.broken != nil {
			return nil, p.broken
		}
		return p.server.inner(bg, p.ResourcePool, func() soap.HasFault { return p.ResourcePool.DestroyTask(bg, req) })
	})
	return &methods.Destroy_TaskBody{Res: &types.Destroy_TaskResponse{Returnval: ref}}
}

type cluster struct {
	*simulator.ClusterComputeResource
	notEntity
	server *Server
	broken types.BaseMethodFault
}

func (c *cluster) ReconfigureComputeResourceTask(ctx *simulator.Context, req *types.ReconfigureComputeResource_Task) soap.HasFault {
	ref := c.server.run(ctx, c.ClusterComputeResource, "reconfigureComputeResource", func(bg *simulator.Context) (types.AnyType, types.BaseMethodFault) {
		if c.broken != nil {
			return nil, c.broken
		}
		if spec, ok := req.Spec.(*types.ClusterConfigSpecEx); ok {
			for _, r := range spec.RulesSpec {
				if rule, ok := r.Info.(*types.ClusterAntiAffinityRuleSpec); ok {
					for _, vm := range rule.Vm {
						if bg.Map.Get(vm) == nil {
							return nil, &types.ManagedObjectNotFound{Obj: vm}
						}
					}
				}
			}
		}
		return c.server.inner(bg, c.ClusterComputeResource, func() soap.HasFault {
			return c.ClusterComputeResource.ReconfigureComputeResourceTask(bg, req)
		})
	})
	return &methods.ReconfigureComputeResource_TaskBody{Res: &types.ReconfigureComputeResource_TaskResponse{Returnval: ref}}
}

// sessions tells the time that Advance has set.
type sessions struct {
	*simulator.SessionManager
	server *Server
}

func (m *sessions) Login(ctx *simulator.Context, req *types.Login) soap.HasFault {
	body := m.SessionManager.Login(ctx, req)
	if b, ok := body.(*methods.LoginBody); ok && b.Res != nil {
		b.Res.Returnval.LoginTime = b.Res.Returnval.LoginTime.Add(time.Duration(m.server.ahead.Load()))
	}
	return body
}

// authorization denies what Options.Denied says.
type authorization struct {
	*simulator.AuthorizationManager
	denied []string
}

func (a *authorization) HasPrivilegeOnEntities(ctx *simulator.Context, req *types.HasPrivilegeOnEntities) soap.HasFault {
	body := a.AuthorizationManager.HasPrivilegeOnEntities(req)
	if b, ok := body.(*methods.HasPrivilegeOnEntitiesBody); ok && b.Res != nil {
		for i := range b.Res.Returnval {
			for j := range b.Res.Returnval[i].PrivAvailability {
				p := &b.Res.Returnval[i].PrivAvailability[j]
				p.IsGranted = !slices.Contains(a.denied, p.PrivId)
			}
		}
	}
	return body
}
