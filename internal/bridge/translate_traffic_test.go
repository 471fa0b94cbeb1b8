package bridge

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bridged/internal/discovery"
	"bridged/internal/haproxy"
	"bridged/internal/haproxy/haproxytest"
	files "bridged/templates"
)

// lab is a world of apps with real tasks behind a real HAProxy.
type lab struct {
	t        *testing.T
	services []*discovery.Service
	plain    uint16
	tls      uint16
	appID    uint16
}

// app adds an app with one HTTP task, which answers with the app's id and what it saw of
// the request.
func (l *lab) app(id string, labels map[string]string) {
	l.t.Helper()
	app := &discovery.App{ID: id, Version: "1", Ports: []discovery.Port{{Protocol: "tcp"}}, Labels: make(map[string]string)}
	for name, v := range labels {
		app.Labels["HAPROXY_0_"+name] = v
	}
	l.services = append(l.services, &discovery.Service{Key: discovery.Key{App: id}, App: app, Port: app.Ports[0],
		Tasks: []discovery.Task{{ID: "t", App: id, Host: "agent", Addr: l.task(id), State: discovery.Running, Health: discovery.NoChecks, Ready: true}}})
}

// port is the service port of an app in a lab that was started.
func (l *lab) port(id string) uint16 {
	for _, s := range l.services {
		if s.App.ID == id {
			return s.Port.Service
		}
	}
	l.t.Fatalf("no app %s", id)
	return 0
}

// task is an HTTP server, HTTP/2 without TLS included, that echoes upgrades.
func (l *lab) task(id string) netip.AddrPort {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	srv := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
			rw.Flush()
			line, _ := rw.ReadString('\n')
			fmt.Fprintf(rw, "%s says %s", id, line)
			rw.Flush()
			return
		}
		if loc := r.Header.Get("X-Want-Location"); loc != "" {
			w.Header().Set("Location", loc)
		}
		w.Header().Set("Trailer", "Grpc-Status")
		fmt.Fprintf(w, "%s %s %s%s proto=%s port=%s", id, r.Proto, r.Host, r.URL.Path, r.Header.Get("X-Forwarded-Proto"), r.Header.Get("X-Forwarded-Port"))
		w.Header().Set("Grpc-Status", "0")
	})}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	l.t.Cleanup(func() { srv.Close(); <-done })
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// socketMark stands for the socket until haproxytest has chosen its directory.
const socketMark = "/the/socket"

// start translates, renders and runs the world.
func (l *lab) start(bin haproxytest.Binary, o TranslateOptions) {
	t := l.t
	t.Helper()
	dir := t.TempDir()
	cert := selfSigned(t, dir)
	// All at once and behind the tasks, so that nobody gets the same one twice.
	ports := haproxytest.FreePorts(t, 3+len(l.services))
	for i, s := range l.services {
		s.App.Ports[0].Service = ports[3+i]
		s.Port = s.App.Ports[0]
	}
	l.plain, l.tls, l.appID = ports[0], ports[1], ports[2]
	o.Bind = "127.0.0.1"
	o.HTTPBinds = []haproxy.Bind{{Addr: "127.0.0.1", Port: l.plain}, {Addr: "127.0.0.1", Port: l.tls, Options: "ssl crt " + cert + " alpn h2,http/1.1"}}
	if o.Dialect == DialectMarathonLB {
		o.MarathonLB.AppIDBind = haproxy.Bind{Addr: "127.0.0.1", Port: l.appID}
	}
	w := newWorld()
	tr := NewTranslator(o)
	w.merge(tr.Apply(w.update(l.services), time.Time{}))
	if r := rejectedText(tr); r != "" {
		t.Fatal(r)
	}
	version, err := haproxy.ParseVersion(bin.Version)
	if err != nil {
		t.Fatal(err)
	}
	r, err := haproxy.NewRenderer(files.HAProxy, haproxy.CapabilitiesOf(version))
	if err != nil {
		t.Fatal(err)
	}
	cfg := &haproxy.Config{Global: &haproxy.Global{Socket: socketMark, MaxConn: 100, Threads: 1}, Userlists: w.userlists,
		Frontends: w.frontends, Backends: w.backends, Maps: make(map[string]*haproxy.Map)}
	for name, entries := range w.maps {
		cfg.Maps[name] = &haproxy.Map{Kind: "str", Entries: entries}
	}
	out, err := r.Render(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range out.Maps {
		if err := os.WriteFile(filepath.Join(dir, name+".map"), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text := string(out.Bytes("g", func(name string) string { return filepath.Join(dir, name+".map") }))
	haproxytest.Start(t, haproxytest.Options{Binary: bin, Config: strings.ReplaceAll(text, socketMark, "$SOCKET")})
}

// request is one line of a test: what is asked and what has to come back.
type request struct {
	name   string
	port   uint16
	tls    bool
	h1     bool   // not HTTP/2
	sni    string // "": the host
	host   string
	path   string
	header http.Header
	user   string // user:password
	status int    // default 200
	body   string // its beginning
	head   map[string]string
}

func (l *lab) do(q request) {
	l.t.Run(q.name, func(t *testing.T) {
		if q.status == 0 {
			q.status = 200
		}
		scheme := "http"
		if q.tls {
			scheme = "https"
		}
		req, err := http.NewRequestWithContext(t.Context(), "GET", fmt.Sprintf("%s://127.0.0.1:%d%s", scheme, q.port, q.path), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = q.host
		for k, v := range q.header {
			req.Header[k] = v
		}
		if user, password, ok := strings.Cut(q.user, ":"); ok {
			req.SetBasicAuth(user, password)
		}
		sni := q.sni
		if sni == "" {
			sni = q.host
		}
		transport := &http.Transport{TLSClientConfig: &tls.Config{ServerName: sni, InsecureSkipVerify: true}, ForceAttemptHTTP2: !q.h1}
		defer transport.CloseIdleConnections()
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != q.status || !strings.HasPrefix(string(body), q.body) {
			t.Errorf("got %d %q, want %d %q…", resp.StatusCode, body, q.status, q.body)
		}
		for k, want := range q.head {
			if got := resp.Header.Get(k); !strings.HasPrefix(got, want) || want == "" && got != "" {
				t.Errorf("header %s: got %q, want %q…", k, got, want)
			}
		}
	})
}

// secretHash is "secret" as mkpasswd -m md5crypt writes it with the salt "abcdefgh".
const secretHash = "$1$abcdefgh$cHJi5PXp/ki/ktXzqlk6I1"

func TestTrafficInDialectMarathonLB(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		if !bin.AtLeast(2, 4) {
			t.Skip("traffic is tried on the versions that are still maintained")
		}
		l := &lab{t: t}
		l.app("/one", map[string]string{"VHOST": "One.com"})
		l.app("/x", map[string]string{"VHOST": "one.com", "PATH": "/x"})
		l.app("/xy", map[string]string{"VHOST": "one.com", "PATH": "/x/y", "BACKEND_WEIGHT": "5"})
		l.app("/wild", map[string]string{"VHOST": "*.one.com"})
		l.app("/default", map[string]string{"VHOST": "*"})
		l.app("/insensitive", map[string]string{"VHOST": "i.com", "PATH": "-i /A"})
		l.app("/redirect", map[string]string{"VHOST": "redirect.com", "PATH": "/r", "REDIRECT_TO_HTTPS": "true"})
		l.app("/auth", map[string]string{"VHOST": "auth.com", "AUTH": `my\ realm:bob:` + secretHash})
		l.app("/rewrite", map[string]string{"VHOST": "rewrite.com,other.com", "USE_HSTS": "true", "HTTP_BACKEND_PROXYPASS_PATH": "/p.q",
			"HTTP_BACKEND_REVPROXY_PATH": "/rev", "HTTP_BACKEND_REDIR": "/home"})
		l.app("/sticky", map[string]string{"VHOST": "sticky.com", "STICKY": "true"})
		l.app("/grpc", map[string]string{"VHOST": "grpc.com", "BACKEND_PROTO": "h2"})
		l.app("/denied", map[string]string{"VHOST": "denied.com", "BACKEND_NETWORK_ALLOWED_ACL": "10.0.0.0/8"})
		l.app("/allowed", map[string]string{"VHOST": "allowed.com", "BACKEND_NETWORK_ALLOWED_ACL": "10.0.0.0/8 127.0.0.1"})
		l.app("/tcp", nil)
		l.start(bin, TranslateOptions{Dialect: DialectMarathonLB})

		for _, q := range []request{
			{name: "vhost", port: l.plain, host: "one.com", path: "/", body: "/one "},
			{name: "vhost in other case with a port", port: l.plain, host: "ONE.com:80", path: "/", body: "/one "},
			{name: "path", port: l.plain, host: "one.com", path: "/x/z", body: "/x "},
			{name: "longer path", port: l.plain, host: "one.com", path: "/x/y/z", body: "/xy "},
			{name: "wildcard", port: l.plain, host: "a.one.com", path: "/x", body: "/wild "},
			{name: "wildcard is for one label", port: l.plain, host: "b.a.one.com", path: "/", body: "/default "},
			{name: "a name that begins alike", port: l.plain, host: "one.community", path: "/", body: "/default "},
			{name: "default vhost", port: l.plain, host: "unknown", path: "/x", body: "/default "},
			{name: "path without regard to case", port: l.plain, host: "i.com", path: "/a/b", body: "/insensitive "},
			{name: "redirect", port: l.plain, host: "redirect.com", path: "/r/1", status: 301, head: map[string]string{"Location": "https://redirect.com/r/1"}},
			{name: "no redirect beside its path", port: l.plain, host: "redirect.com", path: "/q", body: "/default "},
			{name: "redirected request arrives", port: l.tls, tls: true, host: "redirect.com", path: "/r/1", body: "/redirect "},
			{name: "auth missing on the vhost", port: l.plain, host: "auth.com", path: "/", status: 401, head: map[string]string{"Www-Authenticate": `Basic realm="my realm"`}},
			{name: "auth missing on the service port", port: l.port("/auth"), host: "any", path: "/", status: 401},
			{name: "auth missing on the app id", port: l.appID, host: "any", path: "/", header: http.Header{"X-Marathon-App-Id": {"/AUTH"}}, status: 401},
			{name: "auth missing on TLS", port: l.tls, tls: true, host: "auth.com", path: "/", status: 401},
			{name: "auth wrong", port: l.plain, host: "auth.com", path: "/", user: "bob:wrong", status: 401},
			{name: "auth right", port: l.plain, host: "auth.com", path: "/", user: "bob:secret", body: "/auth "},
			{name: "app id", port: l.appID, host: "any", path: "/", header: http.Header{"X-Marathon-App-Id": {"/One"}}, body: "/one "},
			{name: "app id unknown", port: l.appID, host: "any", path: "/", header: http.Header{"X-Marathon-App-Id": {"/none"}}, status: 503},
			{name: "tls and http/2", port: l.tls, tls: true, host: "one.com", path: "/x", body: "/x HTTP/1.1 one.com/x proto=https port=" + fmt.Sprint(l.tls)},
			{name: "tls by host, not by sni", port: l.tls, tls: true, sni: "sticky.com", host: "one.com", path: "/", body: "/one "},
			{name: "tls by sni where the host is nobody's", port: l.tls, tls: true, h1: true, sni: "one.com", host: "127.0.0.1", path: "/", body: "/one "},
			{name: "proxypass", port: l.plain, host: "other.com", path: "/p.q/a/b", body: "/rewrite HTTP/1.1 rewrite.com/a/b "},
			{name: "proxypass is literal", port: l.plain, host: "other.com", path: "/pxq/a", body: "/rewrite HTTP/1.1 rewrite.com/pxq/a "},
			{name: "revproxy and hsts", port: l.plain, host: "rewrite.com", path: "/a", header: http.Header{"X-Want-Location": {"http://rewrite.com:81/login"}}, body: "/rewrite ",
				head: map[string]string{"Location": "/rev/login", "Strict-Transport-Security": "max-age=15768000"}},
			{name: "redir", port: l.plain, host: "rewrite.com", path: "/", status: 301, head: map[string]string{"Location": "/home"}},
			{name: "sticky", port: l.plain, host: "sticky.com", path: "/", body: "/sticky ", head: map[string]string{"Set-Cookie": "mesosphere_server_id="}},
			{name: "grpc", port: l.tls, tls: true, host: "grpc.com", path: "/svc/Method", header: http.Header{"Te": {"trailers"}}, body: "/grpc HTTP/2.0 "},
			{name: "network denied", port: l.plain, host: "denied.com", path: "/", status: 403},
			{name: "network allowed", port: l.plain, host: "allowed.com", path: "/", body: "/allowed "},
			{name: "tcp service port", port: l.port("/tcp"), host: "any", path: "/", body: "/tcp HTTP/1.1 any/ proto= "},
		} {
			l.do(q)
		}
		t.Run("websocket", func(t *testing.T) { l.webSocket(t, "one.com", "/one says hello\n") })
	})
}

func (l *lab) webSocket(t *testing.T, host, want string) {
	conn, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", l.plain))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", host)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("upgrade: %v %v", resp, err)
	}
	fmt.Fprintf(conn, "hello\n")
	if got, err := r.ReadString('\n'); err != nil || got != want {
		t.Errorf("got %q %v, want %q", got, err, want)
	}
}

func TestTrafficInDialectBridge(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		if !bin.AtLeast(2, 4) {
			t.Skip("traffic is tried on the versions that are still maintained")
		}
		l := &lab{t: t}
		l.app("/tcp", nil)
		l.app("/auth", map[string]string{"AUTH": "realm:bob:" + secretHash})
		l.app("/web", map[string]string{"VHOST": "web.com,*.web.com", "STICKY": "true"})
		l.app("/tls", map[string]string{"VHOST": "tls.com", "REDIRECT_TO_HTTPS": "true"})
		l.start(bin, TranslateOptions{})
		for _, q := range []request{
			{name: "tcp service port", port: l.port("/tcp"), host: "any", path: "/a", body: "/tcp HTTP/1.1 any/a proto= "},
			{name: "auth missing", port: l.port("/auth"), host: "any", path: "/", status: 401},
			{name: "auth right", port: l.port("/auth"), host: "any", path: "/", user: "bob:secret", body: "/auth "},
			{name: "service port of a vhost", port: l.port("/web"), host: "any", path: "/", body: "/web ", head: map[string]string{"Set-Cookie": "bridged_server="}},
			{name: "vhost", port: l.plain, host: "web.com", path: "/", body: "/web "},
			{name: "wildcard", port: l.plain, host: "a.web.com", path: "/", body: "/web "},
			{name: "unknown vhost", port: l.plain, host: "none.com", path: "/", status: 503},
			{name: "redirect", port: l.plain, host: "tls.com", path: "/a?b=c", status: 301, head: map[string]string{"Location": "https://tls.com/a?b=c"}},
			{name: "tls", port: l.tls, tls: true, host: "tls.com", path: "/", body: "/tls "},
		} {
			l.do(q)
		}
	})
}
