package provision

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// MaxNodes bounds a group, so that a slip of the finger is not an order.
const MaxNodes = 4000

func (k *checker) sizes() {
	for _, name := range sortedKeys(k.c.Spec.Sizes) {
		size, at := k.c.Spec.Sizes[name], "spec.sizes."+name
		if _, builtin := builtinSizes[name]; builtin && size == builtinSizes[name] {
			continue
		}
		k.pattern("E12", at, name, shortName, "1 to 30 lower-case letters, digits, dashes, dots and _")
		if size.CPUs == 0 {
			k.missing(at+".cpus", "give a number of virtual CPUs")
		}
		if size.Memory == 0 {
			k.missing(at+".memory", "give a size like 8GiB")
		}
		if size.CPUs != 0 && size.Memory != 0 {
			k.hardware(at, size.CPUs, size.Cores, size.Memory)
		}
	}
}

// hardware checks what a VM can have (vSphere: memory in steps of 4 MiB, whole sockets).
func (k *checker) hardware(at string, cpus, cores int, memory Bytes) {
	if cpus < 1 || cpus > 768 {
		k.bad("E14", at+".cpus", fmt.Sprintf("want 1 to 768, have %d", cpus), "correct the number")
	} else if cores < 0 || cores > 0 && cpus%cores != 0 {
		k.bad("E14", at+".cores", fmt.Sprintf("%d CPUs can't be split into sockets of %d cores", cpus, cores), "choose a divisor of cpus")
	}
	switch {
	case memory%(4*MiB) != 0:
		k.bad("E14", at+".memory", fmt.Sprintf("want a multiple of 4MiB, have %s", memory), fmt.Sprintf("write %s", memory/(4*MiB)*(4*MiB)+4*MiB))
	case memory < 512*MiB || memory > 24*TiB:
		k.bad("E14", at+".memory", fmt.Sprintf("want 512MiB to 24TiB, have %s", memory), "correct the size")
	}
}

func (k *checker) groups() {
	groups := k.c.Spec.Groups
	if len(groups) == 0 {
		k.missing("spec.groups", "give at least a master and a slave group")
	}
	for i := range groups {
		at := fmt.Sprintf("spec.groups[%d]", i)
		g := &groups[i]
		switch {
		case g.Name == "":
			k.missing(at+".name", "name the group; nodes are called <cluster>-<group>-<number>")
		case k.pattern("E12", at+".name", g.Name, groupName, "1 to 20 lower-case letters, digits and dashes, a letter first and no dash last"):
			if slices.ContainsFunc(groups[:i], func(o Group) bool { return o.Name == g.Name }) {
				k.bad("E12", at+".name", fmt.Sprintf("two groups are called %s", g.Name), "rename one")
			}
		}
		k.group(at, g)
	}
}

func (k *checker) group(at string, g *Group) {
	spec := &k.c.Spec
	if len(g.Roles) == 0 {
		if !k.c.source.problems.taint(at+".roles") && spec.Services.Chronos.Enabled {
			k.missing(at+".roles", "give at least one of zookeeper, mesos-master, marathon, chronos, mesos-slave")
		}
	}
	k.rolesTwice(at, g.Roles)
	if g.has(RoleMaster) && g.has(RoleSlave) && !spec.Dev {
		k.bad("E10", at+".roles", "mesos-master and mesos-slave share a node", "use two groups, or set spec.dev: true")
	}
	switch {
	case g.Count == -1 && k.c.source.pos[at+".count"] == (Position{}):
		k.missing(at+".count", "say how many nodes")
	case g.Count < 0 || g.Count > MaxNodes:
		k.bad("E01", at+".count", fmt.Sprintf("want 0 to %d, have %d", MaxNodes, g.Count), "correct the number")
	case g.Count == 0 && g.quorum():
		k.bad("E02", at+".count", "a group of ZooKeeper or Mesos masters has no node", "give it 1, 3 or 5")
	case g.Count == 0:
		k.bad("W04", at+".count", "the group has no node", "expected while nothing runs there")
	}
	if _, ok := spec.Sizes[g.SizeName]; !ok {
		k.bad("E14", at+".size", "unknown size "+shown(g.SizeName), didYouMean(g.SizeName, sortedKeys(spec.Sizes)))
	} else if size := spec.Sizes[g.SizeName]; g.CPUs != size.CPUs || g.Memory != size.Memory || g.Cores != size.Cores {
		k.hardware(at, g.CPUs, g.Cores, g.Memory)
	}
	k.disks(at, g)
	k.placement(at, g)
	k.strategy(at, g)
	k.slaveSettings(at, g)
}

// systemMounts would hide what the image put there.
var systemMounts = []string{"/", "/bin", "/boot", "/dev", "/etc", "/lib", "/proc", "/root", "/run", "/sbin", "/sys", "/usr", "/var", "/var/lib", "/var/run"}

func (k *checker) disks(at string, g *Group) {
	if r := g.Disks.Root; r != 0 && (r < 2*GiB || r > 62*TiB) {
		k.bad("E14", at+".disks.root", fmt.Sprintf("want 2GiB to 62TiB, have %s", r), "leave it out to keep the image's size")
	}
	if len(g.Disks.Data) > 14 {
		k.bad("E14", at+".disks.data", fmt.Sprintf("want at most 14 data disks, have %d", len(g.Disks.Data)), "use fewer, larger ones")
	}
	for i := range g.Disks.Data {
		d, here := &g.Disks.Data[i], fmt.Sprintf("%s.disks.data[%d]", at, i)
		earlier := g.Disks.Data[:i]
		if d.Name == "" {
			k.missing(here+".name", "name the disk; the name becomes its file system's label")
		} else if k.pattern("E12", here+".name", d.Name, diskName, "1 to 12 lower-case letters, digits and dashes") &&
			slices.ContainsFunc(earlier, func(o Disk) bool { return o.Name == d.Name }) {
			k.bad("E12", here+".name", fmt.Sprintf("two disks are called %s", d.Name), "rename one")
		}
		switch {
		case d.Size == 0:
			k.missing(here+".size", "give a size like 20GiB")
		case d.Size < GiB || d.Size > 62*TiB:
			k.bad("E14", here+".size", fmt.Sprintf("want 1GiB to 62TiB, have %s", d.Size), "correct the size")
		}
		switch {
		case d.Mount == "":
			k.missing(here+".mount", "say where the guest mounts it")
		case !path.IsAbs(d.Mount) || path.Clean(d.Mount) != d.Mount || strings.ContainsAny(d.Mount, " \t\n\\"):
			k.bad("E15", here+".mount", "want an absolute path without blanks, have "+shown(d.Mount), "write it like /var/lib/zookeeper")
		case slices.Contains(systemMounts, d.Mount):
			k.bad("E15", here+".mount", fmt.Sprintf("a disk on %s would hide the system's files", d.Mount), "mount it on a directory of the service")
		case slices.ContainsFunc(earlier, func(o Disk) bool { return o.Mount == d.Mount }):
			k.bad("E15", here+".mount", fmt.Sprintf("two disks are mounted on %s", d.Mount), "change one")
		}
		k.oneOf(here+".fs", d.FS, "ext4", "xfs")
	}
	if !g.has(RoleZooKeeper) {
		return
	}
	dir := k.c.Spec.Services.ZooKeeper.DataDir
	if g.Count >= 3 && k.c.Spec.Protect && !slices.ContainsFunc(g.Disks.Data, func(d Disk) bool { return under(dir, d.Mount) }) {
		k.bad("W02", at+".disks.data", fmt.Sprintf("ZooKeeper's %s lies on the root disk", dir), "give it a data disk, its log is latency bound")
	}
	if heap := Bytes(k.c.Spec.Services.ZooKeeper.Heap); heap > 0 && g.Memory > 0 && heap > g.Memory/2 {
		k.bad("E14", "spec.services.zookeeper.heap", fmt.Sprintf("%s is more than half of the %s that nodes of group %s have", heap, g.Memory, g.Name), "lower it, or give the group more memory")
	}
}

// under reports whether file is dir or below it.
func under(file, dir string) bool {
	return file == dir || strings.HasPrefix(file, strings.TrimSuffix(dir, "/")+"/")
}

var diskName = regexp.MustCompile(`^[a-z](?:[a-z0-9-]{0,10}[a-z0-9])?$`)

func (k *checker) placement(at string, g *Group) {
	p, at := &g.Placement, at+".placement"
	k.oneOf(at+".antiAffinity", p.AntiAffinity, "required", "preferred", "none")
	k.oneOf(at+".racks", p.Racks, "spread", "none")
	if p.HA != "" {
		k.oneOf(at+".ha", p.HA, "high", "medium", "low", "disabled")
	}
	for i, h := range p.Hosts {
		if h == "" {
			k.bad("E01", fmt.Sprintf("%s.hosts[%d]", at, i), "is empty", "name a host")
		}
	}
	if n := len(p.Hosts); n > 0 && p.AntiAffinity == "required" && g.count() > n {
		k.bad("E08", at+".hosts", fmt.Sprintf("%d nodes must stand on different hosts, and %d may be used", g.count(), n), "add hosts, or write antiAffinity: preferred")
	}
	if len(p.Hosts) > 0 && p.Racks == "spread" && len(k.c.Spec.Topology.Racks) > 0 {
		k.bad("E01", at+".hosts", "stands beside racks: spread, which chooses the hosts", "write racks: none, or remove hosts")
	}
	if m := g.Reservations.Memory; m < 0 || m > 100 {
		k.bad("E14", at+".reservations.memory", fmt.Sprintf("want 0%% to 100%%, have %s", m), "correct it")
	}
}

func (k *checker) strategy(at string, g *Group) {
	roles := at + ".roles"
	s, at := &g.Strategy, at+".strategy"
	k.oneOf(at+".type", s.Type, "replace", "inPlace")
	allowed := s.MaxUnavailable.Of(g.count())
	switch {
	case allowed < 1:
		k.bad("E16", at+".maxUnavailable", "want at least 1, have "+s.MaxUnavailable.String(), "with 0 nothing could ever be changed")
	case g.quorum() && allowed > 1:
		k.bad("E16", at+".maxUnavailable", fmt.Sprintf("%s of %d nodes would be down at once in a group that holds a quorum", s.MaxUnavailable, g.count()), "write 1: such nodes are changed one at a time")
	}
	switch {
	case s.MaxSurge < 0 || s.MaxSurge > 50:
		k.bad("E16", at+".maxSurge", fmt.Sprintf("want 0 to 50, have %d", s.MaxSurge), "correct the number")
	case s.MaxSurge > 0 && (g.quorum() || !g.has(RoleSlave)) && !k.c.source.problems.taint(roles):
		k.bad("E16", at+".maxSurge", "extra nodes make sense for mesos-slave only", "remove it: masters keep their number")
	case s.MaxSurge > 0 && s.Type == "inPlace":
		k.bad("E16", at+".maxSurge", "stands beside type: inPlace, which makes no nodes", "remove one of the two")
	}
	if s.Canary < 0 || g.Count > 0 && s.Canary > g.Count {
		k.bad("E16", at+".canary", fmt.Sprintf("want 0 to the group's count, have %d", s.Canary), "correct the number")
	}
	if s.Drain.Timeout == 0 && g.has(RoleSlave) && !s.Drain.Force {
		k.bad("E16", at+".drain.timeout", "0s would never let a task leave", "give a time, or force: true to kill at once")
	}
}

var (
	attributeName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*$`)
	resourceName  = regexp.MustCompile(`^[a-z][a-z0-9_]*(?:\([a-z0-9_*-]+\))?$`)
	resourceText  = regexp.MustCompile(`^[0-9][0-9.]*$|^\[[0-9]+-[0-9]+(?:, ?[0-9]+-[0-9]+)*\]$|^\{[A-Za-z0-9_, -]+\}$`)
)

func (k *checker) slaveSettings(at string, g *Group) {
	if k.c.source.problems.taint(at + ".roles") {
		return
	}
	if !g.has(RoleSlave) {
		for key, given := range map[string]bool{"attributes": len(g.Attributes) > 0, "resources": len(g.Resources) > 0, "reserve": g.Reserve != Reserve{}} {
			if given {
				k.bad("E10", at+"."+key, "the group has no mesos-slave", "remove it, or add the role")
			}
		}
		return
	}
	for _, name := range sortedKeys(g.Attributes) {
		here := at + ".attributes." + name
		value := g.Attributes[name]
		switch {
		case !attributeName.MatchString(name):
			k.bad("E12", here, "an attribute's name has letters, digits, dots, dashes and _", "rename it")
		case value == "" || strings.ContainsAny(value, ";:,[]{}\"'\n\r\t "):
			k.bad("E01", here, "want a value without blanks and ;:,[]{}, have "+shown(value), "Mesos would read something else")
		case name == "rack" && len(k.c.Spec.Topology.Racks) > 0 && g.Placement.Racks == "spread":
			k.bad("E01", here, "is set from spec.topology", "remove it, or write placement.racks: none")
		}
	}
	for _, name := range sortedKeys(g.Resources) {
		here := at + ".resources." + name
		if !resourceName.MatchString(name) {
			k.bad("E12", here, "is not a Mesos resource name", "write it like cpus, mem, disk or ports")
		} else if !resourceText.MatchString(g.Resources[name]) {
			k.bad("E01", here, "want a number, a range [a-b] or a set {a,b}, have "+shown(g.Resources[name]), `write it like "[31000-32000]"`)
		}
	}
	if g.Reserve.CPUs < 0 || g.CPUs > 0 && g.Reserve.CPUs >= float64(g.CPUs) {
		k.bad("E14", at+".reserve.cpus", fmt.Sprintf("want less than the node's %d CPUs, have %g", g.CPUs, g.Reserve.CPUs), "leave something to Mesos")
	}
	if g.Memory > 0 && g.Reserve.Memory >= g.Memory {
		k.bad("E14", at+".reserve.memory", fmt.Sprintf("want less than the node's %s, have %s", g.Memory, g.Reserve.Memory), "leave something to Mesos")
	}
}

func nodeName(cluster, group string, index int) string {
	return fmt.Sprintf("%s-%s-%d", cluster, group, index)
}

// ensemble checks the roles over all groups.
func (k *checker) ensemble() {
	if len(k.c.Spec.Groups) == 0 || k.c.source.problems.taint("spec.groups") {
		return
	}
	count, first := map[Role]int{}, map[Role]int{}
	for i := range k.c.Spec.Groups {
		for _, r := range k.c.Spec.Groups[i].Roles {
			if _, seen := first[r]; !seen {
				first[r] = i
			}
			count[r] += k.c.Spec.Groups[i].count()
		}
	}
	at := func(r Role) string { return fmt.Sprintf("spec.groups[%d].count", first[r]) }
	for _, r := range []Role{RoleZooKeeper, RoleMaster, RoleMarathon, RoleSlave} {
		if _, given := first[r]; !given {
			k.bad("E02", "spec.groups", fmt.Sprintf("no group has the role %s", r), "add it to a group")
		} else if count[r] == 0 && r == RoleMarathon {
			k.bad("E02", at(r), "no node runs marathon", "give the group at least one node")
		}
	}
	zk, masters := count[RoleZooKeeper], count[RoleMaster]
	if zk > 0 && zk%2 == 0 {
		k.bad("E03", at(RoleZooKeeper), fmt.Sprintf("want 1, 3, 5 or 7 ZooKeeper servers, have %d", zk),
			fmt.Sprintf("take %d: %d bear no more losses than %d and need a larger majority", zk+1, zk, zk-1))
	} else if zk > 7 {
		k.bad("E03", at(RoleZooKeeper), fmt.Sprintf("want 1, 3, 5 or 7 ZooKeeper servers, have %d", zk), "more servers make every write slower")
	}
	if masters > 0 && masters%2 == 0 {
		k.bad("E04", at(RoleMaster), fmt.Sprintf("want an odd number of Mesos masters, have %d", masters),
			fmt.Sprintf("take %d: %d bear no more losses than %d", masters+1, masters, masters-1))
	} else if masters > 7 {
		k.bad("E04", at(RoleMaster), fmt.Sprintf("want at most 7 Mesos masters, have %d", masters), "5 bear the loss of two")
	}
	if q := k.c.Spec.Services.Mesos.Quorum; q != 0 && masters > 0 && q != masters/2+1 {
		k.bad("E04", "spec.services.mesos.quorum", fmt.Sprintf("want %d for %d masters, have %d", masters/2+1, masters, q), "leave it out, it follows from the number of masters")
	}
	if zk == 1 && masters > 1 {
		k.bad("E05", at(RoleZooKeeper), fmt.Sprintf("%d Mesos masters depend on one ZooKeeper server", masters), fmt.Sprintf("take %d ZooKeeper servers", masters))
	}
	if masters == 1 && (k.c.Spec.Protect || count[RoleSlave] > 20) {
		k.bad("W03", at(RoleMaster), "a cluster of this kind has one Mesos master", "take 3 to bear the loss of one")
	}
}
