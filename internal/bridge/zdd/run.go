package zdd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"bridged/internal/discovery"
)

// Mode says what a run is to do with the deployment that it finds.
type Mode int

const (
	// Deploy begins a deployment of the definition, or goes on with one that was begun
	// with the same definition.
	Deploy Mode = iota
	// Resume goes on in the direction of the run before.
	Resume
	// Complete goes on until only the newer app is left.
	Complete
	// Abort goes back until only the older app is left.
	Abort
)

// Options of a run. The zero value of a duration or number means what its comment says.
type Options struct {
	API       *discovery.API
	Balancers []*Balancer // none: healthy tasks are taken for routed ones

	Definition *Definition // of Deploy
	Group      string      // of the other modes, when there is no Definition
	Mode       Mode
	// Redeploy begins a deployment although the app that runs was made of the same definition.
	Redeploy bool

	Initial      int // instances of the new app to begin with; 0: 1
	Linear       int // instances added in a step; 0: half of those there are
	NewInstances int // instances at which the new app stays beside the old one; 0: replace it

	Delay     time.Duration // between two looks; 0: 5 s
	MaxWait   time.Duration // without any movement, before giving up; 0: 5 min
	Drain     time.Duration // how long a task drains where sessions cannot be counted
	KillAfter time.Duration // kill drained tasks with sessions after this time; 0: never

	// Hook is a program called before tasks are killed, with the old app, the ids of the
	// tasks and the new app as JSON; "" for none. The run ends unless it exits with 0.
	Hook string

	DryRun  bool
	Confirm func(question string) bool // nil: yes
	Report  func(Event)                // called for each step and each new reason to wait; may be nil

	// interrupt is called before and after each change; an error ends the run there, as
	// its death would.
	interrupt func(when string, s step) error
}

// Event tells of one step, or of what is waited for.
type Event struct {
	Time      time.Time  `json:"time"`
	Step      string     `json:"step"` // wait, create, scale, kill, delete, done; note: something failed and is tried again
	App       string     `json:"app,omitempty"`
	Instances int        `json:"instances,omitempty"`
	Tasks     []string   `json:"tasks,omitempty"`
	Detail    string     `json:"detail,omitempty"`
	Apps      []AppState `json:"apps,omitempty"` // older one first
}

// AppState is an app at the time of an Event.
type AppState struct {
	ID        string `json:"id"`
	Instances int    `json:"instances"`
	Healthy   int    `json:"healthy"`
}

type runner struct {
	o       Options
	group   string
	hosts   resolver
	known   map[string]bool // apps of the group that were seen
	agreed  bool
	drained map[string]time.Time // since when a task is seen drained
	steady  time.Time            // since when nothing moved
	shape   string               // of the last view
	said    string
}

// Run takes one deployment to its end. Errors are *Error.
func Run(ctx context.Context, o Options) error {
	o.Delay = cmp.Or(o.Delay, 5*time.Second)
	o.MaxWait = cmp.Or(o.MaxWait, 5*time.Minute)
	o.Initial = cmp.Or(o.Initial, 1)
	r := &runner{o: o, group: o.Group, hosts: resolver{}, known: map[string]bool{}, drained: map[string]time.Time{}}
	if o.Definition != nil {
		r.group = o.Definition.Group()
	}
	err := r.run(ctx)
	if ctx.Err() != nil {
		return fail(CodeDeclined, "interrupted; everything stays as it is, --resume goes on")
	}
	return err
}

func (r *runner) run(ctx context.Context) error {
	v, err := r.look(ctx)
	if err != nil {
		return err
	}
	g, begin, err := r.begin(v)
	if err != nil {
		return err
	}
	if r.o.DryRun {
		return r.rehearse(g, begin, v)
	}
	if begin != nil {
		if err := r.create(ctx, begin, v); err != nil {
			return err
		}
	}
	r.steady = time.Now()
	var trouble error
	for {
		v, err := r.look(ctx)
		if err == nil {
			r.move(v)
			s := decide(g, v)
			trouble, err = nil, r.take(ctx, s, v)
			if s.action == done || err != nil && !errors.Is(err, errAgain) {
				return err
			}
		}
		if e, ok := errors.AsType[*Error](err); ok && (e.Code == CodeArguments || e.Code == CodeMissing) {
			return e // an operator has to act
		}
		if err != nil {
			trouble = err
			r.report(Event{Step: "note", Detail: err.Error()})
		}
		if time.Since(r.steady) > r.o.MaxWait {
			if e, ok := errors.AsType[*Error](trouble); ok {
				return e
			}
			return fail(CodeTimeout, "nothing moved for %v: %s; everything stays as it is, --resume goes on, --abort goes back", r.o.MaxWait, r.said)
		}
		if err := pause(ctx, r.o.Delay); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// look reads the group from Marathon, and its tasks from each load balancer.
func (r *runner) look(ctx context.Context) (*view, error) {
	list, err := r.o.API.Apps(ctx, labelGroup)
	if err != nil {
		return nil, fail(CodeMarathon, "Marathon: %w", err)
	}
	for _, raw := range list {
		var w struct {
			ID     string
			Labels map[string]string
		}
		if err := json.Unmarshal(raw, &w); err != nil {
			return nil, fail(CodeMarathon, "Marathon: an app of its answer: %w", err)
		}
		if groupOf(w.Labels) == r.group {
			r.known[w.ID] = true
		}
	}
	v := &view{drained: map[string]time.Duration{}}
	// An app that is missing from a list may be missing for a moment; asked for by its id
	// Marathon has to say that there is none.
	for id := range r.known {
		raw, err := r.o.API.App(ctx, id)
		if errors.Is(err, discovery.ErrNoApp) {
			delete(r.known, id)
			continue
		}
		if err != nil {
			return nil, fail(CodeMarathon, "Marathon: %w", err)
		}
		a, err := readApp(raw)
		if err != nil {
			return nil, fmt.Errorf("app %s: %w", id, err)
		}
		v.apps = append(v.apps, a)
	}
	if err := sortApps(v.apps); err != nil {
		return nil, err
	}
	for _, b := range r.o.Balancers {
		seen, err := b.see(ctx, v.apps, func(host string) []string { return r.hosts.lookup(ctx, host) })
		if err != nil {
			return nil, fail(CodeBalancer, "%w", err)
		}
		v.balancers = append(v.balancers, seen)
	}
	return v, nil
}

// begin finds out where the run goes. The version is what has to be created first, nil
// for nothing.
func (r *runner) begin(v *view) (goal, *version, error) {
	o := r.o
	g := goal{linear: o.Linear, drain: o.Drain, killAfter: o.KillAfter}
	switch {
	case len(v.apps) < 2 && o.Mode != Deploy:
		if len(v.apps) == 0 {
			return g, nil, fail(CodeArguments, "deployment group %s has no app: there is nothing to go on with", r.group)
		}
		return g, nil, nil
	case len(v.apps) < 2:
		var previous *app
		if len(v.apps) == 1 {
			previous = v.apps[0]
			if previous.labels[labelSource] == o.Definition.source() && !o.Redeploy {
				return g, nil, nil
			}
		}
		next, err := o.Definition.next(previous, o.Initial, o.NewInstances, time.Now())
		if err != nil {
			return g, nil, fail(CodeMissing, "%w", err)
		}
		if previous != nil && previous.id == next.id {
			return g, nil, fail(CodeArguments, "app %s would replace itself: give it label %s", next.id, labelColour)
		}
		g.target, g.stay = next.target, next.target
		if o.NewInstances > 0 && previous != nil {
			g.stay = min(o.NewInstances, next.target)
		}
		return g, next, nil
	}
	old, fresh := v.apps[0], v.apps[1]
	if fresh.target < 0 || fresh.goal < 0 {
		return g, nil, fail(CodeMissing, "app %s: labels %s and %s: missing; delete the app by hand, or finish with the tool that began", fresh.id, labelTarget, labelNew)
	}
	g.target, g.stay = fresh.target, fresh.target
	if fresh.goal > 0 && fresh.instances <= fresh.goal {
		g.stay = min(fresh.goal, g.target)
	}
	// Only going back gives the old app all its instances after the new one was begun.
	returning := old.instances >= g.target && old.lastScaling > fresh.lastScaling
	switch o.Mode {
	case Deploy:
		if fresh.labels[labelSource] != o.Definition.source() {
			return g, nil, fail(CodeArguments, "app %s was begun with another definition and is not done: finish it with --resume or --complete-cur, or --abort it", fresh.id)
		}
		if returning {
			return g, nil, fail(CodeArguments, "app %s is being taken back: --resume or --abort to finish that, --complete-cur to go on with it", fresh.id)
		}
	case Resume:
		if returning {
			g.direction, g.stay = back, g.target
		}
	case Complete:
		g.stay = g.target
	case Abort:
		g.direction, g.stay = back, g.target
	}
	return g, nil, nil
}

// move notes since when things are as they are.
func (r *runner) move(v *view) {
	now := time.Now()
	var shape strings.Builder
	for _, a := range v.apps {
		fmt.Fprint(&shape, a.id, a.instances, a.deployments, a.tasks)
	}
	for _, b := range v.balancers {
		// Neither sessions, which come and go, nor what keeps it busy, in its own words.
		for _, a := range v.apps {
			for _, t := range a.tasks {
				fmt.Fprint(&shape, b.servers[t.id].present, b.servers[t.id].ready)
			}
		}
	}
	if shape.String() != r.shape {
		r.shape, r.steady = shape.String(), now
	}
	for _, a := range v.apps {
		for _, t := range a.tasks {
			out := len(v.balancers) > 0
			for _, b := range v.balancers {
				out = out && !b.servers[t.id].ready
			}
			since, known := r.drained[t.id]
			switch {
			case len(v.balancers) == 0:
				// Load balancers that are not known drain as soon as something moved.
				v.drained[t.id] = now.Sub(r.steady)
			case !out:
				delete(r.drained, t.id)
			case !known:
				r.drained[t.id] = now
			default:
				v.drained[t.id] = now.Sub(since)
			}
		}
	}
}

// errAgain: the step may have been done or not; look and decide again.
var errAgain = errors.New("tried again")

// take does one step.
func (r *runner) take(ctx context.Context, s step, v *view) error {
	r.tell(s, v)
	if s.action == wait || s.action == done {
		return nil
	}
	if err := r.agree(s, v); err != nil {
		return err
	}
	if r.o.Hook != "" && len(s.tasks) > 0 {
		if err := r.hook(ctx, s, v); err != nil {
			return err
		}
	}
	return r.change(s, func() (int, error) {
		switch s.action {
		case scale:
			return CodeScale, r.o.API.Scale(ctx, s.app, s.instances)
		case kill:
			return CodeScale, r.o.API.KillAndScale(ctx, s.tasks)
		default:
			return CodeDelete, r.o.API.Delete(ctx, s.app, s.force)
		}
	})
}

// change makes a change between the points at which a test may end the run.
func (r *runner) change(s step, do func() (code int, err error)) error {
	if r.o.interrupt != nil {
		if err := r.o.interrupt("before", s); err != nil {
			return err
		}
	}
	code, err := do()
	if err == nil {
		r.steady = time.Now()
	}
	if r.o.interrupt != nil {
		if err := r.o.interrupt("after", s); err != nil {
			return err
		}
	}
	switch {
	case err == nil, errors.Is(err, discovery.ErrNoApp):
		return nil
	case errors.Is(err, discovery.ErrRefused):
		return &Error{code, fmt.Errorf("%s %s: %w", s.action, s.app, err)}
	}
	return fmt.Errorf("%w: %w", errAgain, &Error{code, fmt.Errorf("%s %s: %w", s.action, s.app, err)})
}

func (r *runner) create(ctx context.Context, next *version, v *view) error {
	s := step{action: create, app: next.id, instances: next.instances, why: fmt.Sprintf("of %d", next.target)}
	r.tell(s, v)
	if err := r.agree(s, v); err != nil {
		return err
	}
	r.known[next.id] = true
	err := r.change(s, func() (int, error) { return CodeCreate, r.o.API.Create(ctx, next.doc) })
	if e, ok := errors.AsType[*Error](err); ok && errors.Is(err, errAgain) {
		// Not known whether it was made. Looking tells, and the run goes on from there.
		if _, lookErr := r.o.API.App(ctx, next.id); lookErr != nil {
			return e
		}
		return nil
	}
	return err
}

// agree asks the operator, once.
func (r *runner) agree(s step, v *view) error {
	if r.agreed || r.o.Confirm == nil {
		return nil
	}
	var have []string
	for _, a := range v.apps {
		have = append(have, fmt.Sprintf("%s with %d instances", a.id, a.instances))
	}
	question := fmt.Sprintf("Deployment group %s has %s. Begin with: %s?", r.group, cmp.Or(strings.Join(have, " and "), "no app"), describe(s))
	if !r.o.Confirm(question) {
		return fail(CodeDeclined, "declined; nothing was changed")
	}
	r.agreed = true
	return nil
}

// hook runs the operator's program before tasks are killed. zdd.py gives it the same
// arguments.
func (r *runner) hook(ctx context.Context, s step, v *view) error {
	tasks, err := json.Marshal(s.tasks)
	if err != nil {
		return err
	}
	old, fresh := v.apps[0], v.apps[1]
	out, err := exec.CommandContext(ctx, r.o.Hook, string(old.raw), string(tasks), string(fresh.raw)).CombinedOutput()
	if err != nil {
		return fail(CodeDeclined, "hook %s: %w: %s", r.o.Hook, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// describe says a step in words.
func describe(s step) string {
	switch s.action {
	case create:
		return fmt.Sprintf("create %s with %d instances", s.app, s.instances)
	case scale:
		return fmt.Sprintf("scale %s to %d instances", s.app, s.instances)
	case kill:
		return fmt.Sprintf("kill %d tasks of %s", len(s.tasks), s.app)
	case remove:
		return "delete " + s.app
	}
	return s.why
}

// tell reports a step; a reason to wait once.
func (r *runner) tell(s step, v *view) {
	if s.action == wait && s.why == r.said {
		return
	}
	r.said = s.why
	e := Event{Step: s.action.String(), App: s.app, Instances: s.instances, Tasks: s.tasks, Detail: s.why}
	for _, a := range v.apps {
		e.Apps = append(e.Apps, AppState{a.id, a.instances, a.standing()})
	}
	r.report(e)
}

func (r *runner) report(e Event) {
	if r.o.Report != nil {
		e.Time = time.Now()
		r.o.Report(e)
	}
}

// rehearse tells the steps that a run would take if all went well.
func (r *runner) rehearse(g goal, begin *version, v *view) error {
	clock := 0
	model := &view{apps: slices.Clone(v.apps)}
	tick := func(a *app) {
		clock++
		a.lastScaling = fmt.Sprintf("9%09d", clock) // after every real one
	}
	grow := func(a *app, n int) {
		a.instances = n
		for i := len(a.tasks); i < n; i++ {
			a.tasks = append(a.tasks, task{id: fmt.Sprintf("%s.new-%d", a.id, i), stands: true})
		}
		tick(a)
	}
	for i, a := range model.apps { // as they are when nothing is under way
		settled := *a
		settled.deployments = 0
		settled.tasks = slices.Clone(a.tasks)
		for j := range settled.tasks {
			settled.tasks[j].stands = true
		}
		last := settled.lastScaling
		grow(&settled, settled.instances)
		settled.lastScaling = last
		model.apps[i] = &settled
	}
	if begin != nil {
		r.tell(step{action: create, app: begin.id, instances: begin.instances, why: string(begin.doc)}, model)
		fresh := &app{id: begin.id, goal: 0, target: begin.target}
		grow(fresh, begin.instances)
		model.apps = append(model.apps, fresh)
	}
	g.drain, g.killAfter = 0, 0
	for {
		s := decide(g, model)
		r.tell(s, model)
		i := slices.IndexFunc(model.apps, func(a *app) bool { return a.id == s.app })
		switch s.action {
		case scale:
			grow(model.apps[i], s.instances)
		case kill:
			a := model.apps[i]
			a.tasks = slices.DeleteFunc(a.tasks, func(t task) bool { return slices.Contains(s.tasks, t.id) })
			a.instances -= len(s.tasks)
			tick(a)
		case remove:
			model.apps = slices.Delete(model.apps, i, i+1)
		default:
			return nil
		}
	}
}
