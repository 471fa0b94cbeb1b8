package marathontest

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Request is one request that a node received.
type Request struct {
	Time   time.Time
	Node   int
	Method string
	Path   string // with query, without the base path
	Accept string
	Auth   string // the Authorization header as it came, credentials and all: the simulator has no secrets
	Agent  string // User-Agent
	Via    bool   // it came through a standby
	Status int    // 0 while it is being answered, and for streams
}

// requestLog keeps the last requests, and counts all. It has a lock of its own.
type requestLog struct {
	mu    sync.Mutex
	keep  int
	list  []*Request
	total int
}

func (l *requestLog) add(r *Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total++
	if len(l.list) >= 2*l.keep {
		l.list = append(l.list[:0], l.list[len(l.list)-l.keep:]...)
	}
	l.list = append(l.list, r)
}

func (l *requestLog) status(r *Request, code int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.Status = code
}

// Requests are the requests received, oldest first, the last Options.RequestLog of them.
func (c *Cluster) Requests() []Request {
	c.requests.mu.Lock()
	defer c.requests.mu.Unlock()
	list := c.requests.list
	list = list[max(0, len(list)-c.requests.keep):]
	out := make([]Request, len(list))
	for i, r := range list {
		out[i] = *r
	}
	return out
}

// RequestCount is the number of requests received so far.
func (c *Cluster) RequestCount() int {
	c.requests.mu.Lock()
	defer c.requests.mu.Unlock()
	return c.requests.total
}

// answer is a response on its way out: faults may still change it.
type answer struct {
	status int
	header http.Header
	body   []byte
	kind   string // content type
}

func jsonAnswer(status int, body []byte) answer {
	return answer{status: status, body: body, kind: "application/json"}
}

func messageAnswer(status int, message string) answer {
	return jsonAnswer(status, member("message", appendQuoted(nil, message)))
}

type endKey struct{}

// endsAtOnce tells whether a fault wants the stream to end after its headers.
func endsAtOnce(r *http.Request) bool { return r.Context().Value(endKey{}) != nil }

// ServeHTTP answers one request as this node: authentication, then the leader
// filter, then the resource, with faults before and after.
func (n *node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := n.c
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	c.wg.Add(1)
	c.mu.Unlock()
	defer c.wg.Done()

	path, ok := strings.CutPrefix(r.URL.Path, c.opts.BasePath)
	login := r.URL.Path == "/acs/api/v1/auth/login"
	if !ok && !login {
		http.NotFound(w, r)
		return
	}
	if !login {
		r.URL.Path, r.URL.RawPath = path, ""
		r.RequestURI = r.URL.RequestURI()
	}
	entry := &Request{
		Time: time.Now(), Node: n.index, Method: r.Method, Path: r.URL.RequestURI(), Accept: strings.Join(r.Header.Values("Accept"), " | "),
		Auth: r.Header.Get("Authorization"), Agent: r.UserAgent(), Via: r.Header.Get("X-Marathon-Via") != "",
	}
	c.requests.add(entry)
	c.notify()
	defer c.notify()

	faults := c.faults.forRequest(n.index, r.Method, r.URL.RequestURI())
	early, r, ok := n.strikeEarly(w, r, faults)
	if !ok {
		return
	}
	if early == nil && login {
		a := c.login(r)
		early = &a
	}
	if early == nil {
		early = c.authenticate(r)
	}
	if early == nil && !n.leads(w, r, entry) {
		return
	}
	if early == nil && r.URL.Path == "/v2/events" && n.profile.sse && r.Method == http.MethodGet {
		n.setLeaderHeader(w.Header())
		n.serveEvents(w, r)
		return
	}
	a := answer{}
	if early != nil {
		a = *early
	} else {
		a = n.resource(r, faults)
	}
	n.setLeaderHeader(w.Header())
	c.requests.status(entry, a.status)
	n.write(w, r, a, faults)
}

// leads tells whether this node shall answer. If not it has answered: waited for
// a leader in vain, or passed the request on to it.
func (n *node) leads(w http.ResponseWriter, r *http.Request, entry *Request) bool {
	c := n.c
	ctx, cancel := context.WithTimeout(r.Context(), c.opts.LeaderWait)
	defer cancel()
	leader := c.Leader()
	if leader < 0 && n.profile.standbyServes {
		return true // without tasks, as resource sees that nobody leads
	}
	if leader < 0 {
		if c.Wait(ctx, func() bool { return c.Leader() >= 0 }) != nil {
			c.requests.status(entry, n.profile.noLeaderStatus)
			http.Error(w, "Could not determine the current leader", n.profile.noLeaderStatus)
			return false
		}
		leader = c.Leader()
	}
	if leader == n.index {
		return true
	}
	if leader >= 0 {
		n.standby(w, r, c.nodes[leader])
	}
	return false
}

func (n *node) setLeaderHeader(h http.Header) {
	h.Set("Server", "Jetty(9.3.z-SNAPSHOT)")
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Expires", "0")
	if leader := n.c.Leader(); n.profile.leaderHeader && leader >= 0 {
		h.Set("X-Marathon-Leader", n.c.nodes[leader].url())
	}
}

// strikeEarly applies the faults that come before any thought. It returns an
// answer that stands in for the real one, and false if there is none to give any more.
func (n *node) strikeEarly(w http.ResponseWriter, r *http.Request, faults []*Injected) (*answer, *http.Request, bool) {
	var early *answer
	for _, f := range faults {
		switch f.fault.Kind {
		case FailRequest:
			status := f.fault.Status
			if status == 0 {
				status = http.StatusServiceUnavailable
			}
			early = &answer{status: status, body: []byte(f.fault.Body), header: f.fault.Header, kind: "text/plain"}
		case RedirectRequest:
			early = &answer{status: http.StatusFound, header: http.Header{"Location": {f.fault.URL}}}
		case DelayRequest:
			if f.wait(r.Context(), max(0, f.fault.Delay)) != nil {
				panic(http.ErrAbortHandler)
			}
		case HangRequest:
			if f.wait(r.Context(), -1) != nil {
				panic(http.ErrAbortHandler)
			}
		case DropRequest, ResetRequest:
			if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
				if f.fault.Kind == ResetRequest {
					reset(conn)
				}
				conn.Close()
			}
			return nil, r, false
		case EndStream:
			r = r.WithContext(context.WithValue(r.Context(), endKey{}, true))
		}
	}
	return early, r, true
}

// write sends an answer, compressed if the version does that and the client asks for it.
func (n *node) write(w http.ResponseWriter, r *http.Request, a answer, faults []*Injected) {
	var slow, cut *Injected
	for _, f := range faults {
		switch f.fault.Kind {
		case EditBody:
			a.body = f.fault.Edit(slices.Clone(a.body))
		case FreezeAnswer:
			a.body = f.frozenAnswer(r.URL.RequestURI(), a.body)
		case ContentType:
			a.kind = f.fault.Body
		case SlowBody:
			slow = f
		case TruncateBody, CutBody:
			cut = f
		}
	}
	h := w.Header()
	for k, v := range a.header {
		h[k] = v
	}
	if a.kind != "" && len(a.body) > 0 {
		h.Set("Content-Type", a.kind)
	}
	if n.profile.gzip && !n.c.opts.NoCompression && r.Method == http.MethodGet && acceptsGzip(r) && len(a.body) > 0 {
		var zipped bytes.Buffer
		z, _ := gzip.NewWriterLevel(&zipped, gzip.BestSpeed) // the level is valid
		z.Write(a.body)                                      // into memory
		z.Close()
		a.body = zipped.Bytes()
		h.Set("Content-Encoding", "gzip")
		h.Add("Vary", "Accept-Encoding, User-Agent")
	}
	body := a.body
	if cut != nil {
		size := cut.fault.Bytes
		if size <= 0 || size >= len(body) {
			size = len(body) / 2
		}
		body = body[:size]
		if cut.fault.Kind == CutBody {
			n.writeCut(w, body)
			return
		}
	}
	h.Set("Content-Length", strconv.Itoa(len(a.body)))
	w.WriteHeader(a.status)
	if r.Method == http.MethodHead {
		return
	}
	if slow != nil {
		writeSlowly(w, r, body, slow)
	} else {
		w.Write(body) // a client that went away is no error here
	}
	if cut != nil {
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler) // the connection ends short of the promised length
	}
}

// writeCut sends a body that ends with the connection: nothing shows that it is not whole.
func (n *node) writeCut(w http.ResponseWriter, body []byte) {
	header := w.Header().Clone()
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	header.Set("Connection", "close")
	if writeHead(conn, header) == nil {
		conn.Write(body) // see above
	}
}

func writeSlowly(w http.ResponseWriter, r *http.Request, body []byte, f *Injected) {
	const tick = 20 * time.Millisecond
	chunk := max(1, f.fault.Rate*int(tick)/int(time.Second))
	for len(body) > 0 {
		size := min(chunk, len(body))
		if _, err := w.Write(body[:size]); err != nil {
			return
		}
		http.NewResponseController(w).Flush()
		body = body[size:]
		if f.wait(r.Context(), tick) != nil {
			return
		}
	}
}

func acceptsGzip(r *http.Request) bool {
	for _, v := range r.Header.Values("Accept-Encoding") {
		for part := range strings.SplitSeq(v, ",") {
			name, params, _ := strings.Cut(strings.TrimSpace(part), ";")
			if name == "gzip" && strings.TrimSpace(params) != "q=0" {
				return true
			}
		}
	}
	return false
}

// decodeBody reads a request's JSON, at most 16 MiB of it.
func decodeBody(r *http.Request, into any) error {
	return json.NewDecoder(http.MaxBytesReader(nil, r.Body, 16<<20)).Decode(into)
}
