package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bridged/internal/discovery/marathontest"
	"bridged/internal/haproxy/haproxytest"
)

// nginxOfTheOldBridge is what haproxy-marathon-bridge's users have: an app with ten tasks
// and service port 80.
func nginxOfTheOldBridge() string {
	var tasks []string
	for i := range 10 {
		tasks = append(tasks, `{"id":"nginx.`+string(rune('a'+i))+`","appId":"/nginx","host":"10.0.0.`+string(rune('1'+i%9))+`","ports":[3100`+string(rune('0'+i))+`],"startedAt":"2024-05-01T10:00:00.000Z","version":"2024-05-01T09:59:00.000Z"}`)
	}
	return `{"apps":[{"id":"/nginx","instances":10,"ports":[80],"version":"2024-05-01T09:59:00.000Z","tasks":[` + strings.Join(tasks, ",") + `]}]}`
}

func TestRenderNginx(t *testing.T) {
	bin := haproxytest.Default(t)
	dir := t.TempDir()
	saved := writeFile(t, dir, "apps.json", nginxOfTheOldBridge())
	config := writeFile(t, dir, "bridged.yaml", "")
	got := command(t, nil, "render", "--config", config, "--haproxy-binary", bin.Path, "--from", saved)
	if got.code != exitOK || got.stderr != "" {
		t.Fatalf("exit code %d, stderr %q", got.code, got.stderr)
	}
	_, section, ok := strings.Cut(got.stdout, "\nlisten nginx-80")
	if !ok {
		t.Fatalf("no proxy nginx-80 in\n%s", got.stdout)
	}
	for _, want := range []string{"\n    mode tcp\n", "\n    bind *:80\n", "\n    balance leastconn\n", "\n    default-server check "} {
		if !strings.Contains(section, want) {
			t.Errorf("no %q in nginx-80%s", want, section)
		}
	}
	if n := strings.Count(section, "\n    server "); n != 10 {
		t.Errorf("%d servers, want 10:%s", n, section)
	}
	file := writeFile(t, dir, "haproxy.cfg", got.stdout)
	if out, err := exec.Command(bin.Path, "-c", "-f", file).CombinedOutput(); err != nil {
		t.Errorf("haproxy -c: %v\n%s", err, out)
	}
}

func TestRenderReadsWhereItIsTold(t *testing.T) {
	bin := haproxytest.Default(t)
	dir := t.TempDir()
	config := writeFile(t, dir, "bridged.yaml", "")
	m := marathontest.New(marathontest.Options{})
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Deploy(marathontest.AppSpec{ID: "/web", Instances: 2, Ports: []marathontest.Port{{Service: 10080}}}); err != nil {
		t.Fatal(err)
	}
	base := []string{"render", "--config", config, "--haproxy-binary", bin.Path}
	for name, args := range map[string][]string{
		"url":        {"--from", m.URL(0)},
		"query":      {"--from", m.URL(0) + "/v2/apps?embed=apps.tasks"},
		"configured": {"--marathon", m.URL(0)},
	} {
		got := command(t, nil, append(base, args...)...)
		if got.code != exitOK || strings.Count(got.stdout, "\n    server ") != 2 || !strings.Contains(got.stdout, "\nlisten web-10080") {
			t.Errorf("%s: exit code %d, stderr %q, printed:\n%s", name, got.code, got.stderr, got.stdout)
		}
	}

	out := filepath.Join(dir, "out")
	got := command(t, nil, append(base, "--dialect", "marathon-lb", "--from", m.URL(0), "--dir", out)...)
	if got.code != exitOK || got.stdout != "" {
		t.Errorf("--dir: exit code %d, stderr %q, stdout %q", got.code, got.stderr, got.stdout)
	}
	if said, err := exec.Command(bin.Path, "-c", "-f", filepath.Join(out, "haproxy.cfg")).CombinedOutput(); err != nil {
		t.Errorf("haproxy -c on --dir's: %v\n%s", err, said)
	}

	check := command(t, nil, "check", "--config", config, "--haproxy-binary", bin.Path, "--haproxy-config", filepath.Join(dir, "haproxy.cfg"), "--marathon", m.URL(0))
	if check.code != exitOK || !strings.Contains(check.stdout, "haproxy -c     ok") {
		t.Errorf("check: exit code %d, stdout %q, stderr %q", check.code, check.stdout, check.stderr)
	}
	if _, err := os.Stat(filepath.Join(dir, "haproxy.cfg")); err == nil {
		t.Error("check wrote a haproxy.cfg")
	}
}

// Apps that cannot be served are named on stderr, the others are printed, and what was
// rejected is repeated nowhere.
func TestRenderNamesRejects(t *testing.T) {
	bin := haproxytest.Default(t)
	dir := t.TempDir()
	config := writeFile(t, dir, "bridged.yaml", "")
	saved := writeFile(t, dir, "apps.json", `{"apps":[
		{"id":"/good","instances":0,"ports":[10080],"tasks":[],"version":"2024-05-01T09:59:00.000Z"},
		{"id":"/bad","instances":0,"ports":[10081],"tasks":[],"version":"2024-05-01T09:59:00.000Z","labels":{"HAPROXY_0_BALANCE":"round\nhunter2"}}]}`)
	got := command(t, nil, "render", "--config", config, "--haproxy-binary", bin.Path, "--from", saved)
	if got.code != exitRejected {
		t.Errorf("exit code %d, want %d", got.code, exitRejected)
	}
	if !strings.HasPrefix(got.stderr, "bridged: rejected: app /bad port index 0: bad_label: ") || strings.Count(got.stderr, "\n") != 1 {
		t.Errorf("stderr: %q", got.stderr)
	}
	if !strings.Contains(got.stdout, "listen good-10080") || strings.Contains(got.stdout+got.stderr, "hunter2") {
		t.Errorf("printed:\n%s%s", got.stdout, got.stderr)
	}
}

func TestRenderMistakes(t *testing.T) {
	dir := t.TempDir()
	config := writeFile(t, dir, "bridged.yaml", "")
	notJSON := writeFile(t, dir, "apps.json", "<html>")
	for _, tc := range []struct {
		args []string
		code int
		err  string // prefix
	}{
		{nil, exitUsage, "bridged: no apps to render; name a saved answer or a Marathon with --from, or configure marathon.urls\n"},
		{[]string{"--from", dir + "/none"}, exitUsage, "bridged: --from: open " + dir + "/none: no such file or directory\n"},
		{[]string{"--from", notJSON}, exitError, "bridged: read apps from " + notJSON + ": "},
		{[]string{"--from", "http://u:secret@m1"}, exitUsage, "bridged: --from: want a file, or a URL such as http://m1:8080 without a password\n"},
		{[]string{"--from", "http://127.0.0.1:1"}, exitError, "bridged: no Marathon answers: "},
	} {
		got := command(t, nil, append([]string{"render", "--config", config}, tc.args...)...)
		if got.code != tc.code || !strings.HasPrefix(got.stderr, tc.err) || got.stdout != "" {
			t.Errorf("render %s: exit code %d, want %d; stderr %q, want %q", strings.Join(tc.args, " "), got.code, tc.code, got.stderr, tc.err)
		}
	}
}

// An app that is bad is named, and so is one whose task is on an agent without an address.
// That no other app is left is no failure of the rendering.
func TestRenderNamesWhatItLeavesOut(t *testing.T) {
	bin := haproxytest.Default(t)
	dir := t.TempDir()
	config := writeFile(t, dir, "bridged.yaml", "")
	for name, tc := range map[string]struct{ apps, err string }{
		"only app is bad": {`{"id":"/bad","ports":[99999]}`, "bridged: left out: app /bad: "},
		"agent without an address": {`{"id":"/web","instances":1,"ports":[10080],"version":"2024-05-01T09:59:00.000Z",
			"tasks":[{"id":"web.1","appId":"/web","host":"agent-name.invalid","ports":[31000],"startedAt":"2024-05-01T10:00:00.000Z"}]}`,
			"bridged: left out: app /web: its tasks on agent agent-name.invalid: no address: "},
	} {
		saved := writeFile(t, dir, "apps.json", `{"apps":[`+tc.apps+`]}`)
		got := command(t, nil, "render", "--config", config, "--haproxy-binary", bin.Path, "--from", saved)
		if got.code != exitRejected || !strings.HasPrefix(got.stderr, tc.err) || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%s: exit code %d, want %d; stderr %q, want %q", name, got.code, exitRejected, got.stderr, tc.err)
		}
		file := writeFile(t, dir, "haproxy.cfg", got.stdout)
		if out, err := exec.Command(bin.Path, "-c", "-f", file).CombinedOutput(); err != nil {
			t.Errorf("%s: haproxy -c: %v\n%s", name, err, out)
		}
	}
}
