package zdd

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"bridged/internal/bridge"
)

const (
	balancerTimeout = 5 * time.Second
	maxStats        = 64 << 20
	// busyProcesses: a master and a worker; more are old workers with connections that
	// the statistics of the new one do not show.
	busyProcesses = 2
)

// Balancer is one load balancer to ask.
type Balancer struct {
	name   string
	base   *url.URL
	client *http.Client
	// read asks it for its servers; busy as in balancerView.
	read   func(ctx context.Context, b *Balancer) (r rows, busy string, err error)
	counts bool
}

// BalancersOf finds the load balancers at the URLs of HAProxy's statistics (marathonLB, such
// as http://lb.example:9090) and of bridged's listeners (bridges, such as
// http://node7:9377). A name stands for every IPv4 address that it has.
func BalancersOf(ctx context.Context, marathonLB, bridges []string) ([]*Balancer, error) {
	var list []*Balancer
	for _, kind := range []struct {
		urls   []string
		read   func(context.Context, *Balancer) (rows, string, error)
		counts bool
	}{{marathonLB, readStats, true}, {bridges, readState, false}} {
		for _, text := range kind.urls {
			found, err := resolveBalancer(ctx, text)
			if err != nil {
				return nil, err
			}
			for _, b := range found {
				b.read, b.counts = kind.read, kind.counts
				list = append(list, b)
			}
		}
	}
	return list, nil
}

func resolveBalancer(ctx context.Context, text string) ([]*Balancer, error) {
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fail(CodeArguments, "a load balancer: want a URL such as http://lb.example:9090")
	}
	u.Path = strings.TrimRight(u.Path, "/")
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname())
	if err != nil {
		return nil, fail(CodeBalancer, "%s: %w", u.Redacted(), err)
	}
	if v4 := slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return !a.Unmap().Is4() }); len(v4) > 0 {
		addrs = v4
	}
	var list []*Balancer
	for _, a := range addrs {
		at := net.JoinHostPort(a.Unmap().String(), port)
		list = append(list, &Balancer{name: at, base: u, client: &http.Client{
			Timeout: balancerTimeout,
			Transport: &http.Transport{
				DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
					return (&net.Dialer{Timeout: balancerTimeout}).DialContext(ctx, network, at)
				},
				// Through a kept connection a load balancer that was reloaded answers from
				// its old process.
				DisableKeepAlives: true,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}})
	}
	return list, nil
}

// get reads what stands at a path of a load balancer.
func (b *Balancer) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.base.String()+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := b.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxStats))
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(res.Status)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return body, nil
}

// see asks a load balancer about the tasks of apps.
func (b *Balancer) see(ctx context.Context, apps []*app, resolve func(host string) []string) (*balancerView, error) {
	r, busy, err := b.read(ctx, b)
	if err != nil {
		return nil, fmt.Errorf("load balancer %s: %w", b.name, err)
	}
	v := &balancerView{name: b.name, servers: map[string]server{}, busy: busy, counts: b.counts}
	for _, a := range apps {
		for i := range a.tasks {
			v.servers[a.tasks[i].id] = r.of(&a.tasks[i], resolve)
		}
	}
	return v, nil
}

// readStats reads HAProxy's statistics, as marathon-lb and bridged in its dialect serve
// them (HAProxy's management guide, 9.1, "CSV format").
func readStats(ctx context.Context, b *Balancer) (rows, string, error) {
	text, err := b.get(ctx, "/haproxy?stats;csv")
	if err != nil {
		return nil, "", err
	}
	r, err := parseStats(string(text))
	if err != nil {
		return nil, "", err
	}
	if pids, err := b.get(ctx, "/_haproxy_getpids"); err == nil {
		if n := len(strings.Fields(string(pids))); n > busyProcesses {
			return r, fmt.Sprintf("%d HAProxy processes run: old ones have not ended", n), nil
		}
	}
	return r, "", nil
}

func parseStats(text string) (rows, error) {
	read := csv.NewReader(strings.NewReader(strings.TrimPrefix(text, "# ")))
	read.FieldsPerRecord = -1
	head, err := read.Read()
	if err != nil {
		return nil, fmt.Errorf("statistics: %w", err)
	}
	column := map[string]int{}
	for i, name := range head {
		column[name] = i
	}
	for _, name := range []string{"svname", "qcur", "scur", "status"} {
		if _, ok := column[name]; !ok {
			return nil, fmt.Errorf("statistics: no column %s; is this the URL of HAProxy's statistics?", name)
		}
	}
	r := rows{}
	for {
		rec, err := read.Read()
		if err == io.EOF {
			return r, nil
		}
		if err != nil {
			return nil, fmt.Errorf("statistics: %w", err)
		}
		field := func(name string) string {
			if i, ok := column[name]; ok && i < len(rec) {
				return rec[i]
			}
			return ""
		}
		name := field("svname")
		if name == "FRONTEND" || name == "BACKEND" {
			continue
		}
		if addr := field("addr"); addr != "" {
			name = addr
		}
		status := field("status")
		r.add(name, server{
			ready:    strings.HasPrefix(status, "UP") || status == "no check",
			sessions: number(field("scur")) + number(field("qcur")),
		})
	}
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0 // empty: there is no such figure for this line
	}
	return n
}

// readState reads bridged's own listener.
func readState(ctx context.Context, b *Balancer) (rows, string, error) {
	text, err := b.get(ctx, "/api/state")
	if err != nil {
		return nil, "", err
	}
	// Only what is needed: another version of bridged may say more.
	var s struct {
		Ready    bool                 `json:"ready"`
		NotReady []string             `json:"notReady"`
		Services []bridge.ServiceView `json:"services"`
		HAProxy  struct{ OldWorkers int }
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, "", fmt.Errorf("/api/state: %w", err)
	}
	r := rows{}
	for _, svc := range s.Services {
		for _, srv := range svc.Servers {
			r.add(srv.Addr, server{ready: srv.State == "ready"})
		}
	}
	switch {
	case !s.Ready:
		return r, strings.Join(s.NotReady, "; "), nil
	case s.HAProxy.OldWorkers > 0:
		return r, fmt.Sprintf("%d old HAProxy workers have not ended", s.HAProxy.OldWorkers), nil
	}
	return r, "", nil
}

// resolver looks agents up, and remembers what it found.
type resolver map[string][]string

func (r resolver) lookup(ctx context.Context, host string) []string {
	if net.ParseIP(host) != nil || host == "" {
		return []string{host}
	}
	if found, ok := r[host]; ok {
		return found
	}
	ctx, cancel := context.WithTimeout(ctx, balancerTimeout)
	defer cancel()
	found, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return nil // asked again next time; until then its tasks are not found
	}
	r[host] = found
	return found
}
