package vsphere

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/vmware/govmomi/fault"
	vim "github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"bridged/internal/provision"
)

// imageMark is the extraConfig key by which an image says what is in it.
const imageMark = "clusterctl.image"

// leasePrefix begins the name of the folder that is a lease.
const leasePrefix = ".clusterctl-lease "

// cluster is what the second pass reads.
type cluster struct {
	machines []*machine // in the folder, with our marks, by name
	images   []*machine
	foreign  []provision.Foreign
	leases   []lease
	rules    []types.BaseClusterRuleInfo
	groups   []types.BaseClusterGroupInfo
	image    *machine // the template or the imported image; nil: there is none
	running  []runningTask
	children int // what lies in the folder, leases included
	name     map[ref]string
}

// machine is a VM with what changing it needs besides what a plan sees.
type machine struct {
	provision.Machine
	ref       ref
	devices   vim.VirtualDeviceList
	snapshot  *types.VirtualMachineSnapshotInfo
	frozen    bool
	template  bool
	marked    bool
	tools     bool // the guest's tools run
	version   string
	host      ref
	datastore []ref
}

type runningTask struct {
	ref    ref
	entity ref
	name   string
	user   string
}

// paths replaces keys in property paths by the whole list on servers that do
// not know them.
func (p *Provider) paths(paths ...string) []string {
	p.mu.Lock()
	whole := p.whole
	p.mu.Unlock()
	if !whole {
		return paths
	}
	list := slices.DeleteFunc(slices.Clone(paths), func(s string) bool { return strings.HasPrefix(s, `config.extraConfig["`) })
	if len(list) < len(paths) {
		list = append(list, "config.extraConfig")
	}
	return list
}

func (p *Provider) machinePaths() []string {
	return p.paths("name", "parent", "recentTask", "datastore", "snapshot",
		"runtime.powerState", "runtime.host", "runtime.instantCloneFrozen",
		"config.instanceUuid", "config.template", "config.changeVersion",
		"config.hardware.numCPU", "config.hardware.numCoresPerSocket", "config.hardware.memoryMB", "config.hardware.device",
		"config.cpuHotAddEnabled", "config.memoryHotAddEnabled",
		"config.cpuAllocation.reservation", "config.memoryAllocation.reservation",
		"guest.net", "guest.ipAddress", "guest.toolsRunningStatus",
		extraPath(provision.MarkCluster), extraPath(provision.MarkNode), extraPath(provision.StatusKey), extraPath(imageMark))
}

// readCluster reads the cluster's folder with all that is in it, the image, the
// rules and the tasks that run, in one call.
func (p *Provider) readCluster(ctx context.Context, pl *place) (*cluster, error) {
	build := func() types.PropertyFilterSpec {
		spec := types.PropertyFilterSpec{PropSet: []types.PropertySpec{
			{Type: "VirtualMachine", PathSet: p.machinePaths()},
			{Type: "Folder", PathSet: []string{"name", "parent"}},
			{Type: "VirtualApp", PathSet: []string{"name", "parent"}},
			{Type: "ClusterComputeResource", PathSet: []string{"configurationEx"}},
			{Type: "Task", PathSet: []string{"info.state", "info.entity", "info.descriptionId", "info.reason"}},
		}}
		add := func(o ref, skip bool, set ...types.BaseSelectionSpec) {
			if o.Value != "" {
				spec.ObjectSet = append(spec.ObjectSet, types.ObjectSpec{Obj: o, Skip: &skip, SelectSet: set})
			}
		}
		add(pl.folder, true, step("", "Folder", "childEntity"))
		add(pl.image, false)
		for _, c := range pl.computes {
			if c.cluster {
				add(c.ref, false)
			}
		}
		if tm := p.client.ServiceContent.TaskManager; tm != nil {
			add(*tm, true, step("", "TaskManager", "recentTask"))
		}
		return spec
	}
	list, err := p.retrieve(ctx, build())
	var invalid *types.InvalidProperty
	if _, ok := fault.As(err, &invalid); ok && strings.Contains(invalid.Name, "extraConfig[") {
		// Not every version takes a key in a path. The whole list costs more to read.
		p.mu.Lock()
		p.whole = true
		p.mu.Unlock()
		list, err = p.retrieve(ctx, build())
	}
	if err != nil {
		return nil, fmt.Errorf("read the cluster's folder: %w", err)
	}
	return p.sortOut(pl, list), nil
}

// sortOut tells ours from others'.
func (p *Provider) sortOut(pl *place, list []object) *cluster {
	c := &cluster{name: map[ref]string{}}
	hosts := map[ref]string{}
	for _, h := range pl.hosts {
		hosts[h.ref] = h.name
	}
	stores := map[ref]string{}
	for _, d := range pl.datastores {
		stores[d.ref] = d.facts.Name
	}
	networks := map[string]string{} // backing → name as written
	for name, n := range pl.networks {
		networks[n.backingKey()] = name
	}
	for i := range list {
		o := &list[i]
		switch o.ref.Type {
		case "VirtualMachine":
			m := newMachine(o, hosts, stores, networks)
			if o.ref == pl.image {
				c.image = m
				if parent, _ := o.ref1("parent"); parent != pl.folder {
					continue
				}
			}
			c.children++
			c.name[o.ref] = m.Name
			p.claim(pl, c, m, o)
		case "Folder":
			c.children++
			name := unescape(o.str("name"))
			if l, ok := parseLease(name, o.ref); ok {
				c.leases = append(c.leases, l)
				continue
			}
			c.foreign = append(c.foreign, provision.Foreign{Name: name, Kind: "folder", Path: pl.folderPath + "/" + name, Why: "lies in the cluster's folder"})
		case "VirtualApp":
			c.children++
			name := unescape(o.str("name"))
			c.foreign = append(c.foreign, provision.Foreign{Name: name, Kind: "vApp", Path: pl.folderPath + "/" + name, Why: "lies in the cluster's folder"})
		case "ClusterComputeResource":
			if config, ok := o.props["configurationEx"].(types.ClusterConfigInfoEx); ok {
				c.rules, c.groups = append(c.rules, config.Rule...), append(c.groups, config.Group...)
			}
		case "Task":
			state, _ := o.props["info.state"].(types.TaskInfoState)
			if state != types.TaskInfoStateRunning && state != types.TaskInfoStateQueued {
				continue
			}
			t := runningTask{ref: o.ref, name: o.str("info.descriptionId")}
			t.entity, _ = o.ref1("info.entity")
			if reason, ok := o.props["info.reason"].(types.TaskReasonUser); ok {
				t.user = reason.UserName
			}
			c.running = append(c.running, t)
		}
	}
	byName := func(a, b *machine) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(c.machines, byName)
	slices.SortFunc(c.images, byName)
	slices.SortFunc(c.foreign, func(a, b provision.Foreign) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(c.leases, func(a, b lease) int { return strings.Compare(a.folder.Value, b.folder.Value) })
	if c.image == nil && len(c.images) > 0 {
		c.image = c.images[len(c.images)-1]
	}
	return c
}

// claim decides whether a VM in the cluster's folder is the cluster's.
func (p *Provider) claim(pl *place, c *cluster, m *machine, o *object) {
	foreign := provision.Foreign{Name: m.Name, Kind: "vm", Path: pl.folderPath + "/" + m.Name}
	marks, ours, err := provision.DecodeMarks(p.cluster.Metadata.Name, map[string]string{
		provision.MarkCluster: o.extra(provision.MarkCluster), provision.MarkNode: o.extra(provision.MarkNode),
	})
	switch {
	case m.Name == "":
		foreign.Name, foreign.Why = o.ref.Value, "cannot be read by this user"
	case err != nil:
		foreign.Why = "has damaged marks: " + err.Error()
	case !ours:
		foreign.Why = "lies in the cluster's folder without its marks"
	default: // a renamed VM of ours, or a clone of one made by hand, too: the planner tells them apart
		m.Marks = marks
		if marks.Kind == "image" {
			c.images = append(c.images, m)
		} else {
			c.machines = append(c.machines, m)
		}
		return
	}
	c.foreign = append(c.foreign, foreign)
}

func newMachine(o *object, hosts, stores map[ref]string, networks map[string]string) *machine {
	m := &machine{ref: o.ref, version: o.str("config.changeVersion"), template: o.bool("config.template"), frozen: o.bool("runtime.instantCloneFrozen")}
	m.Name = unescape(o.str("name"))
	m.Ref = o.ref.Value
	m.InstanceUUID = o.str("config.instanceUuid")
	m.marked = o.extra(imageMark) != ""
	m.CPUs, m.CoresPerSocket = int(o.int("config.hardware.numCPU")), int(o.int("config.hardware.numCoresPerSocket"))
	m.MemoryMiB = o.int("config.hardware.memoryMB")
	m.HotAddCPU, m.HotAddMemory = o.bool("config.cpuHotAddEnabled"), o.bool("config.memoryHotAddEnabled")
	m.ReservedMHz, m.ReservedMiB = int(o.int("config.cpuAllocation.reservation")), o.int("config.memoryAllocation.reservation")
	switch o.props["runtime.powerState"] {
	case types.VirtualMachinePowerStatePoweredOn:
		m.Power = provision.PoweredOn
	case types.VirtualMachinePowerStateSuspended:
		m.Power = provision.Suspended
	default:
		m.Power = provision.PoweredOff
	}
	m.tools = o.str("guest.toolsRunningStatus") == string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
	m.host, _ = o.ref1("runtime.host")
	m.Host = hosts[m.host]
	m.datastore = o.refs("datastore")
	if len(m.datastore) > 0 {
		m.Datastore = stores[m.datastore[0]]
	}
	if s, ok := o.props["snapshot"].(types.VirtualMachineSnapshotInfo); ok {
		m.snapshot = &s
	}
	if a, ok := o.props["config.hardware.device"].(types.ArrayOfVirtualDevice); ok {
		m.devices = a.VirtualDevice
	}
	for _, d := range m.devices {
		switch d := d.(type) {
		case *types.VirtualDisk:
			disk := provision.MachineDisk{SizeMiB: d.CapacityInKB >> 10}
			if b, ok := d.Backing.(types.BaseVirtualDeviceFileBackingInfo); ok {
				if store := b.GetVirtualDeviceFileBackingInfo().Datastore; store != nil {
					disk.Datastore = stores[*store]
				}
			}
			m.Disks = append(m.Disks, disk)
		case types.BaseVirtualEthernetCard:
			card := d.GetVirtualEthernetCard()
			m.NICs = append(m.NICs, provision.MachineNIC{Network: networks[backingKey(card.Backing)], MAC: strings.ToLower(card.MacAddress)})
		}
	}
	m.Addresses = addresses(o)
	m.Report = parseReport(o.extra(provision.StatusKey))
	return m
}

// addresses that tools report, without those that only the guest itself can use.
func addresses(o *object) []netip.Addr {
	var list []netip.Addr
	add := func(s string) {
		if a, err := netip.ParseAddr(s); err == nil && !a.IsLinkLocalUnicast() && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	add(o.str("guest.ipAddress"))
	if nics, ok := o.props["guest.net"].(types.ArrayOfGuestNicInfo); ok {
		for _, n := range nics.GuestNicInfo {
			for _, a := range n.IpAddress {
				add(a)
			}
		}
	}
	return list
}

// parseReport reads what a guest wrote. A guest is not trusted: what does not
// parse is no report.
func parseReport(text string) provision.Report {
	var r provision.Report
	if text == "" || len(text) > 4<<10 || json.Unmarshal([]byte(text), &r) != nil {
		return provision.Report{}
	}
	return r
}

// Inventory reads what exists. See provision.Provider.
func (p *Provider) Inventory(ctx context.Context, scope provision.Scope) (*provision.Inventory, error) {
	pl, err := p.resolve(ctx)
	if err != nil {
		return nil, p.explain(err)
	}
	c := &cluster{name: map[ref]string{}}
	if pl.datacenter.Value != "" {
		if c, err = p.settled(ctx, pl); err != nil {
			return nil, p.explain(err)
		}
	}
	inv := &provision.Inventory{
		Cluster: p.cluster.Metadata.Name, Server: p.where(pl), Now: p.session.now(),
		Foreign: c.foreign,
		Facts:   provision.Facts{Datacenter: pl.dcName, Missing: pl.missing},
	}
	if pl.folder.Value != "" {
		inv.Folder = pl.folderPath
	}
	if pl.ownPool.Value != "" {
		inv.Pool = pl.poolPath + "/" + p.cluster.Metadata.Name
	}
	if c.image != nil {
		pl.imageDisks = len(c.image.Disks)
	}
	for _, m := range c.machines {
		m.Busy = c.busy(m.ref)
		m.ImageDisks = pl.imageDisks
		inv.Machines = append(inv.Machines, m.Machine)
	}
	for _, m := range c.images {
		inv.Images = append(inv.Images, m.Machine)
	}
	inv.Rules = c.ourRules(p.cluster.Metadata.Name, pl)
	if l := c.liveLease(p.session.now()); l != nil {
		h := l.holder
		inv.Lease = &h
	} else {
		inv.StaleLease = len(c.leases) > 0
	}
	for _, d := range pl.datastores {
		inv.Facts.Datastores = append(inv.Facts.Datastores, d.facts)
	}
	for _, h := range pl.hosts {
		inv.Facts.Hosts = append(inv.Facts.Hosts, h.facts)
	}
	p.imageFacts(inv, pl, c)
	if scope == provision.ScopeOnline {
		if err := p.online(ctx, pl, c, inv); err != nil {
			return nil, p.explain(err)
		}
	}
	p.remember(pl, c)
	return inv, nil
}

// where names the place for people: vc.lab/DC0/C0.
func (p *Provider) where(pl *place) string {
	s := p.about + pl.dcName
	for i, c := range pl.computes {
		if i == 3 {
			return s + ",…"
		}
		s += map[bool]string{true: "/", false: ","}[i == 0] + c.name
	}
	return s
}

// remember keeps what Apply needs: the place, and which VM has which name.
func (p *Provider) remember(pl *place, c *cluster) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.place = pl
	clear(p.made)
	clear(p.load)
	clear(p.used)
	for _, m := range c.machines {
		p.made[m.Name] = m.ref
		p.load[m.Host]++
	}
}

func (p *Provider) imageFacts(inv *provision.Inventory, pl *place, c *cluster) {
	f := &inv.Facts.Image
	if f.Name = p.cluster.Spec.Image.Template; f.Name == "" && c.image != nil {
		f.Name = c.image.Name
	}
	m := c.image
	if m == nil {
		return
	}
	f.Found, f.Marked = true, m.marked
	f.NICs, f.Disks = len(m.NICs), len(m.Disks)
	if len(m.Disks) > 0 {
		f.RootMiB = m.Disks[0].SizeMiB
	}
	f.Instant = m.Power == provision.PoweredOn && m.frozen
	want := p.cluster.Spec.Image.Snapshot
	if s := findSnapshot(m.snapshot, want); s != nil {
		f.Snapshot = s.Name
	} else if want != "" {
		missing := provision.Missing{Path: "spec.image.snapshot", Kind: "snapshot", Name: want, Known: snapshotNames(m.snapshot)}
		inv.Facts.Missing = append(inv.Facts.Missing, missing)
	}
}

// findSnapshot finds a snapshot by name, the newest for "".
func findSnapshot(info *types.VirtualMachineSnapshotInfo, name string) *types.VirtualMachineSnapshotTree {
	var best *types.VirtualMachineSnapshotTree
	walkSnapshots(info, func(s *types.VirtualMachineSnapshotTree) {
		if name != "" && s.Name != name {
			return
		}
		if best == nil || !s.CreateTime.Before(best.CreateTime) {
			best = s
		}
	})
	return best
}

func snapshotNames(info *types.VirtualMachineSnapshotInfo) []string {
	var list []string
	walkSnapshots(info, func(s *types.VirtualMachineSnapshotTree) { list = append(list, s.Name) })
	slices.Sort(list)
	return list
}

func walkSnapshots(info *types.VirtualMachineSnapshotInfo, visit func(*types.VirtualMachineSnapshotTree)) {
	if info == nil {
		return
	}
	var walk func([]types.VirtualMachineSnapshotTree)
	walk = func(list []types.VirtualMachineSnapshotTree) {
		for i := range list {
			visit(&list[i])
			walk(list[i].ChildSnapshotList)
		}
	}
	walk(info.RootSnapshotList)
}

// busy names a task that runs on the VM.
func (c *cluster) busy(vm ref) string {
	for _, t := range c.running {
		if t.entity == vm {
			_, verb, _ := strings.Cut(t.name, ".")
			return verb + " by " + t.user
		}
	}
	return ""
}

// settled is readCluster, after the tasks have ended that a dead run of ours
// left behind. While somebody holds the lease they are not a dead run's.
func (p *Provider) settled(ctx context.Context, pl *place) (*cluster, error) {
	for {
		c, err := p.readCluster(ctx, pl)
		if err != nil {
			return nil, err
		}
		if l := c.liveLease(p.session.now()); l != nil && !p.holds(l) {
			return c, nil
		}
		ours := set(slices.Collect(maps.Keys(c.name)))
		for _, r := range []ref{pl.folder, pl.image, pl.ownPool} {
			if r.Value != "" {
				ours[r] = true
			}
		}
		waited := false
		for _, t := range c.running {
			// Somebody else may clone from the image, or move one of our VMs.
			if !ours[t.entity] || t.user != p.session.userName() {
				continue
			}
			waited = true
			p.log.Info("wait for a task of an earlier run", "task", t.name)
			var failed *taskError
			if _, err := p.task(ctx, t.ref, nil); err != nil && !errors.As(err, &failed) && !errors.Is(err, errGone) {
				return nil, fmt.Errorf("wait for %s, left running by an earlier run: %w", t.name, err)
			}
		}
		if !waited {
			return c, nil
		}
	}
}
