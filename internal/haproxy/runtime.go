package haproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"
)

// errLost: the connection ended, or HAProxy did not answer in time, before every command
// was answered.
var errLost = errors.New("stats socket lost")

const (
	// dialTimeout is for connecting and for the first prompt. A worker that parses or
	// drains may be slow; one that is not there refuses at once.
	dialTimeout = 2 * time.Second

	// queryTimeout is for one answer, however long. A dump of 10 000 servers takes 40 ms.
	queryTimeout = 5 * time.Second

	// batchTimeout and commandTimeout give a batch of n commands its deadline. HAProxy needs
	// some 10 to 100 µs a command; a deadline that is reached means it hangs.
	batchTimeout   = 2 * time.Second
	commandTimeout = 2 * time.Millisecond

	// window is how many bytes of commands may be unanswered. It fits in the kernel's socket
	// buffer even when HAProxy reads none of it, so that writing never blocks: HAProxy
	// stops reading when its own answers are not read, and two that wait for each other
	// is what must not happen.
	window = 32 << 10
)

// promptEnd ends every answer in interactive mode. HAProxy up to 2.6 prints it after each
// command, newer ones after each line: one command a line makes that the same. Splitting
// at empty lines would not do, as some answers end without one.
var promptEnd = []byte("\n> ")

// conn is one kept-open connection to a stats socket. It speaks the interactive mode
// (management.txt, "Unix Socket commands"): lines are written many at a time, each is
// answered in order. After any error it is of no further use and is closed.
// Not for concurrent use.
type conn struct {
	nc    net.Conn
	out   []byte // lines of a batch
	ends  []int  // where each line of out ends
	in    []byte // unread input: in[start:]
	start int
	used  time.Time
	dead  bool
}

// dial connects to the stats socket at path and switches to interactive mode. Anything
// but a prompt in answer is ErrNotHAProxy; nobody there is ErrUnreachable.
func dial(ctx context.Context, path string) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		if there, statErr := os.Stat(path); statErr == nil && there.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("%s: %w: it is no socket", path, ErrNotHAProxy)
		}
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	c := &conn{nc: nc}
	reply, err := c.query(ctx, "prompt")
	if err != nil {
		if said := c.in[c.start:]; len(said) > 0 {
			return nil, fmt.Errorf("%s: %w: it says %q", path, ErrNotHAProxy, shorten(said))
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, fmt.Errorf("%s: %w: it takes connections and answers nothing within %v: either another program's socket, "+
				"or a HAProxy that hangs or is out of connections; see who has it with `ss -xlp`: %w", path, ErrUnreachable, dialTimeout, err)
		}
		return nil, fmt.Errorf("%s: %w: %w", path, ErrUnreachable, err)
	}
	if len(bytes.TrimSpace(reply)) > 0 {
		c.close()
		return nil, fmt.Errorf("%s: %w: it answers %q to a request for a prompt", path, ErrNotHAProxy, shorten(reply))
	}
	return c, nil
}

func (c *conn) close() {
	c.dead = true
	c.nc.Close()
}

// query sends one line, without its line break, and returns the answer. The answer is
// valid until the next call.
func (c *conn) query(ctx context.Context, line string) ([]byte, error) {
	if c.dead {
		return nil, fmt.Errorf("%s: %w", line, errLost)
	}
	c.deadline(ctx, queryTimeout)
	c.out = append(append(c.out[:0], line...), '\n')
	if _, err := c.nc.Write(c.out); err != nil {
		c.close()
		return nil, fmt.Errorf("%s: %w: %w", line, errLost, err)
	}
	reply, err := c.reply()
	if err != nil {
		c.close()
		return nil, fmt.Errorf("%s: %w", line, err)
	}
	return reply, nil
}

// lines sends one line and calls each for every line of the answer, line break included, as
// they arrive: a dump of all servers is never in memory as a whole. The line is valid during
// the call.
func (c *conn) lines(ctx context.Context, line string, each func([]byte)) error {
	if c.dead {
		return fmt.Errorf("%s: %w", line, errLost)
	}
	c.deadline(ctx, queryTimeout)
	c.out = append(append(c.out[:0], line...), '\n')
	if _, err := c.nc.Write(c.out); err != nil {
		c.close()
		return fmt.Errorf("%s: %w: %w", line, errLost, err)
	}
	begun := false // the prompt stands at the beginning of a line, but of the first
	for {
		unread := c.in[c.start:]
		if end := bytes.IndexByte(unread, '\n'); end >= 0 {
			c.start += end + 1
			begun = true
			each(unread[:end+1])
			continue
		}
		if begun && bytes.Equal(unread, promptEnd[1:]) {
			c.start = len(c.in)
			return nil
		}
		var none int
		err := c.fill(&none)
		if err == nil && len(c.in)-c.start > maxLine*8 {
			err = fmt.Errorf("%w: %w", errLost, errBabble)
		}
		if err != nil {
			c.close()
			return fmt.Errorf("%s: %w", line, err)
		}
	}
}

// batch sends commands and calls answered for each, in order, with HAProxy's answer (valid
// during the call). It keeps at most window bytes unanswered and else never waits between
// commands. It returns how many were answered: on an error HAProxy has done those, and
// nothing is known about the rest. A command with a text that cannot be sent fails the
// batch before anything is sent.
func (c *conn) batch(ctx context.Context, commands []Command, answered func(i int, reply []byte)) (int, error) {
	if c.dead {
		return 0, errLost
	}
	c.out, c.ends = c.out[:0], c.ends[:0]
	for i := range commands {
		var err error
		if c.out, err = commands[i].appendTo(c.out); err != nil {
			return 0, err
		}
		c.ends = append(c.ends, len(c.out))
	}
	c.deadline(ctx, batchTimeout+time.Duration(len(commands))*commandTimeout)
	written, confirmed := 0, 0 // bytes of out
	for i := range commands {
		// Refilled when half empty: few writes, and HAProxy is never left without work.
		if written-confirmed <= window/2 && written < len(c.out) {
			end := min(len(c.out), confirmed+window)
			if _, err := c.nc.Write(c.out[written:end]); err != nil {
				c.close()
				return i, fmt.Errorf("%w: %w", errLost, err)
			}
			written = end
		}
		reply, err := c.reply()
		if err != nil {
			c.close()
			return i, err
		}
		confirmed = c.ends[i]
		answered(i, reply)
	}
	c.trim()
	return len(commands), nil
}

// errBabble: HAProxy's answer outgrew what any answer may be.
var errBabble = errors.New("answer without end")

// maxReply bounds an answer: `show servers state` of 100 000 servers is 8 MB.
const maxReply = 64 << 20

// reply reads up to the next prompt.
func (c *conn) reply() ([]byte, error) {
	searched := c.start
	for {
		if i := bytes.Index(c.in[searched:], promptEnd); i >= 0 {
			reply := c.in[c.start : searched+i]
			c.start = searched + i + len(promptEnd)
			return reply, nil
		}
		searched = max(c.start, len(c.in)-len(promptEnd)+1)
		if len(c.in)-c.start > maxReply {
			return nil, fmt.Errorf("%w: %w", errLost, errBabble)
		}
		if err := c.fill(&searched); err != nil {
			return nil, err
		}
	}
}

// fill reads more input behind what is there. It moves the unread part to the front
// when there is no room, and offset with it.
func (c *conn) fill(offset *int) error {
	if c.start == len(c.in) {
		c.in, *offset, c.start = c.in[:0], *offset-c.start, 0
	}
	if cap(c.in)-len(c.in) < 4<<10 {
		unread := c.in[c.start:]
		grown := c.in[:0]
		if cap(c.in)-len(unread) < 4<<10 {
			grown = make([]byte, 0, max(16<<10, 2*cap(c.in)))
		}
		*offset -= c.start
		c.in, c.start = append(grown, unread...), 0
	}
	n, err := c.nc.Read(c.in[len(c.in):cap(c.in)])
	c.in = c.in[:len(c.in)+n]
	if n > 0 || err == nil {
		return nil // an error beside bytes comes again
	}
	return fmt.Errorf("%w: %w", errLost, err)
}

// trim gives back the memory of an uncommonly large batch or dump, so that one first
// synchronisation does not set the size of the process for good.
func (c *conn) trim() {
	const keep = 256 << 10
	if c.start == len(c.in) && cap(c.in) > keep {
		c.in, c.start = nil, 0
	}
	if cap(c.out) > keep {
		c.out, c.ends = nil, nil
	}
}

// deadline allows d from now for reading and writing, or less when ctx ends before.
func (c *conn) deadline(ctx context.Context, d time.Duration) {
	c.used = time.Now()
	at := c.used.Add(d)
	if end, ok := ctx.Deadline(); ok && end.Before(at) {
		at = end
	}
	c.nc.SetDeadline(at) // cannot fail on an open socket; on a closed one the next call says so
}
