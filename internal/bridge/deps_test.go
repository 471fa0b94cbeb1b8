package bridge

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// This room joins two others and keeps away from the rest.
func TestDependencies(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	deps := strings.Fields(string(out))
	for _, pkg := range []string{"bridged/internal/discovery", "bridged/internal/haproxy"} {
		if !slices.Contains(deps, pkg) {
			t.Errorf("%s is not imported: who joins it to the other?", pkg)
		}
	}
	for pkg, why := range map[string]string{
		"bridged/internal/provision":              "another program",
		"bridged/internal/discovery/marathontest": "a simulator has no place in the daemon; the demo embeds it",
		"bridged/internal/haproxy/haproxytest":    "test code in the program",
		"github.com/vmware/govmomi":               "vSphere belongs to another program",
		"github.com/spf13/cobra":                  "flags are the command's business; here they are values by key",
		"os/signal":                               "nothing below the commands knows signals",
		"testing":                                 "test code in the program",
	} {
		if slices.ContainsFunc(deps, func(d string) bool { return d == pkg || strings.HasPrefix(d, pkg+"/") && pkg != "testing" }) {
			t.Errorf("%s is imported: %s", pkg, why)
		}
	}
}
