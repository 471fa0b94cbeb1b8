package bridge

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// marathonLBEndpoints answers what marathon-lb's tools ask HAProxy's statistics listener
// for, which hands it on to us. In another dialect none of it exists.
func (b *Bridge) marathonLBEndpoints(mux *http.ServeMux) {
	text := func(answer func(ctx context.Context) ([]byte, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			on := false
			if err := b.ask(r.Context(), func() { on = b.config.Dialect == DialectMarathonLB && b.config.MarathonLB.Endpoints }); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			if !on {
				http.NotFound(w, r)
				return
			}
			body, err := answer(r.Context())
			if err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("Cache-Control", "no-store")
			if _, err := w.Write(body); err != nil {
				b.log.Debug("endpoint not answered", "path", r.URL.Path, "err", err)
			}
		}
	}
	// HAProxy refuses these to others than this machine; so do we, for who asks directly.
	local := func(h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			peer, err := netip.ParseAddrPort(r.RemoteAddr)
			if err != nil || !peer.Addr().Unmap().IsLoopback() {
				http.Error(w, "answered to this machine alone", http.StatusForbidden)
				return
			}
			h(w, r)
		}
	}
	mux.Handle("GET /_haproxy_getconfig", text(b.haproxyConfig))
	mux.Handle("GET /_haproxy_getpids", text(b.haproxyPids))
	mux.Handle("GET /_haproxy_getvhostmap", text(func(ctx context.Context) ([]byte, error) {
		return b.askMap(ctx, func() map[string]string { return hostMap(b.translator.Vhosts()) })
	}))
	mux.Handle("GET /_haproxy_getappmap", text(func(ctx context.Context) ([]byte, error) {
		return b.askMap(ctx, func() map[string]string { return b.translator.AppIDs() })
	}))
	// The words are those that marathon-lb answers.
	mux.Handle("GET /_mlb_signal/hup", local(text(func(ctx context.Context) ([]byte, error) {
		return []byte("Sent SIGHUP signal to marathon-lb"), b.ask(ctx, b.lookAgain)
	})))
	mux.Handle("GET /_mlb_signal/usr1", local(text(func(ctx context.Context) ([]byte, error) {
		return []byte("Sent SIGUSR1 signal to marathon-lb"), b.ask(ctx, b.auditNow)
	})))
}

// lookAgain asks for the whole picture of Marathon and for the operator's files. On the
// loop's goroutine.
func (b *Bridge) lookAgain() {
	for _, w := range b.source.watchers {
		w.Refresh()
	}
	b.again.set()
}

// auditNow compares HAProxy with what is wanted, before it is due. On the loop's goroutine.
func (b *Bridge) auditNow() { b.audit.set() }

// level is a signal to the loop: what is set twice is done once.
type level chan struct{}

func (l level) set() {
	select {
	case l <- struct{}{}:
	default:
	}
}

// haproxyConfig is the file that HAProxy was last given.
func (b *Bridge) haproxyConfig(ctx context.Context) ([]byte, error) {
	var path string
	if err := b.ask(ctx, func() { path = b.config.HAProxy.Config }); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read haproxy.cfg: %w", reasonOf(err))
	}
	return text, nil
}

// askMap writes a map as HAProxy reads it, sorted.
func (b *Bridge) askMap(ctx context.Context, get func() map[string]string) ([]byte, error) {
	var m map[string]string
	if err := b.ask(ctx, func() { m = get() }); err != nil {
		return nil, err
	}
	var text bytes.Buffer
	for _, key := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&text, "%s %s\n", key, m[key])
	}
	return text.Bytes(), nil
}

// hostMap is what of routes goes to a host as a whole, as marathon-lb's map has it.
func hostMap(routes map[string]string) map[string]string {
	hosts := make(map[string]string)
	for key, backend := range routes {
		if host, path, _ := strings.Cut(key, "/"); path == "" {
			hosts[host] = backend
		}
	}
	return hosts
}

// haproxyPids lists HAProxy's processes with spaces between, as pidof does: deployment
// tools wait until no more than a master and a worker are left.
func (b *Bridge) haproxyPids(ctx context.Context) ([]byte, error) {
	var pid int
	if err := b.ask(ctx, func() { pid = b.proxy.Status().Pid }); err != nil {
		return nil, err
	}
	var text []string
	for _, p := range processesOf("/proc", pid) {
		text = append(text, strconv.Itoa(p))
	}
	return []byte(strings.Join(text, " ")), nil
}

// processesOf are worker, its master, and the master's other workers, newest first. A
// worker that proc does not show (another PID namespace) is the only one known of.
func processesOf(proc string, worker int) []int {
	if worker == 0 {
		return nil
	}
	name, master, ok := processStat(proc, worker)
	if !ok {
		return []int{worker}
	}
	pids := []int{worker}
	if masterName, _, ok := processStat(proc, master); ok && masterName == name {
		pids = append(pids, master)
		entries, err := os.ReadDir(proc)
		if err != nil {
			return pids
		}
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || pid == worker || pid == master {
				continue
			}
			if n, parent, ok := processStat(proc, pid); ok && parent == master && n == name {
				pids = append(pids, pid)
			}
		}
	}
	slices.Sort(pids)
	slices.Reverse(pids)
	return pids
}

// processStat reads a process's name and parent (proc(5), /proc/pid/stat).
func processStat(proc string, pid int) (name string, parent int, ok bool) {
	f, err := os.Open(filepath.Join(proc, strconv.Itoa(pid), "stat"))
	if err != nil {
		return "", 0, false
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return "", 0, false
	}
	// The name stands in parentheses and may hold some itself.
	from, to := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if from < 0 || to < from {
		return "", 0, false
	}
	fields := strings.Fields(string(text[to+1:]))
	if len(fields) < 2 || fields[0] == "Z" {
		return "", 0, false
	}
	parent, err = strconv.Atoi(fields[1])
	return string(text[from+1 : to]), parent, err == nil
}
