package provision

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Want is what a blueprint asks for, worked out: every machine and object.
type Want struct {
	Cluster *Cluster
	Distro  *Distro
	Folder  string  // path below the datacenter's VM folder: [parent/]name
	Pool    string  // name of the child pool to make, "" for none
	Image   string  // name of the VM that an OVA or library item is imported as, "" for a template
	Nodes   []*Node // in the order of the blueprint's groups
	Surge   []*Node // what the groups may have besides, while their nodes are replaced
	Rules   []Rule

	manifests *Manifests
}

// Node is one wanted machine. It is not modified after Expand, except that Run
// works on copies with Generation, UserData and MetaData filled in.
type Node struct {
	Name     string // VM name and host name: <cluster>-<group>-<index>
	Cluster  string
	Group    string
	Index    int // in its group, from 0
	Roles    []Role
	ServerID int // ZooKeeper's myid, from 1 over all ZooKeeper nodes; 0: none

	InstanceUUID string // derived from cluster and name

	CPUs           int
	CoresPerSocket int // 0: as the image has it
	MemoryMiB      int64
	RootMiB        int64 // 0: the image's
	Disks          []NodeDisk
	NICs           []NIC

	Image       string // name of the clone source
	Snapshot    string
	Clone       CloneMode
	ReservedMHz int
	ReservedMiB int64
	Rack        string   // "" without topology
	Hosts       []string // only these hosts; nil: any
	HA          string

	Attributes map[string]string // Mesos attributes, with rack

	// Spec are the settings that cannot change on a living machine, by name;
	// they stand in the marks so that a plan can say which one changed.
	Spec map[string]string
	// Hash covers Spec and the guest files as rendered with placeholders for
	// secrets. It does not cover what can be changed or seen on the VM itself
	// (CPUs, memory, sizes of disks, power, rules).
	Hash string

	// Generation counts the machines that have had this name; the first is 1.
	Generation int
	// UserData and MetaData are set by Run just before Apply, for steps that
	// write them. Raw bytes: a provider encodes them (gzip+base64 for guestinfo).
	UserData, MetaData []byte
}

// NodeDisk is a data disk of a node.
type NodeDisk struct {
	Name    string
	SizeMiB int64
	Mount   string
	FS      string
}

// NIC is a network card of a node.
type NIC struct {
	Network string       // port group
	MAC     string       // lower case, colons
	Address netip.Prefix // invalid: DHCP
}

// Has reports whether the node has the role.
func (n *Node) Has(r Role) bool { return slices.Contains(n.Roles, r) }

// Quorum reports whether the node is a member of something that needs a majority.
func (n *Node) Quorum() bool { return n.Has(RoleZooKeeper) || n.Has(RoleMaster) }

// Address is the node's first fixed address, invalid with DHCP.
func (n *Node) Address() netip.Addr {
	for _, nic := range n.NICs {
		if nic.Address.IsValid() {
			return nic.Address.Addr()
		}
	}
	return netip.Addr{}
}

// InstanceID is cloud-init's instance-id: a new one makes first boot run again.
func (n *Node) InstanceID() string { return fmt.Sprintf("%s-g%d", n.Name, n.Generation) }

// Guest are the two documents of one node.
type Guest struct {
	UserData []byte // #cloud-config
	MetaData []byte // YAML: instance-id, local-hostname, network
}

// GuestRenderer renders the first-boot documents of a node of want. Equal
// input gives equal bytes. UserData must not depend on n.Generation, nor on
// nodes outside the control plane (a scale-out must change no existing node).
// It may be called from several goroutines.
type GuestRenderer func(want *Want, n *Node, secret SecretFunc) (Guest, error)

// SecretFunc gives the value of a secret by its blueprint key, as in
// "haproxyStats". It returns ErrNoSecret when the blueprint has none of that name.
// While hashes are computed and for `render` it gives a placeholder.
type SecretFunc func(name string) (string, error)

// Keys under which a provider keeps marks and guests report, in extraConfig.
const (
	MarkCluster = "clusterctl.cluster"          // the cluster's name
	MarkNode    = "clusterctl.node"             // Marks as JSON
	StatusKey   = "guestinfo.clusterctl.status" // Report as JSON, written by the guest
)

// Marks are what a machine carries to be found and judged again.
type Marks struct {
	Cluster    string            `json:"-"`
	Node       string            `json:"node"`
	Kind       string            `json:"kind,omitempty"` // "" for a node, "image" for an imported image
	Group      string            `json:"group,omitempty"`
	Roles      []Role            `json:"roles,omitempty"`
	Index      int               `json:"index"`
	Generation int               `json:"gen"`
	Hash       string            `json:"hash"`
	Spec       map[string]string `json:"spec,omitempty"`
}

// Marks of the node, as key and value.
func (n *Node) Marks() map[string]string {
	return Marks{
		Cluster: n.Cluster, Node: n.Name, Group: n.Group, Roles: n.Roles, Index: n.Index,
		Generation: n.Generation, Hash: n.Hash, Spec: n.Spec,
	}.Encode()
}

// Encode gives the marks as key and value. Equal marks give equal text.
func (m Marks) Encode() map[string]string {
	text, err := json.Marshal(m)
	if err != nil { // strings, numbers and a map of strings
		panic(err)
	}
	return map[string]string{MarkCluster: m.Cluster, MarkNode: string(text)}
}

// DecodeMarks reads marks as found; ok is false for a machine that is not the
// cluster's. Damaged marks of our cluster are an error: such a machine is
// neither taken for ours nor touched.
func DecodeMarks(cluster string, found map[string]string) (m Marks, ok bool, err error) {
	if found[MarkCluster] != cluster {
		return Marks{}, false, nil
	}
	if err := json.Unmarshal([]byte(found[MarkNode]), &m); err != nil {
		return Marks{}, false, fmt.Errorf("mark %s: %w", MarkNode, err)
	}
	m.Cluster = cluster
	if m.Node == "" {
		return Marks{}, false, fmt.Errorf("mark %s: no node name in %q", MarkNode, strings.TrimSpace(found[MarkNode]))
	}
	return m, true, nil
}
