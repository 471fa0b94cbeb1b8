package bridge

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"bridged/internal/discovery"
	"bridged/internal/haproxy"
)

// Rendering is what cfg makes of some services, without a HAProxy to bring there.
type Rendering struct {
	*haproxy.Rendered
	Config   *haproxy.Config
	Rejected []Rejection

	renderer *haproxy.Renderer
}

// Render translates services as the daemon does and renders them for a HAProxy that
// can caps. A service whose section cannot be written is rejected and the others go
// on. template is the operator's, "" for the built-in one.
func Render(cfg *Config, template string, services []*discovery.Service, caps haproxy.Capabilities, now time.Time) (*Rendering, error) {
	renderer, err := haproxy.NewRenderer(template, caps)
	if err != nil {
		return nil, cfg.Problem("haproxy.template", badTemplate, err)
	}
	t := NewTranslator(TranslateOptionsOf(cfg, nil, nil))
	change := t.Apply(&discovery.Update{Services: services, Full: true}, now)
	change.Global = GlobalOf(cfg)
	c := configOf(&change)
	out := &Rendering{Config: c, Rejected: t.Rejected(), renderer: renderer}
	for {
		out.Rendered, err = renderer.Render(c)
		if err == nil {
			return out, nil
		}
		removed := false
		for _, re := range renderErrors(err) {
			if re.Owner == "" {
				continue
			}
			out.Rejected = append(out.Rejected, Rejection{App: re.Owner, Reason: ReasonBadApp, Detail: re.Detail, Since: now})
			removed = dropOwner(c, re.Owner) || removed
		}
		if !removed {
			return nil, fmt.Errorf("render haproxy.cfg: %w", err)
		}
	}
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

// renderErrors are the RenderErrors that err joins.
func renderErrors(err error) []*haproxy.RenderError {
	if re, ok := err.(*haproxy.RenderError); ok { //nolint:errorlint // the tree is walked here
		return []*haproxy.RenderError{re}
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // as above
		var all []*haproxy.RenderError
		for _, e := range joined.Unwrap() {
			all = append(all, renderErrors(e)...)
		}
		return all
	}
	if inner := errors.Unwrap(err); inner != nil {
		return renderErrors(inner)
	}
	return nil
}

// dropOwner takes the sections of an app out of c and reports whether there were any.
func dropOwner(c *haproxy.Config, owner string) (dropped bool) {
	for name, s := range c.Userlists {
		if s.Owner == owner {
			delete(c.Userlists, name)
			dropped = true
		}
	}
	for name, s := range c.Frontends {
		if s.Owner == owner {
			delete(c.Frontends, name)
			dropped = true
		}
	}
	for name, b := range c.Backends {
		if b.Owner == owner {
			delete(c.Backends, name)
			dropped = true
		}
	}
	return dropped
}
