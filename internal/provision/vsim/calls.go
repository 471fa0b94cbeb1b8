package vsim

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Call is one API call as it arrives.
type Call struct {
	Seq    int    // from 1, in order of arrival
	Method string // CloneVM_Task; for REST the verb and path: "POST /api/session"
	Type   string // of the object it is made on: VirtualMachine
	Object string // value of its reference: vm-42
	Agent  string // the client's User-Agent
}

// Mutating reports whether the call changes the inventory.
func (c Call) Mutating() bool {
	switch c.Method {
	case "Login", "Logout", "LoginByToken", "RetrieveServiceContent", "RetrieveProperties", "RetrievePropertiesEx",
		"ContinueRetrievePropertiesEx", "CancelRetrievePropertiesEx", "CreateContainerView", "CreateFilter",
		"DestroyPropertyFilter", "CreatePropertyCollector", "DestroyPropertyCollector", "WaitForUpdatesEx",
		"DestroyView", "FindByInventoryPath", "FindByUuid", "FindChild", "CurrentTime", "SessionIsActive",
		"HasPrivilegeOnEntities", "FetchUserPrivilegeOnEntities", "HasUserPrivilegeOnEntities",
		"CreateCollectorForTasks", "ReadNextTasks", "DestroyCollector", "QueryOptions", "Fetch":
		return false
	}
	if verb, path, rest := strings.Cut(c.Method, " "); rest {
		return verb != http.MethodGet && !strings.HasSuffix(path, "/session") &&
			!strings.Contains(path, "~action=list") && !strings.Contains(path, "~action=get") && !strings.Contains(path, "~action=find")
	}
	return true
}

// Verdict is what a hook decides about a call.
type Verdict int

// Verdicts.
const (
	Pass Verdict = iota
	Cut          // the connection is closed: before a call it is not made, after it its answer is lost
)

// Hook is called before a call is made (done false) and after, before its
// answer is sent (done true). It may be called concurrently.
type Hook func(c Call, done bool) Verdict

// Fault is something that goes wrong with calls of a method.
type Fault struct {
	Method string // as in Call; "": every call but Login and RetrieveServiceContent
	Name   string // only for the VM, or the clone, of this name; "": any
	Skip   int    // this many calls go right first
	Times  int    // 0: once, negative: always

	// What happens; one of them.
	Err    types.BaseMethodFault // the call is refused
	Task   types.BaseMethodFault // the call is accepted and its task fails half-way
	Delay  time.Duration         // the call takes that much longer
	Lose   bool                  // the session has ended
	Status int                   // HTTP status of the answer
	Cut    bool                  // the connection is closed, the call is not made
}

// calls counts what arrives and lets hooks and faults at it.
type calls struct {
	server *Server

	mu       sync.Mutex // guards what follows
	seq      int
	count    map[string]int
	log      []Call
	hook     Hook
	faults   []*Fault
	sessions map[string]bool // keys that were used; the simulator keeps no list
}

func newCalls(s *Server) *calls {
	return &calls{server: s, count: map[string]int{}, sessions: map[string]bool{}}
}

func (c *calls) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq, c.log = 0, nil
	clear(c.count)
}

// Hook sets the hook; nil removes it.
func (s *Server) Hook(h Hook) {
	s.calls.mu.Lock()
	defer s.calls.mu.Unlock()
	s.calls.hook = h
}

// Inject adds faults; of several that match a call the first counts.
func (s *Server) Inject(faults ...Fault) {
	s.calls.mu.Lock()
	defer s.calls.mu.Unlock()
	for _, f := range faults {
		if f.Times == 0 {
			f.Times = 1
		}
		s.calls.faults = append(s.calls.faults, &f)
	}
}

// Heal removes all faults.
func (s *Server) Heal() {
	s.calls.mu.Lock()
	defer s.calls.mu.Unlock()
	s.calls.faults = nil
}

// Calls returns how often each method was called since the start or ResetCalls.
func (s *Server) Calls() map[string]int {
	s.calls.mu.Lock()
	defer s.calls.mu.Unlock()
	return maps.Clone(s.calls.count)
}

// CallLog returns every call since the start or ResetCalls, in order.
func (s *Server) CallLog() []Call {
	s.calls.mu.Lock()
	defer s.calls.mu.Unlock()
	return append([]Call(nil), s.calls.log...)
}

// ResetCalls begins to count anew; Seq starts at 1 again.
func (s *Server) ResetCalls() { s.calls.reset() }

// Mutations returns the calls since ResetCalls that change the inventory.
func (s *Server) Mutations() []Call {
	var list []Call
	for _, c := range s.CallLog() {
		if c.Mutating() {
			list = append(list, c)
		}
	}
	return list
}

// LoseSessions ends every session, as a restart of vCenter's services does.
func (s *Server) LoseSessions() {
	s.calls.mu.Lock()
	keys := slices.Collect(maps.Keys(s.calls.sessions))
	clear(s.calls.sessions)
	s.calls.mu.Unlock()
	for _, key := range keys {
		s.endSession(key)
	}
}

func (s *Server) endSession(key string) {
	s.registry().SessionManager().TerminateSession(s.background(), &types.TerminateSession{SessionId: []string{key}})
}

// arrive notes a call and finds out what is to happen to it before it is made.
func (c *calls) arrive(call Call, session string) (Call, Hook, *Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if session != "" {
		c.sessions[session] = true
	}
	c.seq++
	call.Seq = c.seq
	c.count[call.Method]++
	c.log = append(c.log, call)
	return call, c.hook, c.matchLocked(call.Method, "", func(f *Fault) bool { return f.Err == nil && f.Task == nil })
}

// refused finds the fault that a call is answered with, or its task ends with.
func (c *calls) refused(method, name string) *Fault {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.matchLocked(method, name, func(f *Fault) bool { return f.Err != nil || f.Task != nil })
}

func (c *calls) matchLocked(method, name string, kind func(*Fault) bool) *Fault {
	for _, f := range c.faults {
		if f.Times == 0 || !kind(f) || f.Name != "" && f.Name != name {
			continue
		}
		switch {
		case f.Method == method:
		case f.Method == "" && method != "Login" && method != "RetrieveServiceContent":
		default:
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		if f.Times > 0 {
			f.Times--
		}
		return f
	}
	return nil
}

var soapCall = regexp.MustCompile(`Body[^>]*>\s*<(?:\w+:)?(\w+)[^>]*>\s*<(?:\w+:)?_this[^>]*?type="(\w+)"[^>]*>([^<]*)<`)

// parseCall reads what is called without decoding the whole request.
func parseCall(r *http.Request, body []byte) Call {
	call := Call{Agent: r.UserAgent(), Method: r.Method + " " + r.URL.RequestURI()}
	if m := soapCall.FindSubmatch(body); m != nil {
		call.Method, call.Type, call.Object = string(m[1]), string(m[2]), string(m[3])
	}
	return call
}

func (c *calls) middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		session := ""
		if cookie, err := r.Cookie(soap.SessionCookieName); err == nil {
			session = cookie.Value
		}
		call, hook, fault := c.arrive(parseCall(r, body), session)

		if hook != nil && hook(call, false) == Cut {
			cut()
		}
		delay := c.server.opt.Call
		if fault != nil {
			switch {
			case fault.Cut:
				cut()
			case fault.Status != 0:
				w.WriteHeader(fault.Status)
				return
			case fault.Lose:
				c.server.endSession(session)
			}
			delay += fault.Delay
		}
		if c.server.sleep(delay) != nil {
			cut()
		}
		serve := func(w http.ResponseWriter) {
			// The one waits for what others do; the REST services work through calls of
			// their own to this server.
			if call.Method == "WaitForUpdatesEx" || !strings.HasPrefix(r.URL.Path, "/sdk") {
				next.ServeHTTP(w, r)
				return
			}
			c.server.alone(func() { next.ServeHTTP(w, r) })
		}
		if hook == nil {
			serve(w)
			return
		}
		// Without an answer of its own the hook could not lose it.
		held := &answer{header: http.Header{}, status: http.StatusOK}
		serve(held)
		if hook(call, true) == Cut {
			cut()
		}
		maps.Copy(w.Header(), held.header)
		w.WriteHeader(held.status)
		_, _ = w.Write(held.body.Bytes())
	})
}

// answer holds a response back until the hook has seen the call done.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }

// cut closes the connection without an answer. The panic is net/http's own way.
func cut() { panic(http.ErrAbortHandler) }
