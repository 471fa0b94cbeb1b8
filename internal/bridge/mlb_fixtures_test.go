package bridge

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"bridged/internal/discovery"
)

// oneAddress resolves every agent to one address: the agents of the fixtures are gone.
type oneAddress struct{}

func (oneAddress) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("10.1.2.3")}, nil
}

// fixtures finds answers of real Marathons beside the repository.
func fixtures(t *testing.T, pattern string) []string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
	}
	found, err := filepath.Glob(filepath.Join(dir, "..", "shared", "fixtures", "marathon", pattern))
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		t.Skip("the fixtures are not beside the repository")
	}
	return found
}

// Every saved answer becomes a configuration that HAProxy accepts, in both dialects, and
// no app is refused.
func TestFixturesTranslate(t *testing.T) {
	for _, file := range fixtures(t, "apps-tasks/*.json") {
		for _, dialect := range []Dialect{DialectBridge, DialectMarathonLB} {
			t.Run(filepath.Base(file)+" "+string(dialect), func(t *testing.T) {
				f, err := os.Open(file)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				services, errs := discovery.ReadApps(t.Context(), f, oneAddress{})
				if len(errs) > 0 {
					t.Fatal(errs)
				}
				o := TranslateOptions{Dialect: dialect, Health: HealthNone}
				if dialect == DialectMarathonLB {
					o = MarathonLBDefaults(o, nil)
				}
				tr, w := NewTranslator(o), newWorld()
				w.merge(tr.Apply(w.update(services), time.Time{}))
				if r := rejectedText(tr); r != "" {
					t.Error(r)
				}
				if text := w.text(); !strings.Contains(text, "  server ") {
					t.Errorf("no server at all:\n%s", text)
				}
				w.checkWithHAProxy(t)
			})
		}
	}
}

// The apps of a real blue/green deployment, recorded for marathon-lb's own deployment
// tool, share one backend by the name that the tool asks for.
func TestFixtureDeploymentGroup(t *testing.T) {
	file := fixtures(t, "apps-tasks/lb-zdd_apps.json")[0]
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	services, errs := discovery.ReadApps(t.Context(), f, oneAddress{})
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	w := newWorld()
	w.merge(NewTranslator(TranslateOptions{Dialect: DialectMarathonLB}).Apply(w.update(services), time.Time{}))
	b := w.backends["nginx_10000"]
	if len(w.backends) != 1 || b == nil {
		t.Fatalf("want the one backend nginx_10000:\n%s", w.text())
	}
	var got []string
	for _, s := range b.Servers {
		got = append(got, serverLine(s))
	}
	// One new task can stand in for one of the three old ones, the one with the smallest id.
	want := []string{
		"server 10_0_1_147_25724 10.0.1.147:25724 id 9975 check inter 3s fall 11",
		"server 10_0_6_25_16916 10.0.6.25:16916 id 14685 check inter 3s fall 11",
		"server 10_0_6_25_23336 10.0.6.25:23336 id 14676 check inter 3s fall 11",
		"server 10_0_6_25_31184 10.0.6.25:31184 id 27565 check inter 3s fall 11 weight 0",
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
