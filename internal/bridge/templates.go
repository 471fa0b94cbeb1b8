package bridge

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// template is one of marathon-lb's templates. Its name there has the prefix HAPROXY_.
type template struct {
	text string
	// raw templates are inserted as they are; the others have fields.
	raw bool
	// label: HAPROXY_{n}_<name> overrides it for one service port.
	label bool
}

// Conditions that several templates share. Braces are doubled where fields are expanded.
const (
	aclHost   = "acl host_{cleanedUpHostname} hdr(host),field(1,:) -i {hostname}"
	aclPath   = "acl path_{backend} path_beg {path}"
	aclAuth   = "acl auth_{cleanedUpHostname} http_auth(user_{backend})"
	sniIs     = "{{ ssl_fc_sni {hostname} }}"
	useIfHost = "use_backend {backend} if host_{cleanedUpHostname}"
	challenge = "http-request auth realm {realm} if "
)

// mlbTemplates are all there are, with today's spelling of the directives that HAProxy has
// removed since marathon-lb wrote them.
var mlbTemplates = map[string]template{
	"HEAD":                     {raw: true},
	"HTTP_FRONTEND_HEAD":       {raw: true},
	"HTTPS_FRONTEND_HEAD":      {},
	"HTTP_FRONTEND_APPID_HEAD": {raw: true},

	"USERLIST_HEAD":         {label: true, text: "userlist user_{backend}\nuser {user} password {passwd}"},
	"FRONTEND_HEAD":         {label: true, text: "frontend {backend}\nbind {bindAddr}:{servicePort}{sslCert}{bindOptions}\nmode {mode}"},
	"FRONTEND_BACKEND_GLUE": {label: true, text: "use_backend {backend}"},
	"BACKEND_HEAD":          {label: true, text: "backend {backend}\nbalance {balance}\nmode {mode}"},

	"BACKEND_HSTS_OPTIONS": {label: true, raw: true, text: "http-response set-header Strict-Transport-Security max-age=15768000"},
	"BACKEND_HTTP_OPTIONS": {label: true, raw: true, text: "option forwardfor\n" +
		"http-request set-header X-Forwarded-Port %[dst_port]\n" +
		"http-request add-header X-Forwarded-Proto https if { ssl_fc }"},
	"HTTP_BACKEND_PROXYPASS_GLUE": {label: true, text: "http-request set-header Host {hostname}\n" +
		`http-request replace-path ^{proxypath_re}/?(.*) /\1`},
	"HTTP_BACKEND_REVPROXY_GLUE": {label: true, text: `http-response replace-header Location ^(https?://{hostname_re}(:[0-9]+)?)?(/.*) {rootpath_end}\3`},
	"HTTP_BACKEND_REDIR": {text: "acl is_root path -i /\nacl is_domain hdr(host),field(1,:) -i {hostname}\n" +
		"redirect code 301 location {redirpath} if is_domain is_root"},
	"HTTP_BACKEND_NETWORK_ALLOWED_ACL": {label: true, text: "acl network_allowed src {network_allowed}"},
	"HTTP_BACKEND_ACL_ALLOW_DENY":      {raw: true, text: "http-request allow if network_allowed\nhttp-request deny"},
	"TCP_BACKEND_NETWORK_ALLOWED_ACL":  {label: true, text: "acl network_allowed src {network_allowed}"},
	"TCP_BACKEND_ACL_ALLOW_DENY": {raw: true, text: "tcp-request content accept if network_allowed\n" +
		"tcp-request content reject"},
	"BACKEND_STICKY_OPTIONS": {label: true, raw: true, text: "cookie mesosphere_server_id insert indirect nocache"},

	"BACKEND_HTTP_HEALTHCHECK_OPTIONS": {label: true, text: "option httpchk GET {healthCheckPath}\n" +
		"timeout check {healthCheckTimeoutSeconds}s"},
	"BACKEND_TCP_HEALTHCHECK_OPTIONS": {label: true},
	"BACKEND_SERVER_OPTIONS": {label: true, text: "server {serverName} {host_ipv4}:{port} id {serverId}" +
		"{cookieOptions}{healthCheckOptions}{otherOptions}"},
	"BACKEND_SERVER_HTTP_HEALTHCHECK_OPTIONS": {label: true, text: serverCheck},
	"BACKEND_SERVER_TCP_HEALTHCHECK_OPTIONS":  {label: true, text: serverCheck},

	"BACKEND_REDIRECT_HTTP_TO_HTTPS": {label: true,
		text: "redirect scheme https code 301 if !{{ ssl_fc }} host_{cleanedUpHostname}"},
	"BACKEND_REDIRECT_HTTP_TO_HTTPS_WITH_PATH": {label: true,
		text: "redirect scheme https code 301 if !{{ ssl_fc }} host_{cleanedUpHostname} path_{backend}"},

	"HTTP_FRONTEND_ACL":           {label: true, text: aclHost + "\n" + useIfHost},
	"HTTP_FRONTEND_ACL_WITH_PATH": {label: true, text: aclHost + "\n" + aclPath + "\n" + useIfHost + " path_{backend}"},
	"HTTP_FRONTEND_ACL_WITH_AUTH": {label: true, text: aclHost + "\n" + aclAuth + "\n" +
		challenge + "host_{cleanedUpHostname} !auth_{cleanedUpHostname}\n" + useIfHost},
	"HTTP_FRONTEND_ACL_WITH_AUTH_AND_PATH": {label: true, text: aclHost + "\n" + aclAuth + "\n" + aclPath + "\n" +
		challenge + "host_{cleanedUpHostname} path_{backend} !auth_{cleanedUpHostname}\n" + useIfHost + " path_{backend}"},
	"HTTP_FRONTEND_ACL_ONLY":                    {label: true, text: aclHost},
	"HTTP_FRONTEND_ACL_ONLY_WITH_PATH":          {label: true, text: aclPath},
	"HTTP_FRONTEND_ACL_ONLY_WITH_PATH_AND_AUTH": {label: true, text: aclPath + "\n" + aclAuth},
	"HTTP_FRONTEND_ROUTING_ONLY":                {label: true, text: useIfHost},
	"HTTP_FRONTEND_ROUTING_ONLY_WITH_PATH":      {label: true, text: useIfHost + " path_{backend}"},
	"HTTP_FRONTEND_ROUTING_ONLY_WITH_AUTH": {label: true, text: aclAuth + "\n" +
		challenge + "host_{cleanedUpHostname} !auth_{cleanedUpHostname}\n" + useIfHost},
	"HTTP_FRONTEND_ROUTING_ONLY_WITH_PATH_AND_AUTH": {label: true, text: challenge +
		"host_{cleanedUpHostname} path_{backend} !auth_{cleanedUpHostname}\n" + useIfHost + " path_{backend}"},
	"HTTPS_FRONTEND_ACL":           {label: true, text: "use_backend {backend} if " + sniIs},
	"HTTPS_FRONTEND_ACL_WITH_PATH": {label: true, text: "use_backend {backend} if " + sniIs + " path_{backend}"},
	"HTTPS_FRONTEND_ACL_WITH_AUTH": {label: true, text: aclAuth + "\n" +
		challenge + sniIs + " !auth_{cleanedUpHostname}\nuse_backend {backend} if " + sniIs},
	"HTTPS_FRONTEND_ACL_WITH_AUTH_AND_PATH": {label: true, text: aclAuth + "\n" +
		challenge + sniIs + " path_{backend} !auth_{cleanedUpHostname}\nuse_backend {backend} if " + sniIs + " path_{backend}"},
	"HTTPS_FRONTEND_ACL_ONLY_WITH_PATH": {label: true, text: aclPath},
	"HTTP_FRONTEND_APPID_ACL": {label: true, text: "acl app_{cleanedUpAppId} hdr(x-marathon-app-id) -i {appId}\n" +
		"use_backend {backend} if app_{cleanedUpAppId}"},

	"HTTPS_GROUPED_FRONTEND_HEAD":       {raw: true},
	"HTTPS_GROUPED_VHOST_FRONTEND_ACL":  {text: "use_backend {backend} if {{ req.ssl_sni -i {host} }}"},
	"HTTPS_GROUPED_VHOST_BACKEND_HEAD":  {text: "backend {name}\nserver loopback-for-tls abns@{name} send-proxy-v2"},
	"HTTPS_GROUPED_VHOST_FRONTEND_HEAD": {text: "frontend {name}\nmode http\nbind abns@{name} accept-proxy ssl {sslCerts}{bindOpts}"},
}

const serverCheck = "check inter {healthCheckIntervalSeconds}s fall {healthCheckFalls}{healthCheckPortOptions}"

// labelTemplates are the templates that a label may override.
var labelTemplates = func() map[string]bool {
	m := make(map[string]bool)
	for name, t := range mlbTemplates {
		if t.label {
			m[name] = true
		}
	}
	return m
}()

// TemplateNames lists the templates that exist, without the prefix HAPROXY_.
func TemplateNames() []string { return slices.Sorted(maps.Keys(mlbTemplates)) }

// templateSet finds and expands templates: a label of the service, else the operator's,
// else ours.
type templateSet struct {
	operator map[string]string
	labels   bool
	parsed   map[string]*tmpl // by text, of the operator's and ours
}

// builtin is the set without overrides.
func builtinTemplates() *templateSet { return &templateSet{parsed: make(map[string]*tmpl)} }

// overridden says whether another text than ours is in force for a service.
func (ts *templateSet) overridden(s *settings, names ...string) bool {
	for _, name := range names {
		if _, ok := ts.operator[name]; ok {
			return true
		}
		if _, ok := s.templates[name]; ok && ts.labels {
			return true
		}
	}
	return false
}

// expand gives the text of a template.
func (ts *templateSet) expand(v *view, name string, p params) (text string, err error) {
	tpl := mlbTemplates[name]
	label := ""
	text = tpl.text
	foreign := false
	if o, ok := ts.operator[name]; ok {
		text, foreign = o, true
	}
	if o, ok := v.set.templates[name]; ok && ts.labels {
		text, foreign, label = o, true, fmt.Sprintf("%s%d_%s", labelPrefix, v.entry.index, name)
	}
	fail := func(err error) error {
		where := "template " + labelPrefix + name
		if label != "" {
			where = "label " + label
		}
		return &fragmentError{ReasonTemplate, where + ": " + err.Error()}
	}
	if foreign && strings.Contains(text, mapToken) {
		return "", fail(&substituteError{"the text %map( is not for templates"})
	}
	if tpl.raw {
		return text, nil
	}
	t := ts.parsed[text]
	if t == nil {
		if t, err = parseTemplate(text); err != nil {
			return "", fail(err)
		}
		if label == "" {
			ts.parsed[text] = t
		}
	}
	out, err := t.expand(p)
	if err != nil {
		return "", fail(err)
	}
	return out, nil
}

// mapToken starts a token that the renderer replaces by the path of a map.
const mapToken = "%map("

// lines gives the directives of a template.
func (ts *templateSet) lines(v *view, name string, p params) ([]string, error) {
	text, err := ts.expand(v, name, p)
	if err != nil {
		return nil, err
	}
	foreign := ts.overridden(v.set, name)
	var lines []string
	for l := range strings.SplitSeq(text, "\n") {
		l = strings.TrimSpace(l)
		if l == "" || l[0] == '#' {
			continue
		}
		if foreign {
			l = modernise(l)
			if opensSection(l) && !templateOpens[name] {
				return nil, &fragmentError{ReasonTemplate, "template " + labelPrefix + name + ": opens a section of its own"}
			}
		}
		lines = append(lines, l)
	}
	return lines, nil
}

// templateOpens are the templates that begin with the line that opens their section.
var templateOpens = map[string]bool{"USERLIST_HEAD": true, "FRONTEND_HEAD": true, "BACKEND_HEAD": true,
	"HTTP_FRONTEND_HEAD":  true,
	"HTTPS_FRONTEND_HEAD": true, "HTTP_FRONTEND_APPID_HEAD": true}

// opensSection says whether a line would end the section that it stands in.
func opensSection(line string) bool {
	word, _, _ := strings.Cut(strings.TrimLeft(line, `"'\`), " ")
	switch strings.Trim(word, "\"'\t") {
	case "global", "defaults", "frontend", "backend", "listen", "userlist", "peers", "mailers", "resolvers", "program",
		"cache", "ring", "http-errors", "fcgi-app", "crt-store", "log-forward", "log-profile", "traces", "acme":
		return true
	}
	return strings.HasPrefix(word, ".") // .if, .endif, .diag and their kind
}

// sectionOf splits a head template's lines: the section's own line has to name what it
// is for, since others refer to it by that name.
func sectionOf(lines []string, kind, name, tpl string) ([]string, error) {
	if len(lines) == 0 || strings.Join(strings.Fields(lines[0]), " ") != kind+" "+name {
		return nil, &fragmentError{ReasonTemplate, fmt.Sprintf("template %s%s: want %q as its first line", labelPrefix, tpl, kind+" "+name)}
	}
	for _, l := range lines[1:] {
		if opensSection(l) {
			return nil, &fragmentError{ReasonTemplate, "template " + labelPrefix + tpl + ": opens a second section"}
		}
	}
	return lines[1:], nil
}
