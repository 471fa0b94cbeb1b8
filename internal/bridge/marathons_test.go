package bridge

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseMarathons(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, text string
		want       []string
		err        []string
	}{
		{"one-per-line", "m1:8080\nm2:8080\n", []string{"http://m1:8080", "http://m2:8080"}, nil},
		{"comments-and-blank-lines", "# masters\n\n  m1:8080   # first\n\t\n", []string{"http://m1:8080"}, nil},
		{"windows-line-ends", "m1:8080\r\nm2:8080\r\n", []string{"http://m1:8080", "http://m2:8080"}, nil},
		{"no-line-end", "m1:8080", []string{"http://m1:8080"}, nil},
		{"url", "https://m1:8443/marathon/\n", []string{"https://m1:8443/marathon"}, nil},
		{"ipv6", "[2001:db8::1]:8080\n", []string{"http://[2001:db8::1]:8080"}, nil},
		{"twice", "m1:8080\nm1:8080\n", []string{"http://m1:8080"}, nil},
		{"empty", "# nobody\n", nil, []string{"F: lists no Marathon; add a line host:port"}},
		{"two-on-a-line", "m1:8080 m2:8080\n", nil, []string{`F:1: want one host:port such as m1.example.com:8080, have "m1:8080 m2:8080"`}},
		{"bad-port", "m1:80800\nm2:8080\nm3:x\n", nil, []string{
			`F:1: want a port from 1 to 65535, have "m1:80800"`,
			`F:3: want a URL such as http://m1:8080, have one that cannot be parsed`,
		}},
		{"control-characters", "m1\x00:8080\n", nil, []string{`F:1: want one host:port such as m1.example.com:8080, have "m1\x00:8080"`}},
		{"a-log-file", strings.Repeat("x", 5000), nil, []string{"F:1: a line of more than 1024 bytes; is this the right file?"}},
		{"too-many", manyHosts(257), nil, []string{"F:257: more than 256 Marathons; is this the right file?"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ParseMarathons("F", strings.NewReader(tc.text))
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("urls (-want +got):\n%s", diff)
			}
			var lines []string
			if err != nil {
				lines = strings.Split(err.Error(), "\n")
			}
			if diff := cmp.Diff(tc.err, lines); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func manyHosts(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "m%d:8080\n", i)
	}
	return b.String()
}

// Whatever is in the file, what comes out of it are URLs that can be asked, and every
// problem is one line.
func FuzzParseMarathons(f *testing.F) {
	f.Add("m1:8080\n# c\nm2:8080")
	f.Add("http://u:p@h/\n")
	f.Add("[::1]:80\r\n\x00")
	f.Add("%zz:1\nhttp://[::1%25lo]:1/")
	f.Fuzz(func(t *testing.T, text string) {
		urls, err := ParseMarathons("F", strings.NewReader(text))
		if (err == nil) == (len(urls) == 0) {
			t.Errorf("urls %q with error %v", urls, err)
		}
		for _, u := range urls {
			again, err := marathonURL(u)
			if err != nil || again != u {
				t.Errorf("%q does not read as itself: %q, %v", u, again, err)
			}
		}
		if err == nil {
			return
		}
		for line := range strings.Lines(err.Error()) {
			if !strings.HasPrefix(line, "F") {
				t.Errorf("a line that does not name the file: %q", line)
			}
		}
	})
}
