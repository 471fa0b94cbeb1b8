package bridge

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"bridged/internal/haproxy"
)

// routeTemplates are the templates that say how requests find a backend. While none of
// them is overridden for a service, maps say it.
var routeTemplates = []string{"BACKEND_REDIRECT_HTTP_TO_HTTPS", "BACKEND_REDIRECT_HTTP_TO_HTTPS_WITH_PATH",
	"HTTP_FRONTEND_ACL", "HTTP_FRONTEND_ACL_WITH_PATH", "HTTP_FRONTEND_ACL_WITH_AUTH", "HTTP_FRONTEND_ACL_WITH_AUTH_AND_PATH",
	"HTTP_FRONTEND_ACL_ONLY", "HTTP_FRONTEND_ACL_ONLY_WITH_PATH", "HTTP_FRONTEND_ACL_ONLY_WITH_PATH_AND_AUTH",
	"HTTP_FRONTEND_ROUTING_ONLY", "HTTP_FRONTEND_ROUTING_ONLY_WITH_PATH", "HTTP_FRONTEND_ROUTING_ONLY_WITH_AUTH",
	"HTTP_FRONTEND_ROUTING_ONLY_WITH_PATH_AND_AUTH", "HTTPS_FRONTEND_ACL", "HTTPS_FRONTEND_ACL_WITH_PATH",
	"HTTPS_FRONTEND_ACL_WITH_AUTH", "HTTPS_FRONTEND_ACL_WITH_AUTH_AND_PATH", "HTTPS_FRONTEND_ACL_ONLY_WITH_PATH"}

// shapeRoutes finds how requests reach the service beside its port: by maps where they
// say the same as marathon-lb's rules, else by those rules as text.
func (d *mlbDialect) shapeRoutes(v *view, f *fragment) error {
	s := v.set
	byText := d.ts.overridden(s, routeTemplates...) || len(s.pathFlags) > 0 || s.auth != nil && d.opts.MarathonLB.OpenAuth
	routed := len(s.vhosts) > 0 && len(d.opts.HTTPBinds) > 0
	if routed && f.mode != haproxy.HTTP {
		return &LabelError{v.label("VHOST"), ReasonBadLabel, "a VHOST needs mode http"}
	}
	if routed && !byText {
		f.routes = routesOf(s)
	}
	appID := f.mode == haproxy.HTTP && d.ts.overridden(s, "HTTP_FRONTEND_APPID_ACL")
	if routed && byText || appID {
		f.chunk = &chunk{weight: s.weight, owner: v.owner}
	}
	if routed && byText {
		if slices.ContainsFunc(s.vhosts, func(h string) bool { return strings.HasPrefix(h, "*") }) {
			return &LabelError{v.label("VHOST"), ReasonBadLabel, "a wildcard does not go with flags in PATH or with route templates: want host names"}
		}
		r := ruleText{d: d, v: v, f: f}
		var err error
		if f.chunk.http, err = r.http(); err != nil {
			return err
		}
		if f.chunk.https, err = r.https(); err != nil {
			return err
		}
	}
	if appID {
		lines, err := d.ts.lines(v, "HTTP_FRONTEND_APPID_ACL", params{"cleanedUpAppId": cleaned(v.id), "hostname": strings.Join(v.set.vhosts, ","),
			"appId": v.id, "backend": f.name})
		if err != nil {
			return err
		}
		f.chunk.appID = lines
	}
	return nil
}

// ruleText writes the rules of one service as marathon-lb orders them.
type ruleText struct {
	d *mlbDialect
	v *view
	f *fragment
}

// fields are the parameters of route templates for one host. Names of ACLs are made from
// the first.
func (r ruleText) fields(host string) params {
	s := r.v.set
	p := params{"cleanedUpHostname": hostStem(s.vhosts[0], r.v.id), "hostname": host, "appId": r.v.id, "backend": r.f.name,
		"bindAddr": r.f.bind.Addr, "path": strings.Join(slices.Concat(s.pathFlags, s.paths), " ")}
	if s.auth != nil {
		p["realm"] = quoteWord(s.auth.realm)
	}
	return p
}

// http are the rules of the plain side.
func (r ruleText) http() ([]string, error) {
	s := r.v.set
	l := &lineList{ts: r.d.ts, v: r.v}
	path, auth := len(s.paths) > 0, s.auth != nil
	first := r.fields(s.vhosts[0])
	if len(s.vhosts) == 1 {
		switch {
		case s.redirect && path:
			l.add("HTTP_FRONTEND_ACL_ONLY", first)
			l.add("HTTP_FRONTEND_ACL_ONLY_WITH_PATH", first)
			l.add("BACKEND_REDIRECT_HTTP_TO_HTTPS_WITH_PATH", first)
		case s.redirect:
			l.add("HTTP_FRONTEND_ACL", first)
			l.add("BACKEND_REDIRECT_HTTP_TO_HTTPS", first)
		default:
			l.add("HTTP_FRONTEND_ACL"+suffixOf(auth, path, "_WITH_AUTH", "_WITH_PATH", "_WITH_AUTH_AND_PATH"), first)
		}
		return l.lines, l.err
	}
	switch {
	case path && auth:
		l.add("HTTP_FRONTEND_ACL_ONLY_WITH_PATH_AND_AUTH", first)
	case path:
		l.add("HTTP_FRONTEND_ACL_ONLY_WITH_PATH", first)
	}
	for _, host := range s.vhosts {
		l.add("HTTP_FRONTEND_ACL_ONLY", r.fields(host))
	}
	switch {
	case s.redirect && path:
		l.add("BACKEND_REDIRECT_HTTP_TO_HTTPS_WITH_PATH", first)
	case s.redirect:
		l.add("BACKEND_REDIRECT_HTTP_TO_HTTPS", first)
	default:
		l.add("HTTP_FRONTEND_ROUTING_ONLY"+suffixOf(auth, path, "_WITH_AUTH", "_WITH_PATH", "_WITH_PATH_AND_AUTH"), first)
	}
	return l.lines, l.err
}

// https are the rules of the TLS side.
func (r ruleText) https() ([]string, error) {
	s := r.v.set
	l := &lineList{ts: r.d.ts, v: r.v}
	path, auth := len(s.paths) > 0, s.auth != nil
	if path {
		l.add("HTTPS_FRONTEND_ACL_ONLY_WITH_PATH", r.fields(s.vhosts[0]))
	}
	for _, host := range s.vhosts {
		l.add("HTTPS_FRONTEND_ACL"+suffixOf(auth, path, "_WITH_AUTH", "_WITH_PATH", "_WITH_AUTH_AND_PATH"), r.fields(host))
	}
	return l.lines, l.err
}

func suffixOf(auth, path bool, onlyAuth, onlyPath, both string) string {
	switch {
	case auth && path:
		return both
	case auth:
		return onlyAuth
	case path:
		return onlyPath
	}
	return ""
}

// shared makes the vhost frontends, the one for app ids and the statistics listener.
func (d *mlbDialect) shared(t *Translator) []sharedSection {
	var plain, tls []haproxy.Bind
	for _, b := range d.opts.HTTPBinds {
		if isTLS(b) {
			tls = append(tls, b)
		} else {
			plain = append(plain, b)
		}
	}
	var httpLines, httpsLines, appIDLines ownedLines
	for _, c := range t.routes.sortedChunks() {
		httpLines.add(c.owner, c.http)
		httpsLines.add(c.owner, c.https)
		appIDLines.add(c.owner, c.appID)
	}
	var out []sharedSection
	if len(plain) > 0 {
		out = append(out, d.head("HTTP_FRONTEND_HEAD", mlbHTTPFrontend, plain, -3, httpLines.and(routeLines(false))))
	}
	if d.opts.MarathonLB.AppIDBind.Port != 0 {
		out = append(out, d.head("HTTP_FRONTEND_APPID_HEAD", mlbAppIDFrontend, []haproxy.Bind{d.opts.MarathonLB.AppIDBind}, -2,
			appIDLines.and([]string{"use_backend %[req.hdr(x-marathon-app-id),lower,map_str(%map(" + mapAppIDs + "))]"})))
	}
	switch {
	case len(tls) > 0 && d.opts.MarathonLB.GroupHTTPSByVhost:
		out = append(out, d.grouped(t, tls, httpsLines)...)
	case len(tls) > 0:
		out = append(out, d.head("HTTPS_FRONTEND_HEAD", mlbHTTPSFrontend, tls, -1, httpsLines.and(routeLines(true))))
	}
	if d.opts.MarathonLB.StatsBind.Port != 0 {
		out = append(out, d.stats()...)
	}
	return out
}

// ownedLines are lines of a shared section with the apps that they are there for.
type ownedLines []ownedLine

type ownedLine struct{ text, owner string }

func ownLines(lines []string) ownedLines {
	var list ownedLines
	list.add("", lines)
	return list
}

func (l *ownedLines) add(owner string, lines []string) {
	for _, text := range lines {
		*l = append(*l, ownedLine{text, owner})
	}
}

// and adds lines of the bridge's own at the end.
func (l ownedLines) and(lines []string) ownedLines { return slices.Concat(l, ownLines(lines)) }

// split gives the lines in the order in which HAProxy evaluates their kinds, whatever
// their order in the file, and warns where the two differ.
func (l ownedLines) split() (lines, owners []string) {
	slices.SortStableFunc(l, func(a, b ownedLine) int { return cmp.Compare(phase(a.text), phase(b.text)) })
	owned := false
	for _, line := range l {
		lines, owners = append(lines, line.text), append(owners, line.owner)
		owned = owned || line.owner != ""
	}
	if !owned {
		owners = nil
	}
	return lines, owners
}

func phase(line string) int {
	word, _, _ := strings.Cut(line, " ")
	switch word {
	case "acl":
		return 0
	case "redirect":
		return 2
	case "use_backend":
		return 3
	case "default_backend":
		return 4
	}
	return 1
}

// head opens a shared frontend with its template, where the operator has one.
func (d *mlbDialect) head(tpl, name string, binds []haproxy.Bind, order int, lines ownedLines) sharedSection {
	sec := &haproxy.Section{Kind: haproxy.KindFrontend, Name: name, Mode: haproxy.HTTP, Binds: binds, Order: order}
	sec.Lines, sec.LineOwners = lines.split()
	text, ok := d.opts.Templates[tpl]
	if !ok {
		return sharedSection{frontend: sec}
	}
	if head, err := d.readSharedHead(tpl, text, name, binds); err == nil {
		head.Order = order
		head.Lines, head.LineOwners = append(ownLines(head.Lines), lines...).split()
		sec = head
	}
	return sharedSection{frontend: sec}
}

// readSharedHead reads an operator's head of a shared frontend.
func (d *mlbDialect) readSharedHead(tpl, text, name string, binds []haproxy.Bind) (*haproxy.Section, error) {
	set := &templateSet{operator: map[string]string{tpl: text}, parsed: make(map[string]*tmpl)}
	certs := ""
	for _, b := range binds {
		words := strings.Fields(b.Options)
		for i, w := range words[:max(0, len(words)-1)] {
			if w == "crt" {
				certs += " crt " + words[i+1]
			}
		}
	}
	nobody := &view{definition: &definition{set: &settings{}}, entry: &entry{}}
	lines, err := set.lines(nobody, tpl, params{"sslCerts": strings.TrimSpace(certs)})
	if err != nil {
		return nil, err
	}
	if lines, err = sectionOf(lines, "frontend", name, tpl); err != nil {
		return nil, err
	}
	sec := &haproxy.Section{Kind: haproxy.KindFrontend, Name: name, Mode: haproxy.HTTP, Unproven: true}
	if err := readHead(sec, lines); err != nil {
		return nil, &fragmentError{ReasonTemplate, "template HAPROXY_" + tpl + ": " + err.Error()}
	}
	return sec, nil
}

// CheckTemplates finds what is wrong with the operator's templates themselves, before
// any service uses them.
func (o TranslateOptions) CheckTemplates() []error {
	var errs []error
	d := newMLBDialect(&o)
	for _, name := range slices.Sorted(maps.Keys(o.Templates)) {
		tpl, ok := mlbTemplates[name]
		if !ok {
			errs = append(errs, &fragmentError{ReasonTemplate, "template HAPROXY_" + name + ": there is none of this name"})
			continue
		}
		if !tpl.raw {
			if _, err := parseTemplate(o.Templates[name]); err != nil {
				errs = append(errs, &fragmentError{ReasonTemplate, "template HAPROXY_" + name + ": " + err.Error()})
				continue
			}
		}
		if section, ok := sharedHeads[name]; ok {
			if _, err := d.readSharedHead(name, o.Templates[name], section, o.HTTPBinds); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errs
}

var sharedHeads = map[string]string{"HTTP_FRONTEND_HEAD": mlbHTTPFrontend, "HTTPS_FRONTEND_HEAD": mlbHTTPSFrontend,
	"HTTP_FRONTEND_APPID_HEAD": mlbAppIDFrontend}
