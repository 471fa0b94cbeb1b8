package bridge

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"bridged/internal/discovery"
	"bridged/internal/haproxy"
)

var lawOptions = map[string]TranslateOptions{
	"bridge": {HTTPBinds: []haproxy.Bind{{Addr: "*", Port: 80}}},
	"marathon-lb": {Dialect: DialectMarathonLB, HTTPBinds: []haproxy.Bind{{Addr: "*", Port: 80}, {Addr: "*", Port: 443, Options: "ssl crt /etc/ssl/a.pem"}},
		MarathonLB: MarathonLBOptions{AppIDBind: haproxy.Bind{Addr: "*", Port: 9091}}},
	"grouped": {Dialect: DialectMarathonLB, HTTPBinds: []haproxy.Bind{{Addr: "*", Port: 443, Options: "ssl crt /etc/ssl/a.pem"}},
		MarathonLB: MarathonLBOptions{GroupHTTPSByVhost: true}},
}

// What a translator says after a history of updates is what it says of the last world at
// once. Ports are distinct and labels good here: an incumbent and a last good form are
// what history is for.
func TestHistoryDoesNotShow(t *testing.T) {
	for name, o := range lawOptions {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(30) {
				rng := rand.New(rand.NewPCG(seed, 7))
				tr, w := NewTranslator(o), newWorld()
				var services []*discovery.Service
				for range 25 {
					services = randomWorld(rng)
					w.merge(tr.Apply(w.update(services), time.Time{}))
				}
				fresh, fw := NewTranslator(o), newWorld()
				fw.merge(fresh.Apply(fw.update(services), time.Time{}))
				if diff := gocmp.Diff(fw.text(), w.text()); diff != "" {
					t.Fatalf("seed %d (-at once +step by step)\n%s", seed, diff)
				}
				if diff := gocmp.Diff(rejectedText(fresh), rejectedText(tr)); diff != "" {
					t.Fatalf("seed %d, rejections (-at once +step by step)\n%s", seed, diff)
				}
			}
		})
	}
}

// The same world again, as a resync brings it, changes nothing.
func TestSameWorldIsNoChange(t *testing.T) {
	for name, o := range lawOptions {
		t.Run(name, func(t *testing.T) {
			world := func() []*discovery.Service { return randomWorld(rand.New(rand.NewPCG(1, 2))) }
			tr, w := NewTranslator(o), newWorld()
			w.merge(tr.Apply(&discovery.Update{Full: true, Services: world()}, time.Time{}))
			w.merge(tr.Apply(&discovery.Update{Full: true, Services: world()}, time.Time{}))
			if w.touched != 0 {
				t.Errorf("the same world again touched %d parts", w.touched)
			}
		})
	}
}

// An empty world after a full one leaves nothing but the shared parts, and the translator
// forgets what it knew.
func TestEverythingGone(t *testing.T) {
	for name, o := range lawOptions {
		t.Run(name, func(t *testing.T) {
			empty, ew := NewTranslator(o), newWorld()
			ew.merge(empty.Apply(&discovery.Update{Full: true}, time.Time{}))
			tr, w := NewTranslator(o), newWorld()
			w.merge(tr.Apply(&discovery.Update{Full: true, Services: randomWorld(rand.New(rand.NewPCG(3, 2)))}, time.Time{}))
			w.merge(tr.Apply(&discovery.Update{Full: true}, time.Time{}))
			if diff := gocmp.Diff(ew.text(), w.text()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if n := len(tr.apps) + len(tr.units) + len(tr.contests) + len(tr.routes.hosts) + len(tr.rejected) + len(tr.auto); n != 0 {
				t.Errorf("%d things are still remembered: %d apps, %d units, %d contests, %d hosts", n, len(tr.apps), len(tr.units), len(tr.contests), len(tr.routes.hosts))
			}
		})
	}
}

// New options over a known world give what a translator born with them gives.
func TestReconfigure(t *testing.T) {
	for from, a := range lawOptions {
		for to, b := range lawOptions {
			t.Run(from+" to "+to, func(t *testing.T) {
				services := randomWorld(rand.New(rand.NewPCG(5, 2)))
				tr, w := NewTranslator(a), newWorld()
				w.merge(tr.Apply(w.update(services), time.Time{}))
				w.merge(tr.Reconfigure(b, time.Time{}))
				fresh, fw := NewTranslator(b), newWorld()
				fw.merge(fresh.Apply(fw.update(services), time.Time{}))
				if diff := gocmp.Diff(fw.text(), w.text()); diff != "" {
					t.Errorf("(-born with them +reconfigured)\n%s", diff)
				}
			})
		}
	}
}

// randomWorld is a small world with the things that services share: vhosts, paths,
// redirects, deployment groups.
func randomWorld(rng *rand.Rand) []*discovery.Service {
	var services []*discovery.Service
	for i := range 8 {
		if rng.IntN(4) == 0 {
			continue
		}
		app := &discovery.App{ID: fmt.Sprintf("/app%d", i), Version: "1", Instances: 3, Labels: make(map[string]string)}
		for p := range 1 + rng.IntN(2) {
			app.Ports = append(app.Ports, discovery.Port{Service: uint16(10000 + 10*i + p), Protocol: "tcp"})
		}
		pick := func(label string, values ...string) {
			if v := values[rng.IntN(len(values))]; v != "" {
				app.Labels["HAPROXY_0_"+label] = v
			}
		}
		pick("VHOST", "", "a.com", "a.com,b.com", "*.a.com", "*")
		pick("PATH", "", "", "/x", "/x/y", "/x /z")
		if !strings.HasPrefix(app.Labels["HAPROXY_0_VHOST"], "*") {
			pick("PATH", "", "", "", "-i /x")
		}
		pick("BACKEND_WEIGHT", "", "", "1", "5")
		pick("REDIRECT_TO_HTTPS", "", "", "true")
		pick("STICKY", "", "true")
		pick("AUTH", "", "", "realm:bob:$1$abc$aaaaaaaaaaaaaaaaaaaaaa")
		pick("SSL_CERT", "", "", "/etc/ssl/b.pem")
		pick("BACKEND_HEALTHCHECK_PORT_INDEX", "", "", "1")
		if rng.IntN(3) == 0 {
			app.Labels["HAPROXY_DEPLOYMENT_GROUP"] = "group" // of all apps that have it
			app.Labels["HAPROXY_DEPLOYMENT_STARTED_AT"] = fmt.Sprintf("2020-01-%02dT00:00:00", i+1)
		}
		if rng.IntN(2) == 0 {
			app.Checks = []discovery.HealthCheck{{Protocol: "HTTP", PortIndex: rng.IntN(2)}}
		}
		for index, port := range app.Ports {
			s := &discovery.Service{Key: discovery.Key{App: app.ID, Index: index}, App: app, Port: port}
			for task := range rng.IntN(4) {
				addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), byte(task)}), uint16(31000+index))
				s.Tasks = append(s.Tasks, discovery.Task{ID: fmt.Sprintf("%d.%d", i, task), App: app.ID, Host: "agent", Addr: addr,
					State:  []discovery.TaskState{discovery.Running, discovery.Running, discovery.Killing, discovery.Unreachable}[rng.IntN(4)],
					Health: []discovery.Health{discovery.Alive, discovery.Alive, discovery.Dead, discovery.HealthUnknown}[rng.IntN(4)], Ready: rng.IntN(5) > 0})
			}
			services = append(services, s)
		}
	}
	rng.Shuffle(len(services), func(i, j int) { services[i], services[j] = services[j], services[i] })
	return slices.Clip(services)
}
