package bridge

import (
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"bridged/internal/haproxy"
)

// The parsers of label values. What they return is safe as it stands: words without
// blanks, quotes, backslashes, '#' or control bytes, so that a value can never become
// a second argument, a comment, a line or a second command.

// parseBool is marathon-lb's: these words and nothing else are true.
func parseBool(v string) bool {
	switch strings.ToLower(v) {
	case "true", "t", "yes", "y":
		return true
	}
	return false
}

func parseInt(v string, low, high int) (int, error) {
	n, err := strconv.Atoi(strings.TrimSpace(v))
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("want a whole number from %d to %d", low, high)
	}
	return n, nil
}

func parseDuration(v string, low, high time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(strings.TrimSpace(v))
	if err != nil || d < low || d > high {
		return 0, fmt.Errorf("want a duration from %v to %v, such as 30s", low, high)
	}
	return d, nil
}

// parseChoice maps a word of a closed set to what it stands for.
func parseChoice(v string, choices map[string]string) (string, error) {
	if c, ok := choices[strings.TrimSpace(v)]; ok {
		return c, nil
	}
	var words []string
	for w := range choices {
		words = append(words, w)
	}
	slices.Sort(words)
	return "", errWant(strings.Join(words, " or "))
}

var appIDPattern = regexp.MustCompile(`^(/[A-Za-z0-9][A-Za-z0-9._-]*)+$`)

// validAppID says whether an app id can be a part of names. Marathon allows less, but
// what arrives is what somebody sent.
func validAppID(id string) bool { return len(id) <= 512 && appIDPattern.MatchString(id) }

var hostPattern = regexp.MustCompile(`^(\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*$`)

// parseVhosts reads a comma list of host names. Blanks around an entry do not count. An
// entry may be a wildcard for one label (*.example.com) or "*", the default vhost.
func parseVhosts(v string) ([]string, error) {
	var hosts []string
	for h := range strings.SplitSeq(v, ",") {
		h = strings.TrimSuffix(strings.ToLower(strings.TrimSpace(h)), ".")
		if h == "" {
			continue
		}
		if h != "*" && (len(h) > 253 || !hostPattern.MatchString(h)) {
			return nil, errWant("a comma list of host names in ASCII (other alphabets as xn--…), *.domain or *")
		}
		if !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	if len(hosts) > maxVhosts {
		return nil, errWant("at most 64 host names")
	}
	return hosts, nil
}

// pathPattern has no blank, quote, backslash, '#', ';', '<', '>', braces or '$'; a '%'
// starts an escaped byte and nothing else, so that no value spells a token of ours.
var pathPattern = regexp.MustCompile(`^/(?:[A-Za-z0-9._~!&()*+,=:@/-]|%[0-9A-Fa-f]{2})*$`)

func parsePath(v string) (string, error) {
	v = strings.TrimSpace(v)
	if !pathPattern.MatchString(v) {
		return "", errWant("a path of the characters that a URL path has, starting with /")
	}
	return v, nil
}

// parsePaths reads the operand of path_beg: flags, then paths.
func parsePaths(v string) (flags, paths []string, err error) {
	for _, w := range strings.Fields(v) {
		if w == "-i" && len(paths) == 0 {
			flags = []string{"-i"}
			continue
		}
		p, err := parsePath(w)
		if err != nil {
			return nil, nil, errWant("paths starting with /, separated by blanks, perhaps after -i")
		}
		paths = append(paths, p)
	}
	if len(paths) == 0 && len(flags) > 0 || len(paths) > maxPaths {
		return nil, nil, errWant("1 to 64 paths")
	}
	return flags, paths, nil
}

// Patterns of an AUTH label. The hashes are those that every crypt(3) takes; HAProxy
// refuses a whole configuration over one that it cannot compute.
var (
	realmPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 ._@/-]{0,127}$`)
	userPattern  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}$`)
	hashPattern  = regexp.MustCompile(`^(?:\$1\$[./0-9A-Za-z]{1,8}\$[./0-9A-Za-z]{22}|` +
		`\$5\$(?:rounds=[1-9][0-9]{3,8}\$)?[./0-9A-Za-z]{1,16}\$[./0-9A-Za-z]{43}|` +
		`\$6\$(?:rounds=[1-9][0-9]{3,8}\$)?[./0-9A-Za-z]{1,16}\$[./0-9A-Za-z]{86}|` +
		`\$2[aby]\$[0-9]{2}\$[./0-9A-Za-z]{53}|[./0-9A-Za-z]{13})$`)
)

func parseAuth(v string) (*basicAuth, error) {
	want := errWant("realm:user:hash, where hash is what mkpasswd -m sha-256 prints")
	parts := strings.Split(v, ":")
	if len(parts) != 3 {
		return nil, want
	}
	a := &basicAuth{realm: strings.ReplaceAll(parts[0], `\ `, " "), user: parts[1], hash: parts[2]}
	if !realmPattern.MatchString(a.realm) || !userPattern.MatchString(a.user) || !hashPattern.MatchString(a.hash) {
		return nil, want
	}
	return a, nil
}

// proven says whether every crypt(3) that HAProxy is built with knows the hash.
func (a *basicAuth) proven() bool { return !strings.HasPrefix(a.hash, "$2") }

func parseNetworks(v string) ([]string, error) {
	var nets []string
	for _, w := range strings.Fields(v) {
		if p, err := netip.ParsePrefix(w); err == nil {
			nets = append(nets, p.String())
		} else if a, err := netip.ParseAddr(w); err == nil && a.Zone() == "" {
			nets = append(nets, a.String())
		} else {
			return nil, errWant("addresses and prefixes separated by blanks, such as 10.0.0.0/8")
		}
	}
	if len(nets) > maxNetworks {
		return nil, errWant("at most 128 addresses and prefixes")
	}
	return nets, nil
}

var balancePattern = regexp.MustCompile(`^(?:roundrobin|static-rr|leastconn|first|source|` +
	`random(?:\([1-9][0-9]{0,2}\))?|` +
	`uri(?: (?:whole|path-only|len [0-9]{1,4}|depth [0-9]{1,2}))*|` +
	`url_param [A-Za-z0-9_-]{1,64}(?: check_post(?: [0-9]{1,6})?)?|` +
	`hdr\([A-Za-z0-9-]{1,64}\)(?: use_domain_only)?|` +
	`rdp-cookie(?:\([A-Za-z0-9_]{1,64}\))?)$`)

func parseBalance(v string) (string, error) {
	v = strings.Join(strings.Fields(v), " ")
	if !balancePattern.MatchString(v) {
		return "", errWant("a balance algorithm of HAProxy with its arguments")
	}
	return v, nil
}

// httpOnly says whether a balance algorithm needs mode http.
func httpOnly(balance string) bool {
	return strings.HasPrefix(balance, "uri") || strings.HasPrefix(balance, "url_param") || strings.HasPrefix(balance, "hdr(")
}

var abnsPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// parseBindAddr accepts "*", an address, abns@name, and unix@name below the socket
// directory, where there is one.
func parseBindAddr(v, socketDir string) (string, error) {
	v = strings.TrimSpace(v)
	if v == "*" {
		return v, nil
	}
	if a, err := netip.ParseAddr(v); err == nil && a.Zone() == "" {
		return a.String(), nil
	}
	if name, ok := strings.CutPrefix(v, "abns@"); ok && abnsPattern.MatchString(name) {
		return v, nil
	}
	if name, ok := strings.CutPrefix(v, "unix@"); ok && socketDir != "" {
		if p, ok := within(socketDir, name); ok {
			return "unix@" + p, nil
		}
	}
	if socketDir == "" {
		return "", errWant("*, an IP address or abns@name")
	}
	return "", errWant("*, an IP address, abns@name or unix@path below the socket directory")
}

var filePattern = regexp.MustCompile(`^[A-Za-z0-9/._+@=-]{1,255}$`)

// within resolves a path that a label names against the directory it has to stay in.
// Symbolic links in that directory are the operator's own.
func within(dir, p string) (string, bool) {
	if !filePattern.MatchString(p) {
		return "", false
	}
	if !path.IsAbs(p) {
		p = path.Join(dir, p)
	}
	p, dir = path.Clean(p), path.Clean(dir)
	return p, p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// parseCerts reads one certificate path, or several as marathon-lb users wrote them:
// "a.pem crt b.pem".
func parseCerts(v, certDir string) ([]string, error) {
	var certs []string
	for i, w := range strings.Fields(v) {
		if i%2 == 1 {
			if w != "crt" {
				return nil, errWant("one certificate path, or several with crt between them")
			}
			continue
		}
		p, ok := within(certDir, w)
		if !ok {
			return nil, errWant("a certificate below the certificate directory")
		}
		certs = append(certs, p)
	}
	if len(certs) == 0 {
		return nil, errWant("a certificate below the certificate directory")
	}
	return certs, nil
}

var (
	cipherPattern = regexp.MustCompile(`^[A-Za-z0-9:+!@=_-]+$`)
	alpnPattern   = regexp.MustCompile(`^(?:h2|h3|http/1\.1|http/1\.0)(?:,(?:h2|h3|http/1\.1|http/1\.0))*$`)
	tlsVersion    = regexp.MustCompile(`^TLSv1\.[0-3]$`)
	verifyPattern = regexp.MustCompile(`^(?:none|optional|required)$`)
	numberPattern = regexp.MustCompile(`^[0-9]{1,7}$`)
)

// bindWords are the options that a label may add to a bind, with the pattern of their
// argument; nil: none. What reaches beyond the listener is not here (process, user,
// mode, namespace, stats level), nor crt-list, a file of options that nobody checked.
var bindWords = map[string]*regexp.Regexp{
	"accept-proxy": nil, "allow-0rtt": nil, "defer-accept": nil, "prefer-client-ciphers": nil, "ssl": nil,
	"strict-sni": nil, "tfo": nil, "transparent": nil, "v4v6": nil, "v6only": nil, "no-tls-tickets": nil,
	"no-sslv3": nil, "no-tlsv10": nil, "no-tlsv11": nil, "no-tlsv12": nil, "no-tlsv13": nil,
	"force-tlsv12": nil, "force-tlsv13": nil,
	"alpn": alpnPattern, "npn": alpnPattern, "ciphers": cipherPattern, "ciphersuites": cipherPattern,
	"curves": cipherPattern, "ecdhe": cipherPattern, "ssl-min-ver": tlsVersion, "ssl-max-ver": tlsVersion,
	"verify": verifyPattern, "backlog": numberPattern, "maxconn": numberPattern, "mss": numberPattern,
	"crt": filePattern, "ca-file": filePattern, "crl-file": filePattern,
}

// parseBindOptions reads words of the allow-list.
func parseBindOptions(v, certDir string) ([]string, error) {
	want := errWant("bind options of the documented list, with files below the certificate directory")
	words := strings.Fields(v)
	var out []string
	for i := 0; i < len(words); i++ {
		pattern, ok := bindWords[words[i]]
		if !ok {
			return nil, want
		}
		out = append(out, words[i])
		if pattern == nil {
			continue
		}
		if i++; i == len(words) || !pattern.MatchString(words[i]) {
			return nil, want
		}
		arg := words[i]
		if pattern == filePattern {
			if arg, ok = within(certDir, arg); !ok {
				return nil, want
			}
		}
		out = append(out, arg)
	}
	return out, nil
}

// ParseBind reads a listener as an operator writes it: "*:80", ":80", "10.0.0.1:80",
// "[::1]:80", "unix@/path" or "abns@name", then options.
func ParseBind(v string) (haproxy.Bind, error) {
	want := errWant(`a listener such as "*:80" or "*:443 ssl crt /etc/ssl/private"`)
	words := strings.Fields(v)
	if len(words) == 0 || strings.ContainsAny(v, "\n\r\x00#\"'\\") {
		return haproxy.Bind{}, want
	}
	b := haproxy.Bind{Options: strings.Join(words[1:], " ")}
	if strings.HasPrefix(words[0], "unix@") || strings.HasPrefix(words[0], "abns@") {
		b.Addr = words[0]
		return b, nil
	}
	i := strings.LastIndexByte(words[0], ':')
	if i < 0 {
		return haproxy.Bind{}, want
	}
	port, err := strconv.ParseUint(words[0][i+1:], 10, 16)
	if err != nil || port == 0 {
		return haproxy.Bind{}, want
	}
	b.Port = uint16(port)
	switch addr := strings.Trim(words[0][:i], "[]"); addr {
	case "", "*":
		b.Addr = "*"
	default:
		a, err := netip.ParseAddr(addr)
		if err != nil {
			return haproxy.Bind{}, want
		}
		b.Addr = a.String()
	}
	return b, nil
}
