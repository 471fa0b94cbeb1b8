package marathontest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// told runs f and says which events it caused, as short words.
func told(t *testing.T, c *Cluster, events *[]Event, f func()) string {
	t.Helper()
	c.mu.Lock()
	*events = nil
	c.mu.Unlock()
	f()
	c.mu.Lock()
	defer c.mu.Unlock()
	var words []string
	for _, ev := range *events {
		var v map[string]any
		must(t, json.Unmarshal(ev.JSON, &v))
		word := strings.TrimSuffix(ev.Type, "_event")
		for _, member := range []string{"taskStatus", "condition", "alive", "healthy"} {
			if v[member] != nil {
				word += ":" + strings.TrimPrefix(fmt.Sprint(v[member]), "TASK_")
			}
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

func TestOrderOfEvents(t *testing.T) {
	check := []HealthCheck{{}}
	for _, test := range []struct{ version, create, scale, fail string }{
		{
			"0.8.0",
			"api_post deployment_info add_health_check group_change_success deployment_step_success deployment_info status_update:RUNNING health_status_changed:true deployment_step_success deployment_success",
			"api_post deployment_info group_change_success status_update:KILLED deployment_step_success deployment_success",
			"status_update:FAILED status_update:RUNNING health_status_changed:true",
		},
		{
			"1.3.7",
			"deployment_info add_health_check group_change_success api_post deployment_step_success deployment_info status_update:STAGING status_update:RUNNING health_status_changed:true deployment_step_success deployment_success",
			"deployment_info group_change_success api_post status_update:KILLING status_update:KILLED deployment_step_success deployment_success",
			"status_update:FAILED status_update:STAGING status_update:RUNNING health_status_changed:true",
		},
		{
			"1.4.0",
			"deployment_info add_health_check group_change_success api_post deployment_step_success deployment_info instance_changed:Created status_update:STAGING instance_changed:Staging status_update:RUNNING instance_changed:Running health_status_changed:true deployment_step_success deployment_success",
			"deployment_info group_change_success api_post status_update:KILLING instance_changed:Killing status_update:KILLED instance_changed:Killed deployment_step_success deployment_success",
			"status_update:FAILED instance_changed:Failed instance_changed:Created status_update:STAGING instance_changed:Staging status_update:RUNNING instance_changed:Running health_status_changed:true",
		},
		{
			"1.11.0",
			"deployment_info add_health_check group_change_success api_post deployment_step_success deployment_info instance_changed:Scheduled instance_changed:Provisioned status_update:STAGING instance_changed:Staging status_update:STARTING instance_changed:Starting status_update:RUNNING instance_changed:Running health_status_changed:true instance_health_changed:true deployment_step_success deployment_success",
			// The goal changes first, while the condition is still the same.
			"deployment_info group_change_success api_post instance_changed:Running status_update:KILLING instance_changed:Killing status_update:KILLED instance_changed:Killed deployment_step_success deployment_success",
			"status_update:FAILED instance_changed:Failed instance_changed:Scheduled instance_changed:Provisioned status_update:STAGING instance_changed:Staging status_update:STARTING instance_changed:Starting status_update:RUNNING instance_changed:Running health_status_changed:true instance_health_changed:true",
		},
	} {
		t.Run(test.version, func(t *testing.T) {
			var events []Event
			c := start(t, Options{Version: test.version, OnEvent: func(ev Event) { events = append(events, ev) }})
			if have := told(t, c, &events, func() { must(t, c.Deploy(AppSpec{ID: "/a", Instances: 1, HealthChecks: check})) }); have != test.create {
				t.Errorf("create:\nhave %s\nwant %s", have, test.create)
			}
			if have := told(t, c, &events, func() { must(t, c.Fail(c.Tasks("/a")[0].ID)) }); have != test.fail {
				t.Errorf("fail:\nhave %s\nwant %s", have, test.fail)
			}
			if have := told(t, c, &events, func() { must(t, c.Scale("/a", 0)) }); have != test.scale {
				t.Errorf("scale to nothing:\nhave %s\nwant %s", have, test.scale)
			}
		})
	}
}

func TestExpungeIsToldByTheInstanceAlone(t *testing.T) {
	var events []Event
	c := start(t, Options{Version: "1.5.0", RelaunchDelay: time.Hour, OnEvent: func(ev Event) { events = append(events, ev) }})
	must(t, c.Deploy(AppSpec{ID: "/a", Instances: 1}))
	if have := told(t, c, &events, func() { must(t, c.Expunge(c.Tasks("/a")[0].ID)) }); have != "instance_changed:Killed" {
		t.Error(have)
	}
}

func TestLostTasks(t *testing.T) {
	for _, test := range []struct{ version, lost, back string }{
		{"0.11.0", "status_update:LOST", ""}, // for good
		{"1.1.0", "status_update:LOST", ""},  // comes back, and nobody is told
		{"1.3.7", "status_update:LOST", "status_update:RUNNING"},
		{"1.11.0", "status_update:UNREACHABLE instance_changed:Unreachable", "status_update:RUNNING instance_changed:Running"},
	} {
		var events []Event
		c := start(t, Options{Version: test.version, RelaunchDelay: time.Hour, OnEvent: func(ev Event) { events = append(events, ev) }})
		must(t, c.Deploy(AppSpec{ID: "/a", Instances: 1}))
		id := c.Tasks("/a")[0].ID
		if have := told(t, c, &events, func() { must(t, c.Unreachable(id)) }); have != test.lost {
			t.Errorf("%s: lost: %s, want %s", test.version, have, test.lost)
		}
		gone := len(c.Tasks("/a")) == 0
		if want := test.version == "0.11.0"; gone != want {
			t.Errorf("%s: gone %v", test.version, gone)
		}
		if gone {
			continue
		}
		if have := told(t, c, &events, func() { must(t, c.Reachable(id)) }); have != test.back {
			t.Errorf("%s: back: %s, want %s", test.version, have, test.back)
		}
		if have := c.Tasks("/a")[0].State; have != "TASK_RUNNING" {
			t.Errorf("%s: %s", test.version, have)
		}
	}
}

// What is announced is not yet, or not quite, what is stored.
func TestAnnouncementsAreNotTheStoredDefinition(t *testing.T) {
	for version, before := range map[string]bool{"0.10.0": true, "1.4.0": false} {
		var events []Event
		c := start(t, Options{Version: version, OnEvent: func(ev Event) { events = append(events, ev) }})
		ports := func() string { // service ports in the last api_post_event
			c.mu.Lock()
			defer c.mu.Unlock()
			for _, ev := range slices.Backward(events) {
				if ev.Type == "api_post_event" {
					var v struct{ AppDefinition struct{ Ports []int } }
					must(t, json.Unmarshal(ev.JSON, &v))
					return fmt.Sprint(v.AppDefinition.Ports)
				}
			}
			return "none"
		}
		must(t, c.Deploy(AppSpec{ID: "/a", Instances: 1}))
		if have := ports(); have != "[0]" {
			t.Errorf("%s: announced on creation: %s, want no port yet", version, have)
		}
		must(t, c.Scale("/a", 2))
		if have := ports(); have != "[10000]" {
			t.Errorf("%s: announced on update: %s", version, have)
		}
		if have := told(t, c, &events, func() { must(t, c.Delete("/a")) }); strings.HasPrefix(have, "api_post ") != before {
			t.Errorf("%s: delete tells %s", version, have)
		}
	}
	c := start(t, Options{CommitDelay: time.Hour})
	l := listen(t, c, 0, "?event_type=deployment_info")
	go c.Deploy(AppSpec{ID: "/slow", Instances: 1}) // ends with the cluster
	l.until("deployment_info")
	if res, _, err := request(t, "GET", c.URL(0)+"/v2/apps//slow", ""); err != nil || res.StatusCode != 404 {
		t.Errorf("between announcement and commit: %v %v, want 404", res, err)
	}
}

func TestReadinessHoldsADeployment(t *testing.T) {
	c := start(t, Options{ReadyDelay: -1})
	must(t, c.Deploy(AppSpec{ID: "/a", Instances: 1, ReadinessCheck: true}))
	if n := len(c.Deployments()); n != 1 {
		t.Fatalf("%d deployments, want the one that waits for readiness", n)
	}
	app := get(t, c.URL(0)+"/v2/apps//a?embed=app.readiness").(map[string]any)["app"].(map[string]any)
	if r := app["readinessCheckResults"].([]any); len(r) != 1 || r[0].(map[string]any)["ready"] != false {
		t.Errorf("readiness %v", r)
	}
	must(t, c.SetReady(c.Tasks("/a")[0].ID, true))
	if n := len(c.Deployments()); n != 0 {
		t.Errorf("%d deployments when ready", n)
	}
}

func TestCheckByCheck(t *testing.T) {
	var events []Event
	c := start(t, Options{Version: "1.4.0", OnEvent: func(ev Event) { events = append(events, ev) }})
	must(t, c.Deploy(AppSpec{ID: "/a", Instances: 1, HealthChecks: []HealthCheck{{}, {Path: "/two"}}}))
	id := c.Tasks("/a")[0].ID
	if have := told(t, c, &events, func() { must(t, c.SetCheck(id, 1, false)) }); have != "failed_health_check health_status_changed:false" {
		t.Error(have)
	}
	if h := c.Tasks("/a")[0].Health; h != "dead" {
		t.Errorf("health %s: want one failed check to do", h)
	}
}
