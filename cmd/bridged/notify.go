package main

import (
	"fmt"
	"net"
	"strconv"
	"time"
)

// notifier speaks sd_notify(3) to the service manager that started us. A nil one has
// nobody to speak to.
type notifier struct {
	conn     *net.UnixConn
	watchdog time.Duration // 0: none asked for
}

// newNotifier reads NOTIFY_SOCKET and WATCHDOG_USEC. pid is ours: the watchdog may be
// meant for another process.
func newNotifier(environ []string, pid int) (*notifier, error) {
	path := envOf(environ, "NOTIFY_SOCKET")
	if path == "" {
		return nil, nil
	}
	if path[0] == '@' { // of the abstract namespace
		path = "\x00" + path[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("NOTIFY_SOCKET: %w", err)
	}
	n := &notifier{conn: conn}
	if p := envOf(environ, "WATCHDOG_PID"); p == "" || p == strconv.Itoa(pid) {
		if us, err := strconv.ParseInt(envOf(environ, "WATCHDOG_USEC"), 10, 64); err == nil && us > 0 {
			n.watchdog = time.Duration(us) * time.Microsecond
		}
	}
	return n, nil
}

// Notify sends state. A manager that does not listen is no reason to stop, and one that
// is slow must not stop the loop.
func (n *notifier) Notify(state string) {
	if n == nil {
		return
	}
	_ = n.conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	_, _ = n.conn.Write([]byte(state))
}

// Watchdog is how often the manager wants to hear from us, 0 for not at all.
func (n *notifier) Watchdog() time.Duration {
	if n == nil {
		return 0
	}
	return n.watchdog
}

func (n *notifier) Close() {
	if n != nil {
		n.conn.Close()
	}
}
