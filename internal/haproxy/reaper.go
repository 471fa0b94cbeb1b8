package haproxy

import (
	"context"
	"slices"
	"time"
)

const (
	// A removed server is deleted when its last connection has ended, which HAProxy says by
	// refusing: 1 to 90 ms under traffic (management.txt, "del server"). Pauses between
	// attempts grow fourfold.
	firstReap = 50 * time.Millisecond
	lastReap  = 5 * time.Second

	// reapBatch keeps one round short for events that come meanwhile: some 2 ms.
	reapBatch = 32
)

// leftover is a server that was put into maintenance because nobody wants it. Its
// connections may live on until the drain time is over.
type leftover struct {
	backend, server string
	since, next     time.Time
	pause           time.Duration
	cut             bool // its connections have been ended
}

// leave notes that the server has just been put into maintenance.
func (p *Proxy) leave(backend, server string) {
	now := time.Now()
	p.leftovers = append(p.leftovers, leftover{backend: backend, server: server, since: now, next: now.Add(firstReap), pause: firstReap})
}

// findLeftovers notes those that a bridge before us left, or that the file brought.
func (p *Proxy) findLeftovers() {
	for name, bs := range p.backends {
		if bs.want == nil || bs.have == nil || p.strategy(bs) != dynamic {
			continue
		}
		for i := range bs.have.servers {
			if s := &bs.have.servers[i]; s.State == Maint && !bs.wants(s.Name) {
				p.leave(name, s.Name)
			}
		}
	}
	p.scheduleReap()
}

// scheduleReap sets the timer for the leftover that is due first.
func (p *Proxy) scheduleReap() {
	if len(p.leftovers) == 0 || p.conn == nil {
		return
	}
	first := slices.MinFunc(p.leftovers, func(a, b leftover) int { return a.next.Compare(b.next) })
	p.after(time.Until(first.next), &p.timers.reap, p.reap)
}

// reap deletes some of the leftovers that are due, where deleting is safe, and ends
// connections that outlived the drain time.
func (p *Proxy) reap(ctx context.Context) {
	if p.conn == nil {
		return // after the reconnection, what is left is found again
	}
	now := time.Now()
	var commands []Command
	kept := p.leftovers[:0]
	for _, l := range p.leftovers {
		if l.next.After(now) || len(commands) >= reapBatch {
			kept = append(kept, l)
			continue
		}
		bs := p.backends[l.backend]
		if bs == nil || bs.have == nil {
			continue
		}
		at := bs.have.find(l.server, -1)
		if at < 0 || bs.have.servers[at].State != Maint || bs.wants(l.server) {
			continue // gone, or in use again
		}
		if !l.cut && now.Sub(l.since) >= p.opts.Drain {
			l.cut = true
			commands = append(commands, Command{Verb: ShutdownSessions, Backend: l.backend, Server: l.server, at: at})
		}
		switch {
		case bs.strategy == dynamic:
			commands = append(commands, Command{Verb: DelServer, Backend: l.backend, Server: l.server, at: at})
			l.next, l.pause = now.Add(l.pause), min(4*l.pause, lastReap)
		case l.cut:
			continue // it stays as a spare slot, or until the next reload
		default:
			l.next = l.since.Add(p.opts.Drain)
		}
		kept = append(kept, l) // until a later round finds it gone
	}
	p.leftovers = kept
	if _, _, err := p.send(ctx, &plan{shrink: commands}); err != nil {
		p.log.Debug("removed servers still have connections", "err", err) // "not yet", in HAProxy's words
	}
	p.schedule()
}

// wants reports whether a server of that name is wanted in maintenance: then it stays.
// In slots names say nothing; who is wanted there is ready or draining.
func (bs *backendState) wants(server string) bool {
	return bs.strategy != slotted && bs.want != nil &&
		slices.ContainsFunc(bs.want.Servers, func(s Server) bool { return s.Name == server })
}
