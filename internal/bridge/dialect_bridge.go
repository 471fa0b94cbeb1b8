package bridge

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"bridged/internal/discovery"
	"bridged/internal/haproxy"
)

// bridgeDialect writes what users of haproxy-marathon-bridge expect: a listen section
// for each service port, named <app>-<port>, where <app> is the app id without its
// leading slash and with '_' for every other slash: /shop/cart on 10001 is
// shop_cart-10001.
type bridgeDialect struct {
	opts *TranslateOptions
	ts   *templateSet
}

// Names of the shared vhost frontend of this dialect.
const bridgeHTTPFrontend = "bridged_http"

func (d *bridgeDialect) name(app string, port uint16) string {
	return appName(app) + "-" + strconv.Itoa(int(port))
}

// mode: HTTP where something asks for it that TCP cannot do.
func (d *bridgeDialect) mode(s *settings) haproxy.Mode {
	switch {
	case s.mode != "":
		return s.mode
	case s.auth != nil, s.proto == "h2", len(s.vhosts) > 0 && len(d.opts.HTTPBinds) > 0:
		return haproxy.HTTP
	}
	return haproxy.TCP
}

func (d *bridgeDialect) shape(v *view) (*fragment, error) {
	s := v.set
	f := &fragment{name: d.name(v.id, v.number), mode: d.mode(s), bind: serviceBind(v, d.opts)}
	f.guarded = s.auth != nil && f.mode == haproxy.HTTP
	b := &haproxy.Backend{Section: haproxy.Section{
		Kind: haproxy.KindBackend, Name: f.name, Mode: f.mode, Binds: []haproxy.Bind{f.bind}, Owner: v.owner, Order: int(v.number),
		Unproven: unproven(s),
	}}
	b.Balance = s.balance
	if b.Balance == "" || httpOnly(b.Balance) && f.mode == haproxy.TCP {
		b.Balance = "leastconn"
	}
	var options []string
	if d.opts.Health.asksHAProxy() {
		options = append(options, "check inter "+checkTime(d.opts.CheckInterval)+" fastinter 1s")
	}
	b.ServerOptions = strings.Join(append(options, serverOptions(s)...), " ")
	lines, err := backendLines(v, f, d.ts)
	if err != nil {
		return nil, err
	}
	if s.sticky && f.mode == haproxy.HTTP {
		// Dynamic cookies are computed from address and key, so that they are the same on
		// every node and need nothing on the server line, which slots could not carry.
		lines = append(lines, "cookie bridged_server insert indirect nocache dynamic", "dynamic-cookie-key "+f.name)
	}
	b.Lines = lines
	f.backend = b
	if f.guarded {
		f.userlist = userlist(v, f.name)
	}
	if len(d.opts.HTTPBinds) > 0 && f.mode == haproxy.HTTP {
		f.routes = routesOf(s)
	}
	return f, nil
}

func (d *bridgeDialect) server(f *fragment, v *view, task *discovery.Task, state haproxy.State) (haproxy.Server, bool) {
	var buf [64]byte
	name := task.Addr.Addr().AppendTo(buf[:0])
	name = strconv.AppendUint(append(name, '_'), uint64(task.Addr.Port()), 10)
	return haproxy.Server{Name: string(name), Addr: task.Addr, State: state, Weight: -1}, true
}

func (d *bridgeDialect) finish(_ *fragment, _ *view, servers []haproxy.Server) ([]haproxy.Server, error) {
	return sortServers(servers), nil
}

// sortServers orders servers by address and keeps one of those that share an address:
// a task that replaces another at the same place is the one that counts.
func sortServers(servers []haproxy.Server) []haproxy.Server {
	slices.SortStableFunc(servers, func(a, b haproxy.Server) int {
		if c := a.Addr.Compare(b.Addr); c != 0 {
			return c
		}
		return int(a.State) - int(b.State)
	})
	return slices.CompactFunc(servers, func(a, b haproxy.Server) bool { return a.Name == b.Name })
}

func (d *bridgeDialect) shared(*Translator) []sharedSection {
	if len(d.opts.HTTPBinds) == 0 {
		return nil
	}
	return []sharedSection{{frontend: &haproxy.Section{
		Kind: haproxy.KindFrontend, Name: bridgeHTTPFrontend, Mode: haproxy.HTTP, Binds: d.opts.HTTPBinds,
		Lines: routeLines(hasTLS(d.opts.HTTPBinds)), Order: -1,
	}}}
}

func hasTLS(binds []haproxy.Bind) bool { return slices.ContainsFunc(binds, isTLS) }

func isTLS(b haproxy.Bind) bool { return slices.Contains(strings.Fields(b.Options), "ssl") }

// unproven says whether labels name something that only HAProxy can judge: files, and
// what the TLS library takes.
func unproven(s *settings) bool {
	return len(s.certs) > 0 || len(s.bindOptions) > 0 || s.tls != "" || s.auth != nil && !s.auth.proven()
}

// checkTime writes a duration in HAProxy's largest unit that keeps it whole.
func checkTime(d time.Duration) string {
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}} {
		if d >= u.unit && d%u.unit == 0 {
			return strconv.FormatInt(int64(d/u.unit), 10) + u.name
		}
	}
	return strconv.FormatInt(d.Milliseconds(), 10) + "ms"
}

// serverOptions are the options of every server of a service.
func serverOptions(s *settings) []string {
	var words []string
	add := func(w string) {
		if w != "" {
			words = append(words, w)
		}
	}
	add(s.tls)
	if s.proto != "" {
		add("proto " + s.proto)
	}
	add(s.sendProxy)
	if s.maxConn != 0 {
		add("maxconn " + strconv.Itoa(s.maxConn))
	}
	if s.slowStart != 0 {
		add("slowstart " + checkTime(s.slowStart))
	}
	return words
}
