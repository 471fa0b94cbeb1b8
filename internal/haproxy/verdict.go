package haproxy

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"maps"
	"slices"
	"strings"
)

// fingerprint is a hash of an app's part of a configuration.
type fingerprint [sha256.Size]byte

// unproven reports whether there is text in out that HAProxy has to judge and has not
// loaded before.
func (r *Reloader) unproven(out *Rendered) bool {
	return out.Unproven && slices.ContainsFunc(out.unprovenParts(), func(h fingerprint) bool { return !r.proven[h] })
}

func (out *Rendered) unprovenParts() []fingerprint {
	var parts []fingerprint
	if out.layout.unproven {
		parts = append(parts, out.layout.hash)
	}
	for _, p := range out.pieces {
		if p.unproven || out.layout.unproven {
			parts = append(parts, p.hash)
		}
	}
	return parts
}

// checkAndIsolate runs haproxy -c on a. When it is refused, the apps that are to blame are
// cut and true is returned; an error is a refusal that is no app's fault, or no verdict.
func (r *Reloader) checkAndIsolate(ctx context.Context, a *attempt) (found bool, err error) {
	err = r.check.check(ctx, a.out)
	refused, ok := errors.AsType[*CheckError](err)
	if !ok {
		return false, err // nil, or no verdict
	}
	text := strings.Split(string(a.out.Bytes("bridged-check", func(string) string { return "m" })), "\n")
	details := make(map[string][]string) // of apps whose lines HAProxy names
	for _, alert := range refused.alerts {
		for _, line := range alert.lines {
			owner := ownerOfLine(a.cfg, text, line)
			details[owner] = append(details[owner], alert.text)
		}
	}
	passes := func(cuts map[string]cut) (bool, error) {
		out, err := a.req.Renderer.Render(withoutBinds(without(a.req.Config, r.good, cuts), a.noBinds))
		if err != nil {
			return false, err
		}
		err = r.check.check(ctx, out)
		if _, ok := errors.AsType[*CheckError](err); ok {
			return false, nil
		}
		return err == nil, err
	}
	suspects := r.suspects(a, text, refused)
	for _, depth := range [...]cut{cutToGood, cutAll} {
		cutsFor := func(in []string) map[string]cut {
			cuts := maps.Clone(a.cuts)
			for _, owner := range suspects {
				if !slices.Contains(in, owner) {
					cuts[owner] = max(cuts[owner], depth)
				}
			}
			return cuts
		}
		bad, err := isolate(suspects, func(in []string) (bool, error) { return passes(cutsFor(in)) })
		if errors.Is(err, errNobody) && depth == cutToGood {
			continue // a last good form that is good no longer
		}
		if err != nil {
			return false, fmt.Errorf("%w: %w", refused, err)
		}
		for _, owner := range bad {
			a.cuts[owner] = max(a.cuts[owner], depth)
			detail := refused.detail()
			if named := details[owner]; named != nil {
				detail = strings.Join(named, "; ")
			}
			a.rejected[owner] = Rejected{Owner: owner, Section: sectionOf(a.cfg, owner), Reason: Refused, Detail: detail}
		}
		if err := r.render(a); err != nil {
			return false, err
		}
		return len(bad) > 0, nil
	}
	return false, refused
}

// suspects lists the apps that differ from what HAProxy has loaded last: what it took then
// is not to blame now. Those whose lines the verdict names come last, so that of several
// who fail only together they are the ones to go.
func (r *Reloader) suspects(a *attempt, text []string, refused *CheckError) []string {
	var before map[string]fingerprint
	if r.good != nil {
		before = fingerprints(a.req.Renderer, r.good)
	}
	changed := make(map[string]bool)
	for owner, now := range fingerprints(a.req.Renderer, a.cfg) {
		if a.cuts[owner] != cutAll && before[owner] != now {
			changed[owner] = true
		}
	}
	named := make(map[string]bool)
	for _, alert := range refused.alerts {
		for _, line := range alert.lines {
			if owner := ownerOfLine(a.cfg, text, line); changed[owner] {
				named[owner] = true
			}
		}
	}
	list := slices.Sorted(maps.Keys(changed))
	slices.SortStableFunc(list, func(x, y string) int {
		switch {
		case named[x] == named[y]:
			return 0
		case named[y]:
			return -1
		}
		return 1
	})
	return list
}

// ownerOfLine says whose section line number of text, from 1, is in.
func ownerOfLine(cfg *Config, text []string, number int) string {
	for i := min(number, len(text)) - 1; i >= 0; i-- {
		fields := strings.Fields(text[i])
		if len(fields) < 2 || !sectionKeywords[fields[0]] {
			continue
		}
		switch Kind(fields[0]) {
		case KindUserlist:
			if s := cfg.Userlists[fields[1]]; s != nil {
				return s.Owner
			}
		case KindFrontend:
			if s := cfg.Frontends[fields[1]]; s != nil {
				return s.Owner
			}
		case KindBackend, KindListen:
			if b := cfg.Backends[fields[1]]; b != nil {
				return b.Owner
			}
		}
		return ""
	}
	return ""
}

// sectionOf names the section of owner that a verdict is about, as far as it is one.
func sectionOf(cfg *Config, owner string) string {
	for _, b := range sortedSections(cfg.Backends, func(b *Backend) *Section { return &b.Section }) {
		if b.Owner == owner {
			return b.Name
		}
	}
	for _, s := range sortedSections(cfg.Frontends, func(s *Section) *Section { return s }) {
		if s.Owner == owner {
			return s.Name
		}
	}
	return ""
}

// fingerprints are hashes, by app, of all that HAProxy may refuse in its part: everything
// but the servers' addresses, states and weights.
func fingerprints(renderer *Renderer, cfg *Config) map[string]fingerprint {
	hashes := make(map[string]hash.Hash)
	of := func(owner string) hash.Hash {
		if hashes[owner] == nil {
			hashes[owner] = sha256.New()
		}
		return hashes[owner]
	}
	part := func(key any, s *Section, b *Backend) {
		for i, owner := range s.LineOwners {
			if owner != s.Owner && i < len(s.Lines) {
				fmt.Fprintf(of(owner), "line %q\n", s.Lines[i])
			}
		}
		h := of(s.Owner)
		p := renderer.sections[key]
		if p == nil {
			p, _ = renderer.renderSection(s, b)
		}
		if p != nil {
			h.Write(p.hash[:])
		} else {
			fmt.Fprintf(h, "%#v", *s) // cannot be written at all
		}
		if b == nil {
			return
		}
		options := make(map[string]bool)
		for i := range b.Servers {
			if server := &b.Servers[i]; server.Options != "" || server.Cookie != "" {
				options[server.Options+" "+server.Cookie] = true
			}
		}
		fmt.Fprintf(h, "%q\n", slices.Sorted(maps.Keys(options)))
	}
	for _, group := range []map[string]*Section{cfg.Userlists, cfg.Frontends} {
		for _, s := range sortedSections(group, func(s *Section) *Section { return s }) {
			part(s, s, nil)
		}
	}
	for _, b := range sortedSections(cfg.Backends, func(b *Backend) *Section { return &b.Section }) {
		part(b, &b.Section, b)
	}
	delete(hashes, "")
	out := make(map[string]fingerprint, len(hashes))
	for owner, h := range hashes {
		out[owner] = fingerprint(h.Sum(nil))
	}
	return out
}

// recall applies verdicts of earlier reloads to apps that have not changed since.
func (r *Reloader) recall(a *attempt) {
	if len(r.quarantine) == 0 {
		return
	}
	now := fingerprints(a.req.Renderer, a.req.Config)
	for owner, v := range r.quarantine {
		if now[owner] != v.fingerprint {
			delete(r.quarantine, owner)
			continue
		}
		a.cuts[owner], a.rejected[owner] = v.cut, v.rejected
	}
}

// remember keeps what a successful reload has taught. Busy ports are not among it: whoever
// holds one may go, so that they are tried each time.
func (r *Reloader) remember(a *attempt) {
	r.good = a.cfg
	clear(r.proven)
	for _, h := range a.out.unprovenParts() {
		r.proven[h] = true
	}
	if len(a.cuts) == 0 {
		return
	}
	now := fingerprints(a.req.Renderer, a.req.Config)
	for owner, c := range a.cuts {
		if !a.busy[owner] {
			r.quarantine[owner] = judgement{fingerprint: now[owner], cut: c, rejected: a.rejected[owner]}
		}
	}
}

// Isolate renders cfg and asks the haproxy program binary about it. Apps that cannot be
// written, or that it refuses, are left out: good is cfg without them, rendered, and
// rejected says why. An error is a configuration that no app is to blame for; ErrNoBinary
// comes with what could be rendered, unchecked.
func Isolate(ctx context.Context, renderer *Renderer, cfg *Config, binary string) (good *Config, out *Rendered, rejected []Rejected, err error) {
	r := &Reloader{check: checker{binary: binary}}
	a := newAttempt(&ReloadRequest{Config: cfg, Renderer: renderer})
	if err := r.render(a); err != nil {
		return nil, nil, nil, err
	}
	_, err = r.checkAndIsolate(ctx, a)
	return a.cfg, a.out, a.verdicts(), err
}
