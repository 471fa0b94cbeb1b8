package haproxy

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

// TestDiffCases reads testdata/diff/*.txtar. The comment's line "haproxy 2.6 [slots]" names
// the version and the policy; have and want hold one server a line, "name address state
// weight [words…]", where want may open with "options …", "balance …" or "named"; a
// missing want is a backend that is gone. commands is what the stats socket gets, reasons
// what remains for a reload. -update writes both.
func TestDiffCases(t *testing.T) {
	files, err := filepath.Glob("testdata/diff/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			part := func(name string) (string, bool) {
				for _, f := range ar.Files {
					if f.Name == name {
						return string(f.Data), true
					}
				}
				return "", false
			}
			caps, policy := readHeader(t, string(ar.Comment))
			haveText, _ := part("have")
			have := loadedFrom(readServers(t, haveText))
			for i := range have.servers { // the file knows no drained servers, a worker does
				if f := strings.Fields(strings.Split(strings.TrimSpace(haveText), "\n")[i]); f[2] == "drain" {
					have.servers[i].State = Drain
				}
			}
			var want *Backend
			how := fixed
			if text, ok := part("want"); ok {
				want = readServers(t, text)
				how = strategyFor(want, caps, policy)
			}
			var p plan
			p.diffBackend("be", have, want, how, caps)
			var lines []byte
			for _, c := range append(p.grow, p.shrink...) {
				if lines, err = c.appendTo(lines); err != nil {
					t.Fatal(err)
				}
			}
			var reasons strings.Builder
			for _, r := range p.reasons {
				fmt.Fprintln(&reasons, r)
			}
			got := map[string]string{"commands": string(lines), "reasons": reasons.String()}
			if *update {
				kept := ar.Files[:0]
				for _, f := range ar.Files {
					if _, result := got[f.Name]; !result {
						kept = append(kept, f)
					}
				}
				ar.Files = append(kept, txtar.File{Name: "commands", Data: lines}, txtar.File{Name: "reasons", Data: []byte(reasons.String())})
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			for name, text := range got {
				want, _ := part(name)
				if d := cmp.Diff(want, text); d != "" {
					t.Errorf("%s (-want +got):\n%s", name, d)
				}
			}
		})
	}
}

func readHeader(t *testing.T, comment string) (Capabilities, SlotPolicy) {
	t.Helper()
	for line := range strings.Lines(comment) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "haproxy" {
			continue
		}
		v, err := ParseVersion(words[1])
		if err != nil {
			t.Fatal(err)
		}
		policy := SlotsAuto
		if len(words) > 2 {
			policy = SlotPolicy(words[2])
		}
		return CapabilitiesOf(v), policy
	}
	t.Fatalf("no line \"haproxy <version>\" in %q", comment)
	return Capabilities{}, ""
}

func readServers(t *testing.T, text string) *Backend {
	t.Helper()
	b := &Backend{Section: Section{Kind: KindBackend, Name: "be"}}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
			continue
		case words[0] == "options":
			b.ServerOptions = strings.Join(words[1:], " ")
			continue
		case words[0] == "balance":
			b.Balance = strings.Join(words[1:], " ")
			continue
		case words[0] == "named":
			b.Named = true
			continue
		case len(words) < 4:
			t.Fatalf("server line %q: want name, address, state, weight", line)
		}
		s := Server{Name: words[0], Addr: netip.MustParseAddrPort(words[1])}
		for i, text := range stateText {
			if words[2] == text {
				s.State = State(i)
			}
		}
		var err error
		if s.Weight, err = strconv.Atoi(words[3]); err != nil {
			t.Fatal(err)
		}
		rest := bufio.NewScanner(strings.NewReader(strings.Join(words[4:], "\n")))
		var options []string
		for rest.Scan() {
			if value, ok := strings.CutPrefix(rest.Text(), "cookie="); ok {
				s.Cookie = value
			} else if value, ok := strings.CutPrefix(rest.Text(), "id="); ok {
				s.ID, _ = strconv.Atoi(value)
			} else {
				options = append(options, rest.Text())
			}
		}
		s.Options = strings.Join(options, " ")
		b.Servers = append(b.Servers, s)
	}
	return b
}
