package haproxy

import (
	"net/netip"
	"slices"
)

// running is what one backend of the worker is believed to run.
type running struct {
	servers []runningServer // in HAProxy's order
	retired uint32          // counts servers put into maintenance, for runningServer.retired
}

// runningServer is one server of a worker.
type runningServer struct {
	Name   string
	Addr   netip.AddrPort
	Weight int // effective, 0 to 256; says nothing in Maint and Drain
	State  State

	// known is false for a server that we found and did not make: then the last three say
	// nothing, since they cannot be read back, and are taken to be as wanted.
	known bool

	// retired orders the spare slots: the one that was given up longest ago is taken first,
	// as its connections are the likeliest to have ended.
	retired uint32

	ID              int
	Cookie, Options string
}

// find returns where the server called name is, or -1; hint is where to look first.
func (r *running) find(name string, hint int) int {
	if hint >= 0 && hint < len(r.servers) && r.servers[hint].Name == name {
		return hint
	}
	return slices.IndexFunc(r.servers, func(s runningServer) bool { return s.Name == name })
}

// did takes in that HAProxy has done c.
func (r *running) did(c *Command) {
	if c.Verb == AddServer {
		r.servers = append(r.servers, runningServer{
			Name: c.Server, Addr: c.Addr, State: Maint, Weight: effectiveWeight(c.Weight),
			known: true, ID: c.ID, Cookie: c.Cookie, Options: c.Options,
		})
		return
	}
	i := r.find(c.Server, c.at)
	if i < 0 {
		return
	}
	s := &r.servers[i]
	switch c.Verb {
	case DelServer:
		r.servers = slices.Delete(r.servers, i, i+1)
	case SetState:
		if c.State == Maint && s.State != Maint {
			r.retired++
			s.retired = r.retired
		}
		s.State = c.State
	case SetWeight:
		s.Weight = c.Weight
	case SetAddr:
		s.Addr = c.Addr
	}
}

// effectiveWeight is what HAProxy makes of Server.Weight.
func effectiveWeight(weight int) int {
	if weight < 0 {
		return 1
	}
	return weight
}

// loadedFrom is what a worker runs that has just loaded b from the file.
func loadedFrom(b *Backend) *running {
	r := &running{servers: make([]runningServer, len(b.Servers))}
	for i := range b.Servers {
		s := &b.Servers[i]
		r.servers[i] = runningServer{
			Name: s.Name, Addr: s.Addr, State: s.State, Weight: effectiveWeight(s.Weight),
			known: true, ID: s.ID, Cookie: s.Cookie, Options: s.Options,
		}
		if s.State == Drain { // the file has no word for it but weight 0
			r.servers[i].State, r.servers[i].Weight = Ready, 0
		}
	}
	return r
}
