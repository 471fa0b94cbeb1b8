package haproxytest

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Faults is a proxy on a unix socket that passes bytes through until it is told to
// misbehave. Its methods may be called at any time and act on connections that are
// open already, unless they say otherwise.
type Faults struct {
	listener net.Listener
	target   string
	done     chan struct{}
	wg       sync.WaitGroup

	mu       sync.Mutex // guards the fields below
	conns    map[net.Conn]struct{}
	accepted int
	budget   int64         // answer bytes that still pass; -1: no limit
	delay    time.Duration // before each piece of an answer
	silent   bool
	refuse   bool
	changed  chan struct{} // closed and replaced when one of the above changes
}

func newFaults(t testing.TB, path, target string) *Faults {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	f := &Faults{listener: l, target: target, done: make(chan struct{}),
		conns: map[net.Conn]struct{}{}, budget: -1, changed: make(chan struct{})}
	f.wg.Go(f.accept)
	t.Cleanup(f.close)
	return f
}

// CutAfter closes the connection, and each that follows, after n more bytes of answers
// in all have passed.
func (f *Faults) CutAfter(n int64) { f.set(func() { f.budget = n }) }

// Delay holds back each piece of an answer for d.
func (f *Faults) Delay(d time.Duration) { f.set(func() { f.delay = d }) }

// Silence holds back answers altogether; the connections stay open.
func (f *Faults) Silence() { f.set(func() { f.silent = true }) }

// Refuse closes each new connection at once.
func (f *Faults) Refuse() { f.set(func() { f.refuse = true }) }

// Heal ends all faults; answers held back by Silence are delivered.
func (f *Faults) Heal() {
	f.set(func() { f.budget, f.delay, f.silent, f.refuse = -1, 0, false, false })
}

// Drop closes the connections that are open now.
func (f *Faults) Drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		c.Close()
	}
}

// Accepted is the number of connections seen so far, refused ones included.
func (f *Faults) Accepted() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.accepted
}

func (f *Faults) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *Faults) close() {
	close(f.done)
	f.listener.Close()
	f.Drop()
	f.wg.Wait()
}

func (f *Faults) accept() {
	for {
		client, err := f.listener.Accept()
		if err != nil {
			return // closed
		}
		f.mu.Lock()
		f.accepted++
		refuse := f.refuse
		f.mu.Unlock()
		server, err := net.Dial("unix", f.target)
		if refuse || err != nil {
			client.Close()
			if err == nil {
				server.Close()
			}
			continue
		}
		if !f.track(client, server) {
			return
		}
		f.wg.Go(func() {
			_, _ = io.Copy(server, client)
			// Half-closed, as `echo cmd | socat` leaves it: the answer is still to come.
			_ = server.(*net.UnixConn).CloseWrite()
		})
		f.wg.Go(func() {
			f.answers(client, server)
			client.Close()
			server.Close()
			f.mu.Lock()
			delete(f.conns, client)
			delete(f.conns, server)
			f.mu.Unlock()
		})
	}
}

func (f *Faults) track(conns ...net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.done:
		for _, c := range conns {
			c.Close()
		}
		return false
	default:
	}
	for _, c := range conns {
		f.conns[c] = struct{}{}
	}
	return true
}

// answers copies from HAProxy to the client as the faults of the moment allow.
func (f *Faults) answers(client io.Writer, server io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := server.Read(buf)
		for pass := 0; pass < n; {
			f.mu.Lock()
			allowed := int64(n - pass)
			if f.budget >= 0 {
				allowed = min(allowed, f.budget)
			}
			cut := f.budget >= 0 && allowed < int64(n-pass)
			silent, delay, changed := f.silent, f.delay, f.changed
			if !silent && f.budget >= 0 {
				f.budget -= allowed
			}
			f.mu.Unlock()
			if silent {
				select {
				case <-changed:
					continue
				case <-f.done:
					return
				}
			}
			if delay > 0 {
				select {
				case <-time.After(delay):
				case <-f.done:
					return
				}
			}
			if _, err := client.Write(buf[pass : pass+int(allowed)]); err != nil || cut {
				return
			}
			pass += int(allowed)
		}
		if err != nil {
			return
		}
	}
}
