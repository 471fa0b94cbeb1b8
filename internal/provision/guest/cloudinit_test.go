package guest_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"bridged/internal/provision"
	"bridged/internal/provision/guest"
)

// TestCloudInit has the real cloud-init apply the documents of each role to a
// throw-away overlay of this machine's root directory, and looks at every file.
// The image counts as prebaked: packages would have to be fetched.
func TestCloudInit(t *testing.T) {
	need(t, "cloud-init")
	need(t, "unshare")
	if os.Geteuid() != 0 {
		t.Skip("needs root, for namespaces and an overlay")
	}
	if testing.Short() {
		t.Skip("a few seconds a node")
	}
	script, err := filepath.Abs("testdata/cloud-init.sh")
	if err != nil {
		t.Fatal(err)
	}
	eachCase(t, func(t *testing.T, file string, a *txtar.Archive, _ *provision.Want) {
		// The directory of the case stays out: joining asks a server that is not here.
		text := string(a.Files[0].Data)
		text = strings.Replace(text, "image: {", "image: {packages: prebaked, ", 1)
		var kept []string
		for line := range strings.Lines(text) {
			if !strings.Contains(line, "realm:") && !strings.Contains(line, "addons:") && !strings.Contains(line, "node-exporter") {
				kept = append(kept, line)
			}
		}
		want := expand(t, file, []byte(strings.Join(kept, "")))
		seen := map[string]bool{}
		for _, n := range want.Nodes {
			if seen[n.Group] {
				continue
			}
			seen[n.Group] = true
			t.Run(n.Group, func(t *testing.T) { applyWithCloudInit(t, script, want, n) })
		}
	})
}

func applyWithCloudInit(t *testing.T, script string, want *provision.Want, n *provision.Node) {
	t.Parallel()
	g, err := guest.Render(want, n, secretsOf(want))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	wanted := files(t, want, n)
	var paths strings.Builder
	for _, f := range wanted {
		fmt.Fprintln(&paths, f.Path)
	}
	// Disks are not here; the rest of the document is as it is.
	write(t, filepath.Join(dir, "user-data"), withoutDisks(g.UserData))
	write(t, filepath.Join(dir, "meta-data"), g.MetaData)
	write(t, filepath.Join(dir, "paths"), []byte(paths.String()))
	if err := os.Mkdir(filepath.Join(dir, "scratch"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "-mun", "--fork", "--kill-child", "sh", script, dir, n.NICs[0].MAC)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, read(dir, "log"))
	}

	var result struct {
		V1 struct {
			Datasource string   `json:"datasource"`
			Errors     []string `json:"errors"`
		} `json:"v1"`
	}
	if err := json.Unmarshal([]byte(read(dir, "result.json")), &result); err != nil {
		t.Fatal(err)
	}
	if result.V1.Datasource != "DataSourceVMware" || len(result.V1.Errors) > 0 {
		t.Errorf("cloud-init: %+v\n%s", result.V1, read(dir, "log"))
	}
	for _, f := range wanted {
		if diff := cmp.Diff(f.Content, read(dir, "files"+f.Path)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", f.Path, diff)
		}
		if mode := strings.TrimSpace(read(dir, "files"+f.Path+".mode")); "0"+mode != f.Permissions {
			t.Errorf("%s: mode %s, want %s", f.Path, mode, f.Permissions)
		}
	}
	if host := strings.TrimSpace(read(dir, "hostname")); host != n.Name {
		t.Errorf("host name %q, want %q", host, n.Name)
	}
	if !strings.Contains(read(dir, "user"), "(ops)") {
		t.Errorf("no user ops: %s", read(dir, "user"))
	}
	calls := read(dir, "systemctl.log")
	for _, call := range []string{"enable --now clusterctl-report.timer", "start --no-block clusterctl-node.service"} {
		if !strings.Contains(calls, call) {
			t.Errorf("no call of systemctl %s in\n%s", call, calls)
		}
	}
	if n.Has(provision.RoleSlave) && !strings.Contains(read(dir, "masked-runtime"), "mesos-slave.service") {
		t.Errorf("mesos-slave could start before it was configured: masked are %s", read(dir, "masked-runtime"))
	}
	if !strings.Contains(read(dir, "rpctool.log"), `"phase":"config"`) {
		t.Errorf("no report of phase config:\n%s", read(dir, "rpctool.log"))
	}
}

// withoutDisks leaves out the top-level keys for disks that this machine lacks.
func withoutDisks(doc []byte) []byte {
	var kept []string
	skip := false
	for line := range strings.Lines(string(doc)) {
		if key, _, ok := strings.Cut(line, ":"); ok && !strings.HasPrefix(line, " ") {
			skip = key == "disk_setup" || key == "fs_setup" || key == "mounts"
		}
		if !skip {
			kept = append(kept, line)
		}
	}
	return []byte(strings.Join(kept, ""))
}

func write(t *testing.T, file string, data []byte) {
	t.Helper()
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(dir, name string) string {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return err.Error()
	}
	return string(text)
}
