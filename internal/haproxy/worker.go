package haproxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"
)

const (
	// probeEvery is how often we look whether the worker that answers is still the one we
	// talk to: a connection to a replaced worker goes on answering.
	probeEvery = time.Second

	// idlePing keeps a connection that nothing is said on from being closed by `stats timeout`,
	// which would cost the next event a reconnection.
	idlePing = time.Minute

	// Pauses between attempts to reconnect, doubled from first to last. Nobody is served
	// worse meanwhile, but nothing gets through either.
	firstReconnect = 5 * time.Millisecond
	lastReconnect  = time.Second
)

// found by connecting: who answers and everything it runs.
type worker struct {
	conn    *conn
	info    Info
	servers map[string]*running
	maps    map[string]*runningMap
}

// meet connects and reads what runs.
func meet(ctx context.Context, socket string) (*worker, error) {
	c, err := dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	w := &worker{conn: c}
	err = func() (err error) {
		if w.info, err = c.info(ctx); err != nil {
			return err
		}
		if w.info.Stopping {
			return fmt.Errorf("%w: worker %d is about to end", ErrUnreachable, w.info.Pid)
		}
		if err = c.checkAdmin(ctx); err != nil {
			return err
		}
		if w.servers, err = c.servers(ctx); err != nil {
			return err
		}
		w.maps, err = c.maps(ctx)
		return err
	}()
	if err != nil {
		c.close()
		if errors.Is(err, errLost) {
			err = fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
		return nil, fmt.Errorf("%s: %w", socket, err)
	}
	return w, nil
}

// Adopt reads the operator's file, connects to HAProxy and takes in what it runs, without
// changing anything. When nobody answers it returns ErrUnreachable and goes on trying in
// the background, after having started HAProxy where that is ours to do. ErrNotHAProxy,
// ErrNotAdmin and ErrForeignConfig need a person.
func (p *Proxy) Adopt(ctx context.Context) error {
	file, err := ReadOperatorFile(p.opts.ConfigFile, p.opts.Socket)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("%w: %w", ErrForeignConfig, err)
	}
	p.kept = file
	if len(file.Dropped) > 0 {
		p.log.Info("lines of haproxy.cfg that bridged sets itself", "lines", file.Dropped)
	}
	p.after(probeEvery, &p.timers.probe, p.probe)
	p.ourFile = file.Ours
	if p.supervisor != nil && p.ourFile {
		// What ran last serves at once, before anything is known from Marathon.
		if _, err := p.supervisor.Ensure(ctx); err != nil {
			p.log.Warn("HAProxy does not start from the file of an earlier run", "err", err)
		}
	}
	w, err := meet(ctx, p.opts.Socket)
	if err != nil {
		if errors.Is(err, ErrUnreachable) {
			p.unreached = err.Error()
			p.mark(part{partAll, ""}, ReasonStart) // the first change starts it, where that is ours to do
			if p.supervisor != nil {
				if v, err := BinaryVersion(ctx, p.opts.Binary); err == nil {
					p.adapt(CapabilitiesOf(v))
				}
			}
			p.reconnect()
		}
		return err
	}
	p.install(ctx, w)
	return nil
}

// install makes w the worker that we talk to.
func (p *Proxy) install(ctx context.Context, w *worker) {
	previous := p.info
	p.disconnect()
	p.conn = w.conn
	p.m.connected.Set(1)
	changed := p.identify(w.info)
	structure, seq, ours := ParseGeneration(w.info.Description)
	switch {
	case p.known && ours && structure == p.structure && !changed:
		// What we loaded: reconnected, restarted, or reloaded from the file that we wrote.
	case !ours:
		p.forget(ReasonTakeover)
	default:
		p.forget(ReasonStructure)
	}
	p.structure, p.seq = structure, seq
	if previous.Pid != 0 && previous.Pid != w.info.Pid {
		p.drifted(driftWorker, 1)
		p.replaced(previous.Pid)
	}
	p.log.Info("connected to HAProxy", "version", w.info.Version, "pid", w.info.Pid,
		"generation", w.info.Description, "backends", len(w.servers))
	p.clock++
	p.epoch++
	if !ours {
		w.servers, w.maps = nil, nil // the operator's: commands of ours have no business there
	}
	// Parts that are not wanted, or not yet, are noted besides: the first Apply finds what
	// runs there. The operator's own sections are among them and are never commanded.
	for name := range w.servers {
		p.backend(name)
	}
	for name, bs := range p.backends {
		p.found(bs, w.servers[name])
	}
	for name := range w.maps {
		if p.maps[name] == nil {
			p.maps[name] = new(mapState)
		}
	}
	for name, ms := range p.maps {
		ms.have, ms.touched = w.maps[name], p.clock
	}
	p.convergeAll(ctx)
	p.findLeftovers()
	p.certs.have, p.certs.due = nil, true
	p.lookAtCerts()
	waited := p.waiting[LaneFast]
	p.waiting[LaneFast] = nil
	p.arrived(LaneFast, waited)
}

// identify takes in who answers. It reports whether that one has other capabilities than
// the last: then what we rendered is not what we would render for it.
func (p *Proxy) identify(info Info) (changed bool) {
	p.info = info
	v, err := ParseVersion(info.Version)
	if err != nil {
		p.log.Warn("HAProxy says no version that makes sense; treated as the oldest", "version", info.Version)
		v = Version{2, 2}
	}
	return p.adapt(CapabilitiesOf(v))
}

// adapt renders and commands for a HAProxy of these capabilities from now on.
func (p *Proxy) adapt(caps Capabilities) (changed bool) {
	if caps == p.caps {
		return false
	}
	p.caps = caps
	for _, l := range (Capabilities{}).lacks() {
		p.m.degraded.WithLabelValues(l.name).Set(0)
	}
	for _, l := range caps.lacks() {
		p.m.degraded.WithLabelValues(l.name).Set(1)
		p.log.Info("this HAProxy version is served in another way", "version", caps.Version, "effect", l.effect)
	}
	if err := p.newRenderer(p.template); err != nil {
		p.log.Error("template does not serve this HAProxy version", "version", caps.Version, "err", err)
	}
	return true
}

// convergeAll brings the worker to all that is wanted, as far as commands can.
func (p *Proxy) convergeAll(ctx context.Context) {
	if !p.synced || p.conn == nil {
		return
	}
	p.judgeAll()
	backends, keys := p.touchedSince(0)
	if _, err := p.converge(ctx, backends, keys); err != nil {
		p.log.Warn("HAProxy refused part of what is wanted", "err", err)
	}
	p.schedule()
}

// touchedSince lists the backends that changed after the given clock, and for maps that
// did all keys that are there or shall be.
func (p *Proxy) touchedSince(clock uint64) (backends []string, keys map[string][]string) {
	for name, bs := range p.backends {
		if bs.touched > clock || clock == 0 {
			backends = append(backends, name)
		}
	}
	slices.Sort(backends)
	keys = make(map[string][]string)
	for name, ms := range p.maps {
		if ms.have == nil || ms.want == nil || clock > 0 && ms.touched <= clock {
			continue
		}
		for key := range ms.want.Entries {
			keys[name] = append(keys[name], key)
		}
		for key := range ms.have.entries {
			if ms.want.Entries[key] == "" {
				keys[name] = append(keys[name], key)
			}
		}
		slices.Sort(keys[name])
	}
	return backends, keys
}

// disconnect drops the connection. What HAProxy runs is not affected.
func (p *Proxy) disconnect() {
	if p.conn != nil {
		p.conn.close()
		p.conn = nil
		p.m.connected.Set(0)
	}
}

// lost is called when the connection failed: what HAProxy has done of the commands without
// answers is read on the next one.
func (p *Proxy) lost(err error) {
	p.lastError = err.Error()
	p.log.Warn("lost the connection to HAProxy", "err", err)
	p.disconnect()
	p.reconnect()
}

// reconnect connects in the background, for as long as it takes.
func (p *Proxy) reconnect() {
	if p.connecting {
		return
	}
	p.connecting = true
	p.m.connected.Set(0)
	supervisor := p.supervisor
	if !p.ourFile {
		supervisor = nil // nothing of ours to start from
	}
	p.bg(func(ctx context.Context) func(context.Context) {
		said, failed := "", ""
		for pause := firstReconnect; ; pause = min(2*pause, lastReconnect) {
			w, err := meet(ctx, p.opts.Socket)
			if err == nil {
				return func(ctx context.Context) {
					p.connecting = false
					p.install(ctx, w)
				}
			}
			if ctx.Err() != nil {
				return nil
			}
			if text := err.Error(); text != said {
				said = text
				p.log.Warn("waiting for HAProxy", "socket", p.opts.Socket, "err", err)
				p.tell(func(context.Context) { p.unreached = text })
			}
			if supervisor != nil {
				started, err := supervisor.Ensure(ctx)
				if started && err == nil {
					continue
				}
				if err != nil && err.Error() != failed {
					failed = err.Error()
					p.log.Error("HAProxy does not start", "err", err)
				}
			}
			if wait(ctx, pause) != nil {
				return nil
			}
		}
	})
}

// probe looks on a connection of its own who answers on the socket, once and again.
func (p *Proxy) probe(context.Context) {
	epoch := p.epoch
	p.bg(func(ctx context.Context) func(context.Context) {
		info, err := askInfo(ctx, p.opts.Socket)
		old, oldErr := p.oldWorkers(ctx)
		return func(ctx context.Context) {
			p.after(probeEvery, &p.timers.probe, p.probe)
			p.sawOldWorkers(epoch, old, oldErr)
			switch {
			case p.connecting || p.reloading || epoch != p.epoch:
				// Changing right now: the next look tells.
			case p.conn == nil:
				p.reconnect()
			case err == nil && !info.Stopping && (info.Pid != p.info.Pid || info.Description != p.info.Description):
				p.log.Warn("somebody else has replaced the HAProxy worker", "pid", info.Pid,
					"generation", info.Description, "was", p.info.Description)
				p.disconnect()
				p.reconnect()
			case err != nil || time.Since(p.conn.used) > idlePing:
				// New connections may be refused for want of room: the one we have tells.
				if _, err := p.conn.info(ctx); err != nil {
					p.lost(err)
				}
			}
		}
	})
}
