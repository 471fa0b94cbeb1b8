package discovery

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestDependencies keeps the room apart from the others.
func TestDependencies(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	deps := strings.Fields(string(out))
	for pkg, why := range map[string]string{
		"bridged/internal/haproxy":                "what Marathon says is independent of who balances the load",
		"bridged/internal/bridge":                 "the bridge knows this room, not the other way round",
		"bridged/internal/provision":              "another program",
		"bridged/internal/discovery/marathontest": "a simulator has no place in the daemon's own reading",
		"github.com/haproxytech/client-native/v5": "HAProxy belongs to another room",
		"github.com/vmware/govmomi":               "vSphere belongs to another program",
		"testing":                                 "test code in the program",
	} {
		if slices.ContainsFunc(deps, func(d string) bool { return d == pkg || strings.HasPrefix(d, pkg+"/") && pkg != "testing" }) {
			t.Errorf("%s is imported: %s", pkg, why)
		}
	}
}
