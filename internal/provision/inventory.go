package provision

import (
	"net/netip"
	"time"
)

// Inventory is what exists of one cluster, and what a provider knows about the
// place it stands in. It is plain data: the planner never sees a provider's
// handles except as opaque text.
type Inventory struct {
	Cluster string // name of the cluster it was read for
	Server  string // where it was read, for people: vc.lab/DC0/C0

	Folder   string    // path of the cluster's folder, "" when there is none
	Pool     string    // path of the cluster's own resource pool, "" when there is none
	Machines []Machine // VMs in the folder that carry this cluster's marks, sorted by name
	Images   []Machine // imported images in the folder that carry this cluster's marks
	Foreign  []Foreign // whatever else lies in the folder, or stands elsewhere under a name we need
	Rules    []Rule    // placement rules of this cluster, found by their names, sorted
	Lease    *Holder   // who holds the cluster's lease now; nil: nobody
	// StaleLease says that a dead run left its lease behind. Acquire removes it,
	// which is worth doing even when nothing else is to be done.
	StaleLease bool

	Facts Facts
	Now   time.Time // the provider's clock when it was read
}

// Machine is one VM that carries our marks.
type Machine struct {
	Name         string
	Ref          string // the provider's handle, for steps; never compared
	InstanceUUID string
	Marks        Marks
	Power        Power
	Busy         string // a task that someone else runs on it now, as in "relocate by vpxuser"

	CPUs           int
	CoresPerSocket int
	MemoryMiB      int64
	HotAddCPU      bool // CPUs can be added while it runs
	HotAddMemory   bool

	Disks      []MachineDisk // in device order, the first is the root disk
	ImageDisks int           // how many of Disks came with the image; 0: one
	NICs       []MachineNIC  // in device order

	ReservedMHz int
	ReservedMiB int64

	Addresses []netip.Addr // as the guest reports them
	Host      string
	Datastore string

	Report Report // what the guest says about itself
}

// MachineDisk is a disk as it exists.
type MachineDisk struct {
	SizeMiB   int64
	Datastore string
}

// MachineNIC is a network card as it exists.
type MachineNIC struct {
	Network string
	MAC     string // lower case, colons
}

// Power is a VM's power state.
type Power string

// Power states.
const (
	PoweredOn  Power = "on"
	PoweredOff Power = "off"
	Suspended  Power = "suspended"
)

// Foreign is an object that is not ours where one of ours is or would be.
type Foreign struct {
	Name string
	Kind string // vm, folder
	Path string
	// Blocks names the node whose name, MAC or address it uses, "" when it is
	// merely in the cluster's folder.
	Blocks string
	Why    string // "has the name of", "uses the address 10.0.0.5 of", …
}

// Report is the status a guest writes to guestinfo.clusterctl.status, as JSON of at most 2 KiB.
type Report struct {
	Generation int               `json:"gen"`
	Phase      Phase             `json:"phase"`
	Step       string            `json:"step,omitempty"`
	Percent    int               `json:"pct,omitempty"`
	Err        string            `json:"err,omitempty"`
	Services   map[string]string `json:"svc,omitempty"` // service → ok | starting | failed …
	Time       int64             `json:"t,omitempty"`   // seconds since 1970 on the guest's clock
}

// Phase is how far a node's first boot has come.
type Phase string

// Phases, in order. A node that never reported is in PhaseNone.
const (
	PhaseNone     Phase = ""
	PhaseBooting  Phase = "booting"
	PhaseNetwork  Phase = "network"
	PhasePackages Phase = "packages"
	PhaseConfig   Phase = "config"
	PhaseServices Phase = "services"
	PhaseReady    Phase = "ready"
	PhaseFailed   Phase = "failed"
)

// Rule is a placement rule. Its name begins with RulePrefix of the cluster.
type Rule struct {
	Name      string   `json:"name"`
	Kind      RuleKind `json:"kind"`
	Mandatory bool     `json:"mandatory"`
	Nodes     []string `json:"nodes"`           // VM names, sorted
	Hosts     []string `json:"hosts,omitempty"` // RuleHosts: sorted
}

// RuleKind says what a rule asks for.
type RuleKind string

// Rule kinds. A provider makes for RuleHosts whatever groups it needs, named
// after the rule, and removes them with it.
const (
	RuleSeparate RuleKind = "separate" // no two of Nodes on one host
	RuleHosts    RuleKind = "hosts"    // Nodes run on Hosts
)

// RulePrefix begins the name of every rule of the cluster.
func RulePrefix(cluster string) string { return "clusterctl:" + cluster + ":" }

// Facts are what validation against the provider needs. Only ScopeOnline fills
// Denied and Neighbours.
type Facts struct {
	Datacenter string
	Missing    []Missing // names of the blueprint that match nothing, or several things
	Hosts      []Host
	Datastores []Datastore
	Image      ImageFacts
	Denied     []Denied
	Neighbours []Neighbour
}

// Neighbour is a VM of somebody else on the cluster's networks, with those of
// its addresses that lie in the blueprint's CIDR. The planner says which of them
// a node needs.
type Neighbour struct {
	Name      string
	Addresses []netip.Addr
	MACs      []string // lower case, colons
}

// Missing is a name in the blueprint without exactly one object behind it.
type Missing struct {
	Path    string   // where in the blueprint: spec.provider.vsphere.network
	Kind    string   // network, datastore, template, snapshot, resource pool, folder, host, cluster, datacenter
	Name    string   // as written
	Matches []string // more than one; nil: none
	Known   []string // names of that kind that exist, for the remedy; may be cut short
}

// Host is a hypervisor that VMs may be placed on.
type Host struct {
	Name        string
	MHz         int64 // total
	UsedMHz     int64
	MemoryMiB   int64
	UsedMiB     int64
	Usable      bool // connected, powered on and not in maintenance
	Maintenance bool
}

// Datastore is a place for disks.
type Datastore struct {
	Name        string
	CapacityMiB int64
	FreeMiB     int64
	Usable      bool
}

// ImageFacts describe the clone source.
type ImageFacts struct {
	Name     string
	Found    bool
	Snapshot string // the one that linked clones use; "": there is none
	RootMiB  int64  // size of the first disk
	NICs     int
	Disks    int
	Marked   bool // the image says that it has cloud-init and open-vm-tools
	Instant  bool // instant clone is possible: powered on and frozen
}

// Denied is a privilege that the session lacks.
type Denied struct {
	Object    string
	Privilege string
}
