package vsphere

import (
	"context"
	"slices"
	"sync"

	"bridged/internal/provision"
)

// Defaults of the blueprint's limits.
const (
	defaultParallel     = 16
	defaultPerHost      = 8
	defaultPerDatastore = 8
)

// slots bound how many operations vCenter does for us at once: in all, on a
// host and on a datastore. They are given in the order in which they were asked
// for, except that one who waits for a busy host does not hold up the others.
type slots struct {
	parallel, perHost, perDatastore int

	mu      sync.Mutex // guards what follows
	used    map[string]int
	waiting []*slotRequest
}

type slotRequest struct {
	keys  []string
	given chan struct{} // closed when the slot is taken
}

// Keys of the slots are "" for all operations, and these prefixes with a name.
const (
	hostKey      = "host "
	datastoreKey = "datastore "
)

func newSlots(l provision.Limits) *slots {
	s := &slots{parallel: l.Parallel, perHost: l.PerHost, perDatastore: l.PerDatastore, used: map[string]int{}}
	orDefault(&s.parallel, defaultParallel)
	orDefault(&s.perHost, defaultPerHost)
	orDefault(&s.perDatastore, defaultPerDatastore)
	return s
}

func orDefault(n *int, d int) {
	if *n <= 0 {
		*n = d
	}
}

func (s *slots) limit(key string) int {
	switch {
	case key == "":
		return s.parallel
	case len(key) > len(hostKey) && key[:len(hostKey)] == hostKey:
		return s.perHost
	}
	return s.perDatastore
}

// take waits for a slot among all operations, on the host and on the datastore;
// "" for either stands for none. The slot is given back by calling free.
func (s *slots) take(ctx context.Context, host, datastore string) (free func(), err error) {
	r := &slotRequest{keys: []string{""}, given: make(chan struct{})}
	if host != "" {
		r.keys = append(r.keys, hostKey+host)
	}
	if datastore != "" {
		r.keys = append(r.keys, datastoreKey+datastore)
	}
	s.mu.Lock()
	s.waiting = append(s.waiting, r)
	s.giveLocked()
	s.mu.Unlock()
	free = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, k := range r.keys {
			s.used[k]--
		}
		s.giveLocked()
	}
	select {
	case <-r.given:
		return free, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	i := slices.Index(s.waiting, r)
	if i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
	s.mu.Unlock()
	if i < 0 { // given in the meantime
		free()
	}
	return nil, ctx.Err()
}

func (s *slots) giveLocked() {
	s.waiting = slices.DeleteFunc(s.waiting, func(r *slotRequest) bool {
		for _, k := range r.keys {
			if s.used[k] >= s.limit(k) {
				return false
			}
		}
		for _, k := range r.keys {
			s.used[k]++
		}
		close(r.given)
		return true
	})
}
