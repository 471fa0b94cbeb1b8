package guest_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"golang.org/x/tools/txtar"

	"bridged/internal/provision"
	"bridged/internal/provision/guest"
)

var update = flag.Bool("update", false, "rewrite the expected files")

// secretsOf gives every secret of the blueprint a value that a test can look for.
func secretsOf(want *provision.Want) provision.SecretFunc {
	named := want.Cluster.Spec.Secrets.Names()
	return func(name string) (string, error) {
		if !strings.HasPrefix(name, "access.") && !slices.Contains(named, name) {
			return "", provision.ErrNoSecret
		}
		return secret(name)
	}
}

func secret(name string) (string, error) {
	if strings.HasPrefix(name, "access.sshKeys") {
		return "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI ops", nil
	}
	switch name {
	case "zookeeperAuth", "marathonAuth":
		return "user:SECRET-" + name, nil
	case "haproxyStats", "mesosCredential", "access.realm.password":
		return "SECRET-" + name, nil
	}
	return "", provision.ErrNoSecret
}

func expand(t testing.TB, name string, blueprint []byte) *provision.Want {
	t.Helper()
	manifests, err := provision.BuiltinManifests()
	if err != nil {
		t.Fatal(err)
	}
	c, problems := provision.Load(name, blueprint, manifests)
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	want, err := provision.Expand(c, manifests, guest.Render)
	if err != nil {
		t.Fatal(err)
	}
	return want
}

// eachCase calls f for every archive with its blueprint expanded.
func eachCase(t *testing.T, f func(t *testing.T, file string, a *txtar.Archive, want *provision.Want)) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(a.Files) == 0 || a.Files[0].Name != "blueprint.yaml" {
				t.Fatalf("%s: want blueprint.yaml first", file)
			}
			f(t, file, a, expand(t, file, a.Files[0].Data))
		})
	}
}

// TestRender holds the documents of the first node of each group against the archive.
func TestRender(t *testing.T) {
	eachCase(t, func(t *testing.T, file string, a *txtar.Archive, want *provision.Want) {
		have := map[string]string{}
		var names []string
		groups := map[string]bool{}
		for _, n := range want.Nodes {
			if groups[n.Group] {
				continue
			}
			groups[n.Group] = true
			g, err := guest.Render(want, n, secretsOf(want))
			if err != nil {
				t.Fatal(err)
			}
			for doc, data := range map[string][]byte{"user-data": g.UserData, "meta-data": g.MetaData} {
				name := n.Name + "/" + doc
				have[name] = string(data)
			}
			names = append(names, n.Name+"/meta-data", n.Name+"/user-data")
		}
		if *update {
			a.Files = a.Files[:1]
			for _, name := range names {
				a.Files = append(a.Files, txtar.File{Name: name, Data: []byte(have[name])})
			}
			if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
		expected := map[string]string{}
		for _, f := range a.Files[1:] {
			expected[f.Name] = string(f.Data)
		}
		if diff := cmp.Diff(expected, have); diff != "" {
			t.Errorf("guest files (-want +got):\n%s", diff)
		}
	})
}

// TestSchema has cloud-init itself judge every node's user-data.
func TestSchema(t *testing.T) {
	tool := need(t, "cloud-init")
	eachCase(t, func(t *testing.T, _ string, _ *txtar.Archive, want *provision.Want) {
		for _, n := range want.Nodes {
			if n.Index > 0 {
				continue
			}
			g, err := guest.Render(want, n, secretsOf(want))
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "user-data")
			if err := os.WriteFile(file, g.UserData, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), tool, "schema", "--config-file", file).CombinedOutput()
			if err != nil || bytes.Contains(out, []byte("deprecat")) {
				t.Errorf("%s: %v\n%s", n.Name, err, out)
			}
		}
	})
}

// TestUnits has systemd judge every unit that a node gets.
func TestUnits(t *testing.T) {
	tool := need(t, "systemd-analyze")
	eachCase(t, func(t *testing.T, _ string, _ *txtar.Archive, want *provision.Want) {
		for _, n := range want.Nodes {
			if n.Index > 0 {
				continue
			}
			dir := t.TempDir()
			var units []string
			for _, f := range files(t, want, n) {
				// A unit names programs of the guest; here only its text is judged.
				if !strings.HasPrefix(f.Path, "/etc/systemd/system/") || strings.Contains(f.Path, ".d/") {
					continue
				}
				text := f.Content
				for _, line := range strings.Split(f.Content, "\n") {
					if command, ok := strings.CutPrefix(line, "ExecStart="); ok && command != "" {
						text = strings.Replace(text, line, "ExecStart=/bin/true", 1)
					}
				}
				path := filepath.Join(dir, filepath.Base(f.Path))
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
				units = append(units, path)
			}
			// verify warns and says 0, so that any output is a finding.
			out, err := exec.CommandContext(t.Context(), tool, append([]string{"verify", "--man=no"}, units...)...).CombinedOutput()
			if err != nil || len(bytes.TrimSpace(out)) > 0 {
				t.Errorf("%s: %v\n%s", n.Name, err, out)
			}
		}
	})
}

// TestScripts has a shell read every script.
func TestScripts(t *testing.T) {
	eachCase(t, func(t *testing.T, _ string, _ *txtar.Archive, want *provision.Want) {
		for _, n := range want.Nodes {
			for _, f := range files(t, want, n) {
				if !strings.HasPrefix(f.Content, "#!/bin/sh") {
					continue
				}
				cmd := exec.CommandContext(t.Context(), "sh", "-n")
				cmd.Stdin = strings.NewReader(f.Content)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%s %s: %v\n%s", n.Name, f.Path, err, out)
				}
			}
		}
	})
}

// TestSecretsStayPut: a secret stands in no file that others may read, and in
// no place of the user-data but write_files.
func TestSecretsStayPut(t *testing.T) {
	eachCase(t, func(t *testing.T, _ string, _ *txtar.Archive, want *provision.Want) {
		for _, n := range want.Nodes {
			g, err := guest.Render(want, n, secretsOf(want))
			if err != nil {
				t.Fatal(err)
			}
			inFiles := 0
			for _, f := range files(t, want, n) {
				inFiles += strings.Count(f.Content, "SECRET-")
				if strings.Contains(f.Content, "SECRET-") && f.Permissions != "0600" && f.Permissions != "0640" {
					t.Errorf("%s: %s has a secret and mode %s", n.Name, f.Path, f.Permissions)
				}
			}
			if all := bytes.Count(g.UserData, []byte("SECRET-")); all != inFiles {
				t.Errorf("%s: %d secrets in user-data, %d of them in files", n.Name, all, inFiles)
			}
			if bytes.Contains(g.MetaData, []byte("SECRET-")) {
				t.Errorf("%s: a secret in meta-data", n.Name)
			}
		}
	})
}

// TestScaleOutTouchesNobody: more slaves change no document of a node that exists.
func TestScaleOutTouchesNobody(t *testing.T) {
	eachCase(t, func(t *testing.T, file string, a *txtar.Archive, want *provision.Want) {
		slaves := 0
		for _, n := range want.Nodes {
			if n.Has(provision.RoleSlave) && !n.Quorum() {
				slaves++
			}
		}
		text := string(a.Files[0].Data)
		more := strings.Replace(text, fmt.Sprintf("count: %d # slaves", slaves), fmt.Sprintf("count: %d", slaves+2), 1)
		if more == text {
			t.Skipf("%s has no line \"count: %d # slaves\"", file, slaves)
		}
		grown := expand(t, file, []byte(more))
		if len(grown.Nodes) != len(want.Nodes)+2 {
			t.Fatalf("want %d nodes, have %d", len(want.Nodes)+2, len(grown.Nodes))
		}
		hashes := map[string]string{}
		for _, n := range grown.Nodes {
			hashes[n.Name] = n.Hash
		}
		for _, n := range want.Nodes {
			if hashes[n.Name] != n.Hash {
				t.Errorf("%s changed", n.Name)
			}
		}
	})
}

type entry struct {
	Path        string `yaml:"path"`
	Content     string `yaml:"content"`
	Permissions string `yaml:"permissions"`
}

// files are the write_files of a node's user-data, read as cloud-init reads them.
func files(t *testing.T, want *provision.Want, n *provision.Node) []entry {
	t.Helper()
	g, err := guest.Render(want, n, secretsOf(want))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Files []entry `yaml:"write_files"`
	}
	if err := yaml.Unmarshal(g.UserData, &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Files) == 0 {
		t.Fatalf("%s: no files", n.Name)
	}
	return doc.Files
}

// need finds a program, or skips; where CI says that all is installed it fails.
func need(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not installed; make deps brings it", program)
		}
		t.Skipf("%s is not installed; make deps brings it", program)
	}
	return path
}
