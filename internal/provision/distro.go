package provision

// DistroRef names a distro manifest, or holds one.
type DistroRef struct {
	Name   string
	Inline *Distro
}

// Distro is a manifest: which packages of which versions make up a cluster,
// per guest OS, and how these versions differ.
type Distro struct {
	Name     string                       `yaml:"name"`
	Vendor   string                       `yaml:"vendor"`
	Version  string                       `yaml:"version"`  // of Mesos, as in 1.11.0
	Packages map[string]map[string]string `yaml:"packages"` // OS → package → exact version
	Repos    map[string][]Repo            `yaml:"repos"`    // OS → repositories
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
	GPGKey     string `yaml:"gpgKey"`     // armoured key or URL
}

// Layout is where the packages of this distro put things.
type Layout struct {
	Prefix    string `yaml:"prefix"` // /usr, or /usr/local before 0.22
	NativeLib string `yaml:"nativeLib"`
	Marathon  string `yaml:"marathon"` // confdir (/etc/marathon/conf, before 1.5) or env (/etc/default/marathon)
}

// Features that depend on the version.
type Features struct {
	Maintenance         bool   `yaml:"maintenance"`         // /maintenance/schedule, Mesos 0.25 and later
	DrainAgent          bool   `yaml:"drainAgent"`          // DRAIN_AGENT, Mesos 1.9 and later
	StateEndpoint       string `yaml:"stateEndpoint"`       // /state, or /master/state.json before 0.25
	MarathonMaintenance bool   `yaml:"marathonMaintenance"` // declines offers of draining slaves, Marathon 1.6 and later
	AgentCheckpointFlag bool   `yaml:"agentCheckpointFlag"` // --checkpoint exists, before 0.22
}
