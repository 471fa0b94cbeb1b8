package bridge

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"bridged/internal/discovery"
	"bridged/internal/haproxy"
)

var update = flag.Bool("update", false, "rewrite the expected files in testdata")

// TestTranslate runs testdata/translate/*.txtar: a file "options" of lines key=value,
// then for each step N the files "N apps" (the whole world, of which only what changed
// is sent), "N config" (all that HAProxy was told) and "N rejected" when not empty.
func TestTranslate(t *testing.T) {
	files, err := filepath.Glob("testdata/translate/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runArchive(t, ar)
			if *update {
				if err := os.WriteFile(file, txtar.Format(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := gocmp.Diff(string(txtar.Format(ar)), string(txtar.Format(got))); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// runArchive plays the steps and returns the archive with what came out.
func runArchive(t *testing.T, ar *txtar.Archive) *txtar.Archive {
	t.Helper()
	inputs := make(map[string]string)
	for _, f := range ar.Files {
		inputs[f.Name] = string(f.Data)
	}
	out := &txtar.Archive{Comment: ar.Comment}
	add := func(name, text string) {
		out.Files = append(out.Files, txtar.File{Name: name, Data: []byte(text)})
	}
	if o, ok := inputs["options"]; ok {
		add("options", o)
	}
	tr := NewTranslator(parseOptions(t, inputs["options"]))
	w := newWorld()
	for step := 1; inputs[fmt.Sprintf("%d apps", step)] != ""; step++ {
		apps := inputs[fmt.Sprintf("%d apps", step)]
		add(fmt.Sprintf("%d apps", step), apps)
		services := parseApps(t, apps)
		change := tr.Apply(w.update(services), time.Unix(int64(step), 0).UTC())
		w.merge(change)
		text := w.text()
		add(fmt.Sprintf("%d config", step), text)
		if r := rejectedText(tr); r != "" {
			add(fmt.Sprintf("%d rejected", step), r)
		}
		w.checkWithHAProxy(t)
	}
	return out
}

func rejectedText(tr *Translator) string {
	var b strings.Builder
	for _, r := range tr.Rejected() {
		fmt.Fprintf(&b, "%s[%d] %s since %d", r.App, r.Index, r.Reason, r.Since.Unix())
		if r.LastGood {
			b.WriteString(" (last good form is served)")
		}
		fmt.Fprintf(&b, ": %s\n", r.Detail)
	}
	return b.String()
}

// parseOptions sets fields of TranslateOptions from lines key=value.
func parseOptions(t *testing.T, text string) TranslateOptions {
	t.Helper()
	var o TranslateOptions
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		key, value, _ := strings.Cut(line, "=")
		switch key {
		case "dialect":
			o.Dialect = Dialect(value)
		case "groups":
			o.Groups = strings.Split(value, ",")
		case "health":
			o.Health = HealthMode(value)
		case "bind":
			o.Bind = value
		case "strict":
			o.Strict = true
		case "drop_empty":
			o.DropEmpty = true
		case "drop_unreachable":
			o.DropUnreachable = true
		case "http_bind":
			b, err := ParseBind(value)
			if err != nil {
				t.Fatal(err)
			}
			o.HTTPBinds = append(o.HTTPBinds, b)
		case "allow_template_labels":
			o.AllowTemplateLabels = true
		case "cert_dir":
			o.CertDir = value
		case "local":
			o.LocalAddrs = append(o.LocalAddrs, netip.MustParseAddr(value))
		case "incumbent":
			port, name, _ := strings.Cut(value, " ")
			n, _ := strconv.Atoi(port)
			if o.Incumbents == nil {
				o.Incumbents = make(map[uint16]string)
			}
			o.Incumbents[uint16(n)] = name
		case "reserved":
			n, _ := strconv.Atoi(value)
			o.Reserved = map[uint16]string{uint16(n): "bridged's own listener"}
		case "template":
			name, text, _ := strings.Cut(value, " ")
			if o.Templates == nil {
				o.Templates = make(map[string]string)
			}
			o.Templates[name] = strings.ReplaceAll(text, `\n`, "\n")
		case "app_id_bind":
			b, err := ParseBind(value)
			if err != nil {
				t.Fatal(err)
			}
			o.MarathonLB.AppIDBind = b
		case "auto_ports":
			low, high, _ := strings.Cut(value, "-")
			a, _ := strconv.Atoi(low)
			b, _ := strconv.Atoi(high)
			o.MarathonLB.MinAutoPort, o.MarathonLB.MaxAutoPort = uint16(a), uint16(b)
		case "group_https":
			o.MarathonLB.GroupHTTPSByVhost = true
		case "open_auth":
			o.MarathonLB.OpenAuth = true
		case "plain_https_checks":
			o.MarathonLB.PlainHTTPSChecks = true
		case "longest_path_first":
			o.MarathonLB.LongestPathFirst = true
		default:
			t.Fatalf("options: unknown key in %q", line)
		}
	}
	return o
}

// parseApps reads the world of a step:
//
//	app ID [net=bridge|container] [instances=N] [version=V] [requirePorts]
//	port SERVICE [container=N] [host=N] [udp]
//	label NAME=VALUE          (\n in VALUE is a line break)
//	check PROTOCOL [path=P] [index=N] [port=N] [interval=N] [timeout=N] [max=N]
//	task ID HOST ADDRESS PORT... [killing|unreachable|dead|unknown|alive|unready]
func parseApps(t *testing.T, text string) []*discovery.Service {
	t.Helper()
	var services []*discovery.Service
	var app *discovery.App
	var tasks []func(index int) (discovery.Task, bool)
	flush := func() {
		if app == nil {
			return
		}
		for i, p := range app.Ports {
			s := &discovery.Service{Key: discovery.Key{App: app.ID, Index: i}, App: app, Port: p}
			for _, f := range tasks {
				if task, ok := f(i); ok {
					s.Tasks = append(s.Tasks, task)
				}
			}
			services = append(services, s)
		}
		tasks = nil
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		opts := make(map[string]string)
		for _, w := range words[1:] {
			k, v, _ := strings.Cut(w, "=")
			opts[k] = v
		}
		number := func(key string, def int) int {
			if v, ok := opts[key]; ok {
				n, err := strconv.Atoi(v)
				if err != nil {
					t.Fatalf("%q: %v", line, err)
				}
				return n
			}
			return def
		}
		switch words[0] {
		case "app":
			flush()
			app = &discovery.App{ID: words[1], Instances: number("instances", 1), Version: cmp.Or(opts["version"], "1"),
				LastConfigChange: cmp.Or(opts["version"], "1"), LastScaling: opts["scaled"]}
			app.Network = map[string]discovery.NetworkMode{"bridge": discovery.BridgeNetwork, "container": discovery.ContainerNetwork}[opts["net"]]
			_, app.RequirePorts = opts["requirePorts"]
		case "port":
			n, err := strconv.Atoi(words[1])
			if err != nil {
				t.Fatal(err)
			}
			p := discovery.Port{Service: uint16(n), Container: uint16(number("container", 0)), Host: uint16(number("host", 0)), Protocol: "tcp"}
			if _, ok := opts["udp"]; ok {
				p.Protocol = "udp"
			}
			app.Ports = append(app.Ports, p)
		case "label":
			k, v, _ := strings.Cut(strings.TrimPrefix(line, "label "), "=")
			if app.Labels == nil {
				app.Labels = make(map[string]string)
			}
			app.Labels[k] = strings.ReplaceAll(v, `\n`, "\n")
		case "check":
			app.Checks = append(app.Checks, discovery.HealthCheck{Protocol: words[1], Path: opts["path"], PortIndex: number("index", 0),
				Port: uint16(number("port", 0)), Interval: time.Duration(number("interval", 60)) * time.Second,
				Timeout: time.Duration(number("timeout", 20)) * time.Second, GracePeriod: 300 * time.Second, MaxConsecutiveFailures: number("max", 3)})
		case "task":
			a := app
			tasks = append(tasks, func(index int) (discovery.Task, bool) {
				task := discovery.Task{ID: words[1], App: a.ID, Host: words[2], State: discovery.Running, Ready: true, Version: a.Version}
				task.Health = discovery.NoChecks
				if len(a.Checks) > 0 {
					task.Health = discovery.Alive
				}
				var ports []uint16
				for _, w := range words[4:] {
					switch w {
					case "killing":
						task.State = discovery.Killing
					case "unreachable":
						task.State = discovery.Unreachable
					case "dead":
						task.Health = discovery.Dead
					case "unknown":
						task.Health = discovery.HealthUnknown
					case "alive":
						task.Health = discovery.Alive
					case "unready":
						task.Ready = false
					default:
						n, err := strconv.ParseUint(w, 10, 16)
						if err != nil {
							t.Fatalf("%q: %v", line, err)
						}
						ports = append(ports, uint16(n))
					}
				}
				if index >= len(ports) {
					return task, false
				}
				task.Addr = netip.AddrPortFrom(netip.MustParseAddr(words[3]), ports[index])
				return task, true
			})
		default:
			t.Fatalf("apps: %q", line)
		}
	}
	flush()
	return services
}

// world is HAProxy's side: what it was told so far.
type world struct {
	known     map[discovery.Key]*discovery.Service
	userlists map[string]*haproxy.Section
	frontends map[string]*haproxy.Section
	backends  map[string]*haproxy.Backend
	maps      map[string]map[string]string
	touched   int // parts in the last Change
}

func newWorld() *world {
	return &world{known: make(map[discovery.Key]*discovery.Service), userlists: make(map[string]*haproxy.Section),
		frontends: make(map[string]*haproxy.Section), backends: make(map[string]*haproxy.Backend), maps: make(map[string]map[string]string)}
}

// update is what a watcher would send to get from what it sent before to services.
func (w *world) update(services []*discovery.Service) *discovery.Update {
	u := &discovery.Update{Full: len(w.known) == 0}
	present := make(map[discovery.Key]bool)
	for _, s := range services {
		present[s.Key] = true
		if old := w.known[s.Key]; old == nil || !reflect.DeepEqual(old, s) {
			u.Services = append(u.Services, s)
			w.known[s.Key] = s
		}
	}
	for k := range w.known {
		if !present[k] {
			u.Gone = append(u.Gone, k)
			delete(w.known, k)
		}
	}
	return u
}

func mergeParts[T any](have map[string]*T, change map[string]*T) {
	for name, part := range change {
		if part == nil {
			delete(have, name)
		} else {
			have[name] = part
		}
	}
}

func (w *world) merge(c haproxy.Change) {
	w.touched = len(c.Userlists) + len(c.Frontends) + len(c.Backends)
	mergeParts(w.userlists, c.Userlists)
	mergeParts(w.frontends, c.Frontends)
	mergeParts(w.backends, c.Backends)
	for name, entries := range c.Maps {
		if w.maps[name] == nil {
			w.maps[name] = make(map[string]string)
		}
		for k, v := range entries {
			w.touched++
			if v == "" {
				delete(w.maps[name], k)
			} else {
				w.maps[name][k] = v
			}
		}
	}
}

// text prints the world in haproxy.cfg's language, maps after it.
func (w *world) text() string {
	var b strings.Builder
	section := func(kind string, s *haproxy.Section) {
		fmt.Fprintf(&b, "%s %s\n", kind, s.Name)
		if s.Mode != "" {
			fmt.Fprintf(&b, "  mode %s\n", s.Mode)
		}
		for _, bind := range s.Binds {
			addr := bind.Addr
			if bind.Port != 0 {
				addr += ":" + strconv.Itoa(int(bind.Port))
			}
			fmt.Fprintf(&b, "  bind %s\n", strings.TrimSpace(addr+" "+bind.Options))
		}
	}
	lines := func(s *haproxy.Section) {
		for _, l := range s.Lines {
			fmt.Fprintf(&b, "  %s\n", l)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(w.userlists)) {
		section("userlist", w.userlists[name])
		lines(w.userlists[name])
	}
	for _, f := range ordered(w.frontends, func(s *haproxy.Section) *haproxy.Section { return s }) {
		section("frontend", f)
		lines(f)
	}
	for _, be := range ordered(w.backends, func(b *haproxy.Backend) *haproxy.Section { return &b.Section }) {
		kind := "backend"
		if len(be.Binds) > 0 {
			kind = "listen"
		}
		section(kind, &be.Section)
		if be.Balance != "" {
			fmt.Fprintf(&b, "  balance %s\n", be.Balance)
		}
		lines(&be.Section)
		if be.ServerOptions != "" {
			fmt.Fprintf(&b, "  default-server %s\n", be.ServerOptions)
		}
		for _, s := range be.Servers {
			fmt.Fprintf(&b, "  %s\n", serverLine(s))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(w.maps)) {
		if len(w.maps[name]) == 0 {
			continue
		}
		fmt.Fprintf(&b, "# map %s\n", name)
		for _, k := range slices.Sorted(maps.Keys(w.maps[name])) {
			fmt.Fprintf(&b, "# %s %s\n", k, w.maps[name][k])
		}
	}
	return b.String()
}

func ordered[T any](m map[string]*T, section func(*T) *haproxy.Section) []*T {
	return slices.SortedFunc(maps.Values(m), func(a, b *T) int {
		return cmp.Or(cmp.Compare(section(a).Order, section(b).Order), strings.Compare(section(a).Name, section(b).Name))
	})
}

func serverLine(s haproxy.Server) string {
	line := "server " + s.Name + " " + s.Addr.String()
	if s.ID != 0 {
		line += " id " + strconv.Itoa(s.ID)
	}
	options := s.Options
	if rest, ok := strings.CutPrefix(options+" ", "check "); ok && s.Cookie != "" {
		line += " check"
		options = strings.TrimSpace(rest)
	}
	if s.Cookie != "" {
		line += " cookie " + s.Cookie
	}
	if options != "" {
		line += " " + options
	}
	if s.Weight >= 0 {
		line += " weight " + strconv.Itoa(s.Weight)
	}
	switch s.State {
	case haproxy.Drain:
		line += " weight 0"
	case haproxy.Maint:
		line += " disabled"
	}
	return line
}

var mapTokenPattern = regexp.MustCompile(`%map\(([a-z0-9_]+)\)`)

// checkWithHAProxy lets the real haproxy read the world. Certificates are the one thing
// it lacks here.
func (w *world) checkWithHAProxy(t *testing.T) {
	t.Helper()
	binary, err := exec.LookPath("haproxy")
	if err != nil {
		t.Log("haproxy is not installed: the text is compared and not parsed")
		return
	}
	if !strings.Contains(w.text(), "  bind ") {
		return // haproxy refuses a configuration without a listener
	}
	dir := t.TempDir()
	text := "global\n  httpclient.ssl.verify none\n" +
		"defaults\n  timeout connect 3s\n  timeout client 30s\n  timeout server 30s\n" + w.text()
	cert := selfSigned(t, dir)
	text = regexp.MustCompile(` crt \S+`).ReplaceAllString(text, " crt "+cert)
	text = mapTokenPattern.ReplaceAllStringFunc(text, func(token string) string {
		name := mapTokenPattern.FindStringSubmatch(token)[1]
		if _, ok := w.maps[name]; !ok {
			t.Errorf("map %s is named and does not exist", name)
		}
		file := filepath.Join(dir, name+".map")
		var b bytes.Buffer
		for _, k := range slices.Sorted(maps.Keys(w.maps[name])) {
			fmt.Fprintf(&b, "%s %s\n", k, w.maps[name][k])
		}
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	})
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), binary, "-c", "-f", file).CombinedOutput()
	if err != nil {
		t.Errorf("haproxy -c: %v\n%s\n%s", err, out, text)
	}
}
