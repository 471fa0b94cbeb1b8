package provision

import (
	"net/netip"
	"time"
)

// APIVersion and Kind stand at the top of every blueprint.
const (
	APIVersion = "bridged/v1"
	Kind       = "Cluster"
)

// Cluster is a blueprint with all defaults filled in. It is never modified
// after Load; a different cluster is a different file.
type Cluster struct {
	APIVersion string   `yaml:"apiVersion"`
	Kind       string   `yaml:"kind"`
	Metadata   Metadata `yaml:"metadata"`
	Spec       Spec     `yaml:"spec"`

	source source
}

// Metadata names the cluster.
type Metadata struct {
	Name   string            `yaml:"name"`   // unique in a vCenter: folder, prefix of every VM, default ZooKeeper chroot
	Labels map[string]string `yaml:"labels"` // vSphere tags where provider.vsphere.tags is set, and shown by status
}

// Spec is what the cluster should be.
type Spec struct {
	Protect  bool            `yaml:"protect"` // true: destroy is refused
	Dev      bool            `yaml:"dev"`     // true: a Mesos master and a slave may share a node
	Provider ProviderSpec    `yaml:"provider"`
	Image    Image           `yaml:"image"`
	Distro   DistroRef       `yaml:"distro"`
	Network  Network         `yaml:"network"`
	Access   Access          `yaml:"access"`
	Secrets  Secrets         `yaml:"secrets"`
	Services Services        `yaml:"services"`
	Sizes    map[string]Size `yaml:"sizes"` // merged over the built-in small, medium, large, xlarge
	Groups   []Group         `yaml:"groups"`
	Topology Topology        `yaml:"topology"`
	Limits   Limits          `yaml:"limits"`
	Timeouts Timeouts        `yaml:"timeouts"`
	Addons   []Addon         `yaml:"addons"`
}

// ProviderSpec says where machines are made.
type ProviderSpec struct {
	Type    string  `yaml:"type"` // vsphere
	VSphere VSphere `yaml:"vsphere"`
}

// VSphere is the place in a vCenter. Names may be inventory paths.
type VSphere struct {
	Server        Value    `yaml:"server"` // host[:port] or URL; else GOVC_URL
	Auth          Auth     `yaml:"auth"`
	TLS           TLS      `yaml:"tls"`
	Datacenter    string   `yaml:"datacenter"`    // "": the only one
	Cluster       string   `yaml:"cluster"`       // compute cluster; "" with Hosts
	Hosts         []string `yaml:"hosts"`         // stand-alone hosts, or the only hosts of Cluster that may be used
	ResourcePool  string   `yaml:"resourcePool"`  // "": the cluster's root pool
	CreatePool    bool     `yaml:"createPool"`    // true: a pool of the cluster's name is made below ResourcePool, and removed with the cluster
	Folder        string   `yaml:"folder"`        // parent VM folder; "": the datacenter's. <folder>/<cluster name> is ours
	Network       string   `yaml:"network"`       // default port group
	Datastores    []string `yaml:"datastores"`    // names or globs, the one with most free space is taken
	Pod           string   `yaml:"pod"`           // datastore cluster, in place of Datastores
	StoragePolicy string   `yaml:"storagePolicy"` // name of a VM storage policy
	Tags          bool     `yaml:"tags"`          // true: attach metadata.labels as tags (needs the tagging privilege)
	Attributes    bool     `yaml:"attributes"`    // true: set custom attributes clusterctl.cluster and clusterctl.node
}

// Auth is how clusterctl signs in to vCenter.
type Auth struct {
	User     Value `yaml:"user"`     // else GOVC_USERNAME
	Password Value `yaml:"password"` // else GOVC_PASSWORD; secret
	Token    Value `yaml:"token"`    // SAML bearer token, in place of a password; secret
}

// TLS says which vCenter certificate is believed.
type TLS struct {
	CAFile     string `yaml:"caFile"`     // PEM; "": the system's roots
	Thumbprint string `yaml:"thumbprint"` // SHA-256 or SHA-1 of the certificate, colon-separated hex
}

// Image is what nodes are cloned from. Exactly one of Template, OVA and Library is set.
type Image struct {
	Template string    `yaml:"template"` // VM or template, by name or path
	OVA      string    `yaml:"ova"`      // file or URL, imported once as <cluster>-image-<sha256, 12 digits>
	SHA256   string    `yaml:"sha256"`   // of the OVA, 64 hex digits; required with OVA
	Library  string    `yaml:"library"`  // content library item, library/item
	Snapshot string    `yaml:"snapshot"` // for linked clones; "": the newest
	Clone    CloneMode `yaml:"clone"`
	OS       string    `yaml:"os"` // debian12, debian13, ubuntu22, ubuntu24, el7, el8, el9, photon3, photon4, photon5
	// Packages: install (from the distro's repositories at first boot) or
	// prebaked (they are in the image; first boot only writes configuration).
	Packages string `yaml:"packages"`
}

// CloneMode is how a VM is made from the image.
type CloneMode string

// Clone modes. CloneAuto links where the image has a snapshot and no root disk
// grows, else makes full clones.
const (
	CloneAuto    CloneMode = "auto"
	CloneLinked  CloneMode = "linked"
	CloneFull    CloneMode = "full"
	CloneInstant CloneMode = "instant"
)

// Network is the nodes' network.
type Network struct {
	CIDR      netip.Prefix `yaml:"cidr"`
	Gateway   netip.Addr   `yaml:"gateway"`
	DNS       []netip.Addr `yaml:"dns"`
	Domain    string       `yaml:"domain"`
	NTP       []string     `yaml:"ntp"`       // default: the gateway
	Ranges    []Range      `yaml:"ranges"`    // addresses for groups that have none of their own
	MTU       int          `yaml:"mtu"`       // 0: the guest's default
	MACPrefix string       `yaml:"macPrefix"` // 3 or 4 octets; default 00:50:56
	Interface string       `yaml:"interface"` // name the first NIC gets in the guest; default eth0
	Proxy     Proxy        `yaml:"proxy"`
}

// Proxy is the HTTP proxy that guests use for packages and images.
type Proxy struct {
	HTTP  string   `yaml:"http"`
	HTTPS string   `yaml:"https"`
	No    []string `yaml:"no"`
}

// Access says who may sign in to nodes. There are no passwords.
type Access struct {
	User    string  `yaml:"user"` // login user created on every node; default ops
	SSHKeys []Value `yaml:"sshKeys"`
	Realm   Realm   `yaml:"realm"`
}

// Realm joins nodes to an existing directory (Lightwave, Active Directory or plain LDAP); zero: none.
type Realm struct {
	Type     string   `yaml:"type"`   // lightwave | ad | ldap
	Domain   string   `yaml:"domain"` // lab.example
	Server   string   `yaml:"server"` // ldap(s)://host, or a domain controller
	BaseDN   string   `yaml:"baseDN"`
	User     string   `yaml:"user"`     // who joins
	Password Value    `yaml:"password"` // secret
	Groups   []string `yaml:"groups"`   // directory groups that may sign in
}

// Secrets are values that guests need. The zero Secret is none.
type Secrets struct {
	Key             Value  `yaml:"key"` // derived secrets come from this (HKDF); default {env: BRIDGED_CLUSTER_KEY}
	HAProxyStats    Secret `yaml:"haproxyStats"`
	MesosCredential Secret `yaml:"mesosCredential"` // frameworks and slaves authenticate with it
	MarathonAuth    Secret `yaml:"marathonAuth"`    // user:password for Marathon's own HTTP
	ZooKeeperAuth   Secret `yaml:"zookeeperAuth"`   // digest for the Mesos and Marathon znodes
	CACert          Secret `yaml:"caCert"`          // PEM; with CAKey services speak TLS
	CAKey           Secret `yaml:"caKey"`
}

// Services configures what runs on nodes.
type Services struct {
	ZooKeeper ZooKeeper `yaml:"zookeeper"`
	Mesos     Mesos     `yaml:"mesos"`
	Docker    Docker    `yaml:"docker"`
	Marathon  Marathon  `yaml:"marathon"`
	Chronos   Chronos   `yaml:"chronos"`
	HAProxy   HAProxy   `yaml:"haproxy"`
	Bridged   Bridged   `yaml:"bridged"`
}

// ZooKeeper is the ensemble's configuration; ticks as in zoo.cfg.
type ZooKeeper struct {
	DataDir    string `yaml:"dataDir"`
	TickTime   int    `yaml:"tickTime"` // milliseconds
	InitLimit  int    `yaml:"initLimit"`
	SyncLimit  int    `yaml:"syncLimit"`
	Heap       Heap   `yaml:"heap"`   // auto: a quarter of the node's memory, at most 4 GiB
	Chroot     string `yaml:"chroot"` // Mesos' znode; default /mesos-<cluster name>
	SnapRetain int    `yaml:"snapRetain"`
	PurgeHours int    `yaml:"purgeHours"`
	ClientPort int    `yaml:"clientPort"`
}

// Mesos configures masters and slaves.
type Mesos struct {
	Port      int        `yaml:"port"`
	AgentPort int        `yaml:"agentPort"`
	LogDir    string     `yaml:"logDir"`
	WorkDir   string     `yaml:"workDir"`
	Quorum    int        `yaml:"quorum"` // 0: half of the masters, plus one
	Flags     MesosFlags `yaml:"flags"`
}

// MesosFlags are passed through, one per flag name without dashes.
type MesosFlags struct {
	Master map[string]string `yaml:"master"`
	Agent  map[string]string `yaml:"agent"`
}

// Docker configures the engine on every node.
type Docker struct {
	Enabled            bool     `yaml:"enabled"` // default true
	Version            string   `yaml:"version"` // distro, or an exact package version
	StorageDriver      string   `yaml:"storageDriver"`
	RegistryMirrors    []string `yaml:"registryMirrors"`
	InsecureRegistries []string `yaml:"insecureRegistries"`
}

// Marathon configures the scheduler.
type Marathon struct {
	Port   int               `yaml:"port"`
	Chroot string            `yaml:"chroot"`
	HA     bool              `yaml:"ha"`
	Args   map[string]string `yaml:"args"` // flags without dashes; "" for a flag without value
}

// Chronos configures the job scheduler.
type Chronos struct {
	Enabled bool              `yaml:"enabled"` // false: the role chronos is ignored; default true
	Port    int               `yaml:"port"`
	Chroot  string            `yaml:"chroot"`
	Args    map[string]string `yaml:"args"`
}

// HAProxy configures the proxy that stands on every node until bridged takes it over.
type HAProxy struct {
	Version   string `yaml:"version"` // distro, or an exact package version
	StatsPort int    `yaml:"statsPort"`
	MaxConn   int    `yaml:"maxconn"`
}

// Bridged configures the bridge on every node.
type Bridged struct {
	Version string         `yaml:"version"` // distro, or an exact package version
	Port    int            `yaml:"port"`    // of metrics_listen: /metrics, /healthz and /readyz on the node's address
	URL     string         `yaml:"url"`     // where nodes get the program when no package has it; "": the distro's package
	SHA256  string         `yaml:"sha256"`  // of what URL gives
	Config  map[string]any `yaml:"config"`  // merged into bridged.yaml; marathon.urls is filled in
}

// Group is a number of equal nodes.
type Group struct {
	Name         string            `yaml:"name"`
	Roles        []Role            `yaml:"roles"`
	Count        int               `yaml:"count"`
	SizeName     string            `yaml:"size"`
	CPUs         int               `yaml:"cpus"`   // overrides the size's
	Cores        int               `yaml:"cores"`  // per socket; overrides the size's; 0: as the image has it
	Memory       Bytes             `yaml:"memory"` // overrides the size's
	Disks        Disks             `yaml:"disks"`
	Network      string            `yaml:"network"` // port group; "": provider.vsphere.network
	Addresses    Addresses         `yaml:"addresses"`
	Placement    Placement         `yaml:"placement"`
	Reservations Reservations      `yaml:"reservations"`
	Strategy     Strategy          `yaml:"strategy"`
	Attributes   map[string]string `yaml:"attributes"` // Mesos attributes; rack is added where topology has racks
	Resources    map[string]string `yaml:"resources"`  // mesos --resources by name, as in ports: "[31000-32000]"; none: all but Reserve
	Reserve      Reserve           `yaml:"reserve"`
	HAProxy      bool              `yaml:"haproxy"` // HAProxy and bridged; default true
}

// Role is what a node does.
type Role string

// Roles of the blueprint. HAProxy, bridged and Docker are on every node.
const (
	RoleZooKeeper Role = "zookeeper"
	RoleMaster    Role = "mesos-master"
	RoleMarathon  Role = "marathon"
	RoleChronos   Role = "chronos"
	RoleSlave     Role = "mesos-slave"
)

// Roles lists every role, in the order in which services start.
var Roles = []Role{RoleZooKeeper, RoleMaster, RoleMarathon, RoleChronos, RoleSlave}

// Size is a named amount of CPU and memory.
type Size struct {
	CPUs   int   `yaml:"cpus"`
	Cores  int   `yaml:"cores"` // per socket; 0: as the image has it
	Memory Bytes `yaml:"memory"`
}

// Disks of a node.
type Disks struct {
	Root Bytes  `yaml:"root"` // 0: the image's; grown by the guest at first boot
	Data []Disk `yaml:"data"`
}

// Disk is a data disk, formatted and mounted by the guest.
type Disk struct {
	Name  string `yaml:"name"`
	Size  Bytes  `yaml:"size"`
	Mount string `yaml:"mount"`
	FS    string `yaml:"fs"` // ext4 | xfs
}

// Placement says where a group's VMs may run.
type Placement struct {
	AntiAffinity string   `yaml:"antiAffinity"` // required | preferred | none
	Racks        string   `yaml:"racks"`        // spread | none: nodes are dealt round the racks of topology
	Hosts        []string `yaml:"hosts"`        // only these hosts
	HA           string   `yaml:"ha"`           // HA restart priority: high | medium | low | disabled | "": the cluster's
}

// Reservations of a VM.
type Reservations struct {
	CPU    MHz     `yaml:"cpu"`
	Memory Percent `yaml:"memory"` // of the VM's memory
}

// Strategy is how nodes of a group are changed.
type Strategy struct {
	Type           string `yaml:"type"`           // replace | inPlace
	MaxUnavailable Count  `yaml:"maxUnavailable"` // number or percent of the group; 1 for groups with a quorum
	MaxSurge       int    `yaml:"maxSurge"`       // extra nodes while a slave group is being replaced
	Canary         int    `yaml:"canary"`         // this many first, alone
	Drain          Drain  `yaml:"drain"`
}

// Drain is how tasks leave a slave before it is changed.
type Drain struct {
	Timeout time.Duration `yaml:"timeout"`
	Force   bool          `yaml:"force"` // true: go on when the timeout passed
}

// Reserve is left for the operating system, HAProxy and bridged on a slave.
type Reserve struct {
	CPUs   float64 `yaml:"cpus"`
	Memory Bytes   `yaml:"memory"`
}

// Topology maps hosts to racks.
type Topology struct {
	Racks []Rack `yaml:"racks"`
}

// Rack is a failure domain.
type Rack struct {
	Name  string   `yaml:"name"`
	Hosts []string `yaml:"hosts"`
}

// Limits bound what a provider does at once.
type Limits struct {
	Parallel     int `yaml:"parallel"`     // VM operations at once; default 16
	PerHost      int `yaml:"perHost"`      // default 8
	PerDatastore int `yaml:"perDatastore"` // default 8
	APIPerSecond int `yaml:"apiPerSecond"` // calls; 0: no limit
}

// Timeouts of one step of one node.
type Timeouts struct {
	Clone     time.Duration `yaml:"clone"`
	Boot      time.Duration `yaml:"boot"`      // from power-on to the first report
	Bootstrap time.Duration `yaml:"bootstrap"` // from the first report to ready
	Gate      time.Duration `yaml:"gate"`
	Shutdown  time.Duration `yaml:"shutdown"` // polite power-off, then hard
	Total     time.Duration `yaml:"total"`    // of a whole apply; 0: no limit
}

// Addon is something more on every node, or on those with a role.
type Addon struct {
	Name    string            `yaml:"name"`
	Roles   []Role            `yaml:"roles"`   // none: every node
	Package string            `yaml:"package"` // name or name=version
	Unit    string            `yaml:"unit"`    // text of <name>.service, enabled
	Files   map[string]string `yaml:"files"`   // path: text, mode 0644
}
