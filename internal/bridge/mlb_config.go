package bridge

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"bridged/internal/haproxy"
)

// MarathonLBConfig is the section marathon_lb: what exists in dialect marathon-lb alone.
type MarathonLBConfig struct {
	SSLCerts          []string
	TemplateDir       string
	AppIDBind         string
	StatsBind         string
	Endpoints         bool
	AutoPorts         string
	GroupHTTPSByVhost bool
	LongestPathFirst  bool
	OpenAuth          bool
	PlainHTTPSChecks  bool
	FrameworkName     string
}

func marathonLBDefaults() MarathonLBConfig {
	return MarathonLBConfig{AppIDBind: "*:9091", StatsBind: "*:9090", Endpoints: true, AutoPorts: "10050-10100"}
}

// noneWord switches a listener or a range off where no value means its default.
const noneWord = "none"

func (v *validator) httpBinds() {
	for _, b := range v.c.HTTPBind {
		if b == noneWord {
			if len(v.c.HTTPBind) > 1 {
				v.add("http.bind", "none stands beside other addresses; keep one of them", nil)
			}
			continue
		}
		if _, err := ParseBind(b); err != nil {
			v.add("http.bind", err.Error(), nil)
		}
	}
}

func (v *validator) marathonLB() {
	m := &v.c.MarathonLB
	for _, b := range []struct{ key, value string }{{"marathon_lb.app_id_bind", m.AppIDBind}, {"marathon_lb.stats_bind", m.StatsBind}} {
		if b.value == noneWord {
			continue
		}
		if bind, err := ParseBind(b.value); err != nil {
			v.add(b.key, err.Error(), nil)
		} else if bind.Port == 0 {
			v.add(b.key, fmt.Sprintf("want an address with a port such as *:9090, or none, have %q", b.value), nil)
		}
	}
	if _, _, err := parseAutoPorts(m.AutoPorts); err != nil {
		v.add("marathon_lb.auto_ports", err.Error(), nil)
	}
	for _, cert := range m.SSLCerts {
		// The words become part of a bind line.
		if strings.ContainsAny(cert, " \t\"'\\#$\n") || !strings.HasPrefix(cert, "/") {
			v.add("marathon_lb.ssl_certs", fmt.Sprintf("want absolute paths without blanks and quotes, have %q", cert), nil)
		} else if _, err := os.Stat(cert); err != nil {
			v.add("marathon_lb.ssl_certs", "cannot use "+cert+": "+remedyForFile(err), reasonOf(err))
		}
	}
}

// parseAutoPorts reads "10050-10100", or none.
func parseAutoPorts(s string) (first, last uint16, err error) {
	if s == noneWord {
		return 0, 0, nil
	}
	a, b, ok := strings.Cut(s, "-")
	first, err1 := parsePort(a)
	last, err2 := parsePort(b)
	if !ok || err1 != nil || err2 != nil || first == 0 || last < first {
		return 0, 0, fmt.Errorf("want a range of ports such as 10050-10100, or none, have %q", s)
	}
	return first, last, nil
}

// templateVariables are the variables that may hold templates of marathon-lb.
func templateVariables(environ []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(kv string) bool { return !strings.HasPrefix(kv, labelPrefix) })
}

// readTemplates takes in the operator's templates, and says what is wrong with them.
func (c *Config) readTemplates() (problems []error) {
	if c.Dialect != DialectMarathonLB {
		return nil
	}
	dir := c.MarathonLB.TemplateDir
	if dir != "" {
		if st, err := os.Stat(dir); err == nil && !st.IsDir() {
			return []error{c.problem("marathon_lb.template_dir", dir+" is not a directory; name one", nil)}
		}
	}
	found, err := LoadTemplates(dir, c.templateEnv)
	if err != nil {
		text := "cannot be read: " + remedyForFile(err)
		return []error{c.problem("marathon_lb.template_dir", text, err)}
	}
	o := TranslateOptionsOf(c)
	o.Templates = found
	for _, err := range o.CheckTemplates() {
		problems = append(problems, c.problem("marathon_lb.template_dir", "a template cannot be used, correct it", err))
	}
	c.templates = found
	return problems
}

// watchedTemplates names what to watch for changes of templates.
func (c *Config) watchedTemplates() string {
	if c.Dialect != DialectMarathonLB {
		return ""
	}
	return c.MarathonLB.TemplateDir
}

// marathonLBOptions are o with what counts in dialect marathon-lb.
func marathonLBOptions(o TranslateOptions, cfg *Config) TranslateOptions {
	m := cfg.MarathonLB
	o.Templates = cfg.templates
	o.MarathonLB = MarathonLBOptions{
		GroupHTTPSByVhost: m.GroupHTTPSByVhost,
		LongestPathFirst:  m.LongestPathFirst,
		OpenAuth:          m.OpenAuth,
		PlainHTTPSChecks:  m.PlainHTTPSChecks,
		FrameworkName:     strings.TrimPrefix(m.FrameworkName, "/"),
	}
	bind := func(s string) haproxy.Bind {
		b, err := ParseBind(s)
		if err != nil {
			return haproxy.Bind{} // Validate has refused it
		}
		return b
	}
	var err error
	if o.MarathonLB.MinAutoPort, o.MarathonLB.MaxAutoPort, err = parseAutoPorts(m.AutoPorts); err != nil {
		o.MarathonLB.MinAutoPort, o.MarathonLB.MaxAutoPort = 0, 0
	}
	noPorts := o.MarathonLB.MaxAutoPort == 0
	if m.AppIDBind != noneWord {
		o.MarathonLB.AppIDBind = bind(m.AppIDBind)
	}
	if m.StatsBind != noneWord {
		o.MarathonLB.StatsBind = bind(m.StatsBind)
	}
	certs := m.SSLCerts
	if len(certs) == 0 && cfg.TLS.Dir != "" {
		certs = []string{cfg.TLS.Dir}
	}
	o = MarathonLBDefaults(o, certs)
	// The defaults fill in what is zero; what the operator switched off is zero too.
	if m.AppIDBind == noneWord {
		o.MarathonLB.AppIDBind = haproxy.Bind{}
	}
	if m.StatsBind == noneWord || ReadHead(cfg.templates["HEAD"]).hasSection("stats") {
		o.MarathonLB.StatsBind = haproxy.Bind{}
	}
	if noPorts {
		o.MarathonLB.MinAutoPort, o.MarathonLB.MaxAutoPort = 0, 0
	}
	return o
}

// tlsDir holds tls.dir to what a listener and a command can name.
func (v *validator) tlsDir() {
	dir := v.c.TLS.Dir
	if dir == "" {
		if v.c.TLS.SelfSigned {
			v.add("tls.self_signed", "needs tls.dir: certificates take the place of the self-signed one there", nil)
		}
		return
	}
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || !filePattern.MatchString(dir) {
		v.add("tls.dir", fmt.Sprintf("want an absolute path of letters, digits and ._/-, without a slash at its end, have %q", dir), nil)
	}
}
