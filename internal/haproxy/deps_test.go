package haproxy

import (
	"os/exec"
	"strings"
	"testing"
)

// What this room must not know, and why.
func TestImports(t *testing.T) {
	banned := map[string]string{
		"bridged/internal/discovery": "HAProxy is driven from a Config, whoever made it",
		"bridged/internal/bridge":    "the bridge imports this room, not the other way round",
		"bridged/internal/provision": "clusterctl is another program",
		// client-native's config-parser reads files; its runtime client dials per command, takes
		// silence for success and panics on reload.
		"github.com/haproxytech/client-native/v5/runtime":       "runtime.go is the only way to the stats socket",
		"github.com/haproxytech/client-native/v5/configuration": "its transactions parse and write the whole file for each change",
	}
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		if why, bad := banned[strings.TrimSpace(line)]; bad {
			t.Errorf("imports %s: %s", strings.TrimSpace(line), why)
		}
	}
}
