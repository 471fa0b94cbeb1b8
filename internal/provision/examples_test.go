package provision

import (
	"testing"

	"bridged/examples"
)

func builtin(t testing.TB) *Manifests {
	t.Helper()
	m, err := BuiltinManifests()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestExamplesAreValid(t *testing.T) {
	for name, text := range map[string]string{"dev": examples.Dev, "prod": examples.Prod, "photon": examples.Photon} {
		_, problems := Load(name+".yaml", []byte(text), builtin(t))
		for i := range problems {
			if problems[i].Code != "W05" {
				t.Error(problems[i].String())
			}
		}
	}
}
