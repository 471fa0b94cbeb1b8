package bridge

import (
	"fmt"
	"time"
)

// Reason is why a service, or a part of it, is not served. The set is closed: it is
// the label of a metric.
type Reason string

const (
	ReasonBadLabel       Reason = "bad_label"       // a label's value is not what the label takes
	ReasonTemplate       Reason = "template"        // a template does not expand, or not to what it must
	ReasonTemplateLabels Reason = "template_labels" // a raw-text label where those are not allowed
	ReasonBadApp         Reason = "bad_app"         // the app's id or definition cannot be used
	ReasonPortClash      Reason = "port_clash"      // another service has the port
	ReasonPortReserved   Reason = "port_reserved"   // the port is not for services
	ReasonNodePort       Reason = "node_port"       // a task on this node needs the port itself
	ReasonNameClash      Reason = "name_clash"      // another service has the proxy name
	ReasonVhostShadowed  Reason = "vhost_shadowed"  // another service answers for the vhost; the port is served
	ReasonNoPort         Reason = "no_port"         // no port is left to assign
)

// Reasons lists every Reason, for metrics that start at zero.
func Reasons() []Reason {
	return []Reason{ReasonBadLabel, ReasonTemplate, ReasonTemplateLabels, ReasonBadApp, ReasonPortClash,
		ReasonPortReserved, ReasonNodePort, ReasonNameClash, ReasonVhostShadowed, ReasonNoPort}
}

// Rejection says that a service is not served as its definition asks. A rejected
// label's value is never part of it.
type Rejection struct {
	App    string
	Index  int
	Reason Reason
	Detail string    // one line: what, where, remedy
	Since  time.Time // when this reason was first seen
	// LastGood: the service is served in its last good form meanwhile.
	LastGood bool
}

// LabelError is a label that cannot be used. It has no field for the value: what was
// rejected is untrusted text and must not reach a log, a page or a file.
type LabelError struct {
	Label  string // full name, such as HAPROXY_0_PORT
	Reason Reason
	Want   string // what the label takes
}

func (e *LabelError) Error() string { return fmt.Sprintf("label %s: %s", e.Label, e.Want) }
