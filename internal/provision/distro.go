package provision

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// DistroRef names a distro manifest, or holds one.
type DistroRef struct {
	Name   string
	Inline *Distro
}

// Distro is a manifest: which packages of which versions make up a cluster,
// per guest OS, and how these versions differ.
type Distro struct {
	Name    string `yaml:"name"`
	Vendor  string `yaml:"vendor"`
	Version string `yaml:"version"` // of Mesos, as in 1.11.0
	// Packages: OS → package → version. The version is exact, or any for a
	// package of the OS' own repositories, which replace versions in place.
	Packages map[string]map[string]string `yaml:"packages"`
	Repos    map[string][]Repo            `yaml:"repos"` // OS → repositories besides the OS' own
	Layout   Layout                       `yaml:"layout"`
	Features Features                     `yaml:"features"`
	// UpgradeFrom names the distros a cluster may come from.
	UpgradeFrom []string `yaml:"upgradeFrom"`
}

// Repo is a package repository.
type Repo struct {
	ID         string `yaml:"id"`
	URL        string `yaml:"url"`
	Suite      string `yaml:"suite"`      // apt: suite, as in bookworm
	Components string `yaml:"components"` // apt: default main
	GPGKey     string `yaml:"gpgKey"`     // armoured key or the URL of one
}

// Layout is where the packages of this distro put things.
type Layout struct {
	Prefix     string `yaml:"prefix"` // /usr, or /usr/local before 0.22
	NativeLib  string `yaml:"nativeLib"`
	MasterConf string `yaml:"masterConf"` // directory with one file per flag
	AgentConf  string `yaml:"agentConf"`
	Marathon   string `yaml:"marathon"` // confdir (/etc/marathon/conf, before 1.5) or env (/etc/default/marathon)
}

// Features that depend on the version.
type Features struct {
	Maintenance         bool   `yaml:"maintenance"`         // /maintenance/schedule, Mesos 0.25 and later
	DrainAgent          bool   `yaml:"drainAgent"`          // DRAIN_AGENT, Mesos 1.9 and later
	StateEndpoint       string `yaml:"stateEndpoint"`       // /state, or /master/state.json before 0.25
	MarathonMaintenance bool   `yaml:"marathonMaintenance"` // declines offers of draining slaves, Marathon 1.6 and later
	AgentCheckpointFlag bool   `yaml:"agentCheckpointFlag"` // --checkpoint exists, before 0.22
}

func (d *Distro) setDefaults() {
	d.Layout = Layout{
		Prefix: "/usr", NativeLib: "/usr/lib/libmesos.so",
		MasterConf: "/etc/mesos-master", AgentConf: "/etc/mesos-slave", Marathon: "env",
	}
	d.Features = Features{Maintenance: true, DrainAgent: true, StateEndpoint: "/state", MarathonMaintenance: true}
}

// Package is one package of a manifest.
type Package struct {
	Name    string
	Version string // "": whatever the OS has
}

// packageNames are the names under which the OS families carry a service.
var packageNames = map[string][]string{
	"zookeeper": {"zookeeperd", "zookeeper", "mesosphere-zookeeper"},
	"mesos":     {"mesos"},
	"marathon":  {"marathon"},
	"chronos":   {"chronos"},
	"docker":    {"docker.io", "docker-ce", "moby-engine", "docker"},
	"haproxy":   {"haproxy"},
	"bridged":   {"bridged"},
}

// PackageOf finds the package of a service (zookeeper, mesos, marathon,
// chronos, docker, haproxy, bridged) for an OS.
func (d *Distro) PackageOf(os, service string) (Package, bool) {
	for _, name := range packageNames[service] {
		if version, ok := d.Packages[os][name]; ok {
			return Package{name, strings.TrimPrefix(version, "any")}, true
		}
	}
	return Package{}, false
}

// servicesOf lists the services that roles need on a node, in start order.
func servicesOf(roles []Role, docker, bridged bool) []string {
	has := func(r Role) bool { return slices.Contains(roles, r) }
	var s []string
	for _, e := range []struct {
		service string
		needed  bool
	}{
		{"zookeeper", has(RoleZooKeeper)},
		{"docker", docker},
		{"haproxy", true},
		{"mesos", has(RoleMaster) || has(RoleSlave) || has(RoleMarathon) || has(RoleChronos)}, // schedulers load libmesos
		{"marathon", has(RoleMarathon)},
		{"chronos", has(RoleChronos)},
		{"bridged", bridged},
	} {
		if e.needed {
			s = append(s, e.service)
		}
	}
	return s
}

// PackagesFor lists the packages of a node: those of its services, then
// whatever else the manifest names that belongs to no service.
func (d *Distro) PackagesFor(os string, services []string) []Package {
	var list []Package
	for _, s := range services {
		if p, ok := d.PackageOf(os, s); ok {
			list = append(list, p)
		}
	}
	for _, name := range sortedKeys(d.Packages[os]) {
		belongs := slices.ContainsFunc(sortedKeys(packageNames), func(s string) bool { return slices.Contains(packageNames[s], name) })
		if !belongs {
			list = append(list, Package{name, strings.TrimPrefix(d.Packages[os][name], "any")})
		}
	}
	return list
}

// Lacks lists services of the roles for which the manifest has no package.
func (d *Distro) Lacks(os string, roles []Role, docker, bridged bool) []string {
	var lacks []string
	for _, s := range servicesOf(roles, docker, bridged) {
		if _, ok := d.PackageOf(os, s); !ok {
			lacks = append(lacks, s)
		}
	}
	return lacks
}

// with gives a copy with the versions that a blueprint sets itself.
func (d *Distro) with(s *Services) *Distro {
	c := *d
	c.Packages = make(map[string]map[string]string, len(d.Packages))
	for os, packages := range d.Packages {
		c.Packages[os] = maps.Clone(packages)
		for service, version := range map[string]string{"docker": s.Docker.Version, "haproxy": s.HAProxy.Version, "bridged": s.Bridged.Version} {
			if version == "" || version == "distro" {
				continue
			}
			if p, ok := d.PackageOf(os, service); ok {
				c.Packages[os][p.Name] = version
			} else {
				c.Packages[os][packageNames[service][0]] = version
			}
		}
	}
	return &c
}

var (
	distroName  = regexp.MustCompile(`^[a-z](?:[a-z0-9.-]{0,38}[a-z0-9])?$`)
	packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9.+_-]*$`)
	versionText = regexp.MustCompile(`^[0-9]+(?:\.[0-9]+){1,3}$`)
	repoID      = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)
)

// check finds what is wrong with a manifest; paths are relative to it.
func (d *Distro) check() Problems {
	var ps Problems
	bad := func(at, what, remedy string) {
		ps = append(ps, Problem{Code: "E13", Path: at, What: what, Remedy: remedy})
	}
	if !distroName.MatchString(d.Name) {
		bad("name", "want lower-case letters, digits, dots and dashes, have "+shown(d.Name), "write it like mesos-1.11")
	}
	if !versionText.MatchString(d.Version) {
		bad("version", "want the version of Mesos, have "+shown(d.Version), "write it like 1.11.0, in quotes")
	}
	for _, os := range sortedKeys(d.Packages) {
		at := "packages." + os
		if !slices.Contains(operatingSystems, os) {
			bad(at, "unknown OS "+shown(os), didYouMean(os, operatingSystems))
		}
		for _, name := range sortedKeys(d.Packages[os]) {
			if !packageName.MatchString(name) {
				bad(at+"."+name, "is not a package name", "copy it from the repository")
			} else if !packageVersion.MatchString(d.Packages[os][name]) {
				bad(at+"."+name, "want an exact version or any, have "+shown(d.Packages[os][name]), "copy it from the repository, nothing may float")
			}
		}
	}
	for _, os := range sortedKeys(d.Repos) {
		if !slices.Contains(operatingSystems, os) {
			bad("repos."+os, "unknown OS "+shown(os), didYouMean(os, operatingSystems))
		}
		for i, r := range d.Repos[os] {
			at := fmt.Sprintf("repos.%s[%d]", os, i)
			if !repoID.MatchString(r.ID) {
				bad(at+".id", "want lower-case letters, digits and dashes, have "+shown(r.ID), "it becomes the name of a file")
			}
			if u, err := url.Parse(r.URL); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.ContainsAny(r.URL, " \n\r\t\"") {
				bad(at+".url", "is not an http or https URL", "write it like https://repo.lab/debian")
			} else if u.User != nil {
				bad(at+".url", "holds a user or a password", "guests would keep it readable")
			}
			if strings.ContainsAny(r.Suite+r.Components, "\n\r\"'") {
				bad(at+".suite", "holds a quote or a line break", "write it like bookworm")
			}
		}
	}
	l := &d.Layout
	for key, dir := range map[string]string{"prefix": l.Prefix, "nativeLib": l.NativeLib, "masterConf": l.MasterConf, "agentConf": l.AgentConf} {
		if !path.IsAbs(dir) || path.Clean(dir) != dir || strings.ContainsAny(dir, " \n\t\"'\\") {
			bad("layout."+key, "want an absolute path without blanks, have "+shown(dir), "write it like /usr")
		}
	}
	if l.Marathon != "env" && l.Marathon != "confdir" {
		bad("layout.marathon", "want one of env, confdir, have "+shown(l.Marathon), didYouMean(l.Marathon, []string{"env", "confdir"}))
	}
	if !strings.HasPrefix(d.Features.StateEndpoint, "/") {
		bad("features.stateEndpoint", "want a path, have "+shown(d.Features.StateEndpoint), "write /state, or /master/state.json before 0.25")
	}
	return ps
}

//go:embed distro/*.yaml
var builtinDistros embed.FS

// Manifests are the distros that blueprints may name.
type Manifests struct {
	byName map[string]*Distro
}

// BuiltinManifests are those that come with the program.
func BuiltinManifests() (*Manifests, error) {
	sub, err := fs.Sub(builtinDistros, "distro")
	if err != nil {
		return nil, err
	}
	m := new(Manifests)
	return m, m.Add(sub)
}

// Add reads every *.yaml of a directory; a manifest of a name that is known
// already takes its place. All that is wrong is reported at once.
func (m *Manifests) Add(dir fs.FS) error {
	names, err := fs.Glob(dir, "*.yaml")
	if err != nil {
		return err
	}
	if m.byName == nil {
		m.byName = map[string]*Distro{}
	}
	var errs []error
	for _, name := range names {
		text, err := fs.ReadFile(dir, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		d, problems := ParseDistro(name, text)
		if err := problems.Err(); err != nil {
			errs = append(errs, err)
			continue
		}
		m.byName[d.Name] = d
	}
	return errors.Join(errs...)
}

// ParseDistro reads one manifest strictly.
func ParseDistro(file string, text []byte) (*Distro, Problems) {
	d := &decoder{file: file, pos: map[string]Position{}}
	m := new(Distro)
	m.setDefaults()
	if root, ok := d.parse(text); ok {
		d.decode("", root, reflect.ValueOf(m).Elem())
	}
	if d.problems.taintAll() {
		return m, d.problems
	}
	src := source{pos: d.pos}
	for _, p := range m.check() {
		if !d.tainted(p.Path) {
			d.problemAt(src.position(p.Path), p.Code, p.Path, p.What, p.Remedy)
		}
	}
	return m, d.problems.sorted()
}

// Get finds a manifest by name.
func (m *Manifests) Get(name string) (*Distro, bool) {
	d, ok := m.byName[name]
	return d, ok
}

// Names lists all manifests, sorted.
func (m *Manifests) Names() []string { return sortedKeys(m.byName) }

// Systems lists the guest OSes that the manifest has packages for.
func (d *Distro) Systems() []string { return sortedKeys(d.Packages) }

// Indexes lists the URLs at which the manifest's repositories keep their index.
func (d *Distro) Indexes() []string {
	var urls []string
	for _, os := range sortedKeys(d.Repos) {
		for _, r := range d.Repos[os] {
			base, index := strings.TrimSuffix(r.URL, "/"), "/repodata/repomd.xml"
			if strings.HasPrefix(os, "debian") || strings.HasPrefix(os, "ubuntu") {
				index = "/dists/" + r.Suite + "/Release"
			}
			urls = append(urls, base+index)
		}
	}
	return urls
}
