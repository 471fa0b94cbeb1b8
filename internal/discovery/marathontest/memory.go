package marathontest

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// MemoryNetwork is a network of pipes in this process, for tests in a bubble of
// testing/synctest: set [Options.Listen] and [Options.Dial] to its methods and
// let the client dial with DialContext too. Pipes have no buffers, so a client
// that does not read blocks its writer at once.
type MemoryNetwork struct {
	mu        sync.Mutex // guards what follows
	listeners map[string]*memoryListener
}

type memoryListener struct {
	net   *MemoryNetwork
	addr  string
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// Listen opens the address of a node, 192.0.2.1:8080 for the first one.
func (m *MemoryNetwork) Listen(node int) (net.Listener, error) {
	l := &memoryListener{net: m, addr: fmt.Sprintf("192.0.2.%d:8080", node+1), conns: make(chan net.Conn), done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.listeners == nil {
		m.listeners = make(map[string]*memoryListener)
	}
	if m.listeners[l.addr] != nil {
		return nil, &net.OpError{Op: "listen", Net: "pipe", Addr: l.Addr(), Err: fmt.Errorf("address in use")}
	}
	m.listeners[l.addr] = l
	return l, nil
}

// DialContext connects to a node that listens.
func (m *MemoryNetwork) DialContext(ctx context.Context, _, address string) (net.Conn, error) {
	m.mu.Lock()
	l := m.listeners[address]
	m.mu.Unlock()
	refused := &net.OpError{Op: "dial", Net: "pipe", Err: fmt.Errorf("%s: connection refused", address)}
	if l == nil {
		return nil, refused
	}
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.done:
		return nil, refused
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memoryListener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.net.mu.Lock()
		defer l.net.mu.Unlock()
		delete(l.net.listeners, l.addr)
	})
	return nil
}

func (l *memoryListener) Addr() net.Addr { return memoryAddr(l.addr) }

type memoryAddr string

func (memoryAddr) Network() string  { return "pipe" }
func (a memoryAddr) String() string { return string(a) }
