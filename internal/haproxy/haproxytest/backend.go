package haproxytest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"
)

// Server listens on a free port of 127.0.0.1 until the test ends and answers each TCP
// connection with name, so that a test sees which server it reached.
func Server(t testing.TB, name string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			_, _ = io.WriteString(conn, name)
			conn.Close()
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// Ask connects to a port of 127.0.0.1 and returns what is sent there before the peer
// closes: behind HAProxy, the name of the Server that was chosen.
func Ask(port uint16) (string, error) {
	conn, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", port), patience)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	name, err := io.ReadAll(conn)
	if err == nil && len(name) == 0 {
		err = errors.New("closed without an answer")
	}
	return string(name), err
}

var (
	portsMu sync.Mutex // guards ports
	ports   map[uint16]bool
)

// FreePorts returns n different ports of 127.0.0.1 that nobody listens on now. They are
// below the range from which the kernel serves those who ask for port 0, so that no other
// server of the test process gets one of them in the meantime.
func FreePorts(t testing.TB, n int) []uint16 {
	t.Helper()
	portsMu.Lock()
	defer portsMu.Unlock()
	if ports == nil {
		ports = make(map[uint16]bool)
	}
	const first, count = 16000, 16000
	var out []uint16
	// Test processes run side by side: each looks somewhere else first.
	for try := range count {
		port := uint16(first + (os.Getpid()*97+try)%count)
		if ports[port] {
			continue
		}
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		l.Close()
		ports[port] = true
		if out = append(out, port); len(out) == n {
			return out
		}
	}
	t.Fatalf("no %d free ports from %d on", n, first)
	return nil
}
