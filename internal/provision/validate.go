package provision

import (
	"encoding/hex"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
)

// checker collects what is wrong with a decoded blueprint. Rules have codes:
//
//	E01 schema         E06 server ids      E11 ports and znodes   E16 unavailable
//	E02 roles given    E07 addresses       E12 names              E17 plain secret
//	E03 ensemble odd   E08 enough of them  E13 distro             E18 guest data size
//	E04 masters odd    E09 fixed address   E14 sizes              E19 ensemble resized
//	E05 one ZooKeeper  E10 role conflict   E15 mounts and paths   W01… warnings
type checker struct {
	c         *Cluster
	manifests *Manifests
	distro    *Distro // nil when unknown
	problems  Problems
}

// validate runs every offline rule; problems of decoding come with it.
func (c *Cluster) validate(manifests *Manifests) Problems {
	k := &checker{c: c, manifests: manifests}
	if !c.source.problems.taintAll() {
		k.metadata()
		k.provider()
		k.image()
		k.distroRef()
		k.network()
		k.access()
		k.secrets()
		k.services()
		k.sizes()
		k.groups()
		k.ensemble()
		k.addresses()
		k.topology()
		k.bounds()
		k.addons()
	}
	return append(slices.Clone(c.source.problems), k.problems...).sorted()
}

// taintAll reports whether nothing of the file could be read.
func (ps Problems) taintAll() bool {
	return slices.ContainsFunc(ps, func(p Problem) bool { return p.Path == "" })
}

// bad reports a problem at path, unless decoding complained there already, or
// in a way that explains why the path is absent.
func (k *checker) bad(code, at, what, remedy string) {
	if k.c.source.problems.taint(at) || k.misspelt(at) {
		return
	}
	k.problems = append(k.problems, Problem{
		Code: code, Path: at, Pos: k.c.source.position(at), What: what, Remedy: remedy, file: k.c.source.file,
	})
}

// misspelt reports whether path is absent from a mapping that has an unknown
// key, which is then probably what was meant.
func (k *checker) misspelt(at string) bool {
	if _, present := k.c.source.pos[at]; present || at == "" {
		return false
	}
	parent := outer(at)
	if k.misspelt(parent) {
		return true
	}
	return slices.ContainsFunc(k.c.source.problems, func(p Problem) bool { return p.What == unknownKey && outer(p.Path) == parent })
}

// outer is the path of what a path's value stands in.
func outer(path string) string { return path[:max(0, strings.LastIndexAny(path, ".["))] }

func (k *checker) missing(at, remedy string) { k.bad("E01", at, "is missing", remedy) }

// oneOf checks an enumeration.
func (k *checker) oneOf(at, have string, want ...string) {
	if !slices.Contains(want, have) {
		k.bad("E01", at, fmt.Sprintf("want one of %s, have %q", strings.Join(want, ", "), have), didYouMean(have, want))
	}
}

// pattern checks a name against a rule that the message spells out.
func (k *checker) pattern(code, at, have string, re *regexp.Regexp, rule string) bool {
	if re.MatchString(have) {
		return true
	}
	k.bad(code, at, fmt.Sprintf("want %s, have %s", rule, shown(have)), "choose another name")
	return false
}

// shown quotes a value for a message, shortened.
func shown(s string) string {
	if len(s) > 60 {
		return fmt.Sprintf("text of %d bytes", len(s))
	}
	return fmt.Sprintf("%q", s)
}

// text checks that a value is one printable line, because it ends up in files
// and commands where a second line would be a second statement.
func (k *checker) text(at, have string) bool {
	if strings.ContainsFunc(have, func(r rune) bool { return !unicode.IsPrint(r) }) {
		k.bad("E01", at, "holds a line break or another control character", "write it on one line")
		return false
	}
	return true
}

var (
	clusterName = regexp.MustCompile(`^[a-z](?:[a-z0-9-]{0,28}[a-z0-9])?$`)
	groupName   = regexp.MustCompile(`^[a-z](?:[a-z0-9-]{0,18}[a-z0-9])?$`)
	shortName   = regexp.MustCompile(`^[a-z](?:[a-z0-9_.-]{0,28}[a-z0-9])?$`)
	userName    = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,30}$`)
	domainName  = regexp.MustCompile(`^(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*$`)
	thumbprint  = regexp.MustCompile(`^[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){19}(?:(?::[0-9A-Fa-f]{2}){12})?$`)
)

func (k *checker) metadata() {
	c := k.c
	switch {
	case c.APIVersion == "":
		k.missing("apiVersion", "write apiVersion: "+APIVersion)
	case c.APIVersion != APIVersion:
		k.bad("E01", "apiVersion", fmt.Sprintf("want %s, have %q", APIVersion, c.APIVersion), "this clusterctl reads "+APIVersion+" only")
	}
	switch {
	case c.Kind == "":
		k.missing("kind", "write kind: "+Kind)
	case c.Kind != Kind:
		k.bad("E01", "kind", fmt.Sprintf("want %s, have %q", Kind, c.Kind), "write kind: "+Kind)
	}
	if c.Metadata.Name == "" {
		k.missing("metadata.name", "name the cluster; the name is part of every VM's name")
	} else {
		k.pattern("E12", "metadata.name", c.Metadata.Name, clusterName, "1 to 30 lower-case letters, digits and dashes, a letter first and no dash last")
	}
	for _, key := range sortedKeys(c.Metadata.Labels) {
		at := "metadata.labels." + key
		if k.text(at, key) && k.text(at, c.Metadata.Labels[key]) && (len(key) > 80 || len(c.Metadata.Labels[key]) > 80) {
			k.bad("E12", at, "a label has at most 80 bytes", "shorten it")
		}
	}
}

func (k *checker) provider() {
	const at = "spec.provider"
	p := &k.c.Spec.Provider
	v := &p.VSphere
	k.oneOf(at+".type", p.Type, "vsphere")
	if v.Cluster == "" && len(v.Hosts) == 0 {
		k.missing(at+".vsphere.cluster", "name the compute cluster, or give hosts")
	}
	if v.Network == "" && !slices.ContainsFunc(k.c.Spec.Groups, func(g Group) bool { return g.Network != "" }) {
		k.missing(at+".vsphere.network", "name the port group of the nodes")
	}
	if len(v.Datastores) == 0 && v.Pod == "" && v.StoragePolicy == "" {
		k.missing(at+".vsphere.datastores", "name datastores, or give pod or storagePolicy")
	}
	if len(v.Datastores) > 0 && v.Pod != "" {
		k.bad("E01", at+".vsphere.pod", "stands beside datastores", "remove one of the two")
	}
	for i, glob := range v.Datastores {
		here := fmt.Sprintf("%s.vsphere.datastores[%d]", at, i)
		if _, err := path.Match(glob, "x"); err != nil || glob == "" {
			k.bad("E01", here, fmt.Sprintf("%s is not a name or a glob", shown(glob)), "write a name, or a pattern like shared-*")
		}
	}
	for key, name := range map[string]string{
		"datacenter": v.Datacenter, "cluster": v.Cluster, "resourcePool": v.ResourcePool,
		"folder": v.Folder, "network": v.Network, "pod": v.Pod, "storagePolicy": v.StoragePolicy,
	} {
		k.text(at+".vsphere."+key, name)
	}
	if f := v.Folder; f != "" && (path.Clean(f) != strings.TrimSuffix(f, "/") || strings.Contains(f, "..")) {
		k.bad("E01", at+".vsphere.folder", fmt.Sprintf("%s is not a folder path", shown(f)), "write it like clusters or teams/mesos")
	}
	if t := v.TLS.Thumbprint; t != "" && !thumbprint.MatchString(t) {
		k.bad("E01", at+".vsphere.tls.thumbprint", "want 20 or 32 bytes in hex with colons, have "+shown(t), "print it with `openssl x509 -noout -fingerprint -sha256`")
	}
	k.secret(at+".vsphere.auth.password", v.Auth.Password)
	k.secret(at+".vsphere.auth.token", v.Auth.Token)
	if v.Auth.Password.set() && v.Auth.Token.set() {
		k.bad("E01", at+".vsphere.auth.token", "stands beside password", "remove one of the two")
	}
	if s := v.Server.Text; s != "" {
		if u, err := url.Parse(s); k.text(at+".vsphere.server", s) && err == nil && u.User != nil {
			k.bad("E17", at+".vsphere.server", "holds a user or a password", "give auth.user and auth.password, the password as a reference")
		}
	}
}

// secret refuses a literal, without repeating it.
func (k *checker) secret(at string, v Value) {
	if v.Text != "" {
		k.bad("E17", at, "a secret stands in plain text", "write {env: NAME}, {file: path} or {exec: [command]}")
	}
}

// operatingSystems that guest files exist for.
var operatingSystems = []string{"debian12", "debian13", "ubuntu22", "ubuntu24", "el7", "el8", "el9", "photon3", "photon4", "photon5"}

func (k *checker) image() {
	const at = "spec.image"
	m := &k.c.Spec.Image
	given := []string{}
	for _, s := range []struct{ key, value string }{{"template", m.Template}, {"ova", m.OVA}, {"library", m.Library}} {
		if s.value != "" {
			given = append(given, s.key)
			k.text(at+"."+s.key, s.value)
		}
	}
	switch len(given) {
	case 0:
		k.missing(at+".template", "name a template, or give ova or library")
	case 1:
	default:
		k.bad("E01", at+"."+given[1], "stands beside "+given[0], "keep one of template, ova and library")
	}
	digest, err := hex.DecodeString(m.SHA256)
	switch {
	case m.OVA != "" && m.SHA256 == "":
		k.missing(at+".sha256", "give the digest of the OVA, as printed by sha256sum")
	case m.OVA == "" && m.SHA256 != "":
		k.bad("E01", at+".sha256", "is given without ova", "remove it")
	case m.OVA != "" && (err != nil || len(digest) != 32):
		k.bad("E01", at+".sha256", "want 64 hexadecimal digits, have "+shown(m.SHA256), "copy it from sha256sum")
	}
	if m.Library != "" {
		if lib, item, ok := strings.Cut(m.Library, "/"); !ok || lib == "" || item == "" {
			k.bad("E01", at+".library", fmt.Sprintf("want library/item, have %q", m.Library), "name the content library and the item in it")
		}
	}
	k.oneOf(at+".clone", string(m.Clone), string(CloneAuto), string(CloneLinked), string(CloneFull), string(CloneInstant))
	k.oneOf(at+".os", m.OS, operatingSystems...)
	k.oneOf(at+".packages", m.Packages, "install", "prebaked")
	if m.Clone == CloneLinked || m.Clone == CloneInstant {
		for i := range k.c.Spec.Groups {
			if k.c.Spec.Groups[i].Disks.Root > 0 {
				k.bad("W01", fmt.Sprintf("spec.groups[%d].disks.root", i), fmt.Sprintf("a %s clone can't have a larger root disk", m.Clone), "leave root out, or expect full clones here")
			}
		}
	}
}

func (k *checker) access() {
	const at = "spec.access"
	a := &k.c.Spec.Access
	k.pattern("E12", at+".user", a.User, userName, "a Unix user name of at most 31 lower-case letters, digits, _ and -")
	if a.User == "root" {
		k.bad("E12", at+".user", "want a user besides root", "choose another name; the user may use sudo")
	}
	if len(a.SSHKeys) == 0 {
		k.bad("W05", at+".sshKeys", "nobody can sign in to the nodes", "give a public key, as in {file: ~/.ssh/id_ed25519.pub}")
	}
	for i, key := range a.SSHKeys {
		here := fmt.Sprintf("%s.sshKeys[%d]", at, i)
		switch t := key.Text; {
		case t == "":
		case strings.Contains(t, "PRIVATE KEY"):
			k.bad("E17", here, "is a private key", "give the public one, and make a new pair")
		case !strings.HasPrefix(t, "ssh-") && !strings.HasPrefix(t, "ecdsa-") && !strings.HasPrefix(t, "sk-") || len(strings.Fields(t)) < 2:
			k.bad("E01", here, "is not an OpenSSH public key", "copy the line from a .pub file")
		default:
			k.text(here, t)
		}
	}
	k.realm(at+".realm", &a.Realm)
}

func (k *checker) realm(at string, r *Realm) {
	k.secret(at+".password", r.Password)
	if r.Type == "" {
		if r.Domain != "" || r.Server != "" || r.User != "" {
			k.missing(at+".type", "write lightwave, ad or ldap")
		}
		return
	}
	k.oneOf(at+".type", r.Type, "lightwave", "ad", "ldap")
	for key, value := range map[string]string{"user": r.User, "baseDN": r.BaseDN, "server": r.Server} {
		k.text(at+"."+key, value)
	}
	if r.Domain == "" {
		k.missing(at+".domain", "name the directory's domain")
	} else {
		k.pattern("E12", at+".domain", r.Domain, domainName, "a DNS domain in lower case")
	}
	if r.Type == "ldap" && r.Server == "" {
		k.missing(at+".server", "give ldaps://host")
	}
	if r.Type != "ldap" && (r.User == "" || !r.Password.set()) {
		k.missing(at+".user", "give the user and the password that join the domain")
	}
	for i, g := range r.Groups {
		k.text(fmt.Sprintf("%s.groups[%d]", at, i), g)
	}
}

func (k *checker) secrets() {
	const at = "spec.secrets"
	s := &k.c.Spec.Secrets
	k.secret(at+".key", s.Key)
	for _, e := range s.byName() {
		k.secret(at+"."+e.Name, e.Secret.Value)
		if e.Secret.Generation < 0 {
			k.bad("E01", at+"."+e.Name+".generation", "want at least 0", "`clusterctl rotate` counts it up")
		}
	}
	if s.CACert.set() != s.CAKey.set() {
		have, lacks := "caCert", "caKey"
		if s.CAKey.set() {
			have, lacks = lacks, have
		}
		k.bad("E01", at+"."+have, "is given without "+lacks, "give both, or none")
	}
}

// bounds checks plain numbers.
func (k *checker) bounds() {
	l := &k.c.Spec.Limits
	for _, n := range []struct {
		key       string
		have      int
		low, high int
	}{
		{"parallel", l.Parallel, 1, 512}, {"perHost", l.PerHost, 1, 512}, {"perDatastore", l.PerDatastore, 1, 512}, {"apiPerSecond", l.APIPerSecond, 0, 100000},
	} {
		k.between("spec.limits."+n.key, n.have, n.low, n.high)
	}
	t := &k.c.Spec.Timeouts
	for _, d := range []struct {
		key  string
		have time.Duration
	}{{"clone", t.Clone}, {"boot", t.Boot}, {"bootstrap", t.Bootstrap}, {"gate", t.Gate}, {"shutdown", t.Shutdown}} {
		if d.have < time.Second {
			k.bad("E01", "spec.timeouts."+d.key, fmt.Sprintf("want at least 1s, have %s", d.have), "leave it out for the default")
		}
	}
}

func (k *checker) between(at string, have, low, high int) bool {
	if have >= low && have <= high {
		return true
	}
	k.bad("E01", at, fmt.Sprintf("want %d to %d, have %d", low, high, have), "correct the number")
	return false
}

func (k *checker) addons() {
	seen := map[string]bool{}
	for i := range k.c.Spec.Addons {
		a := &k.c.Spec.Addons[i]
		at := fmt.Sprintf("spec.addons[%d]", i)
		if a.Name == "" {
			k.missing(at+".name", "name the addon; its unit is <name>.service")
		} else if k.pattern("E12", at+".name", a.Name, shortName, "1 to 30 lower-case letters, digits, dashes, dots and _") && seen[a.Name] {
			k.bad("E12", at+".name", fmt.Sprintf("two addons are called %s", a.Name), "rename one")
		}
		seen[a.Name] = true
		if slices.Contains(ownUnits, a.Name) {
			k.bad("E12", at+".name", a.Name+" is a service of the cluster", "choose another name")
		}
		k.rolesTwice(at, a.Roles)
		if a.Package != "" && (strings.ContainsAny(a.Package, " \t;&|$'\"") || !k.text(at+".package", a.Package)) {
			k.bad("E01", at+".package", "want name or name=version, have "+shown(a.Package), "give one package per addon")
		}
		if a.Unit != "" && !strings.Contains(a.Unit, "[Service]") {
			k.bad("E01", at+".unit", "has no [Service] section", "give the text of a systemd service unit")
		}
		for _, file := range sortedKeys(a.Files) {
			here := at + ".files." + file
			if !path.IsAbs(file) || path.Clean(file) != file {
				k.bad("E15", here, "want an absolute path", "write it like /etc/node-exporter.conf")
			} else if owned(file) {
				k.bad("E15", here, "the file is written by clusterctl", "use the blueprint's own keys for it")
			}
		}
	}
}

// ownUnits are services that addons must not replace.
var ownUnits = []string{"zookeeper", "mesos-master", "mesos-slave", "marathon", "chronos", "docker", "haproxy", "bridged"}

func owned(file string) bool {
	for _, dir := range []string{"/etc/zookeeper", "/etc/mesos", "/etc/mesos-master", "/etc/mesos-slave", "/etc/marathon", "/etc/chronos", "/etc/haproxy", "/etc/bridged", "/etc/clusterctl", "/etc/docker"} {
		if file == dir || strings.HasPrefix(file, dir+"/") {
			return true
		}
	}
	return false
}

// rolesTwice finds a role that stands twice in a list; names are checked where they are read.
func (k *checker) rolesTwice(at string, roles []Role) {
	for i, r := range roles {
		if slices.Index(roles, r) < i {
			k.bad("E10", fmt.Sprintf("%s.roles[%d]", at, i), fmt.Sprintf("the role %s stands twice", r), "remove one of the two")
		}
	}
}
