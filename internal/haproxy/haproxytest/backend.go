package haproxytest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
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

// FreePorts returns n different ports of 127.0.0.1 that nobody listens on now.
func FreePorts(t testing.TB, n int) []uint16 {
	t.Helper()
	ports := make([]uint16, n)
	for i := range ports {
		// All are held until the last is chosen, so that they differ.
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).AddrPort().Port()
	}
	return ports
}
