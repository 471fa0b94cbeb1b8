package discovery

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// eventType is one of Marathon's event types, as far as they are told apart.
type eventType uint8

const (
	otherEvent eventType = iota // known to say nothing about routing, or not known at all
	statusUpdate
	instanceChanged
	instanceHealth
	healthStatus
	taskKill // unhealthy_task_kill_event, unhealthy_instance_kill_event
	instanceKill
	taskTerminated // unknown_task_terminated_event
	instanceTerminated
	apiPost
	groupChange
	deploymentInfo
	deploymentStep
	deploymentSuccess
	deploymentFailed
	appTerminated
	streamAttached
	subscribed
	numEventTypes
)

// eventNames are the types that are asked for, by their place in eventType.
var eventNames = [numEventTypes]string{
	otherEvent:         "other",
	statusUpdate:       "status_update_event",
	instanceChanged:    "instance_changed_event",
	instanceHealth:     "instance_health_changed_event",
	healthStatus:       "health_status_changed_event",
	taskKill:           "unhealthy_task_kill_event",
	instanceKill:       "unhealthy_instance_kill_event",
	taskTerminated:     "unknown_task_terminated_event",
	instanceTerminated: "unknown_instance_terminated_event",
	apiPost:            "api_post_event",
	groupChange:        "group_change_success",
	deploymentInfo:     "deployment_info",
	deploymentStep:     "deployment_step_success",
	deploymentSuccess:  "deployment_success",
	deploymentFailed:   "deployment_failed",
	appTerminated:      "app_terminated_event",
	streamAttached:     "event_stream_attached",
	subscribed:         "subscribe_event",
}

var eventTypes = func() map[string]eventType {
	m := make(map[string]eventType, numEventTypes)
	for t, name := range eventNames {
		if eventType(t) != otherEvent {
			m[name] = eventType(t)
		}
	}
	return m
}()

// phase is a Mesos task state or a Marathon instance condition, as far as they differ
// for us. Of two reports with one timestamp the higher phase counts.
type phase uint8

const (
	phaseNone phase = iota
	phaseStaging
	phaseRunning
	phaseUnreachable
	phaseLost     // TASK_LOST, whose meaning depends on Marathon's version
	phaseInactive // UnreachableInactive: given up, replaced, may still come back
	phaseKilling
	phaseGone
)

var phases = map[string]phase{
	"TASK_STAGING": phaseStaging, "TASK_STARTING": phaseStaging,
	"TASK_RUNNING": phaseRunning,
	"TASK_KILLING": phaseKilling,
	"TASK_LOST":    phaseLost, "TASK_UNREACHABLE": phaseUnreachable,
	"TASK_FINISHED": phaseGone, "TASK_FAILED": phaseGone, "TASK_KILLED": phaseGone, "TASK_ERROR": phaseGone,
	"TASK_GONE": phaseGone, "TASK_GONE_BY_OPERATOR": phaseGone, "TASK_DROPPED": phaseGone, "TASK_UNKNOWN": phaseGone,

	"Created": phaseStaging, "Reserved": phaseStaging, "Scheduled": phaseStaging, "Provisioned": phaseStaging,
	"Staging": phaseStaging, "Starting": phaseStaging,
	"Running":     phaseRunning,
	"Killing":     phaseKilling,
	"Unreachable": phaseUnreachable, "UnreachableInactive": phaseInactive,
	"Finished": phaseGone, "Killed": phaseGone, "Error": phaseGone, "Failed": phaseGone,
	"Gone": phaseGone, "Dropped": phaseGone, "Unknown": phaseGone,
}

// event is one event with what routing needs of it. Which fields are set depends on
// the type.
type event struct {
	typ      eventType
	received time.Time
	at       int64 // Marathon's timestamp, Unix milliseconds; when received if it gave none

	app      string // appId or runSpecId
	task     string // taskId
	instance string // instanceId
	host     string
	version  string // of the app, the task's definition, the group or the plan
	ports    []uint16
	addrs    []netip.Addr
	phase    phase
	health   Health // HealthUnknown: Marathon does not know either

	group string   // groupId
	apps  []string // named by a deployment plan
	def   *App     // of api_post_event; nil when it could not be understood
}

// wireEvent is the union of the members that are read of all events. Marathon leaves
// absent options out or writes null, depending on the serializer.
type wireEvent struct {
	EventType      string       `json:"eventType"`
	Timestamp      string       `json:"timestamp"`
	AppID          string       `json:"appId"`
	RunSpecID      string       `json:"runSpecId"`
	TaskID         string       `json:"taskId"`
	InstanceID     string       `json:"instanceId"`
	TaskStatus     string       `json:"taskStatus"`
	Condition      string       `json:"condition"`
	Host           string       `json:"host"`
	Ports          []int        `json:"ports"`
	IPAddresses    []wireIP     `json:"ipAddresses"`
	Version        string       `json:"version"`
	RunSpecVersion string       `json:"runSpecVersion"`
	Alive          *bool        `json:"alive"`
	Healthy        *bool        `json:"healthy"`
	GroupID        string       `json:"groupId"`
	Plan           *wirePlan    `json:"plan"`
	CurrentStep    *wireStep    `json:"currentStep"`
	AppDefinition  rawAppObject `json:"appDefinition"`
}

type wireIP struct {
	Address string `json:"ipAddress"`
}

// wirePlan leaves out original and target, which of old Marathons hold every app of
// the cluster.
type wirePlan struct {
	Version string     `json:"version"`
	Steps   []wireStep `json:"steps"`
}

type wireStep struct {
	Actions []wireAction `json:"actions"`
	App     string       `json:"app"` // flat actions, as the manual has them
}

type wireAction struct {
	App string `json:"app"`
}

type rawAppObject = json.RawMessage

// decodeError is an event of a type that matters and that could not be understood.
type decodeError struct {
	typ eventType
	app string // what it was about, "" when not even that can be told
	err error
}

func (e *decodeError) Error() string { return fmt.Sprintf("event %s: %v", eventNames[e.typ], e.err) }
func (e *decodeError) Unwrap() error { return e.err }

var errOversize = fmt.Errorf("longer than %d bytes", maxEvent)

// appendEvents decodes f and appends what it says to dst. A type that is named on the
// stream and not needed is not decoded at all: it gives an event of type otherEvent.
// The error is a *decodeError.
func appendEvents(dst []event, f frame) ([]event, error) {
	typ, named := otherEvent, len(f.name) > 0
	if named {
		if typ = eventTypes[string(f.name)]; typ == otherEvent {
			return append(dst, event{received: f.received}), nil
		}
	}
	if f.oversize {
		return dst, &decodeError{typ: typ, err: errOversize}
	}
	e, err := decodeEvent(f.data, typ, f.received)
	if err == nil {
		return append(dst, e), nil
	}
	// Marathon 0.9 and 0.10 were seen to put several values into one event.
	if lines := bytes.Split(f.data, []byte{'\n'}); len(lines) > 1 {
		from := len(dst)
		for _, line := range lines {
			e, lineErr := decodeEvent(line, typ, f.received)
			if lineErr != nil {
				return dst[:from], err
			}
			dst = append(dst, e)
		}
		return dst, nil
	}
	return dst, err
}

// decodeEvent decodes one JSON object. typ is what the stream said it is, otherEvent
// if it said nothing.
func decodeEvent(data []byte, typ eventType, received time.Time) (event, error) {
	var w wireEvent
	jsonErr := json.Unmarshal(data, &w)
	if typ == otherEvent {
		if typ = eventTypes[w.EventType]; typ == otherEvent && (jsonErr == nil || w.EventType != "") {
			return event{received: received}, nil
		}
	}
	app := w.AppID
	if app == "" {
		app = w.RunSpecID
	}
	fail := func(err error) (event, error) {
		return event{}, &decodeError{typ: typ, app: app, err: err}
	}
	if jsonErr != nil {
		return fail(jsonErr)
	}
	e := event{typ: typ, received: received, at: parseTime(w.Timestamp), app: app, task: w.TaskID, instance: w.InstanceID, version: w.Version}
	if e.at <= longAgo {
		e.at = max(received.UnixMilli(), longAgo+1)
	}
	if app != "" {
		if err := checkAppID(app); err != nil {
			app = ""
			return fail(err)
		}
	}
	if err := e.fill(&w); err != nil {
		return fail(err)
	}
	return e, nil
}

// fill sets what depends on the type, and says what the type lacks.
func (e *event) fill(w *wireEvent) error {
	switch e.typ {
	case statusUpdate:
		if e.phase = phases[w.TaskStatus]; e.phase == phaseNone {
			return fmt.Errorf("unknown taskStatus %q", clip(w.TaskStatus))
		}
		if err := e.location(w); err != nil {
			return err
		}
		return errors.Join(need("appId", e.app), checkTaskID("taskId", e.task))
	case instanceChanged, instanceTerminated:
		if e.phase = phases[w.Condition]; e.phase == phaseNone {
			return fmt.Errorf("unknown condition %q", clip(w.Condition))
		}
		e.version = w.RunSpecVersion
		return errors.Join(need("runSpecId", e.app), checkTaskID("instanceId", e.instance))
	case taskTerminated:
		e.phase = phaseGone
		return errors.Join(need("appId", e.app), checkTaskID("taskId", e.task))
	case instanceHealth:
		e.health = verdict(w.Healthy)
		return errors.Join(need("runSpecId", e.app), checkTaskID("instanceId", e.instance))
	case healthStatus:
		if e.health = verdict(w.Alive); e.health == HealthUnknown {
			return errors.New("no alive")
		}
		return errors.Join(need("appId", e.app), e.eitherID())
	case taskKill, instanceKill:
		e.health = Dead
		return errors.Join(need("appId", e.app), e.eitherID())
	case apiPost:
		if w.AppDefinition == nil {
			return errors.New("no appDefinition")
		}
		// What is posted by hand may be odd; the fetch that follows is the judge of it.
		var a wireApp
		err := json.Unmarshal(w.AppDefinition, &a)
		if err == nil {
			e.def, err = a.definition()
		}
		if e.app = a.ID; err != nil {
			e.def = nil
		}
		return checkAppID(e.app)
	case groupChange:
		e.group = w.GroupID
		return errors.Join(checkAppID(e.group), need("version", e.version))
	case deploymentInfo, deploymentStep, deploymentSuccess, deploymentFailed:
		e.plan(w)
		return nil
	case appTerminated:
		return need("appId", e.app)
	}
	return nil
}

func (e *event) location(w *wireEvent) error {
	e.host = w.Host
	if len(w.Ports) > 0 {
		e.ports = make([]uint16, len(w.Ports))
		for i, p := range w.Ports {
			if p < 0 || p > 65535 {
				return fmt.Errorf("ports[%d]: want 0 to 65535, have %d", i, p)
			}
			e.ports[i] = uint16(p)
		}
	}
	e.addrs = parseAddrs(w.IPAddresses)
	return nil
}

func (e *event) plan(w *wireEvent) {
	e.version = ""
	add := func(id string) {
		if id != "" && checkAppID(id) == nil && !slices.Contains(e.apps, id) {
			e.apps = append(e.apps, id)
		}
	}
	steps := func(s *wireStep) {
		add(s.App)
		for _, a := range s.Actions {
			add(a.App)
		}
	}
	if w.Plan != nil {
		e.version = w.Plan.Version
		for i := range w.Plan.Steps {
			steps(&w.Plan.Steps[i])
		}
	}
	if w.CurrentStep != nil {
		steps(w.CurrentStep)
	}
}

func (e *event) eitherID() error {
	if e.instance != "" {
		return checkTaskID("instanceId", e.instance)
	}
	return checkTaskID("taskId", e.task)
}

func verdict(alive *bool) Health {
	switch {
	case alive == nil:
		return HealthUnknown
	case *alive:
		return Alive
	}
	return Dead
}

func need(name, value string) error {
	if value == "" {
		return fmt.Errorf("no %s", name)
	}
	return nil
}

// maxID bounds what names something: Marathon's own ids end at some 250 bytes.
const maxID = 1024

// checkAppID refuses what no Marathon accepts as an id and what could do harm further
// on: ids become parts of URLs, names of proxies and lines of logs.
func checkAppID(id string) error {
	switch {
	case id == "":
		return errors.New("no app id")
	case id[0] != '/' || len(id) > maxID:
		return fmt.Errorf("app id %q: want an absolute path of at most %d bytes", clip(id), maxID)
	case !plain(id) || strings.ContainsAny(id, "?#%\\\"'"):
		return fmt.Errorf("app id %q: holds a byte that no app id has", clip(id))
	}
	for part := range strings.SplitSeq(id, "/") {
		if part == "." || part == ".." {
			return fmt.Errorf("app id %q: want no relative parts", clip(id))
		}
	}
	return nil
}

func checkTaskID(what, id string) error {
	if id == "" {
		return fmt.Errorf("no %s", what)
	}
	if len(id) > maxID || !plain(id) {
		return fmt.Errorf("%s %q: want at most %d printable bytes without spaces", what, clip(id), maxID)
	}
	return nil
}

// plain: printable ASCII without spaces.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// parseTime reads Marathon's ISO 8601 into Unix milliseconds, 0 for none.
func parseTime(s string) int64 {
	if s == "" {
		return 0
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return 0
	}
	return t.UnixMilli()
}

// parseAddrs keeps the addresses that are some.
func parseAddrs(ips []wireIP) []netip.Addr {
	if len(ips) == 0 {
		return nil
	}
	addrs := make([]netip.Addr, 0, len(ips))
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip.Address); err == nil && a.Zone() == "" {
			addrs = append(addrs, a.Unmap())
		}
	}
	return addrs
}
