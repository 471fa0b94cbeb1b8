package haproxy

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Config is what one HAProxy shall run. It has one owner; the sections it points
// to are never modified once they are in it, so that a shallow copy is a snapshot
// and an unchanged pointer means an unchanged section.
type Config struct {
	Global    *Global
	Userlists map[string]*Section // kind userlist
	Frontends map[string]*Section // kind frontend
	Backends  map[string]*Backend // backend, or listen when it has binds
	Maps      map[string]*Map     // by map name: see Section.Lines
}

// Change is a set of new values for parts of a Config. A nil value removes the
// part. Its size, not the size of the Config, is what applying it costs.
type Change struct {
	Global    *Global // nil: unchanged
	Userlists map[string]*Section
	Frontends map[string]*Section
	Backends  map[string]*Backend
	Maps      map[string]map[string]string // map name → key → value; "" removes the key, nil the map
	MapKinds  map[string]string            // Map.Kind of maps that are named for the first time; default "str"

	// Received is when the bytes of the oldest event behind this change were read, for
	// the event-to-live metric; zero when no event caused it.
	Received time.Time
}

// Global is what the global and defaults sections are rendered from, beside the
// capabilities of the running HAProxy.
type Global struct {
	Socket        string   // stats socket with level admin
	SocketMode    string   // as written behind the path, such as "mode 660 group bridged"; "" for mode 600
	MaxConn       int      // 0: HAProxy's own
	Threads       int      // nbthread; 0: number of cores, at most 4 below HAProxy 2.8
	OldWorkers    int      // mworker-max-reloads follows from it
	CheckInterval string   // HAProxy time, such as "10s"
	HardStopAfter string   // HAProxy time, such as "10m"
	KeptGlobal    []string // lines of the operator's own global section that we do not own
	KeptDefaults  []string // the same of defaults
	KeptSections  string   // sections of the operator's file that are not ours, verbatim
}

// Mode is the proxy mode.
type Mode string

const (
	TCP  Mode = "tcp"
	HTTP Mode = "http"
)

// Kind is the keyword that opens a section.
type Kind string

const (
	KindUserlist Kind = "userlist"
	KindFrontend Kind = "frontend"
	KindBackend  Kind = "backend" // rendered as listen when it has binds
)

// Section is one section of haproxy.cfg. Anything in it differing from what runs
// is structure: it takes the slow lane.
type Section struct {
	Kind  Kind
	Name  string
	Mode  Mode // "" for sections that have none
	Binds []Bind

	// Lines is the body after mode and binds, one directive each without indent.
	// Every value in them was validated where it entered; a line break inside a line
	// is an error of the caller that render refuses. The token %map(NAME) stands for
	// the path of Config.Maps[NAME].
	Lines []string

	// LineOwners says for each of Lines which app it was made for, "" for the bridge's own;
	// nil when all are Owner's. It lets one app's lines be taken out of a shared section.
	LineOwners []string

	// Owner is the app that this section exists for, "" for the bridge's own: who is
	// taken out when HAProxy refuses the section.
	Owner string

	// Unproven: the section holds text that HAProxy itself has to judge (raw labels,
	// own templates), so a reload is preceded by haproxy -c.
	Unproven bool

	// Order sorts sections of one kind before their names do.
	Order int
}

// Bind is one listener.
type Bind struct {
	Addr    string // "", "*", an IP literal, or "unix@/path", "abns@name"
	Port    uint16 // 0 for unix and abns
	PortEnd uint16 // above Port: a range; 0: one port
	Options string // such as "ssl crt /dir alpn h2,http/1.1"; validated words
}

// Backend is a section that has servers. Servers are not structure.
type Backend struct {
	Section
	Balance string // algorithm with its arguments; "" for the default of the defaults section

	// ServerOptions is written once as default-server and again on each server added
	// at run time (add server ignores default-server). Validated words, such as
	// "check inter 10s fastinter 1s".
	ServerOptions string

	// Servers in the order in which they are written, names unique.
	Servers []Server

	// Named: server names are part of the contract (dialect marathon-lb), so that no
	// slots stand in for them on HAProxy below 2.9.
	Named bool
}

// static reports whether b's servers stand in its lines, with words that no Server has
// (an abstract socket): they are structure, and no command may take them for left over.
func (b *Backend) static() bool {
	return b != nil && len(b.Servers) == 0 &&
		slices.ContainsFunc(b.Lines, func(line string) bool { return strings.HasPrefix(line, "server ") })
}

// Server is one line of a backend. Its name never changes its address.
type Server struct {
	Name   string // [A-Za-z0-9_.:-]{1,}
	Addr   netip.AddrPort
	State  State
	Weight int    // 0 to 256; -1: not written (1)
	ID     int    // explicit id, 0: none
	Cookie string // value of the persistence cookie, "" for none
	// Options are further validated words of this server alone, such as "check port 9999".
	Options string
}

// State is the admin state of a server.
type State uint8

const (
	Ready State = iota
	Drain       // no new sessions but persistent ones; rendered as weight 0
	Maint       // none at all; rendered as disabled
)

// Map is a HAProxy map: exact keys to values. It belongs to Config's owner, who alone
// modifies it; a snapshot for the renderer is a copy.
type Map struct {
	Kind    string // "str", "int", "beg", "reg": which map_ converter reads it
	Entries map[string]string
}
