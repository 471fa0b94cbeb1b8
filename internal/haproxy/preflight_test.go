package haproxy

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"bridged/internal/haproxy/haproxytest"
)

func TestBindTestSeesForeignListenersAndNotOurOwn(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	busy := l.Addr().(*net.TCPAddr).AddrPort().Port()
	free := haproxytest.FreePorts(t, 1)[0]
	ours := func(b ...Bind) bindIndex { return indexBinds(b) }
	for name, c := range map[string]struct {
		bind Bind
		old  bindIndex
		says string
	}{
		"busy":            {Bind{Addr: "127.0.0.1", Port: busy}, nil, "in use by another process (haproxy.test"},
		"busy-under-any":  {Bind{Port: busy}, nil, "in use"},
		"busy-in-range":   {Bind{Addr: "127.0.0.1", Port: busy - 1, PortEnd: busy + 1}, ours(Bind{Port: busy - 1}, Bind{Port: busy + 1}), "in use"},
		"ours-already":    {Bind{Addr: "127.0.0.1", Port: busy}, ours(Bind{Addr: "127.0.0.1", Port: busy}), ""},
		"ours-wider":      {Bind{Addr: "127.0.0.1", Port: busy}, ours(Bind{Port: busy - 5, PortEnd: busy + 5}), ""},
		"ours-on-another": {Bind{Addr: "127.0.0.1", Port: busy}, ours(Bind{Addr: "127.0.0.9", Port: busy}), "in use"},
		"free":            {Bind{Addr: "127.0.0.1", Port: free}, nil, ""},
		"free-ipv6":       {Bind{Addr: "::1", Port: free}, nil, ""},
		"not-our-address": {Bind{Addr: "192.0.2.1", Port: free}, nil, "not on this machine"},
		"transparent":     {Bind{Addr: "192.0.2.1", Port: free, Options: "transparent"}, nil, ""},
		"unix":            {Bind{Addr: "unix@/tmp/x"}, nil, ""},
	} {
		err := testBind(c.bind, c.old)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

func TestFit(t *testing.T) {
	for name, c := range map[string]struct {
		limit, maxConn, listeners, checked int
		want                               budget
	}{
		"fits":                    {20000, 5000, 1000, 5000, budget{}},
		"unknown-limit":           {0, 1 << 20, 1000, 5000, budget{}},
		"computed-by-haproxy":     {20000, 0, 1000, 5000, budget{}},
		"as-measured-on-2.6":      {20000, 10000, 1000, 10000, budget{maxConn: (20000 - 1000 - fdReserve - 10000) / 2}},
		"checks-alone-too-many":   {5000, 2000, 100, 10000, budget{dropChecks: true}},
		"nothing-fits":            {5000, 9000, 100, 10000, budget{dropChecks: true, maxConn: (5000 - 100 - fdReserve) / 2}},
		"computed-and-too-many":   {5000, 0, 100, 10000, budget{dropChecks: true}},
		"small-maxconn-is-enough": {1000, 50, 100, 600, budget{}},
	} {
		if got := fit(c.limit, c.maxConn, c.listeners, c.checked); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// The rule that fit follows is HAProxy's own: one that it calls good starts.
func TestFittedConfigurationLoads(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		r := newRig(t, bin)
		limit := hardLimit(r.h.Pid(t))
		if limit == 0 || limit > 200000 {
			t.Skipf("hard limit of %d files: nothing to fit", limit)
		}
		port := haproxytest.FreePorts(t, 1)[0]
		b := r.put("app", port)
		b.ServerOptions, b.Servers = "check inter 60s", servers(200)
		global := *r.cfg.Global
		global.MaxConn = limit
		r.cfg.Global = &global
		w := r.mustReload()
		if len(w.Notes) != 1 || !strings.Contains(w.Notes[0], fmt.Sprintf("maxconn lowered from %d", limit)) {
			t.Errorf("notes %q", w.Notes)
		}
		if got := r.h.Info(t)["Maxconn"]; got != fmt.Sprint(w.Loaded.Global.MaxConn) {
			t.Errorf("HAProxy runs with maxconn %s, want %d", got, w.Loaded.Global.MaxConn)
		}
	})
}
