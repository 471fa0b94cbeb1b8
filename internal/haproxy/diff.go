package haproxy

import (
	"slices"
	"strings"
)

// plan collects the commands that bring HAProxy from have to want. Both halves go into
// one batch, grow first: a backend never has fewer servers than before and after.
type plan struct {
	grow   []Command // servers and routes that take traffic afterwards
	shrink []Command // those that take less or none

	// reasons: what no command can do. Commands of other parts are there all the same.
	reasons []Reason
}

func (p *plan) because(r Reason) {
	if !slices.Contains(p.reasons, r) {
		p.reasons = append(p.reasons, r)
	}
}

// diffBackend adds to p what takes the servers of backend name from have to want (nil:
// none shall take traffic) by strategy how. Structure is not looked at. It is pure, and
// its cost is proportional to the servers of the backend.
//
// The laws that the tests hold: executing p on have gives want, up to the names in slots
// and the weights of servers that take no traffic; diffing equal sides adds nothing.
func (p *plan) diffBackend(name string, have *running, want *Backend, how strategy, caps Capabilities) {
	grown, shrunk, reasons := len(p.grow), len(p.shrink), len(p.reasons)
	defer func() {
		if len(p.reasons) > reasons {
			p.keepLast(have, grown, shrunk)
		}
	}()
	switch {
	case want == nil:
		p.retire(name, have, make([]bool, len(have.servers)))
	case how == slotted:
		p.diffSlots(name, have, want)
	case how != dynamic && slottedNow(have) && len(want.Servers) > 0:
		// Its servers have just become different from each other: the slots serve until
		// the reload gives them names.
		p.because(ReasonServerOptions)
		p.diffSlots(name, have, want)
	default:
		p.diffNamed(name, have, want, how, caps)
	}
}

// keepLast leaves out the drains of a backend whose next servers wait for a reload, when
// nothing else would take its traffic: what drains still answers. grown and shrunk are where
// the backend's commands begin.
func (p *plan) keepLast(have *running, grown, shrunk int) {
	for _, c := range p.grow[grown:] {
		if c.Verb == SetState && c.State == Ready || c.Verb == SetWeight && c.Weight > 0 {
			return
		}
	}
	for i := range have.servers {
		s := &have.servers[i]
		if s.State == Ready && s.Weight > 0 && !slices.ContainsFunc(p.shrink[shrunk:], func(c Command) bool { return c.Server == s.Name }) {
			return
		}
	}
	kept := slices.DeleteFunc(p.shrink[shrunk:], func(c Command) bool { return c.Verb == SetState && c.State == Drain })
	p.shrink = p.shrink[:shrunk+len(kept)]
}

// slottedNow reports whether the worker loaded slots for this backend.
func slottedNow(have *running) bool {
	return len(have.servers) > 0 && slotNumber(have.servers[0].Name) == 1
}

func (p *plan) diffNamed(name string, have *running, want *Backend, how strategy, caps Capabilities) {
	used := make([]bool, len(have.servers))
	find := func(server string) int { return have.find(server, -1) }
	if len(have.servers)*len(want.Servers) > 1<<10 {
		byName := make(map[string]int, len(have.servers))
		for i := range have.servers {
			byName[have.servers[i].Name] = i
		}
		find = func(server string) int {
			if i, ok := byName[server]; ok {
				return i
			}
			return -1
		}
	}
	for i := range want.Servers {
		w := &want.Servers[i]
		at := -1
		// Both sides mostly have one order, so that the place is right at the first look.
		if i < len(have.servers) && have.servers[i].Name == w.Name {
			at = i
		} else {
			at = find(w.Name)
		}
		if at < 0 {
			p.add(name, want, w, how, caps)
			continue
		}
		used[at] = true
		h := &have.servers[at]
		if h.known && (h.ID != w.ID || h.Cookie != w.Cookie || h.Options != w.Options) {
			p.because(ReasonServer)
			continue
		}
		if h.Addr != w.Addr {
			if !caps.SetAddr {
				p.because(ReasonServer)
				continue
			}
			p.move(name, h, at, w)
			continue
		}
		p.adjust(name, h, at, w)
	}
	p.retire(name, have, used)
}

// add makes a new server, or says why it cannot.
func (p *plan) add(name string, want *Backend, w *Server, how strategy, caps Capabilities) {
	switch {
	case how == fixed:
		p.because(ReasonAddServer)
		return
	case w.Cookie != "" && !caps.ServerCookie:
		p.because(ReasonSticky)
		return
	case !takesServers(want):
		p.because(ReasonBalance)
		return
	case checkOptions(want.ServerOptions) != nil || checkOptions(w.Options) != nil:
		p.because(ReasonServerOptions)
		return
	}
	p.grow = append(p.grow, Command{
		Verb: AddServer, Backend: name, Server: w.Name, Addr: w.Addr, Weight: w.Weight,
		ID: w.ID, Cookie: w.Cookie, Defaults: want.ServerOptions, Options: w.Options, at: -1,
	})
	// It is made in maintenance with its checks off.
	if w.State != Maint {
		p.grow = append(p.grow, Command{Verb: SetState, Backend: name, Server: w.Name, State: w.State, at: -1})
	}
	if hasOption(want.ServerOptions, "check") || hasOption(w.Options, "check") {
		p.grow = append(p.grow, Command{Verb: EnableHealth, Backend: name, Server: w.Name, at: -1})
	}
	if hasOption(want.ServerOptions, "agent-check") || hasOption(w.Options, "agent-check") {
		p.grow = append(p.grow, Command{Verb: EnableAgent, Backend: name, Server: w.Name, at: -1})
	}
}

func (p *plan) diffSlots(name string, have *running, want *Backend) {
	a := assignSlots(have, want)
	for i := range want.Servers {
		w := &want.Servers[i]
		switch {
		case w.State == Maint:
		case a.of[i] >= 0:
			p.adjust(name, &have.servers[a.of[i]], a.of[i], w)
		default:
			at := a.free(have)
			if at < 0 {
				p.because(ReasonSlots)
				continue
			}
			p.move(name, &have.servers[at], at, w)
		}
	}
	p.retire(name, have, a.used)
}

// move gives the running server h the address of w, and then its weight and state. It
// is out of traffic meanwhile: other threads may see half of a changed address
// (cd994407a, not in 2.8 and older).
func (p *plan) move(name string, h *runningServer, at int, w *Server) {
	if h.State != Maint {
		p.grow = append(p.grow, Command{Verb: SetState, Backend: name, Server: h.Name, State: Maint, at: at})
	}
	if h.Addr != w.Addr {
		p.grow = append(p.grow, Command{Verb: SetAddr, Backend: name, Server: h.Name, Addr: w.Addr, at: at})
	}
	moved := *h
	moved.State = Maint
	p.adjust(name, &moved, at, w)
}

// adjust changes state and weight of h, whose address is right. A weight counts only for
// a server that is ready: a drained one has weight 0 after a reload, and algorithms with
// static tables refuse any other weight than that of the file.
func (p *plan) adjust(name string, h *runningServer, at int, w *Server) {
	if weight := effectiveWeight(w.Weight); w.State == Ready && h.Weight != weight {
		p.grow = append(p.grow, Command{Verb: SetWeight, Backend: name, Server: h.Name, Weight: weight, at: at})
	}
	if h.State == w.State {
		return
	}
	c := Command{Verb: SetState, Backend: name, Server: h.Name, State: w.State, at: at}
	if w.State < h.State { // Ready < Drain < Maint
		p.grow = append(p.grow, c)
	} else {
		p.shrink = append(p.shrink, c)
	}
}

// retire takes the servers that nobody wants out of traffic.
func (p *plan) retire(name string, have *running, used []bool) {
	for i := range have.servers {
		if h := &have.servers[i]; !used[i] && h.State != Maint {
			p.shrink = append(p.shrink, Command{Verb: SetState, Backend: name, Server: h.Name, State: Maint, at: i})
		}
	}
}

// takesServers reports whether b's balance algorithm lets servers be added: all but those
// with a table that is built at start (management.txt, "add server": "Backend must use a
// dynamic load balancing").
func takesServers(b *Backend) bool {
	algorithm, _, _ := strings.Cut(b.Balance, " ")
	algorithm, _, _ = strings.Cut(algorithm, "(")
	switch algorithm {
	case "static-rr":
		return false
	case "source", "uri", "url_param", "hdr", "rdp-cookie", "hash":
		return slices.ContainsFunc(b.Lines, func(line string) bool {
			return strings.HasPrefix(line, "hash-type consistent")
		})
	}
	return true
}

// diffMap adds to p what takes the worker's map to want, for the given keys only. A want
// of "" means that the key shall be gone.
func (p *plan) diffMap(have *runningMap, want map[string]string, keys []string) {
	for _, key := range keys {
		value := want[key]
		old, there := have.entries[key]
		switch {
		case value == "" && there:
			p.shrink = append(p.shrink, Command{Verb: DelMap, Map: have.path, Key: key})
		case value == "" || there && old == value:
		case there:
			p.grow = append(p.grow, Command{Verb: SetMap, Map: have.path, Key: key, Value: value})
		default:
			p.grow = append(p.grow, Command{Verb: AddMap, Map: have.path, Key: key, Value: value})
		}
	}
}
