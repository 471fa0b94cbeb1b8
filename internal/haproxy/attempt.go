package haproxy

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// attempt is a configuration on its way into HAProxy, with what had to be changed.
type attempt struct {
	req      *ReloadRequest
	cfg      *Config
	out      *Rendered
	cuts     map[string]cut      // by app
	rejected map[string]Rejected // by app, or by section for the bridge's own
	busy     map[string]bool     // apps that are cut for what another reload may find changed
	noBinds  map[string][]Bind   // listeners of the bridge's own sections that cannot be had
	changed  bool                // cfg is not the requested one any more
	notes    []string

	unchecked int // servers whose health checks were dropped
}

func newAttempt(req *ReloadRequest) *attempt {
	return &attempt{req: req, cuts: make(map[string]cut), rejected: make(map[string]Rejected),
		busy: make(map[string]bool), noBinds: make(map[string][]Bind)}
}

// render renders what is left after the cuts. Apps whose values cannot be written are cut.
func (r *Reloader) render(a *attempt) error {
	if len(a.cuts) == 0 && len(a.noBinds) == 0 && a.req.Rendered != nil {
		a.cfg, a.out = a.req.Config, a.req.Rendered
		return nil
	}
	for {
		a.cfg = withoutBinds(without(a.req.Config, r.good, a.cuts), a.noBinds)
		a.changed = a.cfg != a.req.Config
		var err error
		if a.out, err = a.req.Renderer.Render(a.cfg); err == nil {
			return nil
		}
		progress := false
		for _, e := range renderErrors(err) {
			progress = e.Owner != "" && a.reject(e.Owner, Rejected{Owner: e.Owner, Section: e.Section, Reason: Refused, Detail: e.Detail}) || progress
		}
		if !progress {
			return err
		}
	}
}

// renderErrors takes joined errors apart.
func renderErrors(err error) []*RenderError {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var out []*RenderError
		for _, e := range joined.Unwrap() {
			out = append(out, renderErrors(e)...)
		}
		return out
	}
	if e, ok := errors.AsType[*RenderError](err); ok {
		return []*RenderError{e}
	}
	return nil
}

// reject cuts owner's part one step further and reports whether there was one left.
func (a *attempt) reject(owner string, why Rejected) bool {
	if owner == "" || a.cuts[owner] == cutAll {
		return false
	}
	if a.cuts[owner]++; a.cuts[owner] == cutToGood {
		a.rejected[owner] = why // what is wrong with the last good form is of less interest
	}
	return true
}

func (a *attempt) verdicts() []Rejected {
	out := slices.Collect(maps.Values(a.rejected))
	slices.SortFunc(out, func(x, y Rejected) int { return strings.Compare(x.Owner, y.Owner) })
	return out
}

// preflight cuts the apps that cannot have what they ask for: the name or a port of a
// section of the operator's own, or a port that another process holds. Of the bridge's own
// sections it takes out the listeners. It reports whether there was anything.
func (a *attempt) preflight() (found bool, err error) {
	if len(a.out.foreign.names) == 0 && !a.addsBinds() {
		return false, nil
	}
	old, theirs := indexBinds(a.req.OldBinds), indexBinds(a.out.foreign.binds)
	see := func(s *Section) {
		if a.out.foreign.names[s.Name] && s.Kind != KindUserlist {
			detail := fmt.Sprintf("haproxy.cfg has a section %s of the operator's own", s.Name)
			if found = true; !a.reject(s.Owner, Rejected{Owner: s.Owner, Section: s.Name, Reason: Refused, Detail: detail}) {
				err = errors.Join(err, errors.New(detail))
			}
			return
		}
		for _, b := range s.Binds {
			busy := theirs.conflict(b)
			if busy == nil {
				busy = testBind(b, old)
			}
			if busy == nil {
				continue
			}
			found = true
			why := Rejected{Owner: s.Owner, Section: s.Name, Reason: PortBusy, Detail: busy.Error()}
			if s.Owner == "" {
				a.noBinds[s.Name] = append(a.noBinds[s.Name], b)
				a.rejected[s.Name] = why
				continue
			}
			a.reject(s.Owner, why)
			a.busy[s.Owner] = true
			return
		}
	}
	for _, s := range sortedSections(a.cfg.Frontends, func(s *Section) *Section { return s }) {
		see(s)
	}
	for _, b := range sortedSections(a.cfg.Backends, func(b *Backend) *Section { return &b.Section }) {
		see(&b.Section)
	}
	return found, err
}

// addsBinds reports whether there is a listener that the running worker does not have.
func (a *attempt) addsBinds() bool {
	old := make(map[Bind]bool, len(a.req.OldBinds))
	for _, b := range a.req.OldBinds {
		old[b] = true
	}
	return slices.ContainsFunc(a.out.Binds, func(b Bind) bool { return !old[b] })
}

// withoutBinds is cfg without some listeners of frontends.
func withoutBinds(cfg *Config, noBinds map[string][]Bind) *Config {
	if len(noBinds) == 0 {
		return cfg
	}
	out := *cfg
	out.Frontends = maps.Clone(cfg.Frontends)
	for name, binds := range noBinds {
		if s := cfg.Frontends[name]; s != nil {
			rest := *s
			rest.Binds = slices.DeleteFunc(slices.Clone(s.Binds), func(b Bind) bool { return slices.Contains(binds, b) })
			out.Frontends[name] = &rest
		}
	}
	return &out
}

// fitFiles makes a's configuration fit into HAProxy's file descriptors.
func (r *Reloader) fitFiles(a *attempt, have present) error {
	// A HAProxy that we start has our limits. Ulimit-n of `show info` does not stand in for an
	// unreadable one: it is what the last configuration needed, not what the next may have.
	limit := hardLimit(cmp.Or(have.pid, os.Getpid()))
	if limit == 0 && !r.saidNoLimit {
		r.saidNoLimit = true
		r.log.Warn("HAProxy's limit of open files cannot be read, so that configurations are not fitted to it", "pid", have.pid)
	}
	maxConn := cmp.Or(a.cfg.Global.MaxConn, keptMaxConn(a.cfg.Global.KeptGlobal))
	b := fit(limit, maxConn, listeners(a.out.Binds)+listeners(a.out.foreign.binds), a.out.Checked)
	if b == (budget{}) {
		return nil
	}
	if b.maxConn > 0 {
		a.notes = append(a.notes, fmt.Sprintf("maxconn lowered from %d to %d: HAProxy may open %d files", maxConn, b.maxConn, limit))
	}
	if b.dropChecks {
		a.unchecked = a.out.Checked
		a.notes = append(a.notes, fmt.Sprintf("health checks of %d servers switched off: HAProxy may open %d files", a.out.Checked, limit))
	}
	a.cfg = withBudget(a.cfg, b)
	a.changed = true
	out, err := a.req.Renderer.Render(a.cfg)
	if err != nil {
		return err
	}
	a.out = out
	return nil
}
