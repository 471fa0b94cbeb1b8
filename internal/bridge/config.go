package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// DefaultConfigFile is read when no other is named. It may be absent.
const DefaultConfigFile = "/etc/bridged/bridged.yaml"

// LegacyMarathonsFile is where haproxy-marathon-bridge keeps its list of
// Marathons. It is read when it exists and no other Marathon is configured.
const LegacyMarathonsFile = "/etc/haproxy-marathon-bridge/marathons"

// Config is everything an operator decides. Load makes one out of defaults, a
// file, the environment and flags. The keys of the file, their flags, variables
// and documentation stand in Settings. A loaded Config is not modified.
type Config struct {
	Marathon MarathonConfig
	// Marathons are several, in place of Marathon.
	Marathons []MarathonConfig
	HAProxy   HAProxyConfig
	// MarathonLB counts in dialect marathon-lb alone.
	MarathonLB MarathonLBConfig
	TLS        TLSConfig

	Dialect             Dialect
	Groups              []string
	Strict              bool
	DropEmpty           bool
	DropUnreachable     bool
	CertDir             string
	SocketDir           string
	Health              HealthMode // "" until loaded: by dialect
	Drain               time.Duration
	Listen              string
	MetricsListen       string
	StateDir            string
	AllowTemplateLabels bool
	HTTPBind            []string
	LogLevel            string
	LogFormat           string

	// File is the configuration file that was read, "" for none.
	File string

	// templates are the operator's, by name, as they were when the Config was loaded;
	// templateEnv are the variables that some of them come from.
	templates   map[string]string
	templateEnv []string

	// origins says for each key that is not at its default where its value came
	// from, for messages: "/etc/bridged/bridged.yaml:12", "--listen".
	origins map[string]origin
}

// MarathonConfig is the section marathon, or one entry of the list marathons.
type MarathonConfig struct {
	Name     string // tells several apart; "" for the only one
	URLs     []string
	URLsFile string
	// Legacy: URLsFile is the file of haproxy-marathon-bridge, read because nothing
	// else was configured.
	Legacy    bool
	Transport string
	// Callback is where Marathon 0.8 posts its events.
	Callback struct {
		Listen string   // host:port; "": no callbacks
		URL    string   // how Marathon reaches it; "": http:// and Listen
		From   []string // addresses or networks that may post besides Marathon's own
	}
	Auth struct {
		BasicFile string
		TokenFile string
		DCOSFile  string
	}
	TLS struct {
		CAFile   string
		CertFile string
		KeyFile  string
		Insecure bool
	}
	Resync time.Duration
}

// TLSConfig is the section tls.
type TLSConfig struct {
	Dir        string // of certificates
	SelfSigned bool
}

// HAProxyConfig is the section haproxy.
type HAProxyConfig struct {
	Config            string
	Socket            string
	MasterSocket      string
	ReloadCommand     string
	Supervise         bool
	Binary            string
	Template          string
	MinReloadInterval time.Duration
	MaxOldWorkers     int
	Bind              string
	CheckInterval     time.Duration
	SaveDelay         time.Duration
	Slots             string
}

// Defaults returns the Config of an empty file.
func Defaults() *Config {
	c := &Config{
		Dialect:   DialectBridge,
		CertDir:   "/etc/ssl",
		Drain:     30 * time.Second,
		Listen:    "127.0.0.1:9377",
		StateDir:  "/var/lib/bridged",
		LogLevel:  "info",
		LogFormat: "text",
		origins:   map[string]origin{},
	}
	c.Marathon = marathonDefaults()
	c.MarathonLB = marathonLBDefaults()
	c.HAProxy = HAProxyConfig{
		Config:        "/etc/haproxy/haproxy.cfg",
		Socket:        "/run/haproxy/admin.sock",
		MasterSocket:  "/run/haproxy-master.sock",
		Binary:        "haproxy",
		MaxOldWorkers: 4,
		Bind:          "*",
		CheckInterval: 10 * time.Second,
		SaveDelay:     250 * time.Millisecond,
		Slots:         "auto",
	}
	return c
}

func marathonDefaults() MarathonConfig {
	return MarathonConfig{Transport: "auto", Resync: 5 * time.Minute}
}

// ConfigError is what an operator has to correct before bridged can run: each
// problem is one line that names the place, the key and the remedy.
type ConfigError struct{ Problems []error }

func (e *ConfigError) Error() string   { return errors.Join(e.Problems...).Error() }
func (e *ConfigError) Unwrap() []error { return e.Problems }

// Problem is one mistake of an operator.
type Problem struct {
	Where string // "/etc/bridged/bridged.yaml:12", "--listen", "BRIDGED_LISTEN"; "" for a default
	Key   string // "haproxy.socket"; "" when the file as a whole is meant
	Text  string // what is wrong and what to do
	Err   error  // cause, nil for none
}

func (p *Problem) Error() string {
	s := p.Text
	if p.Key != "" {
		s = p.Key + ": " + s
	}
	if p.Where != "" {
		s = p.Where + ": " + s
	}
	if p.Err != nil {
		s += ": " + p.Err.Error()
	}
	// One problem is one line, whatever a cause contains.
	return strings.Join(strings.Fields(s), " ")
}

func (p *Problem) Unwrap() error { return p.Err }

// Problem returns a ConfigError about one key of c, with the place its value came from.
func (c *Config) Problem(key, text string, cause error) error {
	return &ConfigError{Problems: []error{c.problem(key, text, cause)}}
}

func (c *Config) problem(key, text string, cause error) error {
	where := c.origins[key].where
	if where == "" {
		where = c.File // a default, or a key that is missing: it belongs into the file
	}
	return &Problem{Where: where, Key: key, Text: text, Err: cause}
}

// Sources is where a Config is read from. Later fields win over earlier ones.
type Sources struct {
	File     string            // "" for DefaultConfigFile, which may be absent
	Environ  []string          // as os.Environ gives it; variables that do not start with BRIDGED_ are ignored
	Flags    map[string]string // value by key, lists joined by commas
	LegacyAt string            // "" for LegacyMarathonsFile; tests point it elsewhere

	// Offline: the Config is for rendering alone. That no Marathon is named, or that
	// HAProxy's directory is not there, is no problem then.
	Offline bool
}

// Load reads and validates a Config. Its error is a *ConfigError with every problem
// found.
func Load(src Sources) (*Config, error) {
	c := Defaults()
	var problems []error

	path, optional := src.File, false
	if path == "" {
		path, optional = DefaultConfigFile, true
	}
	data, err := os.ReadFile(path)
	switch {
	case err == nil:
		c.File = path
		problems = append(problems, c.readYAML(path, data)...)
	case optional && errors.Is(err, fs.ErrNotExist):
	default:
		problems = append(problems, &Problem{Where: path, Text: "cannot read the configuration file (--config): " + remedyForFile(err), Err: reasonOf(err)})
	}
	problems = append(problems, c.readEnviron(src.Environ)...)
	problems = append(problems, c.readFlags(src.Flags)...)

	legacy := src.LegacyAt
	if legacy == "" {
		legacy = LegacyMarathonsFile
	}
	if len(c.Marathon.URLs) == 0 && c.Marathon.URLsFile == "" && len(c.Marathons) == 0 {
		if _, err := os.Stat(legacy); err == nil {
			c.Marathon.URLsFile = legacy
			c.Marathon.Legacy = true
		}
	}
	if c.Health == "" {
		c.Health = HealthBoth
		if c.Dialect == DialectMarathonLB {
			c.Health = HealthHAProxy
		}
	}
	if c.HAProxy.ReloadCommand != "" && c.origins["haproxy.master_socket"].layer == fromDefault && !c.HAProxy.Supervise {
		c.HAProxy.MasterSocket = "" // who names a command wants it used
	}
	c.templateEnv = templateVariables(src.Environ)
	if len(problems) == 0 {
		// After a value that could not be read, what follows from it would only repeat it.
		problems = c.validate(src.Offline)
	}
	if len(problems) == 0 {
		problems = c.readTemplates()
	}
	if len(problems) > 0 {
		return nil, &ConfigError{Problems: problems}
	}
	return c, nil
}

// Validate returns every problem of c in a stable order. It reads the files that c
// names, to find those that cannot be read while an operator still looks.
func (c *Config) Validate() []error { return c.validate(false) }

func (c *Config) validate(offline bool) []error {
	v := validator{c: c}
	v.marathons(offline)
	v.haproxy(offline)
	v.httpBinds()
	v.marathonLB()
	v.absolute("cert_dir", c.CertDir)
	v.tlsDir()
	if c.SocketDir != "" {
		v.absolute("socket_dir", c.SocketDir)
	}
	v.atLeast("drain", c.Drain, 0)
	v.hostPort("listen", c.Listen, false)
	v.hostPort("metrics_listen", c.MetricsListen, true)
	v.oneOf("log.level", c.LogLevel, "debug", "info", "warn", "error")
	v.oneOf("log.format", c.LogFormat, "text", "json")
	return v.problems
}

// validator collects problems of one Config.
type validator struct {
	c        *Config
	problems []error
}

func (v *validator) haproxy(offline bool) {
	h := &v.c.HAProxy
	v.absolute("haproxy.config", h.Config)
	if filepath.IsAbs(h.Config) && !offline {
		dir := filepath.Dir(h.Config)
		if st, err := os.Stat(dir); err != nil {
			v.add("haproxy.config", "its directory "+dir+" cannot be used; create it or name another file", reasonOf(err))
		} else if !st.IsDir() {
			v.add("haproxy.config", dir+" is not a directory; name a file in one", nil)
		}
	}
	v.absolute("haproxy.socket", h.Socket)
	if h.MasterSocket != "" {
		v.absolute("haproxy.master_socket", h.MasterSocket)
	}
	if h.MasterSocket == "" && h.ReloadCommand == "" {
		v.add("haproxy.master_socket", "nothing can reload HAProxy; set it, or haproxy.reload_command", nil)
	}
	if h.Supervise && h.MasterSocket == "" {
		v.add("haproxy.master_socket", "haproxy.supervise needs it; set a path that bridged may create", nil)
	}
	if h.Binary == "" {
		v.add("haproxy.binary", "is empty; name the program, such as haproxy or /usr/sbin/haproxy", nil)
	}
	v.readable("haproxy.template", h.Template)
	v.atLeast("haproxy.min_reload_interval", h.MinReloadInterval, 0)
	if h.MaxOldWorkers < 1 {
		v.add("haproxy.max_old_workers", fmt.Sprintf("want at least 1, have %d", h.MaxOldWorkers), nil)
	}
	if h.Bind != "*" {
		if _, err := netip.ParseAddr(h.Bind); err != nil {
			v.add("haproxy.bind", fmt.Sprintf("want * or an IP address, have %q", h.Bind), nil)
		}
	}
	v.atLeast("haproxy.check_interval", h.CheckInterval, 100*time.Millisecond)
	v.atLeast("haproxy.save_delay", h.SaveDelay, 0)
	v.oneOf("haproxy.slots", h.Slots, "auto", "always", "never")
}

func (v *validator) add(key, text string, cause error) {
	v.problems = append(v.problems, v.c.problem(key, text, cause))
}

func (v *validator) oneOf(key, have string, want ...string) {
	if !slices.Contains(want, have) {
		v.add(key, fmt.Sprintf("want one of %s, have %q", strings.Join(want, ", "), have), nil)
	}
}

func (v *validator) atLeast(key string, have, want time.Duration) {
	if have < want {
		v.add(key, fmt.Sprintf("want at least %v, have %v", want, have), nil)
	}
}

func (v *validator) absolute(key, path string) {
	if !filepath.IsAbs(path) {
		v.add(key, fmt.Sprintf("want an absolute path, have %q", path), nil)
	}
}

// readable accepts "" and a file that can be opened.
func (v *validator) readable(key, path string) {
	if path == "" {
		return
	}
	f, err := os.Open(path)
	if err != nil {
		v.add(key, "cannot read "+path+": "+remedyForFile(err), reasonOf(err))
		return
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.IsDir() {
		v.add(key, path+" is a directory; name a file", nil)
	}
}

func (v *validator) hostPort(key, addr string, optional bool) {
	if addr == "" && optional {
		return
	}
	host, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil || strings.ContainsAny(host, " /") {
		v.add(key, fmt.Sprintf("want host:port such as 127.0.0.1:9377, have %q", addr), nil)
	}
}

func countSet(values ...string) (n int) {
	for _, v := range values {
		if v != "" {
			n++
		}
	}
	return n
}

// reasonOf strips operation and path from a file error: the message names them already.
func reasonOf(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

func remedyForFile(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "create it or correct the path"
	case errors.Is(err, fs.ErrPermission):
		return "let the user of bridged read it"
	default:
		return "check the path"
	}
}

// marathonURL validates a Marathon's address as an operator writes it, host:port or
// a URL, and returns it as a URL without a trailing slash. Its error never repeats
// the password of a URL that holds one.
func marathonURL(s string) (string, error) {
	raw := s
	if !strings.Contains(raw, "://") {
		raw = "http://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil {
		// The cause repeats its input.
		return "", errors.New("want a URL such as http://m1:8080, have one that cannot be parsed")
	}
	switch {
	case u.User != nil:
		return "", fmt.Errorf("a URL must not hold a password (%s); put user:password into a file and name it in marathon.auth.basic_file", u.Redacted())
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("want a URL that starts with http:// or https://, have %q", s)
	case u.Hostname() == "" || !validHostname(u.Hostname()):
		return "", fmt.Errorf("want a host in the URL such as http://m1:8080, have %q", s)
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return "", fmt.Errorf("want a URL without ? and #, have %q", s)
	}
	if p := u.Port(); p != "" {
		if n, err := parsePort(p); err != nil || n == 0 {
			return "", fmt.Errorf("want a port from 1 to 65535, have %q", s)
		}
	} else if strings.HasSuffix(u.Host, ":") {
		return "", fmt.Errorf("want a port behind the colon, have %q", s)
	}
	return strings.TrimRight(u.String(), "/"), nil
}

// validHostname accepts an IP literal or a name of letters, digits, '-', '_' and '.'.
func validHostname(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	if len(s) > 253 {
		return false
	}
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
		default:
			return false
		}
	}
	return true
}

// Level is log.level.
func (c *Config) Level() slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return slog.LevelInfo // Validate has refused it
	}
	return l
}
