package provision

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/uuid"
)

// Expand works out every machine and object that a valid blueprint asks for.
// Its problems are those that only show in rendered guest files (E18).
func Expand(c *Cluster, manifests *Manifests, render GuestRenderer) (*Want, error) {
	w := &Want{Cluster: c, Folder: path.Join(c.Spec.Provider.VSphere.Folder, c.Metadata.Name), Image: c.ImageName()}
	if c.Spec.Provider.VSphere.CreatePool {
		w.Pool = c.Metadata.Name
	}
	distro := c.Spec.Distro.Inline
	if distro == nil {
		var ok bool
		if distro, ok = manifests.Get(c.Spec.Distro.Name); !ok {
			return nil, fmt.Errorf("spec.distro: unknown distro %q; %s", c.Spec.Distro.Name, didYouMean(c.Spec.Distro.Name, manifests.Names()))
		}
	}
	w.Distro, w.manifests = distro.with(&c.Spec.Services), manifests
	w.place()
	ensemble := w.ensemble()
	nodes := slices.Concat(w.Nodes, w.Surge)
	for _, n := range nodes {
		n.Spec = w.spec(n, ensemble)
	}
	if err := w.hash(nodes, render); err != nil {
		return nil, err
	}
	w.Rules = w.rules()
	return w, nil
}

// hash renders the guest files of nodes and completes their specs. Rendering is
// most of the work of a plan, and nodes do not depend on each other, so every
// CPU takes a share.
func (w *Want) hash(nodes []*Node, render GuestRenderer) error {
	shares := max(1, min(runtime.GOMAXPROCS(0), len(nodes)/16))
	errs := make([]error, shares)
	var all sync.WaitGroup
	for i := range shares {
		share := nodes[len(nodes)*i/shares : len(nodes)*(i+1)/shares]
		all.Go(func() { errs[i] = w.hashShare(share, render) })
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err // one is enough: they have one cause
		}
	}
	return nil
}

func (w *Want) hashShare(nodes []*Node, render GuestRenderer) error {
	guests := guestHash{render: render, want: w}
	for _, n := range nodes {
		guest, size, err := guests.of(n)
		if err != nil {
			return fmt.Errorf("render guest files of %s: %w", n.Name, err)
		}
		if size > maxGuestinfo {
			const at = "spec.groups"
			return Problems{{
				Code: "E18", Path: at, Pos: w.Cluster.source.position(at), file: w.Cluster.source.file,
				What:   fmt.Sprintf("the guest files of %s take %d bytes, and guestinfo holds %d", n.Name, size, maxGuestinfo),
				Remedy: "put large files into the image, or fetch them from a package",
			}}
		}
		n.Spec["guest"] = guest
		n.Hash = specHash(n.Spec)
	}
	return nil
}

// maxGuestinfo is what one guestinfo value holds, after gzip and base64.
const maxGuestinfo = 64 << 10

// ImageName is the name under which the cluster keeps an imported image; it
// names the content, so that another image is another name.
func (c *Cluster) ImageName() string {
	m := &c.Spec.Image
	switch {
	case m.OVA != "":
		return c.Metadata.Name + "-image-" + strings.ToLower(m.SHA256[:min(12, len(m.SHA256))])
	case m.Library != "":
		sum := sha256.Sum256([]byte(m.Library))
		return c.Metadata.Name + "-image-" + hex.EncodeToString(sum[:6])
	}
	return ""
}

// place makes the nodes with their hardware, names and addresses.
func (w *Want) place() {
	c := w.Cluster
	taken := map[string]bool{}
	pool, used := c.pool(c.sharedAddresses()), 0
	addresses := make([][]netip.Addr, len(c.Spec.Groups))
	// Groups with a quorum keep their number, so they go first: then a change
	// of another group's count moves nobody.
	for _, quorum := range []bool{true, false} {
		for i := range c.Spec.Groups {
			g := &c.Spec.Groups[i]
			need := g.Count + g.Strategy.MaxSurge
			switch {
			case g.quorum() != quorum || !g.fixed(&c.Spec.Network):
			case g.shared(&c.Spec.Network):
				addresses[i] = pool[min(used, len(pool)):min(used+need, len(pool))]
				used += need
			default:
				addresses[i] = list(g.Addresses.Ranges, nil, need)
			}
		}
	}
	serverID := 0
	for i := range c.Spec.Groups {
		g := &c.Spec.Groups[i]
		for j := range g.Count + g.Strategy.MaxSurge {
			n := w.node(g, j)
			if g.has(RoleZooKeeper) {
				serverID++
				n.ServerID = serverID
			}
			nic := NIC{Network: g.Network}
			if j < len(addresses[i]) {
				nic.Address = netip.PrefixFrom(addresses[i][j], c.Spec.Network.CIDR.Bits())
				nic.MAC = addressMAC(c.Spec.Network.MACPrefix, addresses[i][j])
				taken[nic.MAC] = true
			}
			n.NICs = []NIC{nic}
			if j < g.Count {
				w.Nodes = append(w.Nodes, n)
			} else {
				w.Surge = append(w.Surge, n)
			}
		}
	}
	// Addresses by DHCP give no MAC to derive; a hash does, skipping what is taken.
	for _, n := range slices.Concat(w.Nodes, w.Surge) {
		nic := &n.NICs[0]
		for try := 0; nic.MAC == "" || !nic.Address.IsValid() && taken[nic.MAC]; try++ {
			sum := sha256.Sum256(fmt.Appendf(nil, "%s/%s/%d", n.Cluster, n.Name, try))
			nic.MAC = addressMAC(c.Spec.Network.MACPrefix, netip.AddrFrom4([4]byte(sum[:4])))
		}
		taken[nic.MAC] = true
	}
}

// sharedAddresses is how many addresses groups take from the network's ranges.
func (c *Cluster) sharedAddresses() int {
	n := 0
	for i := range c.Spec.Groups {
		if g := &c.Spec.Groups[i]; g.shared(&c.Spec.Network) {
			n += g.Count + g.Strategy.MaxSurge
		}
	}
	return n
}

func (w *Want) node(g *Group, index int) *Node {
	c := w.Cluster
	name := nodeName(c.Metadata.Name, g.Name, index)
	n := &Node{
		Name: name, Cluster: c.Metadata.Name, Group: g.Name, Index: index, Roles: sortedRoles(g.Roles),
		InstanceUUID: InstanceUUID(c.Metadata.Name, name),
		CPUs:         g.CPUs, CoresPerSocket: g.Cores, MemoryMiB: g.Memory.MiB(),
		RootMiB: g.Disks.Root.MiB(),
		Image:   c.Spec.Image.Template, Snapshot: c.Spec.Image.Snapshot, Clone: c.Spec.Image.Clone,
		ReservedMHz: int(g.Reservations.CPU), ReservedMiB: g.Memory.MiB() * int64(g.Reservations.Memory) / 100,
		Hosts: g.Placement.Hosts, HA: g.Placement.HA,
		Generation: 1,
	}
	if w.Image != "" {
		n.Image = w.Image
	}
	for _, d := range g.Disks.Data {
		n.Disks = append(n.Disks, NodeDisk{Name: d.Name, SizeMiB: d.Size.MiB(), Mount: d.Mount, FS: d.FS})
	}
	if racks := c.Spec.Topology.Racks; len(racks) > 0 && g.Placement.Racks == "spread" {
		rack := &racks[index%len(racks)]
		n.Rack, n.Hosts = rack.Name, rack.Hosts
	}
	if g.has(RoleSlave) {
		n.Attributes = maps.Clone(g.Attributes)
		if n.Rack != "" {
			if n.Attributes == nil {
				n.Attributes = map[string]string{}
			}
			n.Attributes["rack"] = n.Rack
		}
	}
	return n
}

// sortedRoles puts roles into the order in which services start.
func sortedRoles(roles []Role) []Role {
	var sorted []Role
	for _, r := range Roles {
		if slices.Contains(roles, r) {
			sorted = append(sorted, r)
		}
	}
	return sorted
}

// identities is the namespace of instance UUIDs (RFC 9562, version 5). It must
// never change: machines are known by what is derived from it.
var identities = uuid.MustParse("6f0d6d8c-5c44-5f3b-9a55-2f3f6d1f7c1e")

// InstanceUUID is the identity of a node of a cluster, whoever makes it.
func InstanceUUID(cluster, node string) string {
	return uuid.NewSHA1(identities, []byte(cluster+"/"+node)).String()
}

// addressMAC makes a MAC from a prefix and the low bits of an address: what is
// unique among the addresses of a network is then unique among its MACs.
func addressMAC(prefix string, a netip.Addr) string {
	low := addrNumber(a) & (1<<macBits(prefix) - 1)
	octets := []string{prefix}
	for shift := 8 * (5 - strings.Count(prefix, ":")); shift > 0; {
		shift -= 8
		octets = append(octets, fmt.Sprintf("%02x", byte(low>>shift)))
	}
	return strings.Join(octets, ":")
}

// ensemble is who every node has to know, by role.
func (w *Want) ensemble() map[string]string {
	e := map[string]string{}
	for key, role := range map[string]Role{"zookeeper": RoleZooKeeper, "masters": RoleMaster, "marathons": RoleMarathon} {
		var addrs []string
		for _, n := range w.With(role) {
			addrs = append(addrs, n.Address().String())
		}
		e[key] = strings.Join(addrs, " ")
	}
	return e
}

// With lists the nodes that have a role, in order.
func (w *Want) With(r Role) []*Node {
	var nodes []*Node
	for _, n := range w.Nodes {
		if n.Has(r) {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// spec is what can't change on a living machine, in words that a plan can show.
func (w *Want) spec(n *Node, ensemble map[string]string) map[string]string {
	s := maps.Clone(ensemble)
	roles := make([]string, len(n.Roles))
	for i, r := range n.Roles {
		roles[i] = string(r)
	}
	s["roles"] = strings.Join(roles, " ")
	s["image"], s["os"], s["distro"] = n.Image, w.Cluster.Spec.Image.OS, w.Distro.Name
	s["address"] = "dhcp"
	if a := n.NICs[0].Address; a.IsValid() {
		s["address"] = a.String()
	}
	if n.RootMiB > 0 {
		s["root"] = (Bytes(n.RootMiB) * MiB).String()
	}
	if n.ServerID > 0 {
		s["myid"] = strconv.Itoa(n.ServerID)
	}
	var disks []string
	for _, d := range n.Disks {
		disks = append(disks, d.Name+"="+d.Mount)
	}
	if disks != nil {
		s["disks"] = strings.Join(disks, " ")
	}
	return s
}

func specHash(spec map[string]string) string {
	text, err := json.Marshal(spec) // maps are marshalled with sorted keys
	if err != nil {
		panic(err) // a map of strings
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16])
}

// guestHash hashes rendered guest files, one after the other with the same writer.
type guestHash struct {
	render GuestRenderer
	want   *Want
	zip    *gzip.Writer
}

// of gives the hash of a node's user-data and how large it is in guestinfo.
func (g *guestHash) of(n *Node) (string, int, error) {
	guest, err := g.render(g.want, n, g.want.Cluster.Placeholder)
	if err != nil {
		return "", 0, err
	}
	sum := sha256.Sum256(guest.UserData)
	size := base64Size(len(guest.UserData))
	if size > maxGuestinfo { // only then is it worth compressing to know
		var counter countWriter
		if g.zip == nil {
			g.zip = gzip.NewWriter(&counter)
		}
		g.zip.Reset(&counter)
		if _, err := io.Copy(g.zip, bytes.NewReader(guest.UserData)); err != nil {
			return "", 0, err
		}
		if err := g.zip.Close(); err != nil {
			return "", 0, err
		}
		size = base64Size(int(counter))
	}
	return hex.EncodeToString(sum[:8]), size, nil
}

func base64Size(n int) int { return (n + 2) / 3 * 4 }

type countWriter int

func (c *countWriter) Write(p []byte) (int, error) {
	*c += countWriter(len(p))
	return len(p), nil
}

// rules are the placement rules of the cluster, sorted by name.
func (w *Want) rules() []Rule {
	prefix := RulePrefix(w.Cluster.Metadata.Name)
	var rules []Rule
	members := func(match func(*Node) bool) []string {
		var names []string
		for _, n := range w.Nodes {
			if match(n) {
				names = append(names, n.Name)
			}
		}
		slices.Sort(names)
		return names
	}
	for i := range w.Cluster.Spec.Groups {
		g := &w.Cluster.Spec.Groups[i]
		inGroup := members(func(n *Node) bool { return n.Group == g.Name })
		if g.Placement.AntiAffinity != "none" && len(inGroup) > 1 {
			rules = append(rules, Rule{Name: prefix + g.Name, Kind: RuleSeparate, Mandatory: g.Placement.AntiAffinity == "required", Nodes: inGroup})
		}
		if len(g.Placement.Hosts) > 0 && len(inGroup) > 0 {
			rules = append(rules, Rule{Name: prefix + g.Name + ":hosts", Kind: RuleHosts, Mandatory: true, Nodes: inGroup, Hosts: sorted(g.Placement.Hosts)})
		}
	}
	for _, r := range w.Cluster.Spec.Topology.Racks {
		if inRack := members(func(n *Node) bool { return n.Rack == r.Name }); len(inRack) > 0 {
			rules = append(rules, Rule{Name: prefix + "rack:" + r.Name, Kind: RuleHosts, Nodes: inRack, Hosts: sorted(r.Hosts)})
		}
	}
	slices.SortFunc(rules, func(a, b Rule) int { return strings.Compare(a.Name, b.Name) })
	return rules
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return s
}
