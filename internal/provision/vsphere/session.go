package vsphere

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"reflect"
	"strconv"
	"sync"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/sts"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	connectTimeout = 30 * time.Second
	callTimeout    = 2 * time.Minute // of one attempt; a page of a large inventory takes seconds
	attempts       = 4               // of a call whose connection broke
	sessions       = 10              // that may end under one call
	retryDelay     = 200 * time.Millisecond
)

// session is a soap.RoundTripper that keeps its session alive: a session that
// ended, by idling or by a restart of vCenter, is replaced when a call finds out.
type session struct {
	wire *soap.Client
	next soap.RoundTripper
	raw  *vim25.Client // over next: what signing in goes through
	log  *slog.Logger

	user, password, token string

	every time.Duration // least time between two calls; 0: none

	mu     sync.Mutex    // guards what follows
	serial int           // grows with every sign-in
	skew   time.Duration // the server's clock minus ours
	name   string        // of the user, as the server spells it
	key    string        // of the session
	slot   time.Time     // when the next call may go
}

func interval(perSecond int) time.Duration {
	if perSecond <= 0 {
		return 0
	}
	return time.Second / time.Duration(perSecond)
}

// login opens a session. The time it began is the server's clock, read for free.
func (s *session) login(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loginLocked(ctx)
}

func (s *session) loginLocked(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	manager := *s.raw.ServiceContent.SessionManager
	var user types.UserSession
	sent := time.Now()
	if s.token != "" {
		ctx = s.wire.WithHeader(ctx, soap.Header{Security: &sts.Signer{Token: s.token}})
		res, err := methods.LoginByToken(ctx, s.next, &types.LoginByToken{This: manager})
		if err != nil {
			return err
		}
		user = res.Returnval
	} else {
		res, err := methods.Login(ctx, s.next, &types.Login{This: manager, UserName: s.user, Password: s.password})
		if err != nil {
			return err
		}
		user = res.Returnval
	}
	s.skew = user.LoginTime.Sub(sent)
	s.name, s.key = user.UserName, user.Key
	s.serial++
	return nil
}

func (s *session) logout(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if _, err := methods.Logout(ctx, s.next, &types.Logout{This: *s.raw.ServiceContent.SessionManager}); err != nil {
		s.log.Debug("sign off", "err", err)
	}
}

// now is the server's clock.
func (s *session) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.skew).UTC()
}

func (s *session) userName() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.name
}

func (s *session) sessionKey() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.key
}

// RoundTrip makes one call, again where that is harmless.
func (s *session) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	delay := retryDelay
	attempt, ended := 1, 0
	for {
		if err := s.pace(ctx); err != nil {
			return err
		}
		s.mu.Lock()
		serial := s.serial
		s.mu.Unlock()

		err := s.once(ctx, req, res)
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case ended < sessions && fault.Is(err, &types.NotAuthenticated{}):
			ended++ // refused before it was made
			if err := s.renew(ctx, serial); err != nil {
				return err
			}
		case attempt < attempts && broken(err) && repeatable(req):
			s.log.Warn("call to vCenter failed, repeating it", "err", err)
			select {
			case <-time.After(delay):
				delay *= 2
				attempt++
			case <-ctx.Done():
				return ctx.Err()
			}
		default:
			return err
		}
		clearFault(res)
	}
}

func (s *session) once(ctx context.Context, req, res soap.HasFault) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := s.next.RoundTrip(ctx, req, res); err != nil {
		return err
	}
	return unauthenticated(res)
}

// unauthenticated finds the answer of a property collector that was asked
// without a session and says so for each property instead of as a whole.
func unauthenticated(res soap.HasFault) error {
	body, ok := res.(*methods.RetrievePropertiesExBody)
	if !ok || body.Res == nil || body.Res.Returnval == nil {
		return nil
	}
	for _, o := range body.Res.Returnval.Objects {
		for _, m := range o.MissingSet {
			if f, ok := m.Fault.Fault.(*types.NotAuthenticated); ok {
				return soap.WrapVimFault(f)
			}
		}
	}
	return nil
}

// renew signs in again unless another call has done so since serial was read.
func (s *session) renew(ctx context.Context, serial int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serial != serial {
		return nil
	}
	s.log.Info("vCenter session has ended, signing in again")
	if err := s.loginLocked(ctx); err != nil {
		return fmt.Errorf("sign in again after the session ended: %w", err)
	}
	return nil
}

// pace keeps calls apart by s.every.
func (s *session) pace(ctx context.Context) error {
	if s.every == 0 {
		return ctx.Err()
	}
	s.mu.Lock()
	now := time.Now()
	at := s.slot
	if at.Before(now) {
		at = now
	}
	s.slot = at.Add(s.every)
	s.mu.Unlock()
	if at == now {
		return ctx.Err()
	}
	t := time.NewTimer(at.Sub(now))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// broken reports an error of the connection rather than of the call: it is not
// known whether the call was made.
func broken(err error) bool {
	if soap.IsSoapFault(err) || soap.IsVimFault(err) || soap.IsCertificateUntrusted(err) {
		return false
	}
	var u *url.Error
	if !errors.As(err, &u) {
		return false
	}
	// govmomi reports an HTTP status as its text: "503 Service Unavailable".
	if text := u.Err.Error(); len(text) > 3 {
		if status, err := strconv.Atoi(text[:3]); err == nil {
			return status >= 500
		}
	}
	return true
}

// repeatable says whether making the call a second time is harmless.
func repeatable(req soap.HasFault) bool {
	switch r := req.(type) {
	case *methods.RetrievePropertiesExBody, *methods.ContinueRetrievePropertiesExBody, *methods.RetrieveServiceContentBody,
		*methods.FindByInventoryPathBody, *methods.FindChildBody, *methods.HasPrivilegeOnEntitiesBody:
		return true // reads
	case *methods.CloneVM_TaskBody, *methods.InstantClone_TaskBody, *methods.CreateFolderBody, *methods.CreateResourcePoolBody:
		return true // the second is refused with DuplicateName
	case *methods.PowerOnVM_TaskBody, *methods.PowerOffVM_TaskBody, *methods.ShutdownGuestBody:
		return true // the second is refused with InvalidPowerState, or changes nothing
	case *methods.Destroy_TaskBody, *methods.Rename_TaskBody, *methods.SetFieldBody, *methods.MarkAsTemplateBody:
		return true // the second finds the object gone, or changes nothing
	case *methods.ReconfigVM_TaskBody:
		return r.Req != nil && r.Req.Spec.ChangeVersion != "" // the second is refused with ConcurrentAccess
	case *methods.ReconfigureComputeResource_TaskBody:
		return true // the second is refused, or puts the same members in
	}
	return false
}

// clearFault empties what a failed attempt left in the response: a fault that
// stayed there would be taken for the next answer's.
func clearFault(res soap.HasFault) { reflect.ValueOf(res).Elem().SetZero() }
