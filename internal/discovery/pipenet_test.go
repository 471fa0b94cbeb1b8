package discovery

import (
	"context"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"
)

// pipeNet is a network of pipes, for tests under testing/synctest, where real sockets
// would keep time from passing.
type pipeNet struct {
	mu        sync.Mutex
	listeners map[string]*pipeListener
	dials     []time.Time
}

type pipeListener struct {
	net   *pipeNet
	addr  pipeAddr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

type pipeAddr string

func (a pipeAddr) Network() string { return "tcp" }
func (a pipeAddr) String() string  { return string(a) }

func newPipeNet() *pipeNet { return &pipeNet{listeners: map[string]*pipeListener{}} }

// listen opens node i, at 10.0.0.i+1:8080.
func (n *pipeNet) listen(i int) (net.Listener, error) {
	l := &pipeListener{net: n, addr: pipeAddr(fmt.Sprintf("10.0.0.%d:8080", i+1)), conns: make(chan net.Conn), done: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[string(l.addr)] != nil {
		return nil, syscall.EADDRINUSE
	}
	n.listeners[string(l.addr)] = l
	return l, nil
}

func (n *pipeNet) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[addr]
	n.dials = append(n.dials, time.Now())
	n.mu.Unlock()
	refused := &net.OpError{Op: "dial", Net: network, Addr: pipeAddr(addr), Err: syscall.ECONNREFUSED}
	if l == nil {
		return nil, refused
	}
	near, far := net.Pipe()
	select {
	case l.conns <- far:
		return near, nil
	case <-l.done:
		return nil, refused
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (n *pipeNet) dialCount() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.dials)
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.net.mu.Lock()
		delete(l.net.listeners, string(l.addr))
		l.net.mu.Unlock()
	})
	return nil
}

func (l *pipeListener) Addr() net.Addr { return l.addr }
