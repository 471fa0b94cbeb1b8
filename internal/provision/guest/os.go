package guest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"bridged/internal/provision"
)

// family is how a guest gets its packages.
type family int

const (
	apt    family = iota // Debian, Ubuntu
	rpm                  // Red Hat and its kin: yum or dnf
	photon               // tdnf
)

// guestOS is what differs between guests.
type guestOS struct {
	name   string
	family family

	zookeeperConf   string // directory of zoo.cfg
	zookeeperScript string // zkServer.sh
	zookeeperUser   string
	myid            string // "" when it stands in the data directory
	bareMesos       bool   // the mesos package brings neither units nor an init wrapper
}

func guestOf(name string) (guestOS, error) {
	switch {
	case strings.HasPrefix(name, "debian"), strings.HasPrefix(name, "ubuntu"):
		return guestOS{
			name: name, family: apt,
			zookeeperConf: "/etc/zookeeper/conf", zookeeperScript: "/usr/share/zookeeper/bin/zkServer.sh", zookeeperUser: "zookeeper",
			// The package links <default data directory>/myid to it.
			myid: "/etc/zookeeper/conf/myid",
		}, nil
	case strings.HasPrefix(name, "el"):
		return guestOS{
			name: name, family: rpm,
			zookeeperConf: "/etc/zookeeper/conf", zookeeperScript: "/opt/mesosphere/zookeeper/bin/zkServer.sh", zookeeperUser: "root",
		}, nil
	case strings.HasPrefix(name, "photon"):
		return guestOS{
			name: name, family: photon,
			zookeeperConf: "/etc/zookeeper", zookeeperScript: "/usr/share/zookeeper/bin/zkServer.sh", zookeeperUser: "zookeeper",
			bareMesos: true,
		}, nil
	}
	return guestOS{}, fmt.Errorf("spec.image.os: no guest files for %q; want debian12, debian13, ubuntu22, ubuntu24, el7, el8, el9, photon3, photon4 or photon5", name)
}

// repositories writes the package sources of the distro and pins the exact
// versions, so that an upgrade by hand does not move them.
func (b *builder) repositories() error {
	if b.spec.Image.Packages == "prebaked" {
		return nil
	}
	proxy := b.spec.Network.Proxy
	switch b.os.family {
	case apt:
		var pins strings.Builder
		versions := b.versions()
		for _, name := range slices.Sorted(maps.Keys(versions)) {
			if versions[name] != "" {
				fmt.Fprintf(&pins, "Package: %s\nPin: version %s\nPin-Priority: 1001\n\n", name, versions[name])
			}
		}
		if pins.Len() > 0 {
			b.add(file{path: "/etc/apt/preferences.d/clusterctl", content: pins.String(), early: true})
		}
	default:
		for _, repo := range b.want.Distro.Repos[b.os.name] {
			var text strings.Builder
			fmt.Fprintf(&text, "[%s]\nname=%s\nbaseurl=%s\nenabled=1\n", repo.ID, repo.ID, repo.URL)
			switch {
			case strings.Contains(repo.GPGKey, "://"):
				fmt.Fprintf(&text, "gpgcheck=1\ngpgkey=%s\n", repo.GPGKey)
			case repo.GPGKey != "":
				key := "/etc/pki/rpm-gpg/clusterctl-" + repo.ID
				b.add(file{path: key, content: ensureNewline(repo.GPGKey), early: true})
				fmt.Fprintf(&text, "gpgcheck=1\ngpgkey=file://%s\n", key)
			default:
				text.WriteString("gpgcheck=1\n")
			}
			if proxy.HTTP != "" {
				fmt.Fprintf(&text, "proxy=%s\n", proxy.HTTP)
			}
			b.add(file{path: "/etc/yum.repos.d/clusterctl-" + repo.ID + ".repo", content: text.String(), early: true})
		}
	}
	return nil
}

// aptSources hands the repositories to cloud-init's apt module, which brings the keys in place.
func (b *builder) aptSources(doc *ordered) {
	if b.os.family != apt || b.spec.Image.Packages == "prebaked" {
		return
	}
	var conf, sources ordered
	if p := b.spec.Network.Proxy; p.HTTP != "" {
		conf.set("http_proxy", p.HTTP)
	}
	if p := b.spec.Network.Proxy; p.HTTPS != "" {
		conf.set("https_proxy", p.HTTPS)
	}
	for _, repo := range b.want.Distro.Repos[b.os.name] {
		components := repo.Components
		if components == "" {
			components = "main"
		}
		var source ordered
		signed := ""
		if strings.Contains(repo.GPGKey, "BEGIN PGP") {
			signed = "[signed-by=$KEY_FILE] "
		}
		source.set("source", strings.TrimSpace("deb "+signed+repo.URL+" "+repo.Suite+" "+components))
		if signed != "" {
			source.set("key", ensureNewline(repo.GPGKey))
		}
		sources.set("clusterctl-"+repo.ID+".list", source)
	}
	if len(sources.keys) > 0 {
		conf.set("sources", sources)
	}
	if len(conf.keys) > 0 {
		doc.set("apt", conf)
	}
}

// versions are the packages that this node needs, with their exact versions; ""
// for what the OS has.
func (b *builder) versions() map[string]string {
	var needs []string
	for _, s := range []struct {
		service string
		here    bool
	}{
		{"zookeeper", b.n.Has(provision.RoleZooKeeper)},
		{"docker", b.spec.Services.Docker.Enabled},
		{"haproxy", b.proxied},
		{"mesos", b.mesosHere()},
		{"marathon", b.n.Has(provision.RoleMarathon)},
		{"chronos", b.n.Has(provision.RoleChronos)},
		{"bridged", b.proxied && b.spec.Services.Bridged.URL == ""},
	} {
		if s.here {
			needs = append(needs, s.service)
		}
	}
	out := map[string]string{}
	for _, p := range b.want.Distro.PackagesFor(b.os.name, needs) {
		out[p.Name] = p.Version
	}
	return out
}

// mesosHere: schedulers load libmesos, so that they need the package too.
func (b *builder) mesosHere() bool {
	return b.n.Has(provision.RoleMaster) || b.n.Has(provision.RoleSlave) ||
		b.n.Has(provision.RoleMarathon) || b.n.Has(provision.RoleChronos)
}

// packageList is what cloud-init installs: a name, or a [name, version] pair.
func (b *builder) packageList() []any {
	versions := b.versions()
	names := append(slices.Collect(maps.Keys(versions)), b.packages...)
	slices.Sort(names)
	list := []any{}
	for _, name := range slices.Compact(names) {
		if v := versions[name]; v != "" {
			list = append(list, flow{name, v})
			continue
		}
		list = append(list, name)
	}
	return list
}

func ensureNewline(s string) string {
	if s == "" || strings.HasSuffix(s, "\n") {
		return s
	}
	return s + "\n"
}
