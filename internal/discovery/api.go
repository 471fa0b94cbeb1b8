package discovery

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	marathon "github.com/gambol99/go-marathon"
)

var (
	// ErrNoApp: Marathon has no app of that id.
	ErrNoApp = errors.New("no such app")
	// ErrLocked: a deployment that runs holds the app; it may be tried again later.
	ErrLocked = errors.New("the app is locked by a deployment")
	// ErrRefused: Marathon understood the request and does not do it; the text says why.
	ErrRefused = errors.New("refused by Marathon")
)

const (
	apiTimeout = 15 * time.Second
	maxReason  = 64 << 10
	// maxAPIAnswer bounds the answer about the apps of a label or about one app.
	maxAPIAnswer = 64 << 20
)

// API asks one Marathon for single apps and changes them, for tools that act once. It
// uses the same hosts, credentials and certificates as a Watcher and speaks to the
// leader.
//
// A change is sent once. An error other than those named above leaves open whether it
// was made: read the app again before the next step. It may be used from several
// goroutines.
type API struct {
	c *client

	mu     sync.Mutex // guards leader
	leader *url.URL   // nil: not known
}

// NewAPI takes URLs, Auth, TLS and Dial of o; the rest is for a Watcher.
func NewAPI(o Options) (*API, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	c, err := newClient(o)
	if err != nil {
		return nil, err
	}
	return &API{c: c}, nil
}

// Close closes idle connections.
func (a *API) Close() { a.c.close() }

// Apps are the definitions of the apps that carry a label (Marathon 0.8.2 and newer: all
// apps before), as JSON objects.
func (a *API) Apps(ctx context.Context, label string) ([]json.RawMessage, error) {
	var body struct{ Apps []json.RawMessage }
	err := a.read(ctx, "/v2/apps", url.Values{"label": {label}}, &body)
	return body.Apps, err
}

// App is one app with its tasks and deployments, as a JSON object. ErrNoApp.
func (a *API) App(ctx context.Context, id string) (json.RawMessage, error) {
	var body struct{ App json.RawMessage }
	err := a.read(ctx, "/v2/apps"+id, nil, &body)
	if err == nil && body.App == nil {
		err = fmt.Errorf("app %s: %w", id, errProtocol)
	}
	return body.App, err
}

// Create posts the definition of a new app. ErrRefused when Marathon finds it invalid
// or has an app of that id.
func (a *API) Create(ctx context.Context, definition []byte) error {
	return a.at(ctx, func(ctx context.Context, base *url.URL) error {
		rest, _, err := a.c.clients()
		if err != nil {
			return err
		}
		u := *base
		u.User = nil
		u.Path += "/v2/apps"
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(definition))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Accept", "application/json")
		res, err := rest.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		text, err := io.ReadAll(io.LimitReader(res.Body, maxReason))
		switch {
		case res.StatusCode < 300:
			return nil
		case res.StatusCode == http.StatusBadRequest, res.StatusCode == http.StatusConflict, res.StatusCode == http.StatusUnprocessableEntity:
			return fmt.Errorf("%w: %s: %s", ErrRefused, res.Status, reasonOf(text))
		case err != nil:
			return err
		}
		return &statusError{url: u.Redacted(), code: res.StatusCode, status: res.Status}
	})
}

// reasonOf is what Marathon says in an answer that is an error.
func reasonOf(text []byte) string {
	var body struct {
		Message string          `json:"message"`
		Details json.RawMessage `json:"details"`
	}
	if json.Unmarshal(text, &body) != nil || body.Message == "" {
		return "no reason given"
	}
	if len(body.Details) > 0 {
		return body.Message + " " + string(body.Details)
	}
	return body.Message
}

// Scale sets the number of instances of an app and touches nothing else. ErrNoApp, ErrLocked.
func (a *API) Scale(ctx context.Context, id string, instances int) error {
	return a.call(ctx, func(m marathon.Marathon) error {
		_, err := m.ScaleApplicationInstances(id, instances, false)
		return err
	})
}

// KillAndScale kills tasks and makes their apps smaller by as many, so that nothing
// replaces them. Doing it twice makes the app smaller twice. ErrLocked.
func (a *API) KillAndScale(ctx context.Context, tasks []string) error {
	return a.call(ctx, func(m marathon.Marathon) error {
		return m.KillTasks(tasks, &marathon.KillTaskOpts{Scale: true})
	})
}

// Delete removes an app and kills its tasks. force ends the deployments that hold the
// app; without it ErrLocked. ErrNoApp.
func (a *API) Delete(ctx context.Context, id string, force bool) error {
	return a.call(ctx, func(m marathon.Marathon) error {
		_, err := m.DeleteApplication(id, force)
		return err
	})
}

func (a *API) read(ctx context.Context, path string, query url.Values, into any) error {
	return a.at(ctx, func(ctx context.Context, base *url.URL) error {
		res, err := a.c.get(ctx, false, base, path, query)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if err := json.NewDecoder(io.LimitReader(res.Body, maxAPIAnswer)).Decode(into); err != nil {
			return fmt.Errorf("%s%s: %w", base.Redacted(), path, err)
		}
		return nil
	})
}

func (a *API) call(ctx context.Context, fn func(marathon.Marathon) error) error {
	return a.at(ctx, func(ctx context.Context, base *url.URL) error { return a.c.call(ctx, base, fn) })
}

// at runs fn for the leader, and forgets who leads when that is in doubt.
func (a *API) at(ctx context.Context, fn func(context.Context, *url.URL) error) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	a.mu.Lock()
	base := a.leader
	a.mu.Unlock()
	if base == nil {
		var err error
		if base, err = a.c.findLeader(ctx); err != nil {
			return fmt.Errorf("find the leader of %s: %w", a.members(), err)
		}
		a.mu.Lock()
		a.leader = base
		a.mu.Unlock()
	}
	err := fn(ctx, base)
	if err == nil || errors.Is(err, ErrRefused) {
		return err
	}
	if status, ok := errors.AsType[*statusError](err); ok {
		switch status.code {
		case http.StatusNotFound:
			return fmt.Errorf("%w: %w", ErrNoApp, err)
		case http.StatusConflict, http.StatusLocked:
			return fmt.Errorf("%w: %w", ErrLocked, err)
		}
	}
	a.mu.Lock()
	a.leader = nil
	a.mu.Unlock()
	return err
}

func (a *API) members() string {
	var names []string
	for _, u := range a.c.urls() {
		names = append(names, u.Redacted())
	}
	return strings.Join(names, ", ")
}
