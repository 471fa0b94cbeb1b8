package marathontest

import (
	"encoding/json"
	"strings"
)

// defaults of members that the simulator does not interpret, as Marathon writes them when they were not posted.
var memberDefaults = map[string]string{
	"cmd": "null", "args": "null", "user": "null", "env": "{}", "cpus": "1", "mem": "128", "disk": "0", "gpus": "0",
	"executor": `""`, "constraints": "[]", "uris": "[]", "fetch": "[]", "storeUrls": "[]",
	"backoffSeconds": "1", "backoffFactor": "1.15", "maxLaunchDelaySeconds": "3600",
	"dependencies": "[]", "readinessChecks": "[]", "acceptedResourceRoles": "null", "residency": "null",
	"secrets": "{}", "taskKillGracePeriodSeconds": "null", "killSelection": `"YOUNGEST_FIRST"`,
	"unreachableStrategy": `{"inactiveAfterSeconds":0,"expungeAfterSeconds":0}`, "tty": "null", "check": "null",
	"executorResources": "null", "role": `"*"`,
}

// appJSON is the definition as the profile's version writes it, without its closing brace: embedded members follow.
//
// Order and presence of members are those of Marathon's own serializers: Formats.scala
// (AppDefinitionWrites, V2AppDefinitionWrites, RunSpecWrites) up to 1.4, app.raml from 1.5 on.
func (p *profile) appJSON(d *definition) []byte {
	if d.json != nil {
		return d.json
	}
	o := newObject(1024)
	if p.raml {
		p.ramlApp(o, d)
	} else {
		p.formatsApp(o, d)
	}
	if p.versionInfo && d.scaledAt != "" {
		info := newObject(128)
		info.str("lastScalingAt", d.scaledAt)
		info.str("lastConfigChangeAt", d.configAt)
		o.raw("versionInfo", info.end())
	}
	d.json = o.b
	return d.json
}

func (d *definition) member(name string) []byte {
	if raw, ok := d.members[name]; ok {
		return compact(raw)
	}
	return []byte(memberDefaults[name])
}

// formatsApp writes the form of 0.8 to 1.4: every member, null where there is nothing.
func (p *profile) formatsApp(o *object, d *definition) {
	plain := func(names ...string) {
		for _, name := range names {
			o.raw(name, d.member(name))
		}
	}
	topPorts := d.network != ContainerNetwork || !p.since(1, 3, 0)
	writePorts := func() {
		ports := d.servicePorts()
		if !p.since(0, 9, 0) && d.network != HostNetwork {
			// 0.8 shows ports of its own here, which no mapping has.
			for i := range ports {
				ports[i] = 10000 + i
			}
		}
		o.ints("ports", ports)
		if p.since(1, 0, 0) {
			o.raw("portDefinitions", p.portDefinitions(d))
		}
		o.bool("requirePorts", d.require)
	}
	o.str("id", d.id)
	plain("cmd", "args", "user", "env")
	o.int("instances", d.instances)
	plain("cpus", "mem", "disk")
	if p.since(1, 3, 0) {
		plain("gpus")
	}
	plain("executor", "constraints")
	plain("uris")
	if p.since(1, 0, 0) {
		plain("fetch")
	}
	plain("storeUrls")
	if !p.since(1, 3, 0) {
		writePorts()
	}
	plain("backoffSeconds", "backoffFactor", "maxLaunchDelaySeconds")
	o.raw("container", p.oldContainer(d))
	o.raw("healthChecks", p.healthChecks(d))
	if p.since(1, 1, 0) {
		plain("readinessChecks")
	}
	plain("dependencies")
	o.raw("upgradeStrategy", d.upgradeJSON())
	o.strMap("labels", d.labels)
	if p.since(0, 9, 0) && !p.since(1, 4, 0) {
		plain("acceptedResourceRoles")
	}
	if p.since(0, 14, 0) {
		o.raw("ipAddress", p.ipAddress(d))
	}
	o.str("version", d.version)
	if p.since(1, 0, 0) {
		plain("residency")
	}
	if p.since(1, 2, 0) {
		plain("secrets")
	}
	if p.since(1, 3, 0) {
		plain("taskKillGracePeriodSeconds")
	}
	if p.since(1, 4, 0) {
		plain("unreachableStrategy", "killSelection")
		if roles := d.members["acceptedResourceRoles"]; len(roles) > len("null") {
			plain("acceptedResourceRoles")
		}
	}
	if p.since(1, 3, 0) && topPorts {
		writePorts()
	}
}

// ramlApp writes the form of 1.5 and newer: what is not there is left out.
func (p *profile) ramlApp(o *object, d *definition) {
	plain := func(names ...string) {
		for _, name := range names {
			switch v := d.member(name); string(v) {
			case "null", "[]", "{}":
			default:
				o.raw(name, v)
			}
		}
	}
	o.str("id", d.id)
	plain("acceptedResourceRoles", "args", "backoffFactor", "backoffSeconds", "cmd", "constraints")
	if d.docker {
		o.raw("container", p.newContainer(d))
	}
	plain("cpus", "dependencies")
	o.raw("disk", d.member("disk"))
	plain("env")
	o.raw("executor", d.member("executor"))
	plain("fetch")
	if len(d.checks) > 0 {
		o.raw("healthChecks", p.healthChecks(d))
	}
	o.int("instances", d.instances)
	o.strMap("labels", d.labels)
	plain("maxLaunchDelaySeconds", "mem")
	o.raw("gpus", d.member("gpus"))
	network := newObject(64)
	if d.networkName != "" {
		network.str("name", d.networkName)
	}
	network.str("mode", string(d.network))
	o.raw("networks", array(network.end()))
	if d.network == HostNetwork {
		o.raw("portDefinitions", p.portDefinitions(d))
	}
	plain("readinessChecks", "residency")
	o.bool("requirePorts", d.require)
	plain("secrets", "taskKillGracePeriodSeconds")
	o.raw("upgradeStrategy", d.upgradeJSON())
	plain("user")
	o.str("version", d.version)
	plain("killSelection")
	o.raw("unreachableStrategy", d.member("unreachableStrategy"))
	plain("tty")
	if p.since(1, 8, 0) {
		plain("check", "executorResources")
	}
	if p.role {
		plain("role")
	}
}

func (d *definition) servicePorts() []int {
	ports := make([]int, len(d.ports))
	for i, p := range d.ports {
		ports[i] = p.Service
	}
	return ports
}

func (d *definition) upgradeJSON() []byte {
	b, _ := json.Marshal(d.upgrade) // two numbers
	return b
}

func (p *profile) portDefinitions(d *definition) []byte {
	out := make([][]byte, len(d.ports))
	for i, port := range d.ports {
		o := newObject(64)
		o.int("port", port.Service)
		if port.Labels != nil || !p.raml {
			o.strMap("labels", port.Labels)
		}
		if port.Name != "" {
			o.str("name", port.Name)
		}
		o.str("protocol", port.Protocol)
		out[i] = o.end()
	}
	return array(out...)
}

// hasAddress tells whether versions before 1.5 show the app's network as an ipAddress.
func (p *profile) hasAddress(d *definition) bool {
	return d.network == ContainerNetwork && p.since(0, 14, 0)
}

func (p *profile) ipAddress(d *definition) []byte {
	if !p.hasAddress(d) {
		return []byte("null")
	}
	discovery := newObject(128)
	var ports [][]byte
	for _, port := range d.ports {
		if d.docker {
			break // the ports are in the container's mappings
		}
		o := newObject(64)
		o.int("number", port.Container)
		o.str("name", port.Name)
		o.str("protocol", port.Protocol)
		ports = append(ports, o.end())
	}
	discovery.raw("ports", array(ports...))
	o := newObject(128)
	o.raw("groups", []byte("[]"))
	o.raw("labels", []byte("{}"))
	o.raw("discovery", discovery.end())
	if d.networkName != "" && p.since(1, 1, 0) {
		o.str("networkName", d.networkName)
	}
	return o.end()
}

// portMappings writes the port mappings of a container, in the form of d's era.
func (p *profile) portMappings(d *definition) []byte {
	out := make([][]byte, len(d.ports))
	for i, port := range d.ports {
		o := newObject(128)
		o.int("containerPort", port.Container)
		if !port.Unmapped {
			o.int("hostPort", port.Host)
		}
		if p.raml {
			o.strMap("labels", port.Labels)
			if port.Name != "" {
				o.str("name", port.Name)
			}
			o.str("protocol", port.Protocol)
			o.int("servicePort", port.Service)
		} else {
			o.int("servicePort", port.Service)
			o.str("protocol", port.Protocol)
			if port.Name != "" && p.since(1, 0, 0) {
				o.str("name", port.Name)
			}
			if p.since(1, 0, 0) && (p.since(1, 2, 0) || port.Labels != nil) {
				o.strMap("labels", port.Labels)
			}
		}
		out[i] = o.end()
	}
	return array(out...)
}

// oldContainer writes the container of 0.8 to 1.4, where docker holds the network and its ports.
func (p *profile) oldContainer(d *definition) []byte {
	if !d.docker {
		return []byte("null")
	}
	posted := d.dockerMembers()
	docker := newObject(512)
	docker.raw("image", posted.or("image", `"example/app:1"`))
	switch d.network {
	case HostNetwork:
		docker.str("network", "HOST")
	case BridgeNetwork:
		docker.str("network", "BRIDGE")
	default:
		docker.str("network", "USER")
	}
	if d.network != HostNetwork {
		docker.raw("portMappings", p.portMappings(d))
	}
	docker.raw("privileged", posted.or("privileged", "false"))
	docker.raw("parameters", posted.or("parameters", "[]"))
	if p.since(0, 8, 2) {
		docker.raw("forcePullImage", posted.or("forcePullImage", "false"))
	}
	o := newObject(512)
	o.str("type", d.engine)
	o.raw("volumes", d.containerMembers().or("volumes", "[]"))
	o.raw("docker", docker.end())
	return o.end()
}

// newContainer writes the container of 1.5 and newer, where the port mappings moved up.
func (p *profile) newContainer(d *definition) []byte {
	posted := d.dockerMembers()
	docker := newObject(256)
	docker.raw("forcePullImage", posted.or("forcePullImage", "false"))
	docker.raw("image", posted.or("image", `"example/app:1"`))
	docker.raw("parameters", posted.or("parameters", "[]"))
	docker.raw("privileged", posted.or("privileged", "false"))
	o := newObject(512)
	o.str("type", d.engine)
	if posted != nil {
		o.raw("docker", docker.end())
	}
	o.raw("volumes", d.containerMembers().or("volumes", "[]"))
	if d.network != HostNetwork {
		o.raw("portMappings", p.portMappings(d))
	}
	return o.end()
}

type rawMembers map[string]json.RawMessage

func (m rawMembers) or(name, otherwise string) []byte {
	if raw, ok := m[name]; ok && string(raw) != "null" {
		return compact(raw)
	}
	return []byte(otherwise)
}

func (d *definition) containerMembers() rawMembers {
	var m rawMembers
	json.Unmarshal(d.members["container"], &m) // was parsed once already
	return m
}

func (d *definition) dockerMembers() rawMembers {
	var m rawMembers
	json.Unmarshal(d.containerMembers()["docker"], &m)
	return m
}

func (p *profile) healthChecks(d *definition) []byte {
	out := make([][]byte, len(d.checks))
	for i, h := range d.checks {
		out[i] = p.healthCheck(h)
	}
	return array(out...)
}

func (p *profile) healthCheck(h HealthCheck) []byte {
	or := func(v, otherwise int) int {
		if v == 0 {
			return otherwise
		}
		return v
	}
	failures := 3
	if h.MaxConsecutiveFailures != nil {
		failures = *h.MaxConsecutiveFailures
	}
	http := strings.Contains(h.Protocol, "HTTP")
	o := newObject(256)
	if p.raml {
		if h.Command != "" {
			o.raw("command", member("value", appendQuoted(nil, h.Command)))
		}
		o.int("gracePeriodSeconds", or(h.GracePeriodSeconds, 300))
		if http && !h.mesosNative() {
			o.bool("ignoreHttp1xx", h.IgnoreHTTP1xx)
		}
		o.int("intervalSeconds", or(h.IntervalSeconds, 60))
		o.int("maxConsecutiveFailures", failures)
		if http {
			o.str("path", orString(h.Path, "/"))
		}
		p.healthPort(o, h)
		o.str("protocol", h.Protocol)
		if p.since(1, 6, 0) && h.mesosNative() && h.Protocol != "COMMAND" {
			o.str("ipProtocol", "IPv4")
		}
		o.int("timeoutSeconds", or(h.TimeoutSeconds, 20))
		o.int("delaySeconds", or(h.DelaySeconds, 15))
		return o.end()
	}
	if http {
		o.str("path", orString(h.Path, "/"))
	}
	o.str("protocol", h.Protocol)
	p.healthPort(o, h)
	if h.Command != "" {
		o.raw("command", member("value", appendQuoted(nil, h.Command)))
	}
	o.int("gracePeriodSeconds", or(h.GracePeriodSeconds, 15))
	o.int("intervalSeconds", or(h.IntervalSeconds, 10))
	o.int("timeoutSeconds", or(h.TimeoutSeconds, 20))
	o.int("maxConsecutiveFailures", failures)
	if p.since(0, 8, 2) {
		o.bool("ignoreHttp1xx", h.IgnoreHTTP1xx)
	}
	return o.end()
}

func (p *profile) healthPort(o *object, h HealthCheck) {
	switch {
	case h.Port != 0 && p.since(0, 14, 0):
		o.int("port", h.Port)
	case h.Protocol != "COMMAND" || !p.since(1, 0, 0):
		o.int("portIndex", h.PortIndex)
	}
}

func orString(v, otherwise string) string {
	if v == "" {
		return otherwise
	}
	return v
}
