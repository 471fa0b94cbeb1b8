package main

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDemo runs the whole demo, as fast as it goes, with clusterctl built from
// this tree.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs clusterctl")
	}
	binary := filepath.Join(t.TempDir(), "clusterctl")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "bridged/cmd/clusterctl")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build clusterctl: %v\n%s", err, out)
	}
	var out bytes.Buffer
	err := run(t.Context(), []string{"-clusterctl", binary, "-blueprint", "../../../../examples/dev.yaml", "-speed", "0"}, &out, &out)
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{
		"nothing to change: everything is as the blueprint says",
		"8 of 8 nodes ready",
		"ZooKeeper leader dev-master-0, 2 of 2 followers synced",
		"the inventory is what it was at the beginning",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestLoopback(t *testing.T) {
	in := "network:\n    cidr: 192.168.50.0/24 # <- here\n    gateway: 192.168.50.1\n"
	want := "network:\n    cidr: 127.0.50.0/24 # <- here\n    gateway: 127.0.50.1\n"
	if got := string(loopback([]byte(in))); got != want {
		t.Errorf("loopback: %q, want %q", got, want)
	}
}
