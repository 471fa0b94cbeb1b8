package haproxy

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"bridged/internal/haproxy/haproxytest"
)

var walkSeed = flag.Uint64("walk.seed", 1, "where TestRandomWalk's chances come from")

// TestRandomWalk changes apps and servers at random while connections are cut, servers are
// changed by hand and HAProxy is reloaded by somebody else. Whenever all is quiet, HAProxy
// runs what is wanted, by its own words, and so it does after a restart from the file.
func TestRandomWalk(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		t.Logf("-walk.seed=%d", *walkSeed)
		random := rand.New(rand.NewPCG(*walkSeed, 0))
		r := newDriver(t, bin)
		ports := haproxytest.FreePorts(t, 6)
		want := make(map[string]*Backend)
		r.apply(Change{Global: r.global})
		r.settle()

		// One app gets another set of servers, or none, or comes or goes.
		change := func() Change {
			i := random.IntN(len(ports))
			name := fmt.Sprintf("app-%d", i)
			if want[name] != nil && random.IntN(8) == 0 {
				delete(want, name)
				return Change{Backends: map[string]*Backend{name: nil}}
			}
			b := listen(name, ports[i])
			b.ServerOptions = ""
			if random.IntN(6) == 0 {
				b.Balance = "roundrobin"
			} else if old := want[name]; old != nil {
				b.Balance = old.Balance
			}
			for n := range 9 {
				if random.IntN(2) == 0 {
					continue
				}
				addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, byte(i + 1), byte(n + 1)}), 9)
				b.Servers = append(b.Servers, Server{
					Name: fmt.Sprintf("127_0_%d_%d_9", i+1, n+1), Addr: addr, State: State(random.IntN(3)), Weight: random.IntN(5) - 1,
				})
			}
			want[name] = b
			return Change{Backends: map[string]*Backend{name: b}}
		}
		for range 40 {
			r.pace = pace{} // this is a storm, and shall not be waited for
			switch random.IntN(12) {
			case 0:
				r.hap.Faults.CutAfter(int64(random.IntN(200)))
				r.Apply(t.Context(), change())
				r.hap.Faults.Heal()
			case 1:
				r.hap.Faults.Drop()
			case 2:
				r.settle()
				r.hap.Reload(t)
				pid := r.hap.Pid(t)
				r.until("the other worker is found", func() bool { return r.Status().Pid == pid })
			case 3:
				if name := someServer(random, r.hap.Command(t, "show servers state")); name != "" {
					r.hap.Command(t, "set server "+name+" state "+stateText[random.IntN(3)])
					r.settle()
					if err := r.Audit(t.Context()); err != nil {
						t.Fatal(err)
					}
					r.until("the audit is over", func() bool { return !r.auditing })
				}
			case 4, 5, 6:
				r.Apply(t.Context(), change()) // and goes on at once
			default:
				r.Apply(t.Context(), change())
				r.settle()
				compareWithHAProxy(t, r, want)
			}
		}
		r.settle()
		if err := r.Audit(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.until("the audit is over", func() bool { return !r.auditing })
		r.settle()
		compareWithHAProxy(t, r, want)
		if out, err := r.hap.Check(t); err != nil {
			t.Fatalf("the file does not pass: %v\n%s", err, out)
		}
		r.hap.Restart(t)
		pid := r.hap.Pid(t)
		r.until("the restarted HAProxy is found", func() bool { return r.Status().Pid == pid })
		r.settle()
		compareWithHAProxy(t, r, want)
		if n := r.hap.Reloads(t); n != 0 {
			t.Errorf("%d reloads after a restart from the file", n)
		}
	})
}

// someServer picks one of those that `show servers state` lists, "" when there is none.
func someServer(random *rand.Rand, state string) string {
	var names []string
	for name, have := range parseServersState([]byte(state)) {
		for _, s := range have.servers {
			if strings.HasPrefix(name, "app-") {
				names = append(names, name+"/"+s.Name)
			}
		}
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return names[random.IntN(len(names))]
}

// compareWithHAProxy compares the servers that take traffic by HAProxy's own words with
// those that are wanted.
func compareWithHAProxy(t *testing.T, r *driver, want map[string]*Backend) {
	t.Helper()
	have := parseServersState([]byte(r.hap.Command(t, "show servers state")))
	lines := func(name string, v []view) (out []string) {
		for _, s := range v {
			out = append(out, fmt.Sprintf("%s %s %s %d", name, s.Addr, s.State, s.Weight))
		}
		return out
	}
	var wanted, got []string
	for _, name := range slices.Sorted(maps.Keys(want)) {
		wanted = append(wanted, lines(name, wantView(want[name], slotted))...)
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if strings.HasPrefix(name, "app-") {
			got = append(got, lines(name, haveView(have[name], slotted))...)
		}
	}
	if !slices.Equal(wanted, got) {
		t.Fatalf("HAProxy runs\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(wanted, "\n"))
	}
	for name, bs := range r.backends {
		if bs.have == nil {
			t.Fatalf("%s is not known to run", name)
		}
		if d := compareRunning(bs.have, have[name]); len(d) > 0 && have[name] != nil {
			t.Fatalf("%s runs other servers than we believe: %v", name, d)
		}
	}
}
