package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Limits of the listener. Everything it serves is small and read-only, so that a
// client that needs more than this is broken or means harm.
const (
	httpReadTimeout  = 10 * time.Second
	httpWriteTimeout = 30 * time.Second
	httpIdleTimeout  = 2 * time.Minute
	httpHeaderBytes  = 16 << 10
	httpBodyBytes    = 4 << 10
	httpConns        = 256
	httpShutdown     = 2 * time.Second

	// askTimeout is how long a handler waits for the loop. The loop's longest step is a
	// batch of runtime commands with a deadline of its own, well below.
	askTimeout = 5 * time.Second
)

// asker runs a function on the loop's goroutine and returns after it ran.
type asker func(ctx context.Context, f func()) error

// handlers serve one bridge. Nothing they serve changes anything.
type handlers struct {
	ask      asker
	health   func() State // on the loop's goroutine: without services
	state    func() State // on the loop's goroutine
	registry *prometheus.Registry
	log      *slog.Logger
}

// public is what may be shown to the network: metrics and health.
func (h *handlers) public() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", h.metrics())
	mux.HandleFunc("GET /healthz", h.healthz)
	mux.HandleFunc("GET /readyz", h.readyz)
	return mux
}

// local is public and the state, which names every app and address.
func (h *handlers) local() *http.ServeMux {
	mux := h.public()
	mux.HandleFunc("GET /api/state", h.apiState)
	mux.HandleFunc("GET /{$}", h.index)
	return mux
}

func (h *handlers) index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprint(w, "bridged\n\n/healthz    the loop is alive\n/readyz     synced with Marathon, and HAProxy runs what follows\n/metrics    for Prometheus\n/api/state  everything, as JSON\n")
}

// healthz answers when the loop does: a bridge whose loop hangs is not alive, however
// well its listener works.
func (h *handlers) healthz(w http.ResponseWriter, r *http.Request) {
	if err := h.ask(r.Context(), func() {}); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

func (h *handlers) readyz(w http.ResponseWriter, r *http.Request) {
	var s State
	if err := h.ask(r.Context(), func() { s = h.health() }); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	if !s.Ready {
		http.Error(w, strings.Join(s.NotReady, "\n"), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

func (h *handlers) apiState(w http.ResponseWriter, r *http.Request) {
	var s State
	if err := h.ask(r.Context(), func() { s = h.state() }); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(s); err != nil {
		h.log.Debug("state not sent", "err", err)
	}
}

func (h *handlers) metrics() http.Handler {
	serve := promhttp.HandlerFor(h.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4,
		Timeout:             httpWriteTimeout / 2,
		ErrorHandling:       promhttp.ContinueOnError,
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Gauges of the bridge are set when somebody looks, not on the event path. A loop
		// that does not answer must not hide the rest, which says why.
		if err := h.ask(r.Context(), func() { h.health() }); err != nil {
			h.log.Debug("metrics without the loop's", "err", err)
		}
		serve.ServeHTTP(w, r)
	})
}

// serveHTTP serves handler on ln until ctx ends.
func serveHTTP(ctx context.Context, ln net.Listener, handler http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           secured(handler),
		ReadHeaderTimeout: httpReadTimeout,
		ReadTimeout:       httpReadTimeout,
		WriteTimeout:      httpWriteTimeout,
		IdleTimeout:       httpIdleTimeout,
		MaxHeaderBytes:    httpHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-ctx.Done():
		case <-ended:
			return
		}
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), httpShutdown)
		defer cancel()
		if srv.Shutdown(sctx) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(limitConns(ln, httpConns))
	close(ended)
	wg.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", ln.Addr(), err)
}

// secured bounds request bodies and tells browsers to treat what they get as data.
func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		r.Body = http.MaxBytesReader(w, r.Body, httpBodyBytes)
		next.ServeHTTP(w, r)
	})
}

// limitConns keeps at most n connections of ln open; more wait in the kernel's queue.
func limitConns(ln net.Listener, n int) net.Listener {
	return &limitedListener{Listener: ln, slots: make(chan struct{}, n), closed: make(chan struct{})}
}

type limitedListener struct {
	net.Listener
	slots  chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: c, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	c.release()
	return c.Conn.Close()
}
