package bridge

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// writeFile puts text into a file of its own below dir.
func writeFile(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// loadText loads text as the configuration file, with haproxy.config in a directory
// that exists.
func loadText(t *testing.T, text string, environ []string, flags map[string]string) (*Config, error) {
	t.Helper()
	dir := t.TempDir()
	path := writeFile(t, dir, "bridged.yaml", text)
	all := map[string]string{"haproxy.config": filepath.Join(dir, "haproxy.cfg")}
	maps.Copy(all, flags)
	return Load(Sources{File: path, Environ: environ, Flags: all, LegacyAt: filepath.Join(dir, "absent")})
}

func TestLoadReadsEveryKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	list := writeFile(t, dir, "marathons", "m1:8080\n")
	secret := writeFile(t, dir, "basic", "user:password\n")
	c, err := loadText(t, `
# a comment
marathon:
  urls_file: `+list+`
  transport: poll
  callback: {listen: "10.0.0.7:9379", url: "http://node7:9379", from: [10.0.0.0/24, 10.1.0.1]}
  auth: {basic_file: `+secret+`}
  tls:
    insecure: true
  resync: 1m
haproxy:
  socket: /run/x.sock
  master_socket: ""
  reload_command: systemctl reload haproxy
  supervise: false
  binary: /usr/sbin/haproxy
  min_reload_interval: 2s
  max_old_workers: 7
  bind: 10.0.0.1
  check_interval: 3s
  save_delay: 1s
  slots: never
dialect: marathon-lb
groups: [external, internal]
drain: 1m30s
listen: 127.0.0.1:0
metrics_listen: "10.0.0.1:9378"
state_dir: /tmp
allow_template_labels: true
http: {bind: ["*:80"]}
strict: true
drop_empty: true
drop_unreachable: true
cert_dir: /etc/certs
socket_dir: /run/apps
marathon_lb:
  ssl_certs: [`+secret+`]
  template_dir: `+dir+`
  app_id_bind: none
  stats_bind: 127.0.0.1:9090
  endpoints: false
  auto_ports: 20000-20100
  group_https_by_vhost: true
  longest_path_first: true
  open_auth: true
  plain_https_checks: true
  framework_name: marathon-lb
log: {level: debug, format: json}
`, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := Defaults()
	want.Marathon.URLsFile = list
	want.Marathon.Transport = "poll"
	want.Marathon.Callback.Listen, want.Marathon.Callback.URL = "10.0.0.7:9379", "http://node7:9379"
	want.Marathon.Callback.From = []string{"10.0.0.0/24", "10.1.0.1"}
	want.Marathon.Auth.BasicFile = secret
	want.Marathon.TLS.Insecure = true
	want.Marathon.Resync = time.Minute
	want.HAProxy = HAProxyConfig{
		Config: c.HAProxy.Config, Socket: "/run/x.sock", ReloadCommand: "systemctl reload haproxy",
		Binary: "/usr/sbin/haproxy", MinReloadInterval: 2 * time.Second, MaxOldWorkers: 7, Bind: "10.0.0.1",
		CheckInterval: 3 * time.Second, SaveDelay: time.Second, Slots: "never",
	}
	want.Dialect = DialectMarathonLB
	want.Groups = []string{"external", "internal"}
	want.Health = HealthHAProxy // follows from the dialect
	want.Drain = 90 * time.Second
	want.Listen = "127.0.0.1:0"
	want.MetricsListen = "10.0.0.1:9378"
	want.StateDir = "/tmp"
	want.AllowTemplateLabels = true
	want.HTTPBind = []string{"*:80"}
	want.Strict, want.DropEmpty, want.DropUnreachable = true, true, true
	want.CertDir, want.SocketDir = "/etc/certs", "/run/apps"
	want.MarathonLB = MarathonLBConfig{SSLCerts: []string{secret}, TemplateDir: dir, AppIDBind: "none", StatsBind: "127.0.0.1:9090",
		AutoPorts: "20000-20100", GroupHTTPSByVhost: true, LongestPathFirst: true, OpenAuth: true, PlainHTTPSChecks: true,
		FrameworkName: "marathon-lb"}
	want.LogLevel, want.LogFormat = "debug", "json"
	want.File = c.File
	if diff := cmp.Diff(want, c, cmpopts.IgnoreUnexported(Config{})); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

func TestLoadPrecedence(t *testing.T) {
	t.Parallel()
	text := "marathon: {urls: [m1:8080]}\nlisten: 127.0.0.1:1\nlog: {level: warn}\ndrain: 1s\n"
	c, err := loadText(t, text,
		[]string{"BRIDGED_LISTEN=127.0.0.1:2", "BRIDGED_LOG_LEVEL=error", "HOME=/", "BRIDGED_GROUPS=a, b"},
		map[string]string{"listen": "127.0.0.1:3"})
	if err != nil {
		t.Fatal(err)
	}
	got := []any{c.Listen, c.LogLevel, c.Drain, c.HAProxy.Bind, c.Groups}
	want := []any{"127.0.0.1:3", "error", time.Second, "*", []string{"a", "b"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("flag > environment > file > default (-want +got):\n%s", diff)
	}
}

// Who names a command for reloads and no master socket gets the command.
func TestReloadCommandStandsInForTheMasterSocket(t *testing.T) {
	t.Parallel()
	const byDefault = "/run/haproxy-master.sock"
	for _, tc := range []struct {
		name, text string
		flags      map[string]string
		want       string // MasterSocket
	}{
		{"neither", "", nil, byDefault},
		{"command", "haproxy: {reload_command: systemctl reload haproxy}", nil, ""},
		{"command-by-flag", "", map[string]string{"haproxy.reload_command": "systemctl reload haproxy"}, ""},
		{"both", "haproxy: {reload_command: systemctl reload haproxy, master_socket: /run/m.sock}", nil, "/run/m.sock"},
		{"both-with-the-default-written-out", "haproxy: {reload_command: systemctl reload haproxy, master_socket: " + byDefault + "}", nil, byDefault},
		{"supervised", "haproxy: {reload_command: systemctl reload haproxy, supervise: true}", nil, byDefault},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := loadText(t, "marathon: {urls: [m1:8080]}\n"+tc.text+"\n", nil, tc.flags)
			if err != nil {
				t.Fatal(err)
			}
			if c.HAProxy.MasterSocket != tc.want {
				t.Errorf("master socket %q, want %q", c.HAProxy.MasterSocket, tc.want)
			}
		})
	}
}

// Zero means zero: no drain, no delay of saves.
func TestZeroTimesAreKept(t *testing.T) {
	t.Parallel()
	c, err := loadText(t, "marathon: {urls: [m1:8080]}\ndrain: 0s\nhaproxy: {save_delay: 0s}\n", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if o := c.haproxyOptions(); o.Drain != 0 || o.SaveDelay != 0 {
		t.Errorf("drain %v, save delay %v, want none", o.Drain, o.SaveDelay)
	}
}

func TestLaterLayerReplacesTheOtherWayToNameMarathons(t *testing.T) {
	t.Parallel()
	list := writeFile(t, t.TempDir(), "marathons", "m1:8080\n")
	for _, tc := range []struct {
		name, text string
		environ    []string
		flags      map[string]string
		want       []string
	}{
		{"flag-over-file", "marathon: {urls_file: " + list + "}", nil, map[string]string{"marathon.urls": "http://m9:1,m8:2"}, []string{"http://m9:1", "http://m8:2"}},
		{"file-flag-over-environment", "", []string{"BRIDGED_MARATHON=m9:1"}, map[string]string{"marathon.urls_file": list}, []string{"http://m1:8080"}},
		{"environment-by-key", "marathon: {urls_file: " + list + "}", []string{"BRIDGED_MARATHON_URLS=m7:1"}, nil, []string{"http://m7:1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := loadText(t, tc.text, tc.environ, tc.flags)
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.MarathonURLs()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("urls (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLegacyMarathonsFileIsReadWhenNothingElseIsConfigured(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	legacy := writeFile(t, dir, "marathons", "# masters\nm1:8080\nm2:8080\n")
	load := func(flags map[string]string) *Config {
		c, err := Load(Sources{File: writeFile(t, dir, "c.yaml", "haproxy: {config: "+dir+"/haproxy.cfg}"), Flags: flags, LegacyAt: legacy})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := load(nil); !c.Marathon.Legacy || c.Marathon.URLsFile != legacy {
		t.Errorf("nothing configured: %+v, want the legacy file", c.Marathon)
	}
	if c := load(map[string]string{"marathon.urls": "m3:1"}); c.Marathon.Legacy || c.Marathon.URLsFile != "" {
		t.Errorf("--marathon given: %+v, want no file", c.Marathon)
	}
}

// Each mistake is one line that names the place, the key and what to do.
func TestConfigMistakes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const ok = "marathon: {urls: [m1:8080]}\n"
	for _, tc := range []struct {
		name    string
		text    string
		environ []string
		flags   map[string]string
		want    []string // FILE stands for the file's path
	}{
		{"unknown-key", ok + "listne: x\n", nil, nil, []string{`FILE:2: listne: unknown key; did you mean listen?`}},
		{"unknown-key-in-section", "marathon: {urls: [m1:8080], url: m2}\n", nil, nil, []string{`FILE:1: marathon.url: unknown key; did you mean marathon.urls?`}},
		{"right-key-wrong-section", ok + "socket: /x\n", nil, nil, []string{`FILE:2: socket: unknown key; did you mean haproxy.socket?`}},
		{"key-twice", ok + "drain: 1s\ndrain: 2s\n", nil, nil, []string{`FILE:3: drain: stands in line 2 already; keep one`}},
		{"number-for-a-time", ok + "drain: 30\n", nil, nil, []string{`FILE:2: drain: want a time with its unit, such as 250ms, 10s or 5m, have "30"`}},
		{"list-for-a-value", ok + "drain: [1s]\n", nil, nil, []string{`FILE:2: drain: want one value, have a list`}},
		{"value-for-a-section", ok + "haproxy: yes\n", nil, nil, []string{`FILE:2: haproxy: want keys below it, have a single value or a list`}},
		{"not-yaml", "a: [\n", nil, nil, []string{`FILE: not valid YAML; correct it: yaml: line 1: did not find expected node content`}},
		{"two-documents", ok + "---\nlisten: x\n", nil, nil, []string{`FILE: want one YAML document; remove the lines from the second --- on`}},
		{"no-marathon", "", nil, nil, []string{`FILE: marathon.urls: no Marathon to follow; set it here, with --marathon URL or BRIDGED_MARATHON_URLS, or list host:port lines in /etc/haproxy-marathon-bridge/marathons`}},
		{"bad-url", "marathon:\n  urls: [\"ftp://m1\"]\n", nil, nil, []string{`FILE:2: marathon.urls: want a URL that starts with http:// or https://, have "ftp://m1"`}},
		{"bad-url-in-a-flag", "", nil, map[string]string{"marathon.urls": "http://"}, []string{`--marathon: marathon.urls: want a host in the URL such as http://m1:8080, have "http://"`}},
		{"password-in-a-url-is-not-repeated", "", nil, map[string]string{"marathon.urls": "http://admin:hunter2@m1:8080"}, []string{`--marathon: marathon.urls: a URL must not hold a password (http://admin:xxxxx@m1:8080); put user:password into a file and name it in marathon.auth.basic_file`}},
		{"bad-environment", ok, []string{"BRIDGED_DIALECT=klingon"}, nil, []string{`BRIDGED_DIALECT: dialect: want bridge or marathon-lb, have "klingon"`}},
		{"bad-flag", ok, nil, map[string]string{"log.level": "loud"}, []string{`--log-level: log.level: want one of debug, info, warn, error, have "loud"`}},
		{"unreadable-template", ok + "haproxy: {template: " + dir + "/none.tmpl}\n", nil, nil, []string{`FILE:2: haproxy.template: cannot read ` + dir + `/none.tmpl: create it or correct the path: no such file or directory`}},
		{"unreadable-secret", "marathon: {urls: [m1:8080], auth: {token_file: " + dir + "/none}}\n", nil, nil, []string{`FILE:1: marathon.auth.token_file: cannot read ` + dir + `/none: create it or correct the path: no such file or directory`}},
		{"relative-path", ok + "haproxy: {socket: admin.sock}\n", nil, nil, []string{`FILE:2: haproxy.socket: want an absolute path, have "admin.sock"`}},
		{"no-way-to-reload", ok + "haproxy: {master_socket: \"\"}\n", nil, nil, []string{`FILE:2: haproxy.master_socket: nothing can reload HAProxy; set it, or haproxy.reload_command`}},
		{"callback-without-listener", "marathon: {urls: [m1:8080], transport: callback}\n", nil, nil, []string{`FILE: marathon.callback.listen: marathon.transport: callback needs it; set the host:port that Marathon posts its events to, such as 10.0.0.7:9378`}},
		{"callback-url-alone", "marathon: {urls: [m1:8080], callback: {url: node7:1}}\n", nil, nil, []string{`FILE: marathon.callback.listen: is not set, so that nothing is taken in; set it, or remove what stands below marathon.callback`}},
		{"callback-on-every-address", "marathon: {urls: [m1:8080], callback: {listen: \":9378\"}}\n", nil, nil, []string{`FILE: marathon.callback.url: is needed where marathon.callback.listen is every address; set how Marathon reaches this node, such as http://node7:9378`}},
		{"callback-values", "marathon: {urls: [m1:8080], callback: {listen: x, url: \"ftp://n\", from: [ten]}}\n", nil, nil, []string{
			`FILE:1: marathon.callback.from: want an address or a network such as 10.0.0.0/24, have "ten"`,
			`FILE:1: marathon.callback.url: want a URL that starts with http:// or https://, have "ftp://n"`,
			`FILE:1: marathon.callback.listen: want host:port such as 127.0.0.1:9377, have "x"`,
		}},
		{"callback-where-bridged-listens", "marathon: {urls: [m1:8080], callback: {listen: \"127.0.0.1:9377\"}}\n", nil, nil, []string{`FILE:1: marathon.callback.listen: 127.0.0.1:9377 is where bridged listens for others already; choose another port`}},
		{"one-callback-for-two-marathons", "marathons:\n- {name: a, urls: [m1:8080], callback: {listen: \"10.0.0.1:1\"}}\n- {name: b, urls: [m2:8080], callback: {listen: \"10.0.0.1:1\"}}\n", nil, nil, []string{`FILE:3: marathons[1].callback.listen: 10.0.0.1:1 is taken by an earlier entry; give each Marathon its own`}},
		{"bad-bind", ok + "haproxy: {bind: everywhere}\n", nil, nil, []string{`FILE:2: haproxy.bind: want * or an IP address, have "everywhere"`}},
		{"bad-listen", ok + "listen: \"9377\"\n", nil, nil, []string{`FILE:2: listen: want host:port such as 127.0.0.1:9377, have "9377"`}},
		{"all-problems-at-once", ok + "listen: x\nlog: {level: a, format: b}\n", nil, nil, []string{
			`FILE:2: listen: want host:port such as 127.0.0.1:9377, have "x"`,
			`FILE:3: log.level: want one of debug, info, warn, error, have "a"`,
			`FILE:3: log.format: want one of text, json, have "b"`,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := loadText(t, tc.text, tc.environ, tc.flags)
			ce, ok := errors.AsType[*ConfigError](err)
			if !ok {
				t.Fatalf("loaded %+v, %v; want a ConfigError", c, err)
			}
			var got []string
			for _, p := range ce.Problems {
				line := p.Error()
				if i := strings.Index(line, "/bridged.yaml"); i >= 0 {
					line = "FILE" + line[i+len("/bridged.yaml"):]
				}
				got = append(got, line)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestConfigFileThatIsAbsent(t *testing.T) {
	t.Parallel()
	_, err := Load(Sources{File: "/nonexistent/bridged.yaml"})
	want := `/nonexistent/bridged.yaml: cannot read the configuration file (--config): create it or correct the path: no such file or directory`
	if err == nil || err.Error() != want {
		t.Errorf("error:\n got %v\nwant %s", err, want)
	}
}

func TestSettingsAreConsistent(t *testing.T) {
	t.Parallel()
	keys, flags := map[string]bool{}, map[string]bool{}
	for _, s := range Settings() {
		if keys[s.Key] || flags[s.Flag] {
			t.Errorf("%s (--%s) stands in the list twice", s.Key, s.Flag)
		}
		keys[s.Key], flags[s.Flag] = true, true
		// A default, written into a file, must be read as itself.
		if s.IsList() || s.Default() == "" {
			continue
		}
		c := Defaults()
		if err := c.set(s, fromFile, "x", []string{s.Default()}); err != nil {
			t.Errorf("default of %s: %v", s.Key, err)
		}
	}
	for _, flag := range []string{"marathon", "marathons-file", "haproxy-config", "haproxy-socket", "haproxy-master-socket",
		"haproxy-binary", "supervise", "dialect", "group", "listen", "log-level"} {
		if !flags[flag] {
			t.Errorf("flag --%s, which tests and scripts rely on, is gone", flag)
		}
	}
}

func TestUnknownEnviron(t *testing.T) {
	t.Parallel()
	got := UnknownEnviron([]string{"BRIDGED_LISTEN=x", "BRIDGED_MARATHON=x", "BRIDGED_CONFIG=x", "BRIDGED_LISTNE=x", "PATH=x"})
	if diff := cmp.Diff([]string{"BRIDGED_LISTNE"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func FuzzReadYAML(f *testing.F) {
	f.Add([]byte("marathon: {urls: [m1:8080]}\ndrain: 1s\n"))
	f.Add([]byte("a: &a [*a]\n<<: *a\n"))
	f.Add([]byte("listen: !!binary aGVsbG8=\n"))
	f.Add([]byte("haproxy:\n  socket: |\n    /x\n    /y\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := Defaults()
		for _, p := range c.readYAML("f.yaml", data) {
			if strings.ContainsAny(p.Error(), "\n\r") {
				t.Errorf("a problem of more than one line: %q", p)
			}
		}
	})
}
