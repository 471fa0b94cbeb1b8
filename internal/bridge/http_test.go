package bridge_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"bridged/internal/haproxy/haproxytest"
)

// What the listener shows, and that nothing can be done through it.
func TestListener(t *testing.T) {
	second := fmt.Sprintf("127.0.0.1:%d", haproxytest.FreePorts(t, 1)[0])
	r := newRig(t, rigOptions{keys: "metrics_listen: " + second})
	port := haproxytest.FreePorts(t, 1)[0]
	r.start()
	r.ready(http.StatusOK)
	r.deploy("/web", port, 1)
	r.converged("deployed")
	r.must(r.marathon.Scale("/web", 2))
	r.converged("scaled")
	r.ready(http.StatusOK)

	t.Run("answers", func(t *testing.T) {
		for path, want := range map[string]struct {
			code  int
			says  string
			ctype string
		}{
			"/":            {200, "/api/state", "text/plain"},
			"/healthz":     {200, "ok\n", "text/plain"},
			"/readyz":      {200, "ready\n", "text/plain"},
			"/metrics":     {200, "bridged_build_info{", "text/plain"},
			"/api/state":   {200, `"web-`, "application/json"},
			"/nothing":     {404, "", "text/plain"},
			"/debug/pprof": {404, "", "text/plain"},
		} {
			resp, err := r.client.Get("http://" + r.bridge.Addr() + path)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != want.code || !strings.Contains(string(body), want.says) || !strings.HasPrefix(resp.Header.Get("Content-Type"), want.ctype) {
				t.Errorf("%s: %d %s, want %d %s with %q in it; it says:\n%.300s", path, resp.StatusCode, resp.Header.Get("Content-Type"), want.code, want.ctype, want.says, body)
			}
			if resp.Header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s: browsers may guess the type of what is sent", path)
			}
		}
	})

	t.Run("state", func(t *testing.T) {
		s := r.state()
		if !s.Ready || !s.Marathon.Synced || !s.HAProxy.Matches || s.Config.File != r.config || len(s.Services) != 1 {
			t.Fatalf("state: %+v", s)
		}
		web := s.Services[0]
		if web.App != "/web" || web.Port != port || web.Proxy != fmt.Sprintf("web-%d", port) || len(web.Servers) != 2 || web.Servers[0].State != "ready" {
			t.Errorf("service: %+v", web)
		}
	})

	t.Run("metrics", func(t *testing.T) {
		for name, want := range map[string]float64{
			"bridged_build_info":                    1,
			"bridged_ready":                         1,
			"bridged_config_last_reload_successful": 1,
			"bridged_rejected_apps":                 0,
			"bridged_stream_connected":              1,
		} {
			if got := r.metric(name, ""); got != want {
				t.Errorf("%s %v, want %v", name, got, want)
			}
		}
		// The new task has come in as events and has gone live.
		for _, name := range []string{"bridged_events_total", "bridged_event_to_live_seconds_count"} {
			if r.metric(name, "") == 0 {
				t.Errorf("%s is 0 after a task was added", name)
			}
		}
	})

	t.Run("read-only", func(t *testing.T) {
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch} {
			for _, path := range []string{"/healthz", "/readyz", "/metrics", "/api/state"} {
				req, err := http.NewRequest(method, "http://"+r.bridge.Addr()+path, strings.NewReader("x"))
				if err != nil {
					t.Fatal(err)
				}
				resp, err := r.client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusMethodNotAllowed {
					t.Errorf("%s %s: %d, want 405", method, path, resp.StatusCode)
				}
			}
		}
	})

	t.Run("second-listener-shows-no-state", func(t *testing.T) {
		for path, want := range map[string]int{"/metrics": 200, "/healthz": 200, "/readyz": 200, "/api/state": 404, "/": 404} {
			resp, err := r.client.Get("http://" + second + path)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
			}
		}
	})

	t.Run("huge-header-is-refused", func(t *testing.T) {
		conn, err := net.Dial("tcp", r.bridge.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// The answer may come, and the connection go, before all is sent.
		fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", strings.Repeat("x", 64<<10))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err == nil && resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("a header of 64 KiB: %s, want 431", resp.Status)
		}
	})

	t.Run("many-idle-connections-do-not-close-it", func(t *testing.T) {
		var idle []net.Conn
		defer func() {
			for _, c := range idle {
				c.Close()
			}
		}()
		for range 200 {
			c, err := net.Dial("tcp", r.bridge.Addr())
			if err != nil {
				t.Fatal(err)
			}
			idle = append(idle, c)
		}
		if code, body := r.get("/healthz"); code != http.StatusOK {
			t.Errorf("/healthz beside 200 idle connections: %d %s", code, body)
		}
	})
}

// A service port that two apps want stays with the one that has it, over a restart too;
// the other one is reported and nothing else suffers.
func TestRejectedAppIsReported(t *testing.T) {
	r := newRig(t, rigOptions{})
	ports := haproxytest.FreePorts(t, 2)
	first := r.start()
	r.deploy("/zebra", ports[0], 1)
	r.converged("deployed")
	r.deploy("/ape", ports[0], 1)
	r.deploy("/web", ports[1], 1)
	check := func(what string) {
		t.Helper()
		haproxytest.Eventually(t, what, func() error {
			s := r.state()
			if len(s.Rejected) != 1 || s.Rejected[0].App != "/ape" || s.Rejected[0].Reason != "port_clash" {
				return fmt.Errorf("rejected: %+v", s.Rejected)
			}
			return nil
		})
		for port, app := range map[uint16]string{ports[0]: "zebra", ports[1]: "web"} {
			haproxytest.Eventually(t, what, func() error {
				task, err := r.ask(int(port))
				if err == nil && !strings.HasPrefix(task, app) {
					err = fmt.Errorf("%s answers for %s", task, app)
				}
				return err
			})
		}
		if got := r.metric("bridged_rejected_apps", `reason="port_clash"`); got != 1 {
			t.Errorf("%s: bridged_rejected_apps %v, want 1", what, got)
		}
	}
	check("the later app is rejected")
	r.must(first.stop())
	r.start()
	check("after a restart the port is still the first one's")

	// The log says it once when it starts and once when it ends.
	logged := func(line string) {
		t.Helper()
		haproxytest.Eventually(t, line, func() error {
			if n := strings.Count(r.bridge.log.String(), line); n != 1 {
				return fmt.Errorf("stands %d times in the log", n)
			}
			return nil
		})
	}
	logged(`msg="app rejected" component=bridge app=/ape index=0 reason=port_clash detail=`)
	r.must(r.marathon.Delete("/zebra"))
	logged(`msg="app no longer rejected" component=bridge app=/ape index=0 reason=port_clash`)
	logged(`msg="app rejected"`)
}

// A state that a client reads as JSON has the documented members, in camelCase.
func TestStateMembers(t *testing.T) {
	r := newRig(t, rigOptions{})
	r.start()
	r.ready(http.StatusOK)
	_, body := r.get("/api/state")
	var members map[string]json.RawMessage
	if err := json.Unmarshal([]byte(body), &members); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"version", "started", "ready", "config", "marathon", "haproxy"} {
		if members[want] == nil {
			t.Errorf("no member %q in %s", want, body)
		}
	}
}
