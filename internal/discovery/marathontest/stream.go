package marathontest

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// sink takes the events of one listener: a stream or a callback subscription.
type sink interface {
	place() (node, stream int)
	// wire is the event in the form this listener gets; nil if it asked for others only.
	wire(ev *Event) []byte
	// enqueue takes bytes as they go on the wire; end says whether and how the stream ends after them.
	enqueue(ev *Event, wire []byte, end ending)
	// heldBy is where the events are that a fault keeps back.
	heldBy(f *Injected) *held
}

type ending uint8

const (
	goesOn ending = iota
	endsClean
	endsReset
)

// held are events that a fault keeps back on one stream, guarded by the cluster's lock.
type held struct {
	events []heldEvent
	armed  bool
}

type heldEvent struct {
	ev   *Event
	wire []byte
}

// route applies the faults to an event on its way to one listener.
func (c *Cluster) route(s sink, ev *Event) {
	wire, end := s.wire(ev), goesOn
	copies := 1
	var hold *Injected
	node, number := s.place()
	for _, f := range c.faults.forEvent(node, number, ev) {
		switch f.fault.Kind {
		case LoseEvent:
			return
		case DuplicateEvent:
			copies++
		case SwapEvent, ReorderEvents:
			hold = f
		case DelayEvent:
			c.after(f.fault.Delay, func() { s.enqueue(ev, wire, goesOn) })
			return
		case CutBefore:
			wire, end = nil, endsClean
		case CutAfter:
			end = endsClean
		case CutInside, ResetInside:
			n := f.fault.Bytes
			if n <= 0 || n >= len(wire) {
				n = len(wire) / 2
			}
			wire, end = wire[:n], endsClean
			if f.fault.Kind == ResetInside {
				end = endsReset
			}
		default:
			wire = garble(f.fault.Kind, c.profile, ev)
		}
	}
	if hold != nil {
		c.hold(s, hold, ev, wire)
		return
	}
	for range copies {
		s.enqueue(ev, wire, end)
	}
	c.releaseSwapped(s)
}

// hold keeps an event back until its fault is satisfied or a short time has passed.
func (c *Cluster) hold(s sink, f *Injected, ev *Event, wire []byte) {
	h := s.heldBy(f)
	h.events = append(h.events, heldEvent{ev, wire})
	if f.fault.Kind == ReorderEvents && len(h.events) >= max(2, f.fault.Window) {
		c.release(s, f)
		return
	}
	if !h.armed {
		h.armed = true
		delay := f.fault.Delay
		if delay <= 0 {
			delay = 20 * time.Millisecond
		}
		c.after(delay, func() {
			h.armed = false
			c.release(s, f)
		})
	}
}

func (c *Cluster) release(s sink, f *Injected) {
	h := s.heldBy(f)
	events := h.events
	h.events = nil
	if f.fault.Kind == ReorderEvents {
		c.faults.shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
	}
	for _, e := range events {
		s.enqueue(e.ev, e.wire, goesOn)
	}
}

// releaseSwapped lets events go that waited for another one to pass them.
func (c *Cluster) releaseSwapped(s sink) {
	c.faults.mu.Lock()
	list := slices.Clone(c.faults.list)
	c.faults.mu.Unlock()
	for _, f := range list {
		if f.fault.Kind == SwapEvent {
			c.release(s, f)
		}
	}
}

// garble is the event in one of the forms in which it should not come.
func garble(kind FaultKind, p *profile, ev *Event) []byte {
	half := len(ev.JSON) / 2
	frame := p.frame(ev.Type, ev.JSON)
	switch kind {
	case GarbleEvent:
		return p.frame(ev.Type, ev.JSON[:half])
	case JoinEvents:
		return p.frame(ev.Type, slices.Concat(ev.JSON, []byte("\r\ndata: "), ev.JSON))
	case SplitData:
		// A line break is allowed between any two tokens.
		at := bytes.IndexByte(ev.JSON, ',') + 1
		return p.frame(ev.Type, slices.Concat(ev.JSON[:at], []byte("\r\ndata: "), ev.JSON[at:]))
	case BareLF:
		return bytes.ReplaceAll(frame, []byte("\r\n"), []byte("\n"))
	case LoneCR:
		return bytes.ReplaceAll(frame, []byte("\r\n"), []byte("\r"))
	}
	return frame
}

// frame is one event waiting to be written.
type frame struct {
	wire []byte
	end  ending
}

// stream is one open /v2/events.
type stream struct {
	c      *Cluster
	node   *node
	id     int
	conn   net.Conn
	remote string
	types  map[string]bool // nil: all
	light  bool

	held map[*Injected]*held // guarded by the cluster's lock

	wake chan struct{} // a level: there may be something to write
	done chan struct{}
	once sync.Once

	mu          sync.Mutex // guards what follows
	queue       []frame
	outstanding int  // events accepted and not written yet, filtered ones included
	dropped     int  // by overflow
	sent        int  // events written
	stalled     bool // events wait, heartbeats go on
	silent      bool // nothing is written
}

func (s *stream) place() (int, int) { return s.node.index, s.id }

func (s *stream) heldBy(f *Injected) *held {
	h := s.held[f]
	if h == nil {
		h = &held{}
		s.held[f] = h
	}
	return h
}

func (s *stream) wire(ev *Event) []byte {
	if s.types != nil && !s.types[ev.Type] {
		return nil
	}
	if ev.fat != nil && !s.light {
		return ev.fat
	}
	return ev.frame
}

// enqueue hands an event to the writer. As in Marathon the type filter is
// applied after the queue, so that events nobody asked for fill it too.
func (s *stream) enqueue(_ *Event, wire []byte, end ending) {
	s.mu.Lock()
	limit := s.c.opts.QueueLimit
	if limit == 0 {
		limit = s.c.profile.queueLimit
	}
	if limit > 0 && s.outstanding >= limit {
		s.dropped++
		s.mu.Unlock()
		if s.c.profile.overflowCloses {
			s.c.wg.Go(func() { s.close(false) }) // it locks the cluster, which the caller holds
		}
		return
	}
	s.outstanding++
	s.queue = append(s.queue, frame{wire, end})
	s.mu.Unlock()
	s.kick()
}

func (s *stream) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// drained tells whether everything was written that can be written now.
func (s *stream) drained() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.outstanding == 0 || s.stalled || s.silent
}

// run writes until the stream is closed: events as they come, and a heartbeat
// (CR, flush, LF, flush, as Jetty's EventSourceServlet has it) at each interval.
func (s *stream) run() {
	beat := time.NewTicker(s.c.opts.Heartbeat)
	defer beat.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-beat.C:
			s.mu.Lock()
			silent := s.silent
			s.mu.Unlock()
			if silent {
				continue
			}
			for _, b := range [...]string{"\r", "\n"} {
				if _, err := io.WriteString(s.conn, b); err != nil {
					s.close(false)
					return
				}
			}
		case <-s.wake:
			if !s.drain() {
				s.close(false)
				return
			}
		}
	}
}

// drain writes what waits, many events in one write if there are many. It
// returns false when the stream is to end.
func (s *stream) drain() bool {
	var buf []byte
	for {
		s.mu.Lock()
		if s.stalled || s.silent || len(s.queue) == 0 {
			s.mu.Unlock()
			s.c.notify()
			return true
		}
		if !s.node.profile.eventLine {
			// 0.9 and 0.10 send each event by itself: what waits goes out in any order.
			s.c.faults.shuffle(len(s.queue), func(i, j int) { s.queue[i], s.queue[j] = s.queue[j], s.queue[i] })
		}
		buf = buf[:0]
		taken, written, end := 0, 0, goesOn
		for _, f := range s.queue {
			taken++
			if f.wire != nil {
				written++
			}
			buf = append(buf, f.wire...)
			if end = f.end; end != goesOn || len(buf) >= 64<<10 {
				break
			}
		}
		rest := copy(s.queue, s.queue[taken:])
		clear(s.queue[rest:])
		s.queue = s.queue[:rest]
		s.mu.Unlock()

		var err error
		if len(buf) > 0 { // all of it may have been filtered
			_, err = s.conn.Write(buf)
		}
		s.mu.Lock()
		s.outstanding -= taken
		s.sent += written
		s.mu.Unlock()
		if end == endsReset {
			reset(s.conn)
		}
		if err != nil || end != goesOn {
			return false
		}
	}
}

// close ends the stream; hard cuts it with a TCP reset. The cluster must not be locked by the caller.
func (s *stream) close(hard bool) {
	s.once.Do(func() {
		close(s.done)
		if hard {
			reset(s.conn)
		}
		s.conn.Close()
		s.c.lock()
		defer s.c.unlock()
		s.c.streams = slices.DeleteFunc(s.c.streams, func(o *stream) bool { return o == s })
		if !s.c.closed {
			o := newObject(128)
			o.str("remoteAddress", s.remote)
			s.c.publish("event_stream_detached", "", "", o)
		}
	})
}

// reset makes the connection's close a TCP reset.
func reset(conn net.Conn) {
	type unwrapper interface{ NetConn() net.Conn }
	for {
		if tcp, ok := conn.(*net.TCPConn); ok {
			tcp.SetLinger(0)
			tcp.Close()
			return
		}
		inner, ok := conn.(unwrapper)
		if !ok {
			conn.Close()
			return
		}
		conn = inner.NetConn()
	}
}

// serveEvents answers GET /v2/events on the leader.
func (n *node) serveEvents(w http.ResponseWriter, r *http.Request) {
	// Jetty compares the header as a whole, and each of its values by itself.
	if !slices.Contains(r.Header.Values("Accept"), "text/event-stream") {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	c := n.c
	query := r.URL.Query()
	s := &stream{
		c: c, node: n, remote: remoteAddress(r), wake: make(chan struct{}, 1), done: make(chan struct{}),
		held: make(map[*Injected]*held), light: slices.Contains(query["plan-format"], "light"),
	}
	if types := query["event_type"]; n.profile.typeFilter && len(types) > 0 {
		s.types = make(map[string]bool)
		for _, t := range types {
			s.types[t] = true
		}
	}
	header := w.Header().Clone()
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "the connection cannot be taken over: "+err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	header.Set("Content-Type", "text/event-stream;charset=UTF-8")
	header.Set("Connection", "close")
	if err := writeHead(conn, header); err != nil || endsAtOnce(r) {
		return
	}
	s.conn = conn
	c.lock()
	if c.closed || c.leader != n.index {
		c.unlock()
		return
	}
	c.streamCount++
	s.id = c.streamCount
	c.streams = append(c.streams, s)
	o := newObject(128)
	o.str("remoteAddress", s.remote)
	c.publish("event_stream_attached", "", "", o)
	c.unlock()

	c.wg.Go(func() {
		// The client sends nothing more; reading is how its going away is noticed.
		io.Copy(io.Discard, conn)
		s.close(false)
	})
	s.run()
	s.close(false)
}

// writeHead writes the head of an answer that ends with the connection.
func writeHead(conn net.Conn, header http.Header) error {
	var b bytes.Buffer
	b.WriteString("HTTP/1.1 200 OK\r\n")
	header.Write(&b)
	b.WriteString("\r\n")
	_, err := conn.Write(b.Bytes())
	return err
}

func remoteAddress(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return strings.TrimSpace(r.RemoteAddr)
	}
	return host
}

// Streams is the number of open event streams.
func (c *Cluster) Streams() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams)
}

// StreamStats is what one open stream has seen.
type StreamStats struct {
	ID      int // counts attachments, from 1
	Node    int
	Sent    int // events written
	Dropped int // events lost by overflow
	Waiting int // events not written yet
}

// StreamStats tells about each open stream.
func (c *Cluster) StreamStats() []StreamStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []StreamStats
	for _, s := range c.streams {
		s.mu.Lock()
		out = append(out, StreamStats{ID: s.id, Node: s.node.index, Sent: s.sent, Dropped: s.dropped, Waiting: s.outstanding})
		s.mu.Unlock()
	}
	return out
}

// CutStreams ends all event streams; hard with a TCP reset, else with a clean
// end of file between two events. New ones are accepted.
func (c *Cluster) CutStreams(hard bool) {
	c.mu.Lock()
	streams := slices.Clone(c.streams)
	c.mu.Unlock()
	for _, s := range streams {
		s.close(hard)
	}
}

// StallStreams stops events on all present streams while heartbeats go on, as
// Marathon 0.13 and 0.14 did under load; false lets the events go that waited.
func (c *Cluster) StallStreams(on bool) { c.eachStream(func(s *stream) { s.stalled = on }) }

// SilenceStreams stops events and heartbeats on all present streams, as when a
// host dies; false lets them go on.
func (c *Cluster) SilenceStreams(on bool) { c.eachStream(func(s *stream) { s.silent = on }) }

func (c *Cluster) eachStream(f func(*stream)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.streams {
		s.mu.Lock()
		f(s)
		s.mu.Unlock()
		s.kick()
	}
}
