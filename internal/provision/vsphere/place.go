package vsphere

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"bridged/internal/provision"
)

type ref = types.ManagedObjectReference

// place is where the blueprint's names lead to. A name that leads nowhere is in
// missing and its field is empty.
type place struct {
	datacenter ref
	dcName     string // its path: /DC0
	vmFolder   ref    // the datacenter's root of VM folders

	parent     ref // in which the cluster's folder lies
	parentPath string
	folder     ref // the cluster's, empty when there is none
	folderPath string

	computes []*compute
	pool     ref // parent pool, empty for several stand-alone hosts
	poolPath string
	ownPool  ref // the cluster's own pool, empty when there is none

	hosts      []*host
	allowed    map[string]bool // names of the only hosts that may be used; nil: all
	datastores []*datastore
	networks   map[string]*network // by name as written in the blueprint

	image     ref // the template, empty when there is none or the image is imported
	imagePath string

	policy     string // ID of the storage policy, "" for none
	imageDisks int    // of the image that machines were made from

	missing []provision.Missing
}

type compute struct {
	ref     ref
	name    string
	cluster bool
	pool    ref
	hosts   []ref
}

type host struct {
	ref        ref
	name       string
	compute    ref
	facts      provision.Host
	datastores map[ref]bool
	networks   map[ref]bool
}

type datastore struct {
	ref   ref
	facts provision.Datastore
}

type network struct {
	ref         ref
	name        string
	portgroup   string // key, for a distributed port group
	switchUUID  string
	opaqueID    string
	opaqueType  string
	distributed bool
}

// entity is one named object of the names pass.
type entity struct {
	*object
	name   string
	path   string // /DC0/host/C0
	parent ref
}

// names is the answer of the names pass.
type names struct {
	byRef map[ref]*entity
	kinds map[string][]*entity // by type, sorted by path
}

// readNames reads the name of everything the blueprint may name, except VMs, in
// one call.
func (p *Provider) readNames(ctx context.Context) (*names, error) {
	folderSteps := []string{"folder", "dcHost", "dcVM", "dcDatastore", "dcNetwork", "crPool", "crHost", "pool"}
	root := p.client.ServiceContent.RootFolder
	set := []types.BaseSelectionSpec{
		step("folder", "Folder", "childEntity", folderSteps...),
		step("dcHost", "Datacenter", "hostFolder", "folder"),
		step("dcVM", "Datacenter", "vmFolder", "folder"),
		step("dcDatastore", "Datacenter", "datastoreFolder", "folder"),
		step("dcNetwork", "Datacenter", "networkFolder", "folder"),
		step("crPool", "ComputeResource", "resourcePool", "pool"),
		step("crHost", "ComputeResource", "host"),
		step("pool", "ResourcePool", "resourcePool", "pool"),
	}
	computePaths := []string{"name", "parent", "host", "resourcePool"}
	switchPaths := []string{"name", "parent", "uuid"}
	list, err := p.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: root, SelectSet: set}},
		PropSet: []types.PropertySpec{
			{Type: "Folder", PathSet: []string{"name", "parent"}},
			{Type: "StoragePod", PathSet: []string{"name", "parent", "childEntity"}},
			{Type: "Datacenter", PathSet: []string{"name", "parent", "vmFolder"}},
			{Type: "ComputeResource", PathSet: computePaths},
			{Type: "ClusterComputeResource", PathSet: computePaths},
			{Type: "ResourcePool", PathSet: []string{"name", "parent"}},
			{Type: "HostSystem", PathSet: []string{"name", "parent", "datastore", "network", "runtime.connectionState", "runtime.powerState",
				"runtime.inMaintenanceMode", "summary.hardware.memorySize", "summary.hardware.cpuMhz", "summary.hardware.numCpuCores",
				"summary.quickStats.overallCpuUsage", "summary.quickStats.overallMemoryUsage"}},
			{Type: "Datastore", PathSet: []string{"name", "parent", "summary.capacity", "summary.freeSpace", "summary.accessible", "summary.maintenanceMode"}},
			{Type: "Network", PathSet: []string{"name", "parent"}},
			{Type: "OpaqueNetwork", PathSet: []string{"name", "parent", "summary"}},
			{Type: "DistributedVirtualPortgroup", PathSet: []string{"name", "parent", "key", "config.distributedVirtualSwitch"}},
			{Type: "DistributedVirtualSwitch", PathSet: switchPaths},
			{Type: "VmwareDistributedVirtualSwitch", PathSet: switchPaths},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("read the names of %s: %w", p.about, err)
	}
	n := &names{byRef: make(map[ref]*entity, len(list)), kinds: map[string][]*entity{}}
	for i := range list {
		o := &list[i]
		e := &entity{object: o, name: unescape(o.str("name"))}
		if e.name == "" {
			continue // not for this user's eyes
		}
		e.parent, _ = o.ref1("parent")
		n.byRef[o.ref] = e
	}
	for r, e := range n.byRef {
		e.path = n.path(e, root)
		n.kinds[r.Type] = append(n.kinds[r.Type], e)
	}
	for _, list := range n.kinds {
		slices.SortFunc(list, func(a, b *entity) int { return strings.Compare(a.path+a.ref.Value, b.path+b.ref.Value) })
	}
	return n, nil
}

// unescape undoes vCenter's writing of / \ and % in names.
func unescape(name string) string {
	return strings.NewReplacer("%2f", "/", "%2F", "/", "%5c", `\`, "%5C", `\`, "%25", "%").Replace(name)
}

func (n *names) path(e *entity, root ref) string {
	parts := []string{e.name}
	for at := e.parent; at != root && at.Value != ""; {
		up := n.byRef[at]
		if up == nil {
			break
		}
		parts = append(parts, up.name)
		at = up.parent
	}
	slices.Reverse(parts)
	return "/" + strings.Join(parts, "/")
}

// find returns the entities of the kinds that name means: the whole path, or the
// path below base, or the last part when there is no slash in it.
func (n *names) find(name, base string, kinds ...string) []*entity {
	var exact, last []*entity
	for _, k := range kinds {
		for _, e := range n.kinds[k] {
			below, inside := strings.CutPrefix(e.path, base+"/")
			switch {
			case !inside:
			case e.path == name || below == strings.TrimPrefix(name, "/"):
				exact = append(exact, e)
			case e.name == name:
				last = append(last, e)
			}
		}
	}
	if len(exact) > 0 {
		return exact
	}
	return last
}

// known lists what there is of the kinds below base, for a message; at most 20.
func (n *names) known(base string, kinds ...string) []string {
	var list []string
	for _, k := range kinds {
		for _, e := range n.kinds[k] {
			if strings.HasPrefix(e.path, base+"/") {
				list = append(list, e.name)
			}
		}
	}
	slices.Sort(list)
	list = slices.Compact(list)
	return list[:min(len(list), 20)]
}

// resolver finds the blueprint's names and notes those that are missing.
type resolver struct {
	*names
	p     *Provider
	place *place
}

// one finds the only entity that name means.
func (r *resolver) one(at, kind, name, base string, kinds ...string) *entity {
	found := r.find(name, base, kinds...)
	if len(found) == 1 {
		return found[0]
	}
	m := provision.Missing{Path: at, Kind: kind, Name: name}
	for _, e := range found {
		m.Matches = append(m.Matches, e.path)
	}
	if len(found) == 0 {
		m.Known = r.known(base, kinds...)
	}
	r.place.missing = append(r.place.missing, m)
	return nil
}

const specPath = "spec.provider.vsphere."

// resolve turns names into a place. Only a failed call is an error.
func (p *Provider) resolve(ctx context.Context) (*place, error) {
	n, err := p.readNames(ctx)
	if err != nil {
		return nil, err
	}
	pl := &place{networks: map[string]*network{}}
	r := &resolver{names: n, p: p, place: pl}
	r.datacenter()
	if pl.datacenter.Value == "" {
		return pl, nil // everything else lies in it
	}
	r.folders()
	r.computes()
	r.pools()
	r.datastores()
	r.networks()
	if err := r.image(ctx); err != nil {
		return nil, err
	}
	if err := p.findPolicy(ctx, pl); err != nil {
		return nil, err
	}
	return pl, nil
}

func (r *resolver) datacenter() {
	pl, want := r.place, r.p.spec.Datacenter
	var dc *entity
	if want != "" {
		dc = r.one(specPath+"datacenter", "datacenter", want, "", "Datacenter")
	} else if all := r.kinds["Datacenter"]; len(all) == 1 {
		dc = all[0]
	} else {
		m := provision.Missing{Path: specPath + "datacenter", Kind: "datacenter", Known: r.known("", "Datacenter")}
		for _, e := range all {
			m.Matches = append(m.Matches, e.path)
		}
		pl.missing = append(pl.missing, m)
	}
	if dc == nil {
		return
	}
	pl.datacenter, pl.dcName = dc.ref, dc.path
	pl.vmFolder, _ = dc.ref1("vmFolder")
}

// base is the path below which names of a kind are looked for.
func (r *resolver) base(kind string) string { return r.place.dcName + "/" + kind }

func (r *resolver) folders() {
	pl := r.place
	pl.parent, pl.parentPath = pl.vmFolder, r.base("vm")
	if name := r.p.spec.Folder; name != "" {
		pl.parent, pl.parentPath = ref{}, ""
		if e := r.one(specPath+"folder", "folder", name, r.base("vm"), "Folder"); e != nil {
			pl.parent, pl.parentPath = e.ref, e.path
		}
	}
	if pl.parentPath == "" {
		return
	}
	pl.folderPath = pl.parentPath + "/" + r.p.cluster.Metadata.Name
	for _, e := range r.kinds["Folder"] {
		if e.path == pl.folderPath {
			pl.folder = e.ref
		}
	}
}

func (r *resolver) computes() {
	pl, spec := r.place, r.p.spec
	base := r.base("host")
	add := func(e *entity) {
		c := &compute{ref: e.ref, name: e.name, cluster: e.ref.Type == "ClusterComputeResource", hosts: e.refs("host")}
		c.pool, _ = e.ref1("resourcePool")
		pl.computes = append(pl.computes, c)
	}
	switch {
	case spec.Cluster != "":
		if e := r.one(specPath+"cluster", "cluster", spec.Cluster, base, "ClusterComputeResource", "ComputeResource"); e != nil {
			add(e)
		}
	case len(spec.Hosts) == 0:
		all := slices.Concat(r.kinds["ClusterComputeResource"], r.kinds["ComputeResource"])
		all = slices.DeleteFunc(slices.Clone(all), func(e *entity) bool { return !strings.HasPrefix(e.path, base+"/") })
		if len(all) == 1 {
			add(all[0])
			break
		}
		m := provision.Missing{Path: specPath + "cluster", Kind: "cluster", Known: r.known(base, "ClusterComputeResource", "ComputeResource")}
		for _, e := range all {
			m.Matches = append(m.Matches, e.path)
		}
		pl.missing = append(pl.missing, m)
	}
	for i, name := range spec.Hosts {
		e := r.one(fmt.Sprintf("%shosts[%d]", specPath, i), "host", name, base, "HostSystem")
		if e == nil {
			continue
		}
		if pl.allowed == nil {
			pl.allowed = map[string]bool{}
		}
		pl.allowed[e.name] = true
		if owner := r.byRef[e.parent]; spec.Cluster == "" && owner != nil &&
			!slices.ContainsFunc(pl.computes, func(c *compute) bool { return c.ref == owner.ref }) {
			add(owner)
		}
	}
	for _, c := range pl.computes {
		for _, h := range c.hosts {
			if e := r.byRef[h]; e != nil && (pl.allowed == nil || pl.allowed[e.name]) {
				pl.hosts = append(pl.hosts, newHost(e, c.ref))
			}
		}
	}
	slices.SortFunc(pl.hosts, func(a, b *host) int { return strings.Compare(a.name, b.name) })
	for gi, g := range r.p.cluster.Spec.Groups {
		for hi, name := range g.Placement.Hosts {
			r.one(fmt.Sprintf("spec.groups[%d].placement.hosts[%d]", gi, hi), "host", name, base, "HostSystem")
		}
	}
	for ri, rack := range r.p.cluster.Spec.Topology.Racks {
		for hi, name := range rack.Hosts {
			r.one(fmt.Sprintf("spec.topology.racks[%d].hosts[%d]", ri, hi), "host", name, base, "HostSystem")
		}
	}
}

func newHost(e *entity, owner ref) *host {
	h := &host{ref: e.ref, name: e.name, compute: owner, datastores: set(e.refs("datastore")), networks: set(e.refs("network"))}
	state, _ := e.props["runtime.connectionState"].(types.HostSystemConnectionState)
	power, _ := e.props["runtime.powerState"].(types.HostSystemPowerState)
	h.facts = provision.Host{
		Name: e.name, MHz: e.int("summary.hardware.cpuMhz") * e.int("summary.hardware.numCpuCores"),
		UsedMHz:   e.int("summary.quickStats.overallCpuUsage"),
		MemoryMiB: e.int("summary.hardware.memorySize") >> 20, UsedMiB: e.int("summary.quickStats.overallMemoryUsage"),
		Maintenance: e.bool("runtime.inMaintenanceMode"),
	}
	h.facts.Usable = !h.facts.Maintenance && state == types.HostSystemConnectionStateConnected && power != types.HostSystemPowerStatePoweredOff
	return h
}

func set(refs []ref) map[ref]bool {
	m := make(map[ref]bool, len(refs))
	for _, r := range refs {
		m[r] = true
	}
	return m
}

func (r *resolver) pools() {
	pl, spec := r.place, r.p.spec
	if len(pl.computes) == 0 {
		return
	}
	pl.pool = pl.computes[0].pool
	if len(pl.computes) > 1 {
		pl.pool = ref{} // stand-alone hosts have a pool each
	}
	if e := r.byRef[pl.pool]; e != nil {
		pl.poolPath = e.path
	}
	if spec.ResourcePool != "" {
		base := r.base("host")
		if len(pl.computes) == 1 {
			if root := r.byRef[pl.computes[0].pool]; root != nil {
				base = root.path
			}
		}
		pl.pool, pl.poolPath = ref{}, ""
		if e := r.one(specPath+"resourcePool", "resource pool", spec.ResourcePool, base, "ResourcePool"); e != nil {
			pl.pool, pl.poolPath = e.ref, e.path
		}
	}
	if !spec.CreatePool || pl.poolPath == "" {
		return
	}
	for _, e := range r.kinds["ResourcePool"] {
		if e.path == pl.poolPath+"/"+r.p.cluster.Metadata.Name {
			pl.ownPool = e.ref
		}
	}
}

func (r *resolver) datastores() {
	pl, spec := r.place, r.p.spec
	base := r.base("datastore")
	taken := map[ref]bool{}
	add := func(e *entity) {
		if taken[e.ref] {
			return
		}
		taken[e.ref] = true
		mode := e.str("summary.maintenanceMode")
		pl.datastores = append(pl.datastores, &datastore{ref: e.ref, facts: provision.Datastore{
			Name: e.name, CapacityMiB: e.int("summary.capacity") >> 20, FreeMiB: e.int("summary.freeSpace") >> 20,
			Usable: e.bool("summary.accessible") && (mode == "" || mode == string(types.DatastoreSummaryMaintenanceModeStateNormal)),
		}})
	}
	if spec.Pod != "" {
		if pod := r.one(specPath+"pod", "datastore cluster", spec.Pod, base, "StoragePod"); pod != nil {
			for _, child := range pod.refs("childEntity") {
				if e := r.byRef[child]; e != nil {
					add(e)
				}
			}
		}
	}
	for i, pattern := range spec.Datastores {
		found := 0
		for _, e := range r.kinds["Datastore"] {
			below, inside := strings.CutPrefix(e.path, base+"/")
			if inside && (matchFold(pattern, e.name) || matchFold(pattern, below)) {
				add(e)
				found++
			}
		}
		if found == 0 {
			pl.missing = append(pl.missing, provision.Missing{
				Path: fmt.Sprintf("%sdatastores[%d]", specPath, i), Kind: "datastore", Name: pattern, Known: r.known(base, "Datastore"),
			})
		}
	}
	if len(spec.Datastores) == 0 && spec.Pod == "" {
		for _, e := range r.kinds["Datastore"] {
			if strings.HasPrefix(e.path, base+"/") {
				add(e)
			}
		}
	}
	slices.SortFunc(pl.datastores, func(a, b *datastore) int { return strings.Compare(a.facts.Name, b.facts.Name) })
}

// matchFold matches a glob without regard to case: vSphere shows names as they
// were typed, and local* is meant to find LocalDS_0.
func matchFold(pattern, name string) bool {
	ok, _ := path.Match(strings.ToLower(pattern), strings.ToLower(name))
	return ok
}

var networkKinds = []string{"Network", "DistributedVirtualPortgroup", "OpaqueNetwork"}

func (r *resolver) networks() {
	wanted := map[string]string{} // name → where it is written
	if name := r.p.spec.Network; name != "" {
		wanted[name] = specPath + "network"
	}
	for i, g := range r.p.cluster.Spec.Groups {
		if g.Network != "" && wanted[g.Network] == "" {
			wanted[g.Network] = fmt.Sprintf("spec.groups[%d].network", i)
		}
	}
	for name, at := range wanted {
		e := r.one(at, "network", name, r.base("network"), networkKinds...)
		if e == nil {
			continue
		}
		n := &network{ref: e.ref, name: e.name}
		switch e.ref.Type {
		case "DistributedVirtualPortgroup":
			n.distributed, n.portgroup = true, e.str("key")
			if sw, ok := e.ref1("config.distributedVirtualSwitch"); ok && r.byRef[sw] != nil {
				n.switchUUID = r.byRef[sw].str("uuid")
			}
		case "OpaqueNetwork":
			if s, ok := e.props["summary"].(types.OpaqueNetworkSummary); ok {
				n.opaqueID, n.opaqueType = s.OpaqueNetworkId, s.OpaqueNetworkType
			}
		}
		r.place.networks[name] = n
	}
	slices.SortFunc(r.place.missing, func(a, b provision.Missing) int { return strings.Compare(a.Path, b.Path) })
}

// image finds the clone source. VMs are not in the names pass, of which there
// may be ten thousand: a path is looked up, and only a bare name that is not in
// the datacenter's root folder costs a pass over the names of VMs.
func (r *resolver) image(ctx context.Context) error {
	pl, name := r.place, r.p.cluster.Spec.Image.Template
	const at = "spec.image.template"
	if name == "" {
		return nil // it is imported into the cluster's folder
	}
	full := name
	if !strings.HasPrefix(name, pl.dcName+"/vm/") {
		full = r.base("vm") + "/" + strings.TrimPrefix(name, "/")
	}
	res, err := methods.FindByInventoryPath(ctx, r.p.client, &types.FindByInventoryPath{
		This: *r.p.client.ServiceContent.SearchIndex, InventoryPath: strings.TrimPrefix(full, "/"),
	})
	if err != nil {
		return fmt.Errorf("look for the image %s: %w", full, err)
	}
	if found := res.Returnval; found != nil && found.Type == "VirtualMachine" {
		pl.image, pl.imagePath = *found, full
		return nil
	}
	if strings.Contains(name, "/") {
		pl.missing = append(pl.missing, provision.Missing{Path: at, Kind: "template", Name: name})
		return nil
	}
	return r.imageByName(ctx, name, at)
}

func (r *resolver) imageByName(ctx context.Context, name, at string) error {
	pl := r.place
	list, err := r.p.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: pl.vmFolder, SelectSet: []types.BaseSelectionSpec{step("folder", "Folder", "childEntity", "folder")}}},
		PropSet:   []types.PropertySpec{{Type: "VirtualMachine", PathSet: []string{"name", "parent", "config.template"}}},
	})
	if err != nil {
		return fmt.Errorf("look for the image %s: %w", name, err)
	}
	m := provision.Missing{Path: at, Kind: "template", Name: name}
	for i := range list {
		o := &list[i]
		vm := unescape(o.str("name"))
		parent, _ := o.ref1("parent")
		full := r.base("vm")
		if e := r.byRef[parent]; e != nil {
			full = e.path
		}
		full += "/" + vm
		switch {
		case vm == name:
			m.Matches = append(m.Matches, full)
			pl.image, pl.imagePath = o.ref, full
		case o.bool("config.template"):
			m.Known = append(m.Known, vm)
		}
	}
	if len(m.Matches) == 1 {
		return nil
	}
	pl.image, pl.imagePath = ref{}, ""
	slices.Sort(m.Known)
	m.Known = m.Known[:min(len(m.Known), 20)]
	slices.Sort(m.Matches)
	pl.missing = append(pl.missing, m)
	return nil
}
