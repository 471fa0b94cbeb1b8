package bridge

import (
	"net/netip"
	"strings"
	"testing"
)

// The vectors are of marathon-lb v1.15.0 itself.
func TestServerNames(t *testing.T) {
	for _, v := range []struct {
		host, addr, name string
		id, next         int
		cookie           string
	}{
		{"1.1.1.1", "1.1.1.1:1024", "1_1_1_1_1024", 21004, 16477, "b270c76538"},
		{"a1", "10.0.0.1:31000", "a1_10_0_0_1_31000", 27020, 7997, "4b329061b5"},
		{"agent1", "1.1.1.1:1024", "agent1_1_1_1_1_1024", 28363, 22125, "d6ad48c81f"},
		{"a2", "10.0.0.2:31010", "a2_10_0_0_2_31010", 30687, 0, "6ed591aa5e"},
		{"agent-1.example.com", "[fd00::1]:80", "agent-1_example_com_fd00__1_80", 0, 0, ""},
	} {
		name := mlbServerName(v.host, netip.MustParseAddrPort(v.addr))
		if name != v.name {
			t.Errorf("name of %s at %s: got %s, want %s", v.host, v.addr, name, v.name)
		}
		used := make(map[int]bool)
		if id := mlbServerID(name, used); v.id != 0 && id != v.id {
			t.Errorf("id of %s: got %d, want %d", name, id, v.id)
		}
		if id := mlbServerID(name, used); v.next != 0 && id != v.next {
			t.Errorf("id of %s where the first is taken: got %d, want %d", name, id, v.next)
		}
		if c := mlbCookie(name); v.cookie != "" && c != v.cookie {
			t.Errorf("cookie of %s: got %s, want %s", name, c, v.cookie)
		}
	}
}

func TestModernise(t *testing.T) {
	for in, want := range map[string]string{
		`rspadd  Strict-Transport-Security:\ max-age=15768000`: `http-response set-header Strict-Transport-Security max-age=15768000`,
		`rspadd "X-A: b c"`:                        `http-response set-header X-A "b c"`,
		`reqadd X-Forwarded-Proto:\ https`:         `http-request set-header X-Forwarded-Proto https`,
		`reqirep  "^([^ :]*)\ /p/?(.*)" "\1\ /\2"`: `http-request replace-path ^/p/?(.*) /\1`,
		`rspirep "^Location: (https?://a.com(:[0-9]+)?)?(/.*)" "Location:   /r if hdr_location"`: `http-response replace-header Location ^(https?://a.com(:[0-9]+)?)?(/.*) /r`,
		`use_backend b if { req_ssl_sni -i a }`:                                                  `use_backend b if { req.ssl_sni -i a }`,
		`ssl-default-bind-options no-sslv3 no-tlsv10 no-tls-tickets`:                             `ssl-default-bind-options ssl-min-ver TLSv1.1 no-tls-tickets`,
		`option httpclose`: `option httpclose`,
	} {
		if got := modernise(in); got != want {
			t.Errorf("%s\n got %s\nwant %s", in, got, want)
		}
	}
}

func TestSubstitute(t *testing.T) {
	p := params{"name": "v", "map[key]": "k", "empty": ""}
	for in, want := range map[string]string{
		"{name}":                            "v",
		"a {name} {{x}} b":                  "a v {x} b",
		"{map[key]}":                        "k",
		"{empty}":                           "",
		"}}{{":                              "}{",
		"{{{name}}}":                        "{v}",
		"no fields":                         "no fields",
		"{none}":                            "!field {none} is not known",
		"{name!r}":                          "!conversions",
		"{name:>10}":                        "!conversions",
		"{name.attr}":                       "!attributes",
		"{}":                                "!no name",
		"{0}":                               "!no name",
		"{name":                             "!not closed",
		"name}":                             "!stands alone",
		"{map[key}":                         "!form {name}",
		"{map[no]}":                         "!field {map[no]} is not known",
		"{a b}":                             "!no name",
		"{" + strings.Repeat("x", 65) + "}": "!no name",
	} {
		tpl, err := parseTemplate(in)
		got := ""
		if err == nil {
			got, err = tpl.expand(p)
		}
		if msg, ok := strings.CutPrefix(want, "!"); ok {
			if err == nil || !strings.Contains(err.Error(), msg) {
				t.Errorf("%q: got %q %v, want an error with %q", in, got, err, msg)
			}
		} else if err != nil || got != want {
			t.Errorf("%q: got %q %v, want %q", in, got, err, want)
		}
	}
}

func FuzzSubstitute(f *testing.F) {
	for _, s := range []string{"{name}", "{{", "}}", "{a[b]}", "{a[b}", "{{{a}}}", "{", "}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		tpl, err := parseTemplate(text)
		if err != nil {
			return
		}
		// A text without fields is itself, but for doubled braces.
		out, err := tpl.expand(nil)
		if err == nil && strings.NewReplacer("{{", "{", "}}", "}").Replace(text) != out {
			t.Errorf("%q expands to %q", text, out)
		}
	})
}
