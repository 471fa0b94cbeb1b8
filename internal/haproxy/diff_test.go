package haproxy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// view is what traffic sees of a server, and what a diff has to bring about.
type view struct {
	Addr   netip.AddrPort
	State  State
	Weight int
	Name   string // "" in slots
}

func wantView(b *Backend, how strategy) []view {
	var out []view
	for _, s := range b.Servers {
		v := view{Addr: s.Addr, State: s.State, Name: s.Name}
		if s.State == Ready {
			v.Weight = effectiveWeight(s.Weight)
		}
		if how == slotted {
			v.Name = ""
		}
		if s.State != Maint {
			out = append(out, v)
		}
	}
	return sortedView(out)
}

func haveView(r *running, how strategy) []view {
	var out []view
	for _, s := range r.servers {
		v := view{Addr: s.Addr, State: s.State, Name: s.Name}
		if s.State == Ready {
			v.Weight = s.Weight
		}
		if how == slotted {
			v.Name = ""
		}
		if s.State != Maint {
			out = append(out, v)
		}
	}
	return sortedView(out)
}

func sortedView(v []view) []view {
	slices.SortFunc(v, func(a, b view) int {
		if c := a.Addr.Compare(b.Addr); c != 0 {
			return c
		}
		return int(a.State) - int(b.State)
	})
	return v
}

// randomBackend has servers drawn from few addresses, so that two of them overlap.
func randomBackend(r *rand.Rand, max int) *Backend {
	b := &Backend{Section: Section{Kind: KindBackend, Name: "be"}, ServerOptions: "check inter 10s"}
	for port := range max {
		if r.IntN(2) == 0 {
			continue
		}
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1}), uint16(31000+port))
		b.Servers = append(b.Servers, Server{
			Name: fmt.Sprintf("10_0_0_1_%d", addr.Port()), Addr: addr,
			State: State(r.IntN(3)), Weight: r.IntN(4) - 1,
		})
	}
	r.Shuffle(len(b.Servers), func(i, j int) { b.Servers[i], b.Servers[j] = b.Servers[j], b.Servers[i] })
	return b
}

var strategies = map[string]struct {
	how  strategy
	caps Capabilities
}{
	"dynamic-3.0":  {dynamic, CapabilitiesOf(Version{3, 0})},
	"slotted-2.6":  {slotted, CapabilitiesOf(Version{2, 6})},
	"additive-2.6": {additive, CapabilitiesOf(Version{2, 6})},
	"fixed-2.2":    {fixed, CapabilitiesOf(Version{2, 2})},
}

// execute does what HAProxy would do, and checks that it would be possible.
func execute(t *testing.T, have *running, p *plan) {
	t.Helper()
	for _, half := range [][]Command{p.grow, p.shrink} {
		for i := range half {
			c := &half[i]
			if _, err := c.appendTo(nil); err != nil {
				t.Fatal(err)
			}
			at := have.find(c.Server, -1)
			switch {
			case c.Verb == AddServer && at >= 0:
				t.Fatalf("add server %s: it is there", c.Server)
			case c.Verb != AddServer && at < 0:
				t.Fatalf("%s %s: no such server", c.Verb, c.Server)
			case c.Verb == SetAddr && have.servers[at].State != Maint:
				t.Fatalf("set server addr of %s while it is %s", c.Server, have.servers[at].State)
			}
			have.did(c)
		}
	}
}

func TestDiffBrings(t *testing.T) {
	for name, s := range strategies {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(400) {
				r := rand.New(rand.NewPCG(seed, 1))
				size := 12
				if seed%40 == 0 {
					size = 120 // above the limit of the scans
				}
				before, want := randomBackend(r, size), randomBackend(r, size)
				have := loadedFrom(fileBackend(before, before, nil, s.how, sparesDouble))

				var p plan
				p.diffBackend("be", have, want, s.how, s.caps)
				execute(t, have, &p)
				grown := len(p.reasons) > 0
				if grown && s.how == dynamic {
					t.Fatalf("seed %d: reasons %v where everything can be done", seed, p.reasons)
				}
				if !grown {
					if d := cmp.Diff(wantView(want, s.how), haveView(have, s.how), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
						t.Fatalf("seed %d: after the diff (-want +got):\n%s", seed, d)
					}
				}
				var again plan
				again.diffBackend("be", have, want, s.how, s.caps)
				if len(again.grow)+len(again.shrink) > 0 {
					t.Fatalf("seed %d: a second diff adds %+v %+v", seed, again.grow, again.shrink)
				}
				if !grown && len(again.reasons) > 0 {
					t.Fatalf("seed %d: a second diff finds reasons %v", seed, again.reasons)
				}
				// A reload brings it too, whatever was in the way: the file has every server.
				have = loadedFrom(fileBackend(want, want, have, s.how, sparesDouble))
				var after plan
				after.diffBackend("be", have, want, s.how, s.caps)
				execute(t, have, &after)
				if d := cmp.Diff(wantView(want, s.how), haveView(have, s.how), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" || len(after.reasons) > 0 {
					t.Fatalf("seed %d: after a reload, reasons %v (-want +got):\n%s", seed, after.reasons, d)
				}
			}
		})
	}
}

// Removed servers stop only after added ones take traffic: in one batch every addition
// stands before every removal.
func TestDiffAddsBeforeRemovals(t *testing.T) {
	for name, s := range strategies {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(100) {
				r := rand.New(rand.NewPCG(seed, 2))
				var before, want *Backend
				for before == nil || len(before.Servers) == 0 {
					before = randomBackend(r, 8)
				}
				want = randomBackend(r, 8)
				have := loadedFrom(fileBackend(before, before, nil, s.how, sparesDouble))
				var p plan
				p.diffBackend("be", have, want, s.how, s.caps)
				for _, c := range p.grow {
					at := have.find(c.Server, -1)
					if c.Verb == SetState && c.State == Maint && have.servers[at].State != Maint && slices.ContainsFunc(have.servers, func(h runningServer) bool {
						return h.State == Maint && slotNumber(h.Name) > 0 && !slices.ContainsFunc(p.grow, func(o Command) bool { return o.Server == h.Name })
					}) {
						t.Fatalf("seed %d: %s leaves traffic although a spare slot is free", seed, c.Server)
					}
				}
			}
		})
	}
}

func TestSlotsKeepTheirServersInTheFile(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 3))
	want := randomBackend(r, 12)
	have := loadedFrom(fileBackend(want, want, nil, slotted, sparesDouble))
	for range 50 {
		want = randomBackend(r, 12)
		var p plan
		p.diffBackend("be", have, want, slotted, strategies["slotted-2.6"].caps)
		execute(t, have, &p)
		if len(p.reasons) > 0 {
			have = loadedFrom(fileBackend(want, want, have, slotted, sparesDouble))
			continue
		}
		file := fileBackend(want, want, have, slotted, sparesDouble)
		for _, s := range file.Servers {
			if s.State == Maint {
				continue
			}
			at := have.find(s.Name, -1)
			if at >= 0 && have.servers[at].Addr != s.Addr && slices.ContainsFunc(have.servers[:min(len(have.servers), len(file.Servers))], func(h runningServer) bool {
				return h.Addr == s.Addr && h.State != Maint
			}) {
				t.Fatalf("%s is %s in the file and %s in the worker", s.Name, s.Addr, have.servers[at].Addr)
			}
		}
	}
}

func TestSpares(t *testing.T) {
	for _, tt := range []struct {
		s       spares
		n, want int
	}{
		{sparesDouble, 0, 4}, {sparesDouble, 1, 4}, {sparesDouble, 2, 4}, {sparesDouble, 3, 8}, {sparesDouble, 10, 32},
		{sparesQuarter, 0, 2}, {sparesQuarter, 10, 12}, {sparesQuarter, 100, 125},
		{sparesOne, 7, 8}, {sparesNone, 7, 7},
	} {
		if got := tt.s.slots(tt.n); got != tt.want {
			t.Errorf("spares(%d).slots(%d) = %d, want %d", tt.s, tt.n, got, tt.want)
		}
	}
	ten := slices.Repeat([]int{10}, 100)
	for _, tt := range []struct {
		limit int
		want  spares
	}{{4000, sparesDouble}, {3200, sparesDouble}, {3199, sparesQuarter}, {1199, sparesOne}, {1099, sparesNone}, {10, sparesNone}} {
		if got := chooseSpares(ten, tt.limit); got != tt.want {
			t.Errorf("chooseSpares(100 × 10, %d) = %d, want %d", tt.limit, got, tt.want)
		}
	}
}

func TestStrategyFor(t *testing.T) {
	plain := &Backend{Servers: []Server{{Name: "a", Weight: -1}, {Name: "b", Weight: 5}}}
	named := &Backend{Named: true, Servers: plain.Servers}
	sticky := &Backend{Servers: []Server{{Name: "a", Cookie: "x"}}}
	for _, tt := range []struct {
		b       *Backend
		version Version
		policy  SlotPolicy
		want    strategy
	}{
		{plain, Version{2, 2}, SlotsAuto, slotted},
		{plain, Version{2, 6}, SlotsAuto, slotted},
		{plain, Version{2, 8}, SlotsAuto, slotted},
		{plain, Version{2, 9}, SlotsAuto, dynamic},
		{plain, Version{3, 2}, SlotsAlways, dynamic},
		{plain, Version{2, 6}, SlotsNever, additive},
		{plain, Version{2, 4}, SlotsNever, fixed},
		{named, Version{2, 6}, SlotsAuto, additive},
		{named, Version{2, 6}, SlotsAlways, slotted},
		{named, Version{2, 2}, SlotsAuto, fixed},
		{sticky, Version{2, 6}, SlotsAlways, additive},
	} {
		if got := strategyFor(tt.b, CapabilitiesOf(tt.version), tt.policy); got != tt.want {
			t.Errorf("named %t, %s, %s: strategy %d, want %d", tt.b.Named, tt.version, tt.policy, got, tt.want)
		}
	}
}

func TestDiffMap(t *testing.T) {
	have := &runningMap{path: "/m", entries: map[string]string{"a": "1", "b": "2", "c": "3"}}
	want := map[string]string{"a": "1", "b": "9", "d": "4"}
	var p plan
	p.diffMap(have, want, []string{"a", "b", "c", "d", "e"})
	var lines []byte
	for _, c := range append(p.grow, p.shrink...) {
		var err error
		if lines, err = c.appendTo(lines); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff("set map /m b 9\nadd map /m d 4\ndel map /m c\n", string(lines)); d != "" {
		t.Errorf("commands (-want +got):\n%s", d)
	}
}

// The last servers of a backend do not drain while those that follow wait for a reload.
func TestLastServersWaitForTheReload(t *testing.T) {
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port) }
	have := &running{servers: []runningServer{{Name: "a", Addr: at(1), Weight: 1, known: true}, {Name: "b", Addr: at(2), Weight: 1, known: true}}}
	want := func(a, b State, more ...Server) *Backend {
		return &Backend{Section: Section{Name: "web"}, Balance: "static-rr", Servers: append([]Server{
			{Name: "a", Addr: at(1), Weight: -1, State: a}, {Name: "b", Addr: at(2), Weight: -1, State: b}}, more...)}
	}
	next := Server{Name: "c", Addr: at(3), Weight: -1}
	for name, test := range map[string]struct {
		want     *Backend
		commands int
	}{
		"another-is-left":      {want(Drain, Ready, next), 1},
		"none-is-left":         {want(Drain, Drain, next), 0},
		"nobody-follows":       {want(Drain, Drain), 2},
		"what-is-gone-is-gone": {want(Drain, Maint, next), 1},
	} {
		t.Run(name, func(t *testing.T) {
			var p plan
			p.diffBackend("web", have, test.want, dynamic, CapabilitiesOf(Version{Major: 3, Minor: 0}))
			if len(p.shrink) != test.commands || len(p.grow) != 0 {
				t.Errorf("commands %v and %v, want %d", p.grow, p.shrink, test.commands)
			}
		})
	}
}
