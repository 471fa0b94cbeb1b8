package bridge

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"bridged/internal/discovery"
)

// source is what updates come from: the watcher of the only Marathon, or those of
// several, merged. It ends when stopped, and sends what its run returned.
type source struct {
	watchers []*discovery.Watcher // in the order of the configuration
	members  [][]string           // URLs of each
	updates  <-chan *discovery.Update
	run      func(context.Context) error
	registry *prometheus.Registry // of this source alone: it goes with it

	stop  context.CancelFunc
	ended chan error // capacity 1
}

// DiscoveryOptions are what it takes to ask the Marathons of c, one for each.
func (c *Config) DiscoveryOptions() ([]discovery.Options, error) {
	var all []discovery.Options
	for _, m := range c.sources() {
		urls, err := c.urls(&m)
		if err != nil {
			return nil, err
		}
		callback, err := m.callback()
		if err != nil {
			return nil, c.Problem("marathon.callback", err.Error(), nil)
		}
		all = append(all, discovery.Options{
			URLs:      urls,
			Source:    m.Name,
			Transport: discovery.Transport(m.Transport),
			Callback:  callback,
			Auth:      discovery.AuthOptions{BasicFile: m.Auth.BasicFile, TokenFile: m.Auth.TokenFile, DCOSFile: m.Auth.DCOSFile},
			TLS:       discovery.TLSOptions{CAFile: m.TLS.CAFile, CertFile: m.TLS.CertFile, KeyFile: m.TLS.KeyFile, Insecure: m.TLS.Insecure},
			Resync:    m.Resync,
		})
	}
	return all, nil
}

// newSource makes the watchers of cfg's Marathons. Nothing is connected before it runs.
func (b *Bridge) newSource(cfg *Config, options []discovery.Options) (*source, error) {
	s := &source{registry: prometheus.NewRegistry()}
	dir := b.stateDir(cfg)
	for i := range options {
		o := &options[i]
		o.StateDir, o.Resolver, o.Logger, o.Registerer = dir, b.opts.Resolver, b.opts.Logger, s.registry
		s.members = append(s.members, o.URLs)
	}
	if len(options) == 1 && options[0].Source == "" {
		w, err := discovery.NewWatcher(options[0])
		if err != nil {
			return nil, cfg.Problem("marathon", "cannot be followed", err)
		}
		s.watchers, s.updates, s.run = []*discovery.Watcher{w}, w.Updates(), w.Run
		return s, nil
	}
	several, err := discovery.NewSources(options...)
	if err != nil {
		return nil, cfg.Problem(marathonsKey, "cannot be followed", err)
	}
	s.watchers, s.updates, s.run = several.Watchers(), several.Updates(), several.Run
	return s, nil
}

// start runs s until it is stopped or ctx ends.
func (s *source) start(ctx context.Context) {
	ctx, s.stop = context.WithCancel(ctx)
	s.ended = make(chan error, 1)
	go func() { s.ended <- s.run(ctx) }()
}

// end stops s and waits for it.
func (s *source) end() {
	s.stop()
	<-s.ended
}

// follow makes s the source of updates, in place of the one before.
func (b *Bridge) follow(ctx context.Context, s *source) {
	if b.source != nil {
		b.source.end()
	}
	s.start(ctx)
	b.source = s
	b.current.source.Store(s.registry)
}

// setMembers tells running watchers their Marathons' members.
func (s *source) setMembers(options []discovery.Options) error {
	for i, o := range options {
		if slices.Equal(s.members[i], o.URLs) {
			continue
		}
		if err := s.watchers[i].SetURLs(o.URLs); err != nil {
			return err
		}
		s.members[i] = o.URLs
	}
	return nil
}

// urls are the members of all Marathons.
func (s *source) urls() []string { return slices.Concat(s.members...) }

// statuses are those of each Marathon.
func (s *source) statuses() []discovery.Status {
	all := make([]discovery.Status, len(s.watchers))
	for i, w := range s.watchers {
		all[i] = w.Status()
	}
	return all
}

// overall is one status for all: connected and synced when each is, with the sums of
// what they have and the first trouble of any.
func overall(all []discovery.Status) discovery.Status {
	sum := all[0]
	if len(all) == 1 {
		return sum
	}
	names := []string{sum.Source}
	if sum.Err != "" {
		sum.Err = sum.Source + ": " + sum.Err
	}
	for _, s := range all[1:] {
		names = append(names, s.Source)
		sum.Connected = sum.Connected && s.Connected
		sum.Synced = sum.Synced && s.Synced
		sum.Apps += s.Apps
		sum.Services += s.Services
		sum.Tasks += s.Tasks
		sum.Waiting += s.Waiting
		if s.LastEvent.After(sum.LastEvent) {
			sum.LastEvent = s.LastEvent
		}
		if s.LastByte.Before(sum.LastByte) {
			sum.LastByte = s.LastByte // the one that was silent for longest
		}
		if sum.Held == "" && s.Held != "" {
			sum.Held, sum.HeldSince = s.Source+": "+s.Held, s.HeldSince
		}
		if sum.Err == "" && s.Err != "" {
			sum.Err = s.Source + ": " + s.Err
		}
	}
	sum.Source = strings.Join(names, ",")
	return sum
}

// current collects the metrics of the source that runs, whichever it is. It is registered
// once: a registry can neither change a collector's labels nor forget it by name.
type current struct {
	source atomic.Pointer[prometheus.Registry]
}

// Describe sends nothing: what is collected differs from source to source.
func (c *current) Describe(chan<- *prometheus.Desc) {}

func (c *current) Collect(ch chan<- prometheus.Metric) {
	if reg := c.source.Load(); reg != nil {
		reg.Collect(ch)
	}
}

// named are the statuses when there are several, nil else.
func named(all []discovery.Status) []discovery.Status {
	if all[0].Source == "" {
		return nil
	}
	return all
}

// marathonTrouble lists what keeps Marathons from being followed.
func marathonTrouble(all []discovery.Status) (reasons []string) {
	for _, m := range all {
		name := "Marathon"
		if m.Source != "" {
			name += " " + m.Source
		}
		because := func(text string) string {
			if m.Err != "" {
				text += ": " + m.Err
			}
			return name + text
		}
		switch {
		case !m.Synced:
			reasons = append(reasons, because(" was not read yet"))
		case !m.Connected:
			reasons = append(reasons, because(" is not connected"))
		}
		if m.Held != "" {
			reasons = append(reasons, fmt.Sprintf("an answer of %s is held back: %s", name, m.Held))
		}
	}
	return reasons
}
