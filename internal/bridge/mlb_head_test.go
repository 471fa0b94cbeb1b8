package bridge

import (
	"os"
	"path/filepath"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

func TestReadHead(t *testing.T) {
	got := ReadHead(`
global
  daemon
  log /dev/log local0
  spread-checks 5
  stats socket /var/run/haproxy/socket
  lua-load /marathon-lb/getpids.lua
  server-state-file global
defaults
  load-server-state-from-file global
  timeout client 5s
  # a comment

listen stats
  bind 0.0.0.0:9090
  mode http
  rspadd X-Lb:\ a
`)
	want := Head{
		Global:   []string{"log /dev/log local0", "spread-checks 5"},
		Defaults: []string{"timeout client 5s"},
		Sections: "listen stats\n  bind 0.0.0.0:9090\n  mode http\n  http-response set-header X-Lb a\n",
		Warnings: []string{
			"HAPROXY_HEAD: left out daemon: bridged runs HAProxy as master and worker",
			"HAPROXY_HEAD: left out stats socket: bridged writes haproxy.socket, which hands listeners on",
			"HAPROXY_HEAD: left out lua-load: bridged answers marathon-lb's endpoints without Lua",
			"HAPROXY_HEAD: left out server-state-file: bridged restores state itself",
			"HAPROXY_HEAD: left out load-server-state-from-file: bridged restores state itself, and the file misroutes servers that moved",
		},
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestLoadTemplates(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"HAPROXY_BACKEND_HEAD": "from file\r\nb", "HAPROXY_FRONTEND_HEAD": "file", "README": "x", "HAPROXY_NONE": "y"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := LoadTemplates(dir, []string{`HAPROXY_FRONTEND_HEAD=a\nb`, "HAPROXY_BACKEND_HEAD=", "HAPROXY_OTHER=x", "PATH=/bin"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"BACKEND_HEAD": "from file\nb", "FRONTEND_HEAD": "a\nb"}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if _, err := LoadTemplates(filepath.Join(dir, "absent"), nil); err == nil {
		t.Error("a directory that is not there is no error")
	}
}

func TestCheckTemplates(t *testing.T) {
	o := TranslateOptions{Templates: map[string]string{
		"BACKEND_HEAD":       "backend {backend\n",
		"HTTP_FRONTEND_HEAD": "frontend other\nbind *:80",
		"NONE":               "x",
		"USERLIST_HEAD":      "userlist user_{backend}",
	}}
	var got []string
	for _, err := range o.CheckTemplates() {
		got = append(got, err.Error())
	}
	want := []string{
		"template HAPROXY_BACKEND_HEAD: a { is not closed: write {{ for a brace",
		`template HAPROXY_HTTP_FRONTEND_HEAD: want "frontend marathon_http_in" as its first line`,
		"template HAPROXY_NONE: there is none of this name",
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
