package vsphere

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"bridged/internal/provision"
)

// create makes the node's VM, powered on. What is there already is taken over
// if it is what is wanted.
func (a *applying) create(ctx context.Context, s *provision.Step, say func(string)) error {
	n := s.Want
	src, err := a.source(ctx, n.Image)
	if err != nil {
		return err
	}
	mode, err := cloneMode(n, src)
	if err != nil {
		return err
	}
	at, err := a.choose(n, src, mode)
	if err != nil {
		return err
	}
	free, err := a.p.slots.take(ctx, at.host.name, at.datastore.facts.Name)
	if err != nil {
		return err
	}
	vm, err := a.clone(ctx, n, src, mode, at, say)
	free()
	if fault.Is(err, &types.DuplicateName{}) {
		vm, err = a.adopt(ctx, n)
	}
	if err != nil {
		return err
	}
	a.p.note(n.Name, vm)
	return nil
}

// note remembers which VM has a name, for later steps.
func (p *Provider) note(name string, vm ref) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.made[name] = vm
}

func (p *Provider) noted(name string) (ref, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	vm, ok := p.made[name]
	return vm, ok
}

// source is the image that nodes of a stage are cloned from, read once.
func (a *applying) source(ctx context.Context, name string) (*machine, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if m := a.sources[name]; m != nil {
		return m, nil
	}
	vm := a.place.image
	if name != a.p.cluster.Spec.Image.Template || vm.Value == "" {
		vm = ref{}
		if noted, ok := a.p.noted(name); ok {
			vm = noted
		} else {
			res, err := methods.FindChild(ctx, a.p.client, &types.FindChild{
				This: *a.p.client.ServiceContent.SearchIndex, Entity: a.place.folder, Name: name,
			})
			if err != nil {
				return nil, fmt.Errorf("look for the image %s: %w", name, err)
			}
			if res.Returnval != nil {
				vm = *res.Returnval
			}
		}
	}
	if vm.Value == "" {
		return nil, fmt.Errorf("the image %s was not found", name)
	}
	found, err := a.p.read(ctx, []ref{vm}, "VirtualMachine", a.p.machinePaths()...)
	if err != nil {
		return nil, fmt.Errorf("read the image %s: %w", name, err)
	}
	o := found[vm]
	if o == nil {
		return nil, fmt.Errorf("the image %s was not found", name)
	}
	m := newMachine(o, nil, nil, nil)
	a.sources[name] = m
	return m, nil
}

// cloneMode settles how a node is cloned: auto means linked where that works.
func cloneMode(n *provision.Node, src *machine) (provision.CloneMode, error) {
	grows := len(src.Disks) > 0 && n.RootMiB > src.Disks[0].SizeMiB
	snapshot := findSnapshot(src.snapshot, n.Snapshot)
	switch n.Clone {
	case provision.CloneFull:
		return provision.CloneFull, nil
	case provision.CloneInstant:
		if src.Power != provision.PoweredOn {
			return "", fmt.Errorf("an instant clone needs a running image, and %s is %s", src.Name, src.Power)
		}
		return provision.CloneInstant, nil
	case provision.CloneLinked:
		if snapshot == nil {
			return "", fmt.Errorf("a linked clone needs a snapshot of %s, and there is none", src.Name)
		}
	}
	if snapshot == nil || grows { // vSphere cannot grow a disk that has a parent
		return provision.CloneFull, nil
	}
	return provision.CloneLinked, nil
}

// spot is where a node's VM is made.
type spot struct {
	host      *host
	datastore *datastore
	pool      ref
}

// choose picks the host with the fewest of the cluster's VMs that can run the
// node, and the datastore with the most free space that the host reaches.
// Equal inventories give equal choices.
func (a *applying) choose(n *provision.Node, src *machine, mode provision.CloneMode) (spot, error) {
	var need int64
	for _, d := range src.Disks {
		need += d.SizeMiB
	}
	need = max(need, n.RootMiB)
	if mode != provision.CloneFull {
		need /= 5 // what a linked clone's disk has usually grown to
	}
	for _, d := range n.Disks {
		need += d.SizeMiB
	}
	p := a.p
	p.mu.Lock()
	defer p.mu.Unlock()
	load := func(h *host) int { return p.load[h.name] }
	hosts := slices.Clone(a.place.hosts)
	hosts = slices.DeleteFunc(hosts, func(h *host) bool {
		return !h.facts.Usable || len(n.Hosts) > 0 && !slices.Contains(n.Hosts, h.name)
	})
	if len(hosts) == 0 {
		return spot{}, errNoHost
	}
	slices.SortStableFunc(hosts, func(x, y *host) int {
		return cmp.Or(cmp.Compare(p.load[n.Group+"@"+x.name], p.load[n.Group+"@"+y.name]), cmp.Compare(load(x), load(y)))
	})
	free := func(d *datastore) int64 { return d.facts.FreeMiB - p.used[d.facts.Name] }
	for _, h := range hosts {
		if !a.place.reaches(h, n) {
			continue
		}
		var best *datastore
		for _, d := range a.place.datastores {
			if d.facts.Usable && h.datastores[d.ref] && (best == nil || free(d) > free(best)) {
				best = d
			}
		}
		if mode == provision.CloneInstant {
			// An instant clone shares memory with its source: it is made where that runs.
			if h.ref != src.host {
				continue
			}
		}
		if best == nil {
			continue
		}
		p.load[h.name]++
		p.load[n.Group+"@"+h.name]++
		p.used[best.facts.Name] += need
		return spot{host: h, datastore: best, pool: a.place.poolFor(h)}, nil
	}
	return spot{}, errNoHost
}

var errNoHost = errors.New("no usable host reaches the node's networks and a datastore")

// reaches reports whether the host has all networks of the node.
func (pl *place) reaches(h *host, n *provision.Node) bool {
	for _, nic := range n.NICs {
		if net := pl.networks[nic.Network]; net == nil || !h.networks[net.ref] {
			return false
		}
	}
	return true
}

func (pl *place) poolFor(h *host) ref {
	switch {
	case pl.ownPool.Value != "":
		return pl.ownPool
	case pl.pool.Value != "":
		return pl.pool
	}
	for _, c := range pl.computes {
		if c.ref == h.compute {
			return c.pool
		}
	}
	return ref{}
}

// clone is one call, and for what it cannot carry one more.
func (a *applying) clone(ctx context.Context, n *provision.Node, src *machine, mode provision.CloneMode, at spot, say func(string)) (ref, error) {
	nics, err := a.place.nicChanges(src.devices, n.NICs)
	if err != nil {
		return ref{}, err
	}
	drives, err := diskChanges(src.devices, len(src.Disks), n.RootMiB, n.Disks)
	if err != nil {
		return ref{}, err
	}
	values, err := guestValues(n)
	if err != nil {
		return ref{}, err
	}
	relocate := types.VirtualMachineRelocateSpec{Pool: &at.pool, Host: &at.host.ref, Datastore: &at.datastore.ref}
	if id := a.place.policy; id != "" {
		relocate.Profile = []types.BaseVirtualMachineProfileSpec{&types.VirtualMachineDefinedProfileSpec{ProfileId: id}}
	}
	report := func(percent int) { say(fmt.Sprintf("%s clone %d %%", mode, percent)) }
	say(string(mode) + " clone of " + src.Name + " on " + at.host.name + ", " + at.datastore.facts.Name)

	if mode == provision.CloneInstant {
		relocate.DeviceChange = nics
		relocate.Folder = &a.place.folder
		relocate.Host, relocate.Datastore = nil, nil
		res, err := methods.InstantClone_Task(ctx, a.p.client, &types.InstantClone_Task{
			This: src.ref, Spec: types.VirtualMachineInstantCloneSpec{
				Name: n.Name, Location: relocate, Config: extraConfig(values), BiosUuid: n.InstanceUUID,
			},
		})
		if err != nil {
			return ref{}, err
		}
		vm, err := a.cloned(ctx, res.Returnval, report)
		if err != nil {
			return ref{}, err
		}
		// Its hardware is the source's; the rest is done as to a VM that changed.
		return vm, a.reconfigure(ctx, n, vm, false)
	}

	spec := types.VirtualMachineCloneSpec{
		Location: relocate, PowerOn: true,
		Config: &types.VirtualMachineConfigSpec{
			Name: n.Name, InstanceUuid: n.InstanceUUID, Annotation: annotation(n),
			NumCPUs: int32(n.CPUs), MemoryMB: n.MemoryMiB, ExtraConfig: extraConfig(values),
			VAppConfigRemoved: new(true), // else cloud-init may take the OVF's properties for its own
			DeviceChange:      append(nics, drives...),
		},
	}
	if n.CoresPerSocket > 0 {
		spec.Config.NumCoresPerSocket = new(int32(n.CoresPerSocket))
	}
	reserve(spec.Config, n)
	if mode == provision.CloneLinked {
		snapshot := findSnapshot(src.snapshot, n.Snapshot).Snapshot
		spec.Snapshot = &snapshot
		spec.Location.DiskMoveType = string(types.VirtualMachineRelocateDiskMoveOptionsCreateNewChildDiskBacking)
	}
	res, err := methods.CloneVM_Task(ctx, a.p.client, &types.CloneVM_Task{This: src.ref, Folder: a.place.folder, Name: n.Name, Spec: spec})
	if err != nil {
		return ref{}, err
	}
	return a.cloned(ctx, res.Returnval, report)
}

func (a *applying) cloned(ctx context.Context, task ref, report func(int)) (ref, error) {
	ctx, cancel := withTimeout(ctx, a.p.cluster.Spec.Timeouts.Clone, defaultClone)
	defer cancel()
	result, err := a.p.task(ctx, task, report)
	if err != nil {
		return ref{}, err
	}
	vm, ok := result.(ref)
	if !ok {
		return ref{}, fmt.Errorf("clone task %s gave no VM", task.Value)
	}
	return vm, nil
}

func annotation(n *provision.Node) string {
	roles := make([]string, len(n.Roles))
	for i, r := range n.Roles {
		roles[i] = string(r)
	}
	return fmt.Sprintf("Made by clusterctl: cluster %s, %s. Changes by hand are undone by the next apply.", n.Cluster, strings.Join(roles, " "))
}

// reserve sets what the node's CPU and memory are guaranteed.
func reserve(spec *types.VirtualMachineConfigSpec, n *provision.Node) {
	if n.ReservedMHz > 0 {
		spec.CpuAllocation = &types.ResourceAllocationInfo{Reservation: new(int64(n.ReservedMHz))}
	}
	if n.ReservedMiB > 0 {
		spec.MemoryAllocation = &types.ResourceAllocationInfo{Reservation: new(n.ReservedMiB)}
		spec.MemoryReservationLockedToMax = new(n.ReservedMiB == n.MemoryMiB)
	}
}

// guestValues are the extraConfig entries of a node: marks and guest data.
func guestValues(n *provision.Node) (map[string]string, error) {
	values := n.Marks()
	for key, data := range map[string][]byte{"guestinfo.metadata": n.MetaData, "guestinfo.userdata": n.UserData} {
		if len(data) == 0 {
			continue
		}
		text, err := gzipBase64(data)
		if err != nil {
			return nil, err
		}
		values[key], values[key+".encoding"] = text, "gzip+base64"
	}
	return values, nil
}

func gzipBase64(data []byte) (string, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return "", err
	}
	if _, err := z.Write(data); err != nil {
		return "", err
	}
	if err := z.Close(); err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(b.Bytes()), nil
}

// adopt takes over the VM that has the node's name: another run, or a call
// whose answer was lost, made it. It may still be in the making.
func (a *applying) adopt(ctx context.Context, n *provision.Node) (ref, error) {
	vm, err := a.child(ctx, n.Name)
	if err != nil {
		return ref{}, err
	}
	if err := a.settleImage(ctx); err != nil {
		return ref{}, err
	}
	m, err := a.machine(ctx, vm)
	if err != nil {
		return ref{}, err
	}
	switch {
	case m == nil:
		return ref{}, fmt.Errorf("%s was there and is gone: somebody else works on the cluster", n.Name)
	case m.Marks.Node == "":
		return ref{}, &foreignError{name: n.Name}
	case m.Marks.Generation != n.Generation || m.Marks.Hash != n.Hash:
		return ref{}, fmt.Errorf("%s was made meanwhile from another blueprint", n.Name)
	}
	if m.Power != provision.PoweredOn {
		return vm, a.powerOn(ctx, vm)
	}
	return vm, nil
}

// foreignError says that a VM is not the cluster's.
type foreignError struct{ name string }

func (e *foreignError) Error() string {
	return fmt.Sprintf("a VM named %s exists and does not carry this cluster's marks", e.name)
}

// child finds the VM of that name in the cluster's folder.
func (a *applying) child(ctx context.Context, name string) (ref, error) {
	res, err := methods.FindChild(ctx, a.p.client, &types.FindChild{
		This: *a.p.client.ServiceContent.SearchIndex, Entity: a.place.folder, Name: name,
	})
	if err != nil {
		return ref{}, fmt.Errorf("look for %s: %w", name, err)
	}
	if res.Returnval == nil {
		return ref{}, fmt.Errorf("%s is not in the cluster's folder", name)
	}
	return *res.Returnval, nil
}

// settleImage waits for clones of ours that run.
func (a *applying) settleImage(ctx context.Context) error {
	c, err := a.p.readCluster(ctx, &place{image: a.place.image, folder: a.place.folder})
	if err != nil {
		return err
	}
	for _, t := range c.running {
		if t.user != a.p.session.userName() || t.entity.Type != "VirtualMachine" {
			continue
		}
		var failed *taskError
		if _, err := a.p.task(ctx, t.ref, nil); err != nil && !errors.As(err, &failed) && !errors.Is(err, errGone) {
			return err
		}
	}
	return nil
}
