package discovery

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// frames reads r to its end and writes what came: name=data, oversize events as such.
func frames(r io.Reader) (got []string, err error) {
	er := newEventReader(r)
	for {
		f, ok, err := er.next(true)
		if err != nil {
			if ok {
				return nil, errors.New("an event and an error")
			}
			return got, err
		}
		if f.oversize {
			got = append(got, "oversize")
			continue
		}
		got = append(got, fmt.Sprintf("%s=%s", f.name, f.data))
	}
}

func TestEventReader(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"one", "event: a\r\ndata: {}\r\n\r\n", "a={}"},
		{"lf", "event: a\ndata: {}\n\n", "a={}"},
		{"cr", "event: a\rdata: {}\r\r", "a={}"},
		{"no-name", "data: {}\r\n\r\n", "={}"},
		{"no-space", "event:a\ndata:{}\n\n", "a={}"},
		{"two-spaces", "data:  x\n\n", "= x"},
		{"keep-alives", "\r\n\r\n\r\nevent: a\r\ndata: 1\r\n\r\n\r\n\r\n", "a=1"},
		{"several-lines", "data: 1\ndata: 2\ndata\n\n", "=1\n2\n"},
		{"other-fields", ": hello\nid: 7\nretry: 1\nx\nevent: a\ndata: 1\n\n", "a=1"},
		{"name-without-data", "event: a\n\ndata: 1\n\n", "=1"},
		{"cut-by-eof", "data: 1\n\ndata: 2\n", "=1"},
		{"cut-in-line", "data: 1\n\ndata: 2", "=1"},
		{"last-name-counts", "event: a\nevent: b\ndata: 1\n\n", "b=1"},
		{"two", "event: a\r\ndata: 1\r\n\r\nevent: b\r\ndata: 2\r\n\r\n", "a=1|b=2"},
		{"empty", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			for how, r := range map[string]io.Reader{
				"at once": strings.NewReader(c.in), "byte by byte": iotest.OneByteReader(strings.NewReader(c.in)),
				"by halves": iotest.HalfReader(strings.NewReader(c.in)), "with the error": iotest.DataErrReader(strings.NewReader(c.in)),
			} {
				got, err := frames(r)
				if s := strings.Join(got, "|"); s != c.want || err != io.EOF {
					t.Errorf("%s: have %q, %v; want %q, EOF", how, s, err, c.want)
				}
			}
		})
	}
}

func TestEventReaderBoundsLines(t *testing.T) {
	long := strings.Repeat("x", maxEvent+100)
	in := "data: 1\n\nevent: deployment_info\ndata: " + long + "\n\n" +
		strings.Repeat("data: "+long[:maxEvent/4]+"\n", 5) + "\n" + "data: 2\n\n"
	r := newEventReader(strings.NewReader(in))
	var got []string
	for {
		f, _, err := r.next(true)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %v %d", f.name, f.oversize, len(f.data)))
	}
	want := []string{" false 1", "deployment_info true 0", " true 0", " false 1"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("have %v, want %v", got, want)
	}
	if cap(r.data) > 16*readSize {
		t.Errorf("%d bytes are kept for data", cap(r.data))
	}
}

func TestEventReaderPassesErrorsOn(t *testing.T) {
	cause := errors.New("broken")
	_, err := frames(io.MultiReader(strings.NewReader("data: 1\n\n"), iotest.ErrReader(cause)))
	if !errors.Is(err, cause) {
		t.Errorf("have %v, want %v", err, cause)
	}
	if _, err := frames(stuck{}); !errors.Is(err, errNoProgress) {
		t.Errorf("have %v, want %v", err, errNoProgress)
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

func TestNextWithoutWaiting(t *testing.T) {
	r := newEventReader(strings.NewReader("data: 1\n\ndata: 2\n\ndata: "))
	var got []string
	f, ok, err := r.next(true)
	for ; ok && err == nil; f, ok, err = r.next(false) {
		got = append(got, string(f.data))
	}
	if err != nil || strings.Join(got, " ") != "1 2" {
		t.Errorf("have %v, %v; want what one read brought: 1 2", got, err)
	}
}

// FuzzSSE: any bytes give the same events however reads cut them.
func FuzzSSE(f *testing.F) {
	f.Add([]byte("event: a\r\ndata: {}\r\n\r\n\r\n"), uint8(3))
	f.Add([]byte("data: 1\rdata: 2\n\r\n"), uint8(1))
	f.Add([]byte(":\n\r\r\n\ndata\n\n"), uint8(0))
	f.Fuzz(func(t *testing.T, in []byte, cut uint8) {
		want, err := frames(bytes.NewReader(in))
		if err != io.EOF {
			t.Fatal(err)
		}
		got, err := frames(&pieces{in, int(cut)%7 + 1})
		if err != io.EOF {
			t.Fatal(err)
		}
		if strings.Join(got, "|") != strings.Join(want, "|") {
			t.Errorf("in pieces %q, at once %q", got, want)
		}
	})
}

// pieces returns n bytes a read.
type pieces struct {
	rest []byte
	n    int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.rest[:min(p.n, len(p.rest))])
	p.rest = p.rest[n:]
	return n, nil
}
