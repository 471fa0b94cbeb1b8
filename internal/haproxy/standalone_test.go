package haproxy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bridged/internal/haproxy/haproxytest"
)

func TestStandaloneFilePassesHAProxyOnABareMachine(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		for _, withDir := range []bool{false, true} {
			dir := t.TempDir()
			cfg := everything("/run/nowhere")
			cfg.Global.SocketMode = "mode 660 group no-such-group"
			cfg.Global.KeptGlobal = []string{"user no-such-user", "group no-such-group", "chroot /no/such/dir", "log 127.0.0.1 local0"}
			cfg.Frontends["http"].Binds = append(cfg.Frontends["http"].Binds, Bind{Port: 443, Options: "ssl crt /no/such.pem"})
			cfg.Frontends["http"].Lines = []string{
				"http-request set-var(txn.host) req.hdr(host),field(1,:),lower",
				"http-request redirect scheme https code 301 if !{ ssl_fc } { var(txn.host),map_beg(%map(routes)) -m found }",
				"http-request set-var(txn.be) var(txn.host),map_beg(%map(routes)) if !{ var(txn.be) -m found }",
				"use_backend %[var(txn.be)] if { var(txn.be) -m found }",
				"use_backend %[var(txn.host),map_str(%map(routes),web-80)]",
			}
			mapDir := ""
			if withDir {
				mapDir = dir
			}
			text, files, err := newRenderer(t, "", capsOf(t, bin)).Standalone(cfg, mapDir)
			if err != nil {
				t.Fatal(err)
			}
			for path, content := range files {
				if err := os.WriteFile(path, content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			file := filepath.Join(dir, "haproxy.cfg")
			if err := os.WriteFile(file, text, 0o600); err != nil {
				t.Fatal(err)
			}
			cfg.Frontends["range"].Lines = nil
			if _, err := haproxytest.Check(bin, file); err != nil {
				t.Errorf("%v\n%s", err, text)
			}
			if strings.Contains(string(text), "no-such") || strings.Contains(string(text), ":443") {
				t.Errorf("names what is not there:\n%s", text)
			}
			if !withDir && !strings.Contains(string(text), "use_backend web-80 if { var(txn.host) -m str -- b.example }") {
				t.Errorf("maps are not written as rules:\n%s", text)
			}
		}
	})
}

func TestJoinedSectionFrom33(t *testing.T) {
	cfg := everything("/d")
	delete(cfg.Backends, "nginx-80")
	front := &Section{Kind: KindFrontend, Name: "nginx-80", Mode: TCP, Binds: []Bind{{Port: 18082}}, Lines: []string{"option tcplog", "use_backend nginx-80"}}
	back := tcpApp("nginx-80", 0, servers(2)...)
	back.Binds = nil
	cfg.Frontends["nginx-80"], cfg.Backends["nginx-80"] = front, back
	r := newRenderer(t, "", CapabilitiesOf(Version{3, 3}))
	for range 2 { // the second from the cache
		out, err := r.Render(cfg)
		if err != nil {
			t.Fatal(err)
		}
		want := "listen nginx-80 from bridged-tcp\n    mode tcp\n    bind *:18082\n    balance leastconn\n    option tcplog\n    default-server check"
		text := string(out.Bytes("g", func(n string) string { return n }))
		if !strings.Contains(text, want) || strings.Contains(text, "frontend nginx-80") || strings.Contains(text, "backend nginx-80") {
			t.Errorf("want one listen section:\n%s", text)
		}
	}
	out, err := newRenderer(t, "", CapabilitiesOf(Version{3, 0})).Render(cfg)
	if err != nil {
		t.Fatal(err)
	}
	text := string(out.Bytes("g", func(n string) string { return n }))
	if !strings.Contains(text, "frontend nginx-80 from") || !strings.Contains(text, "\nbackend nginx-80 from") {
		t.Errorf("want two sections before 3.3:\n%s", text)
	}
}
