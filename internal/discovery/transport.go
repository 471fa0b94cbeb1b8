package discovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"
)

// input is what a transport says to the Watcher, in the order in which it happened.
type input struct {
	attached *attachment
	events   []event
	bad      []*decodeError
	lost     *loss
}

// attachment is a source of events that works from now on.
type attachment struct {
	transport Transport
	base      *url.URL // whom to ask
	version   version
	text      string // version as Marathon writes it
	proxied   bool   // base is not the leader itself
	// barrier: an event of the stream itself will tell that the subscription is live.
	barrier bool
	// drop ends the stream, for a reason that only the Watcher sees.
	drop func(failure)
}

// loss is the end of an attachment, or an attempt that did not become one.
type loss struct {
	reason failure
	err    error
	had    bool // it was attached
}

// listener is the transport's side of the Watcher.
type listener struct {
	client *client
	out    chan<- input
	heard  func(time.Time) // bytes arrived
	log    *slog.Logger
	kick   <-chan struct{} // the members have changed

	streamOnly bool // there is no other transport to fall back to
	resolver   Resolver
}

// send reports whether it was taken before ctx ended.
func (l *listener) send(ctx context.Context, in input) bool {
	select {
	case l.out <- in:
		return true
	case <-ctx.Done():
		return false
	}
}

const (
	maxBatch = 64 // events handed over at once
	// proxyAfter is how long the leader may be out of reach until a member's proxy to
	// it will do.
	proxyAfter = 3 * time.Second
)

var errNoStream = errors.New("this Marathon has no event stream")

// sse attaches to the leader's stream again and again until ctx ends, or until Marathon
// says that it has no streams: errNoStream.
func (l *listener) sse(ctx context.Context) error {
	var pace retry
	var unreachable time.Time // since when the leader is
	for {
		began := time.Now()
		lost := l.stream(ctx, &unreachable)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(lost.err, errNoStream) && !l.streamOnly {
			return errNoStream
		}
		if !l.send(ctx, input{lost: lost}) {
			return ctx.Err()
		}
		// The first attempt after a stream that lived is made at once. A node that is
		// elected and not ready yet accepts and hangs up.
		if lost.had && time.Since(began) > time.Second {
			pace.reset()
			continue
		}
		if !l.wait(ctx, pace.pause(time.Now(), lost.reason)) {
			return ctx.Err()
		}
	}
}

// wait sleeps for d, or until the members change. It reports whether ctx goes on.
func (l *listener) wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-l.kick:
	case <-timer.C:
	}
	return true
}

// eventQuery asks for what is needed (1.3.7 and newer filter, older ignore it) and for
// plans without the groups (1.5.9 and newer).
var eventQuery = func() url.Values {
	q := url.Values{"plan-format": {"light"}}
	for t, name := range eventNames {
		if t := eventType(t); t != otherEvent && t != subscribed {
			q.Add("event_type", name)
		}
	}
	return q
}()

// stream makes one attempt: it finds the leader, attaches, and reads to the end.
func (l *listener) stream(ctx context.Context, unreachable *time.Time) *loss {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	fail := func(err error) *loss { return &loss{reason: classify(err), err: err} }

	leader, err := l.client.findLeader(ctx)
	if err != nil {
		return fail(err)
	}
	type profile struct {
		version version
		text    string
	}
	versions := make(chan profile, 1)
	go func() {
		v, text, err := l.client.version(ctx, leader)
		if err != nil && ctx.Err() == nil {
			l.log.Debug("ask Marathon for its version", "err", err)
		}
		versions <- profile{v, text}
	}()
	defer func() {
		cancel(nil)
		<-versions
	}()
	res, err := l.attach(ctx, leader)
	if err != nil && !errors.Is(err, errNoStream) {
		if _, answered := errors.AsType[*statusError](err); !answered {
			if unreachable.IsZero() {
				*unreachable = time.Now()
			}
			if time.Since(*unreachable) >= proxyAfter {
				for _, m := range l.client.urls() {
					if hostPort(m) == hostPort(leader) {
						continue
					}
					var viaErr error
					if res, viaErr = l.attach(ctx, m); viaErr == nil {
						leader, err = m, nil
						break
					}
				}
			}
			if err != nil {
				// A member answered who leads: asking it again is not free.
				return &loss{reason: failedElection, err: err}
			}
		}
	}
	if err != nil {
		return fail(err)
	}
	defer res.Body.Close()
	if res.Header.Get("X-Marathon-Via") == "" {
		*unreachable = time.Time{}
	}

	p := <-versions
	versions <- profile{}
	at := &attachment{
		transport: TransportSSE, base: leader, version: p.version, text: p.text, barrier: true,
		proxied: res.Header.Get("X-Marathon-Via") != "",
		drop:    func(f failure) { cancel(dropped(f)) },
	}
	if !l.send(ctx, input{attached: at}) {
		return fail(ctx.Err())
	}
	err = l.read(ctx, res.Body)
	lost := &loss{had: true, err: err, reason: classify(err)}
	if d, ok := errors.AsType[dropped](context.Cause(ctx)); ok {
		lost.reason, lost.err = failure(d), d
	} else if isTimeout(err) {
		lost.reason, lost.err = failedSilence, fmt.Errorf("no keep-alive for %v: %w", silence, err)
	}
	return lost
}

// dropped is the cause with which the Watcher ends a stream.
type dropped failure

func (d dropped) Error() string { return "stream given up: " + string(d) }

func isTimeout(err error) bool {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	netErr, ok := errors.AsType[net.Error](err)
	return ok && netErr.Timeout()
}

// attach opens the stream of base.
func (l *listener) attach(ctx context.Context, base *url.URL) (*http.Response, error) {
	res, err := l.client.get(ctx, true, base, "/v2/events", eventQuery)
	if err != nil {
		if status, ok := errors.AsType[*statusError](err); ok && status.code == http.StatusNotFound {
			return nil, fmt.Errorf("%w: %w", errNoStream, err)
		}
		return nil, fmt.Errorf("attach to %s: %w", base.Redacted(), err)
	}
	kind, _, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if err != nil || kind != "text/event-stream" {
		res.Body.Close()
		return nil, fmt.Errorf("attach to %s: content type %q: %w", base.Redacted(), clip(res.Header.Get("Content-Type")), errProtocol)
	}
	return res, nil
}

// read hands over what body holds, until its end. Events that came with one read are
// handed over together.
func (l *listener) read(ctx context.Context, body io.Reader) error {
	r := newEventReader(body)
	r.heard = l.heard
	for {
		var in input
		f, ok, err := r.next(true)
		for ; ok && err == nil; f, ok, err = r.next(false) {
			in.decode(f)
			if len(in.events)+len(in.bad) >= maxBatch {
				break
			}
		}
		if len(in.events)+len(in.bad) > 0 && !l.send(ctx, in) {
			return ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

func (in *input) decode(f frame) {
	var err error
	in.events, err = appendEvents(in.events, f)
	if bad, ok := errors.AsType[*decodeError](err); ok {
		in.bad = append(in.bad, bad)
	}
}
