package haproxy

// Reason says why a change takes the slow lane. The set is closed: reasons are values
// of a metric's label.
type Reason string

const (
	ReasonTakeover       Reason = "takeover"        // HAProxy runs a configuration that is not ours
	ReasonStructure      Reason = "structure"       // the running one is ours, but not of this structure
	ReasonStart          Reason = "start"           // no HAProxy runs, we start it
	ReasonGlobal         Reason = "global"          // global or defaults changed
	ReasonTemplate       Reason = "template"        // our template changed
	ReasonUserlist       Reason = "userlist"        // a userlist changed
	ReasonFrontend       Reason = "frontend"        // a frontend changed
	ReasonBackend        Reason = "backend"         // options of a backend changed
	ReasonBackendAdded   Reason = "backend-added"   // a backend is new
	ReasonBackendRemoved Reason = "backend-removed" // a backend is gone
	ReasonMap            Reason = "map"             // a map is new, gone or of another kind
	ReasonSlots          Reason = "slots"           // a backend grew beyond its spare slots
	ReasonSticky         Reason = "sticky"          // a server with a cookie, which this version cannot add
	ReasonAddServer      Reason = "add-server"      // this version cannot add servers
	ReasonBalance        Reason = "balance"         // the balance algorithm takes no servers at run time
	ReasonServer         Reason = "server"          // a server kept its name and changed otherwise
	ReasonServerOptions  Reason = "server-options"  // a server option that no runtime command can set
	ReasonCertificate    Reason = "certificate"     // a certificate that HAProxy takes at a start alone
	ReasonRefused        Reason = "command-refused" // HAProxy refused a runtime command twice
)

var allReasons = []Reason{
	ReasonTakeover, ReasonStructure, ReasonStart, ReasonGlobal, ReasonTemplate, ReasonUserlist, ReasonFrontend,
	ReasonBackend, ReasonBackendAdded, ReasonBackendRemoved, ReasonMap, ReasonSlots, ReasonSticky, ReasonAddServer,
	ReasonBalance, ReasonServer, ReasonServerOptions, ReasonCertificate, ReasonRefused,
}
