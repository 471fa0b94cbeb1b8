package bridge

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bridged/internal/haproxy"
)

func TestLoadReadsSeveralMarathons(t *testing.T) {
	t.Parallel()
	list := writeFile(t, t.TempDir(), "marathons", "m3:8080\n")
	secret := writeFile(t, t.TempDir(), "basic", "user:password\n")
	c, err := loadText(t, `
marathons:
  - name: east
    urls: [m1:8080, m2:8080]
    transport: poll
    auth: {basic_file: `+secret+`}
  - {name: west, urls_file: `+list+`, resync: 1m}
`, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	options, err := c.DiscoveryOptions()
	if err != nil {
		t.Fatal(err)
	}
	var got []any
	for _, o := range options {
		got = append(got, o.Source, o.URLs, string(o.Transport), o.Auth.BasicFile, o.Resync)
	}
	want := []any{"east", []string{"http://m1:8080", "http://m2:8080"}, "poll", secret, 5 * time.Minute,
		"west", []string{"http://m3:8080"}, "auto", "", time.Minute}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what is followed (-want +got):\n%s", diff)
	}

	c, err = loadText(t, "marathons: [{name: east, urls: [m1:8080]}]\n", nil, map[string]string{"marathon.urls": "m9:8080"})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Marathons) != 0 || len(c.Marathon.URLs) != 1 {
		t.Errorf("--marathon does not replace the list of the file: %v, %v", c.Marathons, c.Marathon.URLs)
	}
}

func TestLoadSaysWhatIsWrongWithSeveralMarathons(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"marathons: {name: a}":                                             "bridged.yaml:1: marathons: want a list",
		"marathons: [x]":                                                   "bridged.yaml:1: marathons[0]: want a name and the keys",
		"marathons:\n  - urls: [m1:8080]":                                  `bridged.yaml:2: marathons[0]: name: want letters`,
		"marathons:\n  - {name: ../x, urls: [m1]}":                         `marathons[0]: name: want letters`,
		"marathons:\n  - {name: a, urls: [m1]}\n  - {name: a, urls: [m2]}": `bridged.yaml:3: marathons[1]: name: "a" is taken`,
		"marathons:\n  - name: a\n    urls: [m1]\n    ulrs: [m2]":          `bridged.yaml:4: marathons[0].ulrs: unknown key`,
		"marathons:\n  - name: a\n    urls: [ftp://m1]":                    `bridged.yaml:3: marathons[0].urls: want a URL that starts with http://`,
		"marathons:\n  - name: a":                                          `marathons[0].urls: no Marathon to follow`,
		"marathon: {urls: [m0]}\nmarathons: [{name: a, urls: [m1]}]":       `bridged.yaml:1: marathon.urls: marathons is set too`,
	} {
		_, err := loadText(t, text, nil, nil)
		if _, ok := errors.AsType[*ConfigError](err); !ok || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\nhave %v\nwant %s", text, err, want)
		}
	}
}

func TestMarathonLBOptions(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert := writeFile(t, dir, "cert.pem", "")
	const head = "marathon: {urls: [m1]}\ndialect: marathon-lb\n"
	load := func(text string) TranslateOptions {
		t.Helper()
		c, err := loadText(t, head+text, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return TranslateOptionsOf(c)
	}

	o := load("")
	if diff := cmp.Diff([]haproxy.Bind{{Addr: "*", Port: 80}}, o.HTTPBinds); diff != "" {
		t.Errorf("without certificates (-want +got):\n%s", diff)
	}
	m := o.MarathonLB
	if m.AppIDBind.Port != 9091 || m.StatsBind.Port != 9090 || m.MinAutoPort != 10050 || m.MaxAutoPort != 10100 {
		t.Errorf("marathon-lb's own listeners and range: have %+v", m)
	}

	o = load("marathon_lb: {ssl_certs: [" + cert + "]}")
	if len(o.HTTPBinds) != 2 || o.HTTPBinds[1].Port != 443 || !strings.HasPrefix(o.HTTPBinds[1].Options, "ssl crt "+cert) {
		t.Errorf("with a certificate there is *:443: have %+v", o.HTTPBinds)
	}

	o = load("http: {bind: [none]}\nmarathon_lb: {app_id_bind: none, stats_bind: none, auto_ports: none}")
	if len(o.HTTPBinds) != 0 || o.MarathonLB != (MarathonLBOptions{}) {
		t.Errorf("all switched off: have %+v and %+v", o.HTTPBinds, o.MarathonLB)
	}
}

func TestMarathonLBConfigIsValidated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFile(t, dir, "HAPROXY_BACKEND_HEAD", "backend {backend\n")
	for text, want := range map[string]string{
		"marathon_lb: {app_id_bind: nonsense}":                          "marathon_lb.app_id_bind: ",
		"marathon_lb: {stats_bind: unix@/run/x}":                        "marathon_lb.stats_bind: want an address with a port",
		"marathon_lb: {auto_ports: 20-10}":                              "marathon_lb.auto_ports: want a range of ports",
		"marathon_lb: {ssl_certs: [cert.pem]}":                          "marathon_lb.ssl_certs: want absolute paths",
		"marathon_lb: {ssl_certs: [/no/such/cert.pem]}":                 "marathon_lb.ssl_certs: cannot use /no/such/cert.pem: create it",
		"marathon_lb: {template_dir: /no/such/dir}":                     "marathon_lb.template_dir: cannot be read: create it",
		"marathon_lb: {template_dir: " + dir + "}":                      "marathon_lb.template_dir: a template cannot be used, correct it: template HAPROXY_BACKEND_HEAD: a { is not closed",
		"http: {bind: [none, '*:80']}":                                  "http.bind: none stands beside other addresses",
		"cert_dir: certs":                                               "cert_dir: want an absolute path",
		"socket_dir: sockets":                                           "socket_dir: want an absolute path",
		"marathon_lb: {ssl_certs: ['/a b']}":                            "marathon_lb.ssl_certs: want absolute paths without blanks",
		"marathon_lb: {template_dir: " + dir + "/HAPROXY_BACKEND_HEAD}": "is not a directory",
	} {
		_, err := loadText(t, "marathon: {urls: [m1]}\ndialect: marathon-lb\n"+text+"\n", nil, nil)
		if _, ok := errors.AsType[*ConfigError](err); !ok || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\nhave %v\nwant %s", text, err, want)
		}
	}
}

// The environment wins over the directory, as in marathon-lb, and counts in its dialect alone.
func TestTemplatesOfDirectoryAndEnvironment(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFile(t, dir, "HAPROXY_BACKEND_HEAD", "backend {backend}\nbalance leastconn\n")
	writeFile(t, dir, "HAPROXY_BACKEND_STICKY_OPTIONS", "cookie a insert\n")
	environ := []string{`HAPROXY_BACKEND_STICKY_OPTIONS=cookie b insert\n# c`, "PATH=/bin"}
	c, err := loadText(t, "marathon: {urls: [m1]}\ndialect: marathon-lb\nmarathon_lb: {template_dir: "+dir+"}\n", environ, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"BACKEND_HEAD": "backend {backend}\nbalance leastconn\n", "BACKEND_STICKY_OPTIONS": "cookie b insert\n# c"}
	if diff := cmp.Diff(want, TranslateOptionsOf(c).Templates); diff != "" {
		t.Errorf("templates (-want +got):\n%s", diff)
	}
	c, err = loadText(t, "marathon: {urls: [m1]}\n", environ, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(TranslateOptionsOf(c).Templates) != 0 {
		t.Error("dialect bridge has templates")
	}
}

// A HEAD as marathon-lb ships it, Lua and all, takes the place of what bridged writes
// there, and its endpoints go to bridged.
func TestHeadTakesTheStatsListener(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFile(t, dir, "HAPROXY_HEAD", `
global
  daemon
  log /dev/log local0
  lua-load /marathon-lb/getpids.lua
defaults
  load-server-state-from-file global
  timeout client 5s
listen stats
  bind 0.0.0.0:9090
  mode http
  stats enable
  acl getpid path /_haproxy_getpids
  http-request use-service lua.getpids if getpid
  acl hup path /_mlb_signal/hup
  http-request use-service lua.signalmlbhup if hup
`)
	c, err := loadText(t, "marathon: {urls: [m1]}\ndialect: marathon-lb\nmarathon_lb: {template_dir: "+dir+"}\n", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if o := TranslateOptionsOf(c); o.MarathonLB.StatsBind.Port != 0 {
		t.Errorf("two listeners for statistics: %+v", o.MarathonLB.StatsBind)
	}
	g := GlobalOf(c, netip.MustParseAddrPort("127.0.0.1:9377"))
	want := `defaults
  timeout client 5s

listen stats
  bind 0.0.0.0:9090
  mode http
  stats enable
  acl getpid path /_haproxy_getpids
  use_backend bridged_api if getpid
  acl hup path /_mlb_signal/hup
  http-request deny if { path_beg /_mlb_signal/ } !{ src 127.0.0.0/8 ::1 }
  use_backend bridged_api if hup

backend bridged_api
  mode http
  server bridged 127.0.0.1:9377
`
	if diff := cmp.Diff(want, g.KeptSections); diff != "" {
		t.Errorf("sections (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"log /dev/log local0"}, g.KeptGlobal); diff != "" {
		t.Errorf("global (-want +got):\n%s", diff)
	}
}

func TestFileWatcherSeesWhatIsInADirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := writeFile(t, dir, "HAPROXY_HEAD", "a")
	w := startWatcher(t, dir)
	for _, s := range []struct {
		name string
		do   func() error
	}{
		{"file changed", func() error { return os.WriteFile(path, []byte("b"), 0o600) }},
		{"file added", func() error { return os.WriteFile(filepath.Join(dir, "HAPROXY_BACKEND_HEAD"), []byte("c"), 0o600) }},
		{"file removed", func() error { return os.Remove(path) }},
	} {
		if err := s.do(); err != nil {
			t.Fatal(err)
		}
		awaitChange(t, w, s.name)
	}
}
