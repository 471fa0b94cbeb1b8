package discovery

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"bridged/internal/discovery/marathontest"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// world is a simulated Marathon and a Watcher of it, in a bubble of fake time.
type world struct {
	t       *testing.T
	cluster *marathontest.Cluster
	net     marathontest.MemoryNetwork
	dials   atomic.Int64
	watcher *Watcher
	metrics *prometheus.Registry
	stop    func()

	mu      sync.Mutex
	table   map[Key]*Service
	updates []*Update
	paused  chan struct{} // while set, nothing is received
}

func newWorld(t *testing.T, mo marathontest.Options, o Options) *world {
	t.Helper()
	w := &world{t: t, table: map[Key]*Service{}, metrics: prometheus.NewRegistry()}
	mo.Listen, mo.Dial = w.net.Listen, w.net.DialContext
	if len(mo.Hosts) == 0 {
		mo.Hosts = []string{"10.1.0.1", "10.1.0.2", "10.1.0.3"}
	}
	w.cluster = marathontest.New(mo)
	if err := w.cluster.Start(); err != nil {
		t.Fatal(err)
	}
	o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		w.dials.Add(1)
		conn, err := w.net.DialContext(ctx, network, addr)
		if err != nil && strings.HasSuffix(err.Error(), "connection refused") {
			err = &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED} // as of a real network
		}
		return conn, err
	}
	if o.URLs == nil {
		o.URLs = w.cluster.URLs()
	}
	o.Registerer = w.metrics
	if testing.Verbose() {
		o.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	var err error
	if w.watcher, err = NewWatcher(o); err != nil {
		t.Fatal(err)
	}
	return w
}

// run starts the watcher and a receiver of its updates; the test's end stops both.
func (w *world) run() *world {
	ctx, cancel := context.WithCancel(w.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.watcher.Run(ctx); err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
	wg.Go(func() { w.receiveFrom(ctx, w.watcher.Updates()) })
	w.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	return w
}

func (w *world) close() {
	w.stop()
	w.cluster.Close()
}

func (w *world) receiveFrom(ctx context.Context, updates <-chan *Update) {
	for {
		w.mu.Lock()
		paused := w.paused
		w.mu.Unlock()
		if paused != nil {
			select {
			case <-paused:
			case <-ctx.Done():
				return
			}
		}
		select {
		case u := <-updates:
			w.mu.Lock()
			w.fold(u)
			w.mu.Unlock()
		case <-ctx.Done():
			return
		}
	}
}

func (w *world) fold(u *Update) {
	w.updates = append(w.updates, u)
	if u.Full {
		clear(w.table)
	}
	for _, s := range u.Services {
		if slices.Contains(u.Gone, s.Key) {
			w.t.Errorf("%v is both there and gone", s.Key)
		}
		w.table[s.Key] = s
	}
	for _, k := range u.Gone {
		delete(w.table, k)
	}
}

// received are the updates so far.
func (w *world) received() []*Update {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.updates)
}

// service is a service as it was sent last.
func (w *world) service(k Key) *Service {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.table[k]
}

// settle lets what is under way end: d is time in the bubble.
func (w *world) settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// routes is the table by service port, of what the default health mode routes to.
func (w *world) routes() map[int][]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return routesOf(w.table)
}

func routesOf(table map[Key]*Service) map[int][]string {
	routes := map[int][]string{}
	for _, s := range table {
		port := int(s.Port.Service)
		if port == 0 {
			continue
		}
		addrs := routes[port]
		if addrs == nil {
			addrs = []string{}
		}
		for _, t := range s.Tasks {
			if (t.State == Running || t.State == Unreachable) && t.Ready && (t.Health == Alive || t.Health == NoChecks) {
				addrs = append(addrs, t.Addr.String())
			}
		}
		slices.Sort(addrs)
		routes[port] = addrs
	}
	return routes
}

// matches fails the test when the routes are not those that follow from the cluster.
func (w *world) matches(when string) {
	w.t.Helper()
	if diff := cmp.Diff(w.cluster.Expected(), w.routes()); diff != "" {
		w.t.Fatalf("%s (-want +got):\n%s\n%s", when, diff, w.dump())
	}
}

// auditsFindNothing lets time pass for some audits, and fails the test when they had
// anything to correct: the events alone should have told.
func (w *world) auditsFindNothing() {
	w.t.Helper()
	corrections := func() float64 { return w.counter("resyncs_total", "reason", "audit", "result", "corrected") }
	corrected := corrections() // an audit may overtake an event that was delayed
	before := w.counter("resyncs_total", "reason", "audit")
	w.settle(30 * time.Second)
	if w.counter("resyncs_total", "reason", "audit") == before {
		w.t.Errorf("no audits in 30 s")
	}
	if n := corrections() - corrected; n != 0 {
		w.t.Errorf("audits corrected the picture %v times", n)
	}
}

func (w *world) dump() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "status: %+v\n", w.watcher.Status())
	for _, k := range sortedKeys(w.table) {
		b.WriteString(printService(w.table[k]))
	}
	return b.String()
}

func sortedKeys(table map[Key]*Service) []Key {
	keys := make([]Key, 0, len(table))
	for k := range table {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b Key) int {
		if c := strings.Compare(a.App, b.App); c != 0 {
			return c
		}
		return a.Index - b.Index
	})
	return keys
}

// printService writes a service as tests expect it.
func printService(s *Service) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s#%d port %d", s.Key.App, s.Key.Index, s.Port.Service)
	for _, k := range slices.Sorted(mapsKeys(s.App.Labels)) {
		fmt.Fprintf(&b, " %s=%s", k, s.App.Labels[k])
	}
	b.WriteByte('\n')
	for _, t := range s.Tasks {
		fmt.Fprintf(&b, "  %s %v %s %s", t.ID, t.Addr, stateNames[t.State], healthNames[t.Health])
		if !t.Ready {
			b.WriteString(" unready")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func mapsKeys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

var (
	stateNames  = map[TaskState]string{Staging: "staging", Running: "running", Killing: "killing", Unreachable: "unreachable", Gone: "gone"}
	healthNames = map[Health]string{HealthUnknown: "unknown", Alive: "alive", Dead: "dead", NoChecks: "nochecks"}
)

// requests counts those whose path begins with path.
func (w *world) requests(path string) int {
	n := 0
	for _, r := range w.cluster.Requests() {
		if strings.HasPrefix(r.Path, path) {
			n++
		}
	}
	return n
}

var testVersions = []string{"0.9.0", "0.10.0", "0.11.0", "0.14.0", "1.1.0", "1.3.0", "1.4.0", "1.5.0", "1.7.0", "1.8.180", "1.11.0"}

// TestLife walks an app through its life in every version that has a stream.
func TestLife(t *testing.T) {
	for _, version := range testVersions {
		t.Run(version, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, marathontest.Options{Version: version}, Options{}).run()
				defer w.close()
				c := w.cluster
				check := marathontest.HealthCheck{Protocol: "HTTP", Path: "/"}
				must := func(err error) {
					t.Helper()
					if err != nil {
						t.Fatal(err)
					}
				}
				must(c.Deploy(marathontest.AppSpec{ID: "/first", Instances: 1, Ports: []marathontest.Port{{Service: 10100}}}))
				w.settle(time.Second)
				w.matches("first sync")

				must(c.Deploy(marathontest.AppSpec{ID: "/shop/cart", Instances: 2, Ports: []marathontest.Port{{Service: 10001}, {Service: 10002}}, HealthChecks: []marathontest.HealthCheck{check}}))
				w.settle(time.Second)
				w.matches("deployed")
				must(c.Scale("/shop/cart", 10))
				w.settle(time.Second)
				w.matches("scaled up")
				must(c.Scale("/shop/cart", 3))
				w.settle(time.Second)
				w.matches("scaled down")
				must(c.Kill(c.Tasks("/shop/cart")[0].ID))
				w.settle(time.Second)
				w.matches("one killed")
				id := c.Tasks("/shop/cart")[1].ID
				must(c.SetHealth(id, false))
				w.settle(time.Second)
				w.matches("unhealthy")
				must(c.SetHealth(id, true))
				w.settle(time.Second)
				w.matches("healthy")
				must(c.SetLabels("/shop/cart", map[string]string{"HAPROXY_0_VHOST": "cart.example"}))
				w.settle(time.Second)
				w.matches("labelled")
				if got := w.service(Key{App: "/shop/cart"}).App.Labels["HAPROXY_0_VHOST"]; got != "cart.example" {
					t.Errorf("label: have %q", got)
				}
				must(c.Deploy(marathontest.AppSpec{ID: "/bridge", Instances: 2, Image: "nginx", Network: marathontest.BridgeNetwork, Ports: []marathontest.Port{{Container: 80}, {Service: 10005, Container: 81}}}))
				w.settle(time.Second)
				w.matches("bridge network")
				must(c.Delete("/shop/cart"))
				w.settle(time.Second)
				w.matches("deleted")
				w.auditsFindNothing()
				// Up to 1.4 a burst of events may have lost some: everything is read again.
				most := 1
				if parseVersion(version).losesBursts() {
					most = 4
				}
				if n := w.counter("resyncs_total") - w.counter("resyncs_total", "reason", "audit"); n > float64(most) {
					t.Errorf("%v readings of everything besides audits, want at most %d", n, most)
				}
			})
		})
	}
}
