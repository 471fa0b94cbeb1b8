package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bridged/internal/provision/vsim"
)

// ctl is a clusterctl that talks to a simulated vCenter.
type ctl struct {
	t   *testing.T
	dir string
}

func newCtl(t *testing.T) (*ctl, *vsim.Server) {
	t.Helper()
	s := vsim.Run(t, vsim.Options{})
	return ctlFor(t, s), s
}

func ctlFor(t *testing.T, s *vsim.Server) *ctl {
	t.Helper()
	t.Setenv("GOVC_URL", s.URL.String())
	t.Setenv("GOVC_USERNAME", s.User)
	t.Setenv("GOVC_PASSWORD", s.Password)
	t.Setenv("GOVC_INSECURE", "1")
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	return &ctl{t: t, dir: t.TempDir()}
}

// run executes one command and returns what it wrote.
func (c *ctl) run(want int, args ...string) (stdout, stderr string) {
	c.t.Helper()
	return c.runWith(want, "", args...)
}

func (c *ctl) runWith(want int, stdin string, args ...string) (stdout, stderr string) {
	c.t.Helper()
	var out, complaint bytes.Buffer
	if code := run(c.t.Context(), nil, args, strings.NewReader(stdin), &out, &complaint); code != want {
		c.t.Fatalf("clusterctl %s: exit %d, want %d\nstdout:\n%s\nstderr:\n%s", strings.Join(args, " "), code, want, out.String(), complaint.String())
	}
	return out.String(), complaint.String()
}

func (c *ctl) init(kind string) string {
	c.t.Helper()
	text, _ := c.run(exitOK, "init", kind)
	// Tests never ask anything outside this machine.
	text = strings.NewReplacer("192.168.50.", "127.0.50.", "192.168.60.", "127.0.60.", "10.20.", "127.20.").Replace(text)
	file := filepath.Join(c.dir, kind+".yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
	return file
}

func contains(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in:\n%s", w, text)
		}
	}
}

func TestLifeOfACluster(t *testing.T) {
	c, s := newCtl(t)
	before := s.Dump()
	file := c.init("dev")

	c.run(exitOK, "validate", "-f", file)
	c.run(exitOK, "validate", "-f", file, "--online")
	out, _ := c.run(exitChanges, "plan", "-f", file, "--detailed-exitcode")
	contains(t, out, "+ create   vm     dev-master-0 … dev-master-2 (3)", "10 to create")

	_, complaint := c.run(exitUsage, "apply", "-f", file)
	contains(t, complaint, "--yes")
	_, complaint = c.runWith(exitError, "no\n", "apply", "-f", file)
	contains(t, complaint, "not confirmed")
	out, _ = c.runWith(exitOK, "yes\n", "apply", "-f", file)
	contains(t, out, "✓ create dev-slave-4", "done: everything is as the blueprint says")

	out, _ = c.run(exitOK, "plan", "-f", file, "--detailed-exitcode")
	contains(t, out, "nothing to change")
	out, _ = c.run(exitOK, "apply", "-f", file, "--yes")
	contains(t, out, "nothing to change")
	out, _ = c.run(exitOK, "status", "-f", file, "--gate", "guestinfo")
	contains(t, out, "8 of 8 nodes ready; nothing to change", "dev-master-0  on     ready")

	out, _ = c.run(exitOK, "scale", "-f", file, "slave=7", "--yes", "--gate", "guestinfo")
	contains(t, out, "2 to create")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	contains(t, string(text), "count: 7                  # `clusterctl scale -f dev.yaml slave=8` writes the number here")
	out, _ = c.run(exitOK, "scale", "-f", file, "slave=4", "--yes", "--gate", "guestinfo")
	contains(t, out, "3 to remove")
	out, _ = c.run(exitOK, "replace", "-f", file, "slave-1", "--yes", "--gate", "guestinfo")
	contains(t, out, "1 to replace")
	out, _ = c.run(exitOK, "upgrade", "-f", file, "--distro", "mesos-1.5", "--yes", "--gate", "guestinfo")
	contains(t, out, "distro mesos-1.11 → mesos-1.5", "7 to replace")

	out, _ = c.run(exitOK, "destroy", "-f", file, "--yes")
	contains(t, out, "done: nothing of the cluster is left")
	if after := s.Dump(); after != before {
		t.Errorf("destroy left something behind:\nbefore:\n%s\nafter:\n%s", before, after)
	}
	out, _ = c.run(exitOK, "destroy", "-f", file, "--yes")
	contains(t, out, "nothing to change")
}

func TestEventsAreJSONLines(t *testing.T) {
	c, _ := newCtl(t)
	file := c.init("dev")
	out, _ := c.run(exitOK, "apply", "-f", file, "--yes", "-o", "json")
	kinds := map[string]int{}
	for line := range strings.Lines(out) {
		var doc map[string]json.RawMessage
		if err := json.Unmarshal([]byte(line), &doc); err != nil || len(doc) != 1 {
			t.Fatalf("not one JSON document of one kind: %s", line)
		}
		for kind := range doc {
			kinds[kind]++
		}
	}
	if kinds["plan"] != 1 || kinds["result"] != 1 || kinds["event"] < 16 {
		t.Errorf("kinds of lines: %v, want a plan, events and a result", kinds)
	}
}

func TestExitCodes(t *testing.T) {
	c, _ := newCtl(t)
	file := c.init("dev")
	bad := filepath.Join(c.dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("kind: Klaster\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		want     int
		args     string
		complain string
	}{
		{exitUsage, "", "name a command"},
		{exitUsage, "plna", `unknown command "plna"`},
		{exitUsage, "plan", "pass -f FILE"},
		{exitUsage, "plan -f " + file + " -o xml", "want table, json or yaml"},
		{exitUsage, "plan -f " + file + " --nonsense", "unknown flag"},
		{exitUsage, "plan extra -f " + file, "takes no argument"},
		{exitUsage, "apply -f " + file + " --gate maybe", "want auto, guestinfo or direct"},
		{exitUsage, "scale -f " + file, "takes GROUP=N"},
		{exitUsage, "scale -f " + file + " slave", "want GROUP=N"},
		{exitUsage, "render -f " + file, "pass --dir OUT"},
		{exitUsage, "export", "export heat"},
		{exitUsage, "init huge", "want dev, prod or photon"},
		{exitError, "validate -f " + bad, "E01 kind"},
		{exitError, "validate -f " + c.dir + "/none.yaml", "no such file"},
		{exitError, "scale -f " + file + " salve=3", "did you mean slave?"},
		{exitError, "replace -f " + file + " slave-99 --yes", "there is no node dev-slave-99"},
		{exitError, "rotate -f " + file + " haproxyStats --yes", "spec.secrets.haproxyStats: is missing"},
		{exitOK, "version", ""},
		{exitOK, "distro list", ""},
		{exitOK, "distro verify", ""},
		{exitOK, "export heat -f " + file, ""},
		{exitOK, "plan --offline -f " + file, ""},
		{exitChanges, "plan --offline --detailed-exitcode -f " + file, ""},
	} {
		_, complaint := c.run(test.want, strings.Fields(test.args)...)
		if !strings.Contains(complaint, test.complain) {
			t.Errorf("clusterctl %s: stderr %q, want %q in it", test.args, complaint, test.complain)
		}
	}
}

func TestWrongPasswordChangesNothing(t *testing.T) {
	c, s := newCtl(t)
	file := c.init("dev")
	before := s.Dump()
	t.Setenv("GOVC_PASSWORD", "wrong")
	out, complaint := c.run(exitError, "apply", "-f", file, "--yes")
	if strings.Contains(out+complaint, "wrong ") || strings.Contains(out+complaint, "vsim") && strings.Contains(out, s.Password) {
		t.Errorf("a password shows:\n%s%s", out, complaint)
	}
	contains(t, complaint, "password")
	if s.Dump() != before {
		t.Error("something changed")
	}
}

func TestRenderNeedsNoEnvironment(t *testing.T) {
	c, _ := newCtl(t)
	for _, name := range []string{"GOVC_URL", "GOVC_USERNAME", "GOVC_PASSWORD", "BRIDGED_CLUSTER_KEY", "HOME"} {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	for _, kind := range []string{"dev", "prod", "photon"} {
		file := c.init(kind)
		dir := filepath.Join(c.dir, kind)
		c.run(exitOK, "validate", "-f", file)
		c.run(exitOK, "render", "-f", file, "--dir", dir)
		text, err := os.ReadFile(filepath.Join(dir, kind+"-master-0", "user-data"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(text), "#cloud-config\n") {
			t.Errorf("%s: user-data begins with %.40q", kind, text)
		}
		if _, err := os.Stat(filepath.Join(dir, kind+"-slave-0", "meta-data")); err != nil {
			t.Error(err)
		}
	}
}
