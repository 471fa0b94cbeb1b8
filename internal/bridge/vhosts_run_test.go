package bridge_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"bridged/internal/discovery/marathontest"
	"bridged/internal/haproxy/haproxytest"
)

// askHost requests a vhost through the shared frontend.
func (r *rig) askHost(port uint16, host string) (int, error) {
	req, err := http.NewRequestWithContext(r.t.Context(), "GET", fmt.Sprintf("http://127.0.0.1:%d/", port), nil)
	if err != nil {
		return 0, err
	}
	req.Host = host
	resp, err := r.client.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

func (r *rig) hostAnswers(what string, port uint16, host string, want int) {
	r.t.Helper()
	haproxytest.Eventually(r.t, what, func() error {
		status, err := r.askHost(port, host)
		if err == nil && status != want {
			err = fmt.Errorf("%s answers %d, want %d", host, status, want)
		}
		return err
	})
}

// A vhost that is added to an app that runs, moved to another or taken away is an entry of
// a map: HAProxy counts no reload. A label that cannot be used leaves everything as it is.
func TestVhostsChangeWithoutReload(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		if !bin.AtLeast(2, 4) {
			t.Skip("servers take the slow lane on this version")
		}
		for _, dialect := range []string{"bridge", "marathon-lb"} {
			t.Run(dialect, func(t *testing.T) {
				ports := haproxytest.FreePorts(t, 3)
				shared := ports[0]
				r := newRig(t, rigOptions{binary: bin, keys: fmt.Sprintf("dialect: %s\nhttp: {bind: [\"127.0.0.1:%d\"]}\n", dialect, shared)})
				r.start()
				r.ready(http.StatusOK)
				for i, id := range []string{"/a", "/b"} {
					r.must(r.marathon.Deploy(marathontest.AppSpec{ID: id, Instances: 2, Ports: []marathontest.Port{{Service: int(ports[1+i])}},
						Labels: map[string]string{"HAPROXY_0_VHOST": id[1:] + ".com"}}))
				}
				r.hostAnswers("vhost of a", shared, "a.com", http.StatusOK)
				r.hostAnswers("vhost of b", shared, "b.com", http.StatusOK)
				r.hostAnswers("nobody's vhost", shared, "new.com", http.StatusServiceUnavailable)
				r.ready(http.StatusOK)
				reloads := r.hap.Reloads(t)

				r.must(r.marathon.SetLabels("/a", map[string]string{"HAPROXY_0_VHOST": "a.com,new.com"}))
				r.hostAnswers("vhost added", shared, "new.com", http.StatusOK)
				r.must(r.marathon.SetLabels("/a", map[string]string{"HAPROXY_0_VHOST": "a.com"}))
				r.hostAnswers("vhost taken away", shared, "new.com", http.StatusServiceUnavailable)
				r.must(r.marathon.SetLabels("/b", map[string]string{"HAPROXY_0_VHOST": "b.com,new.com", "HAPROXY_0_PATH": "/"}))
				r.hostAnswers("vhost moved", shared, "new.com", http.StatusOK)

				r.must(r.marathon.SetLabels("/b", map[string]string{"HAPROXY_0_VHOST": "b.com,in valid", "HAPROXY_0_PATH": "/"}))
				haproxytest.Eventually(t, "the bad label is reported", func() error {
					if _, text := r.get("/api/state"); !strings.Contains(text, "HAPROXY_0_VHOST") {
						return fmt.Errorf("not in /api/state")
					} else if strings.Contains(text, "in valid") {
						t.Fatal("/api/state repeats the value that was refused")
					}
					return nil
				})
				r.hostAnswers("last good form", shared, "new.com", http.StatusOK)
				if n := r.hap.Reloads(t) - reloads; n != 0 {
					t.Errorf("vhosts cost %d reloads: %v", n, r.state().HAProxy.Pending)
				}
			})
		}
	})
}
