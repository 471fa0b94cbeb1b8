package discovery

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bridged/internal/discovery/marathontest"

	"github.com/prometheus/client_golang/prometheus"
)

func TestPoll(t *testing.T) {
	for _, version := range []string{"0.8.2", "1.11.0"} {
		t.Run(version, func(t *testing.T) {
			bubble(t, marathontest.Options{Version: version}, Options{}, func(w *world) {
				// 0.8 has no stream, and no callback listener is configured.
				if version != "0.8.2" {
					return
				}
				must(t, w.cluster.Deploy(web(3)))
				w.settle(10 * time.Second)
				w.matches("polled")
				must(t, w.cluster.Scale("/web", 5))
				w.settle(10 * time.Second)
				w.matches("polled again")
				if s := w.watcher.Status(); s.Transport != TransportPoll || !s.Connected {
					t.Errorf("status: %+v", s)
				}
			})
			bubble(t, marathontest.Options{Version: version, Nodes: 2}, Options{Transport: TransportPoll}, func(w *world) {
				must(t, w.cluster.Deploy(web(3)))
				w.settle(10 * time.Second)
				w.matches("polled")
				must(t, w.cluster.Elect(1))
				must(t, w.cluster.Scale("/web", 1))
				w.settle(15 * time.Second)
				w.matches("from the new leader")
				if n := w.requests("/v2/events"); n != 0 {
					t.Errorf("%d streams were asked for", n)
				}
			})
		})
	}
}

// waitFor receives updates until the routes are those that follow from the cluster. It
// is for tests on real sockets, where no bubble tells when all is quiet.
func (w *world) waitFor(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case u := <-w.watcher.Updates():
			w.mu.Lock()
			w.fold(u)
			w.mu.Unlock()
		case <-deadline:
			w.t.Fatalf("%s: not in time\n%s", what, w.dump())
		}
	}
}

func (w *world) agrees() bool {
	return fmt.Sprint(w.routes()) == fmt.Sprint(w.cluster.Expected())
}

func TestCallbacks(t *testing.T) {
	for _, version := range []string{"0.8.2", "1.4.0"} {
		t.Run(version, func(t *testing.T) {
			w := &world{t: t, table: map[Key]*Service{}}
			w.cluster = marathontest.New(marathontest.Options{Version: version, Hosts: []string{"127.0.0.1"}})
			must(t, w.cluster.Start())
			defer w.cluster.Close()
			must(t, w.cluster.Deploy(web(2)))
			dir := t.TempDir()
			o := Options{URLs: w.cluster.URLs(), Transport: TransportCallback, Callback: CallbackOptions{Listen: "127.0.0.1:0"}, StateDir: dir}
			var err error
			w.watcher, err = NewWatcher(o)
			must(t, err)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- w.watcher.Run(ctx) }()
			w.waitFor("first picture", w.agrees)
			url := subscription(t, w.cluster)
			if !strings.Contains(url, callbackPath) || len(url) < len(callbackPath)+20 {
				t.Errorf("callback URL %s can be guessed", url)
			}
			must(t, w.cluster.Scale("/web", 4))
			w.waitFor("scaled", w.agrees)
			must(t, w.cluster.Kill(w.cluster.Tasks("/web")[0].ID))
			w.waitFor("killed", w.agrees)

			for what, c := range map[string]struct {
				path string
				body []byte
				want int
			}{
				"a guess":     {callbackPath + "guess", []byte("{}"), http.StatusNotFound},
				"other paths": {"/", []byte("{}"), http.StatusNotFound},
				"no JSON":     {"", []byte("x"), http.StatusOK},
				"too much":    {"", bytes.Repeat([]byte("x"), maxEvent+10), http.StatusOK},
			} {
				target := url
				if c.path != "" {
					target = url[:strings.Index(url, callbackPath)] + c.path
				}
				res, err := http.Post(target, "application/json", bytes.NewReader(c.body))
				if err != nil {
					continue // cut off while it sent too much
				}
				res.Body.Close()
				if res.StatusCode != c.want && what != "too much" {
					t.Errorf("%s: %s", what, res.Status)
				}
			}
			cancel()
			must(t, <-done)
			if got := subscriptions(t, w.cluster); strings.Contains(got, callbackPath) {
				t.Errorf("still subscribed at the end: %s", got)
			}
			if info, err := os.Stat(filepath.Join(dir, "callback-secret")); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("the secret path is kept as %v, %v", info, err)
			}
			http.DefaultClient.CloseIdleConnections()
		})
	}
}

func subscriptions(t *testing.T, c *marathontest.Cluster) string {
	t.Helper()
	res, err := http.Get(c.URL(0) + "/v2/eventSubscriptions")
	must(t, err)
	defer res.Body.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(res.Body)
	must(t, err)
	return b.String()
}

func subscription(t *testing.T, c *marathontest.Cluster) string {
	t.Helper()
	text := subscriptions(t, c)
	parts := strings.Split(text, `"`)
	for _, p := range parts {
		if strings.HasPrefix(p, "http") {
			return p
		}
	}
	t.Fatalf("no subscription: %s", text)
	return ""
}

func TestCallbacksOnlyFromMarathon(t *testing.T) {
	c, err := newClient(Options{URLs: []string{"http://192.0.2.7:8080", "http://m2:8080"}})
	must(t, err)
	defer c.close()
	c.announce("http://192.0.2.9:8080")
	cb := &callbacks{listener: &listener{client: c, resolver: fixedResolver{"m2": "198.51.100.2"}}, opts: CallbackOptions{From: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}}
	for from, want := range map[string]bool{
		"192.0.2.7:1": true, "192.0.2.9:1": true, "198.51.100.2:1": true, "[::ffff:192.0.2.7]:1": true, "203.0.113.77:1": true,
		"192.0.2.8:1": false, "127.0.0.1:1": false, "x": false,
	} {
		if got := cb.fromMarathon(t.Context(), from); got != want {
			t.Errorf("from %s: %v, want %v", from, got, want)
		}
	}
}

// fixedResolver knows some names.
type fixedResolver map[string]string

func (r fixedResolver) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if a := r[host]; a != "" {
		return []netip.Addr{netip.MustParseAddr(a)}, nil
	}
	return nil, fmt.Errorf("lookup %s: no such host", host)
}

// moodyResolver can be told to fail, or to give other addresses.
type moodyResolver struct{ addrs chan map[string]string }

func newMoody(m map[string]string) *moodyResolver {
	r := &moodyResolver{make(chan map[string]string, 1)}
	r.addrs <- m
	return r
}

func (r *moodyResolver) set(m map[string]string) {
	<-r.addrs
	r.addrs <- m
}

func (r *moodyResolver) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	m := <-r.addrs
	r.addrs <- m
	return fixedResolver(m).LookupNetIP(ctx, network, host)
}

func TestNamesAreResolvedOffThePath(t *testing.T) {
	r := newMoody(map[string]string{"agent1": "10.9.0.1"})
	bubble(t, marathontest.Options{Hosts: []string{"agent1", "agent2"}}, Options{Resolver: r}, func(w *world) {
		addrs := func() string { return fmt.Sprint(w.routes()[10000]) }
		must(t, w.cluster.Deploy(web(2)))
		w.settle(3 * time.Second)
		if got := addrs(); got != "[10.9.0.1:31000]" {
			t.Errorf("one name known: %s", got)
		}
		if s := w.watcher.Status(); s.Waiting != 1 || !s.Synced {
			t.Errorf("status: %+v", s)
		}
		r.set(map[string]string{"agent1": "10.9.0.1", "agent2": "10.9.0.2"})
		w.settle(2 * time.Minute)
		if got := addrs(); got != "[10.9.0.1:31000 10.9.0.2:31000]" {
			t.Errorf("both known: %s", got)
		}
		r.set(nil)
		w.settle(10 * time.Minute)
		if got := addrs(); got != "[10.9.0.1:31000 10.9.0.2:31000]" {
			t.Errorf("DNS away: %s", got)
		}
		r.set(map[string]string{"agent1": "10.9.0.7", "agent2": "10.9.0.2"})
		w.settle(3 * time.Minute)
		if got := addrs(); got != "[10.9.0.2:31000 10.9.0.7:31000]" {
			t.Errorf("moved: %s", got)
		}
	})
}

// TestRestartWithoutDNSAndHealth: what was known of addresses and health outlives the
// process, and a picture that is much too small is not believed at first.
func TestRestartWithoutDNSAndHealth(t *testing.T) {
	dir := t.TempDir()
	r := newMoody(map[string]string{"agent1": "10.9.0.1", "agent2": "10.9.0.2"})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, marathontest.Options{Hosts: []string{"agent1", "agent2"}}, Options{Resolver: r, StateDir: dir})
		defer w.cluster.Close()
		must(t, w.cluster.Deploy(web(4)))
		must(t, w.cluster.SetHealth(w.cluster.Tasks("/web")[3].ID, false))
		w.run()
		w.settle(3 * time.Second)
		must(t, w.cluster.SetHealth(w.cluster.Tasks("/web")[2].ID, false))
		w.settle(2*savePause + time.Millisecond)
		before := fmt.Sprint(w.routes())
		// Killed, it writes nothing more: what is there a little after the last verdict must do.
		kept, err := os.ReadFile(filepath.Join(dir, "discovery.json"))
		must(t, err)
		w.stop()
		must(t, os.WriteFile(filepath.Join(dir, "discovery.json"), kept, 0o600))

		r.set(nil)
		again := func(what string, kind marathontest.FaultKind) *world {
			in := w.cluster.Inject(marathontest.Fault{Kind: kind, Path: "/v2/apps"})
			w2 := &world{t: t, cluster: w.cluster, table: map[Key]*Service{}}
			o := w.watcher.opts
			o.Registerer = nil
			var err error
			w2.watcher, err = NewWatcher(o)
			must(t, err)
			w2.run()
			w2.settle(8 * time.Second)
			in.Remove()
			return w2
		}
		w2 := again("no health", marathontest.ForgetHealth)
		if got := fmt.Sprint(w2.routes()); got != before {
			t.Errorf("after a restart: %s, want %s", got, before)
		}
		w2.stop()
		w3 := again("no tasks", marathontest.NoTasks)
		if s := w3.watcher.Status(); s.Synced || s.Held == "" || len(w3.received()) != 0 {
			t.Errorf("an empty picture after a restart: %+v", s)
		}
		w3.settle(20 * time.Second)
		if got := fmt.Sprint(w3.routes()); got != before {
			t.Errorf("after the empty picture: %s, want %s", got, before)
		}
		w3.stop()
	})
}

func TestReadApps(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(fixtures(t), "apps-tasks", "lb-marathon15_apps.json"))
	must(t, err)
	services, errs := ReadApps(t.Context(), bytes.NewReader(data), nil)
	if len(errs) > 0 || len(services) != 1 || len(services[0].Tasks) != 1 || services[0].Tasks[0].Addr.String() != "10.0.2.148:1565" {
		t.Errorf("have %v, %v", services, errs)
	}
	services, errs = ReadApps(t.Context(), strings.NewReader(`{"apps":[{"id":"/b","ports":[2,1],"tasks":[{"id":"b.1","host":"known","startedAt":"2024-05-01T09:00:00.000Z","ports":[31000,31001]},{"id":"b.2","host":"unknown","startedAt":"2024-05-01T09:00:00.000Z","ports":[31000,31001]}]},{"id":"/a","ports":[99999]},{"id":"/a/c","ports":[3]}]}`), fixedResolver{"known": "10.0.0.1"})
	var got []string
	for _, s := range services {
		got = append(got, strings.TrimSpace(printService(s)))
	}
	want := "/a/c#0 port 3|/b#0 port 2\n  b.1 10.0.0.1:31000 running nochecks|/b#1 port 1\n  b.1 10.0.0.1:31001 running nochecks"
	if s := strings.Join(got, "|"); s != want {
		t.Errorf("have %s\nwant %s", s, want)
	}
	if len(errs) != 2 || !strings.HasPrefix(errs[0].Error(), "app /a: ") || !strings.HasPrefix(errs[1].Error(), "app /b: its tasks on agent unknown: ") {
		t.Errorf("errors: %v", errs)
	}
	if _, errs := ReadApps(t.Context(), strings.NewReader(`{"apps":[`), nil); len(errs) != 1 {
		t.Errorf("a cut answer: %v", errs)
	}
}

func TestFetchApps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, marathontest.Options{Nodes: 2, BasicUser: "u", BasicPassword: "p"}, Options{})
		defer w.cluster.Close()
		must(t, w.cluster.Deploy(web(3)))
		w.cluster.Stop(1, marathontest.Refuse)
		o := Options{URLs: []string{"http://192.0.2.2:8080", "http://192.0.2.1:8080"}, Dial: w.net.DialContext, Auth: AuthOptions{BasicFile: writeFile(t, "basic", "u:p")}}
		body, err := FetchApps(t.Context(), o)
		must(t, err)
		services, errs := ReadApps(t.Context(), body, nil)
		must(t, body.Close())
		if len(errs) > 0 || len(services) != 1 || len(services[0].Tasks) != 3 {
			t.Errorf("have %v, %v", services, errs)
		}
		w.cluster.Stop(0, marathontest.Refuse)
		if _, err := FetchApps(t.Context(), o); err == nil || !strings.Contains(err.Error(), "192.0.2.1:8080") {
			t.Errorf("nobody there: %v", err)
		}
	})
}

func TestSetURLs(t *testing.T) {
	bubble(t, marathontest.Options{}, Options{URLs: []string{"http://192.0.2.200:8080"}}, func(w *world) {
		must(t, w.cluster.Deploy(web(2)))
		w.settle(10 * time.Second)
		if w.connected() {
			t.Fatal("connected to nobody")
		}
		if err := w.watcher.SetURLs([]string{"nonsense://"}); err == nil {
			t.Error("a bad URL was taken")
		}
		must(t, w.watcher.SetURLs(w.cluster.URLs()))
		w.settle(2 * time.Second)
		w.matches("after the change")
		streams := w.requests("/v2/events")
		must(t, w.watcher.SetURLs(append(w.cluster.URLs(), "192.0.2.77:8080")))
		w.settle(5 * time.Second)
		if n := w.requests("/v2/events"); n != streams {
			t.Errorf("the stream was given up for a member that joined")
		}
		must(t, w.watcher.SetURLs([]string{"http://192.0.2.200:8080"}))
		w.settle(time.Second)
		if w.connected() {
			t.Error("still connected to a Marathon that is no longer configured")
		}
		if len(w.routes()[10000]) != 2 {
			t.Error("the picture went with the connection")
		}
	})
}

// TestSources: two Marathons with apps of the same names, one of them away at first.
func TestSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var clusters []*marathontest.Cluster
		var options []Options
		for i := range 2 {
			network := new(marathontest.MemoryNetwork)
			c := marathontest.New(marathontest.Options{Listen: network.Listen, Dial: network.DialContext, Hosts: []string{fmt.Sprintf("10.%d.0.1", i)}})
			must(t, c.Start())
			defer c.Close()
			must(t, c.Deploy(web(1+i)))
			clusters = append(clusters, c)
			options = append(options, Options{Source: fmt.Sprintf("m%d", i), URLs: c.URLs(), Dial: network.DialContext, Registerer: prometheus.NewRegistry()})
		}
		clusters[1].Stop(0, marathontest.Refuse)
		s, err := NewSources(options...)
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		w := &world{t: t, table: map[Key]*Service{}}
		go w.receiveFrom(ctx, s.Updates())
		w.settle(5 * time.Second)
		tasks := func(source string) int {
			if sv := w.service(Key{App: "/web", Source: source}); sv != nil {
				return len(sv.Tasks)
			}
			return -1
		}
		if a, b := tasks("m0"), tasks("m1"); a != 1 || b != -1 || slices.ContainsFunc(w.received(), func(u *Update) bool { return u.Full }) {
			t.Errorf("one away: %d and %d tasks", a, b)
		}
		must(t, clusters[1].Resume(0))
		w.settle(5 * time.Second)
		fulls := 0
		for _, u := range w.received() {
			if u.Full {
				fulls++
			}
		}
		if a, b := tasks("m0"), tasks("m1"); a != 1 || b != 2 || fulls != 1 {
			t.Errorf("both there: %d and %d tasks, %d full updates", a, b, fulls)
		}
		clusters[0].Stop(0, marathontest.Refuse)
		must(t, clusters[1].Delete("/web"))
		w.settle(5 * time.Second)
		if a, b := tasks("m0"), tasks("m1"); a != 1 || b != -1 {
			t.Errorf("one gone, the other away: %d and %d tasks", a, b)
		}
		cancel()
		must(t, <-done)
	})
	if _, err := NewSources(Options{Source: "a", URLs: []string{"m:1"}}, Options{Source: "a", URLs: []string{"m:2"}}); err == nil || !strings.Contains(err.Error(), "marathons[1]") {
		t.Errorf("two of one name: %v", err)
	}
}

// TestFirehose: more events than anybody can follow, and a receiver that sleeps, cost
// bounded memory and lose nothing of the outcome.
func TestFirehose(t *testing.T) {
	const tasks = 50
	events := 50_000
	if os.Getenv("CHAOS") != "" {
		events = 1_000_000
	}
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	id := func(i int) string { return fmt.Sprintf("web.%08x-0000-0000-0000-000000000000", i) }
	mux.HandleFunc("/v2/leader", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, `{"leader":%q}`, host) })
	mux.HandleFunc("/v2/info", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"version":"1.11.0"}`) })
	asked := make(chan struct{})
	once := sync.OnceFunc(func() { close(asked) })
	mux.HandleFunc("/v2/apps", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"apps":[{"id":"/web","instances":50,"version":"2024-05-01T09:00:00.000Z","ports":[10000],"tasks":[]}]}`)
		once()
	})
	mux.HandleFunc("/v2/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "event: event_stream_attached\r\ndata: {\"eventType\":\"event_stream_attached\"}\r\n\r\n")
		w.(http.Flusher).Flush()
		<-asked
		for i := range events {
			state := "TASK_RUNNING"
			if i%tasks%2 == 1 && i >= events-tasks {
				state = "TASK_KILLED" // every other one in the end
			}
			fmt.Fprintf(w, "event: status_update_event\r\ndata: {\"taskId\":%q,\"taskStatus\":%q,\"appId\":\"/web\",\"host\":\"10.0.0.1\",\"ports\":[%d],\"version\":\"2024-05-01T09:00:00.000Z\",\"eventType\":\"status_update_event\",\"timestamp\":%q}\r\n\r\n",
				id(i%tasks), state, 31000+i%tasks, time.UnixMilli(1714557600000+int64(i)).UTC().Format("2006-01-02T15:04:05.000Z"))
		}
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	w := &world{t: t, table: map[Key]*Service{}, metrics: prometheus.NewRegistry()}
	var err error
	w.watcher, err = NewWatcher(Options{URLs: []string{server.URL}, Registerer: w.metrics})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.watcher.Run(ctx) }()
	w.waitFor("the first picture", func() bool { return len(w.received()) > 0 })
	updates := len(w.received())
	w.waitFor("the outcome", func() bool {
		sv := w.service(Key{App: "/web"})
		return sv != nil && len(sv.Tasks) == tasks/2 && w.counter("events_total", "type", "status_update_event") == float64(events)
	})
	heard := 0
	for _, u := range w.received()[updates:] {
		heard += u.Events
	}
	// HeapSys does not shrink within a test: it is the most that was ever in use.
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	t.Logf("%d events in %d updates, heap at most %d MB", events, len(w.received()), memory.HeapSys>>20)
	if memory.HeapSys > 256<<20 {
		t.Errorf("the heap grew to %d MB", memory.HeapSys>>20)
	}
	if heard > events || len(w.received()) > events/4 {
		t.Errorf("%d events in %d updates", heard, len(w.received()))
	}
	cancel()
	must(t, <-done)
}
