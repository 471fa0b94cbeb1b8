package marathontest

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The simulator must not share code with what it tests, and is embedded in a
// daemon: nothing but the standard library.
func TestDependsOnTheStandardLibraryOnly(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if have := strings.Fields(string(out)); !slices.Equal(have, []string{"bridged/internal/discovery/marathontest"}) {
		t.Errorf("depends on %v: want itself alone, so that no bug of the product's decoders can hide in it", have)
	}
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func start(t *testing.T, opts Options) *Cluster {
	t.Helper()
	c := New(opts)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func quiet(t *testing.T, c *Cluster) {
	t.Helper()
	must(t, c.WaitQuiet(deadline(t)))
}

// client does not follow redirects, and its connections end with the test.
func client(t *testing.T) *http.Client {
	tr := &http.Transport{DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// request sends one request and reads the whole answer; an error of reading is returned, one of sending is fatal.
func request(t *testing.T, method, url, body string, header ...string) (*http.Response, []byte, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(deadline(t), method, url, strings.NewReader(body))
	must(t, err)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := client(t).Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res, b, err
}

// get wants 200 and JSON.
func get(t *testing.T, url string) any {
	t.Helper()
	res, body, err := request(t, "GET", url, "", "Accept", "application/json")
	must(t, err)
	if res.StatusCode != 200 {
		t.Fatalf("GET %s: %s: %s", url, res.Status, body)
	}
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		t.Fatalf("GET %s: %v: %s", url, err, body)
	}
	return v
}

// fixtures is the directory of recorded documents, which stands beside the repository.
func fixtures(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	must(t, err)
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
		dir = filepath.Dir(dir)
	}
	dir = filepath.Join(dir, "..", "shared", "fixtures", "marathon")
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("recorded documents are not here: %v", err)
	}
	return dir
}

// listener reads an event stream by a raw socket, so that each byte can be seen.
type streamReader struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
	head string
}

// listen attaches to /v2/events, reads the head of the answer and waits until the stream takes events.
func listen(t *testing.T, c *Cluster, node int, query string) *streamReader {
	t.Helper()
	attached := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.streamCount
	}
	before := attached()
	l := dialStream(t, c.URL(node), query, "text/event-stream")
	if !strings.HasPrefix(l.head, "HTTP/1.1 200 ") {
		t.Fatalf("attach: %s", l.head)
	}
	must(t, c.Wait(deadline(t), func() bool { return attached() > before }))
	return l
}

func dialStream(t *testing.T, base, query, accept string) *streamReader {
	t.Helper()
	u, err := url.Parse(base)
	must(t, err)
	conn, err := net.Dial("tcp", u.Host)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(conn, "GET "+u.Path+"/v2/events"+query+" HTTP/1.1\r\nHost: "+u.Host+"\r\nAccept: "+accept+"\r\n\r\n")
	must(t, err)
	l := &streamReader{t: t, conn: conn, r: bufio.NewReader(conn)}
	for {
		line, err := l.r.ReadString('\n')
		must(t, err)
		if line == "\r\n" {
			return l
		}
		l.head += line
	}
}

// raw reads one frame as it is on the wire, heartbeats left out; io.EOF when the stream ended.
func (l *streamReader) raw() (string, error) {
	frame := ""
	for {
		line, err := l.r.ReadString('\n')
		frame += line
		if err != nil {
			return frame, err
		}
		if line == "\r\n" {
			if frame == "\r\n" {
				frame = ""
				continue
			}
			return frame, nil
		}
	}
}

// event reads one whole event.
func (l *streamReader) event() (name string, data map[string]any) {
	l.t.Helper()
	frame, err := l.raw()
	if err != nil {
		l.t.Fatalf("reading an event: %v after %q", err, frame)
	}
	for line := range strings.SplitSeq(frame, "\r\n") {
		field, value, _ := strings.Cut(line, ": ")
		switch field {
		case "event":
			name = value
		case "data":
			if err := json.Unmarshal([]byte(value), &data); err != nil {
				l.t.Fatalf("event %q: %v", frame, err)
			}
		}
	}
	return name, data
}

// until reads events up to the first one of a type.
func (l *streamReader) until(kind string) map[string]any {
	l.t.Helper()
	for {
		if _, data := l.event(); data["eventType"] == kind {
			return data
		}
	}
}

// mark sends an event and reads up to it: all types in between, in order.
func (l *streamReader) mark(c *Cluster) []string {
	l.t.Helper()
	c.Emit([]byte(`{"eventType":"mark"}`))
	var kinds []string
	for {
		_, data := l.event()
		kind, _ := data["eventType"].(string)
		if kind == "mark" {
			return kinds
		}
		kinds = append(kinds, kind)
	}
}
