package bridge

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"bridged/internal/haproxy"
)

// MarathonLBDefaults fills in what marathon-lb listens on: *:80, *:443 where there are
// certificates, *:9091 for app ids and *:9090 for statistics, and the range of ports for
// container networks. What is set stays; HTTPBinds that are empty and not nil are none.
func MarathonLBDefaults(o TranslateOptions, certs []string) TranslateOptions {
	if o.HTTPBinds == nil {
		o.HTTPBinds = []haproxy.Bind{{Addr: "*", Port: 80}}
		if len(certs) > 0 {
			o.HTTPBinds = append(o.HTTPBinds, haproxy.Bind{Addr: "*", Port: 443,
				Options: strings.TrimSpace(certWords(certs)) + " alpn h2,http/1.1"})
		}
	}
	m := &o.MarathonLB
	if m.AppIDBind == (haproxy.Bind{}) {
		m.AppIDBind = haproxy.Bind{Addr: "*", Port: 9091}
	}
	if m.StatsBind == (haproxy.Bind{}) {
		m.StatsBind = haproxy.Bind{Addr: "*", Port: 9090}
	}
	if m.MinAutoPort == 0 && m.MaxAutoPort == 0 {
		m.MinAutoPort, m.MaxAutoPort = 10050, 10100
	}
	return o
}

// LoadTemplates collects the operator's templates as marathon-lb finds them: files named
// HAPROXY_<NAME> in dir ("": none), and stronger than those the environment variables of
// the same names, in which \n stands for a line break. Empty variables do not count.
func LoadTemplates(dir string, environ []string) (map[string]string, error) {
	found := make(map[string]string)
	if dir != "" {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			name, ok := strings.CutPrefix(e.Name(), labelPrefix)
			if _, known := mlbTemplates[name]; !ok || !known || e.IsDir() {
				continue
			}
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				return nil, err
			}
			found[name] = strings.ReplaceAll(string(text), "\r\n", "\n")
		}
	}
	for _, kv := range environ {
		key, value, _ := strings.Cut(kv, "=")
		name, ok := strings.CutPrefix(key, labelPrefix)
		if _, known := mlbTemplates[name]; ok && known && value != "" {
			found[name] = strings.ReplaceAll(value, `\n`, "\n")
		}
	}
	return found, nil
}

// Head is what an operator's HEAD template says beyond what bridged writes itself.
type Head struct {
	Global   []string // lines of global
	Defaults []string // lines of defaults
	Sections string   // further sections, as they stand
	Warnings []string // what was left out, and why
}

// ReadHead takes a HEAD template apart. Lines that bridged has to own are left out with
// a warning: that the process runs as bridged expects it and that listeners survive a
// reload is not for a template to change.
func ReadHead(text string) Head {
	var h Head
	section := ""
	var rest strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		trimmed := strings.TrimSpace(line)
		word, _, _ := strings.Cut(trimmed, " ")
		if opensSection(trimmed) && trimmed != "" && line[0] != ' ' && line[0] != '\t' {
			section = word
			if section != "global" && section != "defaults" {
				rest.WriteString(line + "\n")
			}
			continue
		}
		if trimmed == "" || trimmed[0] == '#' {
			continue
		}
		switch section {
		case "global":
			if why := ownGlobal(trimmed); why != "" {
				h.Warnings = append(h.Warnings, "HAPROXY_HEAD: left out "+why)
				continue
			}
			h.Global = append(h.Global, modernise(trimmed))
		case "defaults":
			if word == "load-server-state-from-file" {
				h.Warnings = append(h.Warnings, "HAPROXY_HEAD: left out load-server-state-from-file: bridged restores state itself, and the file misroutes servers that moved")
				continue
			}
			h.Defaults = append(h.Defaults, modernise(trimmed))
		default:
			rest.WriteString("  " + modernise(trimmed) + "\n")
		}
	}
	h.Sections = rest.String()
	return h
}

// ownGlobal names a line of global that bridged writes itself, "" for any other.
func ownGlobal(line string) string {
	word, after, _ := strings.Cut(line, " ")
	switch word {
	case "daemon", "nbproc", "master-worker", "pidfile":
		return word + ": bridged runs HAProxy as master and worker"
	case "stats":
		if strings.HasPrefix(strings.TrimSpace(after), "socket") || strings.HasPrefix(strings.TrimSpace(after), "timeout") {
			return "stats socket: bridged writes haproxy.socket, which hands listeners on"
		}
	case "server-state-file", "server-state-base":
		return word + ": bridged restores state itself"
	case "lua-load", "lua-load-per-thread":
		return word + ": bridged answers marathon-lb's endpoints without Lua"
	case "description":
		return word + ": bridged writes its generation there"
	}
	return ""
}

// hasSection reports whether one of h's sections has this name.
func (h Head) hasSection(name string) bool {
	for line := range strings.Lines(h.Sections) {
		if words := strings.Fields(line); opensSection(line) && len(words) > 1 && words[1] == name {
			return true
		}
	}
	return false
}

// apiBackend is the backend that hands marathon-lb's endpoints to bridged.
const apiBackend = "bridged_api"

// luaEndpoint matches a line that hands one of marathon-lb's endpoints to its Lua code.
var luaEndpoint = regexp.MustCompile(`^http-request use-service lua\.(getpids|getconfig|getvhostmap|getappmap|signalmlbhup|signalmlbusr1)\b(.*)$`)

// sections are h's sections with the defaults that stand before them there. What they
// hand to marathon-lb's Lua code goes to bridged at api instead.
func (h Head) sections(api netip.AddrPort) string {
	if h.Sections == "" {
		return ""
	}
	var b strings.Builder
	b.WriteString("defaults\n")
	for _, line := range h.Defaults {
		b.WriteString("  " + line + "\n")
	}
	b.WriteString("\n")
	handed := false
	for line := range strings.Lines(h.Sections) {
		m := luaEndpoint.FindStringSubmatch(strings.TrimSpace(line))
		switch {
		case m == nil:
			b.WriteString(line)
		case !api.IsValid():
			// Nobody answers.
		default:
			if strings.HasPrefix(m[1], "signal") {
				b.WriteString("  " + signalGuard + "\n")
			}
			b.WriteString("  use_backend " + apiBackend + m[2] + "\n")
			handed = true
		}
	}
	if handed {
		b.WriteString("\nbackend " + apiBackend + "\n  mode http\n  server bridged " + api.String() + "\n")
	}
	return b.String()
}
