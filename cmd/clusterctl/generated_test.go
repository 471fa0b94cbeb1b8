package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra/doc"
)

var generate = flag.Bool("generate", false, "write the generated files anew (make generate)")

// TestGenerated holds the man pages and the completion to what the commands say now.
func TestGenerated(t *testing.T) {
	root := (&app{getenv: func(string) string { return "" }}).root()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	var completion bytes.Buffer
	if err := root.GenBashCompletionV2(&completion, true); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"packaging/completion/clusterctl.bash": completion.Bytes()}
	pages := t.TempDir()
	root.DisableAutoGenTag = true
	epoch := time.Unix(0, 0).UTC()
	if err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "bridged", Manual: "clusterctl", Date: &epoch}, pages); err != nil {
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
