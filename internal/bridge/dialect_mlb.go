package bridge

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"bridged/internal/discovery"
	"bridged/internal/haproxy"
)

// mlbDialect writes what marathon-lb writes: a frontend and a backend for each service
// port, both named <app>_<port>, and the shared frontends for vhosts and app ids.
type mlbDialect struct {
	opts *TranslateOptions
	ts   *templateSet
}

// Names of marathon-lb's shared sections.
const (
	mlbHTTPFrontend  = "marathon_http_in"
	mlbHTTPSFrontend = "marathon_https_in"
	mlbAppIDFrontend = "marathon_http_appid_in"
)

func newMLBDialect(o *TranslateOptions) *mlbDialect {
	return &mlbDialect{opts: o, ts: &templateSet{operator: o.Templates, labels: o.AllowTemplateLabels, parsed: make(map[string]*tmpl)}}
}

func (d *mlbDialect) name(app string, port uint16) string {
	return appName(app) + "_" + strconv.Itoa(int(port))
}

func (d *mlbDialect) shape(v *view) (*fragment, error) {
	s := v.set
	// Servers stand in the order of agent and port, and their ids depend on it.
	slices.SortStableFunc(v.tasks, func(a, b *discovery.Task) int {
		return cmp.Or(strings.Compare(a.Host, b.Host), cmp.Compare(a.Addr.Port(), b.Addr.Port()),
			a.Addr.Addr().Compare(b.Addr.Addr()), cmp.Compare(a.State, b.State))
	})
	check := pickCheck(v.app.Checks, v.entry.index, s.checkIndex)
	f := &fragment{name: d.name(v.id, v.number), mode: d.mode(s, check), bind: serviceBind(v, d.opts), ids: make(map[int]bool), names: make(map[string]bool)}
	f.guarded = s.auth != nil && f.mode == haproxy.HTTP && !d.opts.MarathonLB.OpenAuth
	if err := d.shapeFrontend(v, f); err != nil {
		return nil, err
	}
	if err := d.shapeBackend(v, f, check); err != nil {
		return nil, err
	}
	if s.auth != nil {
		if err := d.shapeUserlist(v, f); err != nil {
			return nil, err
		}
	}
	return f, d.shapeRoutes(v, f)
}

// shapeFrontend makes the listener of the service port.
func (d *mlbDialect) shapeFrontend(v *view, f *fragment) error {
	sec := &haproxy.Section{Kind: haproxy.KindFrontend, Name: f.name, Mode: f.mode, Owner: v.owner, Order: int(v.number),
		Unproven: unproven(v.set) || d.ts.overridden(v.set, "FRONTEND_HEAD", "FRONTEND_BACKEND_GLUE")}
	if d.ts.overridden(v.set, "FRONTEND_HEAD") {
		lines, err := d.ts.lines(v, "FRONTEND_HEAD", params{"bindAddr": f.bind.Addr, "backend": f.name,
			"servicePort": strconv.Itoa(int(v.number)), "mode": string(f.mode), "sslCert": certWords(v.set.certs),
			"bindOptions": spaced(strings.Join(v.set.bindOptions, " "))})
		if err != nil {
			return err
		}
		if lines, err = sectionOf(lines, "frontend", f.name, "FRONTEND_HEAD"); err != nil {
			return err
		}
		if err := readHead(sec, lines); err != nil {
			return &fragmentError{ReasonTemplate, "template HAPROXY_FRONTEND_HEAD: " + err.Error()}
		}
		if len(sec.Binds) > 0 {
			f.bind = sec.Binds[0]
		}
	} else {
		sec.Binds = []haproxy.Bind{f.bind}
	}
	glue, err := d.ts.lines(v, "FRONTEND_BACKEND_GLUE", params{"backend": f.name})
	sec.Lines = append(sec.Lines, glue...)
	f.frontend = sec
	return err
}

// shapeBackend makes the backend but for its servers.
func (d *mlbDialect) shapeBackend(v *view, f *fragment, check *healthCheck) error {
	s := v.set
	b := &haproxy.Backend{Section: haproxy.Section{Kind: haproxy.KindBackend, Name: f.name, Mode: f.mode, Owner: v.owner,
		Order: int(v.number), Unproven: d.ts.overridden(s, backendTemplates...)}, Named: true, Balance: s.balance}
	if b.Balance == "" {
		b.Balance = "roundrobin"
	}
	if d.ts.overridden(s, "BACKEND_HEAD") {
		lines, err := d.ts.lines(v, "BACKEND_HEAD", params{"backend": f.name, "balance": b.Balance, "mode": string(f.mode)})
		if err != nil {
			return err
		}
		if lines, err = sectionOf(lines, "backend", f.name, "BACKEND_HEAD"); err != nil {
			return err
		}
		b.Balance = ""
		if err := readHead(&b.Section, lines); err != nil {
			return &fragmentError{ReasonTemplate, "template HAPROXY_BACKEND_HEAD: " + err.Error()}
		}
		f.mode = cmp.Or(b.Mode, f.mode)
	}
	lines, err := backendLines(v, f, d.ts)
	if err != nil {
		return err
	}
	l := &lineList{ts: d.ts, v: v, lines: append(b.Lines, lines...)}
	if s.sticky {
		l.add("BACKEND_STICKY_OPTIONS", nil)
	}
	if check != nil && d.opts.Health.asksHAProxy() {
		if err := d.shapeCheck(v, f, l, check); err != nil {
			return err
		}
	}
	b.Lines = l.lines
	b.ServerOptions = strings.Join(serverOptions(s), " ")
	f.template = d.ts.overridden(s, "BACKEND_SERVER_OPTIONS")
	f.backend = b
	return l.err
}

// backendTemplates are the templates whose text ends up in a backend.
var backendTemplates = []string{"BACKEND_HEAD", "BACKEND_HSTS_OPTIONS", "BACKEND_HTTP_OPTIONS", "HTTP_BACKEND_PROXYPASS_GLUE",
	"HTTP_BACKEND_REVPROXY_GLUE", "HTTP_BACKEND_REDIR", "HTTP_BACKEND_NETWORK_ALLOWED_ACL", "HTTP_BACKEND_ACL_ALLOW_DENY",
	"TCP_BACKEND_NETWORK_ALLOWED_ACL", "TCP_BACKEND_ACL_ALLOW_DENY", "BACKEND_STICKY_OPTIONS", "BACKEND_HTTP_HEALTHCHECK_OPTIONS",
	"BACKEND_TCP_HEALTHCHECK_OPTIONS", "BACKEND_SERVER_OPTIONS", "BACKEND_SERVER_HTTP_HEALTHCHECK_OPTIONS",
	"BACKEND_SERVER_TCP_HEALTHCHECK_OPTIONS"}

// shapeCheck adds the backend's lines of a health check and prepares the servers' part.
func (d *mlbDialect) shapeCheck(v *view, f *fragment, l *lineList, check *healthCheck) error {
	kind := "TCP"
	if check.httpProbe(f.mode) {
		kind = "HTTP"
	}
	fields, err := checkFields(check, check.Port)
	if err != nil {
		return err
	}
	perBackend := make(params, len(fields))
	for k, val := range fields {
		perBackend[k] = val
	}
	if len(v.tasks) > 0 {
		// At this level marathon-lb means the port of the first server.
		perBackend["healthCheckPort"] = strconv.Itoa(int(v.tasks[0].Addr.Port()))
	}
	l.add("BACKEND_"+kind+"_HEALTHCHECK_OPTIONS", perBackend)
	tls := ""
	if kind == "HTTP" && check.tls() && !d.opts.MarathonLB.PlainHTTPSChecks && v.set.tls == "" {
		tls = " check-ssl verify none"
	}
	f.checkOf = func(task *discovery.Task) (string, error) {
		port := check.Port
		if sib := v.sibling; sib != nil && v.set.checkIndex >= 0 {
			if p := sib(v.set.checkIndex, task.ID); p != 0 {
				port = p
			}
		}
		fields, err := checkFields(check, port)
		if err != nil {
			return "", err
		}
		text, err := d.ts.expand(v, "BACKEND_SERVER_"+kind+"_HEALTHCHECK_OPTIONS", fields)
		if text = strings.TrimSpace(text); text != "" {
			text += tls
		}
		return strings.Join(strings.Fields(text), " "), err
	}
	if v.set.checkIndex < 0 {
		// Without another service's port the words are the same for every server.
		text, err := f.checkOf(nil)
		if err != nil {
			return err
		}
		f.checkOf = func(*discovery.Task) (string, error) { return text, nil }
	}
	return nil
}

func (d *mlbDialect) shapeUserlist(v *view, f *fragment) error {
	f.userlist = userlist(v, f.name)
	if !d.ts.overridden(v.set, "USERLIST_HEAD") {
		return nil
	}
	lines, err := d.ts.lines(v, "USERLIST_HEAD", params{"backend": f.name, "user": v.set.auth.user, "passwd": v.set.auth.hash})
	if err != nil {
		return err
	}
	f.userlist.Unproven = true
	f.userlist.Lines, err = sectionOf(lines, "userlist", f.userlist.Name, "USERLIST_HEAD")
	return err
}

func (d *mlbDialect) server(f *fragment, v *view, task *discovery.Task, state haproxy.State) (haproxy.Server, bool) {
	name := mlbServerName(task.Host, task.Addr)
	if f.err != nil || f.names[name] {
		return haproxy.Server{}, false
	}
	f.names[name] = true
	s := haproxy.Server{Name: name, Addr: task.Addr, State: state, Weight: -1, ID: mlbServerID(name, f.ids)}
	if v.set.sticky {
		// A sticky server is checked even when its app has no health check.
		s.Cookie, s.Options = mlbCookie(name), "check"
	}
	if f.checkOf != nil {
		check, err := f.checkOf(task)
		if err != nil {
			f.err = err
			return haproxy.Server{}, false
		}
		switch {
		case check != "" && s.Cookie != "":
			s.Options = "check " + check // twice, as there: one stands before the cookie
		case check != "":
			s.Options = check
		}
	}
	if f.template {
		s, f.err = d.serverOfTemplate(v, task, s)
	}
	return s, f.err == nil
}

// serverOfTemplate lets an override write the line and reads back what it says: the
// name, address, id, cookie and state are ours, the rest of the words is the template's.
func (d *mlbDialect) serverOfTemplate(v *view, task *discovery.Task, s haproxy.Server) (haproxy.Server, error) {
	fail := func(want string) (haproxy.Server, error) {
		return s, &fragmentError{ReasonTemplate, "template HAPROXY_BACKEND_SERVER_OPTIONS: " + want}
	}
	ip := s.Addr.Addr().String()
	if s.Addr.Addr().Is6() {
		ip = "[" + ip + "]"
	}
	p := params{"host": cleanedHost(task.Host, ip), "host_ipv4": ip, "port": strconv.Itoa(int(s.Addr.Port())), "serverName": s.Name,
		"serverId": strconv.Itoa(s.ID), "cookieOptions": "", "healthCheckOptions": "", "otherOptions": ""}
	if s.Cookie != "" {
		p["cookieOptions"] = " check cookie " + s.Cookie
	}
	check := s.Options
	if s.Cookie != "" {
		check = strings.TrimPrefix(strings.TrimPrefix(check, "check"), " ")
	}
	p["healthCheckOptions"] = spaced(check)
	lines, err := d.ts.lines(v, "BACKEND_SERVER_OPTIONS", p)
	if err != nil {
		return s, err
	}
	if len(lines) != 1 {
		return fail("want one line")
	}
	words := strings.Fields(lines[0])
	if len(words) < 3 || words[0] != "server" || words[1] != s.Name {
		return fail("want a line that starts with: server {serverName} {host_ipv4}:{port}")
	}
	addr, err := netip.ParseAddrPort(words[2])
	if err != nil {
		return fail("want an address and a port behind the name")
	}
	out := haproxy.Server{Name: s.Name, Addr: addr, State: s.State, Weight: -1}
	var options []string
	for i := 3; i < len(words); i++ {
		arg := ""
		if i+1 < len(words) {
			arg = words[i+1]
		}
		switch words[i] {
		case "id":
			if out.ID, err = parseInt(arg, 1, 1<<31-1); err != nil {
				return fail("id: " + err.Error())
			}
			i++
		case "cookie":
			out.Cookie = arg
			i++
		case "weight":
			if out.Weight, err = parseInt(arg, 0, 256); err != nil {
				return fail("weight: " + err.Error())
			}
			i++
		case "disabled":
			out.State = max(out.State, haproxy.Maint)
		default:
			options = append(options, words[i])
		}
	}
	out.Options = strings.Join(options, " ")
	return out, nil
}

// cleanedHost is an agent's name where it is one, else the address.
func cleanedHost(host, ip string) string {
	if hostPattern.MatchString(strings.ToLower(host)) {
		return host
	}
	return ip
}

func (d *mlbDialect) finish(f *fragment, _ *view, servers []haproxy.Server) ([]haproxy.Server, error) {
	return servers, f.err
}

// readHead takes binds, mode and balance of a head template's lines; the rest stays lines.
func readHead(sec *haproxy.Section, lines []string) error {
	for _, l := range lines {
		words := strings.Fields(l)
		switch {
		case words[0] == "bind" && len(words) > 1:
			b, err := ParseBind(strings.TrimSpace(strings.TrimPrefix(l, "bind")))
			if err != nil {
				return err
			}
			sec.Binds = append(sec.Binds, b)
		case words[0] == "mode" && len(words) == 2 && (words[1] == "tcp" || words[1] == "http"):
			sec.Mode = haproxy.Mode(words[1])
		default:
			sec.Lines = append(sec.Lines, l)
		}
	}
	return nil
}

func certWords(certs []string) string {
	text := ""
	for _, c := range certs {
		text += " crt " + c
	}
	if text != "" {
		text = " ssl" + text
	}
	return text
}

func spaced(s string) string {
	if s == "" {
		return ""
	}
	return " " + s
}
