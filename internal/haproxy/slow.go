package haproxy

import (
	"context"
	"maps"
	"slices"
	"time"
)

// maxHold is how long a reload waits for old workers to end when there are too many. Then
// it goes all the same: an app that never becomes reachable is worse than memory.
const maxHold = 10 * time.Second

// leastSaveRetry is the least pause after a save that failed, doubled for each in a row.
const leastSaveRetry = 100 * time.Millisecond

const holdPoll = 250 * time.Millisecond

// schedule starts what is due and sets timers for what will be.
func (p *Proxy) schedule() {
	p.lookAtCerts()
	if !p.synced {
		return
	}
	if p.unsaved && p.known {
		delay := p.opts.SaveDelay
		if p.badSaves > 0 {
			delay = max(delay, leastSaveRetry) << min(p.badSaves, 8)
		}
		p.after(delay, &p.timers.save, p.save)
	}
	p.scheduleReap()
	if len(p.dirty) == 0 || p.busy {
		return
	}
	if p.conn == nil && p.supervisor == nil {
		return // the reconnection schedules again
	}
	at := p.pace.next(p.fresh)
	if wait := time.Until(at); wait > 0 {
		p.reloadTimer(at, wait)
		return
	}
	if p.hold() {
		p.after(holdPoll, &p.timers.hold, func(context.Context) {
			p.askOldWorkers(p.schedule)
		})
		return
	}
	p.reload()
}

// reloadTimer schedules again at the given time, unless a timer is set that fires earlier.
func (p *Proxy) reloadTimer(at time.Time, wait time.Duration) {
	if !p.reloadAt.IsZero() && !p.reloadAt.After(at) {
		return
	}
	p.reloadAt = at
	running := false
	p.after(wait, &running, func(context.Context) {
		if p.reloadAt.Equal(at) {
			p.reloadAt = time.Time{}
		}
		p.schedule()
	})
}

// hold reports whether a reload has to wait because too many workers are still ending.
func (p *Proxy) hold() bool {
	p.countOldWorkers()
	switch {
	case len(p.oldPids) < p.opts.MaxOldWorkers:
		if !p.heldSince.IsZero() {
			p.m.reloadHolds.WithLabelValues("released").Inc()
		}
	case p.heldSince.IsZero():
		p.heldSince = time.Now()
		p.log.Warn("too many old HAProxy workers: holding the reload", "old_workers", len(p.oldPids), "at_most", maxHold)
		return true
	case time.Since(p.heldSince) < maxHold:
		return true
	default:
		p.m.reloadHolds.WithLabelValues("expired").Inc()
		p.log.Warn("old HAProxy workers do not end: reloading all the same", "old_workers", len(p.oldPids))
	}
	p.heldSince = time.Time{}
	return false
}

// snapshot is what one reload takes along. Nobody modifies it.
type snapshot struct {
	config *Config             // as written: slots chosen
	wanted map[string]*Backend // what config.Backends was made from
	global *Global

	began    time.Time
	clock    uint64
	reasons  []Reason
	waited   []time.Time // events whose changes it makes live
	renderer *Renderer
	template string // of renderer
	seq      int
	oldBinds []Bind
	running  string   // structure of the worker; when that is what is rendered, nothing is reloaded
	singles  []string // certificates that are named
}

// loadedWorker is what a reload ended in.
type loadedWorker struct {
	Worker
	same bool  // nothing had to be reloaded
	conn *conn // nil: the new worker was seen, but is not reached any more
	info Info
	have map[string]*running
	maps map[string]*runningMap

	certs   *certView
	missing []string // certificates that listeners were left out for
}

// reload renders all that is wanted and reloads HAProxy, in the background. Until that is
// done, changes go to the worker that is there.
func (p *Proxy) reload() {
	p.chooseSpares()
	s := &snapshot{
		config: p.wantedConfig(), wanted: make(map[string]*Backend, len(p.backends)), global: p.global.want,
		began: time.Now(), clock: p.clock, reasons: p.reasons(), waited: p.waiting[LaneSlow],
		renderer: p.renderer, template: p.template, seq: p.seq + 1, oldBinds: p.binds,
		singles: p.namedCerts(),
	}
	if s.config.Global == nil {
		return // the first Change brings it
	}
	for name, bs := range p.backends {
		s.wanted[name] = bs.want
	}
	if !p.mustReload() {
		s.running = p.structure
	}
	p.waiting[LaneSlow] = nil
	p.busy, p.reloading, p.fresh, p.unsaved = true, true, false, false
	p.log.Info("reloading HAProxy", "reasons", s.reasons)
	p.bg(func(ctx context.Context) func(context.Context) {
		w, err := p.load(ctx, s)
		return func(ctx context.Context) { p.reloaded(ctx, s, w, err) }
	})
}

// mustReload reports whether something is dirty that does not show in the structure: it
// is about servers and entries that no command could set.
func (p *Proxy) mustReload() bool {
	for part := range p.dirty {
		if part.kind == partServers || part.kind == partMap || part.kind == partCerts {
			return true
		}
	}
	return p.conn == nil
}

// noStructure stands in a generation whose text is not rendered yet.
const noStructure = "000000000000"

// load runs in the background and touches nothing of p but its options, files and reloader.
func (p *Proxy) load(ctx context.Context, s *snapshot) (*loadedWorker, error) {
	w := new(loadedWorker)
	config, left := p.fitCerts(s, w)
	// What cannot be written is the reloader's to tell apart from the rest: it renders again
	// without the apps that it belongs to.
	structure := noStructure
	rendered, err := s.renderer.Render(config)
	if err != nil {
		rendered = nil
	} else {
		structure = shortStructure(rendered.Structure)
	}
	if s.running == structure {
		w.same, w.Loaded, w.Rejected = true, config, left
		return w, nil
	}
	w.Worker, err = p.reloader.Reload(ctx, ReloadRequest{
		Config: config, Renderer: s.renderer, Rendered: rendered,
		Generation: FormatGeneration(structure, s.seq), OldBinds: s.oldBinds, Running: s.running, Reasons: s.reasons,
	})
	if err != nil {
		return nil, err
	}
	w.Rejected = append(w.Rejected, left...)
	if w.Same {
		w.same = true
		return w, nil
	}
	w.have = make(map[string]*running, len(w.Loaded.Backends))
	for name, b := range w.Loaded.Backends {
		w.have[name] = loadedFrom(b)
	}
	w.maps = make(map[string]*runningMap, len(w.Loaded.Maps))
	for name, m := range w.Loaded.Maps {
		w.maps[name] = &runningMap{path: w.MapPaths[name], entries: maps.Clone(m.Entries)}
	}
	w.conn, w.info = p.follow(ctx, w.Generation)
	return w, nil
}

// followTimeout is how long follow looks for a worker that was seen a moment ago.
const followTimeout = 2 * time.Second

// follow connects to the worker of the given generation. For a moment the worker before it
// takes some of the connections too. Nil when it is not found: then there is another.
func (p *Proxy) follow(ctx context.Context, generation string) (*conn, Info) {
	ctx, cancel := context.WithTimeout(ctx, followTimeout)
	defer cancel()
	for {
		c, err := dial(ctx, p.opts.Socket)
		if err == nil {
			info, err := c.info(ctx)
			if err == nil && info.Description == generation && !info.Stopping {
				return c, info
			}
			c.close()
		}
		if wait(ctx, 2*time.Millisecond) != nil {
			return nil, Info{}
		}
	}
}

// reloaded takes in how a reload ended.
func (p *Proxy) reloaded(ctx context.Context, s *snapshot, w *loadedWorker, err error) {
	p.busy, p.reloading = false, false
	reason := ReasonStructure
	if len(s.reasons) > 0 {
		reason = s.reasons[0]
	}
	switch {
	case err != nil:
		p.certs.due = true // the files were looked at, and HAProxy has the old ones
		p.pace.finished(s.began, time.Now(), false)
		p.m.reloads.WithLabelValues(string(reason), "failed").Inc()
		p.reloadFailed(s, err)
	case w.same:
		p.log.Info("HAProxy already runs what is wanted", "generation", p.info.Description)
		p.know(s, w)
		p.certs.due = true
		p.unsaved = true // its servers may be newer than the file
		p.convergeAll(ctx)
	default:
		p.pace.finished(s.began, time.Now(), true)
		p.m.reloads.WithLabelValues(string(reason), "ok").Inc()
		p.m.reloadDuration.Observe(time.Since(s.began).Seconds())
		p.reloads++
		p.log.Info("reloaded HAProxy", "reason", reason, "generation", w.Generation, "pid", w.Pid, "took", time.Since(s.began))
		p.certs.have = w.certs.has()
		p.replay(ctx, s, w)
	}
	p.schedule()
}

// replay makes the new worker the one we talk to, and brings it to what has been wanted
// since the file was written.
func (p *Proxy) replay(ctx context.Context, s *snapshot, w *loadedWorker) {
	old := p.info.Pid
	p.disconnect() // lets the old worker end
	p.epoch++
	p.structure, p.seq, _ = ParseGeneration(w.Generation)
	p.info = Info{Pid: w.Pid, Version: w.Version, Description: w.Generation}
	changed := false
	if w.conn != nil {
		p.conn = w.conn
		p.m.connected.Set(1)
		changed = p.identify(w.info)
		p.replaced(old)
	}
	for name := range w.Loaded.Backends {
		p.backend(name) // it may have been removed meanwhile
	}
	var again []string
	for name, bs := range p.backends {
		if b := w.Loaded.Backends[name]; b != nil && (bs.touched > s.clock || bs.want != s.wanted[name] || drains(b)) {
			again = append(again, name)
		}
		bs.have, bs.file = w.have[name], nil
		p.count(bs, bs.have)
	}
	slices.Sort(again)
	for name := range w.maps {
		if p.maps[name] == nil {
			p.maps[name] = new(mapState)
		}
	}
	for name, ms := range p.maps {
		ms.have = w.maps[name]
	}
	_, keys := p.touchedSince(s.clock)
	p.know(s, w)
	if changed { // HAProxy was upgraded by this reload: it has what its predecessor understood
		p.forget(ReasonStructure)
	}
	p.arrived(LaneSlow, s.waited)
	if p.conn == nil {
		p.reconnect() // which compares everything
		return
	}
	if _, err := p.converge(ctx, again, keys); err != nil {
		p.log.Warn("HAProxy refused part of what is wanted", "err", err)
	}
}

// drains reports whether b has servers whose state the file cannot say.
func drains(b *Backend) bool {
	return slices.ContainsFunc(b.Servers, func(s Server) bool { return s.State == Drain })
}

// know notes that the worker has loaded w.Loaded, made from what was wanted in s, and
// compares with it what is wanted now.
func (p *Proxy) know(s *snapshot, w *loadedWorker) {
	p.known, p.ourFile, p.proven, p.provenText = true, true, s.renderer, s.template
	clear(p.dirty)
	p.certs.missing = w.missing
	p.sawCerts(w.certs)
	if p.renderer != s.renderer && p.template != s.template {
		p.mark(part{partTemplate, ""}, ReasonTemplate)
	}
	p.global.loaded, p.global.written = s.global, w.Loaded.Global
	knowSections(p.userlists, s.config.Userlists, w.Loaded.Userlists)
	knowSections(p.frontends, s.config.Frontends, w.Loaded.Frontends)
	p.binds = []Bind{} // not nil, even when there are none: nil has the file parsed for them
	for _, f := range w.Loaded.Frontends {
		p.binds = append(p.binds, f.Binds...)
	}
	for name, bs := range p.backends {
		asked, got := s.config.Backends[name], w.Loaded.Backends[name]
		bs.loaded, bs.refused = got, nil
		switch {
		case got != nil && got == asked:
			bs.loaded = s.wanted[name] // as the caller knows it, before slots were chosen
		case asked != nil:
			bs.refused = s.wanted[name]
		}
		if got != nil {
			p.binds = append(p.binds, got.Binds...)
		}
	}
	for name, ms := range p.maps {
		_, ms.loaded = w.Loaded.Maps[name]
	}
	p.rejected = w.Rejected
	p.m.rejected.Set(float64(len(w.Rejected)))
	for _, note := range w.Notes {
		if !slices.Contains(p.notes, note) {
			p.log.Warn("configuration changed to fit HAProxy", "note", note)
		}
	}
	p.notes = w.Notes
	p.m.unchecked.Set(float64(w.Unchecked))
	p.lastError = ""
	p.judgeAll()
	p.watchPorts()
}

// knowSections notes for each section what was asked for and what was loaded.
func knowSections(all map[string]*sectionState, asked, got map[string]*Section) {
	for name := range got {
		if all[name] == nil {
			all[name] = new(sectionState)
		}
	}
	for name, st := range all {
		st.loaded, st.refused = got[name], nil
		if got[name] != asked[name] {
			st.refused = asked[name]
		}
	}
}

// reloadFailed keeps what runs: the reloader has put the old file back, and the old worker
// serves on.
func (p *Proxy) reloadFailed(s *snapshot, err error) {
	p.waiting[LaneSlow] = append(s.waited, p.waiting[LaneSlow]...)
	p.unsaved = true // changes since the old file was written
	p.lastError = err.Error()
	p.log.Error("reload failed, HAProxy runs on as it was", "reasons", s.reasons, "err", err,
		"retry", time.Until(p.pace.next(false)).Round(time.Millisecond))
	if s.renderer == p.renderer && p.renderer != p.proven && p.proven != nil && p.known {
		// The new template may be what HAProxy refused. Nothing else shall wait for it.
		p.log.Error("template given up, the last good one is used")
		p.renderer, p.template = p.proven, p.provenText
		p.mark(part{partTemplate, ""}, "")
		p.fresh = true
	}
}
