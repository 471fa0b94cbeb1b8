package bridge_test

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"bridged/internal/discovery/marathontest"
	"bridged/internal/haproxy/haproxytest"
)

// Two Marathons are joined to one HAProxy. One that dies takes nothing with it, neither
// its own apps nor the other's, and neither does a restart of bridged while it is dead.
func TestTwoMarathonsOneDies(t *testing.T) {
	ports := haproxytest.FreePorts(t, 4)
	r := newRig(t, rigOptions{binary: haproxytest.Default(t)})
	west := marathontest.New(marathontest.Options{Backend: r.backends.Serve})
	t.Cleanup(west.Close)
	r.must(west.Start())
	text, err := os.ReadFile(r.config)
	r.must(err)
	r.write("bridged.yaml", regexp.MustCompile(`(?m)^marathon: .*$`).ReplaceAllString(string(text),
		fmt.Sprintf("marathons: [{name: east, urls: [%s]}, {name: west, urls: [%s]}]", strings.Join(r.marathon.URLs(), ", "), strings.Join(west.URLs(), ", "))))
	r.wait = 100 * time.Millisecond

	app := func(c *marathontest.Cluster, id string, port uint16) {
		t.Helper()
		r.must(c.Deploy(marathontest.AppSpec{ID: id, Instances: 1, Ports: []marathontest.Port{{Service: int(port)}}}))
	}
	answers := func(what string, port uint16) {
		t.Helper()
		haproxytest.Eventually(t, what, func() error {
			_, err := r.ask(int(port))
			return err
		})
	}
	r.start()
	r.ready(http.StatusOK)
	app(r.marathon, "/east", ports[0])
	app(west, "/west", ports[1])
	answers("app of east", ports[0])
	answers("app of west", ports[1])

	// Both want one port: who has it keeps it, the other is named.
	app(west, "/thief", ports[0])
	haproxytest.Eventually(t, "the clash is reported", func() error {
		for _, rej := range r.state().Rejected {
			if rej.App == "/thief" && strings.Contains(rej.Detail, "/east") {
				return nil
			}
		}
		return fmt.Errorf("rejected: %v", r.state().Rejected)
	})
	if n := r.metric("bridged_stream_connected", `source="west"`); n != 1 {
		t.Errorf("metrics do not tell the Marathons apart: %v", n)
	}

	west.Close()
	haproxytest.Eventually(t, "the loss is noticed", func() error {
		if code, body := r.get("/readyz"); code == http.StatusOK || !strings.Contains(body, "Marathon west is not connected") {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	app(r.marathon, "/more", ports[2])
	answers("east goes on", ports[2])
	if !strings.Contains(r.haproxyText(), "server ") || !strings.Contains(r.haproxyText(), fmt.Sprintf("west-%d", ports[1])) {
		t.Error("the dead Marathon's app is gone from haproxy.cfg")
	}

	// A restart while it is dead.
	r.must(r.bridge.stop())
	r.start()
	haproxytest.Eventually(t, "it begins without the dead one", func() error {
		s := r.state()
		for _, service := range s.Services {
			if service.App == "/west" && len(service.Servers) == 1 {
				return nil
			}
		}
		return fmt.Errorf("services: %v", s.Services)
	})
	app(r.marathon, "/evenmore", ports[3])
	answers("east goes on after the restart", ports[3])
	if !strings.Contains(r.haproxyText(), fmt.Sprintf("west-%d", ports[1])) {
		t.Error("the restart took the dead Marathon's app out of haproxy.cfg")
	}
}

func (r *rig) haproxyText() string {
	r.t.Helper()
	text, err := os.ReadFile(r.hap.ConfigFile)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(text)
}
