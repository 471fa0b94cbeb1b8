package bridge

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"bridged/internal/discovery"
	"bridged/internal/haproxy"
)

// Limits of label values. Beyond them nothing sensible is meant, and haproxy.cfg has
// a limit of its own on the length of a line.
const (
	maxLabelValue    = 2 << 10
	maxTemplateValue = 64 << 10
	maxVhosts        = 64
	maxPaths         = 64
	maxNetworks      = 128
)

// settings are the labels of one service port, parsed: every text in them is safe at
// the place in haproxy.cfg that its field owns.
type settings struct {
	groups      []string
	enabled     bool
	port        uint16 // of a PORT label; 0: none
	bindAddr    string // "": the configured one
	bindOptions []string
	certs       []string
	mode        haproxy.Mode // of a MODE label; "": derive
	balance     string       // "": the dialect's
	vhosts      []string
	pathFlags   []string // words of PATH before the paths, such as -i
	paths       []string
	weight      int
	sticky      bool
	redirect    bool
	hsts        bool
	compress    bool
	auth        *basicAuth
	allowed     []string // addresses and prefixes
	checkIndex  int      // -1: none
	proxyPass   string
	revProxy    string
	redir       string
	proto       string // protocol spoken to servers, "h2"
	sendProxy   string // "send-proxy", "send-proxy-v2"
	tls         string // options of TLS to the servers
	maxConn     int
	slowStart   time.Duration

	templates map[string]string // raw-text overrides by template name
}

// basicAuth is an AUTH label. The password is a crypt(3) hash.
type basicAuth struct{ realm, user, hash string }

// group is the part of an app's labels that puts it in a deployment group.
type deployment struct {
	group           string // "" when in none; else an app id
	started         time.Time
	target          int
	hasTarget       bool
	hasNewInstances bool
}

// portLabel is one registered label of the form HAPROXY_{n}_NAME.
type portLabel struct {
	name  string
	parse func(s *settings, value string, p *labelParser) error
}

// labelParser is what parsing values depends on beside the value.
type labelParser struct {
	opts *TranslateOptions
}

// errWant is what a parse function returns: what the label takes.
func errWant(want string) error { return errors.New("want " + want) }

// portLabels is the closed registry, in the order in which labels apply. Names sort as
// marathon-lb applies them; the one place where that matters is a BACKEND_WEIGHT of 0,
// which PATH raises to 1.
var portLabels = []portLabel{
	{"AUTH", func(s *settings, v string, _ *labelParser) (err error) { s.auth, err = parseAuth(v); return }},
	{"BACKEND_HEALTHCHECK_PORT_INDEX", func(s *settings, v string, _ *labelParser) (err error) {
		s.checkIndex, err = parseInt(v, 0, 1023)
		return
	}},
	{"BACKEND_MAXCONN", func(s *settings, v string, _ *labelParser) (err error) {
		s.maxConn, err = parseInt(v, 1, 1_000_000)
		return
	}},
	{"BACKEND_NETWORK_ALLOWED_ACL", func(s *settings, v string, _ *labelParser) (err error) {
		s.allowed, err = parseNetworks(v)
		return
	}},
	{"BACKEND_PROTO", func(s *settings, v string, _ *labelParser) (err error) {
		s.proto, err = parseChoice(v, map[string]string{"h1": "", "h2": "h2"})
		return
	}},
	{"BACKEND_SEND_PROXY", func(s *settings, v string, _ *labelParser) (err error) {
		s.sendProxy, err = parseChoice(v, map[string]string{"v1": "send-proxy", "v2": "send-proxy-v2"})
		return
	}},
	{"BACKEND_SLOWSTART", func(s *settings, v string, _ *labelParser) (err error) {
		s.slowStart, err = parseDuration(v, time.Second, time.Hour)
		return
	}},
	{"BACKEND_TLS", func(s *settings, v string, _ *labelParser) (err error) {
		s.tls, err = parseChoice(v, map[string]string{"noverify": "ssl verify none", "verify": "ssl verify required ca-file @system-ca"})
		return
	}},
	{"BACKEND_WEIGHT", func(s *settings, v string, _ *labelParser) (err error) {
		s.weight, err = parseInt(v, -1_000_000, 1_000_000)
		return
	}},
	{"BALANCE", func(s *settings, v string, _ *labelParser) (err error) { s.balance, err = parseBalance(v); return }},
	{"BIND_ADDR", func(s *settings, v string, p *labelParser) (err error) {
		s.bindAddr, err = parseBindAddr(v, p.opts.SocketDir)
		return
	}},
	{"BIND_OPTIONS", func(s *settings, v string, p *labelParser) (err error) {
		s.bindOptions, err = parseBindOptions(v, p.opts.CertDir)
		return
	}},
	{"COMPRESSION", func(s *settings, v string, _ *labelParser) error { s.compress = parseBool(v); return nil }},
	{"ENABLED", func(s *settings, v string, _ *labelParser) error { s.enabled = parseBool(v); return nil }},
	{"GROUP", func(s *settings, v string, _ *labelParser) error {
		if v != "" {
			s.groups = strings.Split(v, ",")
		}
		return nil
	}},
	{"HTTP_BACKEND_PROXYPASS_PATH", func(s *settings, v string, _ *labelParser) (err error) {
		s.proxyPass, err = parsePath(v)
		return
	}},
	{"HTTP_BACKEND_REDIR", func(s *settings, v string, _ *labelParser) (err error) {
		s.redir, err = parsePath(v)
		return
	}},
	{"HTTP_BACKEND_REVPROXY_PATH", func(s *settings, v string, _ *labelParser) (err error) {
		s.revProxy, err = parsePath(v)
		return
	}},
	{"MODE", func(s *settings, v string, _ *labelParser) error {
		mode, err := parseChoice(strings.ToLower(v), map[string]string{"tcp": "tcp", "http": "http"})
		s.mode = haproxy.Mode(mode)
		return err
	}},
	{"PATH", func(s *settings, v string, _ *labelParser) (err error) {
		if s.pathFlags, s.paths, err = parsePaths(v); err == nil && s.weight == 0 {
			s.weight = 1
		}
		return
	}},
	{"PORT", func(s *settings, v string, _ *labelParser) error {
		n, err := parseInt(v, 1, 65535)
		s.port = uint16(n)
		return err
	}},
	{"REDIRECT_TO_HTTPS", func(s *settings, v string, _ *labelParser) error { s.redirect = parseBool(v); return nil }},
	{"SSL_CERT", func(s *settings, v string, p *labelParser) (err error) {
		s.certs, err = parseCerts(v, p.opts.CertDir)
		return
	}},
	{"STICKY", func(s *settings, v string, _ *labelParser) error { s.sticky = parseBool(v); return nil }},
	{"USE_HSTS", func(s *settings, v string, _ *labelParser) error { s.hsts = parseBool(v); return nil }},
	{"VHOST", func(s *settings, v string, _ *labelParser) (err error) { s.vhosts, err = parseVhosts(v); return }},
}

var portLabelByName = func() map[string]int {
	m := make(map[string]int, len(portLabels))
	for i, l := range portLabels {
		m[l.name] = i
	}
	return m
}()

const labelPrefix = "HAPROXY_"

// parseSettings reads the labels of service port index of an app. Labels that are not
// registered are ignored: they belong to somebody else or to a later version. The
// error joins one *LabelError for every bad label, by name.
func parseSettings(app *discovery.App, index int, o *TranslateOptions) (*settings, error) {
	s := &settings{enabled: !o.Strict, checkIndex: -1}
	if v := app.Labels[labelPrefix+"GROUP"]; v != "" {
		s.groups = strings.Split(v, ",")
	}
	prefix := labelPrefix + strconv.Itoa(index) + "_"
	var found []int
	var bad []error
	for label, value := range app.Labels {
		name, ok := strings.CutPrefix(label, prefix)
		if !ok {
			continue
		}
		if i, ok := portLabelByName[name]; ok {
			found = append(found, i)
			continue
		}
		if o.Dialect != DialectMarathonLB || !labelTemplates[name] {
			continue
		}
		switch {
		case !o.AllowTemplateLabels:
			bad = append(bad, &LabelError{label, ReasonTemplateLabels,
				"raw configuration text is not allowed here (allow_template_labels is false)"})
		case len(value) > maxTemplateValue || strings.ContainsRune(value, 0):
			bad = append(bad, &LabelError{label, ReasonBadLabel, "want at most 64 KiB of text without NUL"})
		default:
			if s.templates == nil {
				s.templates = make(map[string]string)
			}
			s.templates[name] = strings.ReplaceAll(value, "\r\n", "\n")
		}
	}
	slices.Sort(found)
	p := &labelParser{opts: o}
	for _, i := range found {
		l := portLabels[i]
		value := app.Labels[prefix+l.name]
		err := errWant("at most 2048 bytes")
		if len(value) <= maxLabelValue {
			err = l.parse(s, value, p)
		}
		if err != nil {
			bad = append(bad, &LabelError{prefix + l.name, ReasonBadLabel, err.Error()})
		}
	}
	if err := s.agree(prefix, o); err != nil && len(bad) == 0 {
		bad = append(bad, err)
	}
	slices.SortStableFunc(bad, func(a, b error) int { return strings.Compare(labelOf(a), labelOf(b)) })
	return s, errors.Join(bad...)
}

func labelOf(err error) string {
	if e, ok := errors.AsType[*LabelError](err); ok {
		return e.Label
	}
	return ""
}

// agree finds labels that are fine alone and not together.
func (s *settings) agree(prefix string, o *TranslateOptions) *LabelError {
	if s.mode != haproxy.TCP {
		return nil
	}
	switch {
	case len(s.vhosts) > 0 && s.routesVhosts(o):
		return &LabelError{prefix + "MODE", ReasonBadLabel, "a VHOST needs mode http"}
	case s.auth != nil && !o.MarathonLB.OpenAuth:
		return &LabelError{prefix + "MODE", ReasonBadLabel, "AUTH needs mode http"}
	case s.proto == "h2":
		return &LabelError{prefix + "MODE", ReasonBadLabel, "BACKEND_PROTO h2 needs mode http"}
	}
	return nil
}

// routesVhosts says whether the shared vhost frontends exist that a VHOST label feeds.
func (s *settings) routesVhosts(o *TranslateOptions) bool { return len(o.HTTPBinds) > 0 }

// sameLabels says whether two definitions give equal settings for sure, so that a task
// event does not parse labels again.
func sameLabels(a, b *discovery.App) bool {
	return a == b || a != nil && b != nil && a.ID == b.ID && maps.Equal(a.Labels, b.Labels)
}

// parseDeployment reads the labels of a deployment group.
func parseDeployment(app *discovery.App) (deployment, error) {
	var d deployment
	group, ok := app.Labels[labelPrefix+"DEPLOYMENT_GROUP"]
	if !ok {
		return d, nil
	}
	const want = "want the path of an app"
	if !strings.HasPrefix(group, "/") {
		group = "/" + group
	}
	if !validAppID(group) {
		return d, &LabelError{labelPrefix + "DEPLOYMENT_GROUP", ReasonBadLabel, want}
	}
	d.group = group
	if v, ok := app.Labels[labelPrefix+"DEPLOYMENT_STARTED_AT"]; ok {
		t, ok := parseISOTime(v)
		if !ok {
			return deployment{}, &LabelError{labelPrefix + "DEPLOYMENT_STARTED_AT", ReasonBadLabel, "want a time in ISO 8601"}
		}
		d.started = t
	}
	_, d.hasNewInstances = app.Labels[labelPrefix+"DEPLOYMENT_NEW_INSTANCES"]
	if v, ok := app.Labels[labelPrefix+"DEPLOYMENT_TARGET_INSTANCES"]; ok {
		n, err := parseInt(v, 0, 1_000_000)
		if err != nil {
			return deployment{}, &LabelError{labelPrefix + "DEPLOYMENT_TARGET_INSTANCES", ReasonBadLabel, err.Error()}
		}
		d.target, d.hasTarget = n, true
	}
	return d, nil
}

// parseISOTime accepts what Python's isoformat and Marathon write.
func parseISOTime(v string) (time.Time, bool) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999",
		"2006-01-02T15:04:05.999999999Z0700", "2006-01-02"} {
		if t, err := time.Parse(layout, v); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}
