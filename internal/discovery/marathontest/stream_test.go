package marathontest

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const marker = `{"eventType":"mark"}`

func TestStreamIsByteForByteJettys(t *testing.T) {
	c := start(t, Options{Version: "1.4.0"})
	l := listen(t, c, 0, "")
	for _, want := range []string{"Content-Type: text/event-stream;charset=UTF-8\r\n", "Connection: close\r\n", "X-Marathon-Leader: " + c.URL(0) + "\r\n"} {
		if !strings.Contains(l.head, want) {
			t.Errorf("head %q: want %q", l.head, want)
		}
	}
	for _, not := range []string{"Content-Length", "Transfer-Encoding", "Content-Encoding"} {
		if strings.Contains(l.head, not) {
			t.Errorf("head %q: want no %s", l.head, not)
		}
	}
	frame, err := l.raw()
	must(t, err)
	if want := "event: event_stream_attached\r\ndata: {\"remoteAddress\":\"127.0.0.1\","; !strings.HasPrefix(frame, want) {
		t.Errorf("first frame %q: want one's own attachment, %q", frame, want)
	}
	c.Emit([]byte("{\n \"eventType\": \"mark\"\n}"))
	frame, err = l.raw()
	must(t, err)
	if want := "event: mark\r\ndata: {\"eventType\":\"mark\"}\r\n\r\n"; frame != want {
		t.Errorf("have %q, want %q", frame, want)
	}
	must(t, c.Elect(-1))
	rest, err := io.ReadAll(l.r)
	if err != nil || len(rest) > 0 {
		t.Errorf("when leadership ends the stream has %q, %v: want a clean end", rest, err)
	}
}

func TestFirstVersionsWriteNoEventLine(t *testing.T) {
	c := start(t, Options{Version: "0.9.0"})
	l := listen(t, c, 0, "?event_type=nothing") // the filter is not known yet
	frame, err := l.raw()
	must(t, err)
	if !strings.HasPrefix(frame, `data: {"remoteAddress"`) {
		t.Errorf("frame %q: want a data line alone", frame)
	}
}

// TestHeartbeatIsTwoWrites uses a pipe, which hands over one write at a time, and a bubble's clock.
func TestHeartbeatIsTwoWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var network MemoryNetwork
		c := New(Options{Listen: network.Listen, Dial: network.DialContext})
		must(t, c.Start())
		defer c.Close()
		conn, err := network.DialContext(t.Context(), "tcp", strings.TrimPrefix(c.URL(0), "http://"))
		must(t, err)
		defer conn.Close()
		io.WriteString(conn, "GET /v2/events?event_type=x HTTP/1.1\r\nHost: m\r\nAccept: text/event-stream\r\n\r\n")
		buf := make([]byte, 4096)
		n, err := conn.Read(buf)
		must(t, err)
		if !strings.HasSuffix(string(buf[:n]), "\r\n\r\n") {
			t.Fatalf("head %q", buf[:n])
		}
		began := time.Now()
		for i, want := range []string{"\r", "\n", "\r", "\n"} {
			n, err := conn.Read(buf)
			must(t, err)
			if at := time.Since(began); string(buf[:n]) != want || at != time.Duration(i/2+1)*10*time.Second {
				t.Fatalf("write %d: %q after %v: want %q after %d s", i, buf[:n], at, want, (i/2+1)*10)
			}
		}
	})
}

func TestAcceptMustBeExact(t *testing.T) {
	c := start(t, Options{})
	for accept, want := range map[string]string{
		"text/event-stream":                   "200",
		"text/event-stream, */*":              "405",
		"text/event-stream;q=1":               "405",
		"*/*":                                 "405",
		"application/json":                    "405",
		"text/event-stream\r\nAccept: x/y":    "200", // one of several header values will do
		"x/y\r\nAccept: text/event-stream;a=": "405",
	} {
		if l := dialStream(t, c.URL(0), "", accept); !strings.HasPrefix(l.head, "HTTP/1.1 "+want) {
			t.Errorf("Accept: %s: %q, want %s", accept, l.head, want)
		}
	}
	old := start(t, Options{Version: "0.8.2"})
	if l := dialStream(t, old.URL(0), "", "text/event-stream"); !strings.HasPrefix(l.head, "HTTP/1.1 404") {
		t.Errorf("0.8 has no stream: %q", l.head)
	}
}

func TestEventTypesAreFilteredSince137(t *testing.T) {
	for version, want := range map[string]bool{"1.3.0": false, "1.3.7": true, "1.11": true} {
		c := start(t, Options{Version: version, QueueLimit: -1})
		l := listen(t, c, 0, "?event_type=mark&event_type=status_update_event")
		must(t, c.Deploy(AppSpec{ID: "/a", Instances: 1}))
		kinds := l.mark(c)
		filtered := !slices.ContainsFunc(kinds, func(k string) bool { return k != "status_update_event" })
		if filtered != want || !slices.Contains(kinds, "status_update_event") {
			t.Errorf("%s: %v: want filtered %v", version, kinds, want)
		}
	}
}

func TestPlansAreHeavyUntilOneCanChoose(t *testing.T) {
	for _, test := range []struct {
		version, query string
		deprecated     bool
		heavy          bool
	}{
		{"1.4.0", "?plan-format=light", false, true},
		{"1.5.9", "", false, true},
		{"1.5.9", "?plan-format=light", false, false},
		{"1.7.37", "", false, false},
		{"1.7.37", "", true, true},
		{"1.11", "", false, false},
	} {
		c := start(t, Options{Version: test.version, HeavyEvents: test.deprecated, QueueLimit: -1})
		l := listen(t, c, 0, test.query)
		must(t, c.Deploy(AppSpec{ID: "/a", Instances: 1}))
		plan := l.until("deployment_info")["plan"].(map[string]any)
		if heavy := plan["original"] != nil && plan["target"] != nil; heavy != test.heavy {
			t.Errorf("%+v: %v", test, plan)
		}
	}
}

func TestStateIsVisibleBeforeItsEvent(t *testing.T) {
	c := start(t, Options{QueueLimit: -1})
	must(t, c.Deploy(AppSpec{ID: "/a", Instances: 1}))
	l := listen(t, c, 0, "?event_type=status_update_event")
	for range 20 {
		must(t, c.Kill(c.Tasks("/a")[0].ID))
		for {
			ev := l.until("status_update_event")
			app := get(t, c.URL(0)+"/v2/apps//a").(map[string]any)["app"].(map[string]any)
			if ev["taskStatus"] == "TASK_RUNNING" {
				if task := app["tasks"].([]any)[0].(map[string]any); task["id"] != ev["taskId"] {
					t.Fatalf("heard %v, saw %v", ev, task)
				}
				break
			}
		}
	}
}

func TestOverflow(t *testing.T) {
	// The writer is held up, so the queue alone decides what is lost.
	for _, test := range []struct {
		version string
		limit   int
		closes  bool
	}{{"1.4.0", 50, false}, {"1.5.0", 1024, false}, {"1.8.180", 1024, true}} {
		t.Run(test.version, func(t *testing.T) {
			c := start(t, Options{Version: test.version})
			l := listen(t, c, 0, "")
			l.event()
			quiet(t, c)
			c.StallStreams(true)
			for i := range test.limit + 3 {
				c.Emit(fmt.Appendf(nil, `{"eventType":"n","n":%d}`, i))
			}
			if test.closes {
				if _, err := l.raw(); err == nil {
					t.Error("the stream goes on")
				}
				must(t, c.Wait(deadline(t), func() bool { return c.Streams() == 0 }))
				return
			}
			if stats := c.StreamStats()[0]; stats.Dropped != 3 || stats.Waiting != test.limit {
				t.Errorf("%+v: want %d waiting and 3 dropped", stats, test.limit)
			}
			c.StallStreams(false)
			for i := range test.limit {
				if _, ev := l.event(); ev["n"] != float64(i) {
					t.Fatalf("event %d is %v: want the newest ones lost", i, ev)
				}
			}
		})
	}
}

func TestSlowReaderIsCutOffAloneFrom18(t *testing.T) {
	c := start(t, Options{Version: "1.8.180"})
	slow, quick := listen(t, c, 0, ""), listen(t, c, 0, "?event_type=mark&event_type=event_stream_detached")
	big := fmt.Appendf(nil, `{"eventType":"big","fill":%q}`, strings.Repeat("x", 16<<10))
	cut := make(chan error, 1)
	go func() { cut <- c.Wait(deadline(t), func() bool { return c.Streams() == 1 }) }()
	for done := false; !done; {
		c.Emit(big)
		c.Emit([]byte(marker))
		quick.until("mark") // the one who reads keeps up all the time
		select {
		case err := <-cut:
			must(t, err)
			done = true
		default:
		}
	}
	if stats := c.StreamStats(); len(stats) != 1 || stats[0].ID != 2 || stats[0].Dropped != 0 {
		t.Errorf("left: %+v, want the second stream, whole", stats)
	}
	// What the slow one finds in the end is whole events, then the end.
	for {
		frame, err := slow.raw()
		if err != nil {
			break
		}
		if !strings.HasPrefix(frame, "event: ") {
			t.Fatalf("frame %.40q", frame)
		}
	}
}

func TestEventFaults(t *testing.T) {
	numbered := func(c *Cluster, n int) {
		for i := range n {
			c.Emit(fmt.Appendf(nil, `{"eventType":"n","n":%d}`, i))
		}
	}
	// order is the numbers heard up to the mark.
	order := func(l *streamReader, c *Cluster) string {
		c.Emit([]byte(marker))
		var b strings.Builder
		for {
			_, ev := l.event()
			if ev["eventType"] == "mark" {
				return b.String()
			}
			fmt.Fprint(&b, ev["n"])
		}
	}
	for _, test := range []struct {
		name  string
		fault Fault
		want  string
	}{
		{"lose", Fault{Kind: LoseEvent, Event: "n", Skip: 1, Times: 2}, "034"},
		{"duplicate", Fault{Kind: DuplicateEvent, Event: "n", Times: 1}, "001234"},
		{"swap", Fault{Kind: SwapEvent, Event: "n", Skip: 1, Times: 1, Delay: time.Hour}, "02134"},
		{"match", Fault{Kind: LoseEvent, Match: func(ev Event) bool { return strings.Contains(string(ev.JSON), `"n":4`) }}, "0123"},
		{"chance", Fault{Kind: LoseEvent, Event: "n", Chance: 1e-12}, "01234"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := start(t, Options{})
			l := listen(t, c, 0, "?event_type=n&event_type=mark")
			f := c.Inject(test.fault)
			numbered(c, 5)
			if have := order(l, c); have != test.want {
				t.Errorf("heard %s, want %s", have, test.want)
			}
			if test.fault.Times > 0 && f.Count() != test.fault.Times {
				t.Errorf("counted %d strikes, want %d", f.Count(), test.fault.Times)
			}
		})
	}
	t.Run("reorder", func(t *testing.T) {
		c := start(t, Options{Seed: 7})
		l := listen(t, c, 0, "?event_type=n&event_type=mark")
		c.Inject(Fault{Kind: ReorderEvents, Event: "n", Window: 8, Delay: time.Hour})
		numbered(c, 8)
		have := order(l, c)
		if sorted := slices.Sorted(slices.Values(strings.Split(have, ""))); have == "01234567" || strings.Join(sorted, "") != "01234567" {
			t.Errorf("heard %s: want all of them in another order", have)
		}
	})
	t.Run("delay", func(t *testing.T) {
		c := start(t, Options{})
		l := listen(t, c, 0, "?event_type=n&event_type=mark")
		c.Inject(Fault{Kind: DelayEvent, Event: "n", Delay: 50 * time.Millisecond})
		numbered(c, 1)
		if have := order(l, c); have != "" {
			t.Errorf("heard %s before the mark: want it later", have)
		}
		l.until("n")
	})
	for _, test := range []struct {
		kind FaultKind
		want string // as on the wire
	}{
		{GarbleEvent, "event: n\r\ndata: {\"eventType\r\n\r\n"},
		{JoinEvents, "event: n\r\ndata: {\"eventType\":\"n\",\"n\":0}\r\ndata: {\"eventType\":\"n\",\"n\":0}\r\n\r\n"},
		{SplitData, "event: n\r\ndata: {\"eventType\":\"n\",\r\ndata: \"n\":0}\r\n\r\n"},
		{BareLF, "event: n\ndata: {\"eventType\":\"n\",\"n\":0}\n\n"},
		{LoneCR, "event: n\rdata: {\"eventType\":\"n\",\"n\":0}\r\r"},
		{CutAfter, "event: n\r\ndata: {\"eventType\":\"n\",\"n\":0}\r\n\r\n"},
		{CutBefore, ""},
		{CutInside, "event: n\r\ndata: {\"e"},
	} {
		t.Run(fmt.Sprintf("kind %d", test.kind), func(t *testing.T) {
			c := start(t, Options{})
			l := listen(t, c, 0, "?event_type=n")
			c.Inject(Fault{Kind: test.kind, Event: "n", Bytes: 19, Times: 1})
			numbered(c, 1)
			quiet(t, c)
			c.CutStreams(false) // after the event, if the fault did not
			// What is read is all that was written before the end.
			have, err := io.ReadAll(l.r)
			if err != nil {
				t.Fatal(err)
			}
			if string(have) != test.want {
				t.Errorf("have %q, want %q", have, test.want)
			}
		})
	}
	t.Run("reset inside", func(t *testing.T) {
		c := start(t, Options{})
		l := listen(t, c, 0, "?event_type=n")
		c.Inject(Fault{Kind: ResetInside, Event: "n"})
		numbered(c, 1)
		if _, err := io.ReadAll(l.r); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("have %v, want a reset", err)
		}
	})
}

func TestStalledStreamsBeatAndSilentOnesDoNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var network MemoryNetwork
		c := New(Options{Listen: network.Listen, Dial: network.DialContext})
		must(t, c.Start())
		defer c.Close()
		conn, err := network.DialContext(t.Context(), "tcp", strings.TrimPrefix(c.URL(0), "http://"))
		must(t, err)
		defer conn.Close()
		io.WriteString(conn, "GET /v2/events?event_type=mark HTTP/1.1\r\nHost: m\r\nAccept: text/event-stream\r\n\r\n")
		heard := make(chan string, 100)
		go func() {
			buf := make([]byte, 4096)
			for {
				n, err := conn.Read(buf)
				if err != nil {
					return
				}
				heard <- string(buf[:n])
			}
		}()
		count := func() string {
			synctest.Wait()
			all := ""
			for len(heard) > 0 {
				all += <-heard
			}
			return all
		}
		count() // the head
		c.StallStreams(true)
		c.Emit([]byte(marker))
		time.Sleep(25 * time.Second) // of the bubble's clock
		if have := count(); have != "\r\n\r\n" {
			t.Errorf("stalled: %q, want two heartbeats and no event", have)
		}
		c.StallStreams(false)
		if have := count(); !strings.Contains(have, "mark") {
			t.Errorf("after the stall: %q, want what waited", have)
		}
		c.SilenceStreams(true)
		c.Emit([]byte(marker))
		time.Sleep(time.Minute)
		if have := count(); have != "" {
			t.Errorf("silent: %q", have)
		}
		c.SilenceStreams(false)
		if have := count(); !strings.Contains(have, "mark") {
			t.Errorf("after the silence: %q", have)
		}
	})
}

func TestStreamsAreCounted(t *testing.T) {
	c := start(t, Options{})
	a, b := listen(t, c, 0, ""), listen(t, c, 0, "")
	a.until("event_stream_attached")
	a.until("event_stream_attached")
	if n := c.Streams(); n != 2 {
		t.Errorf("%d streams, want 2", n)
	}
	b.conn.Close()
	a.until("event_stream_detached")
	must(t, c.Wait(deadline(t), func() bool { return c.Streams() == 1 }))
	c.CutStreams(true)
	if _, err := io.ReadAll(a.r); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("hard cut: %v, want a reset", err)
	}
}

func TestEndStreamAttachesToNothing(t *testing.T) {
	c := start(t, Options{})
	c.Inject(Fault{Kind: EndStream, Path: "/v2/events", Times: 1})
	l := dialStream(t, c.URL(0), "", "text/event-stream")
	if rest, err := io.ReadAll(l.r); len(rest) > 0 || err != nil {
		t.Errorf("have %q, %v: want an end at once", rest, err)
	}
	listen(t, c, 0, "").event()
}
