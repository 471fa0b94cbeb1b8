package discovery

import (
	"context"
	"sync/atomic"
	"time"
)

// Watcher keeps the picture of one Marathon and says what changes in it.
type Watcher struct {
	opts    Options
	updates chan *Update
	status  atomic.Pointer[Status]
}

// Status is what an operator, /readyz and /api/state ask of a Watcher.
type Status struct {
	Source    string    `json:"source,omitempty"`
	Transport Transport `json:"transport"` // the one in use
	Connected bool      `json:"connected"` // the event stream is attached (poll: the last answer was good)
	Synced    bool      `json:"synced"`    // a whole picture was read at least once
	Leader    string    `json:"leader"`    // URL of the Marathon that is asked, "" for none
	Version   string    `json:"version"`   // of that Marathon, "" while unknown
	LastByte  time.Time `json:"lastByte"`  // of the stream, keep-alives included
	LastEvent time.Time `json:"lastEvent"`
	LastSync  time.Time `json:"lastSync"` // when the last whole picture was believed
	Apps      int       `json:"apps"`
	Services  int       `json:"services"`
	Tasks     int       `json:"tasks"` // those in Service.Tasks or waiting for an address

	// Held is why a whole picture was read and not believed yet, "" for none.
	Held      string    `json:"held,omitempty"`
	HeldSince time.Time `json:"heldSince,omitzero"`
	// Err is what keeps the Watcher from being connected or synced, "" for nothing.
	Err string `json:"error,omitempty"`
	// Broken are apps that could not be understood and are left as they were, id → reason.
	Broken map[string]string `json:"broken,omitempty"`
}

// NewWatcher checks o. Nothing is connected before Run.
func NewWatcher(o Options) (*Watcher, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	w := &Watcher{opts: o, updates: make(chan *Update)}
	w.status.Store(&Status{Source: o.Source})
	return w, nil
}

// Run watches until ctx ends. Lasting trouble is in Status and the log, and is no
// reason to return. Call it once.
func (w *Watcher) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Updates is where changes arrive, unbuffered: while nobody receives, the pending
// Update grows by what changes. The first one is Full. It is never closed.
func (w *Watcher) Updates() <-chan *Update { return w.updates }

// Status may be called from any goroutine.
func (w *Watcher) Status() Status { return *w.status.Load() }

// SetURLs replaces the members of the Marathon cluster. A stream that is attached to
// a member that stays is kept. It may be called from any goroutine.
func (w *Watcher) SetURLs(urls []string) error {
	o := w.opts
	o.URLs = urls
	return o.validate()
}
