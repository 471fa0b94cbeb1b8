package discovery

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func decodeAll(t testing.TB, text string) []appData {
	t.Helper()
	var apps []appData
	if err := decodeApps(strings.NewReader(text), func(a appData) error {
		apps = append(apps, a)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return apps
}

// TestAnswersOfRealMarathons decodes every app among the fixtures, wherever it stands.
func TestAnswersOfRealMarathons(t *testing.T) {
	dir := fixtures(t)
	want := map[string]string{
		"apps-tasks/lb-marathon15_apps.json": "/pywebserver bridge [10101:80 mapped tcp test] pywebserver.8cad6a69-6ca8-11e7-beb2-0e2beceebfcc 10.0.2.148 [1565]",
		"rest/0.8.0-app-with-tasks.json":     "/toggle host [10000:0 mapped tcp ] toggle.802df2ae-3ad4-11e4-a400-56847afe9799 10.141.141.10 [31045] alive toggle.7c99814d-3ad4-11e4-a400-56847afe9799 10.141.141.10 [31234] alive",
		"apps/0.8.0-bridge.json":             "/bridged-webapp bridge [9000:8080 mapped tcp ] [0:161 mapped udp ]",
		"apps/lb-1-nginx-marathon1.5.json":   "",
		"apps/1.11-ipAddress-discovery.json": "",
	}
	decoded := 0
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() || filepath.Ext(path) != ".json" {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var doc any
		if err := json.Unmarshal(data, &doc); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		name, _ := filepath.Rel(dir, path)
		var got []string
		eachApp(doc, strings.HasPrefix(name, "apps/"), func(app map[string]any) {
			id, _ := app["id"].(string)
			if id != "" && id[0] != '/' {
				app["id"] = "/" + id // as posted
			}
			text, err := json.Marshal(map[string]any{"app": app})
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range decodeAll(t, string(text)) {
				if a.broken != nil {
					t.Errorf("%s: %s: %v", name, a.id, a.broken)
					continue
				}
				decoded++
				got = append(got, describe(a))
			}
		})
		if w := want[name]; w != "" && strings.Join(got, " ") != w {
			t.Errorf("%s:\nhave %s\nwant %s", name, strings.Join(got, " "), w)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if decoded < 100 {
		t.Errorf("only %d apps decoded", decoded)
	}
}

// eachApp finds what looks like an app: in lists named apps and members named app, or
// (root) the document itself.
func eachApp(doc any, root bool, fn func(map[string]any)) {
	switch v := doc.(type) {
	case map[string]any:
		if root {
			if _, ok := v["id"]; ok {
				fn(v)
				return
			}
		}
		for key, value := range v {
			switch {
			case key == "app":
				if app, ok := value.(map[string]any); ok {
					fn(app)
				}
			case key == "apps":
				if list, ok := value.([]any); ok {
					for _, item := range list {
						if app, ok := item.(map[string]any); ok {
							fn(app)
						}
					}
				}
			default:
				eachApp(value, false, fn)
			}
		}
	case []any:
		for _, item := range v {
			eachApp(item, false, fn)
		}
	}
}

func describe(a appData) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", a.id, []string{"host", "bridge", "container"}[a.def.Network])
	for _, p := range a.def.Ports {
		fmt.Fprintf(&b, " [%d:%d", p.Service, p.Container)
		if p.Mapped {
			b.WriteString(" mapped")
		}
		fmt.Fprintf(&b, " %s %s]", p.Protocol, p.Name)
	}
	for _, t := range a.tasks {
		fmt.Fprintf(&b, " %s %s %v", t.id, t.host.Value(), t.ports)
		if t.health != HealthUnknown {
			b.WriteString(" " + healthNames[t.health])
		}
	}
	return b.String()
}

func TestPortsInTheirPlaces(t *testing.T) {
	for name, c := range map[string]struct{ app, want string }{
		"ports":              {`"ports":[10000,10001]`, "host [10000:0 mapped tcp ] [10001:0 mapped tcp ]"},
		"portDefinitions":    {`"ports":[9],"portDefinitions":[{"port":10000,"protocol":"udp","name":"x"},{"port":0,"protocol":"tcp"}]`, "host [10000:0 mapped udp x] [0:0 mapped tcp ]"},
		"docker-bridge-0.8":  {`"ports":[0],"container":{"type":"DOCKER","docker":{"network":"BRIDGE","portMappings":[{"containerPort":80,"servicePort":9000}]}}`, "bridge [9000:80 mapped tcp ]"},
		"docker-host":        {`"ports":[10000],"container":{"docker":{"network":"HOST"}}`, "host [10000:0 mapped tcp ]"},
		"docker-user-1.1":    {`"ports":[],"ipAddress":{"networkName":"n"},"container":{"docker":{"network":"USER","portMappings":[{"containerPort":80,"servicePort":9000},{"containerPort":81,"hostPort":0,"servicePort":9001}]}}`, "container [9000:80 tcp ] [9001:81 mapped tcp ]"},
		"ip-per-task":        {`"ports":[10000],"ipAddress":{"discovery":{"ports":[{"number":8080,"name":"http","protocol":"tcp"}]}}`, "container [0:8080 tcp http]"},
		"ip-without-ports":   {`"ports":[10000],"ipAddress":{}`, "container"},
		"networks-bridge":    {`"networks":[{"mode":"container/bridge"}],"container":{"portMappings":[{"containerPort":80,"servicePort":9000,"hostPort":0,"protocol":"udp,tcp"}]}`, "bridge [9000:80 mapped udp,tcp ]"},
		"networks-host":      {`"networks":[{"mode":"host"}],"portDefinitions":[{"port":10000}],"container":{"portMappings":null}`, "host [10000:0 mapped tcp ]"},
		"networks-container": {`"networks":[{"mode":"container","name":"a"},{"mode":"container","name":"b"}],"container":{"portMappings":[{"containerPort":80,"servicePort":9000}]}`, "container [9000:80 tcp ]"},
		"none":               {`"cmd":"sleep 1"`, "host"},
	} {
		t.Run(name, func(t *testing.T) {
			a := decodeAll(t, `{"app":{"id":"/a",`+c.app+`}}`)[0]
			if a.broken != nil {
				t.Fatal(a.broken)
			}
			if got := describe(a); got != "/a "+c.want {
				t.Errorf("have %s, want %s", got, c.want)
			}
		})
	}
}

func TestOneBrokenAppIsSkipped(t *testing.T) {
	apps := decodeAll(t, `{"apps":[{"id":"/a"},{"id":"/b","labels":{"x":1}},{"id":"/c","ports":[99999]},{"id":"no slash"},{"id":7},{"id":"/d","tasks":[{"id":"d\n1"}]},{"id":"/e","tasks":[{"id":"e.1","state":"TASK_NEW"}]},{"id":"/f"}],"counts":{"x":[1,{}]}}`)
	var got []string
	for _, a := range apps {
		s := a.id
		if a.broken != nil {
			s += "!"
		}
		got = append(got, s)
	}
	if s := strings.Join(got, " "); s != "/a /b! /c! ! ! /d! /e! /f" {
		t.Errorf("have %s", s)
	}
}

func TestIncompleteAnswersAreErrors(t *testing.T) {
	const whole = `{"apps":[{"id":"/a","tasks":[]},{"id":"/b"}]}`
	for i := range len(whole) {
		err := decodeApps(strings.NewReader(whole[:i]), func(appData) error { return nil })
		if err == nil {
			t.Errorf("%q was taken for whole", whole[:i])
		}
	}
	for _, text := range []string{`{}`, `{"apps":null}`, `[]`, `null`, `{"apps":{}}`, `{"message":"x"}`, `<html>`} {
		if err := decodeApps(strings.NewReader(text), func(appData) error { return nil }); err == nil {
			t.Errorf("%s was taken for an answer", text)
		}
	}
}

// FuzzSnapshot: no bytes make the decoder or the state panic, and what is merged is
// what a second merge of the same finds unchanged.
func FuzzSnapshot(f *testing.F) {
	f.Add([]byte(`{"apps":[{"id":"/web","instances":2,"version":"v","ports":[10001],"healthChecks":[{}],"tasks":[{"id":"web.0f3bc0de-0000-11e6-a544-0853d77d884b","host":"agent1","startedAt":"2024-05-01T09:00:00.000Z","ports":[31001],"healthCheckResults":[null,{"alive":true}]}]}]}`))
	f.Add([]byte(`{"app":{"id":"/a","networks":[{"mode":"container"}],"container":{"portMappings":[{"containerPort":80,"servicePort":1}]},"tasks":[{"id":"a.1","state":"TASK_RUNNING","ipAddresses":[{"ipAddress":"9.0.0.1"}]}]}}`))
	f.Add([]byte(`{"*":[{"id":"/a","readinessChecks":[{}],"deployments":[{}],"tasks":[{"id":"1","state":"TASK_UNREACHABLE"}]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := newPicture("1.11.0")
		var apps []appData
		ids := map[string]bool{}
		repeated := false
		if decodeApps(bytes.NewReader(data), func(a appData) error {
			apps = append(apps, a)
			repeated = repeated || ids[a.id]
			ids[a.id] = true
			for _, t := range a.tasks {
				repeated = repeated || ids[instanceKey(t.id)]
				ids[instanceKey(t.id)] = true
			}
			return nil
		}) != nil {
			return
		}
		p.mergeAll(p.begin(), apps)
		p.publish()
		for _, s := range p.table {
			if len(s.App.Ports) <= s.Key.Index {
				t.Errorf("%v is beyond the ports", s.Key)
			}
			for _, task := range s.Tasks {
				if !task.Addr.IsValid() || task.Addr.Port() == 0 {
					t.Errorf("%s at %v", task.ID, task.Addr)
				}
			}
		}
		if repeated {
			return // Marathon names an app or an instance once
		}
		p.mergeAll(p.begin(), apps)
		if len(p.touched) > 0 {
			t.Errorf("the same answer again touched %d apps", len(p.touched))
		}
	})
}
