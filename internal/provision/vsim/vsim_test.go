package vsim

import (
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// desk is what a test needs to work on a server by hand.
type desk struct {
	*Server
	client   *govmomi.Client
	finder   *find.Finder
	folder   *object.Folder
	pool     *object.ResourcePool
	template *object.VirtualMachine
}

func open(t *testing.T, opt Options) (context.Context, *desk) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	s := Run(t, opt)
	client, err := s.Client(ctx)
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{Server: s, client: client, finder: find.NewFinder(client.Client)}
	dc, err := d.finder.DefaultDatacenter(ctx)
	if err != nil {
		t.Fatal(err)
	}
	d.finder.SetDatacenter(dc)
	if d.folder, err = d.finder.DefaultFolder(ctx); err != nil {
		t.Fatal(err)
	}
	if d.pool, err = d.finder.ResourcePool(ctx, "C0/Resources"); err != nil {
		t.Fatal(err)
	}
	if d.template, err = d.finder.VirtualMachine(ctx, "debian12"); err != nil {
		t.Fatal(err)
	}
	return ctx, d
}

func (d *desk) spec(extra map[string]string) types.VirtualMachineCloneSpec {
	pool := d.pool.Reference()
	spec := types.VirtualMachineCloneSpec{
		Location: types.VirtualMachineRelocateSpec{Pool: &pool}, PowerOn: true,
		Config: &types.VirtualMachineConfigSpec{NumCPUs: 4, NumCoresPerSocket: types.NewInt32(2), MemoryMB: 2048},
	}
	for k, v := range extra {
		spec.Config.ExtraConfig = append(spec.Config.ExtraConfig, &types.OptionValue{Key: k, Value: v})
	}
	return spec
}

func (d *desk) clone(ctx context.Context, name string, spec types.VirtualMachineCloneSpec) (*object.VirtualMachine, error) {
	task, err := d.template.Clone(ctx, d.folder, name, spec)
	if err != nil {
		return nil, err
	}
	info, err := task.WaitForResult(ctx)
	if err != nil {
		return nil, err
	}
	return object.NewVirtualMachine(d.client.Client, info.Result.(types.ManagedObjectReference)), nil
}

var cloudInit = map[string]string{
	"guestinfo.metadata": `{instance-id: n-g3, local-hostname: n, network: {version: 2, ethernets: {eth0: {match: {macaddress: "00:50:56:00:00:01"}, addresses: [10.0.0.7/24]}}}}`,
	"guestinfo.userdata": base64.StdEncoding.EncodeToString([]byte("#cloud-config\n{}\n")), "guestinfo.userdata.encoding": "base64",
}

// waitFor reads the VM until ok; the test's context bounds it.
func waitFor(ctx context.Context, t *testing.T, vm *object.VirtualMachine, what string, ok func(mo.VirtualMachine) bool) mo.VirtualMachine {
	t.Helper()
	var got mo.VirtualMachine
	err := property.Wait(ctx, property.DefaultCollector(vm.Client()), vm.Reference(), []string{"guest.ipAddress", "runtime.powerState", "config.extraConfig"}, func([]types.PropertyChange) bool {
		got = mo.VirtualMachine{}
		if err := vm.Properties(ctx, vm.Reference(), []string{"config", "guest", "runtime", "summary"}, &got); err != nil {
			t.Fatal(err)
		}
		return ok(got)
	})
	if err != nil {
		t.Fatalf("wait for %s: %v", what, err)
	}
	return got
}

func extra(vm mo.VirtualMachine, key string) string {
	for _, o := range vm.Config.ExtraConfig {
		if v := o.GetOptionValue(); v.Key == key {
			return v.Value.(string)
		}
	}
	return ""
}

func TestGuestTakesItsAddressAndReports(t *testing.T) {
	ctx, d := open(t, Options{})
	vm, err := d.clone(ctx, "n", d.spec(cloudInit))
	if err != nil {
		t.Fatal(err)
	}
	got := waitFor(ctx, t, vm, "ready", func(vm mo.VirtualMachine) bool { return strings.Contains(extra(vm, statusKey), "ready") })
	if got.Guest.IpAddress != "10.0.0.7" {
		t.Errorf("address %q, want 10.0.0.7", got.Guest.IpAddress)
	}
	if want := `"gen":3`; !strings.Contains(extra(got, statusKey), want) {
		t.Errorf("status %s, want %s", extra(got, statusKey), want)
	}
	if hw := got.Config.Hardware; hw.NumCPU != 4 || deref(hw.NumCoresPerSocket) != 2 || hw.MemoryMB != 2048 {
		t.Errorf("hardware %d/%d/%d, want 4/2/2048", hw.NumCPU, deref(hw.NumCoresPerSocket), hw.MemoryMB)
	}

	if err := wait(ctx)(vm.PowerOff(ctx)); err != nil {
		t.Fatal(err)
	}
	var off mo.VirtualMachine
	if err := vm.Properties(ctx, vm.Reference(), []string{"guest", "config"}, &off); err != nil {
		t.Fatal(err)
	}
	if off.Guest.IpAddress != "" || extra(off, statusKey) != "" {
		t.Errorf("powered off: address %q, status %q; want neither", off.Guest.IpAddress, extra(off, statusKey))
	}
}

func TestSickGuests(t *testing.T) {
	ctx, d := open(t, Options{Sick: func(vm string) Sickness {
		switch vm {
		case "stalls":
			return Sickness{StallAt: "packages"}
		case "fails":
			return Sickness{FailAt: "services", Err: "no mesos"}
		}
		return Sickness{}
	}})
	for name, want := range map[string]string{"stalls": `"phase":"packages"`, "fails": `"err":"no mesos"`} {
		vm, err := d.clone(ctx, name, d.spec(cloudInit))
		if err != nil {
			t.Fatal(err)
		}
		waitFor(ctx, t, vm, want, func(vm mo.VirtualMachine) bool { return strings.Contains(extra(vm, statusKey), want) })
	}
}

func TestStricterThanTheSimulator(t *testing.T) {
	ctx, d := open(t, Options{FreeGiB: 100})
	linked := d.spec(nil)
	linked.Location.DiskMoveType = string(types.VirtualMachineRelocateDiskMoveOptionsCreateNewChildDiskBacking)
	if _, err := d.clone(ctx, "linked", linked); !fault.Is(err, &types.InvalidArgument{}) {
		t.Errorf("linked clone without snapshot: %v, want InvalidArgument", err)
	}
	vm, err := d.clone(ctx, "n", d.spec(nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := wait(ctx)(vm.Reconfigure(ctx, types.VirtualMachineConfigSpec{NumCPUs: 8})); !fault.Is(err, &types.CpuHotPlugNotSupported{}) {
		t.Errorf("hot add of a CPU: %v, want CpuHotPlugNotSupported", err)
	}
	if err := wait(ctx)(d.folder.Destroy(ctx)); !fault.Is(err, &types.InvalidState{}) {
		t.Errorf("destroy of a full folder: %v, want InvalidState", err)
	}
	if err := d.SetFree("LocalDS_0", 1); err != nil {
		t.Fatal(err)
	}
	if _, err := d.clone(ctx, "full", d.spec(nil)); !fault.Is(err, &types.NoDiskSpace{}) {
		t.Errorf("clone on a full datastore: %v, want NoDiskSpace", err)
	}
}

func TestInstantClone(t *testing.T) {
	ctx, d := open(t, Options{Instant: true})
	pool, folder := d.pool.Reference(), d.folder.Reference()
	task, err := d.template.InstantClone(ctx, types.VirtualMachineInstantCloneSpec{
		Name: "quick", Location: types.VirtualMachineRelocateSpec{Pool: &pool, Folder: &folder},
	})
	if err := wait(ctx)(task, err); err != nil {
		t.Fatal(err)
	}
	vm, err := d.finder.VirtualMachine(ctx, "quick")
	if err != nil {
		t.Fatal(err)
	}
	if state, err := vm.PowerState(ctx); err != nil || state != types.VirtualMachinePowerStatePoweredOn {
		t.Errorf("power %s, %v; want on", state, err)
	}
}

func TestFaults(t *testing.T) {
	ctx, d := open(t, Options{})
	before := d.Dump()

	d.Inject(Fault{Method: "CloneVM_Task", Name: "b", Err: &types.InsufficientResourcesFault{}},
		Fault{Method: "CloneVM_Task", Name: "c", Task: &types.SystemError{Reason: "disk on fire"}})
	if _, err := d.clone(ctx, "b", d.spec(nil)); !fault.Is(err, &types.InsufficientResourcesFault{}) {
		t.Errorf("refused call: %v", err)
	}
	if _, err := d.clone(ctx, "c", d.spec(nil)); !fault.Is(err, &types.SystemError{}) {
		t.Errorf("failed task: %v", err)
	}
	if after := d.Dump(); after != before {
		t.Errorf("failed clones left something:\n%s", after)
	}

	d.Inject(Fault{Method: "CurrentTime", Status: 503})
	if _, err := d.now(ctx); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("HTTP status: %v", err)
	}
	d.Inject(Fault{Method: "CurrentTime", Cut: true})
	if _, err := d.now(ctx); err == nil {
		t.Error("cut connection: no error")
	}
	d.Inject(Fault{Method: "CurrentTime", Lose: true})
	if _, err := d.now(ctx); !fault.Is(err, &types.NotAuthenticated{}) {
		t.Errorf("lost session: %v", err)
	}
}

func (d *desk) now(ctx context.Context) (*time.Time, error) {
	return methods.GetCurrentTime(ctx, d.client)
}

func TestHookCutsBeforeAndAfter(t *testing.T) {
	ctx, d := open(t, Options{})
	for _, when := range []bool{false, true} {
		d.Hook(func(c Call, done bool) Verdict {
			if c.Method == "CreateFolder" && done == when {
				return Cut
			}
			return Pass
		})
		name := map[bool]string{false: "undone", true: "done"}[when]
		if _, err := d.folder.CreateFolder(ctx, name); err == nil {
			t.Errorf("cut, done=%v: no error", when)
		}
		d.Hook(nil)
		if made := strings.Contains(d.Dump(), "/vm/"+name+" "); made != when {
			t.Errorf("cut with done=%v: folder made is %v", when, made)
		}
	}
	if n := d.Calls()["CreateFolder"]; n != 2 {
		t.Errorf("CreateFolder counted %d times, want 2", n)
	}
}

func TestDumpIsTheSameAfterAVMCameAndWent(t *testing.T) {
	ctx, d := open(t, Options{Foreign: 2})
	before := d.Dump()
	vm, err := d.clone(ctx, "n", d.spec(nil))
	if err != nil {
		t.Fatal(err)
	}
	if d.Dump() == before {
		t.Error("a new VM does not show")
	}
	if err := errors.Join(wait(ctx)(vm.PowerOff(ctx)), wait(ctx)(vm.Destroy(ctx))); err != nil {
		t.Fatal(err)
	}
	if after := d.Dump(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}
