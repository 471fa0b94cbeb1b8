package vsphere

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"bridged/internal/provision"
)

// How often the poller asks: soon after something changed, seldom when nothing
// does. The interval is a tenth of the time since the last change.
const (
	pollMin = 20 * time.Millisecond
	pollMax = time.Second
)

// errGone says that a watched object exists no more.
var errGone = errors.New("it exists no more")

// poller reads everything that is waited for, tasks and VMs, with one collector
// call at a time. A wait per task would be several calls for each, and a filter
// that lists many tasks is slow to change; with this a poll costs one call
// however much is waited for. Its goroutine runs while there is a watch.
type poller struct {
	p *Provider

	mu      sync.Mutex // guards what follows
	watches map[*watch]bool
	running bool
	wake    chan struct{} // a level: something was added
	done    sync.WaitGroup
}

// watch is one object that is waited for.
type watch struct {
	ref types.ManagedObjectReference
	// seen is called with what was read, on the poller's goroutine, until it
	// reports an end.
	seen func(o *object) (end bool)
	over chan error // capacity 1
}

func newPoller(p *Provider) *poller {
	return &poller{p: p, watches: map[*watch]bool{}, wake: make(chan struct{}, 1)}
}

// watch returns when seen has reported the end, when the object is gone
// (errGone) or with ctx's error.
func (l *poller) watch(ctx context.Context, ref types.ManagedObjectReference, seen func(o *object) bool) error {
	w := &watch{ref: ref, seen: seen, over: make(chan error, 1)}
	l.mu.Lock()
	l.watches[w] = true
	if !l.running {
		l.running = true
		l.done.Go(l.run)
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	select {
	case err := <-w.over:
		return err
	case <-ctx.Done():
		l.mu.Lock()
		delete(l.watches, w)
		l.mu.Unlock()
		select {
		case l.wake <- struct{}{}: // the poller ends when nothing is left
		default:
		}
		return ctx.Err()
	}
}

// wait returns when the poller's goroutine has ended.
func (l *poller) wait() { l.done.Wait() }

func (l *poller) run() {
	ctx := l.p.ctx
	changed := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-l.wake:
			changed = time.Now()
		case <-timer.C:
		case <-ctx.Done():
			l.end(ctx.Err())
			return
		}
		l.mu.Lock()
		if len(l.watches) == 0 {
			l.running = false
			l.mu.Unlock()
			return
		}
		watches := slices.Collect(maps.Keys(l.watches))
		l.mu.Unlock()

		progress, err := l.look(ctx, watches)
		if err != nil {
			l.end(fmt.Errorf("read what is in progress: %w", err))
			timer.Reset(pollMin)
			continue
		}
		if progress {
			changed = time.Now()
		}
		timer.Reset(min(max(time.Since(changed)/10, pollMin), pollMax))
	}
}

// end gives up on everything that is waited for.
func (l *poller) end(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for w := range l.watches {
		w.over <- err
		delete(l.watches, w)
	}
	l.running = l.p.ctx.Err() == nil
}

// look reads all watched objects once and reports whether a watch ended.
func (l *poller) look(ctx context.Context, watches []*watch) (bool, error) {
	spec := types.PropertyFilterSpec{PropSet: []types.PropertySpec{
		{Type: "Task", PathSet: []string{"info"}},
		{Type: "VirtualMachine", PathSet: l.p.paths("runtime.powerState", "guest.toolsRunningStatus", extraPath(provision.StatusKey))},
	}}
	asked := map[types.ManagedObjectReference]bool{}
	for _, w := range watches {
		if !asked[w.ref] {
			asked[w.ref] = true
			spec.ObjectSet = append(spec.ObjectSet, types.ObjectSpec{Obj: w.ref})
		}
	}
	list, err := l.p.retrieve(ctx, spec)
	if err != nil {
		return false, err
	}
	found := make(map[types.ManagedObjectReference]*object, len(list))
	for i := range list {
		found[list[i].ref] = &list[i]
	}
	progress := false
	for _, w := range watches {
		var err error
		if o := found[w.ref]; o == nil {
			err = errGone
		} else if !w.seen(o) {
			continue
		}
		progress = true
		l.mu.Lock()
		if l.watches[w] {
			delete(l.watches, w)
			w.over <- err
		}
		l.mu.Unlock()
	}
	return progress, nil
}

// task waits for a task and returns its result. report, if not nil, is called
// with the percentage as it grows.
func (p *Provider) task(ctx context.Context, ref types.ManagedObjectReference, report func(percent int)) (types.AnyType, error) {
	var info types.TaskInfo
	last := int32(0)
	err := p.poll.watch(ctx, ref, func(o *object) bool {
		i, ok := o.props["info"].(types.TaskInfo)
		if !ok {
			return false
		}
		info = i
		if report != nil && info.Progress/10 > last/10 && info.State == types.TaskInfoStateRunning {
			last = info.Progress
			report(int(last))
		}
		return info.State == types.TaskInfoStateSuccess || info.State == types.TaskInfoStateError
	})
	if err != nil {
		return nil, err
	}
	if info.State == types.TaskInfoStateError {
		if info.Error == nil {
			return nil, fmt.Errorf("task %s failed without a reason", ref.Value)
		}
		return nil, &taskError{fault: *info.Error}
	}
	return info.Result, nil
}

// taskError is the fault that a task ended with.
type taskError struct{ fault types.LocalizedMethodFault }

func (e *taskError) Error() string { return e.fault.LocalizedMessage }

// Fault lets govmomi's fault.Is and fault.As look inside.
func (e *taskError) Fault() types.BaseMethodFault { return e.fault.Fault }
