package bridge_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"bridged/internal/discovery/marathontest"
	"bridged/internal/haproxy/haproxytest"
)

// statsGet asks HAProxy's statistics listener as marathon-lb's tools do.
func (r *rig) statsGet(port uint16, path string) (int, string, error) {
	resp, err := r.client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// statsShows waits until an endpoint answers with each of want.
func (r *rig) statsShows(port uint16, path string, want ...string) (body string) {
	r.t.Helper()
	haproxytest.Eventually(r.t, path, func() error {
		code, text, err := r.statsGet(port, path)
		if err != nil {
			return err
		}
		if code != http.StatusOK {
			return fmt.Errorf("%d: %s", code, text)
		}
		for _, w := range want {
			if !strings.Contains(text, w) {
				return fmt.Errorf("%q does not hold %q", text, w)
			}
		}
		body = text
		return nil
	})
	return body
}

// marathon-lb's endpoints answer where its tools ask, through a real HAProxy.
func TestMarathonLBEndpoints(t *testing.T) {
	bin := haproxytest.Default(t)
	ports := haproxytest.FreePorts(t, 4)
	stats, appID, shared, service := ports[0], ports[1], ports[2], ports[3]
	r := newRig(t, rigOptions{binary: bin, keys: fmt.Sprintf(`dialect: marathon-lb
http: {bind: ["127.0.0.1:%d"]}
marathon_lb: {stats_bind: "127.0.0.1:%d", app_id_bind: "127.0.0.1:%d"}
`, shared, stats, appID)})
	r.start()
	r.ready(http.StatusOK)
	r.must(r.marathon.Deploy(marathontest.AppSpec{ID: "/web", Instances: 1, Ports: []marathontest.Port{{Service: int(service)}},
		Labels: map[string]string{"HAPROXY_0_VHOST": "web.com"}}))
	r.hostAnswers("vhost", shared, "web.com", http.StatusOK)
	r.ready(http.StatusOK)

	backend := "web_" + strconv.Itoa(int(service))
	r.statsShows(stats, "/_haproxy_getconfig", "backend "+backend, "listen stats")
	r.statsShows(stats, "/_haproxy_getvhostmap", "web.com "+backend+"\n")
	r.statsShows(stats, "/_haproxy_getappmap", "/web "+backend+"\n")
	r.statsShows(stats, "/_haproxy_health_check", "")
	r.statsShows(stats, "/haproxy?stats;csv", "# pxname", backend+",FRONTEND", backend+",BACKEND")
	pids := r.statsShows(stats, "/_haproxy_getpids")
	worker := strconv.Itoa(r.state().HAProxy.Pid)
	if list := strings.Fields(pids); len(list) != 2 || list[0] != worker && list[1] != worker {
		t.Errorf("a master and the worker %s: have %q", worker, pids)
	}
	reads := r.metric("bridged_config_last_reload_success_timestamp_seconds", "")
	r.statsShows(stats, "/_mlb_signal/usr1", "Sent SIGUSR1 signal to marathon-lb")
	r.statsShows(stats, "/_mlb_signal/hup", "Sent SIGHUP signal to marathon-lb")
	haproxytest.Eventually(t, "the signal makes the configuration read again", func() error {
		if now := r.metric("bridged_config_last_reload_success_timestamp_seconds", ""); now <= reads {
			return fmt.Errorf("last read at %f", now)
		}
		return nil
	})
	// The reading back, which usr1 asks for, leaves the way to bridged alone.
	if n := r.metric("bridged_drift_total", ""); n != 0 {
		t.Errorf("HAProxy is said to differ in %v places", n)
	}
	r.statsShows(stats, "/_haproxy_getpids", worker)
	// The guard is in HAProxy, where the client is known.
	text, err := os.ReadFile(r.hap.ConfigFile)
	if err != nil || !strings.Contains(string(text), "http-request deny if { path_beg /_mlb_signal/ } !{ src 127.0.0.0/8 ::1 }") {
		t.Errorf("others than loopback are not refused (%v)", err)
	}
}

// In the other dialect none of it exists.
func TestNoMarathonLBEndpointsInDialectBridge(t *testing.T) {
	r := newRig(t, rigOptions{binary: haproxytest.Default(t)})
	r.start()
	for _, path := range []string{"/_haproxy_getconfig", "/_haproxy_getpids", "/_haproxy_getvhostmap", "/_haproxy_getappmap", "/_mlb_signal/hup", "/_mlb_signal/usr1"} {
		if code, _ := r.get(path); code != http.StatusNotFound {
			t.Errorf("%s answers %d, want 404", path, code)
		}
	}
}

// A template that changes is taken over without a restart; one that cannot be used
// leaves the old one, and shows.
func TestTemplateDirectoryIsFollowed(t *testing.T) {
	bin := haproxytest.Default(t)
	ports := haproxytest.FreePorts(t, 2)
	templates := t.TempDir()
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(templates, "HAPROXY_BACKEND_HEAD"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("backend {backend}\n  balance leastconn\n  mode {mode}\n")
	r := newRig(t, rigOptions{binary: bin, keys: fmt.Sprintf(`dialect: marathon-lb
http: {bind: [none]}
marathon_lb: {stats_bind: none, app_id_bind: "127.0.0.1:%d", template_dir: %s}
`, ports[0], templates)})
	r.start()
	r.ready(http.StatusOK)
	r.deploy("/web", ports[1], 1)
	balances := func(want string) {
		t.Helper()
		haproxytest.Eventually(t, "balance "+want, func() error {
			text, err := os.ReadFile(r.hap.ConfigFile)
			if err == nil && !strings.Contains(string(text), "balance "+want) {
				err = fmt.Errorf("haproxy.cfg does not say balance %s", want)
			}
			return err
		})
		r.ready(http.StatusOK)
	}
	balances("leastconn")

	write("backend {backend}\n  balance source\n  mode {mode}\n")
	balances("source")

	write("backend {backend\n")
	haproxytest.Eventually(t, "a broken template is reported", func() error {
		if v := r.metric("bridged_config_last_reload_successful", ""); v != 0 {
			return fmt.Errorf("bridged_config_last_reload_successful is %v", v)
		}
		return nil
	})
	if s := r.state(); !strings.Contains(s.Config.LastError, "HAPROXY_BACKEND_HEAD") {
		t.Errorf("/api/state does not name the template: %q", s.Config.LastError)
	}
	balances("source")

	write("backend {backend}\n  balance first\n  mode {mode}\n")
	balances("first")
	if v := r.metric("bridged_config_last_reload_successful", ""); v != 1 {
		t.Error("the metric does not show that the template healed")
	}
}
