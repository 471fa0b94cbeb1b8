package bridge

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bridged/internal/discovery"
)

func interfaces(t *testing.T, prefixes ...string) []net.Addr {
	t.Helper()
	var addrs []net.Addr
	for _, s := range prefixes {
		ip, n, err := net.ParseCIDR(s)
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, &net.IPNet{IP: ip, Mask: n.Mask})
	}
	return addrs
}

func TestLocalAddrs(t *testing.T) {
	t.Parallel()
	got, err := localAddrs(func() ([]net.Addr, error) {
		return interfaces(t, "127.0.0.1/8", "10.0.0.9/24", "::1/128", "fe80::1/64", "2001:db8::7/64", "10.0.0.7/24"), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, a := range got {
		text = append(text, a.String())
	}
	if diff := cmp.Diff([]string{"10.0.0.7", "10.0.0.9", "2001:db8::7"}, text); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

// An address that this node gets later makes tasks there local: a service port that one
// of them holds itself is not bound any more.
func TestAddressThatComesLaterIsSeen(t *testing.T) {
	dir := t.TempDir()
	cfg, err := loadText(t, "marathon: {urls: [127.0.0.1:1]}\nlisten: 127.0.0.1:0\nstate_dir: "+filepath.Join(dir, "state")+"\n", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var have []net.Addr
	var broken error
	b, err := New(Options{Config: cfg, Logger: slog.New(slog.DiscardHandler), Interfaces: func() ([]net.Addr, error) { return have, broken }})
	if err != nil {
		t.Fatal(err)
	}
	defer b.proxy.Close()
	defer b.listener.Close()
	b.translator.Apply(&discovery.Update{Full: true, Services: []*discovery.Service{{
		App: &discovery.App{ID: "/a"}, Key: discovery.Key{App: "/a"}, Port: discovery.Port{Service: 8080, Host: 8080, Mapped: true, Protocol: "tcp"},
		Tasks: []discovery.Task{{ID: "a.1", Addr: netip.MustParseAddrPort("10.0.0.7:8080"), State: discovery.Running, Ready: true}},
	}}}, time.Time{})
	rejected := func(what string, want int) {
		t.Helper()
		if got := b.translator.Rejected(); len(got) != want || want > 0 && got[0].Reason != ReasonNodePort {
			t.Errorf("%s: rejected %+v, want %d", what, got, want)
		}
	}
	rejected("no address", 0)
	now := time.Now()
	have = interfaces(t, "10.0.0.7/24")
	b.followAddrs(t.Context(), now)
	rejected("asked a moment ago", 0)
	b.followAddrs(t.Context(), now.Add(addrsInterval))
	rejected("a minute later", 1)
	broken = errors.New("out of descriptors")
	b.followAddrs(t.Context(), now.Add(3*addrsInterval))
	rejected("nothing can be read", 1)
	have, broken = nil, nil
	b.followAddrs(t.Context(), now.Add(5*addrsInterval))
	rejected("the address is gone", 0)
}
