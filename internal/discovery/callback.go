package discovery

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	callbackPath  = "/marathon-events/"
	registerEvery = 2 * time.Minute // the list is Marathon's; others may have emptied it
	callbackRead  = 20 * time.Second
	maxCallbacks  = 64 // POSTs being read at once
)

// callbacks hears events as Marathon up to 1.4 POSTs them to who subscribed. There is
// no order, no retry and no authentication: the path is a secret that only Marathon was
// told, and posts are taken from Marathon's own addresses alone.
type callbacks struct {
	*listener
	opts   CallbackOptions
	secret string // part of the path; kept over restarts, so that the URL stays
	slots  chan struct{}
}

// secretIn reads or makes the random part of the path. dir "" makes one for this life.
func secretIn(dir string, log *slog.Logger) string {
	if dir == "" {
		return rand.Text()
	}
	path := filepath.Join(dir, "callback-secret")
	if b, err := os.ReadFile(path); err == nil {
		if s := strings.TrimSpace(string(b)); len(s) >= 20 && len(s) <= 64 && plain(s) && !strings.ContainsAny(s, "/?#%") {
			return s
		}
	}
	s := rand.Text()
	if err := os.WriteFile(path, []byte(s+"\n"), 0o600); err != nil {
		log.Warn("callback path not kept; Marathon will be told another after a restart", "err", err)
	}
	return s
}

// run listens, registers with the leader, and keeps registered until ctx ends. It then
// deregisters. An error is one of listening.
func (c *callbacks) run(ctx context.Context) error {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.opts.Listen)
	if err != nil {
		return fmt.Errorf("callback listener %s: %w", c.opts.Listen, err)
	}
	base := strings.TrimRight(c.opts.URL, "/")
	if base == "" {
		base = "http://" + ln.Addr().String()
	}
	own := base + callbackPath
	c.slots = make(chan struct{}, maxCallbacks)
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+callbackPath+c.secret, func(w http.ResponseWriter, r *http.Request) { c.serve(ctx, w, r) })
	server := &http.Server{
		Handler: mux, ReadTimeout: callbackRead, WriteTimeout: callbackRead, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	leader := c.register(ctx, own)
	server.Close()
	<-served
	if leader != nil {
		// ctx is over; the subscription would outlive us.
		if err := c.client.unsubscribe(context.WithoutCancel(ctx), leader, own+c.secret); err != nil {
			c.log.Warn("callback not deregistered", "err", err)
		}
	}
	return ctx.Err()
}

// register keeps the callback registered with whoever leads, and returns the leader
// that it was last registered with.
func (c *callbacks) register(ctx context.Context, own string) (last *url.URL) {
	var pace retry
	var at *url.URL
	var checked time.Time
	for {
		leader, err := c.client.findLeader(ctx)
		if err == nil && (at == nil || leader.String() != at.String() || time.Since(checked) > registerEvery) {
			err = c.client.subscribe(ctx, leader, own+c.secret, func(u string) bool { return strings.HasPrefix(u, own) })
			if err == nil {
				checked, last = time.Now(), leader
			}
		}
		if ctx.Err() != nil {
			return last
		}
		pause := jitter(leaderEvery)
		switch {
		case err != nil:
			lost := &loss{reason: classify(err), err: err, had: at != nil}
			at = nil
			pause = pace.pause(time.Now(), lost.reason)
			c.send(ctx, input{lost: lost})
		case at == nil || leader.String() != at.String():
			at = leader
			pace.reset()
			v, text, _ := c.client.version(ctx, leader)
			c.send(ctx, input{attached: &attachment{transport: TransportCallback, base: leader, version: v, text: text}})
		}
		if err == nil {
			c.heard(time.Now())
		}
		if !c.wait(ctx, pause) {
			return last
		}
	}
}

// serve takes in one POST. Marathon 0.14 and newer leave slow receivers out for a
// while, so that it is answered before the event is worked on.
func (c *callbacks) serve(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	default:
		http.Error(w, "too many events at once", http.StatusServiceUnavailable)
		return
	}
	if !c.fromMarathon(ctx, r.RemoteAddr) {
		http.Error(w, "not from Marathon", http.StatusForbidden)
		return
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEvent))
	received := time.Now()
	f := frame{data: data, received: received}
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); !ok {
			return // cut; Marathon does not send it again, audits find what it was
		}
		f.oversize = true
	}
	var in input
	in.decode(f)
	c.heard(received)
	w.WriteHeader(http.StatusOK)
	c.send(ctx, in)
}

// fromMarathon: the sender has an address of a member, of an announced leader, or one that
// is configured.
func (c *callbacks) fromMarathon(ctx context.Context, remote string) bool {
	sender, err := netip.ParseAddrPort(remote)
	if err != nil {
		return false
	}
	from := sender.Addr().Unmap()
	for _, p := range c.opts.From {
		if p.Contains(from) {
			return true
		}
	}
	for _, host := range c.client.hosts() {
		if addr, err := netip.ParseAddr(host); err == nil {
			if addr.Unmap() == from {
				return true
			}
			continue
		}
		lookup, cancel := context.WithTimeout(ctx, resolveTimeout)
		addrs, _ := c.resolver.LookupNetIP(lookup, "ip", host)
		cancel()
		for _, addr := range addrs {
			if addr.Unmap() == from {
				return true
			}
		}
	}
	return false
}

// hosts are the members and the announced leaders.
func (c *client) hosts() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var hosts []string
	for _, m := range c.members {
		hosts = append(hosts, m.Hostname())
	}
	for leader := range c.leaders {
		if host, _, err := net.SplitHostPort(leader); err == nil {
			hosts = append(hosts, host)
		}
	}
	return hosts
}
