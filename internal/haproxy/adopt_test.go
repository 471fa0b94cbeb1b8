package haproxy

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bridged/internal/haproxy/haproxytest"
)

// debianConfig is the haproxy.cfg of Debian's package with a section of an operator.
const debianConfig = `# site configuration
global
	log /dev/log	local0
	log /dev/log	local1 notice
	stats socket /run/haproxy/admin.sock mode 660 level admin user root
	stats socket /run/haproxy/monitor.sock mode 666 level user
	stats timeout 30s
	daemon
	nbproc 1

	# Default SSL material locations
	ca-base /etc/ssl/certs

defaults
	log	global
	mode	http
	option	httplog
	option	dontlognull
        timeout connect 5000
        timeout client  50000
        timeout server  50000

# our status page
listen status
	bind 127.0.0.1:19090
	stats enable
`

const oldBridgeConfig = `global
  daemon
  log 127.0.0.1 local0
  maxconn 4096

defaults
  log            global
  retries             3
  maxconn          2000
  timeout connect  5000
  timeout client  50000
  timeout server  50000

listen stats
  bind 127.0.0.1:19090
  balance
  mode http
  stats enable
  stats auth admin:admin

listen nginx-80
  bind 0.0.0.0:80
  mode tcp
  option tcplog
  balance leastconn
  server nginx-2 10.141.141.10:31000 check
  server nginx-1 10.141.141.11:31000 check

listen nearly-81
  bind 0.0.0.0:81
  mode tcp
  balance leastconn
  server somewhere 10.141.141.10:31000 check
`

func TestOperatorFileIsKept(t *testing.T) {
	got, err := parseOperatorFile(debianConfig, "/run/haproxy/admin.sock")
	if err != nil {
		t.Fatal(err)
	}
	want := OperatorFile{
		KeptGlobal: []string{"log /dev/log	local0", "log /dev/log	local1 notice",
			"stats socket /run/haproxy/monitor.sock mode 666 level user", "daemon", "ca-base /etc/ssl/certs"},
		KeptDefaults: []string{"log	global", "option	httplog", "option	dontlognull",
			"timeout connect 5000", "timeout client  50000", "timeout server  50000"},
		KeptSections: strings.TrimSpace(debianConfig[strings.Index(debianConfig, "defaults"):]),
		SocketMode:   "mode 660 user root",
		MapPaths:     map[string]string{},
		Dropped:      []string{"stats timeout 30s", "nbproc 1"},
	}
	// The blank lines between sections may differ.
	if diff := cmp.Diff(strings.Join(strings.Fields(want.KeptSections), " "), strings.Join(strings.Fields(got.KeptSections), " ")); diff != "" {
		t.Errorf("sections (-want +got):\n%s", diff)
	}
	want.KeptSections = got.KeptSections
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSectionsOfTheOldBridgeAreNotKept(t *testing.T) {
	got, err := parseOperatorFile(oldBridgeConfig, "/run/haproxy/admin.sock")
	if err != nil {
		t.Fatal(err)
	}
	for name, kept := range map[string]bool{"listen stats": true, "listen nginx-80": false, "listen nearly-81": true} {
		if strings.Contains(got.KeptSections, name) != kept {
			t.Errorf("%s kept = %v, want %v:\n%s", name, !kept, kept, got.KeptSections)
		}
	}
}

// What is kept goes through our own file and comes back the same, and HAProxy takes it.
func TestKeptPartsSurviveTheirRoundTrip(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		for name, text := range map[string]string{"debian": debianConfig, "old-bridge": oldBridgeConfig, "empty": ""} {
			kept, err := parseOperatorFile(text, "/run/haproxy/admin.sock")
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			cfg := everything(dir)
			cfg.Global.SocketMode = kept.SocketMode
			cfg.Global.KeptGlobal, cfg.Global.KeptDefaults, cfg.Global.KeptSections = kept.KeptGlobal, kept.KeptDefaults, kept.KeptSections
			out, err := newRenderer(t, "", capsOf(t, bin)).Render(cfg)
			if err != nil {
				t.Fatal(err)
			}
			files := NewFiles(FilesOptions{Config: filepath.Join(dir, "haproxy.cfg")})
			generation := FormatGeneration(out.Structure, 7)
			saved, err := files.Save(t.Context(), out, generation)
			if err != nil {
				t.Fatal(err)
			}
			if said, err := haproxytest.Check(bin, files.Path()); err != nil {
				t.Fatalf("%s: %v\n%s\n%s", name, err, said, saved.Text)
			}
			again, err := ReadOperatorFile(files.Path(), cfg.Global.Socket)
			if err != nil {
				t.Fatal(err)
			}
			if !again.Ours || again.Generation != generation {
				t.Errorf("%s: ours %v, generation %q, want %q", name, again.Ours, again.Generation, generation)
			}
			if diff := cmp.Diff(saved.MapPaths, again.MapPaths); diff != "" {
				t.Errorf("%s: map paths (-want +got):\n%s", name, diff)
			}
			// Rendered from what was read, the file is the same.
			cfg.Global = &Global{Socket: cfg.Global.Socket, MaxConn: cfg.Global.MaxConn, OldWorkers: cfg.Global.OldWorkers,
				HardStopAfter: cfg.Global.HardStopAfter, SocketMode: again.SocketMode,
				KeptGlobal: again.KeptGlobal, KeptDefaults: again.KeptDefaults, KeptSections: again.KeptSections}
			second, err := newRenderer(t, "", capsOf(t, bin)).Render(cfg)
			if err != nil {
				t.Fatal(err)
			}
			path := func(n string) string { return saved.MapPaths[n] }
			if diff := cmp.Diff(string(saved.Text), string(second.Bytes(generation, path))); diff != "" {
				t.Errorf("%s: second rendering (-first +second):\n%s", name, diff)
			}
		}
	})
}

func TestFileThatCannotBeKept(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		text string
		line int
		says string
	}{
		"nul":              {"global\n\x00", 2, "NUL"},
		"no-section":       {"# x\nmaxconn 5\n", 2, "no section"},
		"section-in-if":    {"global\n.if defined(X)\ndefaults\n.endif\n", 3, ".if"},
		"if-without-end":   {"global\n.if defined(X)\n", 2, ".if"},
		"long-line":        {"global\n    log " + strings.Repeat("x", 1<<17) + "\n", 0, "bytes"},
		"defaults-with-if": {"defaults\n.if defined(X)\n.endif\n", 1, "conditional"},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := ReadOperatorFile(path, "/s")
		e, ok := errors.AsType[*OperatorFileError](err)
		if !ok || e.Path != path || e.Line != c.line || !strings.Contains(e.Detail, c.says) {
			t.Errorf("%s: error %v, want line %d and %q", name, err, c.line, c.says)
		}
		if now, err := os.ReadFile(path); err != nil || string(now) != c.text {
			t.Errorf("%s: the file was touched", name)
		}
	}
	if _, err := ReadOperatorFile(dir, "/s"); err == nil || !strings.Contains(err.Error(), "directory") {
		t.Errorf("directory: %v", err)
	}
	if _, err := ReadOperatorFile(filepath.Join(dir, "nope"), "/s"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func FuzzParseOperatorFile(f *testing.F) {
	f.Add(debianConfig)
	f.Add(oldBridgeConfig)
	f.Add("global\n description bridged-0123456789ab-1\n# >>> global\n x\n# <<<\n")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := parseOperatorFile(text, "/run/haproxy/admin.sock")
		if err != nil {
			return
		}
		for _, line := range append(file.KeptGlobal, file.KeptDefaults...) {
			if strings.Contains(line, "\n") {
				t.Errorf("kept line %q", line)
			}
		}
	})
}
