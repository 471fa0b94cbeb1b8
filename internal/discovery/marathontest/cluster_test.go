package marathontest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// states prints the states of an app's tasks, sorted and counted.
func states(c *Cluster, app string) string {
	n := make(map[string]int)
	for _, t := range c.Tasks(app) {
		n[strings.ToLower(strings.TrimPrefix(t.State, "TASK_"))+"/"+t.Health]++
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(n)) {
		out = append(out, fmt.Sprintf("%d %s", n[k], k))
	}
	return strings.Join(out, ", ")
}

func TestDeployScaleRestartDelete(t *testing.T) {
	for _, version := range Versions {
		t.Run(version, func(t *testing.T) {
			c := start(t, Options{Version: version})
			spec := AppSpec{ID: "/web", Instances: 3, Ports: []Port{{Service: 80}, {}}, HealthChecks: []HealthCheck{{}}}
			must(t, c.Deploy(spec))
			want := func(what, wanted string) {
				t.Helper()
				if have := states(c, "/web"); have != wanted {
					t.Errorf("%s: %s, want %s\n%s", what, have, wanted, c.Dump())
				}
				if d := c.Deployments(); len(d) > 0 {
					t.Errorf("%s: deployments %v are open", what, d)
				}
			}
			want("deployed", "3 running/alive")
			if ports := c.ServicePorts("/web"); !slices.Equal(ports, []int{80, 10000}) {
				t.Errorf("service ports %v: want the one given and the first of the range", ports)
			}
			first := c.Tasks("/web")
			must(t, c.Scale("/web", 5))
			want("scaled up", "5 running/alive")
			must(t, c.Scale("/web", 2))
			want("scaled down", "2 running/alive")
			if left := c.Tasks("/web"); left[0].ID != first[0].ID || left[1].ID != first[1].ID {
				t.Error("the youngest should have gone")
			}
			must(t, c.Restart("/web"))
			want("restarted", "2 running/alive")
			if again := c.Tasks("/web"); again[0].ID == first[0].ID || again[0].Version <= first[0].Version {
				t.Error("restarting kept a task")
			}
			must(t, c.SetLabels("/web", map[string]string{"a": "b"}))
			want("relabelled", "2 running/alive")
			if ports := c.ServicePorts("/web"); !slices.Equal(ports, []int{80, 10000}) {
				t.Errorf("service ports %v after an update: want them kept", ports)
			}
			killed := c.Tasks("/web")[0].ID
			must(t, c.Kill(killed))
			want("killed", "2 running/alive")
			if err := c.Kill(killed); !errors.Is(err, ErrNoTask) {
				t.Errorf("killing it again: %v, want ErrNoTask", err)
			}
			must(t, c.Fail(c.Tasks("/web")[0].ID))
			must(t, c.Finish(c.Tasks("/web")[1].ID))
			want("failed and finished", "2 running/alive")
			if exp := c.Expected(); len(exp[80]) != 2 || len(exp[10000]) != 2 {
				t.Errorf("expected table %v", exp)
			}
			must(t, c.Scale("/web", 0))
			want("scaled to nothing", "")
			if exp := c.Expected(); exp[80] == nil || len(exp[80]) != 0 {
				t.Errorf("expected table %v: want an empty entry", exp)
			}
			must(t, c.Delete("/web"))
			if apps := c.Apps(); len(apps) > 0 || len(c.Expected()) > 0 {
				t.Errorf("left after delete: %v %v", apps, c.Expected())
			}
			if err := c.Scale("/web", 1); !errors.Is(err, ErrNoApp) {
				t.Errorf("scaling a deleted app: %v, want ErrNoApp", err)
			}
		})
	}
}

func TestRollingRestartKeepsCapacity(t *testing.T) {
	for _, u := range []UpgradeStrategy{{1, 1}, {1, 0}, {0.5, 0}, {0.5, 0.25}, {0, 0}, {0, 1}} {
		t.Run(fmt.Sprint(u), func(t *testing.T) {
			least, most := 100, 0
			var c *Cluster
			c = start(t, Options{HealthDelay: time.Millisecond, OnEvent: func(Event) {
				if c == nil || c.apps["/web"] == nil || c.counts["deployment_success"] == 0 {
					return
				}
				alive, serving := 0, 0
				for _, task := range c.apps["/web"].tasks {
					if !task.terminal {
						alive++
					}
					if task.serves() {
						serving++
					}
				}
				least, most = min(least, serving), max(most, alive)
			}})
			must(t, c.Deploy(AppSpec{ID: "/web", Instances: 8, HealthChecks: []HealthCheck{{}}, Upgrade: &u}))
			quiet(t, c)
			must(t, c.Restart("/web"))
			quiet(t, c)
			c.mu.Lock()
			defer c.mu.Unlock()
			if least < int(8*u.MinimumHealthCapacity) || most > max(8+int(8*u.MaximumOverCapacity), int(8*u.MinimumHealthCapacity)+1) {
				t.Errorf("between %d serving and %d alive of 8", least, most)
			}
		})
	}
}

func TestRunningDeploymentLocksItsApp(t *testing.T) {
	c := start(t, Options{HealthDelay: -1})
	must(t, c.Deploy(AppSpec{ID: "/web", Instances: 1, HealthChecks: []HealthCheck{{}}}))
	res, body, err := request(t, "PUT", c.URL(0)+"/v2/apps//web", `{"instances":2}`)
	must(t, err)
	if res.StatusCode != 409 || !strings.Contains(string(body), c.Deployments()[0]) {
		t.Errorf("%s %s: want 409 and the deployment", res.Status, body)
	}
	res, body, err = request(t, "PUT", c.URL(0)+"/v2/apps//web?force=true", `{"instances":2}`)
	must(t, err)
	if res.StatusCode != 200 {
		t.Errorf("forced: %s %s", res.Status, body)
	}
	for _, task := range c.Tasks("/web") {
		must(t, c.SetHealth(task.ID, true))
	}
	if d := c.Deployments(); len(d) > 0 {
		t.Errorf("deployments %v are open", d)
	}
}

func TestIncarnationsFrom18(t *testing.T) {
	c := start(t, Options{Version: "1.8.180", RelaunchDelay: time.Hour})
	must(t, c.Deploy(AppSpec{ID: "/a", Instances: 1}))
	before := c.Tasks("/a")[0]
	must(t, c.Fail(before.ID))
	if now := c.Tasks("/a"); len(now) != 1 || now[0].State != "TASK_FAILED" {
		t.Errorf("%v: want the failed task listed until relaunch", now)
	}
	again := start(t, Options{Version: "1.8.180"})
	must(t, again.Deploy(AppSpec{ID: "/a", Instances: 1}))
	before = again.Tasks("/a")[0]
	must(t, again.Fail(before.ID))
	after := again.Tasks("/a")[0]
	if after.InstanceID != before.InstanceID || !strings.HasSuffix(before.ID, "._app.1") || !strings.HasSuffix(after.ID, "._app.2") {
		t.Errorf("%s, then %s: want the next launch of the same instance", before.ID, after.ID)
	}
}

func TestExpectedFollowsEveryKindOfPort(t *testing.T) {
	c := start(t, Options{})
	must(t, c.Deploy(AppSpec{ID: "/mixed", Instances: 1, Network: ContainerNetwork, Ports: []Port{
		{Service: 81, Container: 8080, Unmapped: true}, {Service: 82, Container: 8081},
	}}))
	must(t, c.Deploy(AppSpec{ID: "/sick", Instances: 2, Ports: []Port{{Service: 83}}, HealthChecks: []HealthCheck{{}}}))
	sick := c.Tasks("/sick")
	must(t, c.SetHealth(sick[0].ID, false))
	mixed := c.Tasks("/mixed")[0]
	want := map[int][]string{
		81: {mixed.Address + ":8080"},
		82: {fmt.Sprintf("127.0.0.1:%d", mixed.Ports[0])},
		83: {fmt.Sprintf("127.0.0.1:%d", sick[1].Ports[0])},
	}
	if have := c.Expected(); !maps.EqualFunc(have, want, slices.Equal) {
		t.Errorf("have %v, want %v", have, want)
	}
	must(t, c.Elect(-1)) // health is forgotten by Marathon, not by the truth
	if have := c.Expected(); !maps.EqualFunc(have, want, slices.Equal) {
		t.Errorf("without leader: have %v, want %v", have, want)
	}
	must(t, c.Unreachable(mixed.ID))
	if have := c.Expected(); !maps.EqualFunc(have, want, slices.Equal) {
		t.Errorf("unreachable: have %v, want it kept", have)
	}
}

func TestServicePortsOfPostedFormsOfAllEras(t *testing.T) {
	for _, test := range []struct {
		posted string
		ports  []int
	}{
		{`{"id":"a","ports":[8001,0]}`, []int{8001, 10000}},
		{`{"id":"a","portDefinitions":[{"port":8001},{"port":0}]}`, []int{8001, 10000}},
		{`{"id":"a","container":{"docker":{"image":"i","network":"BRIDGE","portMappings":[{"containerPort":80,"servicePort":8001},{"containerPort":81}]}}}`, []int{8001, 10000}},
		{`{"id":"a","container":{"docker":{"image":"i"},"portMappings":[{"containerPort":80,"servicePort":8001}]},"networks":[{"mode":"container/bridge"}]}`, []int{8001}},
		{`{"id":"a","ipAddress":{"discovery":{"ports":[{"number":80,"name":"n","protocol":"tcp"}]}}}`, []int{10000}},
		{`{"id":"a"}`, []int{10000}},
		{`{"id":"a","ports":[]}`, []int{}},
	} {
		c := start(t, Options{})
		must(t, c.DeployJSON([]byte(test.posted)))
		if have := c.ServicePorts("/a"); !slices.Equal(have, test.ports) {
			t.Errorf("%s: service ports %v, want %v", test.posted, have, test.ports)
		}
	}
	c := start(t, Options{})
	for _, bad := range []string{`{`, `{"id":""}`, `{"id":"/"}`, `{"id":"/a//b"}`, `{"id":"a","ports":[70000]}`, `{"id":"a","instances":-1}`, `{"id":7}`} {
		if c.DeployJSON([]byte(bad)) == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}

func TestPartialUpdateKeepsOtherMembers(t *testing.T) {
	c := start(t, Options{})
	must(t, c.DeployJSON([]byte(`{"id":"/a","cmd":"x","env":{"K":{"secret":"s"}},"labels":{"l":"1"},"ports":[8001]}`)))
	res, body, err := request(t, "PUT", c.URL(0)+"/v2/apps//a", `{"labels":{"l":"2"}}`)
	must(t, err)
	if res.StatusCode != 200 {
		t.Fatalf("%s %s", res.Status, body)
	}
	app := get(t, c.URL(0)+"/v2/apps//a").(map[string]any)["app"].(map[string]any)
	if fmt.Sprint(app["env"]) != "map[K:map[secret:s]]" || fmt.Sprint(app["labels"]) != "map[l:2]" || c.ServicePorts("/a")[0] != 8001 {
		t.Errorf("after the update: %v", app)
	}
}

func TestWritesByREST(t *testing.T) {
	c := start(t, Options{})
	base := c.URL(0)
	call := func(want int, method, path, body string) map[string]any {
		t.Helper()
		res, b, err := request(t, method, base+path, body)
		must(t, err)
		var v map[string]any
		json.Unmarshal(b, &v)
		if res.StatusCode != want {
			t.Errorf("%s %s: %s: %s, want %d", method, path, res.Status, b, want)
		}
		return v
	}
	call(201, "POST", "/v2/apps", `{"id":"/g/a","instances":2,"cmd":"x"}`)
	call(409, "POST", "/v2/apps", `{"id":"/g/a","cmd":"x"}`)
	call(422, "POST", "/v2/apps", `{"id":"/g/b","instances":-1}`)
	call(400, "POST", "/v2/apps", `{`)
	call(201, "PUT", "/v2/apps//g/b", `{"instances":3,"cmd":"x"}`)
	call(404, "PATCH", "/v2/apps//g/c", `{"instances":3}`)
	call(200, "PUT", "/v2/apps", `[{"id":"/g/a","instances":4},{"id":"/g/b","instances":1}]`)
	if a, b := len(c.Tasks("/g/a")), len(c.Tasks("/g/b")); a != 4 || b != 1 {
		t.Errorf("%d and %d tasks, want 4 and 1", a, b)
	}
	call(200, "POST", "/v2/apps//g/a/restart", "")
	victim := c.Tasks("/g/a")[0].ID
	call(200, "DELETE", "/v2/apps//g/a/tasks/"+victim, "")
	if n := len(c.Tasks("/g/a")); n != 4 {
		t.Errorf("%d tasks after a kill, want 4", n)
	}
	call(404, "DELETE", "/v2/apps//g/a/tasks/nothing", "")
	call(200, "DELETE", "/v2/apps//g/a/tasks/"+c.Tasks("/g/a")[0].ID+"?scale=true", "")
	if n := len(c.Tasks("/g/a")); n != 3 {
		t.Errorf("%d tasks after kill and scale, want 3", n)
	}
	call(200, "POST", "/v2/tasks/delete?scale=true", fmt.Sprintf(`{"ids":[%q]}`, c.Tasks("/g/a")[1].ID))
	if n := len(c.Tasks("/g/a")); n != 2 {
		t.Errorf("%d tasks after killing by id, want 2", n)
	}
	call(200, "PUT", "/v2/groups//h", `{"apps":[{"id":"x","cmd":"x"},{"id":"/h/y","cmd":"x"}],"groups":[{"id":"i","apps":[{"id":"z","cmd":"x"}]}]}`)
	if apps := c.Apps(); !slices.Equal(apps, []string{"/g/a", "/g/b", "/h/i/z", "/h/x", "/h/y"}) {
		t.Errorf("apps %v", apps)
	}
	call(200, "PUT", "/v2/groups//h", `{"apps":[{"id":"x","cmd":"x"}]}`)
	call(200, "DELETE", "/v2/groups//g", "")
	if apps := c.Apps(); !slices.Equal(apps, []string{"/h/x"}) {
		t.Errorf("apps %v", apps)
	}
	call(200, "DELETE", "/v2/apps//h/x", "")
	call(404, "DELETE", "/v2/apps//h/x", "")
	call(404, "GET", "/v2/nothing", "")
	if n := c.RequestCount(); n != 18 {
		t.Errorf("%d requests counted", n)
	}
	log := c.Requests()
	if r := log[0]; r.Method != "POST" || r.Path != "/v2/apps" || r.Status != 201 || r.Time.IsZero() {
		t.Errorf("first request: %+v", r)
	}
}

func TestLeaderChange(t *testing.T) {
	for _, test := range []struct{ version, events string }{{"1.4.0", "200"}, {"1.7.50", "302"}} {
		t.Run(test.version, func(t *testing.T) {
			c := start(t, Options{Version: test.version, Nodes: 3, RecheckDelay: -1, BasePath: "/service/marathon"})
			must(t, c.Deploy(AppSpec{ID: "/a", Instances: 1, HealthChecks: []HealthCheck{{}}}))
			l := listen(t, c, 0, "")
			must(t, c.Elect(1))
			if _, err := io.ReadAll(l.r); err != nil {
				t.Errorf("the old leader's stream ends with %v, want a clean end", err)
			}
			res, body, err := request(t, "GET", c.URL(0)+"/v2/leader", "")
			must(t, err)
			if leader := strings.TrimPrefix(strings.TrimSuffix(c.URL(1), "/service/marathon"), "http://"); string(body) != `{"leader":"`+leader+`"}` ||
				res.Header.Get("X-Marathon-Leader") != "http://"+leader || res.Header.Get("X-Marathon-Via") == "" {
				t.Errorf("asked a standby: %s %v", body, res.Header)
			}
			// Health is not known to the new leader.
			app := get(t, c.URL(2)+"/v2/apps//a").(map[string]any)["app"].(map[string]any)
			if r, _ := app["tasks"].([]any)[0].(map[string]any)["healthCheckResults"].([]any); len(r) > 0 || app["tasksHealthy"] != 0.0 {
				t.Errorf("health survived: %v", app)
			}
			s := dialStream(t, c.URL(2), "", "text/event-stream")
			if !strings.HasPrefix(s.head, "HTTP/1.1 "+test.events) {
				t.Fatalf("listening at a standby: %q, want %s", s.head, test.events)
			}
			if test.events == "302" {
				if want := "Location: " + c.URL(1) + "/v2/events\r\n"; !strings.Contains(s.head, want) {
					t.Errorf("%q: want %q", s.head, want)
				}
				s = listen(t, c, 1, "")
			} else if !strings.Contains(s.head, "X-Marathon-Via: 1.1 ") {
				t.Errorf("%q: want X-Marathon-Via", s.head)
			}
			s.until("event_stream_attached")
			c.Recheck()
			if ev := s.until("health_status_changed_event"); ev["alive"] != true {
				t.Errorf("rechecked: %v", ev)
			}
		})
	}
}

func TestNobodyLeads(t *testing.T) {
	for version, want := range map[string]int{"0.8.2": 200, "1.5.0": 503, "1.8.180": 502} {
		c := start(t, Options{Version: version, Nodes: 2, LeaderWait: time.Millisecond})
		must(t, c.Deploy(AppSpec{ID: "/a", Instances: 1}))
		must(t, c.Elect(-1))
		res, body, err := request(t, "GET", c.URL(1)+"/v2/apps?embed=apps.tasks", "")
		must(t, err)
		if res.StatusCode != want || want == 200 && !strings.Contains(string(body), `"tasks":[]`) {
			t.Errorf("%s: %s %s, want %d (0.8: its own empty view)", version, res.Status, body, want)
		}
	}
	c := start(t, Options{LeaderWait: time.Hour})
	must(t, c.Elect(-1))
	answered := make(chan int)
	go func() {
		res, _, err := request(t, "GET", c.URL(0)+"/ping", "")
		if err != nil {
			answered <- 0
			return
		}
		answered <- res.StatusCode
	}()
	must(t, c.Wait(deadline(t), func() bool { return c.RequestCount() == 1 }))
	must(t, c.Elect(0))
	if code := <-answered; code != 200 {
		t.Errorf("a request held during an election got %d", code)
	}
}

func TestBufferedProxyOfTheFirstVersions(t *testing.T) {
	c := start(t, Options{Version: "0.9.0", Nodes: 2, QueueLimit: -1, ProxyTimeout: time.Hour})
	s := dialStream(t, c.URL(1), "", "text/event-stream")
	must(t, c.Wait(deadline(t), func() bool { return c.Streams() == 1 }))
	for range 100 {
		c.Emit([]byte(marker))
	}
	quiet(t, c)
	must(t, s.conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	if frame, err := s.raw(); err == nil {
		t.Fatalf("%q came through at once: want it held back", frame)
	}
	must(t, s.conn.SetReadDeadline(time.Now().Add(20*time.Second)))
	c.Emit(fmt.Appendf(nil, `{"eventType":"big","fill":%q}`, strings.Repeat("x", 40<<10)))
	s.until("mark")
}

func TestProxyTimeoutLooksLikeAnEnd(t *testing.T) {
	c := start(t, Options{Version: "1.4.0", Nodes: 2, ProxyTimeout: 30 * time.Millisecond})
	s := dialStream(t, c.URL(1), "", "text/event-stream")
	if _, err := io.ReadAll(s.r); err != nil {
		t.Errorf("%v: want an end like any other", err)
	}
}

func TestStopAndResume(t *testing.T) {
	c := start(t, Options{Nodes: 2})
	for _, how := range []Outage{Refuse, Reset} {
		l := listen(t, c, 0, "")
		c.Stop(0, how)
		if _, err := io.ReadAll(l.r); (err == nil) != (how == Refuse) {
			t.Errorf("outage %d: the stream ends with %v", how, err)
		}
		if _, _, err := request(t, "GET", c.URL(0)+"/ping", ""); err == nil {
			t.Error("a stopped node answers")
		}
		must(t, c.Resume(0))
		get(t, c.URL(0)+"/v2/info")
	}
	c.Stop(0, Silent)
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.URL(0), "http://"))
	must(t, err)
	defer conn.Close()
	io.WriteString(conn, "GET /ping HTTP/1.1\r\nHost: m\r\n\r\n")
	must(t, c.Wait(deadline(t), func() bool { return len(c.Requests()) > 0 && c.Requests()[len(c.Requests())-1].Path == "/ping" }))
	must(t, conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	if n, err := conn.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a silent node said something: %d %v", n, err)
	}
	must(t, c.Resume(0))
	get(t, c.URL(0)+"/v2/info")
}

func TestRollingUpgradeOfMarathon(t *testing.T) {
	c := start(t, Options{NodeVersions: []string{"1.4.0", "1.8.180"}})
	must(t, c.Deploy(AppSpec{ID: "/a", Instances: 1, Network: BridgeNetwork, Ports: []Port{{Container: 80}}}))
	id := c.Tasks("/a")[0].ID
	must(t, c.Elect(1))
	v := get(t, c.URL(1)+"/v2/apps//a")
	ch := &checker{shapes: shapesOf(t, "1.8.180")}
	ch.check("app", "{@full}", v)
	for _, problem := range ch.found {
		t.Error(problem)
	}
	if c.Tasks("/a")[0].ID != id {
		t.Error("a task's id changed with the version")
	}
}

func TestBackendsServeTheirTask(t *testing.T) {
	var b Backends
	c := New(Options{Backend: b.Serve, Hosts: []string{"127.0.0.1", "127.0.0.2"}})
	must(t, c.Start())
	must(t, c.Deploy(AppSpec{ID: "/web", Instances: 2, Ports: []Port{{Service: 80}, {Service: 81}}}))
	must(t, c.Deploy(AppSpec{ID: "/own", Instances: 1, Network: ContainerNetwork, Ports: []Port{{Container: 18080, Unmapped: true}}}))
	cl := client(t)
	for _, task := range c.Tasks("") {
		for i, e := range task.Endpoints {
			res, err := cl.Get("http://" + e.Addr + "/")
			must(t, err)
			body, err := io.ReadAll(res.Body)
			must(t, err)
			res.Body.Close()
			if string(body) != task.ID+"\n" || res.Header.Get("X-App") != task.App || res.Header.Get("X-Port") != fmt.Sprint(i) {
				t.Errorf("%s answers %q %v, want %s", e.Addr, body, res.Header, task.ID)
			}
		}
	}
	if n := b.Requests(""); n != 5 {
		t.Errorf("%d requests counted, want 5", n)
	}
	task := c.Tasks("/web")[0]
	b.SetStatus(task.ID, 503)
	res, err := cl.Get("http://" + task.Endpoints[0].Addr)
	must(t, err)
	res.Body.Close()
	if res.StatusCode != 503 || b.Requests(task.ID) != 3 {
		t.Errorf("%s after %d requests", res.Status, b.Requests(task.ID))
	}
	must(t, c.Kill(task.ID))
	if res, err := cl.Get("http://" + task.Endpoints[0].Addr); err == nil {
		res.Body.Close()
		t.Error("a killed task answers")
	}
	crashed := c.Tasks("/web")[0]
	b.Crash(crashed.ID)
	if res, err := cl.Get("http://" + crashed.Endpoints[1].Addr); err == nil {
		res.Body.Close()
		t.Error("a crashed task answers")
	}
	if c.Tasks("/web")[0].State != "TASK_RUNNING" {
		t.Error("Marathon noticed")
	}
	if errs := c.BackendErrors(); len(errs) > 0 {
		t.Error(errs)
	}
	c.Close()
	b.Wait()
}

func TestDelaysRunByTimers(t *testing.T) {
	c := start(t, Options{StageDelay: 2 * time.Millisecond, StartDelay: 2 * time.Millisecond, HealthDelay: 2 * time.Millisecond,
		KillDelay: 2 * time.Millisecond, RelaunchDelay: 2 * time.Millisecond, CommitDelay: 2 * time.Millisecond})
	must(t, c.Deploy(AppSpec{ID: "/a", Instances: 2, HealthChecks: []HealthCheck{{}}}))
	quiet(t, c)
	if have := states(c, "/a"); have != "2 running/alive" {
		t.Error(have)
	}
	must(t, c.Kill(c.Tasks("/a")[0].ID))
	quiet(t, c)
	must(t, c.Restart("/a"))
	quiet(t, c)
	if have := states(c, "/a"); have != "2 running/alive" {
		t.Error(have)
	}
	must(t, c.Restart("/a"))
	// Closing in the middle must leave nothing behind; TestMain looks.
}

func TestLoad(t *testing.T) {
	c := start(t, Options{})
	c.Load(100, 20)
	if n := len(c.Tasks("")); n != 2000 {
		t.Errorf("%d tasks", n)
	}
	v := get(t, c.URL(0)+"/v2/apps?embed=apps.tasks").(map[string]any)
	ch := &checker{shapes: shapesOf(t, "1.11")}
	ch.check("apps", "{[@full]}", v)
	for _, problem := range ch.found[:min(3, len(ch.found))] {
		t.Error(problem)
	}
	must(t, c.Scale("/load/app-7", 21))
	if have := states(c, "/load/app-7"); have != "21 running/alive" {
		t.Error(have)
	}
	if exp := c.Expected(); len(exp) != 100 || len(exp[10007]) != 21 {
		t.Errorf("expected table has %d ports", len(exp))
	}
}

func BenchmarkSnapshot(b *testing.B) {
	for _, tasks := range []int{1000, 10000, 100000} {
		b.Run(fmt.Sprintf("tasks=%d", tasks), func(b *testing.B) {
			c := New(Options{NoCompression: true})
			if err := c.Start(); err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			c.Load(tasks/20, 20)
			tr := &http.Transport{}
			defer tr.CloseIdleConnections()
			b.ReportAllocs()
			for b.Loop() {
				res, err := (&http.Client{Transport: tr}).Get(c.URL(0) + "/v2/apps?embed=apps.tasks")
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(n)
			}
		})
	}
}

// BenchmarkPublish is the cost of an event to the cluster, with one listener that reads.
func BenchmarkPublish(b *testing.B) {
	c := New(Options{QueueLimit: -1})
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	c.Load(500, 20)
	r, _ := http.NewRequest("GET", c.URL(0)+"/v2/events", nil)
	r.Header.Set("Accept", "text/event-stream")
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr}).Do(r)
	if err != nil {
		b.Fatal(err)
	}
	defer res.Body.Close()
	go io.Copy(io.Discard, res.Body)
	task := c.Tasks("/load/app-7")[0].ID
	alive := false
	b.ReportAllocs()
	for b.Loop() {
		if err := c.SetHealth(task, alive); err != nil {
			b.Fatal(err)
		}
		alive = !alive
	}
}
