package bridge

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"bridged/internal/discovery"
	"bridged/internal/haproxy"
	files "bridged/templates"
)

// nasty are pieces that values are made of: what ends a word, a line, a quote, a
// command, a map entry, a section or a number, and what labels take.
var nasty = []string{"\n", "\r", "\x00", "\t", " ", "#", "\"", "'", "\\", "$", "${HOME}", "%", "%map(routes)", "%[src]", "{", "}", "{{", ";",
	"<<", ">", "|", "`", "\u00a0", "é", "\x80", "\xff", "\x1b", ",", ":", "/", "..", "-", "*", "?",
	"global", "backend evil", "server evil 6.6.6.6:6", "bind :6666", "crt /etc/shadow", "user root", "if TRUE", "daemon", "stats socket /tmp/x",
	"roundrobin", "leastconn", "uri", "hdr(x)", "a.com", "*.a.com", "/x", "-i", "10.0.0.0/8", "10.0.0.1", "::1", "unix@/tmp/x", "abns@x",
	"80", "65536", "-1", "1", "true", "http", "tcp", "h2", "v2", "30s", "/etc/ssl/a.pem", "/etc/ssl/../shadow", "accept-proxy", "ssl",
	"alpn", "verify", "realm", "bob", "$1$abc$aaaaaaaaaaaaaaaaaaaaaa", "realm:bob:$1$abc$aaaaaaaaaaaaaaaaaaaaaa"}

// FuzzLabel puts one label with any value on one app beside an innocent one.
func FuzzLabel(f *testing.F) {
	for i := range portLabels {
		for n, v := range nasty {
			// One form each keeps a plain test run short; fuzzing finds the others.
			form := []string{v, "a.com" + v, "/x" + v + "80", "1" + v}[(i+n)%4]
			f.Add(uint8(i), form, (i+n)%8 < 4)
		}
		for _, v := range nasty {
			switch portLabels[i].name {
			case "BIND_ADDR":
				f.Add(uint8(i), "abns@x"+v, true)
			case "BIND_OPTIONS":
				for n, w := range []string{"alpn h2", "ciphers A", "ssl-min-ver TLSv1.2", "verify none", "backlog 1"} {
					f.Add(uint8(i), w+v, n%2 == 0)
				}
			case "AUTH":
				f.Add(uint8(i), "realm"+v+":bob:$1$abc$aaaaaaaaaaaaaaaaaaaaaa", true)
				f.Add(uint8(i), "realm:bob"+v+":$1$abc$aaaaaaaaaaaaaaaaaaaaaa", true)
				f.Add(uint8(i), "realm:bob:$1$abc$aaaaaaaaaaaaaaaaaaaaaa"+v, false)
			}
		}
		f.Add(uint8(i), strings.Repeat("x", 64<<10), true)
		f.Add(uint8(i), strings.Repeat("a.com,", 1000), false)
	}
	h := newHarness(f)
	f.Fuzz(func(t *testing.T, label uint8, value string, mlb bool) {
		h.try(t, map[string]string{portLabels[int(label)%len(portLabels)].name: value}, mlb)
	})
}

// Several labels at once, each made of nasty pieces and of what it takes.
func TestRandomLabels(t *testing.T) {
	h := newHarness(t)
	rng := rand.New(rand.NewPCG(42, 1))
	for range 600 {
		labels := make(map[string]string)
		for range 1 + rng.IntN(4) {
			var v strings.Builder
			for range 1 + rng.IntN(3) {
				v.WriteString(nasty[rng.IntN(len(nasty))])
				if rng.IntN(3) == 0 {
					v.WriteByte(' ')
				}
			}
			labels[portLabels[rng.IntN(len(portLabels))].name] = v.String()
		}
		h.try(t, labels, rng.IntN(2) == 0)
	}
}

// harness renders and judges what labels do.
type harness struct {
	renderer *haproxy.Renderer
	quiet    map[bool]map[string]string // by dialect: sections of the innocent app without the other
}

func newHarness(t testing.TB) *harness {
	t.Helper()
	r, err := haproxy.NewRenderer(files.HAProxy, haproxy.CapabilitiesOf(haproxy.Version{Major: 2, Minor: 6}))
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{renderer: r, quiet: make(map[bool]map[string]string)}
	for _, mlb := range []bool{false, true} {
		w := newWorld()
		w.merge(NewTranslator(fuzzOptions(mlb)).Apply(w.update(fuzzWorld(nil)), time.Time{}))
		h.quiet[mlb] = sectionsOf(h.render(t, w))
	}
	return h
}

func fuzzOptions(mlb bool) TranslateOptions {
	o := TranslateOptions{HTTPBinds: []haproxy.Bind{{Addr: "*", Port: 80}}, CertDir: "/etc/ssl"}
	if mlb {
		o.Dialect = DialectMarathonLB
		o.MarathonLB.AppIDBind = haproxy.Bind{Addr: "*", Port: 9091}
	}
	return o
}

// fuzzWorld is an innocent app and, where labels are given, one that has them.
func fuzzWorld(labels map[string]string) []*discovery.Service {
	app := func(id string, port uint16, labels map[string]string) *discovery.Service {
		a := &discovery.App{ID: id, Version: "1", Labels: make(map[string]string), Ports: []discovery.Port{{Service: port, Protocol: "tcp"}},
			LastConfigChange: map[string]string{"/innocent": "1", "/suspect": "2"}[id],
			Checks:           []discovery.HealthCheck{{Protocol: "HTTP", Path: "/h"}}}
		if id == "/suspect" {
			a.Labels["HAPROXY_0_VHOST"] = "suspect.com" // what many labels need to do anything
		}
		for name, v := range labels {
			a.Labels["HAPROXY_0_"+name] = v
		}
		return &discovery.Service{Key: discovery.Key{App: id}, App: a, Port: a.Ports[0], Tasks: []discovery.Task{{ID: "t", App: id, Host: "agent",
			Addr: netip.MustParseAddrPort("10.0.0.1:31000"), State: discovery.Running, Health: discovery.Alive, Ready: true}}}
	}
	world := []*discovery.Service{app("/innocent", 10001, map[string]string{"VHOST": "innocent.com"})}
	if labels != nil {
		world = append(world, app("/suspect", 10002, labels))
	}
	return world
}

// render writes the file as HAProxy would get it.
func (h *harness) render(t testing.TB, w *world) string {
	t.Helper()
	cfg := &haproxy.Config{Global: &haproxy.Global{Socket: "/run/haproxy/admin.sock", MaxConn: 1000, Threads: 1},
		Userlists: w.userlists, Frontends: w.frontends, Backends: w.backends, Maps: make(map[string]*haproxy.Map)}
	for name, entries := range w.maps {
		cfg.Maps[name] = &haproxy.Map{Kind: "str", Entries: entries}
	}
	out, err := h.renderer.Render(cfg)
	if err != nil {
		t.Fatalf("what a translator writes does not render: %v", err)
	}
	for name, text := range out.Maps {
		lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
		if len(w.maps[name]) > 0 && len(lines) != len(w.maps[name]) {
			t.Fatalf("map %s has %d lines for %d entries:\n%s", name, len(lines), len(w.maps[name]), text)
		}
		for _, l := range lines {
			if l != "" && (len(strings.Fields(l)) != 2 || strings.ContainsAny(l, ";#<>\\\"'")) {
				t.Fatalf("map %s: line %q", name, l)
			}
		}
	}
	return string(out.Bytes("g", func(name string) string { return "/maps/" + name }))
}

// try applies the labels and checks that nothing but their own places changed.
func (h *harness) try(t *testing.T, labels map[string]string, mlb bool) {
	w := newWorld()
	tr := NewTranslator(fuzzOptions(mlb))
	w.merge(tr.Apply(w.update(fuzzWorld(labels)), time.Time{}))
	text := h.render(t, w)

	shape, err := haproxy.ReadShape(text)
	if err != nil {
		t.Fatalf("labels %q: %v\n%s", labels, err, text)
	}
	if diff := gocmp.Diff(wantShape(w), gotShape(shape)); diff != "" {
		t.Fatalf("labels %q give another shape (-meant +parsed)\n%s\n%s", labels, diff, text)
	}
	sections := sectionsOf(text)
	for name, quiet := range h.quiet[mlb] {
		if sections[name] != quiet {
			t.Fatalf("labels %q of one app changed section %q:\n%s\nwas\n%s", labels, name, sections[name], quiet)
		}
	}
	for name, body := range sections {
		if _, ok := h.quiet[mlb][name]; !ok {
			checkLines(t, labels, name, body)
		}
	}
	for _, r := range tr.Rejected() {
		if strings.ContainsAny(r.Detail, "\n\r\x00") {
			t.Fatalf("labels %q: detail %q has more than a line", labels, r.Detail)
		}
	}
}

// lineHeads are the beginnings of every line that labels may lead to, with the number of
// words that may follow.
var lineHeads = map[string]int{
	"mode": 1, "bind": 64, "balance": 6, "default-server": 32, "server": 32, "use_backend": 1, "user": 3,
	"http-request auth realm": 5, "http-request set-header X-Forwarded-Port": 1, "http-request set-header Host": 1,
	"http-request add-header X-Forwarded-Proto": 5, "http-request replace-path": 2, "http-request allow": 2, "http-request deny": 0,
	"http-response set-header Strict-Transport-Security": 1, "http-response replace-header Location": 2,
	"option forwardfor": 0, "option httpchk GET": 1, "timeout check": 1, "acl is_root path": 2, "acl is_domain": 3 + maxVhosts,
	"redirect code 301 location": 4, "compression algo": 1, "compression type": 8, "acl network_allowed src": 1,
	"tcp-request content accept": 2, "tcp-request content reject": 0, "cookie": 4, "dynamic-cookie-key": 1,
}

// checkLines holds every line of a section that an app brought to the heads above.
func checkLines(t *testing.T, labels map[string]string, name, body string) {
	t.Helper()
	for line := range strings.Lines(body) {
		words, ok := splitWords(strings.TrimSpace(line))
		if !ok {
			t.Fatalf("labels %q: line %q of %s is not made of plain words", labels, line, name)
		}
		if len(words) == 0 {
			continue
		}
		found := false
		for n := min(4, len(words)); n > 0 && !found; n-- {
			rest, ok := lineHeads[strings.Join(words[:n], " ")]
			found = ok && len(words)-n <= rest
		}
		if !found {
			t.Fatalf("labels %q: section %s has a line that no label is for: %q", labels, name, line)
		}
	}
}

// splitWords reads a line as HAProxy does. ok is false where the line has what only a
// value that was not validated brings: control bytes, comments, or quotes that do not
// open and close a whole word.
func splitWords(line string) (words []string, ok bool) {
	for line != "" {
		line = strings.TrimLeft(line, " ")
		if rest, quoted := strings.CutPrefix(line, `"`); quoted {
			word, after, closed := strings.Cut(rest, `"`)
			if !closed || after != "" && after[0] != ' ' || strings.ContainsAny(word, "\\$") {
				return nil, false
			}
			words, line = append(words, word), after
			continue
		}
		word, after, _ := strings.Cut(line, " ")
		if strings.ContainsFunc(word, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '"' || r == '\'' || r == '#' }) {
			return nil, false
		}
		if word != "" {
			words = append(words, word)
		}
		line = after
	}
	return words, true
}

// sectionsOf cuts a file into its proxies and userlists: opening line → body.
func sectionsOf(text string) map[string]string {
	sections := make(map[string]string)
	name := ""
	for line := range strings.Lines(text) {
		if word, _, _ := strings.Cut(line, " "); word == "frontend" || word == "backend" || word == "listen" || word == "userlist" {
			name = strings.TrimSpace(line)
			sections[name] = ""
			continue
		}
		if !strings.HasPrefix(line, " ") && strings.TrimSpace(line) != "" {
			name = ""
		}
		if name != "" {
			sections[name] += line
		}
	}
	return sections
}

func wantShape(w *world) []string {
	var list []string
	for name, f := range w.frontends {
		list = append(list, "frontend "+name+binds(f.Binds))
	}
	for name, b := range w.backends {
		kind := "backend "
		if len(b.Binds) > 0 {
			kind = "listen "
		}
		s := kind + name + binds(b.Binds)
		for _, server := range b.Servers {
			s += " server " + server.Name + " " + server.Addr.String()
		}
		list = append(list, s)
	}
	slices.Sort(list)
	return list
}

func gotShape(shape haproxy.Shape) []string {
	var list []string
	for _, s := range shape.Sections {
		text := string(s.Kind) + " " + s.Name + binds(s.Binds)
		for _, server := range s.Servers {
			text += " server " + server
		}
		list = append(list, text)
	}
	slices.Sort(list)
	return list
}

func binds(list []haproxy.Bind) string {
	text := ""
	for _, b := range list {
		text += fmt.Sprintf(" bind %s:%d", b.Addr, b.Port)
	}
	return text
}

// A value that was refused is nowhere: not in the configuration, not in the reasons.
func TestRejectedValueIsNotRepeated(t *testing.T) {
	const marker = "zqzq"
	for _, l := range portLabels {
		for _, mlb := range []bool{false, true} {
			tr, w := NewTranslator(fuzzOptions(mlb)), newWorld()
			w.merge(tr.Apply(w.update(fuzzWorld(map[string]string{l.name: marker + "\n\"" + marker})), time.Time{}))
			if text := w.text() + fmt.Sprint(tr.Rejected()) + fmt.Sprint(maps.Keys(w.maps)); strings.Contains(text, marker) {
				t.Errorf("label %s: the value is repeated:\n%s", l.name, text)
			}
		}
	}
}
