package discovery

import (
	"context"
	"errors"
	"time"
)

// again is how long a Marathon without a stream is left at that.
const again = 10 * time.Minute

// listen runs the transport until ctx ends.
func (l *loop) listen(ctx context.Context) {
	w := l.w
	s := &listener{
		client: w.client, out: l.inputs, log: w.log, kick: w.kick, streamOnly: w.opts.Transport == TransportSSE,
		heard: func(at time.Time) {
			w.lastByte.Store(at.UnixMilli())
			w.metrics.heard(at)
		},
	}
	switch w.opts.Transport {
	case TransportPoll:
		s.poll(ctx)
	default:
		for ctx.Err() == nil {
			if err := s.sse(ctx); errors.Is(err, errNoStream) {
				w.log.Warn("this Marathon has no event stream; polling", "err", err)
				other, cancel := context.WithTimeout(ctx, again)
				s.poll(other)
				cancel()
			}
		}
	}
}
