package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

const (
	resolveTimeout = 5 * time.Second
	resolveAgain   = time.Minute // a name that is known
	resolveRetry   = time.Second // a name that is not, doubling up to resolveAgain
	maxResolving   = 8
)

// addresses is the cache of agent host names. It belongs to one goroutine, which asks
// it without waiting; the lookups are made elsewhere and come back through results.
// A name that stops resolving keeps its last address.
type addresses struct {
	resolver Resolver
	entries  map[string]*address
	todo     []string // to look up, soonest first
	running  int
	results  chan resolved
}

type address struct {
	addr     netip.Addr // invalid: not known
	due      time.Time  // of the next lookup; zero: never, or under way
	failures int
	err      error
}

type resolved struct {
	host  string
	addrs []netip.Addr
	err   error
}

func newAddresses(r Resolver) *addresses {
	if r == nil {
		r = net.DefaultResolver
	}
	return &addresses{resolver: r, entries: map[string]*address{}, results: make(chan resolved)}
}

// lookup never blocks. A host that it does not know is looked up by the next start.
func (a *addresses) lookup(host string) (netip.Addr, bool) {
	e := a.entries[host]
	if e == nil {
		e = &address{}
		a.entries[host] = e
		if addr, err := netip.ParseAddr(host); err == nil {
			e.addr = addr.Unmap()
		} else if e.err = checkHost(host); e.err == nil {
			a.todo = append(a.todo, host)
		}
	}
	return e.addr, e.addr.IsValid()
}

// remember takes in an address from an earlier life. It is looked up again soon.
func (a *addresses) remember(host string, addr netip.Addr) {
	if a.entries[host] == nil && checkHost(host) == nil {
		a.entries[host] = &address{addr: addr}
		a.todo = append(a.todo, host)
	}
}

// start begins lookups that are due, at most maxResolving at once. run starts a
// goroutine that is waited for.
func (a *addresses) start(ctx context.Context, run func(func())) {
	for len(a.todo) > 0 && a.running < maxResolving {
		host := a.todo[0]
		a.todo = a.todo[1:]
		a.running++
		run(func() {
			lookup, cancel := context.WithTimeout(ctx, resolveTimeout)
			defer cancel()
			addrs, err := a.resolver.LookupNetIP(lookup, "ip", host)
			select {
			case a.results <- resolved{host, addrs, err}:
			case <-ctx.Done():
			}
		})
	}
}

// finish takes in one result. known: the host has an address, which it had not before
// or (changed) was another. The error is set when the lookup failed for the first time
// since it last succeeded.
func (a *addresses) finish(r resolved, now time.Time) (known, changed bool, err error) {
	a.running--
	e := a.entries[r.host]
	if r.err == nil && len(r.addrs) == 0 {
		r.err = errors.New("no address")
	}
	if r.err != nil {
		e.due = now.Add(jitter(min(resolveRetry<<min(e.failures, 10), resolveAgain)))
		e.failures++
		e.err = r.err
		if e.failures == 1 {
			err = fmt.Errorf("resolve %s: %w", r.host, r.err)
		}
		return false, false, err
	}
	e.failures, e.err = 0, nil
	e.due = now.Add(jitter(resolveAgain))
	addr := pick(r.addrs, e.addr)
	if addr == e.addr {
		return false, false, nil
	}
	known, changed = true, e.addr.IsValid()
	e.addr = addr
	return known, changed, nil
}

// expire queues what is to be looked up again by now.
func (a *addresses) expire(now time.Time) {
	for host, e := range a.entries {
		if !e.due.IsZero() && !e.due.After(now) {
			e.due = time.Time{}
			a.todo = append(a.todo, host)
		}
	}
	slices.Sort(a.todo)
}

// forget drops hosts that no task runs on, except those that are being looked up.
func (a *addresses) forget(hosts []string) {
	for _, host := range hosts {
		if e := a.entries[host]; e != nil && (!e.due.IsZero() || e.err != nil || e.addr.String() == host) {
			delete(a.entries, host)
		}
	}
}

// pick chooses among the addresses of a host: the one in use while it is there, so
// that a round-robin answer changes nothing; else the smallest, IPv4 first.
func pick(addrs []netip.Addr, used netip.Addr) netip.Addr {
	addrs = slices.Clone(addrs)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap().WithZone("")
	}
	if slices.Contains(addrs, used) {
		return used
	}
	return slices.MinFunc(addrs, netip.Addr.Compare) // IPv4 sorts before IPv6
}

// checkHost refuses what is no host name: it comes from Marathon and goes to a resolver.
func checkHost(host string) error {
	if host == "" || len(host) > 253 {
		return fmt.Errorf("host name %q: want 1 to 253 bytes", clip(host))
	}
	for i := range len(host) {
		c := host[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
			return fmt.Errorf("host name %q: want letters, digits, dots and dashes", clip(host))
		}
	}
	return nil
}
