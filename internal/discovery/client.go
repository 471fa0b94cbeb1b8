package discovery

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	dialTimeout   = 3 * time.Second
	headerTimeout = 5 * time.Second  // Marathon holds an attach up to 2.75 s while nobody leads
	silence       = 25 * time.Second // two keep-alives and a half
	maxRedirects  = 4
)

// client makes requests to the members of one Marathon cluster and to the leader they
// announce. Credentials go to these hosts and to no other, and never from https to
// http. It may be used from several goroutines.
type client struct {
	opts  Options
	creds credentials

	mu      sync.Mutex // guards what follows
	members []*url.URL
	leaders map[string]bool // host:port that members named
	rest    *http.Client
	stream  *http.Client
	files   string // what the TLS files were when rest and stream were made
}

func newClient(o Options) (*client, error) {
	c := &client{opts: o, leaders: map[string]bool{}}
	if err := c.setURLs(o.URLs); err != nil {
		return nil, err
	}
	if _, _, err := c.clients(); err != nil {
		return nil, err
	}
	c.creds = newCredentials(o.Auth, &http.Client{Transport: loginTransport{c}, CheckRedirect: noRedirect})
	return c, nil
}

func (c *client) setURLs(urls []string) error {
	members := make([]*url.URL, len(urls))
	for i, s := range urls {
		u, err := parseURL(s)
		if err != nil {
			return fmt.Errorf("urls[%d]: %w", i, err)
		}
		members[i] = u
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members = members
	clear(c.leaders)
	return nil
}

func (c *client) urls() []*url.URL {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.members
}

// clients returns the two HTTP clients: for plain requests, and for streams, whose
// connections give up when nothing arrives for too long. They are made anew when a TLS
// file has changed; a bad file leaves the old ones in use.
func (c *client) clients() (rest, stream *http.Client, err error) {
	files := stampFiles(c.opts.TLS.CAFile, c.opts.TLS.CertFile, c.opts.TLS.KeyFile)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rest != nil && c.files == files {
		return c.rest, c.stream, nil
	}
	conf, err := c.opts.TLS.config()
	if err != nil {
		if c.rest != nil {
			return c.rest, c.stream, nil
		}
		return nil, nil, err
	}
	if c.rest != nil {
		c.rest.CloseIdleConnections()
		c.stream.CloseIdleConnections()
	}
	dial := c.opts.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	transport := func(dial func(context.Context, string, string) (net.Conn, error)) *http.Transport {
		return &http.Transport{
			DialContext: dial, TLSClientConfig: conf, TLSHandshakeTimeout: dialTimeout,
			ResponseHeaderTimeout: 0, MaxIdleConnsPerHost: 4, IdleConnTimeout: 90 * time.Second,
		}
	}
	plainT, streamT := transport(dial), transport(func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &impatientConn{Conn: conn}, nil
	})
	// An answer is not complete until its end, so that compression only delays events.
	streamT.DisableCompression = true
	streamT.DisableKeepAlives = true
	streamT.ReadBufferSize = readSize
	streamT.ResponseHeaderTimeout = headerTimeout
	c.rest = &http.Client{Transport: &authTransport{c: c, next: plainT}, CheckRedirect: c.checkRedirect}
	c.stream = &http.Client{Transport: &authTransport{c: c, next: streamT}, CheckRedirect: c.checkRedirect}
	c.files = files
	return c.rest, c.stream, nil
}

func (c *client) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rest.CloseIdleConnections()
	c.stream.CloseIdleConnections()
}

func stampFiles(paths ...string) string {
	var b strings.Builder
	for _, p := range paths {
		if p == "" {
			continue
		}
		if info, err := os.Stat(p); err == nil {
			fmt.Fprintf(&b, "%s %d %d\n", p, info.ModTime().UnixNano(), info.Size())
		}
	}
	return b.String()
}

func (o TLSOptions) config() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.Insecure}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("tls: ca_file: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls: ca_file: %s: no certificate in it; want PEM", o.CAFile)
		}
	}
	if o.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("tls: cert_file, key_file: %w", err)
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	return conf, nil
}

// impatientConn fails a read that brings nothing for the time of several keep-alives.
type impatientConn struct{ net.Conn }

func (c *impatientConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(silence)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// get asks base for path. The caller closes the body.
func (c *client) get(ctx context.Context, stream bool, base *url.URL, path string, query url.Values) (*http.Response, error) {
	rest, streaming, err := c.clients()
	if err != nil {
		return nil, err
	}
	u := *base
	u.User = nil
	u.Path += path
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	hc := rest
	if stream {
		hc = streaming
		// Exactly this: anything else is answered with 405.
		req.Header.Set("Accept", "text/event-stream")
	} else {
		req.Header.Set("Accept", "application/json")
	}
	res, err := hc.Do(req)
	if err != nil {
		return nil, err
	}
	if leader := res.Header.Get("X-Marathon-Leader"); leader != "" {
		c.announce(leader)
	}
	if res.StatusCode != http.StatusOK {
		defer res.Body.Close()
		io.CopyN(io.Discard, res.Body, 64<<10) // so that the connection can be used again
		return nil, &statusError{url: u.Redacted(), code: res.StatusCode, status: res.Status}
	}
	return res, nil
}

// statusError is an answer other than 200.
type statusError struct {
	url    string
	code   int
	status string
}

func (e *statusError) Error() string {
	switch e.code {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Sprintf("%s: %s; check marathon.auth", e.url, e.status)
	}
	return fmt.Sprintf("%s: %s", e.url, e.status)
}

// authTransport puts credentials on requests to trusted hosts, each redirect included:
// net/http would drop them on the way to the leader. A 401 is answered once with other
// credentials, if there are any.
type authTransport struct {
	c    *client
	next *http.Transport
}

func (t *authTransport) CloseIdleConnections() { t.next.CloseIdleConnections() }

func (t *authTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	value, fromFile, err := t.c.authorization(req)
	if err != nil {
		return nil, err
	}
	res, err := t.send(req, value)
	if err != nil || res.StatusCode != http.StatusUnauthorized || !fromFile || req.Body != nil && req.Body != http.NoBody {
		return res, err
	}
	t.c.creds.refused(value)
	again, _, err := t.c.authorization(req)
	if err != nil || again == value {
		return res, nil
	}
	res.Body.Close()
	return t.send(req, again)
}

func (t *authTransport) send(req *http.Request, value string) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Del("Authorization")
	if value != "" {
		req.Header.Set("Authorization", value)
	}
	return t.next.RoundTrip(req)
}

// authorization is the header for req. fromFile: another value may be had.
func (c *client) authorization(req *http.Request) (value string, fromFile bool, err error) {
	if !c.trusted(req.URL) {
		return "", false, nil
	}
	if user := c.userOf(req.URL); user != nil {
		password, _ := user.Password()
		value, err = basicHeader(user.Username() + ":" + password)
		return value, false, err
	}
	value, err = c.creds.header(req.Context())
	return value, true, err
}

// userOf is the user in the URL of the member that u leads to; the leader of a cluster
// takes what any member takes.
func (c *client) userOf(u *url.URL) *url.Userinfo {
	var any *url.Userinfo
	for _, m := range c.urls() {
		if m.User != nil {
			if hostPort(m) == hostPort(u) {
				return m.User
			}
			any = m.User
		}
	}
	return any
}

// trusted: u leads to a member or to a leader that a member announced, and no less
// secretly than the members are asked.
func (c *client) trusted(u *url.URL) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	secure := false
	for _, m := range c.members {
		if hostPort(m) == hostPort(u) && m.Scheme == u.Scheme {
			return true
		}
		secure = secure || m.Scheme == "https"
	}
	return c.leaders[hostPort(u)] && (u.Scheme == "https" || !secure)
}

// announce notes a leader as an answer named it: host:port, or a URL.
func (c *client) announce(leader string) {
	u, err := parseURL(leader)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.leaders) > 64 {
		clear(c.leaders) // a cluster has a few members: somebody makes them up
	}
	c.leaders[hostPort(u)] = true
}

var errRedirect = errors.New("redirected to a host that is neither in marathon.urls nor announced as the leader")

func (c *client) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return errors.New("redirected too often")
	}
	if before := via[len(via)-1]; req.Method != before.Method {
		// net/http turns a redirected write into a read, whose answer looks like success.
		return fmt.Errorf("%s %s is redirected to %s: %w", before.Method, before.URL.Redacted(), req.URL.Host, errRedirectedWrite)
	}
	// What a trusted member sends back names the leader: 1.7.50 and newer redirect to it.
	if res := req.Response; res != nil {
		if leader := res.Header.Get("X-Marathon-Leader"); leader != "" && c.trusted(via[len(via)-1].URL) {
			c.announce(leader)
		}
	}
	if !c.trusted(req.URL) {
		return fmt.Errorf("%s: %w", req.URL.Host, errRedirect)
	}
	return nil
}

var errRedirectedWrite = errors.New("a change has to be sent to the leader itself")

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// loginTransport uses the client's TLS files for logins, and none of its credentials.
type loginTransport struct{ c *client }

func (t loginTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	rest, _, err := t.c.clients()
	if err != nil {
		return nil, err
	}
	return rest.Transport.(*authTransport).next.RoundTrip(req)
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "80"
		if u.Scheme == "https" {
			port = "443"
		}
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// resolveLeader turns a leader as Marathon names it into a URL to ask: the member's own
// when it is one, else one that looks like that of the member that named it.
func (c *client) resolveLeader(name string, via *url.URL) (*url.URL, error) {
	if via.Path != "" {
		return via, nil // behind an Admin Router the leader is not reached otherwise
	}
	u, err := parseURL(name)
	if err != nil {
		return nil, fmt.Errorf("leader: %w", err)
	}
	var sameHost []*url.URL
	for _, m := range c.urls() {
		if hostPort(m) == hostPort(u) {
			return m, nil
		}
		if strings.EqualFold(m.Hostname(), u.Hostname()) {
			sameHost = append(sameHost, m)
		}
	}
	// The announced address is the plain one unless Marathon runs without it: a member
	// that is configured with https is asked there.
	if len(sameHost) == 1 && sameHost[0].Scheme == "https" && u.Scheme == "http" {
		return sameHost[0], nil
	}
	if !strings.Contains(name, "://") {
		u.Scheme = via.Scheme
	}
	c.announce(u.String())
	return u, nil
}

// classify says what kind of failure err is.
func classify(err error) failure {
	if status, ok := errors.AsType[*statusError](err); ok {
		switch {
		case status.code == http.StatusUnauthorized || status.code == http.StatusForbidden:
			return failedAuth
		case status.code >= 500 || status.code == http.StatusNotFound || status.code == http.StatusTooManyRequests:
			return failedElection
		}
		return failedProtocol
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return failedRefused
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return failedEOF
	case errors.Is(err, errRedirect), errors.Is(err, errProtocol):
		return failedProtocol
	}
	return failedNetwork
}

var errProtocol = errors.New("not an answer of Marathon")
