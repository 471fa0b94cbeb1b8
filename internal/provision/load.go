package provision

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// source is where a Cluster was read from: for positions in messages and for
// edits that keep the operator's comments.
type source struct {
	file     string
	pos      map[string]Position
	problems Problems // found while decoding
}

// Load reads a blueprint, fills in defaults and checks all that can be checked
// without a provider. file only names it in messages. The Cluster is never nil;
// it is usable when Problems.Err is nil.
func Load(file string, text []byte, manifests *Manifests) (*Cluster, Problems) {
	c := decodeCluster(file, text)
	return c, c.validate(manifests)
}

func decodeCluster(file string, text []byte) *Cluster {
	c := new(Cluster)
	c.setDefaults()
	d := &decoder{file: file, pos: map[string]Position{}}
	if root, ok := d.parse(text); ok {
		d.decode("", root, reflect.ValueOf(c).Elem())
	}
	c.source = source{file: file, pos: d.pos, problems: d.problems}
	c.derive()
	return c
}

// builtinSizes are what size names mean unless spec.sizes says otherwise.
var builtinSizes = map[string]Size{
	"small":  {CPUs: 1, Memory: 4 * GiB},
	"medium": {CPUs: 2, Memory: 8 * GiB},
	"large":  {CPUs: 4, Memory: 16 * GiB},
	"xlarge": {CPUs: 8, Memory: 32 * GiB},
}

// setDefaults fills in what holds when a key is absent.
func (c *Cluster) setDefaults() {
	s := &c.Spec
	s.Provider.Type = "vsphere"
	s.Image.Clone = CloneAuto
	s.Image.OS = "debian12"
	s.Image.Packages = "install"
	s.Network.MACPrefix = "00:50:56"
	s.Network.Interface = "eth0"
	s.Access.User = "ops"
	s.Secrets.Key = Value{Env: "BRIDGED_CLUSTER_KEY"}
	s.Services = Services{
		ZooKeeper: ZooKeeper{DataDir: "/var/lib/zookeeper", TickTime: 2000, InitLimit: 10, SyncLimit: 5, SnapRetain: 5, PurgeHours: 24, ClientPort: 2181},
		Mesos:     Mesos{Port: 5050, AgentPort: 5051, LogDir: "/var/log/mesos", WorkDir: "/var/lib/mesos"},
		Docker:    Docker{Enabled: true, Version: "distro"},
		Marathon:  Marathon{Port: 8080, Chroot: "/marathon", HA: true},
		Chronos:   Chronos{Enabled: true, Port: 4400, Chroot: "/chronos"},
		HAProxy:   HAProxy{Version: "distro", StatsPort: 9090, MaxConn: 4096},
		Bridged:   Bridged{Version: "distro", Port: 9377},
	}
	s.Limits = Limits{Parallel: 16, PerHost: 8, PerDatastore: 8}
	s.Timeouts = Timeouts{Clone: 20 * time.Minute, Boot: 10 * time.Minute, Bootstrap: 20 * time.Minute, Gate: 10 * time.Minute, Shutdown: 2 * time.Minute}
}

func (g *Group) setDefaults() {
	g.Count = -1 // missing
	g.SizeName = "medium"
	g.HAProxy = true
	g.Placement.Racks = "spread"
	g.Strategy = Strategy{Type: "replace", MaxUnavailable: Count{N: 1}, Drain: Drain{Timeout: 10 * time.Minute}}
}

func (d *Disk) setDefaults() { d.FS = "ext4" }

// derive fills in defaults that follow from other keys.
func (c *Cluster) derive() {
	s := &c.Spec
	if len(s.Network.NTP) == 0 && s.Network.Gateway.IsValid() {
		s.Network.NTP = []string{s.Network.Gateway.String()}
	}
	if s.Services.ZooKeeper.Chroot == "" {
		s.Services.ZooKeeper.Chroot = "/mesos-" + c.Metadata.Name
	}
	s.Network.MACPrefix = strings.ToLower(s.Network.MACPrefix)
	sizes := maps.Clone(builtinSizes)
	maps.Copy(sizes, s.Sizes)
	s.Sizes = sizes
	for i := range s.Groups {
		g := &s.Groups[i]
		size := s.Sizes[g.SizeName]
		if g.CPUs == 0 {
			g.CPUs = size.CPUs
		}
		if g.Cores == 0 {
			g.Cores = size.Cores
		}
		if g.Memory == 0 {
			g.Memory = size.Memory
		}
		if !s.Services.Chronos.Enabled {
			g.Roles = slices.DeleteFunc(slices.Clone(g.Roles), func(r Role) bool { return r == RoleChronos })
		}
		if g.Placement.AntiAffinity == "" {
			g.Placement.AntiAffinity = "none"
			if g.quorum() && g.Count > 1 {
				g.Placement.AntiAffinity = "preferred"
			}
		}
		if g.Network == "" {
			g.Network = s.Provider.VSphere.Network
		}
	}
}

func (g *Group) has(r Role) bool { return slices.Contains(g.Roles, r) }

func (g *Group) quorum() bool { return g.has(RoleZooKeeper) || g.has(RoleMaster) }

// fixed reports whether the group's nodes have addresses that the blueprint gives.
func (g *Group) fixed(n *Network) bool {
	return !g.Addresses.DHCP && (len(g.Addresses.Ranges) > 0 || len(n.Ranges) > 0)
}

// shared reports whether the group takes addresses from the network's ranges.
func (g *Group) shared(n *Network) bool { return g.fixed(n) && len(g.Addresses.Ranges) == 0 }

// count is Count, or 0 where it is missing.
func (g *Group) count() int { return max(0, g.Count) }

// position is where path, or the nearest thing above it, stands in the file.
func (s *source) position(path string) Position {
	for {
		if p, ok := s.pos[path]; ok {
			return p
		}
		if path == "" {
			return Position{}
		}
		path = outer(path)
	}
}

// tainted reports whether decoding already complained at, above or below path.
func (d *decoder) tainted(path string) bool { return d.problems.taint(path) }

func (ps Problems) taint(path string) bool {
	return slices.ContainsFunc(ps, func(p Problem) bool {
		return !p.Warning() && (within(p.Path, path) || within(path, p.Path))
	})
}

// within reports whether path is outer or below it.
func within(path, outer string) bool {
	rest, ok := strings.CutPrefix(path, outer)
	return ok && (outer == "" || rest == "" || rest[0] == '.' || rest[0] == '[')
}
