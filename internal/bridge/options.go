package bridge

import (
	"fmt"
	"net/netip"
	"time"

	"bridged/internal/haproxy"
)

// Dialect chooses names and defaults of what is rendered.
type Dialect string

const (
	// DialectBridge is what users of haproxy-marathon-bridge expect: one listen
	// section per service port, named <app>-<port>, TCP, leastconn, checked servers.
	DialectBridge Dialect = "bridge"
	// DialectMarathonLB keeps marathon-lb's names, groups, cookies and server ids.
	DialectMarathonLB Dialect = "marathon-lb"
)

// UnmarshalText accepts the two names.
func (d *Dialect) UnmarshalText(text []byte) error {
	switch v := Dialect(text); v {
	case DialectBridge, DialectMarathonLB:
		*d = v
		return nil
	}
	return fmt.Errorf("want %s or %s", DialectBridge, DialectMarathonLB)
}

// HealthMode says whose verdict gates traffic to a task.
type HealthMode string

const (
	HealthMarathon HealthMode = "marathon" // Marathon's verdict alone; servers have no check
	HealthHAProxy  HealthMode = "haproxy"  // HAProxy's check alone
	HealthBoth     HealthMode = "both"     // both must agree
	HealthNone     HealthMode = "none"     // a running task gets traffic
)

// UnmarshalText accepts the four names.
func (m *HealthMode) UnmarshalText(text []byte) error {
	switch v := HealthMode(text); v {
	case HealthMarathon, HealthHAProxy, HealthBoth, HealthNone:
		*m = v
		return nil
	}
	return fmt.Errorf("want %s, %s, %s or %s", HealthMarathon, HealthHAProxy, HealthBoth, HealthNone)
}

func (m HealthMode) asksMarathon() bool { return m == HealthMarathon || m == HealthBoth }
func (m HealthMode) asksHAProxy() bool  { return m == HealthHAProxy || m == HealthBoth }

// TranslateOptions is what a Translator needs to know beside the services. The zero
// value of each field is its documented default.
type TranslateOptions struct {
	Dialect Dialect    // default DialectBridge
	Groups  []string   // groups to serve; empty or "*": everything
	Health  HealthMode // default both, in dialect marathon-lb haproxy

	// Strict: services are off unless their ENABLED label is true.
	Strict bool

	Bind          string        // address of service-port listeners; default "*"
	CheckInterval time.Duration // of HAProxy's checks in dialect bridge; default 10s

	// DropEmpty removes the sections of a service whose last task went, as marathon-lb
	// does. By default they stay: the next task is then no reload, and clients get a
	// refusal that says so.
	DropEmpty bool

	// DropUnreachable takes tasks out that Mesos cannot reach. By default they stay:
	// a partition between agent and master is not one between clients and task.
	DropUnreachable bool

	// HTTPBinds are the listeners of the shared vhost frontends. In dialect bridge none
	// means that there are no vhosts; in dialect marathon-lb the caller sets *:80 and
	// *:443. Binds with the word "ssl" among their options are the HTTPS side.
	HTTPBinds []haproxy.Bind

	// CertDir is where certificates that labels name must be; default /etc/ssl.
	CertDir string
	// SocketDir is where unix sockets that labels bind must be; "": none may.
	SocketDir string

	// AllowTemplateLabels admits raw text from labels into the configuration.
	AllowTemplateLabels bool
	// Templates overrides marathon-lb's templates by name, without the prefix HAPROXY_
	// (such as BACKEND_HEAD); the operator's environment and template directory.
	Templates map[string]string

	// Incumbents names the proxy that is known to run on a port (in the running HAProxy,
	// else in the file on disk); the service of that name keeps the port.
	Incumbents map[uint16]string
	// Reserved ports are never given to a service; the text says who holds them.
	Reserved map[uint16]string
	// LocalAddrs are the addresses of this node, to find tasks that need the very port
	// that HAProxy would bind.
	LocalAddrs []netip.Addr

	MarathonLB MarathonLBOptions
}

// MarathonLBOptions are the choices that exist in dialect marathon-lb alone.
type MarathonLBOptions struct {
	// AppIDBind is the listener that routes by the header X-Marathon-App-Id; zero: none.
	AppIDBind haproxy.Bind
	// StatsBind is the listener of HAProxy's statistics; zero: none.
	StatsBind haproxy.Bind
	// API is where bridged answers marathon-lb's endpoints; StatsBind hands them on.
	API netip.AddrPort
	// Exporter: HAProxy is built with its Prometheus exporter, which StatsBind serves.
	Exporter bool
	// MinAutoPort and MaxAutoPort bound the ports given to services of container
	// networks that have none; both 0: none are given.
	MinAutoPort, MaxAutoPort uint16
	// GroupHTTPSByVhost gives each vhost a TLS frontend with its own certificates.
	GroupHTTPSByVhost bool
	// OpenAuth restores marathon-lb's behaviour of asking for credentials on the vhost
	// routes alone, so that the service port and the app-id route stay open.
	OpenAuth bool
	// PlainHTTPSChecks restores its probing of HTTPS health checks in plain HTTP.
	PlainHTTPSChecks bool
	// LongestPathFirst breaks ties of BACKEND_WEIGHT by the length of the path; by
	// default by app id and service port alone.
	LongestPathFirst bool
	// FrameworkName is the app, without its leading slash, that is skipped because it is
	// the load balancer itself.
	FrameworkName string
}

func (o TranslateOptions) withDefaults() TranslateOptions {
	if o.Dialect == "" {
		o.Dialect = DialectBridge
	}
	if o.Health == "" {
		o.Health = HealthBoth
		if o.Dialect == DialectMarathonLB {
			o.Health = HealthHAProxy
		}
	}
	if o.Bind == "" {
		o.Bind = "*"
	}
	if o.CheckInterval == 0 {
		o.CheckInterval = 10 * time.Second
	}
	if o.CertDir == "" {
		o.CertDir = "/etc/ssl"
	}
	return o
}
