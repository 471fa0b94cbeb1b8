package provision

import (
	"os/exec"
	"strings"
	"testing"
)

// TestDependencies keeps the planner pure: no hypervisor, no other room.
func TestDependencies(t *testing.T) {
	if testing.Short() {
		t.Skip("runs go list")
	}
	out, err := exec.Command("go", "list", "-deps", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	for pkg, reason := range map[string]string{
		"bridged/internal/discovery":         "discovery is about what runs in a cluster, not how one is made",
		"bridged/internal/haproxy":           "HAProxy's configuration is the business of bridged",
		"bridged/internal/bridge":            "only bridged translates between Marathon and HAProxy",
		"bridged/internal/provision/vsphere": "the planner does not know hypervisors",
		"bridged/internal/provision/vsim":    "the simulator is for tests and demos, never in a release",
		"github.com/vmware/govmomi":          "the planner does not know hypervisors",
	} {
		for dep := range strings.Lines(string(out)) {
			if dep = strings.TrimSpace(dep); dep == pkg || strings.HasPrefix(dep, pkg+"/") {
				t.Errorf("depends on %s: %s", dep, reason)
			}
		}
	}
}
