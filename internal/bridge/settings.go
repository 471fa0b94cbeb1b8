package bridge

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Setting is one key of the configuration: the only place that knows its name in
// the file, its flag, its variable and what it means.
type Setting struct {
	Key   string // dotted path in the file
	Flag  string // without the dashes
	Usage string // for the operator: meaning, unit, what happens at zero

	// field is where the value lives: *string, *bool, *int, *time.Duration, *[]string or
	// an encoding.TextUnmarshaler.
	field func(*Config) any
}

// Env is the variable of s. The flag's spelling is accepted too where the two
// differ (BRIDGED_MARATHON beside BRIDGED_MARATHON_URLS).
func (s Setting) Env() string { return envName(s.Key) }

// IsBool reports whether s is a switch, whose flag needs no value.
func (s Setting) IsBool() bool { _, ok := s.field(new(Config)).(*bool); return ok }

// IsList reports whether s takes several values, separated by commas in flags and
// variables.
func (s Setting) IsList() bool { _, ok := s.field(new(Config)).(*[]string); return ok }

// Default is the value of s in an empty file, as it would be written there.
func (s Setting) Default() string {
	switch p := s.field(Defaults()).(type) {
	case *string:
		return *p
	case *bool:
		return strconv.FormatBool(*p)
	case *int:
		return strconv.Itoa(*p)
	case *time.Duration:
		return p.String()
	case *[]string:
		return strings.Join(*p, ",")
	case *Dialect:
		return string(*p)
	case *HealthMode:
		return string(*p)
	}
	panic("setting of an unknown type: " + s.Key)
}

// Settings lists every key in the order of the file.
func Settings() []Setting { return slices.Clone(configKeys) }

var configKeys = []Setting{
	{"marathon.urls", "marathon", "Marathons to follow: URLs or host:port, all of one cluster",
		func(c *Config) any { return &c.Marathon.URLs }},
	{"marathon.urls_file", "marathons-file", "file with one host:port per line and # comments instead; watched",
		func(c *Config) any { return &c.Marathon.URLsFile }},
	{"marathon.transport", "marathon-transport", "how events arrive: auto, sse, callback or poll; auto takes the event stream, on Marathon 0.8 callbacks where marathon.callback.listen is set",
		func(c *Config) any { return &c.Marathon.Transport }},
	{"marathon.callback.listen", "marathon-callback-listen", "host:port where Marathon 0.8, which has no event stream, posts its events; none: it is polled",
		func(c *Config) any { return &c.Marathon.Callback.Listen }},
	{"marathon.callback.url", "marathon-callback-url", "how Marathon reaches that listener, such as http://node7:9378; by default http:// and the address it listens on",
		func(c *Config) any { return &c.Marathon.Callback.URL }},
	{"marathon.callback.from", "marathon-callback-from", "addresses or networks that may post there besides those of the Marathons, for hosts that have several",
		func(c *Config) any { return &c.Marathon.Callback.From }},
	{"marathon.auth.basic_file", "marathon-auth-basic-file", "file that holds user:password for Marathon",
		func(c *Config) any { return &c.Marathon.Auth.BasicFile }},
	{"marathon.auth.token_file", "marathon-auth-token-file", "file that holds a token for Marathon",
		func(c *Config) any { return &c.Marathon.Auth.TokenFile }},
	{"marathon.auth.dcos_file", "marathon-auth-dcos-file", "file that holds a DC/OS service account",
		func(c *Config) any { return &c.Marathon.Auth.DCOSFile }},
	{"marathon.tls.ca_file", "marathon-tls-ca-file", "PEM file of the authorities that Marathon's certificate may come from; none: the system's",
		func(c *Config) any { return &c.Marathon.TLS.CAFile }},
	{"marathon.tls.cert_file", "marathon-tls-cert-file", "PEM file of our client certificate",
		func(c *Config) any { return &c.Marathon.TLS.CertFile }},
	{"marathon.tls.key_file", "marathon-tls-key-file", "PEM file of its key",
		func(c *Config) any { return &c.Marathon.TLS.KeyFile }},
	{"marathon.tls.insecure", "marathon-tls-insecure", "accept any certificate of Marathon",
		func(c *Config) any { return &c.Marathon.TLS.Insecure }},
	{"marathon.resync", "marathon-resync", "longest time between two complete reads of Marathon; lost events are found sooner",
		func(c *Config) any { return &c.Marathon.Resync }},

	{"haproxy.config", "haproxy-config", "haproxy.cfg to write",
		func(c *Config) any { return &c.HAProxy.Config }},
	{"haproxy.socket", "haproxy-socket", "HAProxy's stats socket, level admin",
		func(c *Config) any { return &c.HAProxy.Socket }},
	{"haproxy.master_socket", "haproxy-master-socket", "HAProxy's master socket (haproxy -S), for reloads; none by default when haproxy.reload_command is set",
		func(c *Config) any { return &c.HAProxy.MasterSocket }},
	{"haproxy.reload_command", "haproxy-reload-command", "command that reloads HAProxy where it has no master socket: words, run without a shell",
		func(c *Config) any { return &c.HAProxy.ReloadCommand }},
	{"haproxy.supervise", "supervise", "start HAProxy (haproxy -W) where none runs; it outlives bridged",
		func(c *Config) any { return &c.HAProxy.Supervise }},
	{"haproxy.binary", "haproxy-binary", "HAProxy's program, for checks and supervise",
		func(c *Config) any { return &c.HAProxy.Binary }},
	{"haproxy.template", "haproxy-template", "own template of haproxy.cfg; watched",
		func(c *Config) any { return &c.HAProxy.Template }},
	{"haproxy.min_reload_interval", "haproxy-min-reload-interval", "least time between two reloads; 0: only storms are slowed down",
		func(c *Config) any { return &c.HAProxy.MinReloadInterval }},
	{"haproxy.max_old_workers", "haproxy-max-old-workers", "old workers at which reloads are held, for at most 10s",
		func(c *Config) any { return &c.HAProxy.MaxOldWorkers }},
	{"haproxy.bind", "haproxy-bind", "address that service ports listen on; *: all",
		func(c *Config) any { return &c.HAProxy.Bind }},
	{"haproxy.check_interval", "haproxy-check-interval", "time between two checks of a task; every node checks every task",
		func(c *Config) any { return &c.HAProxy.CheckInterval }},
	{"haproxy.save_delay", "haproxy-save-delay", "how long haproxy.cfg may be behind HAProxy after a runtime change",
		func(c *Config) any { return &c.HAProxy.SaveDelay }},
	{"haproxy.slots", "haproxy-slots", "spare servers in place of dynamic ones: auto (by HAProxy's version), always or never",
		func(c *Config) any { return &c.HAProxy.Slots }},

	{"dialect", "dialect", "whose names and defaults: bridge (haproxy-marathon-bridge) or marathon-lb",
		func(c *Config) any { return &c.Dialect }},
	{"groups", "group", "only apps whose HAPROXY_GROUP is one of these; none: every app",
		func(c *Config) any { return &c.Groups }},
	{"strict", "strict", "serve a service port only when its label HAPROXY_n_ENABLED is true",
		func(c *Config) any { return &c.Strict }},
	{"drop_empty", "drop-empty", "remove the listener of a service whose last task went; by default it stays and refuses",
		func(c *Config) any { return &c.DropEmpty }},
	{"drop_unreachable", "drop-unreachable", "take tasks out that Mesos cannot reach; by default they stay, since clients may reach them",
		func(c *Config) any { return &c.DropUnreachable }},
	{"cert_dir", "cert-dir", "directory that certificates named by labels must be in",
		func(c *Config) any { return &c.CertDir }},
	{"tls.dir", "tls-dir", "directory of certificates served by SNI, a .pem file each; watched. Listeners name it: http.bind \"*:443 ssl crt DIR\"; in dialect marathon-lb *:443 does unless ssl_certs are set",
		func(c *Config) any { return &c.TLS.Dir }},
	{"tls.self_signed", "tls-self-signed", "make a self-signed certificate while tls.dir has none that can be used",
		func(c *Config) any { return &c.TLS.SelfSigned }},
	{"socket_dir", "socket-dir", "directory that unix sockets bound by labels must be in; none: labels may bind none",
		func(c *Config) any { return &c.SocketDir }},
	{"health", "health", "whose verdict gates traffic: marathon, haproxy, both or none (default both; haproxy in dialect marathon-lb)",
		func(c *Config) any { return &c.Health }},
	{"drain", "drain", "how long a task that is being killed keeps its open connections",
		func(c *Config) any { return &c.Drain }},
	{"listen", "listen", "address of metrics, health and state",
		func(c *Config) any { return &c.Listen }},
	{"metrics_listen", "metrics-listen", "second address, for /metrics, /healthz and /readyz only",
		func(c *Config) any { return &c.MetricsListen }},
	{"state_dir", "state-dir", "where verdicts and addresses survive a restart; may be lost without harm",
		func(c *Config) any { return &c.StateDir }},
	{"allow_template_labels", "allow-template-labels", "let apps put text of their own into haproxy.cfg",
		func(c *Config) any { return &c.AllowTemplateLabels }},
	{"http.bind", "http-bind", "addresses of the shared HTTP frontend, such as *:80; by default off, in dialect marathon-lb *:80 and *:443; the word none: off",
		func(c *Config) any { return &c.HTTPBind }},

	{"marathon_lb.ssl_certs", "marathon-lb-ssl-certs", "certificates of *:443 (files or directories); none: no HTTPS",
		func(c *Config) any { return &c.MarathonLB.SSLCerts }},
	{"marathon_lb.template_dir", "marathon-lb-template-dir", "directory with templates named HAPROXY_<NAME>; watched",
		func(c *Config) any { return &c.MarathonLB.TemplateDir }},
	{"marathon_lb.app_id_bind", "marathon-lb-app-id-bind", "listener that routes by the header X-Marathon-App-Id; the word none: off",
		func(c *Config) any { return &c.MarathonLB.AppIDBind }},
	{"marathon_lb.stats_bind", "marathon-lb-stats-bind", "listener of HAProxy's statistics and marathon-lb's endpoints; the word none: off",
		func(c *Config) any { return &c.MarathonLB.StatsBind }},
	{"marathon_lb.endpoints", "marathon-lb-endpoints", "answer marathon-lb's endpoints (/_haproxy_getconfig and its kind, /_mlb_signal) there",
		func(c *Config) any { return &c.MarathonLB.Endpoints }},
	{"marathon_lb.auto_ports", "marathon-lb-auto-ports", "range of service ports for apps of container networks that have none; the word none: they get none",
		func(c *Config) any { return &c.MarathonLB.AutoPorts }},
	{"marathon_lb.group_https_by_vhost", "marathon-lb-group-https-by-vhost", "a TLS frontend for each vhost, with its own certificates",
		func(c *Config) any { return &c.MarathonLB.GroupHTTPSByVhost }},
	{"marathon_lb.longest_path_first", "marathon-lb-longest-path-first", "of routes with one weight the longer path is asked first; by default app id and port decide, as in marathon-lb",
		func(c *Config) any { return &c.MarathonLB.LongestPathFirst }},
	{"marathon_lb.open_auth", "marathon-lb-open-auth", "ask for credentials on vhosts alone, as marathon-lb does: service port and app-id route stay open",
		func(c *Config) any { return &c.MarathonLB.OpenAuth }},
	{"marathon_lb.plain_https_checks", "marathon-lb-plain-https-checks", "probe HTTPS health checks in plain HTTP, as marathon-lb does",
		func(c *Config) any { return &c.MarathonLB.PlainHTTPSChecks }},
	{"marathon_lb.framework_name", "marathon-lb-framework-name", "app that is left out because it is the load balancer itself, without the leading slash",
		func(c *Config) any { return &c.MarathonLB.FrameworkName }},

	{"log.level", "log-level", "debug, info, warn or error",
		func(c *Config) any { return &c.LogLevel }},
	{"log.format", "log-format", "text or json",
		func(c *Config) any { return &c.LogFormat }},
}

// layer orders the places a value can come from.
type layer int

const (
	fromDefault layer = iota
	fromFile
	fromEnviron
	fromFlag
)

type origin struct {
	layer layer
	where string
}

// rivals are keys of which a value from a later layer replaces the other's from an
// earlier one: --marathon wins over a urls_file in the file.
var rivals = map[string]string{
	"marathon.urls":      "marathon.urls_file",
	"marathon.urls_file": "marathon.urls",
}

// set gives s the values that stand at where.
func (c *Config) set(s Setting, from layer, where string, values []string) error {
	bad := func(want string) error {
		return &Problem{Where: where, Key: s.Key, Text: fmt.Sprintf("want %s, have %q", want, strings.Join(values, ","))}
	}
	if _, list := s.field(c).(*[]string); !list && len(values) != 1 {
		return bad("one value")
	}
	switch p := s.field(c).(type) {
	case *string:
		*p = values[0]
	case *bool:
		switch values[0] {
		case "true", "yes", "on", "1":
			*p = true
		case "false", "no", "off", "0":
			*p = false
		default:
			return bad("true or false")
		}
	case *int:
		n, err := strconv.Atoi(values[0])
		if err != nil {
			return bad("a whole number")
		}
		*p = n
	case *time.Duration:
		d, err := time.ParseDuration(values[0])
		if err != nil {
			return bad("a time with its unit, such as 250ms, 10s or 5m")
		}
		*p = d
	case encoding.TextUnmarshaler:
		if err := p.UnmarshalText([]byte(values[0])); err != nil {
			return &Problem{Where: where, Key: s.Key, Text: fmt.Sprintf("%v, have %q", err, values[0])}
		}
	case *[]string:
		*p = slices.DeleteFunc(slices.Clone(values), func(v string) bool { return v == "" })
	}
	if other, ok := rivals[s.Key]; ok && c.origins[other].layer < from {
		loser := configKeys[slices.IndexFunc(configKeys, func(s Setting) bool { return s.Key == other })]
		switch p := loser.field(c).(type) {
		case *string:
			*p = ""
		case *[]string:
			*p = nil
		}
		delete(c.origins, other)
	}
	if (s.Key == "marathon.urls" || s.Key == "marathon.urls_file") && from > fromFile {
		c.Marathons = nil // the flag or variable names the only one
	}
	c.origins[s.Key] = origin{from, where}
	return nil
}

// readYAML sets what data says and returns every problem in it.
func (c *Config) readYAML(path string, data []byte) []error {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) { // empty, or comments alone
			return nil
		}
		return []error{&Problem{Where: path, Text: "not valid YAML; correct it", Err: err}}
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return []error{&Problem{Where: path, Text: "want one YAML document; remove the lines from the second --- on"}}
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil
	}
	r := yamlReader{c: c, path: path, seen: map[string]int{}}
	r.mapping("", root)
	return r.problems
}

type yamlReader struct {
	c        *Config
	path     string
	seen     map[string]int // line by key
	problems []error
}

func (r *yamlReader) add(n *yaml.Node, key, text string) {
	r.problems = append(r.problems, &Problem{Where: fmt.Sprintf("%s:%d", r.path, n.Line), Key: key, Text: text})
}

// mapping reads the keys below prefix. Aliases and merges are refused rather than
// followed: nothing in this file needs them, and they are how YAML grows without bound.
func (r *yamlReader) mapping(prefix string, n *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		r.add(n, strings.TrimSuffix(prefix, "."), "want keys below it, have a single value or a list")
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		key := prefix + name.Value
		if line, ok := r.seen[key]; ok {
			r.add(name, key, fmt.Sprintf("stands in line %d already; keep one", line))
			continue
		}
		r.seen[key] = name.Line
		if at := slices.IndexFunc(configKeys, func(s Setting) bool { return s.Key == key }); at >= 0 {
			r.value(configKeys[at], value)
			continue
		}
		if key == marathonsKey {
			r.marathons(value)
			continue
		}
		section := slices.ContainsFunc(configKeys, func(s Setting) bool { return strings.HasPrefix(s.Key, key+".") })
		switch {
		case section && value.Kind == yaml.ScalarNode && value.Tag == "!!null": // "http:" with everything below commented out
		case section:
			r.mapping(key+".", value)
		default:
			r.add(name, key, "unknown key; "+suggest(key))
		}
	}
}

func (r *yamlReader) value(s Setting, n *yaml.Node) {
	var values []string
	switch n.Kind {
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			if s.IsList() {
				break
			}
			r.add(n, s.Key, "has no value; give it one or remove the key")
			return
		}
		values = []string{n.Value}
	case yaml.SequenceNode:
		if !s.IsList() {
			r.add(n, s.Key, "want one value, have a list")
			return
		}
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode || item.Tag == "!!null" {
				r.add(item, s.Key, "want a list of plain values")
				return
			}
			values = append(values, item.Value)
		}
	default:
		r.add(n, s.Key, "want a plain value")
		return
	}
	if err := r.c.set(s, fromFile, fmt.Sprintf("%s:%d", r.path, n.Line), values); err != nil {
		r.problems = append(r.problems, err)
	}
}

// readEnviron sets what BRIDGED_ variables say. A variable that names no key is left
// alone: it may belong to a script around us. UnknownEnviron lists such.
func (c *Config) readEnviron(environ []string) (problems []error) {
	values := environMap(environ)
	for _, s := range configKeys {
		for _, name := range slices.Compact([]string{envName(s.Flag), s.Env()}) {
			v, ok := values[name]
			if !ok || v == "" {
				continue
			}
			if err := c.set(s, fromEnviron, name, split(s, v)); err != nil {
				problems = append(problems, err)
			}
		}
	}
	return problems
}

// UnknownEnviron returns the BRIDGED_ variables of environ that set nothing, sorted.
func UnknownEnviron(environ []string) []string {
	values := environMap(environ)
	for _, s := range configKeys {
		delete(values, s.Env())
		delete(values, envName(s.Flag))
	}
	delete(values, "BRIDGED_CONFIG") // the --config flag
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func environMap(environ []string) map[string]string {
	values := map[string]string{}
	for _, kv := range environ {
		if name, v, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(name, "BRIDGED_") {
			values[name] = v
		}
	}
	return values
}

func (c *Config) readFlags(flags map[string]string) (problems []error) {
	for _, s := range configKeys {
		v, ok := flags[s.Key]
		if !ok {
			continue
		}
		if err := c.set(s, fromFlag, "--"+s.Flag, split(s, v)); err != nil {
			problems = append(problems, err)
		}
	}
	return problems
}

func split(s Setting, v string) []string {
	if !s.IsList() {
		return []string{v}
	}
	parts := strings.Split(v, ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return parts
}

func envName(key string) string {
	return "BRIDGED_" + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(key))
}

// suggest names the key that was probably meant.
func suggest(key string) string {
	best, dist := "", 4
	for _, s := range configKeys {
		if d := keyDistance(key, s.Key); d < dist {
			best, dist = s.Key, d
		}
	}
	if best == "" {
		// Right name, wrong section.
		_, name, _ := strings.Cut(key, ".")
		if name == "" {
			name = key
		}
		for _, s := range configKeys {
			if strings.HasSuffix(s.Key, "."+name) {
				best = s.Key
				break
			}
		}
	}
	if best == "" {
		return "remove it (bridged check --help lists the keys)"
	}
	return fmt.Sprintf("did you mean %s?", best)
}

// keyDistance is Levenshtein's.
func keyDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
