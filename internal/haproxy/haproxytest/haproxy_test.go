package haproxytest_test

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"bridged/internal/haproxy/haproxytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestReloadsAreCountedByHAProxy(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		h := haproxytest.Start(t, haproxytest.Options{Binary: bin})
		first := h.Pid(t)
		if got := h.Reloads(t); got != 0 {
			t.Errorf("reloads after start = %d, want 0", got)
		}
		h.Reload(t)
		h.Reload(t)
		if got := h.Reloads(t); got != 2 {
			t.Errorf("reloads = %d, want 2\n%s", got, h.MasterCommand(t, "show proc"))
		}
		if h.Pid(t) == first {
			t.Errorf("worker %d survived two reloads", first)
		}
		if !slices.Contains(h.Workers(t), h.Pid(t)) {
			t.Errorf("workers %v do not contain %d", h.Workers(t), h.Pid(t))
		}
	})
}

func TestKilledWorkerTakesTheMasterAlongAndRestartBringsItBack(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		port := haproxytest.FreePorts(t, 1)[0]
		h := haproxytest.Start(t, haproxytest.Options{Binary: bin, Sections: fmt.Sprintf(
			"listen a\n    bind 127.0.0.1:%d\n    server s %s\n", port, haproxytest.Server(t, "one"))})
		if got, err := haproxytest.Ask(port); err != nil || got != "one" {
			t.Fatalf("answer %q, %v; want one", got, err)
		}
		h.KillWorker(t)
		if h.Alive() {
			t.Fatal("the master survived its worker")
		}
		h.Restart(t)
		if got, err := haproxytest.Ask(port); err != nil || got != "one" {
			t.Errorf("after restart: answer %q, %v; want one", got, err)
		}
	})
}

func TestFaults(t *testing.T) {
	h := haproxytest.Start(t, haproxytest.Options{})
	dial := func() net.Conn {
		conn, err := net.Dial("unix", h.Socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		// A refused connection may be closed already.
		_, _ = io.WriteString(conn, "show info\n")
		return conn
	}
	full, err := io.ReadAll(dial())
	if err != nil || !strings.Contains(string(full), "Pid:") {
		t.Fatalf("untouched answer = %q, %v", full, err)
	}

	h.Faults.CutAfter(10)
	if got, _ := io.ReadAll(dial()); len(got) != 10 {
		t.Errorf("cut after 10 bytes: got %d bytes", len(got))
	}
	h.Faults.Heal()

	h.Faults.Silence()
	conn := dial()
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("silent socket sent %d bytes", n)
	}
	h.Faults.Heal()
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || !strings.Contains(string(got), "Pid:") {
		t.Errorf("healed socket sent %q, %v", got, err)
	}

	h.Faults.Refuse()
	if got, _ := io.ReadAll(dial()); len(got) != 0 {
		t.Errorf("refused connection sent %q", got)
	}
	if got := h.Faults.Accepted(); got != 4 {
		t.Errorf("accepted = %d, want 4", got)
	}
}
