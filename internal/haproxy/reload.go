package haproxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ReloaderOptions says which HAProxy is reloaded and how.
type ReloaderOptions struct {
	Files         *Files        // required
	Socket        string        // stats socket; required
	MasterSocket  string        // "": ReloadCommand is used
	ReloadCommand string        // words, quotes around blanks; no shell
	Supervisor    *Supervisor   // nil: HAProxy is somebody else's to start
	Binary        string        // for haproxy -c; "haproxy"
	Timeout       time.Duration // until the new worker must serve; 60s
	Step          func(Step)    // told at each step; nil in production
	Logger        *slog.Logger  // nil: discards
}

// Reloader brings a new structure into HAProxy: preflight, save, trigger, confirm, or
// everything as it was before. A reload has succeeded when its generation is seen on a new
// connection and not when a command says so. Not for concurrent use: reloads that overlap
// get lost on 2.6 and collide on 3.x.
type Reloader struct {
	opts    ReloaderOptions
	command []string
	check   checker
	log     *slog.Logger

	good       *Config              // last loaded: where last good parts are taken from
	proven     map[fingerprint]bool // hashes of the parts that HAProxy has loaded
	quarantine map[string]judgement // by app

	saidNoLimit bool
}

// judgement is why HAProxy does not take an app's part.
type judgement struct {
	fingerprint fingerprint // of the part: it stays out until it changes
	cut         cut
	rejected    Rejected
}

// ReloadRequest is what to load.
type ReloadRequest struct {
	Config     *Config   // a snapshot that nobody changes any more
	Renderer   *Renderer // of the running HAProxy's capabilities
	Rendered   *Rendered // of Config by Renderer; nil: not done yet, or not possible for all apps
	Generation string

	// OldBinds are the listeners of the running worker. nil: as the file on disk has them.
	// Without a worker there are none, whatever stands here.
	OldBinds []Bind
	// Running is the short structure of the running worker when nothing but another structure
	// asks for a reload; "": something else does.
	Running string
	Reasons []Reason
}

// Worker is what runs after a reload.
type Worker struct {
	Same       bool // the running one has all that can be loaded: no reload, Pid to MapPaths are not set
	Pid        int
	Version    string
	Generation string // the requested one, or one of Structure when something was left out
	Structure  string
	MapPaths   map[string]string // by which the worker knows its maps
	Loaded     *Config           // what it runs: the requested one, or without what was rejected
	Rendered   *Rendered         // of Loaded
	Rejected   []Rejected        // sorted by app
	Notes      []string          // what was changed to make it fit, for the log and the status page
	Unchecked  int               // servers without the health check that was asked for, for the same end
}

// ReloadError is a reload that did not happen. The old worker serves and haproxy.cfg is as
// it was.
type ReloadError struct {
	Stage    string // "render", "preflight", "check", "save", "trigger", "confirm"
	Err      error
	Rejected []Rejected // apps found guilty on the way, sorted
}

func (e *ReloadError) Error() string { return fmt.Sprintf("reload: %s: %v", e.Stage, e.Err) }
func (e *ReloadError) Unwrap() error { return e.Err }

// errNoTrigger: neither master socket nor reload command.
var errNoTrigger = errors.New("no way to reload: set haproxy.master_socket or haproxy.reload_command")

// NewReloader makes a Reloader. It touches nothing.
func NewReloader(o ReloaderOptions) (*Reloader, error) {
	r := &Reloader{opts: o, log: o.Logger, check: checker{binary: cmp.Or(o.Binary, "haproxy")},
		proven: make(map[fingerprint]bool), quarantine: make(map[string]judgement)}
	var err error
	if r.command, err = splitCommand(o.ReloadCommand); err != nil {
		return nil, err
	}
	if o.MasterSocket == "" && len(r.command) == 0 {
		return nil, errNoTrigger
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.opts.Step == nil {
		r.opts.Step = func(Step) {}
	}
	if r.opts.Timeout <= 0 {
		r.opts.Timeout = time.Minute
	}
	return r, nil
}

// Reload loads req. An app that stands in the way of the others, by a port that somebody
// else holds or by text that HAProxy refuses, is loaded in its last good form or left out.
// All failures are *ReloadError.
func (r *Reloader) Reload(ctx context.Context, req ReloadRequest) (Worker, error) {
	if req.OldBinds == nil {
		req.OldBinds = r.bindsOnDisk()
	}
	a := newAttempt(&req)
	r.recall(a)
	l := look{r: r}
	defer l.end()
	fail := func(stage string, err error) (Worker, error) {
		return Worker{}, &ReloadError{Stage: stage, Err: err, Rejected: a.verdicts()}
	}
	for isolated := false; ; isolated = true {
		have, err := l.again(ctx)
		if err != nil {
			return fail("trigger", err)
		}
		if have.gone {
			req.OldBinds = []Bind{}
		}
		if stage, err := r.prepare(ctx, a, have); err != nil {
			return fail(stage, err)
		}
		if have.alive && req.Running != "" && shortStructure(a.out.Structure) == req.Running {
			r.remember(a)
			return Worker{Same: true, Structure: a.out.Structure, Loaded: a.cfg, Rendered: a.out,
				Rejected: a.verdicts(), Notes: a.notes, Unchecked: a.unchecked}, nil
		}
		worker, stage, err := r.load(ctx, a, have)
		if err == nil {
			r.remember(a)
			return worker, nil
		}
		if isolated || !errors.Is(err, errRefused) {
			return fail(stage, err)
		}
		// HAProxy's no says what, not who. Find out, and try once more without.
		found, checkErr := r.checkAndIsolate(ctx, a)
		if checkErr != nil {
			return fail(stage, errors.Join(err, checkErr))
		}
		if !found {
			return fail(stage, err)
		}
	}
}

// present is what is there before a reload.
type present struct {
	alive bool
	gone  bool  // nobody listens on the stats socket: no listener is ours
	procs Procs // known where there is a master socket
	pid   int   // of the master, else of the worker
}

// look probes. When it finds nobody and HAProxy is ours to start, no other start happens until
// end: one that fails holds ports for a moment, which are to be tested.
type look struct {
	r    *Reloader
	held bool
}

func (l *look) again(ctx context.Context) (present, error) {
	have, err := l.r.probe(ctx)
	if err != nil || have.alive || l.r.opts.Supervisor == nil || l.held {
		return have, err
	}
	l.r.opts.Supervisor.one.Lock()
	l.held = true
	return l.r.probe(ctx)
}

func (l *look) end() {
	if l.held {
		l.r.opts.Supervisor.one.Unlock()
	}
}

// nobody reports whether err of askInfo means that no process listens on the socket, and
// not that one is slow.
func nobody(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

// probe asks who is there. The master answers when no reload is under way, so that ours
// cannot get lost in one of somebody else.
func (r *Reloader) probe(ctx context.Context) (present, error) {
	if r.opts.MasterSocket == "" {
		info, err := askInfo(ctx, r.opts.Socket)
		return present{alive: err == nil, gone: nobody(err), pid: info.Pid}, nil
	}
	if r.opts.Supervisor != nil {
		// Nobody there is a reason to start one, but a master that still parses may be deaf
		// while its old worker serves.
		if _, err := askMaster(ctx, r.opts.MasterSocket, "show proc", masterTimeout); err != nil {
			if _, err := askInfo(ctx, r.opts.Socket); err != nil {
				return present{gone: nobody(err)}, nil
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, r.opts.Timeout)
	defer cancel()
	procs, err := masterProcs(ctx, r.opts.MasterSocket)
	return present{alive: err == nil, procs: procs, pid: procs.Master}, err
}

// prepare makes a configuration that HAProxy should be able to load.
func (r *Reloader) prepare(ctx context.Context, a *attempt, have present) (stage string, err error) {
	if err := r.render(a); err != nil {
		return "render", err
	}
	for {
		found, err := a.preflight()
		if err != nil {
			return "preflight", err
		}
		if !found {
			break
		}
		if err := r.render(a); err != nil {
			return "render", err
		}
	}
	r.opts.Step(StepPreflight)
	if r.unproven(a.out) {
		if _, err := r.checkAndIsolate(ctx, a); errors.Is(err, ErrNoBinary) {
			// HAProxy itself will judge it, and the old worker serves on if it says no.
			r.log.Warn("configuration not checked before the reload", "err", err)
		} else if err != nil {
			return "check", err
		}
	}
	if err := r.fitFiles(a, have); err != nil {
		return "preflight", err
	}
	r.opts.Step(StepChecked)
	return "", nil
}

// load saves a, tells HAProxy and waits for the new worker. After a failure haproxy.cfg is
// what it was.
func (r *Reloader) load(ctx context.Context, a *attempt, have present) (w Worker, stage string, err error) {
	generation := a.req.Generation
	if a.changed || a.req.Rendered == nil {
		_, seq, _ := ParseGeneration(generation)
		generation = FormatGeneration(a.out.Structure, seq)
	}
	saved, err := r.opts.Files.Save(ctx, a.out, generation)
	if err != nil {
		return w, "save", err
	}
	defer func() {
		if err == nil || saved.Previous == nil || !saved.Written {
			return
		}
		if restore := r.opts.Files.Restore(saved.Previous); restore != nil {
			err = errors.Join(err, restore)
		}
	}()
	// A reload without the file, or with somebody else's, must not happen.
	if !r.opts.Files.Holds(saved.Text) {
		return w, "save", &SaveError{Path: r.opts.Files.Path(), Err: errors.New("somebody else has changed it in this moment")}
	}
	triggered := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if have.alive || r.opts.Supervisor == nil {
			triggered <- r.trigger(ctx)
			return
		}
		_, err := r.opts.Supervisor.ensure(ctx) // the look holds its lock
		triggered <- err
	}()
	defer func() { cancel(); <-done }()
	r.opts.Step(StepTriggered)
	info, err := r.confirm(ctx, generation, have.procs, triggered)
	if err != nil {
		return w, "confirm", err
	}
	r.opts.Step(StepConfirmed)
	r.opts.Files.Collect(saved.MapPaths)
	return Worker{
		Pid: info.Pid, Version: info.Version, Generation: generation, Structure: a.out.Structure,
		MapPaths: saved.MapPaths, Loaded: a.cfg, Rendered: a.out, Rejected: a.verdicts(), Notes: a.notes, Unchecked: a.unchecked,
	}, "", nil
}

// bindsOnDisk are the listeners of the file that HAProxy presumably runs.
func (r *Reloader) bindsOnDisk() []Bind {
	binds := []Bind{}
	text, err := os.ReadFile(r.opts.Files.Path())
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			r.log.Warn("present listeners not known", "err", err)
		}
		return binds
	}
	shape, err := ReadShape(string(text))
	if err != nil {
		r.log.Warn("present listeners not known", "err", err)
	}
	for _, s := range shape.Sections {
		binds = append(binds, s.Binds...)
	}
	return binds
}
