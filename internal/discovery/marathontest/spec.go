package marathontest

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
)

// Network says how tasks of an app are reached.
type Network string

const (
	HostNetwork      Network = "host"
	BridgeNetwork    Network = "container/bridge"
	ContainerNetwork Network = "container"
)

// AppSpec describes an app for [Cluster.Deploy], independent of what the wire
// format of the cluster's version calls things. For full control over members
// use [Cluster.DeployJSON].
type AppSpec struct {
	ID           string // absolute path, as in "/shop/cart"
	Instances    int
	Cmd          string // "" with an Image: the image's own
	Image        string // docker image; "" with host network: no container
	Network      Network
	NetworkName  string // of ContainerNetwork; "dcos" if empty
	Ports        []Port // none: one port with everything chosen by Marathon
	RequirePorts bool
	Labels       map[string]string
	HealthChecks []HealthCheck

	// ReadinessCheck adds one; see [Options.ReadyDelay].
	ReadinessCheck bool

	// Upgrade is the upgrade strategy of rolling restarts; nil means Marathon's default, 1 and 1.
	Upgrade *UpgradeStrategy

	// Members are further members of the definition, as posted: "cpus", "env", "constraints" …
	Members map[string]any
}

// Port is one port of an app.
type Port struct {
	Service   int  // service port; 0: Marathon chooses
	Container int  // port in the container; 0: equal to the host port; not for HostNetwork
	Host      int  // host port; 0: Marathon chooses. With HostNetwork it counts only with RequirePorts, as the service port does
	Unmapped  bool // ContainerNetwork: reached at the task's own address
	Protocol  string
	Name      string
	Labels    map[string]string
}

// HealthCheck is one health check of an app. Zero values mean Marathon's defaults.
type HealthCheck struct {
	Protocol               string `json:"protocol,omitempty"` // HTTP, TCP, COMMAND, MESOS_HTTP …
	Path                   string `json:"path,omitempty"`
	PortIndex              int    `json:"portIndex"`
	Port                   int    `json:"port,omitempty"`
	Command                string `json:"-"`
	GracePeriodSeconds     int    `json:"gracePeriodSeconds,omitempty"`
	IntervalSeconds        int    `json:"intervalSeconds,omitempty"`
	TimeoutSeconds         int    `json:"timeoutSeconds,omitempty"`
	MaxConsecutiveFailures *int   `json:"maxConsecutiveFailures,omitempty"`
	DelaySeconds           int    `json:"delaySeconds,omitempty"`
	IgnoreHTTP1xx          bool   `json:"ignoreHttp1xx,omitempty"`
}

func (h HealthCheck) mesosNative() bool {
	return h.Protocol == "COMMAND" || strings.HasPrefix(h.Protocol, "MESOS_")
}

// UpgradeStrategy bounds a rolling restart: fractions of the number of instances.
type UpgradeStrategy struct {
	MinimumHealthCapacity float64 `json:"minimumHealthCapacity"`
	MaximumOverCapacity   float64 `json:"maximumOverCapacity"`
}

// definition is one version of an app. It is never modified once committed; the
// members are kept as they were posted, so that what the simulator does not
// interpret survives a partial update.
type definition struct {
	id          string
	members     map[string]json.RawMessage
	version     string // Marathon's time of the change
	scaledAt    string
	configAt    string
	instances   int
	network     Network
	networkName string
	ports       []Port
	labels      map[string]string
	checks      []HealthCheck
	readiness   bool
	upgrade     UpgradeStrategy
	require     bool
	docker      bool   // has a container
	engine      string // DOCKER or MESOS

	json []byte // rendered for the current profile; nil after a change of profile
}

// portMembers are the members that say which ports an app has, in one of the forms of history. Posting
// one of them replaces all of them.
var portMembers = []string{"ports", "portDefinitions", "networks", "ipAddress"}

// encode turns the spec into the members that a current Marathon takes.
func (s AppSpec) encode() (map[string]json.RawMessage, error) {
	m := map[string]any{"cpus": 0.1, "mem": 32}
	maps.Copy(m, s.Members)
	m["id"], m["instances"] = s.ID, s.Instances
	if s.Cmd != "" || s.Image == "" && m["cmd"] == nil {
		m["cmd"] = s.Cmd
		if s.Cmd == "" {
			m["cmd"] = "serve $PORT0"
		}
	}
	if s.Labels != nil {
		m["labels"] = s.Labels
	}
	if s.RequirePorts {
		m["requirePorts"] = true
	}
	if s.Upgrade != nil {
		m["upgradeStrategy"] = s.Upgrade
	}
	if s.ReadinessCheck {
		m["readinessChecks"] = []any{map[string]any{"name": "readiness", "protocol": "HTTP", "path": "/"}}
	}
	if s.HealthChecks != nil {
		checks := make([]json.RawMessage, len(s.HealthChecks))
		for i, h := range s.HealthChecks {
			b, err := json.Marshal(h)
			if err != nil {
				return nil, fmt.Errorf("app %s: health check %d: %w", s.ID, i, err)
			}
			if h.Command != "" {
				o := newObject(64)
				o.raw("command", member("value", appendQuoted(nil, h.Command)))
				b = append(append(o.b, ','), b[1:]...)
			}
			checks[i] = b
		}
		m["healthChecks"] = checks
	}
	ports := make([]map[string]any, len(s.Ports))
	for i, p := range s.Ports {
		e := map[string]any{}
		if p.Name != "" {
			e["name"] = p.Name
		}
		if p.Protocol != "" {
			e["protocol"] = p.Protocol
		}
		if p.Labels != nil {
			e["labels"] = p.Labels
		}
		if s.Network == "" || s.Network == HostNetwork {
			e["port"] = p.Service
		} else {
			e["servicePort"], e["containerPort"] = p.Service, p.Container
			if !p.Unmapped {
				e["hostPort"] = p.Host
			}
		}
		ports[i] = e
	}
	container := map[string]any{}
	if s.Image != "" || s.Network != "" && s.Network != HostNetwork {
		container["type"] = "DOCKER"
		image := s.Image
		if image == "" {
			image = "example/app:1"
		}
		container["docker"] = map[string]any{"image": image}
		m["container"] = container
	}
	switch s.Network {
	case "", HostNetwork:
		if len(ports) > 0 {
			m["portDefinitions"] = ports
		}
	case BridgeNetwork, ContainerNetwork:
		network := map[string]any{"mode": s.Network}
		if s.Network == ContainerNetwork {
			network["name"] = "dcos"
			if s.NetworkName != "" {
				network["name"] = s.NetworkName
			}
		}
		m["networks"] = []any{network}
		if len(ports) > 0 {
			container["portMappings"] = ports
		}
	default:
		return nil, fmt.Errorf("app %s: network %q: want host, container/bridge or container", s.ID, s.Network)
	}
	out := make(map[string]json.RawMessage, len(m))
	for k, v := range m {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("app %s: member %s: %w", s.ID, k, err)
		}
		out[k] = b
	}
	return out, nil
}

// wire forms of the members that say how an app is reached, all eras together.
type (
	wirePort struct {
		Port          int               `json:"port"`
		Number        int               `json:"number"`
		ContainerPort int               `json:"containerPort"`
		HostPort      *int              `json:"hostPort"`
		ServicePort   int               `json:"servicePort"`
		Protocol      string            `json:"protocol"`
		Name          string            `json:"name"`
		Labels        map[string]string `json:"labels"`
	}
	wireContainer struct {
		Type   string `json:"type"`
		Docker *struct {
			Network      string     `json:"network"`
			PortMappings []wirePort `json:"portMappings"`
		} `json:"docker"`
		PortMappings []wirePort `json:"portMappings"`
	}
	wireNetwork struct {
		Mode Network `json:"mode"`
		Name string  `json:"name"`
	}
	wireAddress struct {
		NetworkName string `json:"networkName"`
		Discovery   struct {
			Ports []wirePort `json:"ports"`
		} `json:"discovery"`
	}
)

// parseDefinition reads posted members. It takes the port forms of every era,
// whatever version the cluster plays: one test program then fits all versions.
func parseDefinition(members map[string]json.RawMessage) (*definition, error) {
	members = withoutNulls(members)
	d := &definition{
		members: members, instances: 1, network: HostNetwork,
		upgrade: UpgradeStrategy{MinimumHealthCapacity: 1, MaximumOverCapacity: 1},
	}
	var (
		defs      []wirePort
		ports     []int
		container *wireContainer
		networks  []wireNetwork
		address   *wireAddress
		checks    []struct {
			HealthCheck
			Command *struct {
				Value string `json:"value"`
			} `json:"command"`
		}
		readiness []json.RawMessage
	)
	for name, into := range map[string]any{
		"id": &d.id, "instances": &d.instances, "labels": &d.labels, "requirePorts": &d.require,
		"upgradeStrategy": &d.upgrade, "portDefinitions": &defs, "ports": &ports, "container": &container,
		"networks": &networks, "ipAddress": &address, "healthChecks": &checks, "readinessChecks": &readiness,
	} {
		if raw, ok := members[name]; ok {
			if err := json.Unmarshal(raw, into); err != nil {
				return nil, fmt.Errorf("/%s: %w", name, err)
			}
		}
	}
	if !strings.HasPrefix(d.id, "/") {
		d.id = "/" + d.id
	}
	if d.id == "/" || strings.HasSuffix(d.id, "/") || strings.Contains(d.id, "//") {
		return nil, fmt.Errorf("/id: %q is not an app's path, as in /shop/cart", d.id)
	}
	if d.instances < 0 {
		return nil, fmt.Errorf("/instances: want at least 0, have %d", d.instances)
	}
	d.readiness = len(readiness) > 0
	for _, c := range checks {
		h := c.HealthCheck
		if h.Protocol == "" {
			h.Protocol = "HTTP"
		}
		if c.Command != nil {
			h.Command = c.Command.Value
		}
		d.checks = append(d.checks, h)
	}
	d.placePorts(defs, ports, container, networks, address)
	for i, p := range d.ports {
		for _, n := range []int{p.Service, p.Container, p.Host} {
			if n < 0 || n > 65535 {
				return nil, fmt.Errorf("/ports/%d: %d is not a port", i, n)
			}
		}
	}
	return d, nil
}

// placePorts finds the network and the ports in whichever form they were posted.
func (d *definition) placePorts(defs []wirePort, ports []int, container *wireContainer, networks []wireNetwork, address *wireAddress) {
	var mappings []wirePort
	if container != nil {
		d.docker, d.engine = true, container.Type
		if d.engine == "" {
			d.engine = "DOCKER"
		}
		mappings = container.PortMappings
		if container.Docker != nil {
			mappings = append(mappings, container.Docker.PortMappings...)
			switch container.Docker.Network {
			case "BRIDGE":
				d.network = BridgeNetwork
			case "USER":
				d.network, d.networkName = ContainerNetwork, "dcos"
			}
		}
	}
	if len(networks) > 0 && networks[0].Mode != "" {
		d.network, d.networkName = networks[0].Mode, networks[0].Name
	} else if len(networks) > 0 {
		d.network, d.networkName = ContainerNetwork, networks[0].Name
	}
	if address != nil {
		d.network, d.networkName = ContainerNetwork, address.NetworkName
		for _, p := range address.Discovery.Ports {
			mappings = append(mappings, wirePort{ContainerPort: p.Number, Protocol: p.Protocol, Name: p.Name, Labels: p.Labels})
		}
	}
	switch {
	case d.network != HostNetwork:
		if len(mappings) == 0 && d.network == BridgeNetwork {
			mappings = []wirePort{{}}
		}
		for _, m := range mappings {
			p := Port{Service: m.ServicePort, Container: m.ContainerPort, Protocol: m.Protocol, Name: m.Name, Labels: m.Labels}
			if m.HostPort != nil {
				p.Host = *m.HostPort
			}
			p.Unmapped = m.HostPort == nil && d.network == ContainerNetwork
			d.ports = append(d.ports, p)
		}
	case defs != nil:
		for _, m := range defs {
			d.ports = append(d.ports, Port{Service: m.Port, Protocol: m.Protocol, Name: m.Name, Labels: m.Labels})
		}
	case ports != nil:
		for _, n := range ports {
			d.ports = append(d.ports, Port{Service: n})
		}
	default:
		d.ports = []Port{{}}
	}
	for i := range d.ports {
		if d.ports[i].Protocol == "" {
			d.ports[i].Protocol = "tcp"
		}
	}
}

// withoutNulls leaves out members that are null: to Marathon they were not posted.
func withoutNulls(members map[string]json.RawMessage) map[string]json.RawMessage {
	out := maps.Clone(members)
	maps.DeleteFunc(out, func(_ string, v json.RawMessage) bool { return string(v) == "null" })
	return out
}

// update returns the members of d with those of change in their place.
func (d *definition) update(change map[string]json.RawMessage) map[string]json.RawMessage {
	change = withoutNulls(change)
	out := maps.Clone(d.members)
	for _, name := range portMembers {
		if _, ok := change[name]; ok {
			for _, other := range portMembers {
				delete(out, other)
			}
			break
		}
	}
	maps.Copy(out, change)
	out["id"] = appendQuoted(nil, d.id)
	return out
}

// group is the id of the group that holds the app.
func (d *definition) group() string { return parentGroup(d.id) }

func parentGroup(id string) string {
	if i := strings.LastIndexByte(id, '/'); i > 0 {
		return id[:i]
	}
	return "/"
}
