package haproxy

import (
	"context"
)

// driftKind is what differs between HAProxy and what we believed. The set is closed.
type driftKind string

const (
	driftWorker  driftKind = "worker"         // another worker than the one we talked to
	driftBackend driftKind = "backend"        // a backend is missing
	driftMissing driftKind = "server-missing" // a server is missing
	driftUnknown driftKind = "server-unknown" // a server takes traffic that we did not make
	driftAddr    driftKind = "address"
	driftState   driftKind = "state"
	driftWeight  driftKind = "weight"
	driftMap     driftKind = "map"
)

var driftKinds = []driftKind{
	driftWorker, driftBackend, driftMissing, driftUnknown, driftAddr, driftState, driftWeight, driftMap,
}

func (p *Proxy) drifted(kind driftKind, n int) {
	p.m.drift.WithLabelValues(string(kind)).Add(float64(n))
}

// Audit reads back what HAProxy runs, on a connection of its own and in the background, as
// a dump of 10 000 servers takes 40 ms. What differs from what we believed is counted,
// logged and repaired when the completion is handed to Finish. It returns at once;
// without a connection, or while another audit runs, it does nothing.
func (p *Proxy) Audit(context.Context) error {
	if p.conn == nil || p.auditing || p.connecting || p.reloading || !p.synced {
		return nil
	}
	p.auditing = true
	epoch, clock := p.epoch, p.clock
	p.bg(func(ctx context.Context) func(context.Context) {
		w, err := meet(ctx, p.opts.Socket)
		if err == nil {
			w.conn.close()
		}
		return func(ctx context.Context) {
			p.auditing = false
			switch {
			case err != nil:
				p.log.Warn("audit of HAProxy", "err", err)
			case epoch == p.epoch && !p.reloading && w.info.Pid == p.info.Pid:
				p.audited(ctx, w, clock)
			}
		}
	})
	return nil
}

// audited compares what was read with what we believed when reading began. What has
// changed since is left to the next audit.
func (p *Proxy) audited(ctx context.Context, w *worker, clock uint64) {
	var backends []string
	keys := make(map[string][]string)
	for name, bs := range p.backends {
		if bs.touched > clock || bs.have == nil {
			continue
		}
		read := w.servers[name]
		if read == nil {
			p.drifted(driftBackend, 1)
			p.log.Warn("a backend is missing in HAProxy", "backend", name)
			p.found(bs, nil)
			p.forget(ReasonStructure)
			continue
		}
		if bs.want.static() {
			continue
		}
		if kinds := compareRunning(bs.have, read); len(kinds) > 0 {
			for kind, n := range kinds {
				p.drifted(kind, n)
			}
			if bs.want == nil && bs.loaded == nil {
				continue
			}
			p.log.Warn("servers differ from what HAProxy was told", "backend", name, "differences", kinds)
			p.found(bs, read)
			backends = append(backends, name)
		}
	}
	for name, ms := range p.maps {
		if ms.have == nil || ms.want == nil || ms.touched > clock {
			continue
		}
		read := w.maps[name]
		if read == nil || read.path != ms.have.path {
			continue // a reload; the probe finds it
		}
		var differ []string
		for key, value := range ms.have.entries {
			if read.entries[key] != value {
				differ = append(differ, key)
			}
		}
		for key := range read.entries {
			if _, there := ms.have.entries[key]; !there {
				differ = append(differ, key)
			}
		}
		if len(differ) > 0 {
			p.drifted(driftMap, len(differ))
			p.log.Warn("map differs from what HAProxy was told", "map", name, "entries", len(differ))
			ms.have, keys[name] = read, differ
		}
	}
	if len(backends)+len(keys) > 0 {
		if _, err := p.converge(ctx, backends, keys); err != nil {
			p.log.Warn("HAProxy refused a repair", "err", err)
		}
	}
	p.schedule()
}

// compareRunning counts by kind how got differs from have. A server in maintenance takes
// no traffic: its address and weight are nobody's business, and neither is one that we
// do not know.
func compareRunning(have, got *running) map[driftKind]int {
	var kinds map[driftKind]int
	add := func(kind driftKind) {
		if kinds == nil {
			kinds = make(map[driftKind]int)
		}
		kinds[kind]++
	}
	seen := 0
	for i := range have.servers {
		h := &have.servers[i]
		at := got.find(h.Name, i)
		if at < 0 {
			add(driftMissing)
			continue
		}
		seen++
		g := &got.servers[at]
		switch {
		case h.State != g.State:
			add(driftState)
		case h.State == Maint:
		case h.Addr != g.Addr:
			add(driftAddr)
		case h.State == Ready && h.Weight != g.Weight:
			add(driftWeight)
		}
	}
	if seen < len(got.servers) {
		for i := range got.servers {
			if g := &got.servers[i]; g.State != Maint && have.find(g.Name, i) < 0 {
				add(driftUnknown)
			}
		}
	}
	return kinds
}
