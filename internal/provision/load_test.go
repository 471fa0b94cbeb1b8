package provision

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"bridged/examples"
)

// FuzzLoad: whatever the bytes, Load ends, and says something with a remedy
// about what it refuses; what it accepts can be worked out and planned.
func FuzzLoad(f *testing.F) {
	for _, text := range []string{examples.Dev, examples.Prod, examples.Photon} {
		f.Add([]byte(text))
	}
	if archive, err := txtar.ParseFile("testdata/bad.txtar"); err == nil {
		f.Add(archive.Files[0].Data)
	}
	f.Add([]byte("a: &a [*a, *a]"))
	f.Add([]byte("a: &a {b: &b [1], c: [*b, *b]}\nd: [*a, *a]"))
	f.Add([]byte("? [a]\n: b"))
	f.Add([]byte("spec: {groups: [{count: 1e9}, null, 3]}"))
	f.Add([]byte("\xff\xfe"))
	manifests := builtin(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		c, problems := Load("f.yaml", text, manifests)
		for i := range problems {
			if problems[i].What == "" || problems[i].Remedy == "" || problems[i].Code == "" {
				t.Errorf("a problem says too little: %s", problems[i].String())
			}
			if strings.ContainsAny(problems[i].Remedy, "\n") {
				t.Errorf("a remedy has two lines: %q", problems[i].Remedy)
			}
		}
		if problems.Err() != nil {
			return
		}
		w, err := Expand(c, manifests, asked)
		if err != nil {
			t.Fatalf("valid, and can't be expanded: %v", err)
		}
		if _, err := Diff(&Inventory{}, w, DiffOptions{}); err != nil {
			t.Fatalf("valid, and can't be planned: %v", err)
		}
	})
}

func TestAliasesDoNotMultiply(t *testing.T) {
	var b strings.Builder
	b.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
	}
	text := strings.Replace(examples.Dev, "  groups:\n", "  services: {bridged: {config: {log: *a11}}}\n  groups:\n", 1)
	_, problems := Load("b.yaml", []byte(b.String()+text), builtin(t))
	if err := problems.Err(); err == nil || !strings.Contains(err.Error(), "do not multiply aliases") {
		t.Errorf("error %v, want one about aliases", err)
	}
}

func TestSecretsResolveOnceAndOnlyWhenUsed(t *testing.T) {
	t.Setenv("BRIDGED_CLUSTER_KEY", "0123456789abcdef0123456789abcdef")
	c, problems := Load("prod.yaml", []byte(examples.Prod), builtin(t))
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	r := new(Resolver)
	secret := r.Secrets(t.Context(), c)
	first, err := secret("haproxyStats")
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := secret("haproxyStats"); again != first || len(first) != 24 {
		t.Errorf("derived %q and then %q, want the same 24 letters", first, again)
	}
	if other, _ := secret("mesosCredential"); other == first {
		t.Error("two secrets are equal")
	}
	c.Spec.Secrets.HAProxyStats.Generation = 1
	if rotated, _ := secret("haproxyStats"); rotated == first {
		t.Error("the next generation of a secret is the same")
	}
	if _, err := secret("marathonAuth"); err == nil || !strings.Contains(err.Error(), "no such secret") {
		t.Errorf("error %v, want no such secret", err)
	}
	placeholder, err := c.Placeholder("haproxyStats")
	if err != nil || placeholder != "<secret:haproxyStats#1>" {
		t.Errorf("placeholder %q, %v", placeholder, err)
	}
}

func TestReferencesThatFailNameThemselves(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip("no sh")
	}
	r := &Resolver{Dir: t.TempDir()}
	for _, test := range []struct {
		value Value
		want  string
	}{
		{Value{Env: "SURELY_NOT_SET"}, "{env: SURELY_NOT_SET}: the environment variable SURELY_NOT_SET is not set"},
		{Value{File: "none"}, "{file: none}: open "},
		{Value{Exec: []string{"sh", "-c", "echo hunter2; echo no vault >&2; exit 3"}}, "{exec: [sh, …]}: exit status 3: no vault"},
	} {
		_, err := r.Resolve(t.Context(), test.value)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("error %v, want %q", err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error holds the secret: %v", err)
		}
	}
	if got, err := r.Resolve(t.Context(), Value{Exec: []string{"sh", "-c", "echo hunter2"}}); err != nil || got != "hunter2" {
		t.Errorf("exec gave %q, %v", got, err)
	}
}
