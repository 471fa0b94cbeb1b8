package haproxy

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// What HAProxy says about itself is read tolerantly: columns and keys are found by name,
// unknown ones and lines that make no sense are skipped, since each version adds some. What
// is missing has its zero value. Formats: management.txt, "show info", "show servers
// state", "show map", "show proc", and server-state-file in the same manual.

// Info is what `show info` says, as far as we use it.
type Info struct {
	Name        string // "HAProxy"
	Version     string // "2.6.12-1+deb12u4"
	Pid         int
	UptimeSec   int
	Stopping    bool   // a reload or a stop has replaced this worker
	Description string // global description: our generation
	Node        string
	MaxConn     int
	UlimitN     int // file descriptors it may have
}

func parseInfo(reply []byte) Info {
	var info Info
	for line := range bytes.Lines(reply) {
		key, value, ok := strings.Cut(strings.TrimSpace(string(line)), ":")
		if !ok {
			continue
		}
		value = strings.TrimSpace(value)
		number, _ := strconv.Atoi(value)
		switch key {
		case "Name":
			info.Name = value
		case "Version":
			info.Version = value
		case "Pid":
			info.Pid = number
		case "Uptime_sec":
			info.UptimeSec = number
		case "Stopping":
			info.Stopping = number != 0
		case "description":
			info.Description = value
		case "node":
			info.Node = value
		case "Maxconn":
			info.MaxConn = number
		case "Ulimit-n":
			info.UlimitN = number
		}
	}
	return info
}

// info asks who answers. Something that speaks without being HAProxy is ErrNotHAProxy.
func (c *conn) info(ctx context.Context) (Info, error) {
	reply, err := c.query(ctx, "show info")
	if err != nil {
		return Info{}, err
	}
	info := parseInfo(reply)
	if info.Name != "HAProxy" || info.Version == "" {
		return Info{}, fmt.Errorf("%w: it answers show info with %q", ErrNotHAProxy, shorten(reply))
	}
	return info, nil
}

// checkAdmin fails with ErrNotAdmin where commands would be denied.
func (c *conn) checkAdmin(ctx context.Context) error {
	reply, err := c.query(ctx, "show cli level")
	if err != nil {
		return err
	}
	if level := strings.TrimSpace(string(reply)); level != "admin" {
		return fmt.Errorf("%w: it has level %q", ErrNotAdmin, shorten(reply))
	}
	return nil
}

// Admin bits of a server (server-t.h, SRV_ADMF_*).
const (
	adminMaint = 0x01 | 0x02 | 0x20 | 0x40 // forced, inherited, by resolver, by host name
	adminDrain = 0x08 | 0x10               // forced, inherited
)

// serverColumns are the positions of the columns we read, found in the header line.
type serverColumns struct{ backend, name, addr, port, admin, uweight int }

func parseServerColumns(line string) (serverColumns, bool) {
	cols := serverColumns{-1, -1, -1, -1, -1, -1}
	names := strings.Fields(strings.TrimPrefix(line, "#"))
	for i, name := range names {
		switch name {
		case "be_name":
			cols.backend = i
		case "srv_name":
			cols.name = i
		case "srv_addr":
			cols.addr = i
		case "srv_port":
			cols.port = i
		case "srv_admin_state":
			cols.admin = i
		case "srv_uweight":
			cols.uweight = i
		}
	}
	return cols, min(cols.backend, cols.name, cols.addr, cols.port, cols.admin, cols.uweight) >= 0
}

// serversParser reads the answer to `show servers state` line by line into servers by
// backend, in HAProxy's order. A server without a numeric address (a host name that was not
// resolved, a socket path) has an invalid Addr.
type serversParser struct {
	have    map[string]*running
	cols    serverColumns
	known   bool
	backend string
	servers []runningServer // of backend, until the next begins
	fields  []string
}

func (p *serversParser) line(raw []byte) {
	line := strings.TrimRight(string(raw), "\r\n")
	if strings.HasPrefix(line, "#") {
		p.cols, p.known = parseServerColumns(line)
		return
	}
	if !p.known {
		return
	}
	p.fields = slices.AppendSeq(p.fields[:0], strings.SplitSeq(line, " "))
	if len(p.fields) <= max(p.cols.backend, p.cols.name, p.cols.addr, p.cols.port, p.cols.admin, p.cols.uweight) {
		return
	}
	s, ok := parseServer(p.fields, p.cols)
	if !ok {
		return
	}
	if name := p.fields[p.cols.backend]; name != p.backend {
		p.flush()
		p.backend = strings.Clone(name)
	}
	p.servers = append(p.servers, s)
}

// flush gives the servers of one backend a slice of just their size: they stay.
func (p *serversParser) flush() {
	if len(p.servers) == 0 {
		return
	}
	have := p.have[p.backend]
	if have == nil {
		have = new(running)
		p.have[p.backend] = have
	}
	have.servers = slices.Concat(have.servers, p.servers)
	p.servers = p.servers[:0]
}

func parseServersState(reply []byte) map[string]*running {
	p := serversParser{have: make(map[string]*running)}
	for line := range bytes.Lines(reply) {
		p.line(line)
	}
	p.flush()
	return p.have
}

func parseServer(fields []string, cols serverColumns) (runningServer, bool) {
	admin, errAdmin := strconv.ParseUint(fields[cols.admin], 0, 32)
	weight, errWeight := strconv.ParseUint(fields[cols.uweight], 10, 16)
	if errAdmin != nil || errWeight != nil || fields[cols.name] == "" || weight > 256 {
		return runningServer{}, false
	}
	s := runningServer{Name: strings.Clone(fields[cols.name]), Weight: int(weight)}
	switch {
	case admin&adminMaint != 0:
		s.State = Maint
	case admin&adminDrain != 0:
		s.State = Drain
	}
	addr, errAddr := netip.ParseAddr(fields[cols.addr])
	port, errPort := strconv.ParseUint(fields[cols.port], 10, 16)
	if errAddr == nil && errPort == nil && addr.Zone() == "" {
		s.Addr = netip.AddrPortFrom(addr, uint16(port))
	}
	return s, true
}

// servers reads all servers of all backends.
func (c *conn) servers(ctx context.Context) (map[string]*running, error) {
	p := serversParser{have: make(map[string]*running)}
	if err := c.lines(ctx, "show servers state", p.line); err != nil {
		return nil, err
	}
	p.flush()
	have := p.have
	// Backends without servers are in no line of that answer.
	err := c.lines(ctx, "show backend", func(line []byte) {
		name := string(bytes.TrimSpace(line))
		if isName(name) && have[name] == nil {
			have[name] = new(running)
		}
	})
	return have, err
}

// backend reads the servers of one backend, which must exist.
func (c *conn) backend(ctx context.Context, name string) (*running, error) {
	reply, err := c.query(ctx, "show servers state "+name)
	if err != nil {
		return nil, err
	}
	if !bytes.Contains(reply, []byte("srv_name")) { // "Can't find backend."
		return nil, fmt.Errorf("show servers state %s: %s", name, shorten(reply))
	}
	if have := parseServersState(reply)[name]; have != nil {
		return have, nil
	}
	return new(running), nil
}

// runningMap is a map as the worker holds it.
type runningMap struct {
	path    string            // by which commands name it
	entries map[string]string // key → value; of a key that is there twice, the first counts
}

// mapName gives the name of the map that is kept at path: "ports" for "/etc/haproxy/ports.7.map",
// as Files writes them; "" for a file that is not ours by its name.
func mapName(path string) string {
	base, ok := strings.CutSuffix(filepath.Base(path), ".map")
	if !ok {
		return ""
	}
	dot := strings.LastIndexByte(base, '.')
	if dot <= 0 {
		return ""
	}
	if number := base[dot+1:]; number == "" || strings.Trim(number, "0123456789") != "" {
		return ""
	}
	return base[:dot]
}

// parseMapList reads the answer to `show map`: "<id> (<path>) pattern loaded from …".
func parseMapList(reply []byte) (paths []string) {
	for line := range bytes.Lines(reply) {
		_, rest, ok := strings.Cut(string(line), " (")
		if !ok || line[0] < '0' || line[0] > '9' && line[0] != '-' {
			continue
		}
		path, _, ok := strings.Cut(rest, ") ")
		if ok && path != "" && isWord(path) {
			paths = append(paths, path)
		}
	}
	return paths
}

// parseMap reads the answer to `show map <path>`: "<pointer> <key> <value>".
func parseMap(reply []byte) map[string]string {
	entries := make(map[string]string)
	for line := range bytes.Lines(reply) {
		pointer, rest, _ := strings.Cut(strings.TrimRight(string(line), "\r\n"), " ")
		key, value, ok := strings.Cut(rest, " ")
		if !ok || !strings.HasPrefix(pointer, "0x") {
			continue
		}
		if _, twice := entries[key]; !twice {
			entries[key] = value
		}
	}
	return entries
}

// maps reads the maps that are ours by their file names. With several generations of one
// in the worker, the last listed counts.
func (c *conn) maps(ctx context.Context) (map[string]*runningMap, error) {
	reply, err := c.query(ctx, "show map")
	if err != nil {
		return nil, err
	}
	maps := make(map[string]*runningMap)
	for _, path := range parseMapList(reply) {
		name := mapName(path)
		if name == "" {
			continue
		}
		entries, err := c.entries(ctx, path)
		if err != nil {
			return nil, err
		}
		maps[name] = &runningMap{path: path, entries: entries}
	}
	c.trim()
	return maps, nil
}

// entries reads one map, which must exist.
func (c *conn) entries(ctx context.Context, path string) (map[string]string, error) {
	reply, err := c.query(ctx, "show map "+path)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(reply, []byte("Unknown map")) {
		return nil, fmt.Errorf("show map %s: %s", path, shorten(reply))
	}
	return parseMap(reply), nil
}

// Procs is what the master's `show proc` lists.
type Procs struct {
	Master  int   // pid
	Workers []int // pids of current workers
	Old     []int // pids of workers that finish their connections
	Failed  int   // reloads that failed since the last good one
}

// parseProcs reads the answer to `show proc`. HAProxy 3.4 lists the serving worker under
// "# old workers" after a failed reload: callers that know its pid take it out of Old.
func parseProcs(reply []byte) Procs {
	var p Procs
	section := ""
	for line := range bytes.Lines(reply) {
		text := strings.TrimSpace(string(line))
		if header, ok := strings.CutPrefix(text, "#"); ok {
			section = strings.TrimSpace(header)
			continue
		}
		fields := strings.Fields(text)
		if len(fields) < 2 {
			continue
		}
		pid, err := strconv.Atoi(fields[0])
		if err != nil || pid <= 0 {
			continue
		}
		switch {
		case fields[1] == "master":
			p.Master = pid
			if _, rest, ok := strings.Cut(text, "[failed:"); ok {
				number, _, _ := strings.Cut(rest, "]")
				p.Failed, _ = strconv.Atoi(strings.TrimSpace(number))
			}
		case fields[1] != "worker":
		case strings.HasPrefix(section, "old workers"):
			p.Old = append(p.Old, pid)
		default:
			p.Workers = append(p.Workers, pid)
		}
	}
	return p
}
