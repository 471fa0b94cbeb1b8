package haproxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Apply merges c into what is wanted and sends the runtime commands that bring HAProxy
// there, all in one batch, additions first. It returns when HAProxy has answered, or after a
// deadline that grows with the batch. What no command can do marks the slow lane. Cost is
// proportional to c, not to what is wanted in all.
//
// Without a connection everything waits for the next one.
func (p *Proxy) Apply(ctx context.Context, c Change) Result {
	p.synced = true
	p.clock++
	dirtBefore := p.dirtSeq
	backends, keys := p.merge(&c)
	p.fresh = p.fresh || p.dirtSeq != dirtBefore
	for _, name := range backends {
		if bs := p.backends[name]; bs != nil {
			bs.touched = p.clock
		}
	}
	sent, err := p.converge(ctx, backends, keys)
	result := Result{Commands: sent, Err: err}
	switch {
	case p.dirtSeq != dirtBefore || p.dirtied(&c):
		result.Lane, result.Reasons = LaneSlow, p.reasons()
		p.wait(LaneSlow, c.Received)
	case p.conn == nil && len(backends)+len(keys) > 0:
		result.Lane = LaneFast
		p.wait(LaneFast, c.Received)
	case sent > 0:
		result.Lane = LaneFast
		p.m.live(LaneFast, c.Received)
	}
	p.schedule()
	return result
}

// dirtied reports whether c has to do with a part that waits for a reload.
func (p *Proxy) dirtied(c *Change) bool {
	if len(p.dirty) == 0 {
		return false
	}
	if _, all := p.dirty[part{partAll, ""}]; all {
		return true
	}
	if _, dirty := p.dirty[part{partGlobal, ""}]; dirty && c.Global != nil {
		return true
	}
	has := func(kind partKind, name string) bool { _, dirty := p.dirty[part{kind, name}]; return dirty }
	for name := range c.Backends {
		if has(partBackend, name) || has(partServers, name) {
			return true
		}
	}
	for name := range c.Frontends {
		if has(partFrontend, name) {
			return true
		}
	}
	for name := range c.Userlists {
		if has(partUserlist, name) {
			return true
		}
	}
	for name := range c.Maps {
		if has(partMap, name) {
			return true
		}
	}
	return false
}

// maxWaiting bounds what is remembered for the event-to-live metric; more than that at
// once is a storm, whose oldest events tell enough.
const maxWaiting = 1024

// wait remembers that an event's change is not live yet.
func (p *Proxy) wait(lane Lane, received time.Time) {
	if !received.IsZero() && len(p.waiting[lane]) < maxWaiting {
		p.waiting[lane] = append(p.waiting[lane], received)
	}
}

// arrived records those that are live now.
func (p *Proxy) arrived(lane Lane, waited []time.Time) {
	for _, received := range waited {
		p.m.live(lane, received)
	}
}

// converge compares the named backends and map keys with the worker and sends what is
// missing; what is refused is read back and tried once more. What remains marks the slow
// lane. It returns how many commands HAProxy has done.
func (p *Proxy) converge(ctx context.Context, backends []string, keys map[string][]string) (int, error) {
	if p.conn == nil {
		return 0, nil
	}
	sent, failed, err := p.send(ctx, p.plan(backends, keys))
	if failed.none() || p.conn == nil {
		return sent, err
	}
	if err := p.reread(ctx, failed); err != nil {
		p.lost(err)
		return sent, err
	}
	again, stuck, err := p.send(ctx, p.plan(failed.backends, failed.keys))
	if err != nil {
		p.lastError = err.Error()
	}
	for _, name := range stuck.backends {
		if bs := p.backends[name]; bs != nil && (bs.gaveUp == nil || bs.gaveUp != bs.want) {
			bs.gaveUp = bs.want
			p.mark(part{partServers, name}, ReasonRefused)
		}
	}
	for name := range stuck.keys {
		p.mark(part{partMap, name}, ReasonRefused)
	}
	return sent + again, err
}

// plan diffs the named parts, and notes what no command can do.
func (p *Proxy) plan(backends []string, keys map[string][]string) *plan {
	var pl plan
	for _, name := range backends {
		bs := p.backends[name]
		if bs == nil || bs.have == nil || bs.want == nil && bs.loaded == nil || bs.want.static() {
			continue // the worker does not have it, or it is not ours, or no command may touch it
		}
		pl.reasons = pl.reasons[:0]
		pl.diffBackend(name, bs.have, bs.want, p.strategy(bs), p.caps)
		var reason Reason
		if len(pl.reasons) > 0 {
			reason = pl.reasons[0]
		}
		p.mark(part{partServers, name}, reason)
	}
	for name, some := range keys {
		ms := p.maps[name]
		if ms == nil || ms.have == nil || ms.want == nil {
			continue
		}
		pl.diffMap(ms.have, ms.want.Entries, some)
	}
	pl.grow = p.expressible(pl.grow)
	pl.shrink = p.expressible(pl.shrink)
	return &pl
}

// expressible leaves out commands that have no text, and marks what they were for.
func (p *Proxy) expressible(commands []Command) []Command {
	return slices.DeleteFunc(commands, func(c Command) bool {
		err := c.check(0)
		if err == nil {
			return false
		}
		p.log.Debug("no runtime command for this", "err", err)
		if c.Map != "" {
			for name, ms := range p.maps {
				if ms.have != nil && ms.have.path == c.Map {
					p.mark(part{partMap, name}, ReasonMap)
				}
			}
		} else {
			p.mark(part{partServers, c.Backend}, ReasonServerOptions)
		}
		return true
	})
}

func (p *Proxy) strategy(bs *backendState) strategy {
	if bs.want != nil {
		bs.strategy = strategyFor(bs.want, p.caps, SlotPolicy(p.opts.Slots))
	}
	return bs.strategy
}

// failures are the parts whose commands were refused.
type failures struct {
	backends []string
	keys     map[string][]string
}

func (f *failures) none() bool { return len(f.backends) == 0 && len(f.keys) == 0 }

// send sends a plan as one batch and takes in the answers. The error is the first refusal,
// or the loss of the connection: then nothing is known about commands without answer, and
// the reconnection reads what became of them.
func (p *Proxy) send(ctx context.Context, pl *plan) (sent int, failed failures, err error) {
	commands := append(pl.grow, pl.shrink...)
	if len(commands) == 0 {
		return 0, failed, nil
	}
	p.clock++
	began := time.Now()
	var refusal error
	refusals := 0
	answered, err := p.conn.batch(ctx, commands, func(i int, reply []byte) {
		c := &commands[i]
		v := c.Verb.judge(reply)
		p.m.commands[c.Verb][v].Inc()
		if v == done || v == already {
			sent++
			p.did(c)
			return
		}
		refusals++
		p.fail(c, &failed)
		if refusal == nil {
			line, _ := c.appendTo(nil)
			refusal = &CommandError{Command: string(line[:len(line)-1]), Reply: shorten(reply)}
		}
	})
	p.m.batch.Observe(time.Since(began).Seconds())
	for _, name := range touchedBy(commands) {
		if bs := p.backends[name]; bs != nil {
			bs.touched, bs.file = p.clock, nil
			p.count(bs, bs.have)
		}
	}
	if sent > 0 {
		p.unsaved = true
	}
	if err != nil {
		for i := answered; i < len(commands); i++ {
			p.m.commands[commands[i].Verb][lost].Inc()
		}
		p.lost(err)
		return sent, failed, fmt.Errorf("%d of %d runtime commands answered: %w", answered, len(commands), err)
	}
	if refusal != nil {
		return sent, failed, fmt.Errorf("%d of %d runtime commands refused, the first: %w", refusals, len(commands), refusal)
	}
	return sent, failed, nil
}

// touchedBy lists the backends of commands once each.
func touchedBy(commands []Command) []string {
	var names []string
	seen := make(map[string]struct{})
	last := ""
	for i := range commands {
		name := commands[i].Backend
		if name == "" || name == last {
			continue
		}
		last = name
		if _, twice := seen[name]; !twice {
			seen[name] = struct{}{}
			names = append(names, name)
		}
	}
	return names
}

// did takes in that HAProxy has done c.
func (p *Proxy) did(c *Command) {
	if c.Map != "" {
		for _, ms := range p.maps {
			if ms.have == nil || ms.have.path != c.Map {
				continue
			}
			ms.touched = p.clock
			if c.Verb == DelMap {
				delete(ms.have.entries, c.Key)
			} else {
				ms.have.entries[c.Key] = c.Value
			}
		}
		return
	}
	bs := p.backends[c.Backend]
	if bs == nil || bs.have == nil {
		return
	}
	bs.have.did(c)
	if c.Verb == SetState && c.State == Maint {
		p.leave(c.Backend, c.Server)
	}
}

// fail notes that c was refused.
func (p *Proxy) fail(c *Command, failed *failures) {
	if c.Map == "" {
		if !slices.Contains(failed.backends, c.Backend) {
			failed.backends = append(failed.backends, c.Backend)
		}
		return
	}
	for name, ms := range p.maps {
		if ms.have != nil && ms.have.path == c.Map {
			if failed.keys == nil {
				failed.keys = make(map[string][]string)
			}
			failed.keys[name] = append(failed.keys[name], c.Key)
		}
	}
}

// reread replaces what we believed about the parts that refused commands by what HAProxy
// says: a refusal mostly means that somebody else has changed something.
func (p *Proxy) reread(ctx context.Context, failed failures) error {
	for _, name := range failed.backends {
		bs := p.backends[name]
		if bs == nil {
			continue
		}
		have, err := p.conn.backend(ctx, name)
		if errors.Is(err, errLost) {
			return err
		}
		if err != nil {
			have = nil // it has no such backend any more
			p.forget(ReasonStructure)
		}
		p.found(bs, have)
	}
	for name := range failed.keys {
		ms := p.maps[name]
		entries, err := p.conn.entries(ctx, ms.have.path)
		if errors.Is(err, errLost) {
			return err
		}
		if err != nil {
			ms.have = nil
			p.forget(ReasonStructure)
			continue
		}
		ms.have.entries = entries
	}
	return nil
}

// found replaces what is believed of a backend by what was read, keeping what cannot be
// read.
func (p *Proxy) found(bs *backendState, read *running) {
	if read != nil && bs.have != nil {
		read.retired = bs.have.retired
		for i := range read.servers {
			s := &read.servers[i]
			if at := bs.have.find(s.Name, i); at >= 0 {
				old := &bs.have.servers[at]
				s.Name = old.Name // one string for both
				s.known, s.ID, s.Cookie, s.Options, s.retired = old.known, old.ID, old.Cookie, old.Options, old.retired
			}
		}
	}
	bs.have, bs.file = read, nil
	bs.touched = p.clock
	p.count(bs, read)
}

// forget notes that we do not know any more what structure HAProxy runs.
func (p *Proxy) forget(reason Reason) {
	p.known, p.binds = false, nil
	clear(p.dirty)
	p.mark(part{partAll, ""}, reason)
}

// count brings the servers metric up to date with have, of bs.
func (p *Proxy) count(bs *backendState, have *running) {
	var now [serverStates]int32
	if have != nil {
		wanted := 0
		if bs.want != nil {
			wanted = len(bs.want.Servers)
		}
		for i := range have.servers {
			switch s := &have.servers[i]; {
			case s.State == Ready && s.Weight > 0:
				now[countReady]++
			case s.State != Maint:
				now[countDrain]++
			case bs.strategy == slotted:
				now[countSpare]++
			default:
				now[countMaint]++
			}
		}
		// Servers in maintenance that nobody wants: what is there beyond what is wanted.
		if bs.strategy != slotted {
			retired := min(now[countMaint], max(0, int32(len(have.servers)-wanted)))
			now[countMaint] -= retired
			now[countRetired] = retired
		}
	}
	for s := range serverStates {
		if d := int(now[s] - bs.counts[s]); d != 0 {
			p.totals[s] += d
			p.m.servers[s].Set(float64(p.totals[s]))
		}
	}
	bs.counts = now
}
