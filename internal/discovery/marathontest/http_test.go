package marathontest

import (
	"compress/gzip"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	marathon "github.com/gambol99/go-marathon"
)

func TestRequestFaults(t *testing.T) {
	c := start(t, Options{Nodes: 2})
	must(t, c.Deploy(AppSpec{ID: "/a", Instances: 2, HealthChecks: []HealthCheck{{}}}))
	must(t, c.Deploy(AppSpec{ID: "/b", Instances: 1}))
	url := c.URL(0) + "/v2/apps?embed=apps.tasks"
	_, whole, err := request(t, "GET", url, "")
	must(t, err)

	type outcome struct {
		res  *http.Response
		body string
		err  error
	}
	count := func(body, part string) int { return strings.Count(body, part) }
	for _, test := range []struct {
		name  string
		fault Fault
		ok    func(o outcome) bool
	}{
		{"fail", Fault{Kind: FailRequest, Status: 500, Body: "oops"}, func(o outcome) bool { return o.res.StatusCode == 500 && o.body == "oops" }},
		{"fail by default", Fault{Kind: FailRequest}, func(o outcome) bool { return o.res.StatusCode == 503 }},
		{"redirect", Fault{Kind: RedirectRequest, URL: "http://elsewhere/"}, func(o outcome) bool {
			return o.res.StatusCode == 302 && o.res.Header.Get("Location") == "http://elsewhere/"
		}},
		{"delay", Fault{Kind: DelayRequest, Delay: time.Millisecond}, func(o outcome) bool { return o.body == string(whole) }},
		{"drop", Fault{Kind: DropRequest}, func(o outcome) bool { return errors.Is(o.err, io.EOF) }},
		{"reset", Fault{Kind: ResetRequest}, func(o outcome) bool { return errors.Is(o.err, syscall.ECONNRESET) }},
		{"slow", Fault{Kind: SlowBody, Rate: 1 << 20}, func(o outcome) bool { return o.body == string(whole) }},
		{"truncate", Fault{Kind: TruncateBody, Bytes: 100}, func(o outcome) bool {
			return errors.Is(o.err, io.ErrUnexpectedEOF) && o.body == string(whole[:100])
		}},
		{"cut", Fault{Kind: CutBody}, func(o outcome) bool {
			return o.err == nil && o.res.StatusCode == 200 && o.body == string(whole[:len(whole)/2])
		}},
		{"edit", Fault{Kind: EditBody, Edit: func(b []byte) []byte { return append(b, '!') }}, func(o outcome) bool { return o.body == string(whole)+"!" }},
		{"content type", Fault{Kind: ContentType, Body: "text/html"}, func(o outcome) bool { return o.res.Header.Get("Content-Type") == "text/html" }},
		{"no apps", Fault{Kind: EmptyApps}, func(o outcome) bool { return o.body == `{"apps":[]}` }},
		{"half of the apps", Fault{Kind: HalfApps}, func(o outcome) bool { return count(o.body, `"id":"/a"`) == 1 && count(o.body, `"id":"/b"`) == 0 }},
		{"no tasks", Fault{Kind: NoTasks}, func(o outcome) bool { return count(o.body, `"tasks":[]`) == 2 }},
		{"no health", Fault{Kind: ForgetHealth}, func(o outcome) bool {
			return count(o.body, `"healthCheckResults":[]`) == 3 && count(o.body, "TASK_RUNNING") == 3
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.fault.Path, test.fault.Times = "/v2/apps", 1
			f := c.Inject(test.fault)
			defer f.Remove()
			var o outcome
			var body []byte
			o.res, body, o.err = request(t, "GET", url, "")
			o.body = string(body)
			if (o.res == nil && o.err == nil) || !test.ok(o) {
				t.Errorf("%v %q %v", o.res, o.body, o.err)
			}
			if f.Count() != 1 {
				t.Errorf("struck %d times", f.Count())
			}
			if _, body, err := request(t, "GET", url, ""); err != nil || string(body) != string(whole) {
				t.Errorf("when it is over: %q %v", body, err)
			}
		})
	}
	t.Run("frozen", func(t *testing.T) {
		f := c.Inject(Fault{Kind: FreezeAnswer, Path: "/v2/apps"})
		request(t, "GET", url, "")
		must(t, c.Scale("/b", 2))
		if _, body, err := request(t, "GET", url, ""); err != nil || string(body) != string(whole) {
			t.Errorf("have %q %v, want the old answer", body, err)
		}
		f.Remove()
		if _, body, _ := request(t, "GET", url, ""); string(body) == string(whole) {
			t.Error("removed, it is still frozen")
		}
	})
	t.Run("hang", func(t *testing.T) {
		f := c.Inject(Fault{Kind: HangRequest, Path: "/ping", Nodes: []int{0}})
		done := make(chan error)
		go func() {
			_, _, err := request(t, "GET", c.URL(0)+"/ping", "")
			done <- err
		}()
		must(t, c.Wait(deadline(t), func() bool { return f.Count() == 1 }))
		select {
		case err := <-done:
			t.Errorf("answered: %v", err)
		default:
		}
		f.Remove()
		if err := <-done; err != nil {
			t.Errorf("after the removal: %v", err)
		}
	})
	t.Run("by node and method", func(t *testing.T) {
		c.Inject(Fault{Kind: FailRequest, Nodes: []int{1}, Method: "GET"})
		if res, _, err := request(t, "GET", c.URL(0)+"/ping", ""); err != nil || res.StatusCode != 200 {
			t.Errorf("node 0: %v %v", res, err)
		}
		if res, _, err := request(t, "GET", c.URL(1)+"/ping", ""); err != nil || res.StatusCode != 503 {
			t.Errorf("node 1: %v %v", res, err)
		}
		c.ClearFaults()
		if res, _, err := request(t, "GET", c.URL(1)+"/ping", ""); err != nil || res.StatusCode != 200 {
			t.Errorf("cleared: %v %v", res, err)
		}
	})
}

func TestAnswersAreZippedSince12(t *testing.T) {
	for version, want := range map[string]bool{"1.1.0": false, "1.3.0": true, "1.11": true} {
		c := start(t, Options{Version: version})
		res, body, err := request(t, "GET", c.URL(0)+"/v2/apps", "", "Accept-Encoding", "gzip")
		must(t, err)
		if zipped := res.Header.Get("Content-Encoding") == "gzip"; zipped != want {
			t.Errorf("%s: %v", version, res.Header)
		} else if zipped {
			z, err := gzip.NewReader(strings.NewReader(string(body)))
			must(t, err)
			body, err = io.ReadAll(z)
			must(t, err)
		}
		if string(body) != `{"apps":[]}` {
			t.Errorf("%s: %q", version, body)
		}
	}
}

func TestAuthentication(t *testing.T) {
	c := start(t, Options{BasicUser: "u", BasicPassword: "p", Tokens: []string{"good"}})
	for auth, want := range map[string]int{
		"": 401, "Basic " + base64.StdEncoding.EncodeToString([]byte("u:p")): 200,
		"Basic " + base64.StdEncoding.EncodeToString([]byte("u:x")): 401, "token=good": 200, "token=bad": 401,
	} {
		for _, path := range []string{"/ping", "/v2/apps", "/v2/events"} {
			if path == "/v2/events" && want == 200 {
				continue
			}
			res, _, err := request(t, "GET", c.URL(0)+path, "", "Authorization", auth, "Accept", "text/event-stream")
			must(t, err)
			if res.StatusCode != want {
				t.Errorf("%s with %q: %s, want %d", path, auth, res.Status, want)
			}
			if want == 401 && res.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s: no challenge", path)
			}
		}
	}
	if r := c.Requests()[len(c.Requests())-1]; r.Auth == "" && r.Status != 401 {
		t.Errorf("log: %+v", r)
	}
}

// jwt signs a service login token.
func jwt(t *testing.T, key *rsa.PrivateKey, alg, uid string, exp int64) string {
	t.Helper()
	enc := func(v any) string {
		b, err := json.Marshal(v)
		must(t, err)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	text := enc(map[string]string{"alg": alg, "typ": "JWT"}) + "." + enc(map[string]any{"uid": uid, "exp": exp})
	sum := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	must(t, err)
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func TestServiceLogin(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	dcos := &DCOS{Accounts: map[string]*rsa.PublicKey{"svc": &key.PublicKey}}
	c := start(t, Options{DCOS: dcos, BasePath: "/service/marathon"})
	host := strings.TrimSuffix(c.URL(0), "/service/marathon")
	soon := time.Now().Add(time.Minute).Unix()
	login := func(uid, token string, exp int64) (int, string) {
		body, err := json.Marshal(map[string]any{"uid": uid, "token": token, "exp": exp})
		must(t, err)
		res, b, err := request(t, "POST", host+"/acs/api/v1/auth/login", string(body))
		must(t, err)
		var v struct{ Token string }
		json.Unmarshal(b, &v)
		return res.StatusCode, v.Token
	}
	for what, bad := range map[string][2]string{
		"another's key": {"svc", jwt(t, other, "RS256", "svc", soon)},
		"expired":       {"svc", jwt(t, key, "RS256", "svc", soon-3600)},
		"no account":    {"who", jwt(t, key, "RS256", "who", soon)},
		"another's uid": {"svc", jwt(t, key, "RS256", "who", soon)},
		"algorithm":     {"svc", jwt(t, key, "none", "svc", soon)},
		"no JWT":        {"svc", "x.y"},
	} {
		if code, _ := login(bad[0], bad[1], 0); code != 401 {
			t.Errorf("%s: %d, want 401", what, code)
		}
	}
	code, token := login("svc", jwt(t, key, "RS256", "svc", soon), 0)
	if code != 200 || token == "" || dcos.Logins() != 1 {
		t.Fatalf("login: %d %q", code, token)
	}
	try := func(token string) int {
		res, _, err := request(t, "GET", c.URL(0)+"/v2/info", "", "Authorization", "token="+token)
		must(t, err)
		return res.StatusCode
	}
	if code := try(token); code != 200 {
		t.Errorf("with the token: %d", code)
	}
	dcos.Revoke()
	if code := try(token); code != 401 {
		t.Errorf("with a revoked token: %d", code)
	}
	if _, token := login("svc", jwt(t, key, "RS256", "svc", soon), time.Now().Add(-time.Second).Unix()); try(token) != 401 {
		t.Error("a token lived longer than asked for")
	}
}

func TestTLS(t *testing.T) {
	ca, err := NewAuthority()
	must(t, err)
	server, err := ca.Certificate("127.0.0.1", "localhost")
	must(t, err)
	user, err := ca.Certificate("operator")
	must(t, err)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca.PEM()) {
		t.Fatal("the authority's PEM holds no certificate")
	}
	c := start(t, Options{Nodes: 2, TLS: &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}})
	if !strings.HasPrefix(c.URL(0), "https://") {
		t.Fatal(c.URL(0))
	}
	for name, conf := range map[string]*tls.Config{
		"no client certificate": {RootCAs: pool}, "unknown authority": {Certificates: []tls.Certificate{user}}, "": {RootCAs: pool, Certificates: []tls.Certificate{user}},
	} {
		tr := &http.Transport{TLSClientConfig: conf}
		res, err := (&http.Client{Transport: tr}).Get(c.URL(0) + "/ping")
		if (err == nil) != (name == "") {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			if leader := res.Header.Get("X-Marathon-Leader"); leader != c.URL(0) {
				t.Errorf("leader %s, want %s", leader, c.URL(0))
			}
			res.Body.Close()
		}
		tr.CloseIdleConnections()
	}
	// The stream too, and its reset through the TLS layer.
	conn, err := tls.Dial("tcp", strings.TrimPrefix(c.URL(0), "https://"), &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{user}})
	must(t, err)
	defer conn.Close()
	io.WriteString(conn, "GET /v2/events HTTP/1.1\r\nHost: m\r\nAccept: text/event-stream\r\n\r\n")
	must(t, c.Wait(deadline(t), func() bool { return c.Streams() == 1 }))
	c.CutStreams(true)
	if _, err := io.ReadAll(conn); err == nil {
		t.Error("want a reset")
	}
}

func TestCallbacks(t *testing.T) {
	for _, version := range []string{"0.8.0", "1.4.0"} {
		t.Run(version, func(t *testing.T) {
			var mu sync.Mutex
			var heard []map[string]any
			receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				var v map[string]any
				if err := json.NewDecoder(r.Body).Decode(&v); err != nil || r.Header.Get("Accept") != "application/json" {
					t.Errorf("%v %v", err, r.Header)
				}
				mu.Lock()
				defer mu.Unlock()
				heard = append(heard, v)
			}))
			defer receiver.Close()
			c := start(t, Options{Version: version})
			api := c.URL(0) + "/v2/eventSubscriptions"
			var ev map[string]any
			_, body, err := request(t, "POST", api+"?callbackUrl="+receiver.URL+"/x", "")
			must(t, err)
			must(t, json.Unmarshal(body, &ev))
			ch := &checker{shapes: shapesOf(t, version)}
			ch.check("answer", "@subscribe_event", ev)
			request(t, "POST", api+"?callbackUrl="+receiver.URL+"/x", "") // once more is no second one
			if s := c.Subscriptions(); !slices.Equal(s, []string{receiver.URL + "/x"}) {
				t.Errorf("subscriptions %v", s)
			}
			f := c.Inject(Fault{Kind: LoseEvent, Event: "group_change_success"})
			must(t, c.Deploy(AppSpec{ID: "/a", Instances: 3}))
			quiet(t, c)
			mu.Lock()
			kinds := make(map[string]int)
			for _, v := range heard {
				kind, _ := v["eventType"].(string)
				ch.check(kind, "@"+kind, v)
				kinds[kind]++
			}
			mu.Unlock()
			published := c.Events()
			for _, kind := range []string{"status_update_event", "api_post_event", "deployment_success"} {
				if kinds[kind] == 0 || kinds[kind] != published[kind] {
					t.Errorf("%s: heard %d of %d", kind, kinds[kind], published[kind])
				}
			}
			if kinds["group_change_success"] != 0 || f.Count() != 1 {
				t.Error("the fault did not strike")
			}
			for _, problem := range ch.found {
				t.Error(problem)
			}
			if v := get(t, api).(map[string]any)["callbackUrls"].([]any); len(v) != 1 {
				t.Errorf("listed: %v", v)
			}
			request(t, "DELETE", api+"?callbackUrl="+receiver.URL+"/x", "")
			if s := c.Subscriptions(); len(s) != 0 {
				t.Errorf("subscriptions %v", s)
			}
			if res, _, err := request(t, "POST", api+"?callbackUrl=nonsense", ""); err != nil || res.StatusCode != 400 {
				t.Errorf("a bad URL: %v %v", res, err)
			}
			quiet(t, c)
		})
	}
	for version, want := range map[string]int{"0.8.0": 400, "1.5.0": 404} {
		c := start(t, Options{Version: version, NoCallbacks: true})
		if res, _, err := request(t, "GET", c.URL(0)+"/v2/eventSubscriptions", ""); err != nil || res.StatusCode != want {
			t.Errorf("%s: %v %v, want %d", version, res, err, want)
		}
	}
}

func TestTasksAsText(t *testing.T) {
	c := start(t, Options{})
	must(t, c.Deploy(AppSpec{ID: "/shop/cart", Instances: 1, Ports: []Port{{Service: 80}}}))
	_, body, err := request(t, "GET", c.URL(0)+"/v2/tasks", "", "Accept", "text/plain")
	must(t, err)
	if want := fmt.Sprintf("shop_cart\t80\t127.0.0.1:%d\t\n", c.Tasks("")[0].Ports[0]); string(body) != want {
		t.Errorf("have %q, want %q", body, want)
	}
}

func TestSingleEmbedOfTheFirstVersions(t *testing.T) {
	for _, test := range []struct {
		version, query string
		tasks          bool
	}{
		{"0.8.2", "embed=apps.tasks", true}, {"0.8.2", "embed=apps.tasks&embed=apps.deployments", true},
		{"0.8.2", "embed=apps.deployments&embed=apps.tasks", false}, {"0.8.2", "embed=app.tasks", false},
		{"0.11.0", "embed=apps.deployments&embed=apps.tasks", true}, {"0.11.0", "embed=app.tasks", true}, {"1.11", "", false},
	} {
		c := start(t, Options{Version: test.version})
		must(t, c.Deploy(AppSpec{ID: "/a", Instances: 1}))
		app := get(t, c.URL(0)+"/v2/apps?"+test.query).(map[string]any)["apps"].([]any)[0].(map[string]any)
		if _, have := app["tasks"]; have != test.tasks {
			t.Errorf("%+v: tasks %v", test, have)
		}
	}
}

// TestThirdPartyReader lets a client library of that time read what is served.
func TestThirdPartyReader(t *testing.T) {
	for _, version := range []string{"0.8.0", "0.9.0", "0.11.0", "0.14.0", "1.1.0", "1.3.7"} {
		t.Run(version, func(t *testing.T) {
			c := start(t, Options{Version: version, Nodes: 2})
			must(t, c.Deploy(AppSpec{ID: "/shop/web", Instances: 2, Network: BridgeNetwork, Image: "nginx", Ports: []Port{{Container: 80, Service: 8080}},
				Labels: map[string]string{"a": "b"}, HealthChecks: []HealthCheck{{Path: "/h"}}}))
			tr := &http.Transport{}
			defer tr.CloseIdleConnections()
			conf := marathon.NewDefaultConfig()
			conf.URL = c.URL(0)
			conf.HTTPClient = &http.Client{Transport: tr}
			m, err := marathon.NewClient(conf)
			must(t, err)
			info, err := m.Info()
			must(t, err)
			if info.Version != version || "http://"+info.Leader != c.URL(0) {
				t.Errorf("info %+v", info)
			}
			apps, err := m.Applications(map[string][]string{"embed": {"apps.tasks"}})
			must(t, err)
			task := c.Tasks("/shop/web")[0]
			if len(apps.Apps) != 1 || len(apps.Apps[0].Tasks) != 2 {
				t.Fatalf("%+v", apps)
			}
			app := apps.Apps[0]
			if app.ID != "/shop/web" || (*app.Labels)["a"] != "b" || (*app.Container.Docker.PortMappings)[0].ServicePort != 8080 || *(*app.HealthChecks)[0].Path != "/h" {
				t.Errorf("app %+v", app)
			}
			if have := app.Tasks[0]; have.ID != task.ID || have.Host != task.Host || have.Ports[0] != task.Ports[0] || !have.HealthCheckResults[0].Alive {
				t.Errorf("task %+v, want %+v", have, task)
			}
			if _, err := m.ScaleApplicationInstances("/shop/web", 3, false); err != nil {
				t.Error(err)
			}
			if _, err := m.KillTask(task.ID, nil); err != nil {
				t.Error(err)
			}
			if have := states(c, "/shop/web"); have != "3 running/alive" {
				t.Error(have)
			}
			if _, err := m.RestartApplication("/shop/web", false); err != nil {
				t.Error(err)
			}
			groups, err := m.Groups()
			must(t, err)
			if len(groups.Groups) != 1 || len(groups.Groups[0].Apps) != 1 {
				t.Errorf("groups %+v", groups)
			}
			if _, err := m.Deployments(); err != nil {
				t.Error(err)
			}
			all, err := m.AllTasks(nil)
			must(t, err)
			if len(all.Tasks) != 3 || all.Tasks[0].ServicePorts[0] != 8080 {
				t.Errorf("tasks %+v", all)
			}
			if _, err := m.DeleteApplication("/shop/web", false); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCloseLeavesNothingWhileAllIsBusy(t *testing.T) {
	var b Backends
	c := New(Options{Nodes: 3, Backend: b.Serve, KillDelay: time.Hour, HealthDelay: time.Hour})
	must(t, c.Start())
	must(t, c.Deploy(AppSpec{ID: "/a", Instances: 4, HealthChecks: []HealthCheck{{}}}))
	c.Inject(Fault{Kind: HangRequest, Path: "/ping"})
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			r, _ := http.NewRequestWithContext(ctx, "GET", c.URL(i%3)+[]string{"/ping", "/v2/events"}[i/3], nil)
			r.Header.Set("Accept", "text/event-stream")
			tr := &http.Transport{DialContext: (&net.Dialer{}).DialContext}
			defer tr.CloseIdleConnections()
			if res, err := (&http.Client{Transport: tr}).Do(r); err == nil {
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		})
	}
	must(t, c.Wait(deadline(t), func() bool { return c.RequestCount() >= 6 }))
	must(t, c.Kill(c.Tasks("/a")[0].ID))
	c.Stop(1, Silent)
	c.Close()
	c.Close() // twice is fine
	wg.Wait()
	b.Wait()
}
