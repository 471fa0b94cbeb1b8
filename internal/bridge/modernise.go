package bridge

import (
	"regexp"
	"strings"
)

// modernise translates directives that HAProxy removed since marathon-lb's users wrote
// their templates. Lines that it does not know are returned as they are.
func modernise(line string) string {
	for _, r := range renames {
		line = r.old.ReplaceAllString(line, r.new)
	}
	for _, r := range rewrites {
		if m := r.pattern.FindStringSubmatch(line); m != nil {
			return r.to(m)
		}
	}
	return line
}

var renames = []struct {
	old *regexp.Regexp
	new string
}{
	{regexp.MustCompile(`\breq_ssl_(sni|hello_type|ver)\b`), "req.ssl_$1"},
	{regexp.MustCompile(`\bno-sslv3( +no-tlsv10)?( +no-tlsv11)?( +no-tlsv12)\b`), "ssl-min-ver TLSv1.3"},
	{regexp.MustCompile(`\bno-sslv3( +no-tlsv10)?( +no-tlsv11)\b`), "ssl-min-ver TLSv1.2"},
	{regexp.MustCompile(`\bno-sslv3( +no-tlsv10)\b`), "ssl-min-ver TLSv1.1"},
	{regexp.MustCompile(`\bno-sslv3\b`), "ssl-min-ver TLSv1.0"},
}

var rewrites = []struct {
	pattern *regexp.Regexp
	to      func(m []string) string
}{
	// rspadd Name:\ value
	{regexp.MustCompile(`^rspi?add\s+"?([A-Za-z0-9-]+):(?:\\?\s)*(.*?)"?$`), func(m []string) string {
		return "http-response set-header " + m[1] + " " + quoteArgument(unescapeBlanks(m[2]))
	}},
	{regexp.MustCompile(`^reqi?add\s+"?([A-Za-z0-9-]+):(?:\\?\s)*(.*?)"?$`), func(m []string) string {
		return "http-request set-header " + m[1] + " " + quoteArgument(unescapeBlanks(m[2]))
	}},
	// reqirep "^([^ :]*)\ /prefix/?(.*)" "\1\ /\2"
	{regexp.MustCompile(`^reqi?rep\s+"?\^\(\[\^ ?:\]\*\)\\ +([^"]*?)\(\.\*\)"?\s+"?\\1\\ +([^"]*?)\\2"?$`), func(m []string) string {
		return "http-request replace-path ^" + m[1] + `(.*) ` + m[2] + `\1`
	}},
	// rspirep "^Location: pattern" "Location: to"
	{regexp.MustCompile(`^rspi?rep\s+"?\^Location:(?:\\?\s)*([^"]*)"?\s+"?Location:(?:\\?\s)*([^"]*?)"?(\s+if\s+[^"]+)?$`), func(m []string) string {
		// A condition inside the quotes was part of the replacement, by mistake.
		to, _, _ := strings.Cut(m[2], " if ")
		return "http-response replace-header Location " + quoteArgument("^"+m[1]) + " " + quoteArgument(strings.TrimSpace(to)) + m[3]
	}},
}

func unescapeBlanks(s string) string { return strings.ReplaceAll(s, `\ `, " ") }

func quoteArgument(s string) string {
	if strings.ContainsAny(s, " \t") {
		return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"`
	}
	return s
}
