package bridge

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"bridged/internal/haproxy"
)

// grouped gives each vhost a TLS frontend of its own behind one listener, which finds it
// by the name in the ClientHello and hands the connection over an abstract socket.
func (d *mlbDialect) grouped(t *Translator, tls []haproxy.Bind, chunks ownedLines) []sharedSection {
	front := &haproxy.Section{Kind: haproxy.KindFrontend, Name: mlbHTTPSFrontend, Mode: haproxy.TCP, Order: -1,
		Lines: []string{"tcp-request inspect-delay 5s", "tcp-request content accept if { req.ssl_hello_type 1 }"}}
	var certs []string
	for _, b := range tls {
		words := strings.Fields(b.Options)
		front.Binds = append(front.Binds, haproxy.Bind{Addr: b.Addr, Port: b.Port, PortEnd: b.PortEnd})
		for i, w := range words[:max(0, len(words)-1)] {
			if w == "crt" {
				certs = append(certs, words[i+1])
			}
		}
	}
	out := []sharedSection{{frontend: front}}
	hosts := slices.Collect(maps.Keys(t.routes.groups))
	slices.SortFunc(hosts, func(a, b string) int {
		// Names before wildcards, and those before the default, which is the shortest.
		wa, wb := strings.HasPrefix(a, "*"), strings.HasPrefix(b, "*")
		return cmp.Or(boolCompare(wa, wb), boolCompare(a == "*", b == "*"), strings.Compare(a, b))
	})
	for _, host := range hosts {
		name := cleaned(host)
		if t.contests[claim{name: name}] != nil {
			name = "vhost_" + name // a service has the name
		}
		var own, options []string
		for _, s := range t.routes.groupSettings(host) {
			own = append(own, s.certs...)
			options = append(options, strings.Join(s.bindOptions, " "))
		}
		slices.Sort(own)
		if own = slices.Compact(own); len(own) == 0 {
			own = certs
		}
		slices.Sort(options)
		options = slices.DeleteFunc(slices.Compact(options), func(s string) bool { return s == "" })
		cond := " if { req.ssl_sni -i " + host + " }"
		if suffix, ok := strings.CutPrefix(host, "*"); ok {
			if cond = " if { req.ssl_sni -m end -i " + suffix + " }"; suffix == "" {
				cond = ""
			}
		}
		front.Lines = append(front.Lines, "use_backend "+name+cond)
		lines, owners := chunks.and(routeLines(true)).split()
		out = append(out, sharedSection{
			frontend: &haproxy.Section{Kind: haproxy.KindFrontend, Name: name, Mode: haproxy.HTTP, Order: -1, Unproven: true,
				Binds: []haproxy.Bind{{Addr: "abns@" + name, Options: "accept-proxy" + certWords(own) + spaced(strings.Join(options, " "))}},
				Lines: lines, LineOwners: owners},
			backend: &haproxy.Backend{Section: haproxy.Section{Kind: haproxy.KindBackend, Name: name, Mode: haproxy.TCP, Order: -1,
				Lines: []string{"server loopback-for-tls abns@" + name + " send-proxy-v2"}}},
		})
	}
	return out
}

// signalGuard keeps the endpoints that change something for this machine alone.
const signalGuard = "http-request deny if { path_beg /_mlb_signal/ } !{ src 127.0.0.0/8 ::1 }"

// stats is the listener on which marathon-lb's tools look for statistics and for what
// bridged itself answers here.
func (d *mlbDialect) stats() []sharedSection {
	o := d.opts.MarathonLB
	listen := &haproxy.Backend{Section: haproxy.Section{Kind: haproxy.KindBackend, Name: "stats", Mode: haproxy.HTTP,
		Binds: []haproxy.Bind{o.StatsBind}, Order: -4,
		Lines: []string{"stats enable", "stats uri /haproxy?stats", "monitor-uri /_haproxy_health_check"}}}
	out := []sharedSection{{backend: listen}}
	if o.Exporter {
		listen.Lines = append(listen.Lines, "http-request use-service prometheus-exporter if { path /metrics }")
	}
	if o.API != (netip.AddrPort{}) {
		listen.Lines = append(listen.Lines,
			signalGuard,
			"use_backend "+apiBackend+" if { path /_haproxy_getconfig /_haproxy_getvhostmap /_haproxy_getappmap /_haproxy_getpids } || { path_beg /_mlb_signal/ }")
		out = append(out, sharedSection{backend: &haproxy.Backend{Section: haproxy.Section{Kind: haproxy.KindBackend,
			Name: apiBackend, Mode: haproxy.HTTP, Order: -4}, Named: true, Servers: []haproxy.Server{{Name: "bridged", Addr: o.API, Weight: -1}}}})
	}
	return out
}
