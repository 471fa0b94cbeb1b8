package bridge

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"bridged/internal/haproxy"
)

// Names of the maps that route HTTP. A vhost that comes or goes is one map command.
const (
	mapRoutes    = "routes"    // host/prefix → backend, longest prefix
	mapRedirects = "redirects" // host/prefix → "1": to HTTPS
	mapAppIDs    = "appids"    // app id in lower case → backend
)

// route sends requests for a host, below a path, to a service.
type route struct {
	host     string // "*.domain" and "*" have their own place in the look-up
	prefix   string // starts with "/"
	weight   int
	redirect bool // plain HTTP is redirected to HTTPS
}

// routesOf lists the routes of a service's labels.
func routesOf(s *settings) []route {
	paths := s.paths
	if len(paths) == 0 {
		paths = []string{"/"}
	}
	routes := make([]route, 0, len(s.vhosts)*len(paths))
	for _, host := range s.vhosts {
		for _, p := range paths {
			routes = append(routes, route{host, p, s.weight, s.redirect})
		}
	}
	return routes
}

// chunk is routing that maps do not express, as lines of the shared frontends.
type chunk struct {
	owner              string // app
	weight             int
	http, https, appID []string
}

func (c *chunk) equal(o *chunk) bool {
	return c != nil && o != nil && c.weight == o.weight && c.owner == o.owner &&
		slices.Equal(c.http, o.http) && slices.Equal(c.https, o.https) && slices.Equal(c.appID, o.appID)
}

// routeTable holds the routes of all services by host, and what of them is in the maps.
type routeTable struct {
	longestFirst bool

	hosts map[string]*hostRoutes
	dirty map[string]bool
	units map[*unit]bool // whose app-id route may have changed

	appIDs map[string]map[*unit]*fragment // who could answer for an app id

	chunks        map[*entry]*chunk
	chunksChanged bool

	// groups counts the services of each vhost where vhosts have sections of their own;
	// nil elsewhere.
	groups map[string]map[*entry]*settings
}

// hostRoutes are the routes of one host.
type hostRoutes struct {
	list      []boundRoute
	routes    map[string]string // as the map has them
	redirects map[string]string
}

type boundRoute struct {
	route
	entry *entry
	frag  *fragment
}

func newRouteTable() *routeTable {
	return &routeTable{hosts: make(map[string]*hostRoutes), dirty: make(map[string]bool),
		units: make(map[*unit]bool), appIDs: make(map[string]map[*unit]*fragment), chunks: make(map[*entry]*chunk)}
}

func (rt *routeTable) remove(e *entry, f *fragment) {
	for _, r := range f.routes {
		if h := rt.hosts[r.host]; h != nil {
			h.list = slices.DeleteFunc(h.list, func(b boundRoute) bool { return b.entry == e })
			rt.dirty[r.host] = true
			delete(e.shades, r.host)
		}
	}
}

// shadow notes that requests for a host, or a part of them, go to another app.
func (e *entry) shadow(host, by string, now time.Time) {
	if len(e.shades) == 0 {
		e.shades = make(map[string]string)
		e.shadeSince = now
	}
	e.shades[host] = by
}

// shaded is the rejection of an entry's shadowed vhosts.
func (e *entry) shaded() *Rejection {
	if len(e.shades) == 0 {
		return nil
	}
	var lost []string
	for _, host := range slices.Sorted(maps.Keys(e.shades)) {
		lost = append(lost, host+" to "+e.shades[host])
	}
	return &Rejection{App: e.frag.view.owner, Index: e.index, Reason: ReasonVhostShadowed, Since: e.shadeSince,
		Detail: "requests that it asks for go elsewhere (" + strings.Join(lost, ", ") + "): give one of them another VHOST, PATH or BACKEND_WEIGHT"}
}

func (rt *routeTable) add(e *entry, f *fragment) {
	for _, r := range f.routes {
		h := rt.hosts[r.host]
		if h == nil {
			h = &hostRoutes{routes: make(map[string]string), redirects: make(map[string]string)}
			rt.hosts[r.host] = h
		}
		h.list = append(h.list, boundRoute{r, e, f})
		rt.dirty[r.host] = true
	}
}

func (rt *routeTable) addChunk(e *entry, c *chunk) {
	rt.chunks[e] = c
	rt.chunksChanged = true
}

func (rt *routeTable) removeChunk(e *entry) {
	delete(rt.chunks, e)
	rt.chunksChanged = true
}

func (rt *routeTable) touchUnit(u *unit) { rt.units[u] = true }

// emit writes what changed in the maps.
func (rt *routeTable) emit(t *Translator, w *work, c *haproxy.Change) {
	for host := range rt.dirty {
		h := rt.hosts[host]
		routes, redirects, shadowed := h.compile(rt.longestFirst)
		diffMap(c, mapRoutes, h.routes, routes)
		diffMap(c, mapRedirects, h.redirects, redirects)
		h.routes, h.redirects = routes, redirects
		for _, b := range h.list {
			if by, lost := shadowed[b.entry]; lost {
				b.entry.shadow(host, by, w.now)
			} else {
				delete(b.entry.shades, host)
			}
			t.note(b.entry)
		}
		if len(h.list) == 0 {
			delete(rt.hosts, host)
		}
	}
	clear(rt.dirty)
	for u := range rt.units {
		rt.emitAppID(u, c, t.routesAppIDs())
	}
	clear(rt.units)
}

// compile turns the rules of one host, which match in their order, into a map that is
// looked up by the longest prefix. A rule that an earlier rule with a prefix of its
// prefix hides is left out: what is left gives the same answer in both readings, for
// of two kept rules that match one request the longer one is always the earlier.
func (h *hostRoutes) compile(longestFirst bool) (routes, redirects map[string]string, shadowed map[*entry]string) {
	slices.SortStableFunc(h.list, func(a, b boundRoute) int {
		byLength := 0
		if longestFirst {
			byLength = cmp.Compare(len(b.prefix), len(a.prefix))
		}
		return cmp.Or(cmp.Compare(b.weight, a.weight), byLength,
			strings.Compare(a.frag.view.id, b.frag.view.id), cmp.Compare(a.frag.view.number, b.frag.view.number))
	})
	routes, redirects = make(map[string]string), make(map[string]string)
	prefixes := make(map[string]*fragment)
	for _, b := range h.list {
		if b.redirect {
			redirects[b.host+b.prefix] = "1"
		}
		if by := hiding(prefixes, b.prefix); by != nil {
			if by != b.frag {
				if shadowed == nil {
					shadowed = make(map[*entry]string)
				}
				shadowed[b.entry] = by.view.owner
			}
			continue
		}
		prefixes[b.prefix] = b.frag
		routes[b.host+b.prefix] = b.frag.name
	}
	return routes, redirects, shadowed
}

// hiding finds the earlier rule that takes every request of prefix.
func hiding(prefixes map[string]*fragment, prefix string) *fragment {
	for n := 1; n <= len(prefix); n++ {
		if f := prefixes[prefix[:n]]; f != nil {
			return f
		}
	}
	return nil
}

func diffMap(c *haproxy.Change, name string, have, want map[string]string) {
	for k, v := range want {
		if have[k] != v {
			setMap(c, name, k, v)
		}
	}
	for k := range have {
		if _, ok := want[k]; !ok {
			setMap(c, name, k, "")
		}
	}
}

func setMap(c *haproxy.Change, name, key, value string) {
	if c.Maps[name] == nil {
		c.Maps[name] = make(map[string]string)
	}
	c.Maps[name][key] = value
}

// emitAppID finds who answers for an app id: the HTTP service with the lowest port. An app
// of another Marathon, or a deployment group, may have the same id.
func (rt *routeTable) emitAppID(u *unit, c *haproxy.Change, on bool) {
	id := strings.ToLower(u.key.id)
	best := u.answering(on)
	if best == nil && rt.appIDs[id] == nil {
		return
	}
	if rt.appIDs[id] == nil {
		rt.appIDs[id] = make(map[*unit]*fragment)
	}
	twins := rt.appIDs[id]
	twins[u] = best
	for _, f := range twins {
		if f != nil && (best == nil || f.view.number < best.view.number) {
			best = f
		}
	}
	if best == nil {
		setMap(c, mapAppIDs, id, "")
	}
	for twin, f := range twins {
		name := ""
		if best != nil && f == best {
			name = best.name
		}
		if twin.appRoute != name {
			for _, e := range twin.entries {
				// Rules as text are written for the service that answers alone.
				rt.chunksChanged = rt.chunksChanged || rt.chunks[e] != nil
			}
			if name != "" {
				setMap(c, mapAppIDs, id, name)
			}
			twin.appRoute = name
		}
		if f == nil {
			delete(twins, twin)
		}
	}
	if len(twins) == 0 {
		delete(rt.appIDs, id)
	}
}

// answering is the live HTTP service of u with the lowest port; nil: none, or not on.
func (u *unit) answering(on bool) *fragment {
	var best *fragment
	for _, e := range u.entries {
		if f := e.live; on && f != nil && f.mode == haproxy.HTTP && (best == nil || f.view.number < best.view.number) {
			best = f
		}
	}
	return best
}

// group enters or removes what a service brings to the sections of its vhosts.
func (rt *routeTable) group(e *entry, f *fragment, in bool) {
	if rt.groups == nil {
		return
	}
	for _, host := range f.view.set.vhosts {
		if f.mode != haproxy.HTTP {
			continue
		}
		rt.chunksChanged = true
		if in && rt.groups[host] == nil {
			rt.groups[host] = make(map[*entry]*settings)
		}
		if in {
			rt.groups[host][e] = f.view.set
		} else if delete(rt.groups[host], e); len(rt.groups[host]) == 0 {
			delete(rt.groups, host)
		}
	}
}

// regroup turns the keeping of vhosts' sections on or off.
func (t *Translator) regroup(on bool) {
	t.routes.groups = nil
	if !on {
		return
	}
	t.routes.groups = make(map[string]map[*entry]*settings)
	for _, u := range t.units {
		for _, e := range u.entries {
			if e.live != nil {
				t.routes.group(e, e.live, true)
			}
		}
	}
}

// groupSettings are the labels of the services of a vhost.
func (rt *routeTable) groupSettings(host string) []*settings {
	return slices.Collect(maps.Values(rt.groups[host]))
}

// sortedChunks gives the chunks in the order in which their rules match.
func (rt *routeTable) sortedChunks() []*chunk {
	entries := slices.SortedFunc(maps.Keys(rt.chunks), func(a, b *entry) int {
		return cmp.Or(cmp.Compare(rt.chunks[b].weight, rt.chunks[a].weight),
			strings.Compare(a.unit.key.id, b.unit.key.id), cmp.Compare(a.index, b.index))
	})
	list := make([]*chunk, len(entries))
	for i, e := range entries {
		c := *rt.chunks[e]
		if e.live == nil || e.unit.appRoute != e.live.name {
			c.appID = nil
		}
		list[i] = &c
	}
	return list
}

// routeLines are the rules of a shared frontend that look requests up in the maps:
// the host itself, then the wildcard over its first label, then the default vhost.
func routeLines(tls bool) []string {
	lines := []string{
		"http-request set-var(txn.bridged_path) path",
		"http-request set-var(txn.bridged_host) req.hdr(host),field(1,:),lower",
	}
	const unset = " !{ var(txn.bridged_be) -m found }"
	stage := func(key, cond string) {
		suffix := ""
		if cond != "" {
			suffix = " if" + cond
		}
		lines = append(lines,
			"http-request set-var(txn.bridged_key) "+key+",concat(,txn.bridged_path)"+suffix,
			"http-request redirect scheme https code 301 if !{ ssl_fc }"+cond+" { var(txn.bridged_key),map_beg(%map("+mapRedirects+")) -m found }",
			"http-request set-var(txn.bridged_be) var(txn.bridged_key),map_beg(%map("+mapRoutes+"))"+suffix)
	}
	stage("var(txn.bridged_host)", "")
	if tls {
		// Clients of marathon-lb were routed by the name in their TLS hello alone.
		stage("ssl_fc_sni,lower", unset)
	}
	stage("var(txn.bridged_host),regsub(^[^.]*,*)", unset)
	stage("str(*)", unset)
	return append(lines, "use_backend %[var(txn.bridged_be)] if { var(txn.bridged_be) -m found }")
}

// routesAppIDs says whether there is a listener that routes by app id.
func (t *Translator) routesAppIDs() bool {
	return t.opts.Dialect == DialectMarathonLB && t.opts.MarathonLB.AppIDBind.Port != 0
}

// nameMaps names the maps that the shared sections read; empty ones have to exist too.
func (t *Translator) nameMaps(c *haproxy.Change) {
	name := func(name, kind string) {
		if c.Maps[name] == nil {
			c.Maps[name] = make(map[string]string)
		}
		if c.MapKinds == nil {
			c.MapKinds = make(map[string]string)
		}
		c.MapKinds[name] = kind
	}
	if len(t.opts.HTTPBinds) > 0 {
		name(mapRoutes, "beg")
		name(mapRedirects, "beg")
	}
	if t.routesAppIDs() {
		name(mapAppIDs, "str")
	}
}

// Vhosts lists the vhost routes that are in force: host and path prefix → backend.
func (t *Translator) Vhosts() map[string]string {
	all := make(map[string]string)
	for _, h := range t.routes.hosts {
		maps.Copy(all, h.routes)
	}
	return all
}

// AppIDs lists which backend answers for an app id.
func (t *Translator) AppIDs() map[string]string {
	all := make(map[string]string)
	for key, u := range t.units {
		if u.appRoute != "" {
			all[key.id] = u.appRoute
		}
	}
	return all
}
