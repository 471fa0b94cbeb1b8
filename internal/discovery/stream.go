package discovery

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"
)

const (
	// maxEvent bounds one event. The largest that carry something we need are
	// definitions of single apps; what is larger is a deployment plan in the heavy form,
	// which holds every app twice and tells nothing that a fetch does not.
	maxEvent = 4 << 20

	readSize = 16 << 10 // of one read: some forty task events
)

// frame is one event as it stood on the stream. Its slices are valid until the next
// call of eventReader.next.
type frame struct {
	name     []byte // of the event: line; empty up to Marathon 0.10
	data     []byte // lines joined by '\n'
	received time.Time
	oversize bool // longer than maxEvent; data is empty
}

// eventReader splits a text/event-stream (WHATWG HTML, "Server-sent events") into
// frames. Lines end in CRLF, LF or CR, wherever reads happen to cut them: Marathon's
// keep-alive is a bare CRLF that Jetty sends as two writes. Fields other than event
// and data don't occur and are ignored. An event that EOF cuts is never returned.
type eventReader struct {
	r     io.Reader
	heard func(time.Time) // called when bytes came, keep-alives included; may be nil

	buf      []byte
	from, to int  // unread bytes of buf
	scanned  int  // bytes behind from known to hold no line end
	skipLF   bool // a CR ended the last line: a LF right behind it belongs to it
	skipping bool // inside a line that is too long

	read time.Time // when the newest bytes came

	name     []byte
	data     []byte
	hasData  bool
	oversize bool
	returned bool // the event went out: the next one starts afresh
}

func newEventReader(r io.Reader) *eventReader {
	return &eventReader{r: r, buf: make([]byte, readSize)}
}

// next returns the next event that has data. With wait unset it returns only what was
// read already, and false if that holds no whole event. Errors are those of the
// underlying reader; io.EOF is a stream that ended, cleanly or not, as Marathon ends
// them alike.
func (r *eventReader) next(wait bool) (frame, bool, error) {
	if r.returned {
		r.reset()
	}
	for {
		line, ok := r.line()
		switch {
		case !ok && !wait:
			return frame{}, false, nil
		case !ok:
			if err := r.fill(); err != nil {
				return frame{}, false, err
			}
		case r.skipping:
			r.skipping, r.hasData, r.oversize = false, true, true
		case len(line) > 0:
			r.field(line)
		case !r.hasData:
			r.reset() // a keep-alive, or an event without data, which is none
		default:
			r.returned = true
			f := frame{name: r.name, data: r.data, received: r.read, oversize: r.oversize}
			if f.oversize {
				f.data = nil
			}
			return f, true, nil
		}
	}
}

func (r *eventReader) reset() {
	r.name, r.data = r.name[:0], r.data[:0]
	r.hasData, r.oversize, r.returned = false, false, false
	if cap(r.data) > 16*readSize {
		r.data = nil
	}
}

func (r *eventReader) field(line []byte) {
	name, value, _ := bytes.Cut(line, []byte{':'})
	value = bytes.TrimPrefix(value, []byte{' '})
	switch string(name) {
	case "event":
		r.name = append(r.name[:0], value...)
	case "data":
		if len(r.data)+len(value) >= maxEvent {
			r.data, r.oversize = nil, true
		}
		if r.hasData && !r.oversize {
			r.data = append(r.data, '\n')
		}
		if !r.oversize {
			r.data = append(r.data, value...)
		}
		r.hasData = true
	}
}

// line takes one whole line off the buffer, without its end. While a line is longer
// than the buffer may grow, what was read of it is dropped and skipping is set; the
// rest of it is then returned as one more line.
func (r *eventReader) line() ([]byte, bool) {
	if r.skipLF && r.from < r.to {
		if r.buf[r.from] == '\n' {
			r.from++
		}
		r.skipLF = false
	}
	fresh := r.buf[r.from+r.scanned : r.to]
	end := bytes.IndexByte(fresh, '\n')
	if end >= 0 {
		fresh = fresh[:end]
	}
	if cr := bytes.IndexByte(fresh, '\r'); cr >= 0 {
		end = cr
	}
	if end < 0 {
		r.scanned = r.to - r.from
		return nil, false
	}
	end += r.from + r.scanned
	line := r.buf[r.from:end]
	r.skipLF = r.buf[end] == '\r'
	r.from, r.scanned = end+1, 0
	return line, true
}

var errNoProgress = errors.New("the reader returns neither bytes nor an error")

// fill reads more bytes, making room for them first.
func (r *eventReader) fill() error {
	if r.from == r.to {
		r.from, r.to = 0, 0
		if len(r.buf) > 16*readSize {
			r.buf = make([]byte, readSize)
		}
	}
	if r.to == len(r.buf) {
		switch {
		case r.from > 0:
			copy(r.buf, r.buf[r.from:r.to])
			r.to -= r.from
			r.from = 0
		case len(r.buf) < maxEvent:
			r.buf = append(r.buf, make([]byte, len(r.buf))...)
		default:
			r.skipping = true
			r.from, r.to, r.scanned = 0, 0, 0
		}
	}
	for range 100 {
		n, err := r.r.Read(r.buf[r.to:])
		if n > 0 {
			r.to += n
			r.read = time.Now()
			if r.heard != nil {
				r.heard(r.read)
			}
			return nil // an error comes again with the next read
		}
		if err != nil {
			if err != io.EOF {
				err = fmt.Errorf("read event stream: %w", err)
			}
			return err
		}
	}
	return errNoProgress
}
