package discovery

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fixtures is the directory of data copied from real Marathons and their manuals. It
// stands beside the repository, or the test is skipped.
func fixtures(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("no go.mod above the test")
		}
		dir = parent
	}
	dir = filepath.Join(dir, "..", "shared", "fixtures", "marathon")
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no Marathon fixtures: %v", err)
	}
	return dir
}

// TestEventsOfTheManuals decodes every event of Marathon's own documentation, and says
// which parts of it were understood.
func TestEventsOfTheManuals(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(fixtures(t), "events", "*.ndjson"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no fixtures: %v", err)
	}
	seen := map[eventType]int{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(data) {
			if len(bytes.TrimSpace(line)) == 0 {
				continue
			}
			e, err := decodeEvent(line, otherEvent, time.Now())
			if err != nil {
				t.Errorf("%s: %v\n%s", filepath.Base(file), err, line)
				continue
			}
			var raw map[string]any
			if err := json.Unmarshal(line, &raw); err != nil {
				t.Fatal(err)
			}
			name := raw["eventType"].(string)
			if want := eventTypes[name]; e.typ != want {
				t.Errorf("%s: type %d, want %d", name, e.typ, want)
			}
			seen[e.typ]++
			if e.typ == otherEvent {
				continue
			}
			for member, got := range map[string]string{"appId": e.app, "runSpecId": e.app, "taskId": e.task, "instanceId": e.instance, "host": e.host, "groupId": e.group} {
				want, ok := raw[member].(string)
				if ok && got != want && !(member == "host" && e.typ != statusUpdate) {
					t.Errorf("%s: %s: have %q, want %q", name, member, got, want)
				}
			}
			if e.typ != deploymentInfo && e.typ != deploymentStep && e.at != parseTime(raw["timestamp"].(string)) {
				t.Errorf("%s: time %d", name, e.at)
			}
		}
	}
	for _, typ := range []eventType{statusUpdate, instanceChanged, instanceHealth, healthStatus, taskKill, instanceKill, instanceTerminated, apiPost, groupChange, deploymentInfo, appTerminated} {
		if seen[typ] == 0 {
			t.Errorf("no %s among the fixtures", eventNames[typ])
		}
	}
}

func TestRawStreamOfTheManual(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(fixtures(t), "events", "1.1.0-sse-stream.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []string{"\n", "\r\n", "\r"} {
		r := newEventReader(strings.NewReader(strings.ReplaceAll(string(data), "\n", end)))
		var got []string
		for {
			f, _, err := r.next(true)
			if err != nil {
				break
			}
			events, err := appendEvents(nil, f)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range events {
				got = append(got, fmt.Sprintf("%s %s %d %v", eventNames[e.typ], e.app, e.phase, e.ports))
			}
		}
		want := "event_stream_attached  0 []|status_update_event /foo 7 [31776]|status_update_event /test-app 2 [31182]"
		if s := strings.Join(got, "|"); s != want {
			t.Errorf("line end %q: have %s, want %s", end, s, want)
		}
	}
}

func TestBadEvents(t *testing.T) {
	for _, c := range []struct{ name, event, app string }{
		{"cut", `{"eventType":"status_update_event","appId":"/a","taskId":"a`, ""},
		{"empty", ``, ""},
		{"no-task", `{"eventType":"status_update_event","appId":"/a","taskStatus":"TASK_RUNNING"}`, "/a"},
		{"new-status", `{"eventType":"status_update_event","appId":"/a","taskId":"a.1","taskStatus":"TASK_SLEEPING"}`, "/a"},
		{"port-out-of-range", `{"eventType":"status_update_event","appId":"/a","taskId":"a.1","taskStatus":"TASK_RUNNING","ports":[70000]}`, "/a"},
		{"port-negative", `{"eventType":"status_update_event","appId":"/a","taskId":"a.1","taskStatus":"TASK_RUNNING","ports":[-1]}`, "/a"},
		{"wrong-type", `{"eventType":"status_update_event","appId":"/a","taskId":"a.1","taskStatus":"TASK_RUNNING","host":{}}`, "/a"},
		{"task-with-line-break", `{"eventType":"status_update_event","appId":"/a","taskId":"a\nb","taskStatus":"TASK_RUNNING"}`, "/a"},
		{"app-with-line-break", `{"eventType":"app_terminated_event","appId":"/a\nb"}`, ""},
		{"app-relative", `{"eventType":"app_terminated_event","appId":"/a/../b"}`, ""},
		{"app-without-slash", `{"eventType":"app_terminated_event","appId":"a"}`, ""},
		{"no-verdict", `{"eventType":"health_status_changed_event","appId":"/a","taskId":"a.1"}`, "/a"},
		{"no-definition", `{"eventType":"api_post_event"}`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := frame{name: []byte("status_update_event"), data: []byte(c.event), received: time.Now()}
			if i := strings.Index(c.event, `"eventType":"`); i >= 0 {
				name, _, _ := strings.Cut(c.event[i+13:], `"`)
				f.name = []byte(name)
			}
			events, err := appendEvents(nil, f)
			bad, ok := errors.AsType[*decodeError](err)
			if !ok || len(events) != 0 || bad.app != c.app {
				t.Errorf("have %v, %v; want an error about app %q", events, err, c.app)
			}
		})
	}
}

func TestUnneededEventsAreNotDecoded(t *testing.T) {
	events, err := appendEvents(nil, frame{name: []byte("failed_health_check_event"), data: []byte("not JSON")})
	if err != nil || len(events) != 1 || events[0].typ != otherEvent {
		t.Errorf("have %v, %v", events, err)
	}
}

// FuzzEvent: no bytes make the decoder or the state panic, and what is understood holds
// nothing that could do harm further on.
func FuzzEvent(f *testing.F) {
	for _, s := range []string{
		`{"slaveId":"S3","taskId":"shop_cart.0f3bc0de-0000-11e6-a544-0853d77d884b","taskStatus":"TASK_RUNNING","message":"","appId":"/shop/cart","host":"agent3","ports":[31001,31002],"ipAddresses":[{"ipAddress":"9.0.1.4","protocol":"IPv4"}],"version":"2024-05-01T09:59:00.000Z","eventType":"status_update_event","timestamp":"2024-05-01T10:00:00.123Z"}`,
		`{"instanceId":"shop_cart.instance-0f3bc0de-0000-11e6-a544-0853d77d884b","condition":"Running","runSpecId":"/shop/cart","agentId":null,"host":null,"runSpecVersion":"2024-05-01T09:59:00.000Z","timestamp":"2024-05-01T10:00:00.124Z","eventType":"instance_changed_event"}`,
		`{"appId":"/shop/cart","instanceId":"shop_cart.marathon-0f3bc0de","version":"x","alive":true,"eventType":"health_status_changed_event","timestamp":"x"}`,
		`{"clientIp":"10.0.0.9","uri":"/v2/apps//shop/cart","appDefinition":{"id":"/shop/cart","instances":2,"ports":[1],"version":"2"},"eventType":"api_post_event"}`,
		`{"plan":{"id":"d","steps":[{"actions":[{"action":"RestartApplication","app":"/shop/cart"}]}],"version":"v"},"currentStep":{"actions":[]},"eventType":"deployment_info"}`,
		`{"groupId":"/","version":"v","eventType":"group_change_success"}`,
		"{\"eventType\":\"app_terminated_event\",\"appId\":\"/a\"}\n{\"eventType\":\"app_terminated_event\",\"appId\":\"/b\"}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		events, err := appendEvents(nil, frame{data: data, received: time.UnixMilli(1)})
		if _, ok := errors.AsType[*decodeError](err); err != nil && !ok {
			t.Fatalf("error %T: %v", err, err)
		}
		p := newPicture("1.11.0")
		for i := range events {
			e := &events[i]
			for _, id := range append([]string{e.app, e.group}, e.apps...) {
				if id != "" && checkAppID(id) != nil {
					t.Errorf("app id %q", id)
				}
			}
			if !plain(e.task) || !plain(e.instance) {
				t.Errorf("ids %q, %q", e.task, e.instance)
			}
			p.apply(e)
			p.changes.apply(e, p.state)
		}
		once := p.String()
		for i := range events {
			p.apply(&events[i])
			p.changes.apply(&events[i], p.state)
		}
		p.wants = nil
		if twice := p.String(); strings.Split(once, "read ")[0] != twice {
			t.Errorf("a repeated event changed the picture:\n%s\n%s", once, twice)
		}
	})
}
