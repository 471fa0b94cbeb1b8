package guest_test

import (
	"testing"

	"golang.org/x/tools/txtar"

	"bridged/internal/provision/guest"
)

func BenchmarkRender(b *testing.B) {
	a, err := txtar.ParseFile("testdata/debian.txtar")
	if err != nil {
		b.Fatal(err)
	}
	want := expand(b, "debian", a.Files[0].Data)
	secret := secretsOf(want)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := guest.Render(want, want.Nodes[0], secret); err != nil {
			b.Fatal(err)
		}
	}
}
