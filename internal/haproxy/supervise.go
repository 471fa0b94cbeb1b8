package haproxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// SupervisorOptions says how to start HAProxy.
type SupervisorOptions struct {
	Binary       string        // "haproxy"
	Config       string        // path of haproxy.cfg; required
	Socket       string        // stats socket; required
	MasterSocket string        // required
	Stderr       *os.File      // what HAProxy says; nil: our own stderr. Must not be a pipe that ends with us
	Timeout      time.Duration // for a start; 30s
	Step         func(Step)    // told at each step; nil in production
}

// Supervisor keeps one HAProxy running where no service manager does. The HAProxy is in a
// session of its own and outlives us: the next bridge finds it by its sockets and takes it
// over.
type Supervisor struct {
	opts SupervisorOptions
	one  sync.Mutex // held while starting or stopping, and guards pid: never two masters
	pid  int        // of a master that we started; 0: none, or it was waited for
}

// StartError is a HAProxy that did not come up.
type StartError struct {
	Detail string
	Err    error
}

func (e *StartError) Error() string {
	return fmt.Sprintf("start HAProxy: %s%s", e.Detail, colon(e.Err))
}
func (e *StartError) Unwrap() error { return e.Err }

func colon(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

// NewSupervisor makes a Supervisor. It starts nothing.
func NewSupervisor(o SupervisorOptions) *Supervisor {
	if o.Binary == "" {
		o.Binary = "haproxy"
	}
	if o.Timeout <= 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Step == nil {
		o.Step = func(Step) {}
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	return &Supervisor{opts: o}
}

// Ensure returns when HAProxy answers on its stats socket. It starts one only when none
// runs: neither the stats socket nor the master socket is answered. A failed start is a
// *StartError.
func (s *Supervisor) Ensure(ctx context.Context) (started bool, err error) {
	s.one.Lock()
	defer s.one.Unlock()
	return s.ensure(ctx)
}

// ensure is Ensure for who holds s.one.
func (s *Supervisor) ensure(ctx context.Context) (started bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	s.reap()
	if _, err := askInfo(ctx, s.opts.Socket); err == nil {
		return false, nil
	} else if errors.Is(err, ErrNotHAProxy) {
		return false, err
	}
	if _, err := askMaster(ctx, s.opts.MasterSocket, "show proc", masterTimeout); err != nil {
		if err := s.start(); err != nil {
			return false, err
		}
		started = true
		s.opts.Step(StepStarted)
	}
	for {
		_, err := askInfo(ctx, s.opts.Socket)
		if err == nil {
			return started, nil
		}
		if started && s.reap() {
			return started, &StartError{Detail: "it ended at once", Err: errRefused}
		}
		if wait(ctx, 2*time.Millisecond) != nil {
			return started, &StartError{Detail: fmt.Sprintf("its stats socket is not there after %v", s.opts.Timeout), Err: err}
		}
	}
}

// start starts the master. It is not killed with us, by signals to our process group or by
// the end of our terminal, and we do not wait for it: reap looks after it.
func (s *Supervisor) start() error {
	path, err := exec.LookPath(s.opts.Binary)
	if err != nil {
		return &StartError{Detail: "no program " + s.opts.Binary + "; install it or set haproxy.binary", Err: err}
	}
	if _, err := os.Stat(s.opts.Config); err != nil {
		// Never without the file: HAProxy would exit, and 3.x takes a running master along.
		return &StartError{Detail: "no configuration yet", Err: err}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return &StartError{Err: err}
	}
	defer null.Close()
	// -db: stay in the foreground whatever `daemon` in global says, so that its pid is the
	// one we know. -W and not -Ws: it has no service manager to notify.
	process, err := os.StartProcess(path, []string{path, "-W", "-db", "-S", s.opts.MasterSocket + ",mode,600", "-f", s.opts.Config},
		&os.ProcAttr{Env: haproxyEnv(os.Environ()), Files: []*os.File{null, s.opts.Stderr, s.opts.Stderr}, Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		return &StartError{Detail: path, Err: err}
	}
	s.pid = process.Pid
	return process.Release()
}

// haproxyEnv leaves out what is addressed to us: a child that notifies our service manager
// in our name, or a HAProxy that takes itself for the reloaded one of another master.
func haproxyEnv(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return name == "NOTIFY_SOCKET" || strings.HasPrefix(name, "WATCHDOG_") || strings.HasPrefix(name, "LISTEN_") || strings.HasPrefix(name, "HAPROXY_")
	})
}

// reap reports whether a master that we started has ended, and takes it off the process
// table. There is no goroutine that waits, since HAProxy usually outlives us.
func (s *Supervisor) reap() bool {
	if s.pid == 0 {
		return false
	}
	var status unix.WaitStatus
	pid, err := unix.Wait4(s.pid, &status, unix.WNOHANG, nil)
	if pid == s.pid || errors.Is(err, unix.ECHILD) {
		s.pid = 0
		return true
	}
	return false
}

// Stop ends HAProxy, ours or adopted, with all connections, and returns when it is gone.
func (s *Supervisor) Stop(ctx context.Context) error {
	s.one.Lock()
	defer s.one.Unlock()
	asked, cancel := context.WithTimeout(ctx, 2*time.Second)
	procs, err := masterProcs(asked, s.opts.MasterSocket)
	cancel()
	if err != nil {
		procs.Master = s.pid // it may be up without its socket yet
	}
	if procs.Master == 0 {
		return nil // nobody there
	}
	if err := unix.Kill(procs.Master, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop HAProxy: %w", err)
	}
	for {
		s.reap()
		_, _ = unix.Wait4(procs.Master, nil, unix.WNOHANG, nil) // it may be the child of another Supervisor of ours
		if err := unix.Kill(procs.Master, 0); errors.Is(err, unix.ESRCH) {
			return nil
		}
		if err := wait(ctx, 5*time.Millisecond); err != nil {
			return fmt.Errorf("stop HAProxy: master %d is still there: %w", procs.Master, err)
		}
	}
}
