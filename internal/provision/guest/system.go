package guest

import (
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"bridged/internal/provision"
)

// users makes the login user, with keys and without a password.
func (b *builder) users(doc *ordered) error {
	var user ordered
	user.set("name", b.spec.Access.User)
	user.set("gecos", "Operator")
	user.set("shell", "/bin/bash")
	user.set("lock_passwd", true)
	user.set("sudo", "ALL=(ALL) NOPASSWD:ALL")
	keys := []string{}
	for i, key := range b.spec.Access.SSHKeys {
		name := fmt.Sprintf("access.sshKeys[%d]", i)
		text := key.Text
		if text == "" {
			var err error
			if text, err = b.secret(name); err != nil {
				return fmt.Errorf("spec.%s: %w", name, err)
			}
		}
		if text = strings.TrimSpace(text); text == "" || strings.ContainsAny(text, "\r\n\x00") {
			return fmt.Errorf("spec.%s: want one public key on one line", name)
		}
		keys = append(keys, text)
	}
	if len(keys) > 0 {
		user.set("ssh_authorized_keys", keys)
	}
	doc.set("users", []ordered{user})
	return nil
}

// disks formats data disks in the order of the blueprint (/dev/sdb, sdc …) and
// mounts them by label, so that a disk that comes up under another name is
// still found. A disk that has a file system keeps it.
func (b *builder) disks(doc *ordered) {
	if len(b.n.Disks) == 0 {
		return
	}
	var setup ordered
	fs, mounts := []ordered{}, [][]string{}
	for i, d := range b.n.Disks {
		device := "/dev/sd" + string(rune('b'+i))
		var table ordered
		table.set("table_type", "gpt")
		table.set("layout", true)
		table.set("overwrite", false)
		setup.set(device, table)

		label := diskLabel(d.Name)
		var entry ordered
		entry.set("label", label)
		entry.set("filesystem", d.FS)
		entry.set("device", device+"1")
		entry.set("overwrite", false)
		fs = append(fs, entry)
		mounts = append(mounts, []string{"LABEL=" + label, d.Mount, d.FS, "defaults,noatime,nofail", "0", "2"})
	}
	doc.set("disk_setup", setup)
	doc.set("fs_setup", fs)
	doc.set("mounts", mounts)
}

// diskLabel fits XFS, whose labels have at most 12 characters.
func diskLabel(name string) string {
	if len(name) > 12 {
		name = name[:12]
	}
	return name
}

func (b *builder) time(doc *ordered) {
	servers := b.spec.Network.NTP
	if len(servers) == 0 {
		return
	}
	var ntp ordered
	ntp.set("enabled", true)
	ntp.set("servers", servers)
	doc.set("ntp", ntp)
}

// node adds the script and units that start the services and report.
func (b *builder) node() error {
	script := file{path: "/usr/local/sbin/clusterctl-node", mode: "0755", early: true}
	data := struct {
		Services        []service
		ReserveMilliCPU int64
		ReserveMiB      int64
		ResourcesFile   string
	}{Services: b.services, ReserveMilliCPU: int64(b.reserve.CPUs * 1000), ReserveMiB: b.reserve.Memory.MiB()}
	if b.reserve != (provision.Reserve{}) {
		data.ResourcesFile = path.Join(b.want.Distro.Layout.AgentConf, "resources")
		if b.os.bareMesos {
			data.ResourcesFile = "/etc/clusterctl/mesos-slave-resources.env"
		}
	}
	if err := b.template(script, "clusterctl-node.sh.tmpl", data); err != nil {
		return err
	}
	for _, unit := range []string{"clusterctl-node.service", "clusterctl-report.service", "clusterctl-report.timer"} {
		f := file{path: "/etc/systemd/system/" + unit, early: true}
		if err := b.template(f, unit+".tmpl", struct{ Cluster string }{b.n.Cluster}); err != nil {
			return err
		}
	}
	b.boot = append(b.boot, "/usr/local/sbin/clusterctl-node phase packages 'installing packages' 20 || true")
	b.add(file{path: "/etc/sysctl.d/60-clusterctl.conf", content: "vm.swappiness = 1\nnet.core.somaxconn = 4096\n"})
	b.run = append(b.run, "sysctl -q --system || true")
	return nil
}

// addons are the operator's own packages, files and units.
func (b *builder) addons() error {
	for _, a := range b.spec.Addons {
		if len(a.Roles) > 0 && !slices.ContainsFunc(a.Roles, b.n.Has) {
			continue
		}
		if a.Package != "" {
			b.packages = append(b.packages, a.Package)
		}
		for _, p := range slices.Sorted(maps.Keys(a.Files)) {
			b.add(file{path: p, content: a.Files[p]})
		}
		if a.Unit != "" {
			unit := a.Name + ".service"
			b.add(file{path: "/etc/systemd/system/" + unit, content: ensureNewline(a.Unit)})
			b.services = append(b.services, service{Name: a.Name, Unit: unit, Check: "active " + unit})
		}
	}
	return nil
}

// metaData is the datasource's own document: identity and network. MAC
// addresses are chosen before the machine exists, so that it is complete when
// the clone is made; cloud-init then fails loudly when no card has the address.
func metaData(network *provision.Network, n *provision.Node) []byte {
	var doc, version, ethernets ordered
	doc.set("instance-id", n.InstanceID())
	host := n.Name
	if network.Domain != "" {
		host += "." + network.Domain
	}
	doc.set("local-hostname", host)
	doc.set("cleanup-guestinfo", []string{"userdata"})

	name := network.Interface
	if name == "" {
		name = "eth0"
	}
	for i, nic := range n.NICs {
		if i > 0 {
			name = "eth" + strconv.Itoa(i)
		}
		var match, card ordered
		match.set("macaddress", nic.MAC)
		card.set("match", match)
		card.set("set-name", name)
		card.set("dhcp4", !nic.Address.IsValid())
		if nic.Address.IsValid() {
			card.set("addresses", []string{nic.Address.String()})
			if i == 0 {
				if network.Gateway.IsValid() {
					var route ordered
					route.set("to", "0.0.0.0/0")
					route.set("via", network.Gateway.String())
					card.set("routes", []ordered{route})
				}
				resolvers(&card, network.DNS, network.Domain)
			}
		}
		if network.MTU > 0 {
			card.set("mtu", network.MTU)
		}
		ethernets.set(name, card)
	}
	version.set("version", 2)
	version.set("ethernets", ethernets)
	doc.set("network", version)
	return doc.appendTo(nil)
}

func resolvers(card *ordered, servers []netip.Addr, domain string) {
	if len(servers) == 0 {
		return
	}
	var list []string
	for _, a := range servers {
		list = append(list, a.String())
	}
	var ns ordered
	ns.set("addresses", list)
	if domain != "" {
		ns.set("search", []string{domain})
	}
	card.set("nameservers", ns)
}
