package provision

import (
	"strings"
	"testing"

	"bridged/examples"
)

func TestEditsKeepEverythingElse(t *testing.T) {
	tests := []struct {
		name, text, old, new string
		edit                 func([]byte) ([]byte, error)
	}{
		{"count-with-comment", examples.Dev, "count: 5  ", "count: 20  ", setCount("slave", 20)},
		{"count-in-flow-style", "spec:\n  groups: [{name: a, count: 3}, {name: b, count: 4}] # two\n", "count: 4", "count: 12", setCount("b", 12)},
		{"count-quoted", "spec: {groups: [{count: '3', name: a}]}\n", "'3'", "5", setCount("a", 5)},
		{"count-after-umlauts", "spec:\n  groups:\n  - {name: a, note: \"äöü\", count: 3} # größer\n", "count: 3", "count: 4", setCount("a", 4)},
		{"windows-line-ends", "spec:\r\n  groups:\r\n  - name: a\r\n    count: 3\r\n", "count: 3", "count: 4", setCount("a", 4)},
		{"distro-plain", examples.Dev, "distro: mesos-1.11", "distro: mesos-1.5", func(b []byte) ([]byte, error) { return SetDistro(b, "mesos-1.5") }},
		{"distro-quoted", "spec:\n  distro: \"a\" # pin\n", `"a"`, "b", func(b []byte) ([]byte, error) { return SetDistro(b, "b") }},
		{"rotate-derived", examples.Prod, "haproxyStats: derive", "haproxyStats: {derive: true, generation: 1}", rotate("haproxyStats")},
		{"rotate-again", "spec: {secrets: {a: {derive: true, generation: 9}}}\n", "generation: 9", "generation: 10", rotate("a")},
		{"rotate-reference", "spec:\n  secrets:\n    a: {env: X} # vault\n", "{env: X}", "{generation: 1, env: X}", rotate("a")},
		{"rotate-block", "spec:\n  secrets:\n    a:\n      # from the vault\n      file: x\n    b: none\n", "      file: x\n", "      generation: 1\n      file: x\n", rotate("a")},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := test.edit([]byte(test.text))
			if err != nil {
				t.Fatal(err)
			}
			if want := strings.Replace(test.text, test.old, test.new, 1); string(got) != want || want == test.text {
				t.Errorf("have:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func setCount(group string, n int) func([]byte) ([]byte, error) {
	return func(b []byte) ([]byte, error) { return SetCount(b, group, n) }
}

func rotate(name string) func([]byte) ([]byte, error) {
	return func(b []byte) ([]byte, error) { return Rotate(b, name) }
}

func TestEditsThatAreRefused(t *testing.T) {
	for _, test := range []struct {
		text, want string
		edit       func([]byte) ([]byte, error)
	}{
		{examples.Dev, `there is no group "salve"; did you mean slave?`, setCount("salve", 3)},
		{"spec: {groups: [{name: a}]}", "spec.groups[0].count: is missing", setCount("a", 3)},
		{"spec: {groups: [{name: a, count: &n 3}, {name: b, count: *n}]}", "edit it by hand", setCount("a", 4)},
		{"spec: {groups: [{name: a, count: &n 3}, {name: b, count: *n}]}", "edit it by hand", setCount("b", 4)},
		{"", "the blueprint is empty", setCount("a", 4)},
		{examples.Prod, "the manifest stands in the blueprint itself", func(b []byte) ([]byte, error) { return SetDistro(b, "x") }},
		{examples.Prod, "spec.secrets.marathonAuth: is not a secret that can be rotated", rotate("marathonAuth")},
	} {
		if _, err := test.edit([]byte(test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("error %v, want %q", err, test.want)
		}
	}
}
