package haproxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// text is b as it stands behind the keyword bind.
func (b Bind) text() (string, error) {
	var out strings.Builder
	addr := cmp.Or(b.Addr, "*")
	switch {
	case b.local():
		if b.Port != 0 || !isWord(addr) || strings.ContainsAny(addr, ",") {
			return "", fmt.Errorf("bind %.60q: want unix@PATH or abns@NAME without a port", addr)
		}
		out.WriteString(addr)
	case b.Port == 0:
		return "", fmt.Errorf("bind %.60q: no port", addr)
	case addr == "*":
		out.WriteString("*:")
	default:
		ip, err := netip.ParseAddr(addr)
		if err != nil || ip.Zone() != "" {
			return "", fmt.Errorf("bind %.60q: want *, an IP address, unix@PATH or abns@NAME", addr)
		}
		// HAProxy takes the last colon as the port's, brackets or not.
		out.WriteString(ip.String() + ":")
	}
	if b.Port != 0 {
		out.WriteString(strconv.Itoa(int(b.Port)))
		if b.PortEnd > b.Port {
			out.WriteString("-" + strconv.Itoa(int(b.PortEnd)))
		}
	}
	if b.Options != "" {
		if err := oneLine(b.Options); err != nil {
			return "", err
		}
		out.WriteString(" " + b.Options)
	}
	return out.String(), nil
}

// local reports whether b is no network address.
func (b Bind) local() bool {
	return strings.HasPrefix(b.Addr, "unix@") || strings.HasPrefix(b.Addr, "abns@") || strings.HasPrefix(b.Addr, "/")
}

// last is the last port of b's range.
func (b Bind) last() uint16 { return max(b.Port, b.PortEnd) }

// covers reports whether b listens on port of addr, or would collide with who does.
func (b Bind) covers(addr string, port uint16) bool {
	if b.local() || port < b.Port || port > b.last() {
		return false
	}
	any := func(a string) bool { return a == "" || a == "*" || a == "0.0.0.0" || a == "::" }
	return any(addr) || any(b.Addr) || addr == b.Addr
}

func compareBinds(a, b Bind) int {
	return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.PortEnd, b.PortEnd),
		strings.Compare(a.Addr, b.Addr), strings.Compare(a.Options, b.Options))
}

// listeners is how many sockets the binds open.
func listeners(binds []Bind) int {
	n := 0
	for _, b := range binds {
		n += int(b.last()-b.Port) + 1
	}
	return n
}

// bindsTLS reports whether a listener of cfg speaks TLS.
func bindsTLS(cfg *Config) bool {
	tls := func(b Bind) bool { return strings.Contains(b.Options, "ssl") && hasOption(b.Options, "ssl") }
	for _, f := range cfg.Frontends {
		if slices.ContainsFunc(f.Binds, tls) {
			return true
		}
	}
	for _, b := range cfg.Backends {
		if slices.ContainsFunc(b.Binds, tls) {
			return true
		}
	}
	return false
}
