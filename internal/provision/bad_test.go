package provision

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "rewrite the expected parts of testdata")

// TestBadBlueprints makes one mistake at a time in a good blueprint and expects
// exactly these messages. A case is a list of edits, `old => new` with \n for a
// line break, then what validate says after a line of dashes.
func TestBadBlueprints(t *testing.T) {
	const file = "testdata/bad.txtar"
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	base := archive.Files[0]
	if base.Name != "base.yaml" {
		t.Fatalf("%s begins with %s, not base.yaml", file, base.Name)
	}
	if _, problems := Load("base.yaml", base.Data, builtin(t)); len(problems) > 0 {
		t.Fatalf("the good blueprint is not good:\n%v", problems)
	}
	codes := map[string]int{}
	for i := 1; i < len(archive.Files); i++ {
		f := &archive.Files[i]
		t.Run(f.Name, func(t *testing.T) {
			edits, want, _ := strings.Cut(string(f.Data), "----\n")
			text := string(base.Data)
			for edit := range strings.Lines(edits) {
				old, replacement, ok := strings.Cut(strings.TrimSuffix(edit, "\n"), " => ")
				if old == "" || !ok {
					t.Fatalf("edit %q: want old => new", edit)
				}
				unescape := strings.NewReplacer(`\n`, "\n", `\t`, "\t")
				if old = unescape.Replace(old); strings.Count(text, old) == 0 {
					t.Fatalf("edit %q: not in the text", edit)
				}
				text = strings.Replace(text, old, unescape.Replace(replacement), 1)
			}
			_, problems := Load("b.yaml", []byte(text), builtin(t))
			got := ""
			for i := range problems {
				got += problems[i].String() + "\n"
				codes[problems[i].Code]++
				if problems[i].Remedy == "" {
					t.Errorf("no remedy in %s", problems[i].String())
				}
			}
			if got == "" {
				t.Error("no problem found")
			}
			if *update {
				f.Data = []byte(edits + "----\n" + got)
				return
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("messages (-want +got):\n%s", d)
			}
		})
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if n := len(archive.Files) - 1; n < 150 {
		t.Errorf("%d cases, want at least 150", n)
	}
	for _, code := range []string{"E01", "E02", "E03", "E04", "E05", "E07", "E08", "E09", "E10", "E11", "E12", "E13", "E14", "E15", "E16", "E17", "W01", "W02", "W03", "W04", "W05"} {
		if codes[code] == 0 {
			t.Errorf("no case shows %s", code)
		}
	}
}
