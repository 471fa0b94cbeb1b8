package guest

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// FuzzYAML: what a YAML parser reads back is what was written, whatever the text.
func FuzzYAML(f *testing.F) {
	for _, s := range []string{
		"", "plain", "no", "Off", "~", "1.0", "1e3", "0x1f", "10:20", "2024-01-01", "- a", "a: b", "a #b", "#!/bin/sh\nx\n", " led\n", "two\n\nlines",
		"tail\n\n", "tab\there\n", "crlf\r\nx", "caf\u00e9", "\u2028", "quote\"d", "{a}", "[a]", "&a", "*a", "!a", "%a", "@a", "`a", "a\\b", "=", "<<", "---", "...", "a\n  indented\nb", "\n", "/path/x", "\x7f", "\u0085", "\ufeff", "\uffff",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var inner, doc ordered
		inner.set("text", s)
		inner.set("list", []string{s, "x", s})
		inner.set("empty", []string{})
		doc.set("top", inner)
		doc.set("flow", [][]string{{"sh", "-c", s}, {s}})
		doc.set("maps", []ordered{inner, inner})
		doc.set("last", s)
		text := doc.appendTo(nil)
		var have map[string]any
		if err := yaml.Unmarshal(text, &have); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if !valid(s) {
			t.Skip("JSON replaces what is not UTF-8")
		}
		mapping := map[string]any{"text": s, "list": []any{s, "x", s}, "empty": []any{}}
		want := map[string]any{
			"top": mapping, "flow": []any{[]any{"sh", "-c", s}, []any{s}}, "maps": []any{mapping, mapping}, "last": s,
		}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("(-want +got):\n%s\n%s", diff, text)
		}
	})
}

func valid(s string) bool {
	for _, r := range s {
		if r == 0xfffd {
			return false
		}
	}
	return true
}
