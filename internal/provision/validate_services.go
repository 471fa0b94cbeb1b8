package provision

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
)

func (k *checker) services() {
	s := &k.c.Spec.Services
	k.zookeeper("spec.services.zookeeper", &s.ZooKeeper)
	k.mesos("spec.services.mesos", &s.Mesos)
	k.znode("spec.services.marathon.chroot", s.Marathon.Chroot)
	k.znode("spec.services.chronos.chroot", s.Chronos.Chroot)
	k.flags("spec.services.marathon.args", s.Marathon.Args, map[string]string{
		"master": "from the masters", "zk": "from the ZooKeeper nodes and chroot", "hostname": "from the node's address",
		"http_port": "by port", "ha": "by ha", "http_credentials": "by spec.secrets.marathonAuth", "mesos_authentication_secret_file": "by spec.secrets.mesosCredential",
	})
	k.flags("spec.services.chronos.args", s.Chronos.Args, map[string]string{
		"master": "from the masters", "zk_hosts": "from the ZooKeeper nodes", "zk_path": "by chroot", "http_port": "by port", "hostname": "from the node's address",
	})
	k.znodes()
	k.docker("spec.services.docker", &s.Docker)
	k.version("spec.services.docker.version", s.Docker.Version)
	k.version("spec.services.haproxy.version", s.HAProxy.Version)
	k.version("spec.services.bridged.version", s.Bridged.Version)
	k.between("spec.services.haproxy.maxconn", s.HAProxy.MaxConn, 1, 10_000_000)
	k.bridged("spec.services.bridged", &s.Bridged)
	k.ports()
}

func (k *checker) zookeeper(at string, z *ZooKeeper) {
	k.directory(at+".dataDir", z.DataDir)
	k.between(at+".tickTime", z.TickTime, 100, 60_000)
	k.between(at+".initLimit", z.InitLimit, 1, 1000)
	k.between(at+".syncLimit", z.SyncLimit, 1, 1000)
	k.between(at+".snapRetain", z.SnapRetain, 3, 1000) // ZooKeeper itself takes 3 for less
	k.between(at+".purgeHours", z.PurgeHours, 0, 8760)
	if z.Heap != 0 && z.Heap < Heap(64*MiB) {
		k.bad("E14", at+".heap", fmt.Sprintf("want at least 64MiB, have %s", z.Heap), "write auto or a larger size")
	}
	k.znode(at+".chroot", z.Chroot)
}

// directory checks a place for data that has to outlive a reboot.
func (k *checker) directory(at, dir string) {
	switch {
	case !path.IsAbs(dir) || path.Clean(dir) != dir || strings.ContainsAny(dir, " \t\n\\\"'"):
		k.bad("E15", at, "want an absolute path without blanks, have "+shown(dir), "write it like /var/lib/mesos")
	case under(dir, "/tmp") || under(dir, "/var/tmp") || under(dir, "/run") || under(dir, "/dev/shm"):
		k.bad("E15", at, fmt.Sprintf("%s is emptied by a reboot or a clean-up", dir), "choose a directory below /var/lib")
	case slices.Contains(systemMounts, dir):
		k.bad("E15", at, fmt.Sprintf("%s belongs to the system", dir), "choose a directory of its own")
	}
}

var znodePath = regexp.MustCompile(`^(?:/[A-Za-z0-9][A-Za-z0-9_.-]*)+$`)

func (k *checker) znode(at, p string) {
	if !znodePath.MatchString(p) || p == "/zookeeper" || strings.HasPrefix(p, "/zookeeper/") {
		k.bad("E11", at, "want a ZooKeeper path below /, have "+shown(p), "write it like /marathon")
	}
}

func (k *checker) znodes() {
	s := &k.c.Spec.Services
	if s.Marathon.Chroot == s.ZooKeeper.Chroot {
		k.bad("E11", "spec.services.marathon.chroot", fmt.Sprintf("%s is Mesos' own znode", s.Marathon.Chroot), "choose another path")
	}
	if s.Chronos.Chroot == s.ZooKeeper.Chroot || s.Chronos.Chroot == s.Marathon.Chroot {
		k.bad("E11", "spec.services.chronos.chroot", fmt.Sprintf("%s is the znode of another service", s.Chronos.Chroot), "choose another path")
	}
}

func (k *checker) mesos(at string, m *Mesos) {
	k.directory(at+".workDir", m.WorkDir)
	k.directory(at+".logDir", m.LogDir)
	own := map[string]string{
		"zk": "from the ZooKeeper nodes", "ip": "from the node's address", "hostname": "from the node's address", "advertise_ip": "from the node's address",
		"work_dir": "by workDir", "log_dir": "by logDir",
	}
	master, agent := clone(own), clone(own)
	master["quorum"], master["port"], master["cluster"] = "from the number of masters", "by port", "from metadata.name"
	master["credentials"] = "by spec.secrets.mesosCredential"
	agent["master"], agent["port"], agent["attributes"], agent["resources"] = "from the masters", "by agentPort", "by the group's attributes", "by the group's resources"
	agent["credential"], agent["containerizers"] = "by spec.secrets.mesosCredential", "from docker.enabled"
	k.flags(at+".flags.master", m.Flags.Master, master)
	k.flags(at+".flags.agent", m.Flags.Agent, agent)
	if _, given := m.Flags.Agent["checkpoint"]; given {
		k.lookupDistro()
		if k.distro != nil && !k.distro.Features.AgentCheckpointFlag {
			k.bad("E13", at+".flags.agent.checkpoint", fmt.Sprintf("Mesos of %s does not start with this flag", k.distro.Name), "remove it: since 0.22 slaves always checkpoint")
		}
	}
}

func clone(m map[string]string) map[string]string {
	c := make(map[string]string, len(m)+8)
	for key, value := range m {
		c[key] = value
	}
	return c
}

var flagName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// flags checks settings that are passed through; own are those set elsewhere, with where.
func (k *checker) flags(at string, flags, own map[string]string) {
	for _, name := range sortedKeys(flags) {
		here := at + "." + name
		switch where, taken := own[name]; {
		case strings.HasPrefix(name, "-"):
			k.bad("E01", here, "a flag is written without dashes", "write "+strings.TrimLeft(name, "-"))
		case !flagName.MatchString(name):
			k.bad("E01", here, "is not the name of a flag", "write it as the manual does, without dashes")
		case taken:
			k.bad("E01", here, "is set "+where, "remove it")
		default:
			k.text(here, flags[name])
		}
	}
}

func (k *checker) docker(at string, d *Docker) {
	for i, m := range d.RegistryMirrors {
		k.url(fmt.Sprintf("%s.registryMirrors[%d]", at, i), m, "https", "http")
	}
	for i, r := range d.InsecureRegistries {
		here := fmt.Sprintf("%s.insecureRegistries[%d]", at, i)
		p, err := netip.ParsePrefix(r)
		switch {
		case err == nil && p.Bits() < 16:
			k.bad("E01", here, fmt.Sprintf("%s trusts %d bits of addresses without TLS", r, 32-p.Bits()), "name the registry as host:port")
		case err != nil && (strings.Contains(r, "/") || r == "" || strings.ContainsAny(r, " \"'\n")):
			k.bad("E01", here, "want host:port or a network, have "+shown(r), "write it without scheme")
		}
	}
	if d.StorageDriver != "" {
		k.oneOf(at+".storageDriver", d.StorageDriver, "overlay2", "overlay", "aufs", "btrfs", "devicemapper", "vfs", "zfs")
	}
}

var packageVersion = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+:~_-]*$`)

func (k *checker) version(at, v string) {
	if !packageVersion.MatchString(v) {
		k.bad("E13", at, "want distro or a package version, have "+shown(v), "copy it from the repository")
	}
}

// bridgedKeys are the top-level keys of bridged.yaml; bridged itself checks the rest at start.
var bridgedKeys = []string{"allow_template_labels", "dialect", "drain", "groups", "haproxy", "health", "http", "listen", "log", "marathon", "metrics_listen", "state_dir"}

func (k *checker) bridged(at string, b *Bridged) {
	if b.URL != "" {
		k.url(at+".url", b.URL, "https", "http")
		if digest, err := hex.DecodeString(b.SHA256); err != nil || len(digest) != 32 {
			k.bad("E01", at+".sha256", "want 64 hexadecimal digits, have "+shown(b.SHA256), "copy it from sha256sum")
		}
	} else if b.SHA256 != "" {
		k.bad("E01", at+".sha256", "is given without url", "remove it")
	}
	for _, key := range sortedKeys(b.Config) {
		here := at + ".config." + key
		switch {
		case !slices.Contains(bridgedKeys, key):
			k.bad("E01", here, "is not a key of bridged.yaml", didYouMean(key, bridgedKeys))
		case key == "metrics_listen":
			k.bad("E01", here, "is set from the node's address and port", "remove it")
		case key == "marathon":
			if m, ok := b.Config[key].(map[string]any); ok && m["urls"] != nil {
				k.bad("E01", here+".urls", "is filled in from the Marathon nodes", "remove it")
			}
		}
	}
}

// ports checks that the services of one node do not ask for the same port, and
// that none lies in what Mesos hands out to tasks.
func (k *checker) ports() {
	s := &k.c.Spec.Services
	type use struct {
		key  string
		port int
		on   Role // "" for every node
	}
	uses := []use{
		{"zookeeper.clientPort", s.ZooKeeper.ClientPort, RoleZooKeeper},
		{"mesos.port", s.Mesos.Port, RoleMaster},
		{"mesos.agentPort", s.Mesos.AgentPort, RoleSlave},
		{"marathon.port", s.Marathon.Port, RoleMarathon},
		{"chronos.port", s.Chronos.Port, RoleChronos},
		{"haproxy.statsPort", s.HAProxy.StatsPort, ""},
		{"bridged.port", s.Bridged.Port, ""},
	}
	fixed := []use{{"SSH", 22, ""}, {"ZooKeeper's follower port", 2888, RoleZooKeeper}, {"ZooKeeper's election port", 3888, RoleZooKeeper}}
	for i, u := range uses {
		at := "spec.services." + u.key
		if u.port < 1 || u.port > 65535 {
			k.bad("E11", at, fmt.Sprintf("want a port from 1 to 65535, have %d", u.port), "correct it")
			continue
		}
		if u.port >= 31000 && u.port <= 32000 {
			k.bad("E11", at, fmt.Sprintf("%d lies in 31000-32000, which Mesos gives to tasks", u.port), "choose a port outside it")
		}
		for _, o := range slices.Concat(fixed, uses[:i]) {
			if o.port == u.port && k.together(o.on, u.on) {
				k.bad("E11", at, fmt.Sprintf("port %d is taken by %s on the same node", u.port, o.key), "change one of the two")
				break
			}
		}
	}
}

// together reports whether some group has both roles; "" is on every node.
func (k *checker) together(a, b Role) bool {
	if a == "" || b == "" {
		return true
	}
	return slices.ContainsFunc(k.c.Spec.Groups, func(g Group) bool { return g.has(a) && g.has(b) })
}

func (k *checker) lookupDistro() {
	ref := &k.c.Spec.Distro
	if ref.Inline != nil {
		k.distro = ref.Inline
	} else if k.distro == nil {
		k.distro, _ = k.manifests.Get(ref.Name)
	}
}

func (k *checker) distroRef() {
	const at = "spec.distro"
	ref := &k.c.Spec.Distro
	if ref.Inline == nil && ref.Name == "" {
		k.missing(at, "name a manifest of `clusterctl distro list`: "+strings.Join(k.manifests.Names(), ", "))
		return
	}
	k.lookupDistro()
	if k.distro == nil {
		k.bad("E13", at, "unknown distro "+shown(ref.Name), didYouMean(ref.Name, k.manifests.Names()))
		return
	}
	if ref.Inline != nil {
		for _, p := range ref.Inline.check() {
			k.bad(cmp.Or(p.Code, "E13"), join(at, p.Path), p.What, p.Remedy)
		}
	}
	if k.c.Spec.Image.Packages != "install" || !slices.Contains(operatingSystems, k.c.Spec.Image.OS) {
		return
	}
	var roles []Role
	for i := range k.c.Spec.Groups {
		roles = append(roles, k.c.Spec.Groups[i].Roles...)
	}
	d := k.distro.with(&k.c.Spec.Services)
	if len(d.Packages[k.c.Spec.Image.OS]) == 0 {
		k.bad("E13", at, fmt.Sprintf("%s has no packages for %s", d.Name, k.c.Spec.Image.OS),
			fmt.Sprintf("it has them for %s; else write spec.image.packages: prebaked", or(strings.Join(sortedKeys(d.Packages), ", "), "no OS")))
		return
	}
	for _, need := range d.Lacks(k.c.Spec.Image.OS, roles, k.c.Spec.Services.Docker.Enabled, k.c.Spec.Services.Bridged.URL == "") {
		k.bad("E13", at, fmt.Sprintf("%s has no package %s for %s", d.Name, need, k.c.Spec.Image.OS), "add it to the manifest, or write spec.image.packages: prebaked")
	}
}
