package haproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os/exec"
	"strings"
	"time"
)

const (
	// masterTimeout bounds one exchange with the master socket, a synchronous reload apart.
	masterTimeout = 5 * time.Second

	// reloadCommandTimeout bounds the reload command. systemd's own reload runs haproxy -c
	// first.
	reloadCommandTimeout = time.Minute
)

// errRefused: HAProxy has said that it does not take the configuration.
var errRefused = errors.New("HAProxy refused the configuration")

// askMaster sends one line to the master socket and reads all of the answer. The master of
// 2.6 closes only when it is told that nothing follows, so our side is half-closed.
func askMaster(ctx context.Context, socket, line string, timeout time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return "", err
	}
	defer nc.Close()
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	if _, err := io.WriteString(nc, line+"\n"); err != nil {
		return "", fmt.Errorf("%s: %w", line, err)
	}
	if err := nc.(*net.UnixConn).CloseWrite(); err != nil {
		return "", fmt.Errorf("%s: %w", line, err)
	}
	answer, err := io.ReadAll(io.LimitReader(nc, 1<<20))
	if ctx.Err() != nil {
		err = fmt.Errorf("no answer within %v: %w", timeout, ctx.Err())
	}
	if err != nil {
		return string(answer), fmt.Errorf("%s: %w", line, err)
	}
	return string(answer), nil
}

// masterProcs asks the master which workers it has. While it parses, the master of 2.6 leaves
// the question waiting, so that an answer says besides that no reload is under way; one
// that is sent earlier would be lost.
func masterProcs(ctx context.Context, socket string) (Procs, error) {
	for {
		answer, err := askMaster(ctx, socket, "show proc", masterTimeout)
		if procs := parseProcs([]byte(answer)); err == nil && procs.Master > 0 {
			return procs, nil
		}
		if err == nil {
			// It executed itself anew with our connection open.
			err = fmt.Errorf("show proc: answer %.100q", answer)
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || wait(ctx, 5*time.Millisecond) != nil {
			return Procs{}, fmt.Errorf("master socket %s: %w", socket, err)
		}
	}
}

// wait waits for d or for the end of ctx, whose error it returns.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// trigger tells HAProxy to load the file and returns when that was said, or on 2.7 and newer
// when it was done. errRefused with HAProxy's words means that it did not load.
func (r *Reloader) trigger(ctx context.Context) error {
	if r.opts.MasterSocket == "" {
		return r.commandUntilDone(ctx)
	}
	var answer string
	for {
		var err error
		answer, err = askMaster(ctx, r.opts.MasterSocket, "reload", r.opts.Timeout)
		if err != nil {
			return fmt.Errorf("master socket %s: %w", r.opts.MasterSocket, err)
		}
		// From 3.1 on the master answers while it loads for somebody else, and then does not
		// take ours: that is no verdict on the configuration.
		if !strings.Contains(answer, "reload is still in progress") || wait(ctx, 10*time.Millisecond) != nil {
			break
		}
	}
	// "Success=0\n--\n<log>": from 2.7 on. Before, the connection is closed without a word.
	first, log, _ := strings.Cut(answer, "\n")
	switch strings.TrimSpace(first) {
	case "", "Success=1":
		return nil
	case "Success=0":
		return fmt.Errorf("%w: %s", errRefused, alertText(parseAlerts(log, r.opts.Files.Path())))
	}
	if strings.Contains(answer, "ermission denied") {
		return fmt.Errorf("master socket %s: permission denied: it needs level operator or admin", r.opts.MasterSocket)
	}
	return fmt.Errorf("master socket %s: reload answered %.200q", r.opts.MasterSocket, answer)
}

// commandUntilDone runs the reload command, and again after a long silence, until it fails
// or ctx ends: a signal that reaches the master of 2.6 while it loads is lost, and without a
// master socket nobody tells whether it does. A run is not cut off in the middle.
func (r *Reloader) commandUntilDone(ctx context.Context) error {
	for {
		if err := r.runReloadCommand(context.WithoutCancel(ctx)); err != nil {
			return err
		}
		if wait(ctx, r.opts.Timeout/4) != nil {
			return nil
		}
		r.log.Warn("the reload command has had no effect so far and is run again", "command", r.command)
	}
}

func (r *Reloader) runReloadCommand(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, reloadCommandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.command[0], r.command[1:]...)
	cmd.WaitDelay = time.Second
	said, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	err = fmt.Errorf("reload command %q: %w: %s", r.command, err, shortenText(strings.TrimSpace(string(said)), 500))
	if _, ok := errors.AsType[*exec.ExitError](err); ok && ctx.Err() == nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	return err
}

// splitCommand splits a command line into words. Quotes keep blanks inside a word; nothing
// else has a meaning, since no shell sees it.
func splitCommand(text string) ([]string, error) {
	var out []string
	var word strings.Builder
	var quote rune
	inWord := false
	for _, c := range text {
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(c)
		case c == '\'' || c == '"':
			quote, inWord = c, true
		case c == ' ' || c == '\t':
			if inWord {
				out = append(out, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteRune(c)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("reload command %q: a quote is not closed", text)
	}
	if inWord {
		out = append(out, word.String())
	}
	return out, nil
}

// confirm waits until a worker that answers on new connections runs generation. triggered
// delivers what the trigger had to say; a refusal ends the wait, success does not: only the
// generation proves anything. before are the processes ahead of the reload.
//
// Each question costs the old worker some 0.3 ms, on a machine that is busy with parsing:
// they come at a growing distance that adds at most 3 % to the time it takes.
func (r *Reloader) confirm(ctx context.Context, generation string, before Procs, triggered <-chan error) (Info, error) {
	ctx, cancel := context.WithTimeout(ctx, r.opts.Timeout)
	defer cancel()
	start := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	told := false
	var last error
	for {
		select {
		case err := <-triggered:
			if err != nil {
				return Info{}, err
			}
			told, triggered = true, nil
		case <-timer.C:
		case <-ctx.Done():
			return Info{}, fmt.Errorf("generation %s not seen within %v: %w", generation, r.opts.Timeout, errors.Join(last, ctx.Err()))
		}
		info, err := askInfo(ctx, r.opts.Socket)
		if err == nil && info.Description == generation && !info.Stopping {
			return info, nil
		}
		if err == nil {
			err = fmt.Errorf("worker %d runs %q", info.Pid, info.Description)
		}
		last = err
		if told && r.opts.MasterSocket != "" {
			if err := r.gaveUp(ctx, before); err != nil {
				return Info{}, err
			}
		}
		timer.Reset(min(max(time.Since(start)/32, 2*time.Millisecond), 50*time.Millisecond))
	}
}

// gaveUp reports a reload that the master has ended without a new worker. Up to 2.6 this
// is the only sign of it.
func (r *Reloader) gaveUp(ctx context.Context, before Procs) error {
	answer, err := askMaster(ctx, r.opts.MasterSocket, "show proc", masterTimeout)
	if err != nil {
		return nil // busy: not the end of it
	}
	now := parseProcs([]byte(answer))
	if now.Master == 0 {
		return nil
	}
	if now.Failed > before.Failed {
		return errRefused
	}
	for _, pid := range append(now.Workers, now.Old...) {
		if !before.has(pid) {
			return nil
		}
	}
	return fmt.Errorf("%w: the master has no new worker", errRefused)
}

func (p Procs) has(pid int) bool {
	for _, list := range [...][]int{p.Workers, p.Old} {
		for _, have := range list {
			if have == pid {
				return true
			}
		}
	}
	return false
}

// askInfo asks who serves, on a connection of its own.
func askInfo(ctx context.Context, socket string) (Info, error) {
	c, err := dial(ctx, socket)
	if err != nil {
		return Info{}, err
	}
	defer c.close()
	return c.info(ctx)
}
