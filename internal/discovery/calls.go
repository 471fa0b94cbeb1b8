package discovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	marathon "github.com/gambol99/go-marathon"
)

// call runs fn with go-marathon's client for one member, for the small questions that
// it asks well: leader, info, subscriptions. It is used one call at a time, because it
// knows no context, and because a host that fails it once is pinged by a goroutine
// that nothing stops: errors and 5xx are therefore kept from it and returned here.
func (c *client) call(ctx context.Context, base *url.URL, fn func(marathon.Marathon) error) error {
	rest, _, err := c.clients()
	if err != nil {
		return err
	}
	u := *base
	u.User = nil
	t := &callTransport{ctx: ctx, next: rest.Transport}
	m, err := marathon.NewClient(marathon.Config{
		URL:        u.String(),
		HTTPClient: &http.Client{Transport: t, CheckRedirect: rest.CheckRedirect},
	})
	if err != nil {
		return fmt.Errorf("%s: %w", base.Redacted(), err)
	}
	switch err := fn(m); {
	case t.err != nil:
		return t.err
	case errors.Is(err, marathon.ErrInvalidResponse):
		return fmt.Errorf("%s: %w", base.Redacted(), errProtocol)
	case err != nil:
		return fmt.Errorf("%s: %w", base.Redacted(), err)
	}
	return nil
}

// callTransport gives requests a context and turns what go-marathon must not see into
// an answer that it gives up on at once.
type callTransport struct {
	ctx  context.Context
	next http.RoundTripper
	err  error // what really happened
}

// maxCall bounds the answers of calls: go-marathon reads them whole.
const maxCall = 1 << 20

func (t *callTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	// An empty body with a reader of its own would keep 401 from being retried.
	if req.ContentLength == 0 {
		req.Body = http.NoBody
	}
	res, err := t.next.RoundTrip(req.WithContext(t.ctx))
	if err == nil && res.StatusCode >= 300 && res.StatusCode < 400 {
		return res, nil
	}
	var body []byte
	if err == nil {
		body, err = io.ReadAll(io.LimitReader(res.Body, maxCall))
		res.Body.Close()
	}
	if err == nil && res.StatusCode >= 400 {
		err = &statusError{url: req.URL.Redacted(), code: res.StatusCode, status: res.Status}
	}
	if err != nil {
		t.err = err
		return &http.Response{
			StatusCode: http.StatusBadRequest, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: http.Header{}, Body: http.NoBody, Request: req,
		}, nil
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	return res, nil
}

// findLeader asks every member at once who leads. The first good answer counts.
func (c *client) findLeader(ctx context.Context) (*url.URL, error) {
	ctx, cancel := context.WithTimeout(ctx, headerTimeout)
	defer cancel()
	members := c.urls()
	type result struct {
		leader *url.URL
		err    error
	}
	results := make(chan result, len(members))
	for _, m := range members {
		go func() {
			var name string
			err := c.call(ctx, m, func(api marathon.Marathon) (err error) {
				name, err = api.Leader()
				return err
			})
			var u *url.URL
			if err == nil {
				u, err = c.resolveLeader(name, m)
			}
			results <- result{u, err}
		}()
	}
	var leader *url.URL
	var errs []error
	for range members {
		r := <-results
		if r.err == nil && leader == nil {
			leader = r.leader
			cancel() // the others end soon
		}
		if r.err != nil {
			errs = append(errs, r.err)
		}
	}
	if leader != nil {
		return leader, nil
	}
	return nil, errors.Join(errs...)
}

// version asks base which Marathon it is; zero when it does not say.
func (c *client) version(ctx context.Context, base *url.URL) (v version, text string, err error) {
	ctx, cancel := context.WithTimeout(ctx, headerTimeout)
	defer cancel()
	err = c.call(ctx, base, func(api marathon.Marathon) error {
		info, err := api.Info()
		if err == nil {
			text = info.Version
		}
		return err
	})
	return parseVersion(text), text, err
}

// subscribe registers url with Marathon's callbacks, which is idempotent, and removes
// those that stale says are ours and no longer served.
func (c *client) subscribe(ctx context.Context, base *url.URL, callback string, stale func(string) bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*headerTimeout)
	defer cancel()
	return c.call(ctx, base, func(api marathon.Marathon) error {
		have, err := api.Subscriptions()
		if err != nil {
			return err
		}
		registered := false
		for _, u := range have.CallbackURLs {
			if u == callback {
				registered = true
			} else if stale(u) {
				if err := api.Unsubscribe(url.QueryEscape(u)); err != nil {
					return err
				}
			}
		}
		if registered {
			return nil
		}
		// go-marathon puts it into the query as it is.
		return api.Subscribe(url.QueryEscape(callback))
	})
}

func (c *client) unsubscribe(ctx context.Context, base *url.URL, callback string) error {
	ctx, cancel := context.WithTimeout(ctx, headerTimeout)
	defer cancel()
	return c.call(ctx, base, func(api marathon.Marathon) error {
		return api.Unsubscribe(url.QueryEscape(callback))
	})
}
