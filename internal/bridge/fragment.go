package bridge

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"bridged/internal/discovery"
	"bridged/internal/haproxy"
)

// dialect is what names and shapes proxies.
type dialect interface {
	// name is the proxy name of a service port.
	name(app string, port uint16) string
	// shape makes everything of a fragment but servers.
	shape(v *view) (*fragment, error)
	// server makes the line of one task. ok is false for a task that has none.
	server(f *fragment, v *view, task *discovery.Task, state haproxy.State) (s haproxy.Server, ok bool)
	// finish orders servers and does what needs all of them at once.
	finish(f *fragment, v *view, servers []haproxy.Server) ([]haproxy.Server, error)
	// shared makes the sections that belong to no service.
	shared(t *Translator) []sharedSection
}

// sharedSection is a frontend, a backend, or both, that belong to no service.
type sharedSection struct {
	frontend *haproxy.Section
	backend  *haproxy.Backend
}

// appKey names an app of one Marathon.
type appKey struct{ source, id string }

// unitKey names what is translated as one app: an app, or a deployment group.
type unitKey struct {
	source string
	id     string
	group  bool
}

// unit is an app, or the apps of a deployment group.
type unit struct {
	key     unitKey
	members map[string]*member
	entries map[int]*entry
	// appRoute is the backend that answers for the app id in the app-id map.
	appRoute string
}

// member is what Marathon says about one app.
type member struct {
	id       string
	unit     *unit
	services map[int]*discovery.Service
	dep      deployment
	depFrom  *discovery.App
	depErr   error
}

// entry is one service port of a unit, and what became of it.
type entry struct {
	unit  *unit
	index int

	good     *definition // last definition that could be used
	defFrom  *discovery.App
	defErr   error     // why the present definition is not the good one
	defSince time.Time // since when

	// nodePort latches that a task on this node needs the port itself: while HAProxy has
	// it such a task cannot start, so its absence proves nothing.
	nodePort    bool
	nodePortFor string // version of the app that it was seen for

	autoPort uint16 // assigned port, 0: none

	frag    *fragment  // wanted, if every claim is won
	claimed []claim    // what frag needs
	live    *fragment  // what HAProxy was told
	bad     *Rejection // the definition cannot be used
	lost    *Rejection // somebody else has what it needs

	shades     map[string]string // vhosts of its for which somebody else answers: host → app
	shadeSince time.Time
}

// definition is an app's definition of one service port, understood.
type definition struct {
	app  *discovery.App
	port discovery.Port
	set  *settings
}

// view is what a dialect sees of a service.
type view struct {
	*definition
	id       string // of the app, or of its deployment group
	owner    string // app that answers for it
	number   uint16 // service port in force
	override bool   // it came from a label
	tasks    []*discovery.Task
	draining map[string]bool                      // task ids that a deployment group drains
	sibling  func(rank int, taskID string) uint16 // port of a task in the unit's rank-th service
	entry    *entry
}

// fragment is what one service adds to the configuration.
type fragment struct {
	view     *view
	name     string
	mode     haproxy.Mode
	backend  *haproxy.Backend
	frontend *haproxy.Section // nil where the backend has the binds
	userlist *haproxy.Section
	bind     haproxy.Bind
	routes   []route
	chunk    *chunk // routing as text, where maps do not express it

	guarded  bool                                  // the backend asks for credentials
	template bool                                  // servers are written by a template of somebody else's
	checkOf  func(*discovery.Task) (string, error) // words of a server's health check; nil: none
	ids      map[int]bool                          // server ids in use
	names    map[string]bool                       // server names in use
	err      error                                 // of a server
}

// label is the full name of a label of this service port.
func (v *view) label(name string) string {
	return labelPrefix + strconv.Itoa(v.entry.index) + "_" + name
}

// siblingByRank is the k-th service of a unit in the order of service ports.
func siblingByRank(u *unit, k int) *fragment {
	var frags []*fragment
	for _, e := range u.entries {
		if e.frag != nil {
			frags = append(frags, e.frag)
		}
	}
	slices.SortFunc(frags, func(a, b *fragment) int { return cmp.Compare(a.view.number, b.view.number) })
	if k < len(frags) {
		return frags[k]
	}
	return nil
}

// fragmentError is a definition that cannot be rendered for a reason that is not a label.
type fragmentError struct {
	reason Reason
	detail string
}

func (e *fragmentError) Error() string { return e.detail }
