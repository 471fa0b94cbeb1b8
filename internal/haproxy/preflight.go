package haproxy

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// testBind finds out whether HAProxy could listen on the ports of b that it does not listen
// on yet; old are its present listeners. A reload onto a port that somebody else holds makes
// 2.6 refuse every connection on all ports for two seconds, and newer ones drop some;
// haproxy -c does not see it.
func testBind(b Bind, old bindIndex) error {
	// transparent, interface and namespace change what can be bound, in ways that take
	// HAProxy's own rights to try.
	if b.local() || hasOption(b.Options, "transparent") || hasOption(b.Options, "interface") || hasOption(b.Options, "namespace") {
		return nil
	}
	for port := int(b.Port); port <= int(b.last()); port++ {
		if old.covers(b.Addr, uint16(port)) {
			continue
		}
		switch err := testPort(b.Addr, uint16(port), hasOption(b.Options, "v6only")); {
		case err == nil, errors.Is(err, unix.EACCES), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EMFILE):
			// Not ours to know: HAProxy has other rights.
		case errors.Is(err, unix.EADDRINUSE):
			return fmt.Errorf("port %d is in use by another process%s", port, holder(uint16(port)))
		case errors.Is(err, unix.EADDRNOTAVAIL):
			return fmt.Errorf("address %s is not on this machine", b.Addr)
		default:
			return fmt.Errorf("port %d cannot be bound: %w", port, err)
		}
	}
	return nil
}

// bindIndex finds listeners by port.
type bindIndex map[uint16][]Bind

func indexBinds(binds []Bind) bindIndex {
	index := make(bindIndex, len(binds))
	for _, b := range binds {
		for port := int(b.Port); port <= int(b.last()) && !b.local(); port++ {
			index[uint16(port)] = append(index[uint16(port)], b)
		}
	}
	return index
}

func (x bindIndex) covers(addr string, port uint16) bool {
	return slices.ContainsFunc(x[port], func(b Bind) bool { return b.covers(addr, port) })
}

// conflict reports a port of b that one of x has.
func (x bindIndex) conflict(b Bind) error {
	for port := int(b.Port); port <= int(b.last()) && !b.local() && len(x) > 0; port++ {
		if x.covers(b.Addr, uint16(port)) {
			return fmt.Errorf("port %d belongs to a section of the operator's own in haproxy.cfg", port)
		}
	}
	return nil
}

// testPort binds one port for a moment without listening, so that nobody can connect to
// it. The socket has SO_REUSEADDR, as HAProxy's has, so that connections in TIME_WAIT do not
// count, and not SO_REUSEPORT, with which HAProxy would share the port with a foreign process
// of the same user: half of the connections would go there.
func testPort(addr string, port uint16, v6only bool) error {
	ip := netip.IPv4Unspecified()
	if addr != "" && addr != "*" {
		var err error
		if ip, err = netip.ParseAddr(addr); err != nil {
			return err
		}
	}
	family, sockaddr := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(port)})
	if ip.Is4() {
		sockaddr.(*unix.SockaddrInet4).Addr = ip.As4()
	} else {
		family, sockaddr = unix.AF_INET6, &unix.SockaddrInet6{Port: int(port), Addr: ip.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if v6only && family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return err
		}
	}
	return unix.Bind(fd, sockaddr)
}

// holder names the process that listens on port as " (name, pid n)", as far as our rights
// go; "" when it is not found. It reads /proc (proc_pid_net(5)) and is only for a message.
func holder(port uint16) string {
	inodes := make(map[string]bool)
	for _, table := range [...]string{"/proc/net/tcp", "/proc/net/tcp6"} {
		file, err := os.Open(table)
		if err != nil {
			continue
		}
		suffix := fmt.Sprintf(":%04X", port)
		for lines := bufio.NewScanner(file); lines.Scan(); {
			// sl local_address rem_address st … inode is the tenth; 0A is LISTEN.
			if f := strings.Fields(lines.Text()); len(f) > 9 && strings.HasSuffix(f[1], suffix) && f[3] == "0A" {
				inodes["socket:["+f[9]+"]"] = true
			}
		}
		file.Close()
	}
	if len(inodes) == 0 {
		return ""
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && inodes[target] {
			pid := strings.Split(fd, "/")[2]
			name, _ := os.ReadFile("/proc/" + pid + "/comm")
			return fmt.Sprintf(" (%s, pid %s)", strings.TrimSpace(string(name)), pid)
		}
	}
	return ""
}

const (
	// fdReserve is what HAProxy opens besides connections, listeners and checks: threads'
	// pollers and wake-up pipes, stats connections, logs.
	fdReserve = 150

	// leastMaxConn is how far maxconn is lowered before checks are dropped instead.
	leastMaxConn = 100
)

// budget is how a configuration fits into HAProxy's file descriptors.
type budget struct {
	maxConn    int  // to be written; 0: as it is
	dropChecks bool // even the least maxconn leaves no room for checks
}

// fit compares what a configuration needs with limit, HAProxy's hard limit (0: unknown).
// HAProxy exits at start when 2 × maxconn + listeners + checked servers is above it, and
// haproxy -c does not say so. maxConn 0 means that HAProxy computes it from the limit.
func fit(limit, maxConn, listeners, checked int) budget {
	if limit <= 0 {
		return budget{}
	}
	room := limit - listeners - fdReserve
	least := leastMaxConn
	if maxConn > 0 {
		least = min(maxConn, leastMaxConn)
	}
	if 2*maxConn+checked <= room && 2*least+checked <= room {
		return budget{}
	}
	if 2*least+checked <= room {
		return budget{maxConn: (room - checked) / 2}
	}
	b := budget{dropChecks: true}
	if 2*maxConn > room {
		b.maxConn = max(room/2, 1)
	}
	return b
}

// hardLimit is how many files the process may open at most, 0 when that cannot be read
// (proc_pid_limits(5): "Max open files  <soft>  <hard>  files").
func hardLimit(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			if f := strings.Fields(rest); len(f) >= 2 {
				n, _ := strconv.Atoi(f[1]) // "unlimited" is 0
				return n
			}
		}
	}
	return 0
}

// keptMaxConn is the maxconn of the operator's own global lines, 0 for none.
func keptMaxConn(lines []string) int {
	n := 0
	for _, line := range lines {
		if value, ok := strings.CutPrefix(words(line), "maxconn "); ok {
			n, _ = strconv.Atoi(value)
		}
	}
	return n
}

// withBudget is cfg changed to fit b.
func withBudget(cfg *Config, b budget) *Config {
	out := *cfg
	if b.maxConn > 0 {
		g := *cfg.Global
		g.MaxConn = b.maxConn
		out.Global = &g
	}
	if b.dropChecks {
		out.Backends = make(map[string]*Backend, len(cfg.Backends))
		for name, be := range cfg.Backends {
			out.Backends[name] = withoutChecks(be)
		}
	}
	return &out
}

// withoutChecks is b with checks switched off behind whatever switched them on.
func withoutChecks(b *Backend) *Backend {
	const no = " no-check"
	out := *b
	if hasOption(b.ServerOptions, "check") {
		out.ServerOptions += no
	}
	out.Servers = nil
	for _, s := range b.Servers {
		if hasOption(s.Options, "check") {
			s.Options += no
		}
		out.Servers = append(out.Servers, s)
	}
	return &out
}
