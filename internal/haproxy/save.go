package haproxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
)

// save writes haproxy.cfg and the maps after changes at run time, in the background. The
// generation stays: it names the structure, which is as it was.
func (p *Proxy) save(context.Context) {
	if p.busy || !p.known || !p.unsaved {
		p.schedule() // after the reload that writes it anyway
		return
	}
	p.chooseSpares() // also for a worker that an earlier bridge has loaded
	config, renderer, generation, structure := p.loadedConfig(), p.proven, FormatGeneration(p.structure, p.seq), p.structure
	inUse := make(map[string]string)
	for name, ms := range p.maps {
		if ms.have != nil {
			inUse[name] = ms.have.path
		}
	}
	p.busy, p.unsaved = true, false
	p.bg(func(ctx context.Context) func(context.Context) {
		err := p.write(ctx, config, renderer, generation, structure, inUse)
		return func(context.Context) {
			p.busy = false
			if err != nil {
				p.m.saves.WithLabelValues("failed").Inc()
				if p.badSaves++; p.badSaves == 1 || err.Error() != p.lastError {
					p.log.Error("haproxy.cfg not saved, it is older than what HAProxy runs", "err", err)
				}
				p.unsaved, p.lastError = true, err.Error()
			} else {
				p.m.saves.WithLabelValues("ok").Inc()
				if p.badSaves > 0 {
					p.log.Info("haproxy.cfg saved again")
				}
				p.badSaves = 0
			}
			p.schedule()
		}
	})
}

// write runs in the background.
func (p *Proxy) write(ctx context.Context, c *Config, r *Renderer, generation, structure string, inUse map[string]string) error {
	rendered, err := r.Render(c)
	if err != nil {
		return err
	}
	if got := shortStructure(rendered.Structure); got != structure {
		// Never write one structure under the name of another: a bridge that starts would take
		// it for what runs.
		return fmt.Errorf("%w: it renders as %s, HAProxy runs %s", errStructure, got, structure)
	}
	if _, err := p.files.Save(ctx, rendered, generation); err != nil {
		return err
	}
	p.files.Collect(inUse)
	return nil
}

var errStructure = errors.New("structure of haproxy.cfg")

// wantedConfig is all that is wanted, as it is written to haproxy.cfg. Parts are shared,
// maps are copies.
func (p *Proxy) wantedConfig() *Config {
	c := p.emptyConfig(p.global.want)
	for name, st := range p.userlists {
		if st.want != nil {
			c.Userlists[name] = st.want
		}
	}
	for name, st := range p.frontends {
		if st.want != nil {
			c.Frontends[name] = st.want
		}
	}
	for name, bs := range p.backends {
		if bs.want != nil {
			c.Backends[name] = p.fileOf(bs, bs.want)
		}
	}
	for name, ms := range p.maps {
		if ms.want != nil {
			c.Maps[name] = &Map{Kind: ms.want.Kind, Entries: maps.Clone(ms.want.Entries)}
		}
	}
	return c
}

// loadedConfig is the structure that the worker loaded with the servers that are wanted
// now: a restart from it, or anybody's reload, changes nothing.
func (p *Proxy) loadedConfig() *Config {
	c := p.emptyConfig(p.global.written)
	for name, st := range p.userlists {
		if st.loaded != nil {
			c.Userlists[name] = st.loaded
		}
	}
	for name, st := range p.frontends {
		if st.loaded != nil {
			c.Frontends[name] = st.loaded
		}
	}
	for name, bs := range p.backends {
		switch {
		case bs.loaded == nil:
		case sameStructure(bs.loaded, bs.want):
			c.Backends[name] = p.fileOf(bs, bs.want)
		default:
			c.Backends[name] = p.fileOf(bs, bs.loaded)
		}
	}
	for name, ms := range p.maps {
		switch {
		case !ms.loaded:
		case ms.want != nil:
			c.Maps[name] = &Map{Kind: ms.want.Kind, Entries: maps.Clone(ms.want.Entries)}
		case ms.have != nil:
			c.Maps[name] = &Map{Kind: "str", Entries: maps.Clone(ms.have.entries)}
		}
	}
	return c
}

func (p *Proxy) emptyConfig(g *Global) *Config {
	return &Config{
		Global:    g,
		Userlists: make(map[string]*Section, len(p.userlists)),
		Frontends: make(map[string]*Section, len(p.frontends)),
		Backends:  make(map[string]*Backend, len(p.backends)),
		Maps:      make(map[string]*Map, len(p.maps)),
	}
}

// fileOf is what is written of a backend. It is kept as long as it holds, since its
// pointer is what the renderer knows a section by.
func (p *Proxy) fileOf(bs *backendState, structure *Backend) *Backend {
	if structure != bs.want {
		return fileBackend(structure, bs.want, bs.have, p.strategy(bs), p.spare)
	}
	if bs.file == nil {
		bs.file = fileBackend(bs.want, bs.want, bs.have, p.strategy(bs), p.spare)
	}
	return bs.file
}

// maxSlots bounds the slots of all backends together. Each costs what a server costs, some
// 5 KB in each worker and 30 µs of each reload, so that doubling 10 000 servers would
// double that; a backend that outgrows fewer spares costs a reload now and then instead.
const maxSlots = 16 << 10

// chooseSpares decides how many spare slots this HAProxy can afford.
func (p *Proxy) chooseSpares() {
	var sizes []int
	checked := false
	for _, bs := range p.backends {
		if bs.want != nil && p.strategy(bs) == slotted {
			sizes = append(sizes, len(bs.want.Servers))
			checked = checked || hasOption(bs.want.ServerOptions, "check")
		}
	}
	limit := maxSlots
	if files := hardLimit(p.info.Pid); checked && files > 0 {
		// A checked slot holds a descriptor, a connection two. Without a maxconn of ours
		// HAProxy divides what is left.
		connections := files / 2
		if g := p.global.want; g != nil && g.MaxConn > 0 {
			connections = 2 * g.MaxConn
		}
		limit = min(limit, files-connections-listeners(p.binds)-fdReserve)
	}
	spare := chooseSpares(sizes, limit)
	if spare == p.spare {
		return
	}
	p.log.Info("spare server slots chosen", "most", limit, "level", spare)
	p.spare = spare
	for _, bs := range p.backends {
		bs.file = nil
	}
}
