package zdd

import (
	"errors"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func TestNextVersion(t *testing.T) {
	blue := &app{id: "/shop/web-blue", colour: "blue", instances: 4, ports: []int{8080}, started: noon.Add(-time.Hour),
		labels: map[string]string{"HAPROXY_0_PORT": "8080"}}
	green := &app{id: "/shop/web-green", colour: "green", instances: 4, ports: []int{10001}, started: noon.Add(-time.Hour),
		labels: map[string]string{"HAPROXY_0_PORT": "8080"}}
	common := func(colour, target, goal string) string {
		return `"HAPROXY_APP_ID":"/shop/web","HAPROXY_DEPLOYMENT_COLOUR":"` + colour + `","HAPROXY_DEPLOYMENT_STARTED_AT":"2026-03-01T12:00:00.000000",` +
			`"HAPROXY_DEPLOYMENT_TARGET_INSTANCES":"` + target + `","HAPROXY_DEPLOYMENT_NEW_INSTANCES":"` + goal + `","BRIDGED_ZDD_SOURCE":"*",`
	}
	for name, tc := range map[string]struct {
		doc      string
		previous *app
		initial  int
		goal     int
		want     string // * for the source
	}{
		"first": {
			`{"id":"shop/web", "instances": 4, "env":{"K":{"secret":"s"}}, "labels":{"HAPROXY_DEPLOYMENT_GROUP":"web"}, "ports":[8080, 8081]}`, nil, 1, 0,
			`{"id":"/shop/web-blue", "instances": 4, "env":{"K":{"secret":"s"}}, "labels":{"HAPROXY_1_PORT":"8081","HAPROXY_0_PORT":"8080",` + common("blue", "4", "0") + `"HAPROXY_DEPLOYMENT_GROUP":"web"}, "ports":[8080, 8081]}`,
		},
		"second-with-alt-port": {
			`{"id":"/shop/web","instances":9,"labels":{"HAPROXY_DEPLOYMENT_GROUP":"web","HAPROXY_DEPLOYMENT_ALT_PORT":"10001"},"portDefinitions":[{"name":"http","port":8080}]}`, blue, 1, 0,
			`{"id":"/shop/web-green","instances":1,"labels":{"HAPROXY_0_PORT":"8080",` + common("green", "4", "0") + `"HAPROXY_DEPLOYMENT_GROUP":"web","HAPROXY_DEPLOYMENT_ALT_PORT":"10001"},"portDefinitions":[{"name":"http","port":10001}]}`,
		},
		"third-goes-back-to-the-published-port": {
			`{"id":"/shop/web","instances":9,"labels":{"HAPROXY_DEPLOYMENT_GROUP":"web","HAPROXY_DEPLOYMENT_ALT_PORT":"10001"},"container":{"docker":{"network":"BRIDGE","portMappings":[{"containerPort":80,"servicePort":8080}]}}}`, green, 3, 0,
			`{"id":"/shop/web-blue","instances":3,"labels":{"HAPROXY_0_PORT":"8080",` + common("blue", "4", "0") + `"HAPROXY_DEPLOYMENT_GROUP":"web","HAPROXY_DEPLOYMENT_ALT_PORT":"10001"},"container":{"docker":{"network":"BRIDGE","portMappings":[{"containerPort":80,"servicePort":8080}]}}}`,
		},
		"no-alt-port-and-no-port-in-the-file": {
			`{"id":"/shop/web","labels":{"HAPROXY_DEPLOYMENT_GROUP":"web"},"networks":[{"mode":"container/bridge"}],"container":{"portMappings":[{"containerPort":80}]}}`, blue, 1, 2,
			`{"id":"/shop/web-green","instances":1,"labels":{"HAPROXY_0_PORT":"8080",` + common("green", "4", "2") + `"HAPROXY_DEPLOYMENT_GROUP":"web"},"networks":[{"mode":"container/bridge"}],"container":{"portMappings":[{"servicePort":0,"containerPort":80}]}}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := ReadDefinition(strings.NewReader(tc.doc))
			if err != nil {
				t.Fatal(err)
			}
			v, err := d.next(tc.previous, tc.initial, tc.goal, noon)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Replace(string(v.doc), d.source(), "*", 1)
			want := tc.want
			if !strings.Contains(tc.doc, `"instances"`) { // added in front
				want = strings.Replace(want, `{"id":"/shop/web-green","instances":1,`, `{"instances":1,"id":"/shop/web-green",`, 1)
			}
			if got != want {
				t.Errorf("have %s\nwant %s", got, want)
			}
		})
	}
}

// A deployment begun by a clock that is ahead is still the older one.
func TestStartedGrows(t *testing.T) {
	d, err := ReadDefinition(strings.NewReader(`{"id":"a","labels":{"HAPROXY_DEPLOYMENT_GROUP":"a"},"ports":[80]}`))
	if err != nil {
		t.Fatal(err)
	}
	v, err := d.next(&app{colour: "blue", instances: 1, ports: []int{80}, started: noon.Add(time.Hour)}, 1, 0, noon)
	if err != nil {
		t.Fatal(err)
	}
	if want := `"HAPROXY_DEPLOYMENT_STARTED_AT":"2026-03-01T13:00:01.000000"`; !strings.Contains(string(v.doc), want) {
		t.Errorf("%s, want %s in it", v.doc, want)
	}
}

func TestBadDefinitions(t *testing.T) {
	for doc, want := range map[string]string{
		`[]`:           "not the definition of an app",
		`{"labels":1}`: "not the definition of an app",
		`{"labels":{"HAPROXY_DEPLOYMENT_GROUP":"a"},"ports":[80]}`:                                            "id: missing",
		`{"id":"a","ports":[80]}`:                                                                             "labels.HAPROXY_DEPLOYMENT_GROUP: missing",
		`{"id":"a","labels":{"HAPROXY_DEPLOYMENT_GROUP":"a"}}`:                                                "no service port",
		`{"id":"a","instances":0,"labels":{"HAPROXY_DEPLOYMENT_GROUP":"a"},"ports":[80]}`:                     "instances: want at least 1, have 0",
		`{"id":"a","labels":{"HAPROXY_DEPLOYMENT_GROUP":"a","HAPROXY_DEPLOYMENT_ALT_PORT":"x"},"ports":[80]}`: `labels.HAPROXY_DEPLOYMENT_ALT_PORT: want a port, 0 to 65535, have "x"`,
		`{"id":"a","labels":{"HAPROXY_DEPLOYMENT_GROUP":"a","HAPROXY_0_PORT":"99999"},"ports":[80]}`:          `labels.HAPROXY_0_PORT: want a port, 0 to 65535, have "99999"`,
	} {
		_, err := ReadDefinition(strings.NewReader(doc))
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Code != CodeMissing || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %s…", doc, err, want)
		}
	}
}
