package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra/doc"

	"bridged/internal/bridge"
)

var generate = flag.Bool("generate", false, "write the generated files anew (make generate)")

// TestGenerated holds the files that are made from the commands and settings to what these say now.
func TestGenerated(t *testing.T) {
	files := map[string][]byte{
		"packaging/bridged.yaml":            commentedConfig(),
		"docs/configuration.md":             configReference(),
		"packaging/completion/bridged.bash": nil,
	}
	root := newRoot(nil)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	var completion bytes.Buffer
	if err := root.GenBashCompletionV2(&completion, true); err != nil {
		t.Fatal(err)
	}
	files["packaging/completion/bridged.bash"] = completion.Bytes()

	pages := t.TempDir()
	root.DisableAutoGenTag = true
	epoch := time.Unix(0, 0).UTC()
	if err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "bridged", Manual: "bridged", Date: &epoch}, pages); err != nil {
		t.Fatal(err)
	}
	made, err := filepath.Glob(filepath.Join(pages, "*.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range made {
		if strings.Contains(page, "-completion") {
			continue
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Join("packaging/man", filepath.Base(page))] = text
	}
	for name, want := range files {
		path := filepath.Join("../..", name)
		if *generate {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		have, err := os.ReadFile(path)
		if err != nil {
			t.Errorf("%v; make generate writes it", err)
		} else if diff := cmp.Diff(string(have), string(want)); diff != "" {
			t.Errorf("%s is behind the code, make generate writes it anew (-file +code):\n%s", name, diff)
		}
	}
}

// TestPackagedConfig: the file that the package installs loads, and is all defaults.
func TestPackagedConfig(t *testing.T) {
	var stdout, stderr bytes.Buffer
	file := filepath.Join(t.TempDir(), "bridged.yaml")
	if err := os.WriteFile(file, append(commentedConfig(), "marathon: {urls: [http://127.0.0.1:1]}\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	if code := run(t.Context(), []string{"check", "--config", file, "--haproxy-binary", "/nonexistent"}, nil, &stdout, &stderr); code == exitUsage {
		t.Errorf("exit %d: %s", code, &stderr)
	}
}

// commentedConfig is a bridged.yaml in which every key stands as a comment with its default.
func commentedConfig() []byte {
	var b bytes.Buffer
	b.WriteString("# Configuration of bridged. Every key is shown with its default; take the # away to set one.\n" +
		"# A flag (bridged run --help) wins over its variable BRIDGED_*, which wins over this file.\n" +
		"# `bridged check` says what is wrong. Changes of this file are followed without a restart.\n")
	var open []string
	for _, s := range bridge.Settings() {
		parts := strings.Split(s.Key, ".")
		groups := parts[:len(parts)-1]
		same := 0
		for same < len(groups) && same < len(open) && groups[same] == open[same] {
			same++
		}
		if same < len(groups) || len(groups) == 0 && len(open) > 0 {
			if len(groups) < 2 || same == 0 {
				b.WriteString("\n")
			}
		}
		for i := same; i < len(groups); i++ {
			fmt.Fprintf(&b, "#%s%s:\n", strings.Repeat("  ", i), groups[i])
		}
		open = groups
		indent := strings.Repeat("  ", len(groups))
		comment := "# "
		if indent != "" {
			comment = "#" + indent + "# "
		}
		fmt.Fprintf(&b, "%s%s\n#%s%s: %s\n", comment, s.Usage, indent, parts[len(parts)-1], yamlDefault(s))
	}
	return b.Bytes()
}

func yamlDefault(s bridge.Setting) string {
	d := s.Default()
	switch {
	case s.IsList() && d == "":
		return "[]"
	case s.IsList():
		return "[" + d + "]"
	case d == "" || strings.ContainsAny(d, "*#{}[]"):
		return fmt.Sprintf("%q", d)
	}
	return d
}

// configReference is docs/configuration.md.
func configReference() []byte {
	var b bytes.Buffer
	b.WriteString("# Configuration\n\n" +
		"Generated from the code. A flag wins over its environment variable, which wins over the file (`/etc/bridged/bridged.yaml`), which wins\n" +
		"over the default. Unknown keys are errors. Files named here, and the file itself, are watched: a change is validated and taken over\n" +
		"without a restart, and a mistake keeps the former configuration and shows in `bridged_config_last_reload_successful`.\n\n" +
		"| key | default | flag | variable | meaning |\n|---|---|---|---|---|\n")
	for _, s := range bridge.Settings() {
		d := "`" + s.Default() + "`"
		if s.Default() == "" {
			d = ""
		}
		flagName := ""
		if s.Flag != "" {
			flagName = "`--" + s.Flag + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | `%s` | %s |\n", s.Key, d, flagName, s.Env(), strings.ReplaceAll(s.Usage, "|", `\|`))
	}
	b.WriteString("\n## Several Marathons\n\n" +
		"`marathons` takes the place of `marathon`: a list, each entry with a `name` and the keys of `marathon`, so that each has members,\n" +
		"credentials and TLS of its own. `--marathon` and `BRIDGED_MARATHON_URLS` replace the list.\n\n" +
		"```yaml\nmarathons:\n  - name: east\n    urls: [http://m1.east:8080, http://m2.east:8080]\n    auth: {basic_file: /etc/bridged/east}\n" +
		"  - name: west\n    urls_file: /etc/bridged/west.marathons\n    tls: {ca_file: /etc/bridged/west.pem}\n```\n\n" +
		"Each is a failure domain of its own: one that is away keeps its apps as they were last known and takes nothing from the others. Where two\n" +
		"want one service port or one proxy name, who has it keeps it and the other is rejected by name (`/api/state`, `bridged_rejected_apps`).\n" +
		"Metrics of Marathon carry the label `source`.\n")
	return b.Bytes()
}
