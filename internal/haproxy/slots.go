package haproxy

import (
	"net/netip"
	"strconv"
	"strings"
)

// strategy is how a backend's servers come and go without a reload.
type strategy uint8

const (
	// dynamic: add server and del server, named by address.
	dynamic strategy = iota
	// slotted: servers s1, s2, … stand in the file, some of them spare; a spare one is given an
	// address and made ready. Names say nothing.
	slotted
	// additive: add server, but removed servers stay in maintenance until the next reload.
	additive
	// fixed: states and weights only.
	fixed
)

// SlotPolicy is when spare server slots are used; see Options.Slots.
type SlotPolicy string

const (
	SlotsAuto   SlotPolicy = "auto"
	SlotsAlways SlotPolicy = "always"
	SlotsNever  SlotPolicy = "never"
)

// strategyFor decides how b's servers are changed. Slots all look the same to HAProxy,
// so a backend whose servers differ in more than address, state and weight has none.
func strategyFor(b *Backend, caps Capabilities, policy SlotPolicy) strategy {
	switch {
	case caps.DynamicServers:
		return dynamic
	case caps.SetAddr && policy != SlotsNever && (policy == SlotsAlways || !b.Named) && uniform(b.Servers):
		return slotted
	case caps.AddServer:
		return additive
	}
	return fixed
}

func uniform(servers []Server) bool {
	for i := range servers {
		if s := &servers[i]; s.Cookie != "" || s.ID != 0 || s.Options != "" {
			return false
		}
	}
	return true
}

// spareAddr stands in the line of a spare slot. Should somebody enable one by hand,
// connections to it are refused at once and redispatched.
var spareAddr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 1)

func slotName(n int) string { return "s" + strconv.Itoa(n) }

// slotNumber reads the n of slot "s<n>", from 1; 0: not the name of a slot.
func slotNumber(name string) int {
	digits, ok := strings.CutPrefix(name, "s")
	if !ok || digits == "" || digits[0] == '0' {
		return 0
	}
	n, err := strconv.ParseUint(digits, 10, 20)
	if err != nil {
		return 0
	}
	return int(n)
}

// spares is how generous slots are made. Each costs a server's memory and start-up time,
// and a file descriptor when it is checked, so that many servers leave room for less.
type spares uint8

const (
	sparesDouble  spares = iota // at least twice the servers, a power of two
	sparesQuarter               // a quarter more, at least two
	sparesOne                   // one more
	sparesNone                  // none
)

// slots returns how many slots a backend of n servers gets.
func (s spares) slots(n int) int {
	switch s {
	case sparesDouble:
		count := 4
		for count < 2*n {
			count *= 2
		}
		return count
	case sparesQuarter:
		return n + max(2, n/4)
	case sparesOne:
		return n + 1
	}
	return n
}

func (s spares) String() string { return [...]string{"double", "quarter", "one", "none"}[s] }

// chooseSpares returns the most generous spares with which backends of these sizes need
// at most limit slots.
func chooseSpares(sizes []int, limit int) spares {
	for s := sparesDouble; s < sparesNone; s++ {
		total := 0
		for _, n := range sizes {
			total += s.slots(n)
		}
		if total <= limit {
			return s
		}
	}
	return sparesNone
}

// assignment says which running server stands for which wanted one: for each of
// want.Servers the index in have.servers, or -1.
type assignment struct {
	of   []int  // by wanted server
	used []bool // by running server
}

// assignSlots matches wanted servers with the slots that have their addresses. A wanted
// server in Maint needs no slot. Of two slots with one address, one that takes traffic
// counts, so that a matched server is never moved.
func assignSlots(have *running, want *Backend) assignment {
	a := assignment{of: make([]int, len(want.Servers)), used: make([]bool, len(have.servers))}
	find := func(addr netip.AddrPort) int {
		best := -1
		for i := range have.servers {
			if s := &have.servers[i]; !a.used[i] && s.Addr == addr {
				if s.State != Maint {
					return i
				}
				if best < 0 {
					best = i
				}
			}
		}
		return best
	}
	if len(have.servers)*len(want.Servers) > 1<<10 {
		find = indexByAddr(have, &a)
	}
	for i := range want.Servers {
		a.of[i] = -1
		if w := &want.Servers[i]; w.State != Maint {
			if at := find(w.Addr); at >= 0 {
				a.of[i], a.used[at] = at, true
			}
		}
	}
	return a
}

// indexByAddr is the search of assignSlots for backends that are too large for a scan.
func indexByAddr(have *running, a *assignment) func(netip.AddrPort) int {
	byAddr := make(map[netip.AddrPort][]int, len(have.servers))
	for _, active := range [...]bool{true, false} {
		for i := range have.servers {
			if s := &have.servers[i]; (s.State != Maint) == active {
				byAddr[s.Addr] = append(byAddr[s.Addr], i)
			}
		}
	}
	return func(addr netip.AddrPort) int {
		for _, i := range byAddr[addr] {
			if !a.used[i] {
				return i
			}
		}
		return -1
	}
}

// free takes a slot for a server that has none, -1 when there is none. A spare slot that
// was given up longest ago goes first; without one, a slot whose server is about to be
// removed: that is better than a reload, although it is not adds before removals.
func (a *assignment) free(have *running) int {
	best := -1
	for i := range have.servers {
		s := &have.servers[i]
		if a.used[i] || slotNumber(s.Name) == 0 {
			continue
		}
		if best < 0 {
			best = i
			continue
		}
		b := &have.servers[best]
		if s.State == Maint && (b.State != Maint || s.retired < b.retired) {
			best = i
		}
	}
	if best >= 0 {
		a.used[best] = true
	}
	return best
}

// fileBackend is want as it is written to haproxy.cfg: with its slots, when it has some.
// Servers keep the slots that they have in the worker as far as these fit. structure is
// whose other lines are written: want itself before a reload, what the worker loaded
// when only the servers are saved.
func fileBackend(structure, want *Backend, have *running, how strategy, spare spares) *Backend {
	if how != slotted {
		if structure == want {
			return want
		}
		b := *structure
		b.Servers = nil
		if want != nil {
			b.Servers = want.Servers
		}
		return &b
	}
	b := *structure
	if have == nil {
		have = new(running)
	}
	if want == nil {
		want = &Backend{}
	}
	a := assignSlots(have, want)
	n := 0
	for i := range want.Servers {
		if want.Servers[i].State != Maint {
			n++
		}
	}
	b.Servers = make([]Server, spare.slots(n))
	put := func(number int, w *Server) {
		b.Servers[number-1] = Server{Name: slotName(number), Addr: w.Addr, State: w.State, Weight: w.Weight}
	}
	var homeless []*Server
	for i := range want.Servers {
		w := &want.Servers[i]
		if w.State == Maint {
			continue
		}
		number := 0
		if a.of[i] >= 0 {
			number = slotNumber(have.servers[a.of[i]].Name)
		}
		if number >= 1 && number <= len(b.Servers) && b.Servers[number-1].Name == "" {
			put(number, w)
		} else {
			homeless = append(homeless, w)
		}
	}
	for number := 1; number <= len(b.Servers); number++ {
		if b.Servers[number-1].Name != "" {
			continue
		}
		if len(homeless) > 0 {
			put(number, homeless[0])
			homeless = homeless[1:]
			continue
		}
		b.Servers[number-1] = Server{Name: slotName(number), Addr: spareAddr, State: Maint, Weight: -1}
	}
	return &b
}
