package haproxy

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bridged/internal/haproxy/haproxytest"
)

// capsOf are the capabilities of an installed HAProxy.
func capsOf(t testing.TB, bin haproxytest.Binary) Capabilities {
	t.Helper()
	v, err := ParseVersion(bin.Version)
	if err != nil {
		t.Fatal(err)
	}
	return CapabilitiesOf(v)
}

func newRenderer(t testing.TB, text string, caps Capabilities) *Renderer {
	t.Helper()
	r, err := NewRenderer(text, caps)
	if err != nil {
		t.Fatal(err)
	}
	r.cpus = 2 // equal text on every machine
	return r
}

// tcpApp is an app as the default dialect publishes it.
func tcpApp(name string, port uint16, servers ...Server) *Backend {
	return &Backend{
		Section: Section{Kind: KindBackend, Name: name, Mode: TCP, Owner: "/" + name,
			Binds: []Bind{{Addr: "127.0.0.1", Port: port}}},
		Balance: "leastconn", ServerOptions: "check inter 10s fastinter 1s", Servers: servers,
	}
}

func servers(n int) []Server {
	out := make([]Server, n)
	for i := range out {
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 31000)
		out[i] = Server{Name: strings.ReplaceAll(addr.String(), ":", "_"), Addr: addr, Weight: -1}
	}
	return out
}

// bigConfig is apps TCP apps with 10 servers each.
func bigConfig(apps int, socket string) *Config {
	cfg := &Config{Global: &Global{Socket: socket, MaxConn: 1000}, Backends: map[string]*Backend{}}
	for i := range apps {
		b := tcpApp(fmt.Sprintf("app-%d", i), uint16(20000+i), servers(10)...)
		cfg.Backends[b.Name] = b
	}
	return cfg
}

// everything uses each feature of the model once.
func everything(dir string) *Config {
	addr := netip.MustParseAddrPort
	return &Config{
		Global: &Global{
			Socket: filepath.Join(dir, "admin.sock"), MaxConn: 1000, OldWorkers: 4, HardStopAfter: "5m",
			KeptGlobal:   []string{"log 127.0.0.1 local0", "tune.bufsize 32768"},
			KeptDefaults: []string{"log global", "retries 2", "option httplog", "timeout client 30s"},
			KeptSections: "# the operator's\nlisten stats\n    bind 127.0.0.1:9090\n    mode http\n    timeout client 1s\n    timeout connect 1s\n    timeout server 1s\n    stats enable",
		},
		Userlists: map[string]*Section{"u": {Kind: KindUserlist, Name: "u", Lines: []string{"user a insecure-password b"}}},
		Frontends: map[string]*Section{
			"http": {Kind: KindFrontend, Name: "http", Mode: HTTP, Binds: []Bind{{Port: 18080}, {Addr: "::1", Port: 18081}},
				Lines: []string{
					"http-request set-var(txn.be) req.hdr(host),lower,map_str(%map(routes))",
					"use_backend %[var(txn.be)] if { var(txn.be) -m found }",
					"default_backend web-80",
				}},
			"range": {Kind: KindFrontend, Name: "range", Mode: TCP, Order: 1, Binds: []Bind{{Addr: "127.0.0.1", Port: 15000, PortEnd: 15009}},
				Lines: []string{
					"tcp-request connection reject unless { dst_port,map_int(%map(ports)) -m found }",
					"use_backend %[dst_port,map_int(%map(ports))]",
				}},
		},
		Backends: map[string]*Backend{
			"web-80": {Section: Section{Kind: KindBackend, Name: "web-80", Mode: HTTP, Owner: "/web", Lines: []string{"cookie SRV insert indirect nocache"}},
				Balance: "roundrobin", ServerOptions: "check",
				Servers: []Server{
					{Name: "a", Addr: addr("10.0.0.1:31000"), Weight: -1, ID: 7, Cookie: "c1"},
					{Name: "b", Addr: addr("10.0.0.2:31000"), Weight: 10, State: Drain, Options: "check port 9999"},
					{Name: "c", Addr: addr("[fd00::1]:31000"), Weight: 10, State: Maint},
				}},
			"nginx-80": tcpApp("nginx-80", 18082, servers(3)...),
		},
		Maps: map[string]*Map{
			"routes": {Kind: "str", Entries: map[string]string{"b.example": "web-80", "a.example": "web-80"}},
			"ports":  {Kind: "int", Entries: map[string]string{"15001": "nginx-80"}},
		},
	}
}

func TestRenderedFilePassesHAProxyAndHasTheShapeOfItsConfig(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		dir := t.TempDir()
		cfg := everything(dir)
		out, err := newRenderer(t, "", capsOf(t, bin)).Render(cfg)
		if err != nil {
			t.Fatal(err)
		}
		files := NewFiles(FilesOptions{Config: filepath.Join(dir, "haproxy.cfg")})
		saved, err := files.Save(t.Context(), out, "bridged-0123456789ab-1")
		if err != nil {
			t.Fatal(err)
		}
		said, err := haproxytest.Check(bin, files.Path())
		if err != nil {
			t.Fatalf("%v\n%s", err, saved.Text)
		}
		if strings.Contains(said, "WARNING") {
			t.Errorf("HAProxy warns:\n%s\n%s", said, saved.Text)
		}
		shape, err := ReadShape(string(saved.Text))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range shape.Sections {
			got = append(got, fmt.Sprintf("%s %s %d binds %v", s.Kind, s.Name, len(s.Binds), s.Servers))
		}
		slices.Sort(got)
		want := []string{
			"backend web-80 0 binds [a 10.0.0.1:31000 b 10.0.0.2:31000 c [fd00::1]:31000]",
			"frontend http 2 binds []",
			"frontend range 1 binds []",
			"listen nginx-80 1 binds [10.0.0.0_31000 10.0.0.0:31000 10.0.0.1_31000 10.0.0.1:31000 10.0.0.2_31000 10.0.0.2:31000]",
			"listen stats 1 binds []",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("shape (-want +got):\n%s\n%s", diff, saved.Text)
		}
	})
}

func TestRenderIsDeterministicAndCached(t *testing.T) {
	caps := CapabilitiesOf(Version{2, 6})
	path := func(name string) string { return "/m/" + name }
	render := func(r *Renderer, cfg *Config) (*Rendered, string) {
		t.Helper()
		out, err := r.Render(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return out, string(out.Bytes("g", path))
	}
	r := newRenderer(t, "", caps)
	first, text := render(r, everything("/d"))
	second, again := render(newRenderer(t, "", caps), everything("/d"))
	if text != again || first.Structure != second.Structure {
		t.Errorf("equal configs differ (-first +second):\n%s", cmp.Diff(text, again))
	}

	// A changed server renders its own section again and no other, and is not structure.
	cfg := everything("/d")
	out, _ := render(r, cfg)
	b := *cfg.Backends["nginx-80"]
	b.Servers = servers(4)
	cfg.Backends["nginx-80"] = &b
	changed, _ := render(r, cfg)
	if changed.Structure != out.Structure {
		t.Error("a server changed the structure")
	}
	fresh := 0
	for _, p := range changed.pieces {
		if !slices.Contains(out.pieces, p) {
			fresh++
		}
	}
	if fresh != 1 {
		t.Errorf("%d sections were rendered again, want 1", fresh)
	}
	cfg.Maps["routes"].Entries["c.example"] = "web-80"
	if more, _ := render(r, cfg); more.Structure != out.Structure {
		t.Error("a map entry changed the structure")
	}

	// Anything else is.
	for name, change := range map[string]func(*Backend){
		"balance": func(b *Backend) { b.Balance = "source" },
		"options": func(b *Backend) { b.ServerOptions = "" },
		"line":    func(b *Backend) { b.Lines = []string{"option tcplog"} },
		"bind":    func(b *Backend) { b.Binds = []Bind{{Port: 1}} },
		"mode":    func(b *Backend) { b.Mode = HTTP },
	} {
		next := *cfg.Backends["nginx-80"]
		change(&next)
		cfg.Backends["nginx-80"] = &next
		if out, _ := render(r, cfg); out.Structure == changed.Structure {
			t.Errorf("%s did not change the structure", name)
		}
	}
}

func TestValuesCannotAddLinesOrSections(t *testing.T) {
	evil := []string{"a\nbind :1", "a\r", "a\x00", "a\x00S"}
	for name, put := range map[string]func(*Config, string){
		"line":           func(c *Config, v string) { c.Backends["web-80"].Lines = []string{v} },
		"balance":        func(c *Config, v string) { c.Backends["web-80"].Balance = v },
		"server options": func(c *Config, v string) { c.Backends["web-80"].ServerOptions = v },
		"options":        func(c *Config, v string) { c.Backends["web-80"].Servers[0].Options = v },
		"cookie":         func(c *Config, v string) { c.Backends["web-80"].Servers[0].Cookie = v },
		"server name":    func(c *Config, v string) { c.Backends["web-80"].Servers[0].Name = v },
		"section name":   func(c *Config, v string) { c.Backends["web-80"].Name = v },
		"bind address":   func(c *Config, v string) { c.Frontends["http"].Binds[0].Addr = v },
		"unix bind":      func(c *Config, v string) { c.Frontends["http"].Binds[0] = Bind{Addr: "unix@" + v} },
		"bind options":   func(c *Config, v string) { c.Frontends["http"].Binds[0].Options = v },
		"map key":        func(c *Config, v string) { c.Maps["routes"].Entries[v] = "x" },
		"map value":      func(c *Config, v string) { c.Maps["routes"].Entries["x"] = v },
		"map name":       func(c *Config, v string) { c.Maps[v] = &Map{} },
		"socket":         func(c *Config, v string) { c.Global.Socket = v },
		"socket mode":    func(c *Config, v string) { c.Global.SocketMode = v },
		"kept global":    func(c *Config, v string) { c.Global.KeptGlobal = []string{v} },
		"kept defaults":  func(c *Config, v string) { c.Global.KeptDefaults = []string{v} },
		"hard stop":      func(c *Config, v string) { c.Global.HardStopAfter = v },
	} {
		for _, value := range evil {
			cfg := everything("/d")
			put(cfg, value)
			_, err := newRenderer(t, "", Capabilities{}).Render(cfg)
			if _, ok := errors.AsType[*RenderError](err); !ok {
				t.Errorf("%s = %q: error %v, want a RenderError", name, value, err)
			}
		}
	}
	cfg := everything("/d")
	cfg.Backends["web-80"].Lines = []string{"  backend other"}
	if _, err := newRenderer(t, "", Capabilities{}).Render(cfg); err == nil {
		t.Error("a line that opens a section was rendered")
	}
	cfg = everything("/d")
	delete(cfg.Maps, "routes")
	if _, err := newRenderer(t, "", Capabilities{}).Render(cfg); err == nil {
		t.Error("a map that does not exist was rendered")
	}
}

func FuzzRenderedLineStaysOneLine(f *testing.F) {
	f.Add("option tcplog", "check", "a")
	f.Add("x\ny", "check\x00", "a b")
	f.Add("%map(routes)", "%map(", "%map(nope)")
	f.Fuzz(func(t *testing.T, line, options, cookie string) {
		cfg := everything("/d")
		b := cfg.Backends["nginx-80"]
		b.Lines, b.ServerOptions, b.Servers[0].Cookie = []string{line}, options, cookie
		r, err := NewRenderer("", CapabilitiesOf(Version{3, 0}))
		if err != nil {
			t.Fatal(err)
		}
		out, err := r.Render(cfg)
		if err != nil {
			return
		}
		got := bytes.Count(out.Bytes("g", func(string) string { return "/m" }), []byte("\n"))
		b.Lines, b.ServerOptions, b.Servers[0].Cookie = []string{"x"}, "x", ""
		if options == "" {
			b.ServerOptions = ""
		}
		next := *b
		cfg.Backends["nginx-80"] = &next
		plain, err := r.Render(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if want := bytes.Count(plain.Bytes("g", func(string) string { return "/m" }), []byte("\n")); got != want {
			t.Errorf("line %q, options %q, cookie %q: %d lines, want %d", line, options, cookie, got, want)
		}
	})
}

func TestOperatorsTemplate(t *testing.T) {
	caps := CapabilitiesOf(Version{2, 6})
	for name, c := range map[string]struct {
		text string
		line int
		says string
	}{
		"only-a-block":     {text: `{{define "defaults"}}defaults bridged-tcp` + "\n" + `defaults bridged-http{{end}}`},
		"unclosed-action":  {text: "a\nb {{if", line: 2, says: "unclosed action"},
		"unknown-field":    {text: `{{define "global"}}` + "\n{{.Nope}}{{end}}", line: 2, says: "Nope"},
		"unknown-function": {text: "\n\n{{nope}}", line: 3, says: "nope"},
		"no-sections":      {text: "global\n description {{generation}}\n stats socket {{.Global.Socket}} level admin\n", says: "{{sections}}"},
		"no-generation":    {text: "global\n stats socket {{.Global.Socket}} level admin\n{{sections}}", says: "description"},
		"no-socket":        {text: "global\n description {{generation}}\n{{sections}}", says: "stats socket"},
		"whole-layout":     {text: "global\n description {{generation}}\n stats socket {{.Global.Socket}} mode 600 level admin\n{{template \"defaults\" .}}{{sections}}"},
		"nul":              {text: "\x00", says: "NUL"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewRenderer(c.text, caps)
			if c.says == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			e, ok := errors.AsType[*TemplateError](err)
			if !ok || e.Line != c.line || !strings.Contains(e.Detail, c.says) {
				t.Errorf("error %v, want line %d and %q", err, c.line, c.says)
			}
		})
	}
	r := newRenderer(t, `{{define "defaults"}}defaults bridged-tcp
    timeout connect 7s
{{end}}`, caps)
	out, err := r.Render(bigConfig(1, "/s"))
	if err != nil {
		t.Fatal(err)
	}
	if !out.Unproven {
		t.Error("text of an operator's template counts as proven")
	}
	if text := string(out.Bytes("g", nil)); !strings.Contains(text, "timeout connect 7s") || !strings.Contains(text, "listen app-0 from bridged-tcp") {
		t.Errorf("template not used:\n%s", text)
	}
}

func TestRenderGolden(t *testing.T) {
	for name, v := range map[string]Version{"2.2": {2, 2}, "2.6": {2, 6}, "3.2": {3, 2}} {
		out, err := newRenderer(t, "", CapabilitiesOf(v)).Render(everything("/run/haproxy"))
		if err != nil {
			t.Fatal(err)
		}
		got := out.Bytes("bridged-0123456789ab-1", func(name string) string { return "/etc/haproxy/" + name + ".1.map" })
		golden := filepath.Join("testdata", "render", name+".cfg")
		if *update {
			if err := os.WriteFile(golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", golden, diff)
		}
	}
}
