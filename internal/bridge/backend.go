package bridge

import (
	"strings"

	"bridged/internal/haproxy"
)

// backendLines are the lines of a backend that both dialects have, in marathon-lb's
// order: what HTTP needs, then which networks may come in.
//
// Credentials are asked for here rather than where a vhost is routed, so that no other
// way to the backend goes around them, and before the rule that admits networks, which
// ends the evaluation.
func backendLines(v *view, f *fragment, ts *templateSet) ([]string, error) {
	s := v.set
	l := &lineList{ts: ts, v: v}
	if f.mode == haproxy.HTTP {
		if f.guarded {
			l.plain("http-request auth realm " + quoteWord(s.auth.realm) + " unless { http_auth(" + userlistName(f.name) + ") }")
		}
		if s.hsts {
			l.add("BACKEND_HSTS_OPTIONS", nil)
		}
		l.add("BACKEND_HTTP_OPTIONS", nil)
		if s.proxyPass+s.revProxy+s.redir != "" && len(s.vhosts) == 0 {
			return nil, &LabelError{v.label("VHOST"), ReasonBadLabel, "PROXYPASS_PATH, REVPROXY_PATH and REDIR need a VHOST"}
		}
		if s.proxyPass != "" {
			l.add("HTTP_BACKEND_PROXYPASS_GLUE", params{"hostname": s.vhosts[0], "proxypath": s.proxyPass, "proxypath_re": quoteRegex(s.proxyPass)})
		}
		if s.revProxy != "" {
			l.add("HTTP_BACKEND_REVPROXY_GLUE", params{"hostname": s.vhosts[0], "rootpath": s.revProxy,
				"hostname_re": quoteRegex(s.vhosts[0]), "rootpath_end": strings.TrimSuffix(s.revProxy, "/")})
		}
		if s.redir != "" {
			l.add("HTTP_BACKEND_REDIR", params{"hostname": strings.Join(s.vhosts, " "), "redirpath": s.redir})
		}
		if s.compress {
			l.plain("compression algo gzip")
			l.plain("compression type text/html text/plain text/css text/javascript application/javascript application/json application/xml image/svg+xml")
		}
	}
	if len(s.allowed) > 0 {
		kind := strings.ToUpper(string(f.mode))
		for _, n := range s.allowed {
			l.add(kind+"_BACKEND_NETWORK_ALLOWED_ACL", params{"network_allowed": n})
		}
		l.add(kind+"_BACKEND_ACL_ALLOW_DENY", nil)
	}
	return l.lines, l.err
}

// lineList collects lines of templates until one fails.
type lineList struct {
	ts    *templateSet
	v     *view
	lines []string
	err   error
}

func (l *lineList) plain(line string) { l.lines = append(l.lines, line) }

func (l *lineList) add(name string, p params) {
	if l.err != nil {
		return
	}
	var lines []string
	if lines, l.err = l.ts.lines(l.v, name, p); l.err == nil {
		l.lines = append(l.lines, lines...)
	}
}

func userlistName(backend string) string { return "user_" + backend }

// userlist holds the one user of an AUTH label.
func userlist(v *view, backend string) *haproxy.Section {
	return &haproxy.Section{Kind: haproxy.KindUserlist, Name: userlistName(backend), Owner: v.owner, Unproven: !v.set.auth.proven(),
		Lines: []string{"user " + v.set.auth.user + " password " + v.set.auth.hash}}
}

// quoteWord makes one word of a text that may have blanks. The texts given to it have
// neither quotes nor backslashes nor '$'.
func quoteWord(s string) string {
	if strings.Contains(s, " ") {
		return `"` + s + `"`
	}
	return s
}

// quoteRegex matches a text literally. Brackets do it without backslashes, which
// HAProxy's own quoting might take.
func quoteRegex(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if strings.IndexByte(`.+*?()|[]{}^$`, s[i]) >= 0 {
			b.WriteString("[" + s[i:i+1] + "]")
		} else {
			b.WriteByte(s[i])
		}
	}
	return b.String()
}
