package marathontest

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// node is one Marathon process: a listener, its connections, and its opinion on who leads.
type node struct {
	c         *Cluster
	index     int
	profile   *profile
	addr      string          // host:port, set once
	transport *http.Transport // to the leader

	life sync.Mutex // held while the node is opened or shut

	mu      sync.Mutex // guards what follows
	server  *http.Server
	conns   map[*conn]struct{}
	silence chan struct{} // closed when the node may write again; nil: it may
}

// conn is a connection that its node can silence and cut.
type conn struct {
	net.Conn
	n    *node
	done chan struct{}
	once sync.Once
}

type listener struct {
	net.Listener
	n *node
}

func (l *listener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: inner, n: l.n, done: make(chan struct{})}
	l.n.mu.Lock()
	l.n.conns[c] = struct{}{}
	l.n.mu.Unlock()
	return c, nil
}

func (c *conn) NetConn() net.Conn { return c.Conn }

// Write waits while the node is silent: nothing leaves a dead host.
func (c *conn) Write(b []byte) (int, error) {
	c.n.mu.Lock()
	silence := c.n.silence
	c.n.mu.Unlock()
	if silence != nil {
		select {
		case <-silence:
		case <-c.done:
			return 0, net.ErrClosed
		}
	}
	return c.Conn.Write(b)
}

func (c *conn) Close() error {
	c.once.Do(func() {
		close(c.done)
		c.n.mu.Lock()
		delete(c.n.conns, c)
		c.n.mu.Unlock()
	})
	return c.Conn.Close()
}

// open listens, on the address of before if there is one, and serves.
func (n *node) open() error {
	var ln net.Listener
	var err error
	switch {
	case n.c.opts.Listen != nil:
		ln, err = n.c.opts.Listen(n.index)
	case n.addr != "":
		ln, err = net.Listen("tcp", n.addr)
	default:
		ln, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if n.addr == "" {
		n.addr = ln.Addr().String()
		n.conns = make(map[*conn]struct{})
		n.transport = &http.Transport{
			DialContext: n.c.opts.Dial, DisableCompression: true, DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // nodes trust each other; certificates are for clients
		}
	}
	var wrapped net.Listener = &listener{ln, n}
	if n.c.opts.TLS != nil {
		wrapped = tls.NewListener(wrapped, n.c.opts.TLS)
	}
	server := &http.Server{
		Handler:           n,
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          log.New(io.Discard, "", 0), // faults make noise on purpose
		BaseContext:       func(net.Listener) context.Context { return n.c.ctx },
	}
	n.mu.Lock()
	n.server = server
	n.mu.Unlock()
	n.c.wg.Go(func() { server.Serve(wrapped) })
	return nil
}

// shut stops listening and cuts all connections, hard with a TCP reset.
func (n *node) shut(hard bool) {
	n.life.Lock()
	defer n.life.Unlock()
	n.mu.Lock()
	server := n.server
	n.server = nil
	n.mu.Unlock()
	n.cut(hard)
	if server != nil {
		server.Close() // with its listener, and what was accepted meanwhile
	}
}

// cut closes the connections that are open now.
func (n *node) cut(hard bool) {
	n.mu.Lock()
	var conns []*conn
	for c := range n.conns {
		conns = append(conns, c)
	}
	n.mu.Unlock()
	for _, c := range conns {
		if hard {
			reset(c)
		}
		c.Close()
	}
}

func (n *node) url() string {
	scheme := "http"
	if n.c.opts.TLS != nil {
		scheme = "https"
	}
	return scheme + "://" + n.addr
}

// URL is the address of a node, with the base path if there is one.
func (c *Cluster) URL(node int) string { return c.nodes[node].url() + c.opts.BasePath }

// URLs are the addresses of all nodes.
func (c *Cluster) URLs() []string {
	var urls []string
	for i := range c.nodes {
		urls = append(urls, c.URL(i))
	}
	return urls
}

// Leader is the number of the leading node, -1 if nobody leads.
func (c *Cluster) Leader() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leader
}

// Elect makes a node the leader, or nobody for -1. The one that led before
// closes its streams, and from 1.3.6 on all of its connections, as its process
// exits. Health check results are lost and come back after Options.RecheckDelay.
func (c *Cluster) Elect(node int) error {
	if node < -1 || node >= len(c.nodes) {
		return fmt.Errorf("elect node %d: there are %d nodes, counted from 0", node, len(c.nodes))
	}
	c.lock()
	if c.leader == node {
		c.unlock()
		return nil
	}
	old := c.leader
	c.leader = node
	c.term++
	streams := slices.Clone(c.streams)
	for _, a := range c.everyApp() {
		for _, t := range a.tasks {
			for i := range t.checks {
				t.checks[i].known = false
			}
			t.healthy = nil
			t.changed()
		}
	}
	if node >= 0 && c.profile != c.nodes[node].profile {
		c.profile = c.nodes[node].profile
		for _, a := range c.everyApp() {
			for _, d := range a.history {
				d.json = nil
			}
			a.def.json = nil
		}
	}
	c.unlock()
	for _, s := range streams {
		s.close(false)
	}
	if old >= 0 && c.nodes[old].profile.exitsOnDefeat {
		c.nodes[old].cut(false)
	}
	if node < 0 {
		return nil
	}
	c.lock()
	defer c.unlock()
	o := newObject(128)
	o.str("frameworkId", c.frameworkID)
	o.str("master", "mesos-master")
	c.publish("scheduler_registered_event", "", "", o)
	if c.opts.RecheckDelay >= 0 {
		term := c.term
		c.after(c.opts.RecheckDelay, func() {
			if c.term == term {
				c.recheck()
			}
		})
	}
	return nil
}

// Recheck lets the leader find out the health of all tasks again. Marathon tells
// of each first result as of a change.
func (c *Cluster) Recheck() {
	c.lock()
	defer c.unlock()
	c.recheck()
}

func (c *Cluster) recheck() {
	for _, a := range c.everyApp() {
		for _, t := range slices.Clone(a.tasks) {
			for i := range t.checks {
				if r := t.checks[i]; r.heard && !r.known {
					c.setHealth(t, i, r.alive)
				}
			}
		}
	}
}

// Outage is how a node goes away.
type Outage int

const (
	Refuse Outage = iota // connections end cleanly, new ones are refused
	Reset                // connections are reset, new ones are refused
	Silent               // nothing is sent any more, connections stay and are still accepted by the kernel
)

// Stop takes a node away. It stays leader, if it is, until another one is elected.
func (c *Cluster) Stop(node int, how Outage) {
	n := c.nodes[node]
	if how == Silent {
		n.mu.Lock()
		if n.silence == nil {
			n.silence = make(chan struct{})
		}
		n.mu.Unlock()
		c.mu.Lock()
		for _, s := range c.streams {
			if s.node == n {
				s.mu.Lock()
				s.silent = true
				s.mu.Unlock()
			}
		}
		c.mu.Unlock()
		return
	}
	n.shut(how == Reset)
}

// Resume brings a node back that was stopped. Connections from before a silence are reset.
func (c *Cluster) Resume(node int) error {
	n := c.nodes[node]
	n.life.Lock()
	defer n.life.Unlock()
	n.mu.Lock()
	silence, open := n.silence, n.server != nil
	n.mu.Unlock()
	if silence != nil {
		n.cut(true)
		n.mu.Lock()
		n.silence = nil
		n.mu.Unlock()
		close(silence)
	}
	if open {
		return nil
	}
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return errClosed
	}
	if err := n.open(); err != nil {
		return fmt.Errorf("node %d: %w", node, err)
	}
	return nil
}

// standby answers on a node that does not lead: from 1.7.50 on it sends
// listeners to the leader, everything else it fetches from there.
func (n *node) standby(w http.ResponseWriter, r *http.Request, leader *node) {
	if via := r.Header.Get("X-Marathon-Via"); via != "" {
		http.Error(w, "Detected proxying loop.", http.StatusBadGateway)
		return
	}
	stream := r.URL.Path == "/v2/events"
	if stream && n.profile.standby == standbyRedirects {
		http.Redirect(w, r, leader.url()+n.c.opts.BasePath+r.URL.RequestURI(), http.StatusFound)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	out, err := http.NewRequestWithContext(ctx, r.Method, leader.url()+n.c.opts.BasePath+r.URL.RequestURI(), r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	out.Header = r.Header.Clone()
	out.ContentLength = r.ContentLength
	via := "1.1 " + n.addr
	out.Header.Set("X-Marathon-Via", via)
	// The read time-out starts anew with each byte. What is cut by it is closed as if it were complete.
	deadline := time.AfterFunc(n.c.opts.ProxyTimeout, cancel)
	defer deadline.Stop()
	answer, err := n.transport.RoundTrip(out)
	if err != nil {
		http.Error(w, "could not reach the leader: "+err.Error(), n.profile.noLeaderStatus)
		return
	}
	defer answer.Body.Close()
	header := answer.Header
	header.Set("X-Marathon-Via", via)
	if !stream || answer.StatusCode != http.StatusOK {
		clear(w.Header())
		for k, v := range header {
			w.Header()[k] = v
		}
		w.WriteHeader(answer.StatusCode)
		io.Copy(w, &keepAlive{answer.Body, deadline, n.c.opts.ProxyTimeout})
		return
	}
	client, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer client.Close()
	n.c.wg.Go(func() {
		io.Copy(io.Discard, client)
		cancel()
	})
	header.Set("Connection", "close")
	if writeHead(client, header) != nil {
		return
	}
	body := &keepAlive{answer.Body, deadline, n.c.opts.ProxyTimeout}
	if n.profile.proxyBuffer == 0 {
		io.Copy(client, body)
		return
	}
	// Copied through a buffer that nobody flushes: events come late, in lumps.
	buffered := bufio.NewWriterSize(client, n.profile.proxyBuffer)
	io.Copy(writerOnly{buffered}, body)
	buffered.Flush()
}

// keepAlive pushes a deadline on with each read.
type keepAlive struct {
	r        io.Reader
	deadline *time.Timer
	d        time.Duration
}

func (k *keepAlive) Read(b []byte) (int, error) {
	n, err := k.r.Read(b)
	k.deadline.Reset(k.d)
	return n, err
}

// writerOnly hides ReadFrom, which would get around the buffer's size.
type writerOnly struct{ io.Writer }
