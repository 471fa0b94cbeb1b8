package provision

import (
	"fmt"
	"strings"
	"testing"

	"bridged/examples"
)

// large is the example with n slaves.
func large(n int) string {
	text := strings.ReplaceAll(examples.Prod, "protect: true", "protect: false")
	return strings.NewReplacer("10.20.0.0/22", "10.20.0.0/16", "10.20.0.32-10.20.3.250", "10.20.0.32-10.20.250.250", "count: 50", fmt.Sprintf("count: %d", n)).Replace(text)
}

// BenchmarkOfflinePlan reads, checks, works out, renders with the real guest
// files' size in mind, hashes and diffs.
func BenchmarkOfflinePlan(b *testing.B) {
	for _, nodes := range []int{100, 1000} {
		b.Run(fmt.Sprintf("nodes=%d", nodes), func(b *testing.B) {
			text := []byte(large(nodes))
			manifests := builtin(b)
			b.ReportAllocs()
			for b.Loop() {
				c, problems := Load("b.yaml", text, manifests)
				if err := problems.Err(); err != nil {
					b.Fatal(err)
				}
				w, err := Expand(c, manifests, asked)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := Diff(&Inventory{}, w, DiffOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDiffNothing is a plan without changes.
func BenchmarkDiffNothing(b *testing.B) {
	m, w := newModel("prod"), wantOf(b, large(1000))
	m.converge(b, w, DiffOptions{})
	have, _ := m.Inventory(b.Context(), ScopeCluster)
	b.ReportAllocs()
	for b.Loop() {
		plan, err := Diff(have, w, DiffOptions{})
		if err != nil || !plan.Empty() {
			b.Fatal(err, plan.Summary())
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	manifests := builtin(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, problems := Load("b.yaml", []byte(examples.Prod), manifests); problems.Err() != nil {
			b.Fatal(problems)
		}
	}
}
