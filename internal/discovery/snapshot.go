package discovery

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unique"
)

// maxPicture bounds an answer that holds all apps: 100 000 tasks are some 80 MB.
const maxPicture = 512 << 20

// appData is one app of an answer, with its tasks.
type appData struct {
	id     string
	def    *App
	tasks  []taskData
	broken error // why def and tasks are nil

	deploying bool // a deployment of it is running
}

type taskData struct {
	id      string
	host    unique.Handle[string]
	version unique.Handle[string]
	ports   []uint16
	addrs   []netip.Addr
	started int64 // Unix milliseconds, 0 for not started or not told
	phase   phase
	health  Health
	ready   bool
}

// The wire types name what routing needs and nothing else: Marathon's other members
// change their types from version to version (env, unreachableStrategy), and what is
// not declared can't fail.

type wireApp struct {
	ID          string            `json:"id"`
	Instances   int               `json:"instances"`
	Labels      map[string]string `json:"labels"`
	Version     string            `json:"version"`
	VersionInfo struct {
		LastScalingAt      string `json:"lastScalingAt"`
		LastConfigChangeAt string `json:"lastConfigChangeAt"`
	} `json:"versionInfo"`
	Ports           []int      `json:"ports"`
	PortDefinitions []wirePort `json:"portDefinitions"`
	RequirePorts    bool       `json:"requirePorts"`
	Container       *struct {
		Docker *struct {
			Network      string     `json:"network"`
			PortMappings []wirePort `json:"portMappings"`
		} `json:"docker"`
		PortMappings []wirePort `json:"portMappings"`
	} `json:"container"`
	Networks []struct {
		Mode string `json:"mode"`
	} `json:"networks"`
	IPAddress *struct {
		Discovery *struct {
			Ports []wirePort `json:"ports"`
		} `json:"discovery"`
	} `json:"ipAddress"`
	HealthChecks          []wireCheck `json:"healthChecks"`
	ReadinessChecks       []struct{}  `json:"readinessChecks"`
	ReadinessCheckResults []struct {
		TaskID string `json:"taskId"`
		Ready  bool   `json:"ready"`
	} `json:"readinessCheckResults"`
	Deployments []struct{} `json:"deployments"`
	Tasks       []wireTask `json:"tasks"`
}

// wirePort is a port of portDefinitions (port), portMappings (the next three) or
// ipAddress.discovery (number).
type wirePort struct {
	Port          int               `json:"port"`
	ContainerPort int               `json:"containerPort"`
	HostPort      *int              `json:"hostPort"`
	ServicePort   int               `json:"servicePort"`
	Number        int               `json:"number"`
	Protocol      string            `json:"protocol"`
	Name          string            `json:"name"`
	Labels        map[string]string `json:"labels"`
}

type wireCheck struct {
	Protocol               string  `json:"protocol"`
	Path                   string  `json:"path"`
	PortIndex              *int    `json:"portIndex"`
	Port                   *int    `json:"port"`
	GracePeriodSeconds     float64 `json:"gracePeriodSeconds"`
	IntervalSeconds        float64 `json:"intervalSeconds"`
	TimeoutSeconds         float64 `json:"timeoutSeconds"`
	MaxConsecutiveFailures int     `json:"maxConsecutiveFailures"`
}

type wireTask struct {
	ID                 string   `json:"id"`
	Host               string   `json:"host"`
	State              string   `json:"state"`
	StartedAt          string   `json:"startedAt"`
	Version            string   `json:"version"`
	Ports              []int    `json:"ports"`
	IPAddresses        []wireIP `json:"ipAddresses"`
	HealthCheckResults []struct {
		Alive               *bool  `json:"alive"`
		ConsecutiveFailures int    `json:"consecutiveFailures"`
		LastFailure         string `json:"lastFailure"`
	} `json:"healthCheckResults"`
}

// decodeApps reads {"apps":[…]}, {"*":[…]} or {"app":{…}} and hands the apps to fn one
// by one, so that only one is in memory. An app that can't be understood is handed
// over as broken. An error of fn ends the reading and is returned.
//
// An answer that a proxy cut looks complete to HTTP: only the end of the JSON proves
// that it was not, so what fn was given counts as the whole only when the error is nil.
func decodeApps(r io.Reader, fn func(appData) error) error {
	d := json.NewDecoder(io.LimitReader(r, maxPicture))
	if err := expect(d, '{'); err != nil {
		return err
	}
	found := false
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return fmt.Errorf("decode apps: %w", err)
		}
		switch key {
		case "apps", "*":
			found = true
			if err := expect(d, '['); err != nil {
				return err
			}
			for d.More() {
				if err := decodeApp(d, fn); err != nil {
					return err
				}
			}
			if err := expect(d, ']'); err != nil {
				return err
			}
		case "app":
			found = true
			if err := decodeApp(d, fn); err != nil {
				return err
			}
		default:
			var skipped json.RawMessage
			if err := d.Decode(&skipped); err != nil {
				return fmt.Errorf("decode apps: member %q: %w", clip(fmt.Sprint(key)), err)
			}
		}
	}
	if err := expect(d, '}'); err != nil {
		return err
	}
	if !found {
		return errors.New("decode apps: no apps in it; want an answer of GET /v2/apps?embed=apps.tasks")
	}
	return nil
}

// decodeBare reads an app that is not wrapped into anything, as an old version is told.
func decodeBare(r io.Reader) (a appData, err error) {
	err = decodeApp(json.NewDecoder(io.LimitReader(r, maxPicture)), func(d appData) error {
		a = d
		return d.broken
	})
	return a, err
}

func expect(d *json.Decoder, want json.Delim) error {
	t, err := d.Token()
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("decode apps: %w", err)
	}
	if t != want {
		return fmt.Errorf("decode apps: want %q, have %q", want.String(), clip(fmt.Sprint(t)))
	}
	return nil
}

func decodeApp(d *json.Decoder, fn func(appData) error) error {
	var w wireApp
	if err := d.Decode(&w); err != nil {
		// A value of an unexpected type spoils its app alone: the decoder has read
		// past it, and has filled in the other members.
		if _, ok := errors.AsType[*json.UnmarshalTypeError](err); !ok {
			return fmt.Errorf("decode apps: %w", err)
		}
		id := w.ID
		if checkAppID(id) != nil {
			id = ""
		}
		return fn(appData{id: id, broken: err})
	}
	return fn(w.data())
}

func (w *wireApp) data() appData {
	a := appData{deploying: len(w.Deployments) > 0}
	if err := checkAppID(w.ID); err != nil {
		a.broken = err
		return a
	}
	a.id = w.ID
	var err error
	if a.def, err = w.definition(); err == nil {
		a.tasks = make([]taskData, 0, len(w.Tasks))
		for i := range w.Tasks {
			var t taskData
			if t, err = w.task(&w.Tasks[i], a.def); err != nil {
				break
			}
			a.tasks = append(a.tasks, t)
		}
	}
	if err != nil {
		return appData{id: w.ID, broken: err}
	}
	return a
}

// definition turns w into an App. The id is checked by the caller.
func (w *wireApp) definition() (*App, error) {
	a := &App{
		ID:               w.ID,
		Version:          w.Version,
		Labels:           w.Labels,
		Instances:        w.Instances,
		LastScaling:      w.VersionInfo.LastScalingAt,
		LastConfigChange: w.VersionInfo.LastConfigChangeAt,
		RequirePorts:     w.RequirePorts,
		Readiness:        len(w.ReadinessChecks) > 0,
		Network:          w.network(),
	}
	if len(a.Labels) == 0 {
		a.Labels = nil
	}
	// A definition that is announced while it is stored has no versionInfo yet, and before
	// 0.11 none ever has: its version is when it changed last.
	if a.LastConfigChange == "" {
		a.LastConfigChange = a.Version
	}
	if a.LastScaling == "" {
		a.LastScaling = a.Version
	}
	var err error
	if a.Ports, err = w.ports(a.Network); err != nil {
		return nil, err
	}
	a.Checks, err = w.checks()
	return a, err
}

// network: networks say it from 1.5 on, before that docker.network and ipAddress.
func (w *wireApp) network() NetworkMode {
	for _, n := range w.Networks {
		switch n.Mode {
		case "container":
			return ContainerNetwork
		case "container/bridge":
			return BridgeNetwork
		}
	}
	if len(w.Networks) > 0 {
		return HostNetwork
	}
	if w.Container != nil && w.Container.Docker != nil {
		switch w.Container.Docker.Network {
		case "BRIDGE":
			return BridgeNetwork
		case "USER":
			return ContainerNetwork
		}
	}
	if w.IPAddress != nil {
		return ContainerNetwork
	}
	return HostNetwork
}

// ports finds the app's ports where its Marathon keeps them: portMappings of the
// container (1.5+) or of docker (to 1.4), portDefinitions (1.0+), ipAddress.discovery
// (0.14 to 1.4), ports (to 1.4). In 0.8 ports is wrong beside port mappings, so that
// mappings go first.
func (w *wireApp) ports(network NetworkMode) ([]Port, error) {
	var mappings []wirePort
	if w.Container != nil {
		if mappings = w.Container.PortMappings; len(mappings) == 0 && w.Container.Docker != nil {
			mappings = w.Container.Docker.PortMappings
		}
	}
	var ports []Port
	var err error
	add := func(what string, i int, p *wirePort, service, container, host int, mapped bool) {
		port := Port{
			Service: port16(&err, what, i, service), Container: port16(&err, what, i, container),
			Host: port16(&err, what, i, host), Mapped: mapped, Protocol: "tcp",
		}
		if p != nil {
			port.Protocol, port.Name, port.Labels = protocol(p.Protocol), p.Name, p.Labels
			if len(port.Labels) == 0 {
				port.Labels = nil
			}
		}
		ports = append(ports, port)
	}
	required := func(port int) int {
		if w.RequirePorts {
			return port
		}
		return 0
	}
	switch {
	case network != HostNetwork && len(mappings) > 0:
		for i := range mappings {
			p := &mappings[i]
			host, mapped := 0, p.HostPort != nil || network == BridgeNetwork
			if p.HostPort != nil {
				host = *p.HostPort
			}
			add("portMappings", i, p, p.ServicePort, p.ContainerPort, host, mapped)
		}
	case w.IPAddress != nil && network == ContainerNetwork:
		if w.IPAddress.Discovery != nil {
			for i := range w.IPAddress.Discovery.Ports {
				p := &w.IPAddress.Discovery.Ports[i]
				add("ipAddress.discovery.ports", i, p, 0, p.Number, 0, false)
			}
		}
	case len(w.PortDefinitions) > 0:
		for i := range w.PortDefinitions {
			p := &w.PortDefinitions[i]
			add("portDefinitions", i, p, p.Port, 0, required(p.Port), true)
		}
	default:
		for i, p := range w.Ports {
			add("ports", i, nil, p, 0, required(p), true)
		}
	}
	return ports, err
}

func port16(errp *error, what string, i, port int) uint16 {
	if port < 0 || port > math.MaxUint16 {
		*errp = errors.Join(*errp, fmt.Errorf("%s[%d]: want 0 to 65535, have %d", what, i, port))
		return 0
	}
	return uint16(port)
}

func protocol(s string) string {
	tcp, udp := strings.Contains(s, "tcp"), strings.Contains(s, "udp")
	switch {
	case tcp && udp:
		return "udp,tcp"
	case udp:
		return "udp"
	}
	return "tcp"
}

func (w *wireApp) checks() ([]HealthCheck, error) {
	if len(w.HealthChecks) == 0 {
		return nil, nil
	}
	checks := make([]HealthCheck, len(w.HealthChecks))
	var err error
	for i, c := range w.HealthChecks {
		h := HealthCheck{
			Protocol: c.Protocol, Path: c.Path, PortIndex: -1,
			GracePeriod: seconds(c.GracePeriodSeconds), Interval: seconds(c.IntervalSeconds), Timeout: seconds(c.TimeoutSeconds),
			MaxConsecutiveFailures: c.MaxConsecutiveFailures,
		}
		if h.Protocol == "" {
			h.Protocol = "HTTP"
		}
		if c.PortIndex != nil && *c.PortIndex >= 0 {
			h.PortIndex = *c.PortIndex
		}
		if c.Port != nil {
			h.Port = port16(&err, "healthChecks", i, *c.Port)
		}
		checks[i] = h
	}
	return checks, err
}

func seconds(s float64) time.Duration {
	const most = 365 * 24 * 3600
	return time.Duration(min(max(s, 0), most) * float64(time.Second))
}

// noText stands for what Marathon did not say.
var noText = unique.Make("")

func (w *wireApp) task(t *wireTask, def *App) (taskData, error) {
	d := taskData{
		id: t.ID, host: unique.Make(t.Host), version: unique.Make(t.Version),
		started: parseTime(t.StartedAt), ready: w.ready(t),
	}
	if err := checkTaskID("task id", t.ID); err != nil {
		return d, err
	}
	switch d.phase = phases[t.State]; {
	case d.phase != phaseNone:
	case t.State != "":
		return d, fmt.Errorf("task %s: unknown state %q", t.ID, clip(t.State))
	case t.StartedAt == "": // no state before 1.3
		d.phase = phaseStaging
	default:
		d.phase = phaseRunning
	}
	if len(t.Ports) > 0 {
		var err error
		d.ports = make([]uint16, len(t.Ports))
		for i, p := range t.Ports {
			d.ports[i] = port16(&err, "task "+t.ID+": ports", i, p)
		}
		if err != nil {
			return d, err
		}
	}
	// In bridge networks the address is the one inside of the agent: of no use here.
	if def.Network == ContainerNetwork {
		d.addrs = parseAddrs(t.IPAddresses)
	}
	alive := 0
	for _, r := range t.HealthCheckResults {
		switch {
		case r.Alive == nil: // null in 0.8: no result yet
		case *r.Alive:
			alive++
		case r.LastFailure != "" || r.ConsecutiveFailures > 0:
			d.health = Dead
		}
	}
	if d.health == HealthUnknown && alive > 0 && alive >= len(def.Checks) {
		d.health = Alive
	}
	return d, nil
}

// ready: readiness is checked while a deployment starts tasks, and only tasks of the
// new version; there is no result before the first check.
func (w *wireApp) ready(t *wireTask) bool {
	if len(w.ReadinessChecks) == 0 || len(w.Deployments) == 0 || t.Version != w.Version {
		return true
	}
	any, all := false, true
	for _, r := range w.ReadinessCheckResults {
		if r.TaskID == t.ID {
			any, all = true, all && r.Ready
		}
	}
	return any && all
}

// samePorts says whether tasks of a and of b are reached in the same way, for the same services.
func samePorts(a, b *App) bool {
	return a.Network == b.Network && slices.EqualFunc(a.Ports, b.Ports, func(p, q Port) bool {
		return p.Service == q.Service && p.Container == q.Container && p.Mapped == q.Mapped
	})
}
