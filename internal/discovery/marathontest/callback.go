package marathontest

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

// subscription is a callback URL to which each event is POSTed. Several are in
// flight at once, in no order; none is tried again.
type subscription struct {
	c    *Cluster
	url  string
	held map[*Injected]*held // guarded by the cluster's lock

	mu    sync.Mutex // guards what follows
	fails int        // in a row
	muted time.Time  // until when a bad receiver is skipped, from 0.14.1 on
}

func (s *subscription) place() (int, int) { return s.c.leader, 0 }

func (s *subscription) wire(ev *Event) []byte {
	if ev.heavy != nil {
		return ev.heavy
	}
	return ev.JSON
}

func (s *subscription) heldBy(f *Injected) *held {
	h := s.held[f]
	if h == nil {
		h = &held{}
		s.held[f] = h
	}
	return h
}

// enqueue posts an event. The cluster is locked, the POST is not.
func (s *subscription) enqueue(ev *Event, wire []byte, _ ending) {
	c := s.c
	if c.closed {
		return
	}
	s.mu.Lock()
	muted := time.Now().Before(s.muted)
	s.mu.Unlock()
	if muted {
		return
	}
	mutes := c.profile.since(0, 14, 1)
	if !bytes.HasPrefix(wire, []byte("{")) { // a fault that shapes SSE frames says nothing about callbacks
		wire = s.wire(ev)
	}
	c.busy++
	c.wg.Go(func() {
		ok := s.post(wire)
		c.lock()
		defer c.unlock()
		c.busy--
		s.mu.Lock()
		defer s.mu.Unlock()
		if ok {
			s.fails = 0
		} else if s.fails++; mutes {
			s.muted = time.Now().Add(time.Second << min(s.fails, 10))
		}
	})
}

func (s *subscription) post(body []byte) bool {
	ctx, cancel := context.WithTimeout(s.c.ctx, 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return false
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json")
	carrier := s.c.opts.Callback
	if carrier == nil {
		carrier = s.c.callbacks
	}
	answer, err := carrier.RoundTrip(r)
	if err != nil {
		return false
	}
	defer answer.Body.Close()
	io.Copy(io.Discard, io.LimitReader(answer.Body, 1<<20)) // for the connection to be used again
	return answer.StatusCode/100 == 2
}

// Subscriptions are the registered callback URLs.
func (c *Cluster) Subscriptions() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var urls []string
	for _, s := range c.subscriptions {
		urls = append(urls, s.url)
	}
	return urls
}

// Forget drops all callback subscriptions, as when ZooKeeper lost them.
func (c *Cluster) Forget() {
	c.lock()
	defer c.unlock()
	c.subscriptions = nil
}

// subscriptionResource answers /v2/eventSubscriptions. The cluster is locked.
func (c *Cluster) subscriptionResource(r *http.Request) answer {
	if c.opts.NoCallbacks {
		return messageAnswer(http.StatusBadRequest, "http event callback system is not running on this Marathon instance. Please re-start this instance with \"--event_subscriber http_callback\".")
	}
	target := r.URL.Query().Get("callbackUrl")
	if r.Method != http.MethodGet {
		if u, err := url.Parse(target); err != nil || u.Host == "" {
			return messageAnswer(http.StatusBadRequest, "callbackUrl must be an absolute URL")
		}
	}
	event := func(kind string) []byte {
		o := newObject(256)
		o.str("clientIp", remoteAddress(r))
		o.str("callbackUrl", target)
		at := stamp(time.Now())
		o.str("eventType", kind)
		o.str("timestamp", at)
		body := o.end()
		c.deliver(&Event{Type: kind, At: c.now(), JSON: body})
		return body
	}
	known := slices.ContainsFunc(c.subscriptions, func(s *subscription) bool { return s.url == target })
	switch r.Method {
	case http.MethodGet:
		var urls [][]byte
		for _, s := range c.subscriptions {
			urls = append(urls, appendQuoted(nil, s.url))
		}
		return jsonAnswer(http.StatusOK, member("callbackUrls", array(urls...)))
	case http.MethodPost:
		if !known {
			c.subscriptions = append(c.subscriptions, &subscription{c: c, url: target, held: make(map[*Injected]*held)})
		}
		return jsonAnswer(http.StatusOK, event("subscribe_event"))
	case http.MethodDelete:
		body := event("unsubscribe_event")
		c.subscriptions = slices.DeleteFunc(c.subscriptions, func(s *subscription) bool { return s.url == target })
		return jsonAnswer(http.StatusOK, body)
	}
	return answer{status: http.StatusMethodNotAllowed}
}
