package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"bridged/internal/discovery/marathontest"
)

// mlb translates a command line and variables of marathon-lb.
func mlb(t *testing.T, environ []string, args ...string) (flags map[string]string, once bool, stderr string, err error) {
	t.Helper()
	m := &marathonLB{certDir: t.TempDir()}
	set := pflag.NewFlagSet("marathon-lb", pflag.ContinueOnError)
	m.addFlags(set)
	if err := set.Parse(args); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	src, once, err := m.sources(set.Args(), environ, set.Changed, &out)
	if err != nil {
		return nil, once, out.String(), err
	}
	t.Cleanup(src.remove)
	return src.Flags, once, out.String(), nil
}

func TestMarathonLBFlags(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		args string
		want map[string]string
	}{
		{"defaults", "--group a --sse", map[string]string{"marathon.urls": "http://master.mesos:8080", "groups": "a"}},
		{"several values behind one flag", "-m http://a:1 http://b:2 --group x --group y -s",
			map[string]string{"marathon.urls": "http://a:1,http://b:2", "groups": "x,y"}},
		{"switches", "--group * -s -H --strict-mode --haproxy-map --dont-bind-http-https --group-https-by-vhost",
			map[string]string{"marathon.urls": "http://master.mesos:8080", "groups": "*", "health": "both", "strict": "true",
				"http.bind": "none", "marathon_lb.group_https_by_vhost": "true"}},
		{"values", "--group * -s -c reload --haproxy-config /x.cfg --ssl-certs /a,/b --log-level WARNING --marathon-ca-cert /ca --marathon-auth-credential-file /c",
			map[string]string{"marathon.urls": "http://master.mesos:8080", "groups": "*", "haproxy.reload_command": "reload", "haproxy.master_socket": "",
				"haproxy.config": "/x.cfg", "marathon_lb.ssl_certs": "/a,/b", "log.level": "warn", "marathon.tls.ca_file": "/ca", "marathon.auth.basic_file": "/c"}},
		{"range", "--group * -s --min-serv-port-ip-per-task 20000 --max-serv-port-ip-per-task 20010",
			map[string]string{"marathon.urls": "http://master.mesos:8080", "groups": "*", "marathon_lb.auto_ports": "20000-20010"}},
		{"no range", "--group * -s --min-serv-port-ip-per-task 0 --max-serv-port-ip-per-task 0",
			map[string]string{"marathon.urls": "http://master.mesos:8080", "groups": "*", "marathon_lb.auto_ports": "none"}},
	} {
		c.want["dialect"] = "marathon-lb"
		got, _, _, err := mlb(t, nil, strings.Fields(c.args)...)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestMarathonLBContainer(t *testing.T) {
	t.Parallel()
	sandbox := t.TempDir()
	if err := os.Mkdir(filepath.Join(sandbox, "templates"), 0o755); err != nil {
		t.Fatal(err)
	}
	environ := []string{"PORTS=80,443", "POLL_INTERVAL=30", "MESOS_SANDBOX=" + sandbox, "HAPROXY_SSL_CERT=pem", "HAPROXY_SSL_CERT7=other",
		"FRAMEWORK_NAME=lb", "MARATHON_USER=u", "MARATHON_PASSWORD=p", "HAPROXY_SYSLOGD=true"}
	got, once, stderr, err := mlb(t, environ, "poll", "--group", "*")
	if err != nil {
		t.Fatal(err)
	}
	if once {
		t.Error("poll is taken for a single run")
	}
	if !strings.Contains(stderr, "HAPROXY_SYSLOGD is ignored: ") {
		t.Errorf("what is ignored is not named: %q", stderr)
	}
	certs := strings.Split(got["marathon_lb.ssl_certs"], ",")
	for i, want := range []string{"pem\n", "other\n"} {
		if len(certs) != 2 {
			t.Fatalf("certificates: have %q, want two", certs)
		}
		if text, err := os.ReadFile(certs[i]); err != nil || string(text) != want {
			t.Errorf("%s: %q, %v", certs[i], text, err)
		}
	}
	if filepath.Base(certs[0]) != "cert.pem" || filepath.Base(certs[1]) != "cert7.pem" {
		t.Errorf("certificates are not where labels name them: %q", certs)
	}
	if text, err := os.ReadFile(got["marathon.auth.basic_file"]); err != nil || string(text) != "u:p\n" {
		t.Errorf("credentials: %q, %v", text, err)
	}
	delete(got, "marathon_lb.ssl_certs")
	delete(got, "marathon.auth.basic_file")
	want := map[string]string{"dialect": "marathon-lb", "groups": "*", "marathon.urls": "http://master.mesos:8080",
		"marathon.transport": "poll", "marathon.resync": "30s", "marathon_lb.framework_name": "lb",
		"marathon_lb.template_dir": filepath.Join(sandbox, "templates"), "haproxy.config": "/marathon-lb/haproxy.cfg",
		"haproxy.socket": "/var/run/haproxy/socket", "haproxy.master_socket": "/var/run/haproxy/master.sock", "haproxy.supervise": "true"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMarathonLBRefuses(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"--sse":           "--group is required",
		"serve --group *": "want sse, poll or a further URL",
		"sse --group *":   "define $PORTS",
		"--group * -s --min-serv-port-ip-per-task 0":     "go together",
		"--group * -s --min-serv-port-ip-per-task 20000": "want a range",
		"--group * -s --log-level LOUD":                  "want one of CRITICAL",
		"--group * -s --auth-credentials a:b:c":          "one colon",
		"--group * -s --dcos-auth-credentials nonsense":  "want JSON",
	} {
		_, _, _, err := mlb(t, nil, strings.Fields(args)...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
		if strings.Contains(want, "PORTS") {
			continue // exit code 1, as there
		}
		if _, ok := errors.AsType[usageError](err); !ok {
			t.Errorf("%s: %v is no usage error", args, err)
		}
	}
	// Every flag of marathon-lb is known.
	cmd := newMarathonLBCommand(nil)
	for _, name := range strings.Fields(`longhelp marathon haproxy-config group command max-reload-retries reload-interval strict-mode sse
		archive-versions health-check lru-cache-capacity haproxy-map dont-bind-http-https group-https-by-vhost ssl-certs skip-validation
		skip-config-cleanup dry min-serv-port-ip-per-task max-serv-port-ip-per-task max-backoff syslog-socket log-format log-level
		marathon-auth-credential-file auth-credentials dcos-auth-credentials marathon-ca-cert`) {
		if cmd.Flags().Lookup(name) == nil {
			t.Errorf("--%s is not known", name)
		}
	}
}

// The whole command: what marathon-lb --dry prints, with what is ignored named.
func TestMarathonLBDry(t *testing.T) {
	marathon := marathontest.New(marathontest.Options{})
	defer marathon.Close()
	if err := marathon.Start(); err != nil {
		t.Fatal(err)
	}
	for _, app := range []marathontest.AppSpec{
		{ID: "/in", Instances: 1, Ports: []marathontest.Port{{Service: 10000}}, Labels: map[string]string{"HAPROXY_GROUP": "external"}},
		{ID: "/out", Instances: 1, Ports: []marathontest.Port{{Service: 10001}}},
	} {
		if err := marathon.Deploy(app); err != nil {
			t.Fatal(err)
		}
	}
	args := slices.Concat([]string{"marathon-lb", "--marathon"}, marathon.URLs(), []string{"--group", "external", "--dry", "--skip-validation"})
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), args, nil, &stdout, &stderr); code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr.String())
	}
	if !strings.Contains(stdout.String(), "backend in_10000") && !strings.Contains(stdout.String(), "listen in_10000") || strings.Contains(stdout.String(), "out_10001") {
		t.Errorf("not the apps of the group:\n%s", stdout.String())
	}
	if !strings.Contains(stderr.String(), "--skip-validation is ignored: ") {
		t.Errorf("what is ignored is not named: %s", stderr.String())
	}
	if code := run(t.Context(), []string{"marathon-lb", "--group", "a"}, nil, &stdout, &stderr); code != exitUsage {
		t.Errorf("a single run ends with %d, want %d", code, exitUsage)
	}
}
