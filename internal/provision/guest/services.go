package guest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"bridged/internal/provision"
)

// principal is the name under which frameworks and slaves authenticate.
const principal = "bridged-cluster"

func (b *builder) zookeeper() error {
	if !b.n.Has(provision.RoleZooKeeper) {
		return nil
	}
	z := b.spec.Services.ZooKeeper
	type server struct {
		ID      int
		Address netip.Addr
	}
	var servers []server
	for _, m := range b.ensemble {
		servers = append(servers, server{m.ServerID, m.Address()})
	}
	err := b.template(file{path: path.Join(b.os.zookeeperConf, "zoo.cfg")}, "zoo.cfg.tmpl", struct {
		provision.ZooKeeper
		Servers []server
	}{z, servers})
	if err != nil {
		return err
	}
	myid := b.os.myid
	if myid == "" || z.DataDir != "/var/lib/zookeeper" {
		myid = path.Join(z.DataDir, "myid")
	}
	b.add(file{path: myid, content: strconv.Itoa(b.n.ServerID) + "\n"})

	// Without a size the JVM takes its share of what the machine has, so that a
	// resize changes no file.
	heap := "-XX:MaxRAMPercentage=25"
	if z.Heap > 0 {
		heap = fmt.Sprintf("-Xmx%dm", provision.Bytes(z.Heap).MiB())
	}
	err = b.template(file{path: "/etc/systemd/system/zookeeper.service"}, "zookeeper.service.tmpl", struct {
		User, ConfDir, Script, Heap string
	}{b.os.zookeeperUser, b.os.zookeeperConf, b.os.zookeeperScript, heap})
	if err != nil {
		return err
	}
	b.run = append(b.run, fmt.Sprintf("mkdir -p %[1]s && chown -R %[2]s: %[1]s", shellQuote(z.DataDir), b.os.zookeeperUser))
	b.services = append(b.services, service{"zookeeper", "zookeeper.service",
		fmt.Sprintf("zookeeper %s %d", b.n.Address(), z.ClientPort)})
	return nil
}

// zkURL is the ensemble in Mesos' notation, servers in the order of their ids: the same bytes on every node.
func (b *builder) zkURL(chroot string) (string, error) {
	auth, err := b.optional("zookeeperAuth")
	if err != nil {
		return "", err
	}
	if auth != "" {
		auth += "@"
	}
	var hosts []string
	for _, m := range b.ensemble {
		hosts = append(hosts, netip.AddrPortFrom(m.Address(), uint16(b.spec.Services.ZooKeeper.ClientPort)).String())
	}
	return "zk://" + auth + strings.Join(hosts, ",") + chroot, nil
}

func (b *builder) mesos() error {
	master, slave := b.n.Has(provision.RoleMaster), b.n.Has(provision.RoleSlave)
	// The package brings and starts both units; the one that is not this node's role stays masked.
	if !master {
		b.masks = append(b.masks, "mesos-master.service")
	}
	if !slave {
		b.masks = append(b.masks, "mesos-slave.service")
	}
	if !b.mesosHere() {
		return nil
	}
	zk, err := b.zkURL(b.spec.Services.ZooKeeper.Chroot)
	if err != nil {
		return err
	}
	b.add(file{path: "/etc/mesos/zk", content: zk + "\n", mode: b.zkMode(zk)})
	credential, err := b.optional("mesosCredential")
	if err != nil {
		return err
	}
	if master {
		if err := b.mesosMaster(zk, credential); err != nil {
			return err
		}
	}
	if slave {
		return b.mesosSlave(zk, credential)
	}
	return nil
}

// zkMode hides the digest that an address with credentials carries.
func (b *builder) zkMode(zk string) string {
	if strings.Contains(zk, "@") {
		return "0600"
	}
	return "0644"
}

func (b *builder) mesosMaster(zk, credential string) error {
	m := b.spec.Services.Mesos
	quorum := m.Quorum
	if quorum == 0 {
		quorum = len(b.masters)/2 + 1
	}
	flags := map[string]string{
		"quorum":   strconv.Itoa(quorum),
		"work_dir": m.WorkDir,
		"log_dir":  m.LogDir,
		"cluster":  b.n.Cluster,
		"port":     strconv.Itoa(m.Port),
	}
	// Maintenance matches machines on both, so neither is left to a guess.
	flags["hostname"], flags["ip"] = b.n.Address().String(), b.n.Address().String()
	if credential != "" {
		list, err := json.Marshal(map[string]any{"credentials": []map[string]string{{"principal": principal, "secret": credential}}})
		if err != nil {
			return err
		}
		b.add(file{path: "/etc/mesos/credentials.json", content: string(list) + "\n", mode: "0600"})
		flags["credentials"] = "/etc/mesos/credentials.json"
		flags["authenticate_frameworks"] = "true"
		flags[b.since("1.0", "authenticate_agents", "authenticate_slaves")] = "true"
	}
	maps.Copy(flags, m.Flags.Master)
	if err := b.mesosFlags("master", zk, flags, "zookeeper.service"); err != nil {
		return err
	}
	b.services = append(b.services, service{"mesos-master", "mesos-master.service",
		fmt.Sprintf("http http://%s/health", netip.AddrPortFrom(b.n.Address(), uint16(m.Port)))})
	return nil
}

func (b *builder) mesosSlave(zk, credential string) error {
	m := b.spec.Services.Mesos
	flags := map[string]string{
		"work_dir":                      m.WorkDir,
		"log_dir":                       m.LogDir,
		"port":                          strconv.Itoa(m.AgentPort),
		"containerizers":                "mesos",
		"executor_registration_timeout": "5mins", // a first pull of an image takes minutes
		"recover":                       "reconnect",
		"isolation":                     "cgroups/cpu,cgroups/mem",
	}
	if b.spec.Services.Docker.Enabled {
		flags["containerizers"] = "docker,mesos"
	}
	if a := b.n.Address(); a.IsValid() {
		flags["hostname"], flags["ip"] = a.String(), a.String()
	}
	if len(b.n.Attributes) > 0 {
		flags["attributes"] = mesosList(b.n.Attributes)
	}
	if r := b.group().Resources; len(r) > 0 {
		flags["resources"] = mesosList(r)
	} else {
		b.reserve = b.group().Reserve
	}
	if b.want.Distro.Features.AgentCheckpointFlag {
		flags["checkpoint"] = "true"
	}
	if credential != "" {
		one, err := json.Marshal(map[string]string{"principal": principal, "secret": credential})
		if err != nil {
			return err
		}
		b.add(file{path: "/etc/mesos/credential.json", content: string(one) + "\n", mode: "0600"})
		flags["credential"] = "/etc/mesos/credential.json"
	}
	maps.Copy(flags, m.Flags.Agent)
	if err := b.mesosFlags("slave", zk, flags, "docker.service zookeeper.service mesos-master.service"); err != nil {
		return err
	}
	b.services = append(b.services, service{"mesos-slave", "mesos-slave.service",
		fmt.Sprintf("http http://%s/health", b.local(m.AgentPort))})
	return nil
}

// local is where a service of this node answers: the node's fixed address, or
// loopback where the address comes from DHCP.
func (b *builder) local(port int) string {
	a := b.n.Address()
	if !a.IsValid() {
		a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.AddrPortFrom(a, uint16(port)).String()
}

// mesosList writes name:value pairs as Mesos reads attributes and resources.
func mesosList(pairs map[string]string) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(pairs)) {
		list = append(list, k+":"+pairs[k])
	}
	return strings.Join(list, ";")
}

// group is the node's group.
func (b *builder) group() provision.Group {
	for _, g := range b.spec.Groups {
		if g.Name == b.n.Group {
			return g
		}
	}
	return provision.Group{HAProxy: true}
}

// mesosFlags writes one file per flag, which the packaged init wrapper reads
// (it ignores nearly all of /etc/default/mesos-*), or, where the package is bare,
// an environment file and a unit.
func (b *builder) mesosFlags(role, zk string, flags map[string]string, after string) error {
	unit := "mesos-" + role + ".service"
	if b.os.bareMesos {
		var env strings.Builder
		env.WriteString("# Written by clusterctl.\n")
		key := "MESOS_ZK"
		if role == "slave" {
			key = "MESOS_MASTER"
		}
		fmt.Fprintf(&env, "%s=%s\n", key, quoteEnv(zk))
		for _, name := range slices.Sorted(maps.Keys(flags)) {
			fmt.Fprintf(&env, "MESOS_%s=%s\n", strings.ToUpper(name), quoteEnv(flags[name]))
		}
		b.add(file{path: "/etc/clusterctl/mesos-" + role + ".env", content: env.String(), mode: "0600"})
		return b.template(file{path: "/etc/systemd/system/" + unit}, "mesos-bare.service.tmpl", struct{ Role, After, Prefix string }{
			role, after, b.want.Distro.Layout.Prefix,
		})
	}
	dir := b.want.Distro.Layout.MasterConf
	if role == "slave" {
		dir = b.want.Distro.Layout.AgentConf
	}
	for _, name := range slices.Sorted(maps.Keys(flags)) {
		b.setting(dir, name, flags[name])
	}
	extra := ""
	if role == "slave" {
		extra = "# Tasks live on while the slave restarts.\nKillMode=process\n"
	}
	b.dropIn(unit, after, extra)
	return nil
}

// dropIn orders a packaged unit behind others of this node and makes it try for
// ever: order between nodes is by retry.
func (b *builder) dropIn(unit, after, service string) {
	b.add(file{path: "/etc/systemd/system/" + unit + ".d/10-clusterctl.conf", content: "# Written by clusterctl.\n[Unit]\n" +
		"After=" + strings.TrimSpace("network-online.target "+after) + "\nWants=network-online.target\nStartLimitIntervalSec=0\n\n" +
		"[Service]\nRestart=always\nRestartSec=5\n" + service})
}

func (b *builder) marathon() error {
	if !b.n.Has(provision.RoleMarathon) {
		return nil
	}
	m := b.spec.Services.Marathon
	master, err := b.zkURL(b.spec.Services.ZooKeeper.Chroot)
	if err != nil {
		return err
	}
	state, err := b.zkURL(m.Chroot)
	if err != nil {
		return err
	}
	args := map[string]string{
		"hostname":  b.n.Address().String(),
		"http_port": strconv.Itoa(m.Port),
		"master":    master,
		"zk":        state,
	}
	if m.HA && b.want.Distro.Layout.Marathon == "confdir" {
		args["ha"] = ""
	}
	credential, err := b.optional("mesosCredential")
	if err != nil {
		return err
	}
	if credential != "" {
		b.add(file{path: "/etc/mesos/marathon.secret", content: credential, mode: "0600"})
		b.run = append(b.run, "! id marathon >/dev/null 2>&1 || chown marathon: /etc/mesos/marathon.secret")
		args["mesos_authentication_principal"] = principal
		args["mesos_authentication_secret_file"] = "/etc/mesos/marathon.secret"
		if b.want.Distro.Layout.Marathon != "confdir" {
			args["mesos_authentication"] = ""
		}
	}
	login, err := b.optional("marathonAuth")
	if err != nil {
		return err
	}
	if login != "" {
		args["http_credentials"] = login
	}
	maps.Copy(args, m.Args)

	if b.want.Distro.Layout.Marathon == "confdir" {
		for _, name := range slices.Sorted(maps.Keys(args)) {
			dir, file := "/etc/marathon/conf", file{content: args[name] + "\n", mode: "0600"}
			if args[name] == "" { // ?flag is a flag without a value
				file.path, file.content, file.mode = path.Join(dir, "?"+name), "", "0644"
			} else {
				file.path = path.Join(dir, name)
			}
			b.add(file)
		}
	} else {
		var env strings.Builder
		env.WriteString("# Written by clusterctl.\n")
		fmt.Fprintf(&env, "MESOS_NATIVE_JAVA_LIBRARY=%s\n", quoteEnv(b.want.Distro.Layout.NativeLib))
		env.WriteString("MARATHON_MESOS_USER=\"root\"\n") // Marathon runs as marathon, tasks as root unless an app says otherwise
		for _, name := range slices.Sorted(maps.Keys(args)) {
			fmt.Fprintf(&env, "MARATHON_%s=%s\n", strings.ToUpper(name), quoteEnv(args[name]))
		}
		b.add(file{path: "/etc/default/marathon", content: env.String(), mode: "0600"})
	}
	b.dropIn("marathon.service", "zookeeper.service mesos-master.service", "")
	b.services = append(b.services, service{"marathon", "marathon.service", "http http://" + b.local(m.Port) + "/ping"})
	return nil
}

func (b *builder) chronos() error {
	if !b.n.Has(provision.RoleChronos) {
		return nil
	}
	c := b.spec.Services.Chronos
	master, err := b.zkURL(b.spec.Services.ZooKeeper.Chroot)
	if err != nil {
		return err
	}
	var hosts []string
	for _, m := range b.ensemble {
		hosts = append(hosts, netip.AddrPortFrom(m.Address(), uint16(b.spec.Services.ZooKeeper.ClientPort)).String())
	}
	args := map[string]string{
		"hostname":  b.n.Address().String(),
		"http_port": strconv.Itoa(c.Port), // its default is Marathon's
		"master":    master,
		"zk_hosts":  strings.Join(hosts, ","),
		"zk_path":   c.Chroot + "/state",
	}
	maps.Copy(args, c.Args)
	for _, name := range slices.Sorted(maps.Keys(args)) {
		b.add(file{path: path.Join("/etc/chronos/conf", name), content: args[name] + "\n", mode: b.zkMode(args[name])})
	}
	b.dropIn("chronos.service", "zookeeper.service mesos-master.service", "")
	b.services = append(b.services, service{"chronos", "chronos.service", "http http://" + b.local(c.Port) + "/scheduler/jobs"})
	return nil
}

func (b *builder) docker() error {
	d := b.spec.Services.Docker
	if !d.Enabled {
		return nil
	}
	conf := map[string]any{
		"log-driver": "json-file",
		"log-opts":   map[string]string{"max-size": "50m", "max-file": "3"},
	}
	if d.StorageDriver != "" {
		conf["storage-driver"] = d.StorageDriver
	}
	if len(d.RegistryMirrors) > 0 {
		conf["registry-mirrors"] = d.RegistryMirrors
	}
	if len(d.InsecureRegistries) > 0 {
		conf["insecure-registries"] = d.InsecureRegistries
	}
	text, err := json.MarshalIndent(conf, "", "  ")
	if err != nil {
		return err
	}
	b.add(file{path: "/etc/docker/daemon.json", content: string(text) + "\n"})
	extra := ""
	for _, p := range []struct{ name, value string }{
		{"HTTP_PROXY", b.spec.Network.Proxy.HTTP}, {"HTTPS_PROXY", b.spec.Network.Proxy.HTTPS},
		{"NO_PROXY", strings.Join(b.spec.Network.Proxy.No, ",")},
	} {
		if p.value != "" {
			extra += fmt.Sprintf("Environment=%s=%s\n", p.name, p.value)
		}
	}
	b.dropIn("docker.service", "", extra)
	b.services = append(b.services, service{"docker", "docker.service", "active docker.service"})
	return nil
}

// haproxy writes the file that HAProxy first starts from; bridged takes it over.
func (b *builder) haproxy() error {
	if !b.proxied {
		b.masks = append(b.masks, "haproxy.service", "bridged.service")
		return nil
	}
	password, err := b.optional("haproxyStats")
	if err != nil {
		return err
	}
	h := b.spec.Services.HAProxy
	bind := "127.0.0.1" // without a password the page is for the node alone
	if password != "" {
		bind = "*"
	}
	err = b.template(file{path: "/etc/haproxy/haproxy.cfg", mode: "0640"}, "haproxy.cfg.tmpl", struct {
		Bind, Password     string
		StatsPort, MaxConn int
	}{bind, password, h.StatsPort, h.MaxConn})
	if err != nil {
		return err
	}
	if err := b.template(file{path: "/etc/systemd/system/haproxy.service.d/10-clusterctl.conf"}, "haproxy-dropin.conf.tmpl", nil); err != nil {
		return err
	}
	b.services = append(b.services, service{"haproxy", "haproxy.service", "active haproxy.service"})
	return nil
}

// bridged writes its configuration: the Marathon nodes and nothing of the slaves.
func (b *builder) bridged() error {
	if !b.proxied {
		return nil
	}
	s := b.spec.Services
	conf := map[string]any{}
	maps.Copy(conf, s.Bridged.Config)
	marathon, err := section(conf, "marathon")
	if err != nil {
		return err
	}
	var urls []string
	for _, m := range b.marathons {
		a := m.Address()
		if !a.IsValid() {
			return fmt.Errorf("node %s runs Marathon and has no fixed address", m.Name)
		}
		urls = append(urls, "http://"+netip.AddrPortFrom(a, uint16(s.Marathon.Port)).String())
	}
	marathon["urls"] = urls
	login, err := b.optional("marathonAuth")
	if err != nil {
		return err
	}
	if login != "" {
		b.add(file{path: "/etc/bridged/marathon-auth", content: login + "\n", mode: "0600"})
		b.run = append(b.run, "! id bridged >/dev/null 2>&1 || chown bridged: /etc/bridged/marathon-auth")
		auth, err := section(marathon, "auth")
		if err != nil {
			return err
		}
		auth["basic_file"] = "/etc/bridged/marathon-auth"
	}
	if a := b.n.Address(); a.IsValid() {
		if _, set := conf["metrics_listen"]; !set {
			conf["metrics_listen"] = netip.AddrPortFrom(a, uint16(s.Bridged.Port)).String()
		}
	}
	text, err := yaml.Marshal(conf)
	if err != nil {
		return err
	}
	b.add(file{path: "/etc/bridged/bridged.yaml", content: "# Written by clusterctl.\n" + string(text)})
	b.dropIn("bridged.service", "haproxy.service", "")
	b.services = append(b.services, service{"bridged", "bridged.service", "http http://127.0.0.1:9377/readyz"})
	if s.Bridged.URL != "" {
		b.run = append(b.run, b.fetchBridged(s.Bridged.URL, s.Bridged.SHA256))
	}
	return nil
}

// fetchBridged installs the package at url after its digest was checked.
func (b *builder) fetchBridged(url, sum string) string {
	install := map[family]string{
		apt:    "apt-get install -y -o Dpkg::Options::=--force-confold",
		rpm:    "yum install -y",
		photon: "tdnf install -y --nogpgcheck",
	}[b.os.family]
	name := "/var/cache/clusterctl/" + path.Base(url)
	return fmt.Sprintf("mkdir -p /var/cache/clusterctl && curl -fsSL --retry 5 -o %[1]s %[2]s && echo %[3]s | sha256sum -c - && %[4]s %[1]s",
		shellQuote(name), shellQuote(url), shellQuote(sum+"  "+name), install)
}

// section is the mapping below key, a copy when the blueprint gave one.
func section(conf map[string]any, key string) (map[string]any, error) {
	out := map[string]any{}
	switch have := conf[key].(type) {
	case nil:
	case map[string]any:
		maps.Copy(out, have)
	default:
		return nil, fmt.Errorf("spec.services.bridged.config.%s: want a mapping, have %v", key, have)
	}
	conf[key] = out
	return out, nil
}

// since picks by the distro's Mesos version.
func (b *builder) since(version, from, before string) string {
	if versionLess(b.want.Distro.Version, version) {
		return before
	}
	return from
}

// versionLess compares dotted numbers, as far as both have them.
func versionLess(a, b string) bool {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range min(len(as), len(bs)) {
		x, _ := strconv.Atoi(strings.TrimFunc(as[i], notDigit))
		y, _ := strconv.Atoi(strings.TrimFunc(bs[i], notDigit))
		if x != y {
			return x < y
		}
	}
	return false
}

func notDigit(r rune) bool { return r < '0' || r > '9' }

// shellQuote makes one shell word of s.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// quoteEnv writes a value for systemd's EnvironmentFile, which is also what a shell reads.
func quoteEnv(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "`", "\\`").Replace(s) + `"`
}
