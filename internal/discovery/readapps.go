package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"time"
)

// AppError is an app of an answer that is left out, or whose tasks on one host are.
type AppError struct {
	App string // "" when the id itself cannot be used
	Err error
}

func (e *AppError) Error() string {
	return fmt.Sprintf("app %s: %v", cmp.Or(e.App, "without a usable id"), e.Err)
}

func (e *AppError) Unwrap() error { return e.Err }

// ReadApps decodes a saved answer of GET /v2/apps?embed=apps.tasks into services,
// sorted by app and index. Apps that can't be understood and hosts that can't be
// resolved are left out and named in the errors, an *AppError for each app concerned; any
// other error means that there are no services. A nil Resolver is net.DefaultResolver.
func ReadApps(ctx context.Context, r io.Reader, resolver Resolver) ([]*Service, []error) {
	var errs []error
	hosts := newAddresses(resolver)
	s := newState("", hosts.lookup)
	a := s.begin()
	now := time.Now()
	err := decodeApps(r, func(d appData) error {
		if d.broken != nil {
			errs = append(errs, &AppError{App: d.id, Err: d.broken})
		}
		s.merge(a, &d, now)
		return nil
	})
	if err != nil {
		return nil, append(errs, err)
	}
	p := newPending()
	s.take(p) // asks for the addresses
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for hosts.start(ctx, func(f func()) { go f() }); hosts.running > 0; hosts.start(ctx, func(f func()) { go f() }) {
		select {
		case r := <-hosts.results:
			// One that failed is named below, with the apps that are on it.
			if known, _, _ := hosts.finish(r, now); known {
				s.rehost(r.host, false)
			}
		case <-ctx.Done():
			return nil, append(errs, ctx.Err())
		}
	}
	for host, e := range hosts.entries {
		if e.err == nil {
			continue
		}
		if h := s.agents[host]; h != nil {
			for _, id := range h.waiting {
				errs = append(errs, &AppError{App: id, Err: fmt.Errorf("its tasks on agent %s: no address: %w", clip(host), e.err)})
			}
		}
	}
	s.take(p)
	if p.update == nil {
		return nil, errs
	}
	services := p.update.Services
	slices.SortFunc(services, func(a, b *Service) int {
		return cmp.Or(cmp.Compare(a.Key.App, b.Key.App), cmp.Compare(a.Key.Index, b.Key.Index))
	})
	slices.SortFunc(errs, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return services, errs
}

// FetchApps asks the leader of the Marathon that o names for all apps with their tasks,
// as ReadApps reads them; any member will do while the leader is not told. Of o it uses
// URLs, Auth, TLS and Dial. The caller closes the body, which ends with ctx.
func FetchApps(ctx context.Context, o Options) (io.ReadCloser, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	c, err := newClient(o)
	if err != nil {
		return nil, err
	}
	bases := c.urls()
	var errs []error
	if leader, err := c.findLeader(ctx); err == nil {
		bases = append([]*url.URL{leader}, bases...)
	} else {
		errs = append(errs, err)
	}
	for _, base := range bases {
		res, err := c.get(ctx, false, base, "/v2/apps", embed)
		if err == nil {
			return &closing{ReadCloser: res.Body, then: c.close}, nil
		}
		errs = append(errs, err)
	}
	c.close()
	return nil, fmt.Errorf("read apps: %w", errors.Join(errs...))
}

// closing is a body whose client ends with it.
type closing struct {
	io.ReadCloser
	then func()
}

func (c *closing) Close() error {
	err := c.ReadCloser.Close()
	c.then()
	return err
}
