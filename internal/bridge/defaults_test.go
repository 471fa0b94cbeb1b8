package bridge_test

import (
	"net/netip"
	"testing"

	"bridged/internal/bridge"
)

// Nothing of ours listens beyond this machine unless the operator says so.
func TestDefaultsListenOnLoopback(t *testing.T) {
	c := bridge.Defaults()
	addr, err := netip.ParseAddrPort(c.Listen)
	if err != nil || !addr.Addr().IsLoopback() {
		t.Errorf("listen is %q, want an address of loopback (%v)", c.Listen, err)
	}
	if c.MetricsListen != "" || len(c.HTTPBind) != 0 {
		t.Errorf("metrics_listen %q and http.bind %q, want none", c.MetricsListen, c.HTTPBind)
	}
	if c.AllowTemplateLabels {
		t.Error("labels may write text of their own into haproxy.cfg")
	}
}
