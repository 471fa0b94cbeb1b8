package haproxy

import (
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestIsolateFindsEveryCulpritInFewChecks(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 2, 3, 10, 100, 1000} {
		for culprits := 1; culprits <= min(n, 4); culprits++ {
			suspects := make([]string, n)
			for i := range suspects {
				suspects[i] = fmt.Sprintf("/app-%04d", i)
			}
			var want []string
			for _, i := range random.Perm(n)[:culprits] {
				want = append(want, suspects[i])
			}
			slices.Sort(want)
			asked := 0
			got, err := isolate(suspects, func(in []string) (bool, error) {
				asked++
				return !slices.ContainsFunc(in, func(s string) bool { return slices.Contains(want, s) }), nil
			})
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("n=%d: got %v, %v; want %v", n, got, err, want)
			}
			if most := 1 + 2*culprits*bits.Len(uint(n)); asked > most {
				t.Errorf("n=%d culprits=%d: asked %d times, want at most %d", n, culprits, asked, most)
			}
		}
	}
}

func TestIsolateBlamesTheLaterOfTwoThatFailTogether(t *testing.T) {
	got, err := isolate([]string{"a", "b", "c", "d", "e"}, func(in []string) (bool, error) {
		return !slices.Contains(in, "b") || !slices.Contains(in, "d"), nil
	})
	if err != nil || !slices.Equal(got, []string{"d"}) {
		t.Errorf("got %v, %v; want d", got, err)
	}
}

func TestIsolateKnowsWhenNoAppIsToBlame(t *testing.T) {
	_, err := isolate([]string{"a"}, func([]string) (bool, error) { return false, nil })
	if !errors.Is(err, errNobody) {
		t.Errorf("error %v, want errNobody", err)
	}
}

func TestWithoutTakesOutLinesThatWouldDangle(t *testing.T) {
	cfg := &Config{
		Frontends: map[string]*Section{
			"shared": {Kind: KindFrontend, Name: "shared",
				Lines:      []string{"acl a", "acl b", "use_backend bad if a", "use_backend ok if b", "default_backend bad"},
				LineOwners: []string{"/bad", "/ok", "", "", ""}},
			"mine": {Kind: KindFrontend, Name: "mine", Owner: "/bad"},
		},
		Backends: map[string]*Backend{"bad": tcpApp("bad", 1), "ok": tcpApp("ok", 2)},
	}
	got := without(cfg, nil, map[string]cut{"/bad": cutAll})
	if lines := got.Frontends["shared"].Lines; !slices.Equal(lines, []string{"acl b", "use_backend ok if b"}) {
		t.Errorf("lines %q", lines)
	}
	if got.Frontends["mine"] != nil || got.Backends["bad"] != nil || got.Backends["ok"] != cfg.Backends["ok"] {
		t.Errorf("got %+v", got)
	}
	if len(cfg.Backends) != 2 || len(cfg.Frontends["shared"].Lines) != 5 {
		t.Error("the original was changed")
	}

	// In the last good form, with the servers of now.
	good := tcpApp("bad", 1, servers(1)...)
	now := *cfg
	now.Backends = map[string]*Backend{"bad": tcpApp("bad", 9, servers(3)...), "ok": cfg.Backends["ok"]}
	got = without(&now, &Config{Backends: map[string]*Backend{"bad": good}}, map[string]cut{"/bad": cutToGood})
	if b := got.Backends["bad"]; b == nil || b.Binds[0].Port != 1 || len(b.Servers) != 3 {
		t.Errorf("last good form: %+v", got.Backends["bad"])
	}
}
