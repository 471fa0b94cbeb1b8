package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"bridged/internal/discovery"
	"bridged/internal/haproxy"
)

// Rendering is what a configuration makes of some services, without a HAProxy to bring
// it to.
type Rendering struct {
	Config *haproxy.Config // without what was refused

	Rejected []Rejection        // by the translation
	Refused  []haproxy.Rejected // by HAProxy

	// Unchecked: there is no haproxy on this machine to ask.
	Unchecked bool

	renderer *haproxy.Renderer
}

// Render translates services as the daemon does, for a HAProxy that can caps, and lets
// the haproxy of cfg judge the result. A service that cannot be served as its app asks is
// left out and the others go on. template is the operator's, "" for the built-in one. An
// error is a configuration that is refused whatever apps are in it.
func Render(ctx context.Context, cfg *Config, template string, services []*discovery.Service, caps haproxy.Capabilities, now time.Time) (*Rendering, error) {
	renderer, err := haproxy.NewRenderer(template, caps)
	if err != nil {
		return nil, templateProblem(cfg, err)
	}
	o := TranslateOptionsOf(cfg)
	o.MarathonLB.Exporter = cfg.Dialect == DialectMarathonLB && HasExporter(ctx, cfg.HAProxy.Binary)
	t := NewTranslator(o)
	change := t.Apply(&discovery.Update{Services: services, Full: true}, now)
	change.Global = GlobalOf(cfg, netip.AddrPort{})
	r := &Rendering{Rejected: t.Rejected(), renderer: renderer}
	r.Config, _, r.Refused, err = haproxy.Isolate(ctx, renderer, configOf(&change), cfg.HAProxy.Binary)
	if errors.Is(err, haproxy.ErrNoBinary) {
		r.Unchecked = true
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("render haproxy.cfg: %w", err)
	}
	return r, nil
}

// Text is one file that HAProxy accepts on a bare machine. With a dir, maps are files
// below it, returned by path for the caller to write; without one they are written as
// rules.
func (r *Rendering) Text(dir string) (text []byte, files map[string][]byte, err error) {
	return r.renderer.Standalone(r.Config, dir)
}

// configOf is the Config that a first change asks for.
func configOf(change *haproxy.Change) *haproxy.Config {
	c := &haproxy.Config{
		Global:    change.Global,
		Userlists: change.Userlists,
		Frontends: change.Frontends,
		Backends:  change.Backends,
		Maps:      make(map[string]*haproxy.Map, len(change.Maps)),
	}
	for name, entries := range change.Maps {
		c.Maps[name] = &haproxy.Map{Kind: cmp.Or(change.MapKinds[name], "str"), Entries: entries}
	}
	return c
}

// templateProblem says what is wrong with the operator's template.
func templateProblem(cfg *Config, err error) error {
	if te, ok := errors.AsType[*haproxy.TemplateError](err); ok {
		err = te // without what was tried when it was found
	}
	return cfg.Problem("haproxy.template", "cannot be used; correct it, or remove the key for the built-in one", err)
}
