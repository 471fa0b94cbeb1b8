package marathontest

import (
	"context"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// FaultKind is what goes wrong.
type FaultKind int

// Faults of requests. They strike whatever Path, Method and Nodes name; nothing named means every request.
const (
	FailRequest     FaultKind = iota + 1 // answer Status (default 503) with Body
	RedirectRequest                      // answer 302 to URL
	DelayRequest                         // wait Delay first
	HangRequest                          // never answer, until the client goes or the fault is removed
	DropRequest                          // close the connection without an answer
	ResetRequest                         // the same with a TCP reset
	SlowBody                             // Rate bytes a second
	TruncateBody                         // end after Bytes bytes (or half), though the length promised more
	CutBody                              // the same, but looking complete, as behind a standby
	EditBody                             // the body is what Edit makes of it
	ContentType                          // Body is the content type
	EmptyApps                            // no apps at all
	HalfApps                             // only the first half of the apps
	NoTasks                              // no tasks in any app
	ForgetHealth                         // no health check results
	FreezeAnswer                         // the first answer of each URL is repeated: a stale snapshot
	EndStream                            // of /v2/events: 200, headers, end of file
)

// Faults of events, for each stream by itself. They strike whatever Event, Match, Nodes and Stream name.
const (
	LoseEvent      FaultKind = iota + 100 // not sent
	DuplicateEvent                        // sent twice
	SwapEvent                             // sent after the next event, or after Delay (default 20 ms)
	DelayEvent                            // sent Delay later
	ReorderEvents                         // collected up to Window or Delay (default 20 ms), then shuffled
	CutBefore                             // the stream ends before the event
	CutAfter                              // the stream ends after the event
	CutInside                             // the stream ends after Bytes bytes of the event (or half)
	ResetInside                           // the same with a TCP reset
	GarbleEvent                           // half of the JSON, but a complete event
	JoinEvents                            // the JSON twice in one event, on two lines
	SplitData                             // the JSON over several data lines
	BareLF                                // lines end in LF alone
	LoneCR                                // lines end in CR alone
)

// Fault is something that goes wrong on purpose. Kind says what, the first block
// where, the second how often, the third the details.
type Fault struct {
	Kind FaultKind

	Nodes  []int            // nodes by number; nil: all
	Method string           // "": any
	Path   string           // beginning of the path with query, without Options.BasePath; "": any
	Event  string           // event type; "": any
	Match  func(Event) bool // must not call the cluster
	Stream int              // number of the stream, from 1 in order of attachment; 0: all

	Skip   int     // let the first ones pass
	Times  int     // then strike so often; 0: until removed
	Chance float64 // strike with this probability; 0: always

	Status int
	Body   string
	URL    string
	Header http.Header
	Delay  time.Duration
	Rate   int
	Bytes  int
	Window int
	Edit   func([]byte) []byte
}

// Injected is a fault in force.
type Injected struct {
	set   *faultSet
	fault Fault
	gone  chan struct{}

	seen, count int               // guarded by set.mu, as is what follows
	frozen      map[string][]byte // by URL
	removed     bool
}

// Count is how often the fault struck.
func (f *Injected) Count() int {
	f.set.mu.Lock()
	defer f.set.mu.Unlock()
	return f.count
}

// Remove ends the fault.
func (f *Injected) Remove() {
	f.set.mu.Lock()
	defer f.set.mu.Unlock()
	f.set.list = slices.DeleteFunc(f.set.list, func(o *Injected) bool { return o == f })
	if !f.removed {
		f.removed = true
		close(f.gone)
	}
}

// faultSet has a lock of its own: requests are matched without the cluster's.
type faultSet struct {
	mu   sync.Mutex
	list []*Injected
	rng  *rand.Rand
}

// Inject puts a fault in force. Several work together, in the order of injection.
func (c *Cluster) Inject(f Fault) *Injected {
	in := &Injected{set: &c.faults, fault: f, gone: make(chan struct{}), frozen: make(map[string][]byte)}
	c.faults.mu.Lock()
	defer c.faults.mu.Unlock()
	c.faults.list = append(c.faults.list, in)
	return in
}

// ClearFaults removes all faults.
func (c *Cluster) ClearFaults() {
	c.faults.mu.Lock()
	list := slices.Clone(c.faults.list)
	c.faults.mu.Unlock()
	for _, f := range list {
		f.Remove()
	}
}

// strikes tells whether the fault, which fits, is due. The set's lock is held.
func (f *Injected) strikes() bool {
	f.seen++
	if f.seen <= f.fault.Skip || f.fault.Times > 0 && f.count >= f.fault.Times {
		return false
	}
	if f.fault.Chance > 0 && f.set.rng.Float64() >= f.fault.Chance {
		return false
	}
	f.count++
	return true
}

// forRequest returns the faults that strike a request.
func (s *faultSet) forRequest(node int, method, path string) []*Injected {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*Injected
	for _, f := range s.list {
		if f.fault.Kind >= LoseEvent || f.fault.Nodes != nil && !slices.Contains(f.fault.Nodes, node) ||
			f.fault.Method != "" && f.fault.Method != method || !strings.HasPrefix(path, f.fault.Path) {
			continue
		}
		if f.strikes() {
			out = append(out, f)
		}
	}
	return out
}

// forEvent returns the faults that strike an event on a stream.
func (s *faultSet) forEvent(node, stream int, ev *Event) []*Injected {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*Injected
	for _, f := range s.list {
		if f.fault.Kind < LoseEvent || f.fault.Nodes != nil && !slices.Contains(f.fault.Nodes, node) ||
			f.fault.Stream != 0 && f.fault.Stream != stream || f.fault.Event != "" && f.fault.Event != ev.Type ||
			f.fault.Match != nil && !f.fault.Match(*ev) {
			continue
		}
		if f.strikes() {
			out = append(out, f)
		}
	}
	return out
}

func (s *faultSet) shuffle(n int, swap func(i, j int)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rng.Shuffle(n, swap)
}

// frozenAnswer returns the first answer given for a URL while the fault was in force.
func (f *Injected) frozenAnswer(url string, body []byte) []byte {
	f.set.mu.Lock()
	defer f.set.mu.Unlock()
	if kept, ok := f.frozen[url]; ok {
		return kept
	}
	f.frozen[url] = body
	return body
}

// wait blocks for d, or without end for d < 0, until the context ends or the fault is removed.
func (f *Injected) wait(ctx context.Context, d time.Duration) error {
	var due <-chan time.Time
	if d >= 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-due:
	case <-f.gone:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}
