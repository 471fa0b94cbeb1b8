package bridge_test

import (
	"fmt"
	"testing"

	"bridged/internal/discovery/marathontest"
	"bridged/internal/haproxy/haproxytest"
)

// Marathon 0.8 has no event stream: with a callback listener configured, the transport
// auto has it post its events there. Without one it is polled.
func TestOldMarathonPostsItsEvents(t *testing.T) {
	ports := haproxytest.FreePorts(t, 2)
	for _, tc := range []struct{ keys, want string }{
		{"callback: {listen: 127.0.0.1:%d}", "callback"},
		{"", "poll"},
	} {
		t.Run(tc.want, func(t *testing.T) {
			r := newRig(t, rigOptions{marathon: marathontest.Options{Version: "0.8.2"}})
			r.marathonKeys = tc.keys
			if tc.keys != "" {
				r.marathonKeys = fmt.Sprintf(tc.keys, ports[1])
			}
			r.configure("")
			r.start()
			haproxytest.Eventually(t, "attached", func() error {
				if m := r.state().Marathon; string(m.Transport) != tc.want || !m.Connected {
					return fmt.Errorf("%+v", m)
				}
				return nil
			})
			r.deploy("/web", ports[0], 2)
			r.converged("deployed")
			if tc.want == "callback" && r.state().Marathon.LastEvent.IsZero() {
				t.Error("no event was posted")
			}
		})
	}
}
