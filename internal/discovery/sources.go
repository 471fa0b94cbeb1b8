package discovery

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
)

// Sources watches several Marathons as one. Each has its own members, credentials and
// faults; one that is away keeps its part of the picture and no other. Keys tell them
// apart by Options.Source.
type Sources struct {
	watchers []*Watcher
	updates  chan *Update
}

// NewSources makes a Watcher for each of o, whose Source must be different names. Each
// has metrics of its own, with the label source.
func NewSources(o ...Options) (*Sources, error) {
	s := &Sources{updates: make(chan *Update)}
	names := map[string]bool{}
	for i, o := range o {
		if o.Source == "" || names[o.Source] {
			return nil, fmt.Errorf("marathons[%d]: source: want a name that no other has, have %q", i, o.Source)
		}
		names[o.Source] = true
		if o.Registerer != nil {
			o.Registerer = prometheus.WrapRegistererWith(prometheus.Labels{"source": o.Source}, o.Registerer)
		}
		w, err := NewWatcher(o)
		if err != nil {
			return nil, fmt.Errorf("marathons[%d] (%s): %w", i, o.Source, err)
		}
		s.watchers = append(s.watchers, w)
	}
	return s, nil
}

// Watchers are the single ones, in the order of the options.
func (s *Sources) Watchers() []*Watcher { return s.watchers }

// Updates is like that of a Watcher. What a source says is sent as soon as it is in
// sync; the Full update comes when the last one is, so that what was there before is
// not taken for gone while one of them is away.
func (s *Sources) Updates() <-chan *Update { return s.updates }

// Run runs all watchers until ctx ends.
func (s *Sources) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	in := make(chan *Update)
	for _, w := range s.watchers {
		group.Go(func() error { return w.Run(ctx) })
		group.Go(func() error {
			for {
				select {
				case u := <-w.Updates():
					select {
					case in <- u:
					case <-ctx.Done():
						return nil
					}
				case <-ctx.Done():
					return nil
				}
			}
		})
	}
	group.Go(func() error {
		s.merge(ctx, in)
		return nil
	})
	return group.Wait()
}

func (s *Sources) merge(ctx context.Context, in <-chan *Update) {
	p := newPending()
	away := len(s.watchers)
	table := map[Key]*Service{} // until all are in sync
	for {
		var out chan<- *Update
		if p.update != nil {
			out = s.updates
		}
		select {
		case <-ctx.Done():
			return
		case out <- p.update:
			p.sent()
		case u := <-in:
			for _, sv := range u.Services {
				p.put(sv)
				if away > 0 {
					table[sv.Key] = sv
				}
			}
			for _, k := range u.Gone {
				p.remove(k)
				delete(table, k)
			}
			if !u.Received.IsZero() {
				p.heard(u.Received, u.Events)
			}
			if !u.Full {
				continue
			}
			if away--; away == 0 {
				full := newPending()
				full.open().Full = true
				for _, sv := range table {
					full.put(sv)
				}
				if old := p.update; old != nil {
					full.update.Received, full.update.Events = old.Received, old.Events
				}
				p, table = full, nil
			}
		}
	}
}
