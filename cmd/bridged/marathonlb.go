package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"bridged/internal/bridge"
)

// Paths of marathon-lb's container.
const (
	mlbConfig      = "/marathon-lb/haproxy.cfg"
	mlbTemplates   = "/marathon-lb/templates"
	mlbCertDir     = "/etc/ssl"
	mlbSocket      = "/var/run/haproxy/socket"
	mlbMaster      = "/var/run/haproxy/master.sock"
	mlbDefault     = "http://master.mesos:8080"
	maxSSLCertVars = 100 // HAPROXY_SSL_CERT0 to HAPROXY_SSL_CERT100
)

// marathonLB is marathon-lb's command line.
type marathonLB struct {
	marathons      []string
	haproxyConfig  string
	groups         []string
	command        string
	strict         bool
	sse            bool
	health         bool
	mapMode        bool
	noHTTP         bool
	groupHTTPS     bool
	sslCerts       string
	dry            bool
	minPort        int
	maxPort        int
	logLevel       string
	credentialFile string
	credentials    string
	dcos           string
	ca             string

	certDir string // where certificates of variables are written
}

// mlbIgnored are flags that are taken and have nothing to do here, with the reason.
var mlbIgnored = []struct {
	name, value, why string
}{
	{"max-reload-retries", "count", "a reload is confirmed by the new worker, or taken back"},
	{"reload-interval", "seconds", "a reload is confirmed by the new worker, or taken back"},
	{"archive-versions", "count", "no copies of haproxy.cfg are kept"},
	{"lru-cache-capacity", "count", "nothing is evicted"},
	{"skip-validation", "", "only what is not proven is checked"},
	{"skip-config-cleanup", "", "what HAProxy refuses is always taken out app by app"},
	{"max-backoff", "seconds", "reconnects are paced by what failed"},
	{"syslog-socket", "path", "the log goes to standard error"},
	{"log-format", "format", "use log.format of bridged"},
}

func newMarathonLBCommand(environ []string) *cobra.Command {
	m := &marathonLB{certDir: mlbCertDir}
	cmd := &cobra.Command{
		Use:   "marathon-lb [sse|poll]",
		Short: "Run with marathon-lb's flags and variables",
		Long: `Run as a replacement of marathon-lb: its flags, and the first argument and variables
of its container, are translated into bridged's configuration in dialect marathon-lb.
What has no counterpart is named on standard error and ignored; what cannot be done is
refused.

With poll as the first argument Marathon is polled, with sse or --sse its events are
followed. A single run, which marathon-lb makes without any of them, is not supported;
--dry prints what it would write. A bridged.yaml and BRIDGED_ variables count too, below what stands here.`,
		Example: `  bridged marathon-lb --marathon http://m1:8080 --group external --sse
  bridged marathon-lb sse --group '*'        # as the container's command`,
		Args: cobra.ArbitraryArgs,
	}
	m.addFlags(cmd.Flags())
	long := cmd.Flags().Bool("longhelp", false, "print this help")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *long {
			return cmd.Help()
		}
		src, once, err := m.sources(args, environ, cmd.Flags().Changed, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		defer src.remove()
		if once {
			return m.writeOnce(cmd.Context(), src.Sources, cmd.OutOrStdout(), cmd.ErrOrStderr())
		}
		return runDaemon(cmd.Context(), src.Sources, cmd.ErrOrStderr())
	}
	return cmd
}

// addFlags makes f take marathon-lb's flags.
func (m *marathonLB) addFlags(f *pflag.FlagSet) {
	f.SortFlags = false
	f.StringSliceVarP(&m.marathons, "marathon", "m", nil, "members of one Marathon (default "+mlbDefault+")")
	f.StringVar(&m.haproxyConfig, "haproxy-config", "", "haproxy.cfg to write (default /etc/haproxy/haproxy.cfg, "+mlbConfig+" after sse or poll)")
	f.StringArrayVar(&m.groups, "group", nil, "groups to serve; * for all")
	f.StringVarP(&m.command, "command", "c", "", "command that reloads HAProxy; by default its master socket")
	f.BoolVar(&m.strict, "strict-mode", false, "services are off unless HAPROXY_{n}_ENABLED is true")
	f.BoolVarP(&m.sse, "sse", "s", false, "follow Marathon's events")
	f.BoolVarP(&m.health, "health-check", "H", false, "route to tasks that Marathon sees alive")
	f.BoolVar(&m.mapMode, "haproxy-map", false, "use maps (always on)")
	f.BoolVar(&m.noHTTP, "dont-bind-http-https", false, "no listeners on :80 and :443")
	f.BoolVar(&m.groupHTTPS, "group-https-by-vhost", false, "a TLS frontend for each vhost")
	f.StringVar(&m.sslCerts, "ssl-certs", "", "certificates of :443, separated by commas")
	f.BoolVarP(&m.dry, "dry", "d", false, "print the configuration and exit")
	f.IntVar(&m.minPort, "min-serv-port-ip-per-task", 10050, "lowest port for apps of container networks; 0 with the other: none")
	f.IntVar(&m.maxPort, "max-serv-port-ip-per-task", 10100, "highest port for them")
	f.StringVar(&m.logLevel, "log-level", "", "CRITICAL, ERROR, WARNING, INFO, DEBUG or NOTSET (default INFO)")
	f.StringVar(&m.credentialFile, "marathon-auth-credential-file", "", "file whose first line is user:password")
	f.StringVar(&m.credentials, "auth-credentials", "", "user:password")
	f.StringVar(&m.dcos, "dcos-auth-credentials", "", "DC/OS service account, JSON")
	f.StringVar(&m.ca, "marathon-ca-cert", "", "authority of Marathon's certificate")
	for _, i := range mlbIgnored {
		f.String(i.name, "", "ignored: "+i.why)
		if i.value == "" {
			f.Lookup(i.name).NoOptDefVal = "true"
		}
	}
}

// mlbSources are Sources with the files that were made for them.
type mlbSources struct {
	bridge.Sources
	dir string // of secrets that marathon-lb takes as values; "" for none
}

// remove deletes what was made.
func (s *mlbSources) remove() {
	if s.dir != "" {
		os.RemoveAll(s.dir)
	}
}

// secret puts text into a file that we alone read: bridged takes secrets as files.
func (s *mlbSources) secret(name, text string) (string, error) {
	if s.dir == "" {
		dir, err := os.MkdirTemp("", "bridged-marathon-lb-")
		if err != nil {
			return "", fmt.Errorf("make a directory for secrets: %w", err)
		}
		s.dir = dir
	}
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write a secret: %w", err)
	}
	return path, nil
}

// sources translates flags, the container's argument and its variables. once: the
// configuration is written and nothing is followed.
func (m *marathonLB) sources(args, environ []string, changed func(string) bool, stderr io.Writer) (src *mlbSources, once bool, err error) {
	// marathon-lb takes several values behind one flag: -m URL URL.
	mode := ""
	if len(args) > 0 && (args[0] == "sse" || args[0] == "poll") {
		mode, args = args[0], args[1:]
	}
	for _, arg := range args {
		if !strings.Contains(arg, "://") {
			return nil, false, usageError{fmt.Errorf("want sse, poll or a further URL of Marathon, have %q", arg)}
		}
		m.marathons = append(m.marathons, arg)
	}
	for _, i := range mlbIgnored {
		if changed(i.name) {
			fmt.Fprintf(stderr, "bridged: --%s is ignored: %s\n", i.name, i.why)
		}
	}
	env := environOf(environ)
	flags := map[string]string{"dialect": string(bridge.DialectMarathonLB)}
	src = &mlbSources{Sources: bridge.Sources{Environ: environ, Flags: flags, File: env["BRIDGED_CONFIG"]}}
	made := src // src is nil where an error is returned
	defer func() {
		if err != nil {
			made.remove()
		}
	}()

	// What is set nowhere is left to bridged.yaml and BRIDGED_ variables.
	configured := src.File != "" || exists(bridge.DefaultConfigFile)
	if len(m.marathons) > 0 {
		flags["marathon.urls"] = strings.Join(m.marathons, ",")
	} else if !configured && env["BRIDGED_MARATHON_URLS"] == "" && env["BRIDGED_MARATHON"] == "" {
		flags["marathon.urls"] = mlbDefault
	}
	if len(m.groups) == 0 && !configured && env["BRIDGED_GROUPS"] == "" && env["BRIDGED_GROUP"] == "" {
		return nil, false, usageError{errors.New("argument --group is required: at least one group name")}
	}
	set := func(key, value string) {
		if value != "" {
			flags[key] = value
		}
	}
	set("groups", strings.Join(m.groups, ","))
	set("haproxy.config", m.haproxyConfig)
	set("marathon.tls.ca_file", m.ca)
	set("marathon_lb.framework_name", env["FRAMEWORK_NAME"])
	if m.command != "" {
		flags["haproxy.reload_command"], flags["haproxy.master_socket"] = m.command, ""
	}
	for key, on := range map[string]bool{"strict": m.strict, "marathon_lb.group_https_by_vhost": m.groupHTTPS} {
		if on {
			flags[key] = "true"
		}
	}
	if m.health {
		flags["health"] = string(bridge.HealthBoth)
	}
	if m.noHTTP {
		flags["http.bind"] = "none"
	}
	if changed("min-serv-port-ip-per-task") || changed("max-serv-port-ip-per-task") {
		if flags["marathon_lb.auto_ports"], err = m.autoPorts(); err != nil {
			return nil, false, err
		}
	}
	if m.logLevel != "" {
		if flags["log.level"], err = mlbLevel(m.logLevel); err != nil {
			return nil, false, err
		}
	}
	if err := m.authorize(src, env); err != nil {
		return nil, false, err
	}
	certs := m.sslCerts
	if mode != "" {
		if certs, err = m.container(src, mode, env, stderr); err != nil {
			return nil, false, err
		}
	} else if dir := "templates"; exists(dir) {
		// marathon-lb looks into its working directory.
		if dir, err = filepath.Abs(dir); err != nil {
			return nil, false, fmt.Errorf("find the template directory: %w", err)
		}
		flags["marathon_lb.template_dir"] = dir
	}
	set("marathon_lb.ssl_certs", certs)
	return src, m.dry || mode == "" && !m.sse, nil
}

// container is what the entry script of marathon-lb's container adds: fixed paths and
// variables. It returns the certificates.
func (m *marathonLB) container(src *mlbSources, mode string, env map[string]string, stderr io.Writer) (certs string, err error) {
	f := src.Flags
	setDefault := func(key, value string) {
		if _, ok := f[key]; !ok {
			f[key] = value
		}
	}
	if env["PORTS"] == "" {
		return "", errors.New("define $PORTS with a comma-separated list of the ports that the container exposes")
	}
	setDefault("haproxy.config", mlbConfig)
	if m.command == "" && env["BRIDGED_HAPROXY_SOCKET"] == "" {
		// There HAProxy belongs to the container, as here.
		setDefault("haproxy.socket", mlbSocket)
		setDefault("haproxy.master_socket", mlbMaster)
		setDefault("haproxy.supervise", "true")
	}
	if mode == "poll" {
		f["marathon.transport"] = "poll"
		if s := env["POLL_INTERVAL"]; s != "" {
			n, err := strconv.Atoi(s)
			if err != nil || n < 1 {
				return "", usageError{fmt.Errorf("POLL_INTERVAL: want seconds, have %q", s)}
			}
			f["marathon.resync"] = strconv.Itoa(n) + "s"
		}
	}
	switch sandbox := filepath.Join(env["MESOS_SANDBOX"], "templates"); {
	case env["MESOS_SANDBOX"] != "" && exists(sandbox):
		f["marathon_lb.template_dir"] = sandbox
	case exists(mlbTemplates):
		f["marathon_lb.template_dir"] = mlbTemplates
	}
	for _, name := range []string{"HAPROXY_SYSLOGD", "HAPROXY_SYSCTL_PARAMS", "SYSLOG_SOCKET", "VAULT_TOKEN"} {
		if env[name] != "" {
			fmt.Fprintf(stderr, "bridged: variable %s is ignored: %s\n", name, mlbVariables[name])
		}
	}
	certs = m.sslCerts
	if env["HAPROXY_SSL_CERT"] == "" {
		return certs, nil
	}
	names := []string{"HAPROXY_SSL_CERT"}
	for i := range maxSSLCertVars + 1 {
		names = append(names, "HAPROXY_SSL_CERT"+strconv.Itoa(i))
	}
	for _, name := range names {
		if env[name] == "" {
			continue
		}
		// Where it is there, since labels may name it.
		path := filepath.Join(m.certDir, strings.ToLower(strings.TrimPrefix(name, "HAPROXY_SSL_"))+".pem")
		if err := os.WriteFile(path, []byte(env[name]+"\n"), 0o600); err != nil {
			return "", fmt.Errorf("write the certificate of %s: %w", name, err)
		}
		certs = strings.TrimPrefix(certs+","+path, ",")
	}
	return certs, nil
}

// mlbVariables says why a variable of the container is not honoured.
var mlbVariables = map[string]string{
	"HAPROXY_SYSLOGD":       "no syslogd is started; HAProxy logs where the template says",
	"HAPROXY_SYSCTL_PARAMS": "set kernel parameters where the container is started",
	"SYSLOG_SOCKET":         "the log goes to standard error",
	"VAULT_TOKEN":           "have the credentials written to a file and name it with --marathon-auth-credential-file",
}

// autoPorts is the range of --min- and --max-serv-port-ip-per-task.
func (m *marathonLB) autoPorts() (string, error) {
	switch {
	case m.minPort == 0 && m.maxPort == 0:
		return "none", nil
	case m.minPort == 0 || m.maxPort == 0:
		return "", usageError{errors.New("--min-serv-port-ip-per-task and --max-serv-port-ip-per-task go together: set both, or both to 0")}
	case m.minPort > m.maxPort || m.minPort < 0 || m.maxPort > 65535:
		return "", usageError{fmt.Errorf("--min-serv-port-ip-per-task: want a range of ports, have %d to %d", m.minPort, m.maxPort)}
	}
	return fmt.Sprintf("%d-%d", m.minPort, m.maxPort), nil
}

// mlbLevel is a level of Python's logging in our words.
func mlbLevel(level string) (string, error) {
	levels := map[string]string{"CRITICAL": "error", "ERROR": "error", "WARNING": "warn", "INFO": "info", "DEBUG": "debug", "NOTSET": "debug"}
	if l, ok := levels[strings.ToUpper(level)]; ok {
		return l, nil
	}
	return "", usageError{fmt.Errorf("--log-level: want one of %s, have %q", strings.Join(slices.Sorted(maps.Keys(levels)), ", "), level)}
}

// authorize takes credentials, the strongest first: file, user and password, DC/OS.
func (m *marathonLB) authorize(src *mlbSources, env map[string]string) error {
	pair := m.credentials
	if pair == "" && env["MARATHON_USER"] != "" {
		pair = env["MARATHON_USER"] + ":" + env["MARATHON_PASSWORD"]
	}
	dcos := m.dcos
	if dcos == "" {
		dcos = env["DCOS_SERVICE_ACCOUNT_CREDENTIAL"]
	}
	key, text := "", ""
	switch {
	case m.credentialFile != "":
		src.Flags["marathon.auth.basic_file"] = m.credentialFile
		return nil
	case pair != "":
		if strings.Count(pair, ":") != 1 {
			return usageError{errors.New("--auth-credentials: want user:password with one colon")}
		}
		key, text = "marathon.auth.basic_file", pair
	case dcos != "":
		if !json.Valid([]byte(dcos)) {
			return usageError{errors.New("--dcos-auth-credentials: want JSON with uid, private_key and login_endpoint")}
		}
		key, text = "marathon.auth.dcos_file", dcos
	default:
		return nil
	}
	path, err := src.secret("credentials", text)
	if err != nil {
		return err
	}
	src.Flags[key] = path
	return nil
}

// writeOnce renders for the apps of now: to haproxy.cfg, or to stdout with --dry.
func (m *marathonLB) writeOnce(ctx context.Context, src bridge.Sources, stdout, stderr io.Writer) error {
	if !m.dry {
		return usageError{errors.New("one run without events is not supported, since bridged stays with HAProxy: add --sse, or --dry to print the configuration")}
	}
	src.Offline = true
	cfg, err := bridge.Load(src)
	if err != nil {
		return err
	}
	r, err := renderFrom(ctx, cfg, "", nil, stderr)
	if err != nil {
		return err
	}
	if err := r.write("", stdout); err != nil {
		return err
	}
	if r.rejected {
		return errRejected
	}
	return nil
}

func environOf(environ []string) map[string]string {
	env := make(map[string]string, len(environ))
	for _, kv := range environ {
		if name, value, ok := strings.Cut(kv, "="); ok {
			env[name] = value
		}
	}
	return env
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
