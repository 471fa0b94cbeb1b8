package marathontest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// tableFromREST makes the routing table out of GET /v2/apps?embed=apps.tasks, by
// the rules of the version and without any of the simulator's own code.
func tableFromREST(t *testing.T, version string, doc any) map[int][]string {
	t.Helper()
	list := func(v any) []any { l, _ := v.([]any); return l }
	table := make(map[int][]string)
	for _, a := range list(doc.(map[string]any)["apps"]) {
		app := a.(map[string]any)
		type port struct {
			service, container int
			unmapped           bool
		}
		var ports []port
		mappings := func(v any) {
			for _, m := range list(v) {
				m := m.(map[string]any)
				_, mapped := m["hostPort"]
				ports = append(ports, port{int(m["servicePort"].(float64)), int(m["containerPort"].(float64)), !mapped})
			}
		}
		if c, ok := app["container"].(map[string]any); ok {
			mappings(c["portMappings"])
			if d, ok := c["docker"].(map[string]any); ok {
				mappings(d["portMappings"])
			}
		}
		if len(ports) == 0 && app["portDefinitions"] != nil {
			for _, d := range list(app["portDefinitions"]) {
				ports = append(ports, port{service: int(d.(map[string]any)["port"].(float64))})
			}
		} else if len(ports) == 0 {
			for _, p := range list(app["ports"]) {
				ports = append(ports, port{service: int(p.(float64))})
			}
		}
		for _, p := range ports {
			if table[p.service] == nil {
				table[p.service] = []string{}
			}
		}
		checks := len(list(app["healthChecks"]))
		for _, k := range list(app["tasks"]) {
			task := k.(map[string]any)
			if state, ok := task["state"].(string); ok && state != "TASK_RUNNING" && state != "TASK_UNREACHABLE" && state != "TASK_LOST" || task["startedAt"] == nil {
				continue
			}
			alive := 0
			for _, r := range list(task["healthCheckResults"]) {
				if r, ok := r.(map[string]any); ok && r["alive"] == true {
					alive++
				}
			}
			if alive < checks {
				continue
			}
			host, next := task["host"].(string), 0
			for _, p := range ports {
				if p.unmapped {
					ip := list(task["ipAddresses"])[0].(map[string]any)["ipAddress"].(string)
					table[p.service] = append(table[p.service], fmt.Sprintf("%s:%d", ip, p.container))
					continue
				}
				table[p.service] = append(table[p.service], fmt.Sprintf("%s:%d", host, int(list(task["ports"])[next].(float64))))
				next++
			}
		}
	}
	for port := range table {
		slices.Sort(table[port])
	}
	return table
}

// TestWalk changes the cluster at random and holds three pictures against each
// other: what Expected says, what REST shows, and which tasks the events alone
// would have one believe to run.
func TestWalk(t *testing.T) {
	for _, version := range []string{"0.8.2", "0.11.0", "1.1.0", "1.3.7", "1.4.0", "1.5.0", "1.7.50", "1.8.180", "1.11.0"} {
		t.Run(version, func(t *testing.T) {
			alive := make(map[string]bool) // by events
			c := start(t, Options{Version: version, OnEvent: func(ev Event) {
				var v map[string]any
				if err := json.Unmarshal(ev.JSON, &v); err != nil {
					t.Errorf("%s: %v", ev.JSON, err)
				}
				switch ev.Type {
				case "status_update_event":
					switch v["taskStatus"] {
					case "TASK_RUNNING", "TASK_UNREACHABLE", "TASK_LOST":
						alive[ev.Task] = v["taskStatus"] != "TASK_LOST" || compareVersions(version, "0.15.4") >= 0
					default:
						delete(alive, ev.Task)
					}
				case "instance_changed_event":
					if v["condition"] == "Killed" {
						delete(alive, ev.Task)
					}
				}
			}})
			rng := rand.New(rand.NewPCG(1, 2))
			ids := []string{"/a", "/b", "/g/c", "/g/h/d"}
			networks := []Network{HostNetwork, BridgeNetwork, ContainerNetwork}
			if compareVersions(version, "1.1") < 0 {
				networks = networks[:2]
			}
			for step := range 150 {
				id := ids[rng.IntN(len(ids))]
				tasks := slices.DeleteFunc(c.Tasks(id), func(k Task) bool { return k.State != "TASK_RUNNING" })
				what := ""
				switch n := rng.IntN(11); {
				case n == 0 && step > 20:
					what = "delete " + id
					c.Delete(id) // it may not be there, here and below
				case n <= 2:
					network := networks[rng.IntN(len(networks))]
					spec := AppSpec{ID: id, Instances: rng.IntN(5), Network: network, Ports: []Port{{Container: 80}, {Container: 81, Unmapped: network == ContainerNetwork}},
						Labels: map[string]string{"n": fmt.Sprint(rng.IntN(3))}}
					if rng.IntN(2) == 0 {
						spec.HealthChecks = []HealthCheck{{}}
					}
					what = fmt.Sprintf("deploy %+v", spec)
					must(t, c.Deploy(spec))
				case n == 3:
					what = "scale " + id
					c.Scale(id, rng.IntN(6))
				case n == 4:
					what = "restart " + id
					c.Restart(id)
				case len(tasks) == 0:
				default:
					task := tasks[rng.IntN(len(tasks))].ID
					switch n {
					case 5:
						what = "kill " + task
						must(t, c.Kill(task))
					case 6:
						what = "fail " + task
						must(t, c.Fail(task))
					case 7, 8:
						what = "health of " + task
						must(t, c.SetHealth(task, n == 7))
					case 9:
						what = "lose " + task
						must(t, c.Unreachable(task))
					case 10:
						what = "expunge " + task
						if compareVersions(version, "1.4") >= 0 {
							must(t, c.Expunge(task))
						}
					}
				}
				expected, shown := c.Expected(), tableFromREST(t, version, get(t, c.URL(0)+"/v2/apps?embed=apps.tasks"))
				if !maps.EqualFunc(expected, shown, slices.Equal) {
					t.Fatalf("step %d, %s:\nexpected %v\nREST     %v\n%s", step, what, expected, shown, c.Dump())
				}
				var running []string
				for _, k := range c.Tasks("") {
					switch k.State {
					case "TASK_RUNNING", "TASK_UNREACHABLE", "TASK_LOST":
						running = append(running, k.ID)
					}
				}
				slices.Sort(running)
				c.mu.Lock()
				heard := slices.Sorted(maps.Keys(maps.Collect(func(yield func(string, bool) bool) {
					for k, v := range alive {
						if v && !yield(k, v) {
							return
						}
					}
				})))
				c.mu.Unlock()
				if !slices.Equal(running, heard) {
					t.Fatalf("step %d, %s:\nrunning %v\nby events %v", step, what, running, heard)
				}
			}
		})
	}
}

// TestManyHandsAtOnce is for the race detector: everything at once, then quiet.
func TestManyHandsAtOnce(t *testing.T) {
	c := start(t, Options{Nodes: 3, HealthDelay: time.Millisecond, KillDelay: time.Millisecond, LeaderWait: time.Millisecond, Version: "1.4.0"})
	for i := range 4 {
		must(t, c.Deploy(AppSpec{ID: fmt.Sprintf("/app-%d", i), Instances: 3, HealthChecks: []HealthCheck{{}}}))
	}
	var wg sync.WaitGroup
	listening, stop := context.WithCancel(deadline(t))
	for i := range 3 {
		wg.Go(func() { // listeners at each node, cut again and again
			tr := &http.Transport{}
			defer tr.CloseIdleConnections()
			for listening.Err() == nil {
				r, _ := http.NewRequestWithContext(listening, "GET", c.URL(i)+"/v2/events", nil)
				r.Header.Set("Accept", "text/event-stream")
				if res, err := (&http.Client{Transport: tr}).Do(r); err == nil {
					io.CopyN(io.Discard, res.Body, 5000)
					res.Body.Close()
				}
			}
		})
	}
	var work sync.WaitGroup
	for i := range 4 {
		work.Go(func() {
			rng := rand.New(rand.NewPCG(3, uint64(i)))
			app := fmt.Sprintf("/app-%d", i)
			for range 60 {
				switch rng.IntN(9) {
				case 0:
					c.Scale(app, rng.IntN(6))
				case 1:
					c.Restart(app)
				case 2:
					if tasks := c.Tasks(app); len(tasks) > 0 {
						c.Kill(tasks[0].ID)
					}
				case 3:
					c.Elect(rng.IntN(4) - 1)
				case 4:
					c.CutStreams(rng.IntN(2) == 0)
				case 5:
					f := c.Inject(Fault{Kind: FaultKind(int(LoseEvent) + rng.IntN(5)), Chance: 0.3})
					request(t, "GET", c.URL(rng.IntN(3))+"/v2/apps?embed=apps.tasks", "")
					f.Remove()
				case 6:
					if n := rng.IntN(3); n > 0 {
						c.Stop(n, Outage(rng.IntN(3)))
						c.Resume(n)
					}
				case 7:
					c.StallStreams(true)
					c.StallStreams(false)
				case 8:
					c.Expected()
					c.StreamStats()
					c.Requests()
				}
			}
		})
	}
	work.Wait()
	stop()
	c.ClearFaults()
	must(t, c.Elect(0))
	c.CutStreams(true)
	for i := range 3 {
		must(t, c.Resume(i))
	}
	wg.Wait()
	quiet(t, c)
	expected, shown := c.Expected(), tableFromREST(t, "1.4.0", get(t, c.URL(0)+"/v2/apps?embed=apps.tasks"))
	if !maps.EqualFunc(expected, shown, slices.Equal) {
		t.Errorf("expected %v\nREST     %v\n%s", expected, shown, c.Dump())
	}
}

func TestMemoryNetworkCarriesEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var network MemoryNetwork
		c := New(Options{Nodes: 2, Version: "1.4.0", Listen: network.Listen, Dial: network.DialContext, HealthDelay: time.Hour})
		must(t, c.Start())
		defer c.Close()
		tr := &http.Transport{DialContext: network.DialContext}
		defer tr.CloseIdleConnections()
		must(t, c.Deploy(AppSpec{ID: "/a", Instances: 1, HealthChecks: []HealthCheck{{}}}))
		began := time.Now()
		must(t, c.WaitQuiet(t.Context()))
		if took := time.Since(began); took != time.Hour {
			t.Errorf("alive after %v of the bubble's time, want an hour", took)
		}
		res, err := (&http.Client{Transport: tr}).Get(c.URL(1) + "/v2/tasks") // through the standby
		must(t, err)
		body, err := io.ReadAll(res.Body)
		must(t, err)
		res.Body.Close()
		if !strings.HasPrefix(string(body), "a\t10000\t127.0.0.1:") {
			t.Errorf("%q", body)
		}
		c.Stop(0, Refuse)
		if _, err := (&http.Client{Transport: tr}).Get(c.URL(0) + "/ping"); err == nil {
			t.Error("a stopped node answers")
		}
		must(t, c.Resume(0))
	})
}
