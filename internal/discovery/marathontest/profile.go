package marathontest

import (
	"fmt"
	"strconv"
	"strings"
)

// Versions are the Marathon versions at which the protocol changed in a way that
// a client can see. Any other version is accepted too and behaves as the nearest
// one below it.
var Versions = []string{
	"0.8.0", "0.8.2", "0.9.0", "0.10.0", "0.11.0", "0.14.0", "1.1.0", "1.3.0", "1.3.7", "1.4.0",
	"1.5.0", "1.5.9", "1.6.322", "1.7.37", "1.7.50", "1.8.180", "1.9.32", "1.11.0",
}

type planForm uint8

const (
	planHeavy   planForm = iota // deployment events hold the root group twice
	planByQuery                 // light if asked for by ?plan-format=light
	planLight                   // never heavy
)

type standbyForm uint8

const (
	standbyProxies standbyForm = iota
	standbyRedirects
)

// profile is what one version of Marathon does differently from others. It is
// made from the version number alone; each member says since when.
type profile struct {
	version string
	num     [3]int

	sse            bool // /v2/events, 0.9
	callbacks      bool // /v2/eventSubscriptions, to 1.4
	eventLine      bool // "event:" line and order kept, 0.11
	queueLimit     int  // outstanding events of one stream: 50, from 1.5 on 1024
	overflowCloses bool // 1.8; before, the newest event is dropped in silence
	typeFilter     bool // ?event_type=, 1.3.7
	plan           planForm

	standby        standbyForm // of /v2/events; everything else is always proxied
	standbyServes  bool        // 0.8: without a leader a node answers for itself, without tasks
	proxyBuffer    int         // bytes a standby holds back on a stream
	leaderHeader   bool        // X-Marathon-Leader, 0.9
	noLeaderStatus int         // 503, from 1.7.149 on 502
	exitsOnDefeat  bool        // 1.3.6: the process ends when it loses leadership
	gzip           bool        // 1.2

	instances      bool // instance ids and events, 1.4
	instanceTasks  bool // task ids hold the instance id and count launches, 1.8
	keepsTerminal  bool // terminal tasks stay listed until relaunch, 1.8
	goalEvents     bool // a wanted kill repeats the condition, 1.8
	allStates      bool // status_update_event for every change, 1.1.1
	combinedHealth bool // instance_health_changed_event for Marathon's own checks, 1.5.8 and 1.6.486

	actionKey       string // of a deployment action: "type", from 1.1.2 on "action"
	planInResult    bool   // deployment_success has a plan, 0.10
	reasonInFailure bool   // deployment_failed has a reason, 1.6.590
	postBefore      bool   // api_post_event comes before the commit and for deletes, to 0.10
	singleEmbed     bool   // only the first ?embed= counts, to 0.10
	stepsAsArrays   bool   // /v2/deployments has bare lists of actions, to 1.0

	raml        bool // generated serializers: absent options are left out, 1.5
	emptyLists  bool // empty lists of a task are written, 1.6
	taskState   bool // 1.3
	slaveID     bool // 0.11
	ipAddresses bool // 0.14
	zones       bool // region and zone, 1.6
	role        bool // 1.9
	versionInfo bool // 0.11
}

func newProfile(version string) (*profile, error) {
	p := &profile{version: version}
	head, _, _ := strings.Cut(version, "-")
	parts := strings.Split(head, ".")
	if len(parts) < 2 {
		return nil, fmt.Errorf("marathon version %q: want at least two numbers, as in 1.11", version)
	}
	for i := range min(len(parts), len(p.num)) {
		n, err := strconv.Atoi(parts[i])
		if err != nil || n < 0 {
			return nil, fmt.Errorf("marathon version %q: %q is not a number", version, parts[i])
		}
		p.num[i] = n
	}
	if !p.since(0, 8, 0) {
		return nil, fmt.Errorf("marathon version %q: the oldest that is known is 0.8.0", version)
	}
	since := p.since
	p.sse = since(0, 9, 0)
	p.callbacks = !since(1, 5, 0)
	p.eventLine = since(0, 11, 0)
	p.queueLimit = 50
	if since(1, 5, 0) {
		p.queueLimit = 1024
	}
	p.overflowCloses = since(1, 8, 0)
	p.typeFilter = since(1, 3, 7)
	switch {
	case since(1, 7, 0):
		p.plan = planLight
	case since(1, 6, 322), since(1, 5, 9) && !since(1, 6, 0):
		p.plan = planByQuery
	}
	if since(1, 7, 50) {
		p.standby = standbyRedirects
	}
	p.standbyServes = !since(0, 9, 0)
	if !since(0, 11, 0) || since(1, 5, 1) && !since(1, 5, 5) || since(1, 6, 0) && !since(1, 6, 1) {
		p.proxyBuffer = 32 << 10
	}
	p.leaderHeader = since(0, 9, 0)
	p.noLeaderStatus = 503
	if since(1, 7, 149) {
		p.noLeaderStatus = 502
	}
	p.exitsOnDefeat = since(1, 3, 6)
	p.gzip = since(1, 2, 0)

	p.instances = since(1, 4, 0)
	p.instanceTasks = since(1, 8, 0)
	p.keepsTerminal = since(1, 8, 0)
	p.goalEvents = since(1, 8, 0)
	p.allStates = since(1, 1, 1)
	p.combinedHealth = since(1, 6, 486) || since(1, 5, 8) && !since(1, 6, 0)

	p.actionKey = "type"
	if since(1, 1, 2) {
		p.actionKey = "action"
	}
	p.planInResult = since(0, 10, 0)
	p.reasonInFailure = since(1, 6, 590)
	p.postBefore = !since(0, 11, 0)
	p.singleEmbed = !since(0, 11, 0)
	p.stepsAsArrays = !since(1, 1, 0)

	p.raml = since(1, 5, 0)
	p.emptyLists = since(1, 6, 0)
	p.taskState = since(1, 3, 0)
	p.slaveID = since(0, 11, 0)
	p.ipAddresses = since(0, 14, 0)
	p.zones = since(1, 6, 0)
	p.role = since(1, 9, 0)
	p.versionInfo = since(0, 11, 0)
	return p, nil
}

// since tells whether the profile's version is at least the one given.
func (p *profile) since(major, minor, patch int) bool {
	want := [3]int{major, minor, patch}
	for i, n := range p.num {
		if n != want[i] {
			return n > want[i]
		}
	}
	return true
}
