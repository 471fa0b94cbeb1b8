package discovery

import (
	"context"
	"errors"
	"time"
)

// streamAgain is how long a Marathon without a stream is left at that: it may be
// upgraded.
const streamAgain = 10 * time.Minute

// listen runs the transport until ctx ends.
func (l *loop) listen(ctx context.Context) {
	w := l.w
	s := &listener{
		client: w.client, out: l.inputs, log: w.log, kick: w.kick,
		streamOnly: w.opts.Transport == TransportSSE, resolver: l.addresses.resolver,
		heard: func(at time.Time) {
			w.lastByte.Store(at.UnixMilli())
			w.metrics.heard(at)
		},
	}
	// Whatever is in use, another transport is tried when it ends before ctx does.
	for ctx.Err() == nil {
		switch w.opts.Transport {
		case TransportPoll:
			s.poll(ctx)
		case TransportCallback:
			l.callbacks(ctx, s)
		default:
			if err := s.sse(ctx); errors.Is(err, errNoStream) {
				other, cancel := context.WithTimeout(ctx, streamAgain)
				if w.opts.Callback.Listen != "" {
					w.log.Warn("this Marathon has no event stream; using callbacks")
					l.callbacks(other, s)
				} else {
					w.log.Warn("this Marathon has no event stream; polling, as no callback listener is configured")
					s.poll(other)
				}
				cancel()
			}
		}
	}
}

// callbacks runs the callback transport, and polls for a while when it can't listen.
func (l *loop) callbacks(ctx context.Context, s *listener) {
	c := &callbacks{listener: s, opts: l.w.opts.Callback, secret: secretIn(l.w.opts.StateDir, l.w.log)}
	if err := c.run(ctx); err != nil && ctx.Err() == nil {
		l.w.log.Error("no callbacks; polling", "err", err)
		again, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		s.poll(again)
	}
}
