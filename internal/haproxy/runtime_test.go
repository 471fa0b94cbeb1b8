package haproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bridged/internal/haproxy/haproxytest"
)

// answering is a socket at which every connection is served by serve.
func answering(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return path
}

func TestDialTellsWhoIsThere(t *testing.T) {
	for name, tt := range map[string]struct {
		serve func(net.Conn)
		want  error
	}{
		"web-server": {func(c net.Conn) {
			c.Read(make([]byte, 64))
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
		}, ErrNotHAProxy},
		"closes": {func(net.Conn) {}, ErrUnreachable},
		"other-prompt": {func(c net.Conn) {
			io.WriteString(c, "welcome to the router\n> ")
			io.Copy(io.Discard, c)
		}, ErrNotHAProxy},
		"garbage": {func(c net.Conn) {
			c.Read(make([]byte, 64))
			c.Write(bytes.Repeat([]byte{0, 0xff}, 40000))
		}, ErrNotHAProxy},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := dial(t.Context(), answering(t, tt.serve))
			if !errors.Is(err, tt.want) || c != nil {
				t.Errorf("error %v, want %v", err, tt.want)
			}
		})
	}
	if _, err := dial(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, ErrUnreachable) {
		t.Errorf("no socket: error %v, want %v", err, ErrUnreachable)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	silent := answering(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	if _, err := dial(ctx, silent); !errors.Is(err, ErrUnreachable) {
		t.Errorf("silent socket: error %v, want %v", err, ErrUnreachable)
	}
}

// A HAProxy that stops reading while its answers are not read must not be waited for: the
// peer here answers nothing until it has a whole window, and blocks when it is not read.
func TestBatchReadsWhileWriting(t *testing.T) {
	const commands = 20000
	path := answering(t, func(c net.Conn) {
		io.ReadFull(c, make([]byte, len("prompt\n")))
		io.WriteString(c, "\n> ")
		if u, ok := c.(*net.UnixConn); ok {
			u.SetReadBuffer(4 << 10)
			u.SetWriteBuffer(4 << 10)
		}
		buf := make([]byte, 64<<10)
		for n := 0; n < commands; {
			got, err := c.Read(buf)
			if err != nil {
				return
			}
			for range bytes.Count(buf[:got], []byte("\n")) {
				fmt.Fprintf(c, "answer %d %s\n\n> ", n, strings.Repeat("x", n%200))
				n++
			}
		}
	})
	c, err := dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	batch := make([]Command, commands)
	for i := range batch {
		batch[i] = Command{Verb: SetState, Backend: "be", Server: fmt.Sprintf("s%d", i)}
	}
	next := 0
	n, err := c.batch(t.Context(), batch, func(i int, reply []byte) {
		if i != next || !strings.HasPrefix(string(reply), fmt.Sprintf("answer %d ", i)) {
			t.Errorf("answer %d is %.40q", i, reply)
		}
		next++
	})
	if err != nil || n != commands {
		t.Fatalf("%d of %d answered: %v", n, commands, err)
	}
	if cap(c.out) > 256<<10 || cap(c.in) > 256<<10 {
		t.Errorf("a large batch leaves buffers of %d and %d bytes", cap(c.out), cap(c.in))
	}
}

// Answers may arrive in any pieces, also with the prompt cut in two.
func TestBatchTakesAnswersInPieces(t *testing.T) {
	const text = "\n> New server registered.\n\n> \n> Server deleted.\n> "
	for size := 1; size <= 7; size++ {
		path := answering(t, func(c net.Conn) {
			io.ReadFull(c, make([]byte, len("prompt\n")))
			io.WriteString(c, "\n> ")
			c.Read(make([]byte, 1))
			for rest := text; rest != ""; {
				n := min(size, len(rest))
				io.WriteString(c, rest[:n])
				rest = rest[n:]
			}
			io.Copy(io.Discard, c)
		})
		c, err := dial(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		one := Command{Verb: SetState, Backend: "be", Server: "s"}
		if _, err := c.batch(t.Context(), []Command{one, one, one, one}, func(_ int, reply []byte) {
			got = append(got, string(bytes.TrimSpace(reply)))
		}); err != nil {
			t.Fatal(err)
		}
		c.close()
		if want := ",New server registered.,,Server deleted."; strings.Join(got, ",") != want {
			t.Errorf("pieces of %d: %q, want %q", size, got, want)
		}
	}
}

// So may the lines of a dump, and the connection serves on afterwards.
func TestLinesInPieces(t *testing.T) {
	const text = "1\n# a b\nx > y\n\n> "
	for size := 1; size <= 9; size++ {
		path := answering(t, func(c net.Conn) {
			io.ReadFull(c, make([]byte, len("prompt\n")))
			io.WriteString(c, "\n> ")
			for _, answer := range []string{text, "\n> ", "again\n> "} {
				c.Read(make([]byte, 64))
				for rest := answer; rest != ""; {
					n := min(size, len(rest))
					io.WriteString(c, rest[:n])
					rest = rest[n:]
				}
			}
			io.Copy(io.Discard, c)
		})
		c, err := dial(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"1,# a b,x > y,", ""} {
			var got []string
			if err := c.lines(t.Context(), "show servers state", func(line []byte) {
				got = append(got, strings.TrimSuffix(string(line), "\n"))
			}); err != nil {
				t.Fatal(err)
			}
			if strings.Join(got, ",") != want {
				t.Errorf("pieces of %d: %q, want %q", size, got, want)
			}
		}
		if reply, err := c.query(t.Context(), "once more"); err != nil || string(reply) != "again" {
			t.Errorf("pieces of %d: afterwards %q, %v", size, reply, err)
		}
		c.close()
	}
}

// One command is one answer, on every version, whatever the command.
func TestEveryVersionAnswersOneForOne(t *testing.T) {
	haproxytest.ForEach(t, func(t *testing.T, bin haproxytest.Binary) {
		hap := haproxytest.Start(t, haproxytest.Options{Binary: bin, Sections: "\nbackend be\n  server s1 127.0.0.1:1 check\n  server s2 127.0.0.1:1 disabled\n"})
		c, err := dial(t.Context(), hap.Socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.close()
		var batch []Command
		for i := range 300 {
			batch = append(batch,
				Command{Verb: SetState, Backend: "be", Server: "s1", State: State(i % 3)},
				Command{Verb: SetWeight, Backend: "be", Server: "s1", Weight: i % 257},
				Command{Verb: SetState, Backend: "be", Server: "none", State: Maint},
				Command{Verb: EnableHealth, Backend: "be", Server: "s1"},
				Command{Verb: EnableHealth, Backend: "be", Server: "none"},
				Command{Verb: ShutdownSessions, Backend: "be", Server: "s1"},
				Command{Verb: AddMap, Map: "/no/such.map", Key: "k", Value: "v"},
			)
		}
		want := []verdict{done, done, refused, done, refused, done, refused}
		if n, err := c.batch(t.Context(), batch, func(i int, reply []byte) {
			if got := batch[i].Verb.judge(reply); got != want[i%7] {
				t.Errorf("command %d %s: %s (%q), want %s", i, batch[i].Verb, got, reply, want[i%7])
			}
		}); err != nil || n != len(batch) {
			t.Fatalf("%d of %d answered: %v", n, len(batch), err)
		}
		info, err := c.info(t.Context())
		if err != nil || info.Pid != hap.Pid(t) || info.UlimitN == 0 || info.MaxConn == 0 {
			t.Errorf("info %+v, error %v", info, err)
		}
		if err := c.checkAdmin(t.Context()); err != nil {
			t.Error(err)
		}
		have, err := c.servers(t.Context())
		if err != nil || have["be"] == nil || len(have["be"].servers) != 2 {
			t.Fatalf("servers %+v, error %v", have, err)
		}
		if s := have["be"].servers[1]; s.Name != "s2" || s.State != Maint || s.Addr.String() != "127.0.0.1:1" || s.Weight != 1 {
			t.Errorf("s2 is %+v", s)
		}
	})
}

// A socket that is HAProxy's but not of level admin is told from one that is.
func TestAdoptAsksForLevelAdmin(t *testing.T) {
	hap := haproxytest.Start(t, haproxytest.Options{})
	c, err := dial(t.Context(), hap.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if _, err := c.query(t.Context(), "operator"); err != nil {
		t.Fatal(err)
	}
	if err := c.checkAdmin(t.Context()); !errors.Is(err, ErrNotAdmin) {
		t.Errorf("error %v, want %v", err, ErrNotAdmin)
	}
}
