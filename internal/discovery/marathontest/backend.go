package marathontest

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// Backends serves HTTP for tasks: set [Options.Backend] to its Serve method. Every
// answer has the task's id as its body and in X-Task, the app in X-App and the
// index of the port in X-Port. A query ?delay=200ms or SetDelay makes answers
// slow; ?status=503 or SetStatus makes them fail. Connections are kept alive.
//
// When a task ends its listeners and connections are closed at once, as those of
// a killed process. The zero value is ready to use, from any goroutine.
type Backends struct {
	// Graceful lets tasks finish the requests they are at when they end, for at most 10 s. Set it before use.
	Graceful bool

	mu       sync.Mutex // guards what follows
	byTask   map[string]*backend
	requests int
	serving  sync.WaitGroup
}

// backend is what the ports of one task have in common.
type backend struct {
	requests int
	delay    time.Duration
	status   int
	servers  []*http.Server
}

// Serve listens for one port of one task.
func (b *Backends) Serve(t Task, port int, listen netip.AddrPort) (int, func(), error) {
	ln, err := net.Listen("tcp", listen.String())
	if err != nil {
		return 0, nil, fmt.Errorf("listen: %w", err)
	}
	_, text, _ := net.SplitHostPort(ln.Addr().String())
	got, err := strconv.Atoi(text)
	if err != nil {
		ln.Close()
		return 0, nil, fmt.Errorf("port of %s: %w", ln.Addr(), err)
	}
	be := b.of(t.ID)
	server := &http.Server{
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          log.New(io.Discard, "", 0),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b.answer(w, r, t, port, be)
		}),
	}
	b.mu.Lock()
	be.servers = append(be.servers, server)
	b.mu.Unlock()
	b.serving.Go(func() { server.Serve(ln) })
	stop := func() { server.Close() }
	if b.Graceful {
		stop = func() {
			ln.Close() // before anybody is told, so that no new connection gets in
			b.serving.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				server.Shutdown(ctx) // what has not ended by then is cut
				server.Close()
			})
		}
	}
	return got, stop, nil
}

func (b *Backends) of(task string) *backend {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.byTask == nil {
		b.byTask = make(map[string]*backend)
	}
	be := b.byTask[task]
	if be == nil {
		be = &backend{status: http.StatusOK}
		b.byTask[task] = be
	}
	return be
}

func (b *Backends) answer(w http.ResponseWriter, r *http.Request, t Task, port int, be *backend) {
	b.mu.Lock()
	b.requests++
	be.requests++
	delay, status := be.delay, be.status
	b.mu.Unlock()
	q := r.URL.Query()
	if d, err := time.ParseDuration(q.Get("delay")); err == nil {
		delay = d
	}
	if s, err := strconv.Atoi(q.Get("status")); err == nil && s >= 200 && s < 600 {
		status = s
	}
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
			return
		}
	}
	w.Header().Set("X-App", t.App)
	w.Header().Set("X-Task", t.ID)
	w.Header().Set("X-Port", strconv.Itoa(port))
	w.WriteHeader(status)
	io.WriteString(w, t.ID+"\n") // a client that went away is no error here
}

// Requests is how many requests a task answered, or all of them for "".
func (b *Backends) Requests(task string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if task == "" {
		return b.requests
	}
	if be := b.byTask[task]; be != nil {
		return be.requests
	}
	return 0
}

// SetDelay makes a task wait before each answer.
func (b *Backends) SetDelay(task string, d time.Duration) {
	be := b.of(task)
	b.mu.Lock()
	defer b.mu.Unlock()
	be.delay = d
}

// SetStatus makes a task answer with this code.
func (b *Backends) SetStatus(task string, code int) {
	be := b.of(task)
	b.mu.Lock()
	defer b.mu.Unlock()
	be.status = code
}

// Crash closes what a task serves, now and without Marathon knowing: a process
// that died while nobody looked.
func (b *Backends) Crash(task string) {
	b.mu.Lock()
	var servers []*http.Server
	if be := b.byTask[task]; be != nil {
		servers, be.servers = be.servers, nil
	}
	b.mu.Unlock()
	for _, s := range servers {
		s.Close()
	}
}

// Wait returns when every server that was stopped has ended. After Close of the
// cluster these are all.
func (b *Backends) Wait() { b.serving.Wait() }
