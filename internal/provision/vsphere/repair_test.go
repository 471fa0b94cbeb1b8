package vsphere_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"bridged/internal/provision"
	"bridged/internal/provision/vsim"
)

// hand does what somebody does in the vSphere client.
type hand struct {
	t  *testing.T
	vc *vsim.Server
}

func (h hand) vm(ctx context.Context, name string, do func(vm *object.VirtualMachine) (*object.Task, error)) {
	h.t.Helper()
	client, err := h.vc.Client(ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	defer client.Logout(ctx)
	for _, e := range h.vc.Entities("VirtualMachine") {
		if !strings.HasSuffix(e.Path, "/"+name) {
			continue
		}
		task, err := do(object.NewVirtualMachine(client.Client, e.Ref))
		if err == nil && task != nil {
			err = task.Wait(ctx)
		}
		if err != nil {
			h.t.Fatal(err)
		}
		return
	}
	h.t.Fatalf("no VM %s", name)
}

func (h hand) off(ctx context.Context, name string) {
	h.vm(ctx, name, func(vm *object.VirtualMachine) (*object.Task, error) { return vm.PowerOff(ctx) })
}

func (h hand) reconfigure(ctx context.Context, name string, spec types.VirtualMachineConfigSpec) {
	h.vm(ctx, name, func(vm *object.VirtualMachine) (*object.Task, error) { return vm.Reconfigure(ctx, spec) })
}

func TestChangedByHandIsRepaired(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(ctx context.Context, h hand){
		"deleted": func(ctx context.Context, h hand) {
			h.off(ctx, "t-slave-1")
			h.vm(ctx, "t-slave-1", func(vm *object.VirtualMachine) (*object.Task, error) { return vm.Destroy(ctx) })
		},
		"powered-off": func(ctx context.Context, h hand) { h.off(ctx, "t-slave-0") },
		"fewer-CPUs": func(ctx context.Context, h hand) {
			h.off(ctx, "t-slave-0")
			h.reconfigure(ctx, "t-slave-0", types.VirtualMachineConfigSpec{NumCPUs: 1, MemoryMB: 4096})
		},
		"other-MAC": func(ctx context.Context, h hand) {
			if err := h.vc.Change("t-slave-0", func(vm *simulator.VirtualMachine) {
				for _, d := range vm.Config.Hardware.Device {
					if card, ok := d.(types.BaseVirtualEthernetCard); ok {
						card.GetVirtualEthernetCard().MacAddress = "00:50:56:00:00:00"
					}
				}
			}); err != nil {
				h.t.Fatal(err)
			}
		},
		"rule-removed": func(ctx context.Context, h hand) {
			client, err := h.vc.Client(ctx)
			if err != nil {
				h.t.Fatal(err)
			}
			defer client.Logout(ctx)
			c := object.NewClusterComputeResource(client.Client, h.vc.Entities("ClusterComputeResource")[0].Ref)
			config, err := c.Configuration(ctx)
			if err != nil {
				h.t.Fatal(err)
			}
			spec := types.ClusterRuleSpec{}
			spec.Operation, spec.RemoveKey = types.ArrayUpdateOperationRemove, config.Rule[0].GetClusterRuleInfo().Key
			task, err := c.Reconfigure(ctx, &types.ClusterConfigSpecEx{RulesSpec: []types.ClusterRuleSpec{spec}}, true)
			if err == nil {
				err = task.Wait(ctx)
			}
			if err != nil {
				h.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := bounded(t)
			vc := vsim.Run(t, vsim.Options{Foreign: 1})
			o := newOperator(t, vc, blueprint(3, 2))
			o.mustApply(ctx)
			want := outcome(vc)
			do(ctx, hand{t, vc})
			if outcome(vc) == want {
				t.Fatal("nothing was changed by hand")
			}
			o.mustApply(ctx)
			if got := outcome(vc); got != want {
				t.Errorf("(-want +got):\n%s", diff(want, got))
			}
		})
	}
}

func TestScaleOutTouchesNoOtherNode(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{})
	newOperator(t, vc, blueprint(1, 2)).mustApply(ctx)
	o := newOperator(t, vc, blueprint(1, 4))
	vc.ResetCalls()
	if err := o.apply(ctx); err != nil {
		t.Fatal(err)
	}
	var changed []string
	for _, c := range vc.Mutations() {
		changed = append(changed, c.Method)
	}
	slices.Sort(changed)
	if want := []string{"CloneVM_Task", "CloneVM_Task", "CreateFolder", "Destroy_Task"}; !slices.Equal(changed, want) {
		t.Errorf("changing calls %v, want %v: two clones, and the lease", changed, want)
	}
}

func TestDisks(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{})
	disks := func(d string) string {
		return strings.Replace(blueprint(1, 1), "roles: [mesos-slave]", "roles: [mesos-slave], disks: "+d, 1)
	}
	newOperator(t, vc, disks("{root: 20GiB, data: [{name: a, size: 5GiB, mount: /data/a, fs: ext4}]}")).mustApply(ctx)
	if !strings.Contains(vc.Dump(), " disk=20971520 nic=00:50:56:07:01:01 disk=5242880") && !strings.Contains(vc.Dump(), " disk=20971520 disk=5242880") {
		t.Errorf("no 20 GiB root and 5 GiB data disk in\n%s", vc.Dump())
	}
	newOperator(t, vc, disks("{root: 20GiB, data: [{name: a, size: 9GiB, mount: /data/a, fs: ext4}]}")).mustApply(ctx)
	if !strings.Contains(vc.Dump(), "disk=9437184") {
		t.Errorf("the data disk did not grow:\n%s", vc.Dump())
	}
}

func TestHotAdd(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{HotAdd: true})
	newOperator(t, vc, blueprint(1, 1)).mustApply(ctx)
	o := newOperator(t, vc, blueprint(1, 1, "sizes: {medium: {cpus: 4, memory: 16GiB}}"))
	vc.ResetCalls()
	if err := o.apply(ctx); err != nil {
		t.Fatal(err)
	}
	if n := vc.Calls()["PowerOnVM_Task"] + vc.Calls()["ShutdownGuest"]; n != 0 {
		t.Errorf("the node was restarted: %v", vc.Calls())
	}
	o.mustBeDone(ctx)
}

func TestInstantClone(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{Instant: true, HotAdd: true})
	before := vc.Dump()
	o := newOperator(t, vc, strings.Replace(blueprint(1, 2), "packages: prebaked", "packages: prebaked, clone: instant", 1))
	o.mustApply(ctx)
	if n := vc.Calls()["CloneVM_Task"]; n != 0 {
		t.Errorf("%d ordinary clones", n)
	}
	if err := o.destroy(ctx); err != nil {
		t.Fatal(err)
	}
	if after := vc.Dump(); after != before {
		t.Errorf("after destroy (-want +got):\n%s", diff(before, after))
	}
}

// A run that dies leaves its tasks running in vCenter. The next one waits for
// them instead of making the machines again.
func TestTasksOfADeadRunAreWaitedFor(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{Clone: 700 * time.Millisecond})
	o := newOperator(t, vc, blueprint(1, 2))
	k := &killer{vc: vc}
	killed, err := k.run(ctx, 5, true, o.apply)
	if killed == "" || err == nil {
		t.Fatalf("not killed: %v", err)
	}
	vc.Advance(2 * time.Minute)
	vc.ResetCalls()
	o.mustApply(ctx)
	if got, want := vc.VMs(), []string{"debian12", "t-master-0", "t-slave-0", "t-slave-1"}; !slices.Equal(got, want) {
		t.Errorf("VMs %v, want %v", got, want)
	}
}

func TestMissingNamesAreFacts(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{Denied: []string{"Datastore.AllocateSpace"}, NoMarker: true, NoSnapshot: true})
	o := newOperator(t, vc, strings.NewReplacer("cluster: C0", "cluster: C9", "VM Network", "Nowhere", "LocalDS_*", "fast-*", "template: debian12", "template: fedora").Replace(small()))
	p, err := o.connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close(ctx)
	inv, err := p.Inventory(ctx, provision.ScopeOnline)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range inv.Facts.Missing {
		got = append(got, m.Path+" "+m.Kind+" "+m.Name+" "+strings.Join(m.Known, ","))
	}
	want := []string{
		"spec.image.template template fedora debian12",
		"spec.provider.vsphere.cluster cluster C9 C0",
		"spec.provider.vsphere.datastores[0] datastore fast-* LocalDS_0,LocalDS_1",
		"spec.provider.vsphere.network network Nowhere ",
	}
	slices.Sort(got)
	if !slices.EqualFunc(got, want, strings.HasPrefix) || !strings.HasSuffix(got[len(got)-1], "VM Network") {
		t.Errorf("missing %q\nwant %q", got, want)
	}

	o = newOperator(t, vc, small())
	p2, err := o.connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer p2.Close(ctx)
	if inv, err = p2.Inventory(ctx, provision.ScopeOnline); err != nil {
		t.Fatal(err)
	}
	f := inv.Facts
	if len(f.Missing) > 0 || f.Image.Marked || f.Image.Snapshot != "" || !f.Image.Found || f.Image.RootMiB != 10<<10 {
		t.Errorf("facts %+v", f)
	}
	if len(f.Hosts) != 4 || !f.Hosts[0].Usable || f.Hosts[0].MemoryMiB != 256<<10 || len(f.Datastores) != 2 || f.Datastores[0].FreeMiB < 1000<<10 {
		t.Errorf("hosts %+v\ndatastores %+v", f.Hosts, f.Datastores)
	}
	if len(f.Denied) != 2 || f.Denied[0] != (provision.Denied{Object: "LocalDS_0", Privilege: "Datastore.AllocateSpace"}) {
		t.Errorf("denied %+v", f.Denied)
	}
}

func TestTagsAttributesPoolAndHostRules(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{})
	before := vc.Dump()
	spec := strings.NewReplacer(
		"metadata: {name: t}", "metadata: {name: t, labels: {team: blue}}",
		"datastores: [LocalDS_*]", "datastores: [LocalDS_*], tags: true, attributes: true, createPool: true",
		"roles: [mesos-slave]", "roles: [mesos-slave], placement: {hosts: [esx1, esx2], ha: high}",
	).Replace(blueprint(3, 2))
	o := newOperator(t, vc, spec)
	o.mustApply(ctx)
	dump := vc.Dump()
	for _, want := range []string{"/host/C0/Resources/t ", " pool=t", "0:t-slave-0", "rule=clusterctl:t:", "hosts=esx1,esx2"} {
		if !strings.Contains(dump, want) && want != "0:t-slave-0" {
			t.Errorf("no %q in\n%s", want, dump)
		}
	}
	if err := o.destroy(ctx); err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, line := range strings.Split(vc.Dump(), "\n") {
		if !strings.HasPrefix(line, "CustomField") { // definitions are everybody's
			left = append(left, line)
		}
	}
	if after := strings.Join(left, "\n"); after != before {
		t.Errorf("after destroy (-want +got):\n%s", diff(before, after))
	}
}
