package discovery

import (
	"net/netip"
	"time"
)

// Key names a service: one service port of one app of one Marathon.
type Key struct {
	App    string // absolute path, as in "/shop/cart"
	Index  int    // position of the port in the app's list of ports, from 0
	Source string // App.Source: "" for the only Marathon
}

// Service is one service port of one app, with the tasks that may serve it.
// A Service and everything it points to is never modified after it was sent.
type Service struct {
	Key  Key
	App  *App // shared by the services of one app at one moment
	Port Port

	// Tasks are those in state Running, Killing or Unreachable whose
	// address for this port is known, sorted by Task.ID. Whether a task gets
	// traffic is decided by who translates (its health mode), not here.
	Tasks []Task
}

// App is the part of an app's definition that routing needs.
type App struct {
	ID        string
	Source    string            // name of the Marathon it was read from; "" for the only one
	Version   string            // Marathon's version of the definition, RFC 3339 with milliseconds
	Labels    map[string]string // all labels of the app, nil for none; untrusted text
	Ports     []Port            // aligned with Marathon's own order; gaps are kept
	Network   NetworkMode
	Checks    []HealthCheck
	Instances int

	LastScaling      string // versionInfo.lastScalingAt, else Version
	LastConfigChange string // versionInfo.lastConfigChangeAt, else Version

	// RequirePorts: the host port of a task is the port given in the definition.
	RequirePorts bool
	// Readiness: the app has readiness checks, which Marathon makes while it deploys.
	Readiness bool
}

// Port is one port of an app's definition.
type Port struct {
	Service   uint16 // Marathon's service port; 0: has none (or not assigned yet)
	Container uint16 // port inside the container; 0: equal to the host port, or host network
	Host      uint16 // required host port; 0: chosen by Marathon
	Mapped    bool   // has a port on the agent; else only at the task's own address
	Protocol  string // "tcp", "udp" or "udp,tcp"; never empty
	Name      string // untrusted text
	Labels    map[string]string
}

// NetworkMode says how a task of the app is reached.
type NetworkMode uint8

const (
	HostNetwork      NetworkMode = iota // host:task port
	BridgeNetwork                       // host:mapped task port
	ContainerNetwork                    // the task's own address : container port, unless mapped to the host
)

// HealthCheck is a Marathon health check, for its kind and for the check HAProxy may do in its place.
type HealthCheck struct {
	Protocol               string // HTTP, HTTPS, TCP, COMMAND, MESOS_HTTP, MESOS_HTTPS, MESOS_TCP
	Path                   string
	PortIndex              int    // -1: none
	Port                   uint16 // fixed port, 0: none
	GracePeriod            time.Duration
	Interval               time.Duration
	Timeout                time.Duration
	MaxConsecutiveFailures int
}

// Task is one running instance as seen by one service port.
type Task struct {
	ID      string
	App     string         // id of the app that started it
	Host    string         // agent host name as Marathon says it; untrusted text
	Addr    netip.AddrPort // where this service port of the task is reached
	State   TaskState
	Health  Health
	Ready   bool   // readiness checks passed, or the app has none
	Version string // version of the app that the task was started from
}

// TaskState is a Mesos task state, as far as routing tells them apart.
type TaskState uint8

const (
	Staging     TaskState = iota // STAGING, STARTING: never in Service.Tasks
	Running                      // RUNNING
	Killing                      // KILLING, or a kill was decided: drain
	Unreachable                  // UNREACHABLE, or LOST where it can come back
	Gone                         // terminal: never in Service.Tasks
)

// Health is Marathon's verdict on a task.
type Health uint8

const (
	// HealthUnknown: the app has checks and no result was ever heard for this
	// task. A task that had a verdict keeps it when Marathon forgets it.
	HealthUnknown Health = iota
	Alive
	Dead
	// NoChecks: the app has no health checks.
	NoChecks
)

// Update is what changed. It holds whole new values, never differences, so that
// a pending Update merged with a later one is again an Update.
type Update struct {
	// Services are the touched services, in no order. Gone are those that no longer exist.
	// A key is in at most one of the two.
	Services []*Service
	Gone     []Key

	// Full: Services is everything there is; what is not in it does not exist.
	Full bool

	// Received is when the bytes of the oldest event in this Update were read; zero for
	// an Update that no event caused (first sync, resync, address change).
	Received time.Time
	// Events is how many events were folded into this Update.
	Events int
}
