package zdd

import (
	"bytes"
	"encoding/json"
	"testing"
)

func TestSetLeavesEveryOtherByte(t *testing.T) {
	for name, tc := range map[string]struct {
		doc, value string
		path       []string
		want       string // "" for an error
	}{
		"replace":              {"{ \"a\" : 1.0e2,\n\t\"b\": [ ] }", "7", []string{"b"}, "{ \"a\" : 1.0e2,\n\t\"b\": 7 }"},
		"add-to-object":        {`{ "a":1}`, `2`, []string{"b"}, `{"b":2, "a":1}`},
		"add-to-empty":         {`{}`, `2`, []string{"b"}, `{"b":2}`},
		"add-below":            {`{"a":1}`, `"x"`, []string{"labels", "k"}, `{"labels":{"k":"x"},"a":1}`},
		"element":              {`{"p":[{"x":1},{"x":2,"y":"\u003c"}]}`, `9`, []string{"p", "1", "x"}, `{"p":[{"x":1},{"x":9,"y":"\u003c"}]}`},
		"last-of-duplicates":   {`{"a":1,"a":2}`, `3`, []string{"a"}, `{"a":1,"a":3}`},
		"escaped-name":         {`{"\u0061":1}`, `3`, []string{"a"}, `{"\u0061":3}`},
		"brace-in-a-string":    {`{"s":"{","o":{}}`, `1`, []string{"o", "x"}, `{"s":"{","o":{"x":1}}`},
		"leading-blanks":       {"\n {\"a\":1}\n", `2`, []string{"b"}, "\n {\"b\":2,\"a\":1}\n"},
		"no-such-element":      {`{"p":[1]}`, `9`, []string{"p", "1"}, ""},
		"below-a-plain-value":  {`{"p":1}`, `9`, []string{"p", "x"}, ""},
		"not-json":             {`{"p"`, `9`, []string{"p"}, ""},
		"null-in-place-of-map": {`{"labels":null}`, `9`, []string{"labels", "x"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := set([]byte(tc.doc), []byte(tc.value), tc.path...)
			if tc.want == "" {
				if err == nil {
					t.Errorf("%s, want an error", got)
				}
				return
			}
			if err != nil || string(got) != tc.want {
				t.Errorf("%s %v\nwant %s", got, err, tc.want)
			}
		})
	}
}

// What was set is found, other members have the same bytes, and the result is JSON.
func FuzzSet(f *testing.F) {
	f.Add(`{"id":"/a","labels":{"x":"y"}}`, "labels")
	f.Add(`{"a":{},"b":[1,{"c":"}"}]}`, "b")
	f.Add("{ }", "id")
	f.Fuzz(func(t *testing.T, doc, name string) {
		if !json.Valid([]byte(doc)) {
			return
		}
		before, err := elements([]byte(doc))
		if err != nil || bytes.TrimSpace([]byte(doc))[0] != '{' {
			return
		}
		out, err := set([]byte(doc), []byte(`"new"`), name)
		if err != nil {
			t.Fatalf("set %q in %s: %v", name, doc, err)
		}
		if !json.Valid(out) {
			t.Fatalf("not JSON any more: %s", out)
		}
		var key string // as it reads after it was written
		if err := json.Unmarshal(str(name), &key); err != nil {
			t.Fatal(err)
		}
		if got := find(out, key); string(got) != `"new"` {
			t.Fatalf("%q is %s in %s", name, got, out)
		}
		for _, e := range before {
			if e.name == name || e.name == key {
				continue
			}
			want := find([]byte(doc), e.name)
			if got := find(out, e.name); !bytes.Equal(got, want) {
				t.Errorf("%q became %s, was %s", e.name, got, want)
			}
		}
	})
}
