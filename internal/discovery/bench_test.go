package discovery

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"
)

var benchSizes = []int{100, 1000, 10_000, 100_000}

// perApp is how many tasks each app of a benchmark has.
const perApp = 20

func benchID(app, i int) string {
	return fmt.Sprintf("app_%d.instance-%08x-7c1e-11ee-8000-%012x._app.1", app, app, i)
}

// answerText is what Marathon 1.9 answers for that many tasks, as large as it answers.
func answerText(tasks int) []byte {
	var b bytes.Buffer
	b.WriteString(`{"apps":[`)
	for app := range max(1, tasks/perApp) {
		if app > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"id":"/app/%d","acceptedResourceRoles":["*"],"backoffFactor":1.15,"backoffSeconds":1,"cmd":"run --port $PORT0","cpus":0.1,"disk":0,"env":{"A":"b","S":{"secret":"s"}},"executor":"","instances":%d,"labels":{"HAPROXY_GROUP":"external","HAPROXY_0_VHOST":"app%d.example"},"mem":128,"networks":[{"mode":"host"}],"portDefinitions":[{"name":"http","protocol":"tcp","port":%d,"labels":{}}],"requirePorts":false,"upgradeStrategy":{"maximumOverCapacity":1,"minimumHealthCapacity":1},"version":"2024-05-01T09:00:00.000Z","versionInfo":{"lastScalingAt":"2024-05-01T09:00:00.000Z","lastConfigChangeAt":"2024-05-01T09:00:00.000Z"},"healthChecks":[{"gracePeriodSeconds":300,"intervalSeconds":60,"maxConsecutiveFailures":3,"path":"/health","portIndex":0,"protocol":"MESOS_HTTP","timeoutSeconds":20}],"killSelection":"YOUNGEST_FIRST","unreachableStrategy":{"inactiveAfterSeconds":0,"expungeAfterSeconds":0},"tasksStaged":0,"tasksRunning":%d,"tasksHealthy":%d,"tasksUnhealthy":0,"deployments":[],"tasks":[`,
			app, perApp, app, 10000+app%10000, perApp, perApp)
		for i := range perApp {
			if i > 0 {
				b.WriteByte(',')
			}
			id := benchID(app, i)
			fmt.Fprintf(&b, `{"ipAddresses":[{"ipAddress":"10.%d.%d.%d","protocol":"IPv4"}],"stagedAt":"2024-05-01T09:00:01.039Z","state":"TASK_RUNNING","ports":[%d],"startedAt":"2024-05-01T09:00:02.654Z","version":"2024-05-01T09:00:00.000Z","id":%q,"appId":"/app/%d","slaveId":"db7b40e2-791c-445f-b373-183e2a648a86-S%d","host":"10.1.%d.%d","healthCheckResults":[{"alive":true,"consecutiveFailures":0,"firstSuccess":"2024-05-01T09:00:05.000Z","lastFailure":null,"lastSuccess":"2024-05-01T10:00:05.000Z","lastFailureCause":null,"instanceId":"app_%d.instance-%08x-7c1e-11ee-8000-%012x"}],"localVolumes":[],"region":"r","zone":"z","role":"*"}`,
				app%250, i, app%200, 31000+i, id, app, i, i, 1+app%250, app, app, i)
		}
		b.WriteString("]}")
	}
	b.WriteString("]}")
	return b.Bytes()
}

// loaded is a synced picture of that many tasks.
func loaded(tb testing.TB, text []byte) *picture {
	tb.Helper()
	p := &picture{state: newState("", testHosts), changes: newChanges(), now: time.UnixMilli(1714557600000), table: map[Key]*Service{}}
	p.state.version = parseVersion("1.9.0")
	p.attached()
	load(tb, p.state, text)
	p.take(newPending())
	return p
}

func load(tb testing.TB, s *state, text []byte) {
	r := s.begin()
	if err := decodeApps(bytes.NewReader(text), func(a appData) error {
		s.merge(r, &a, time.UnixMilli(1714557600000))
		return a.broken
	}); err != nil {
		tb.Fatal(err)
	}
	s.finish(r, s.absentees(r, func(string) bool { return true }))
}

// BenchmarkEventToUpdate is the whole cost of a task event to this room: from the bytes
// of the stream to the Update, in clusters of different sizes.
func BenchmarkEventToUpdate(b *testing.B) {
	for _, tasks := range benchSizes {
		b.Run(fmt.Sprintf("tasks=%d", tasks), func(b *testing.B) {
			p := loaded(b, answerText(tasks))
			var stream bytes.Buffer
			for i, e := range flips(tasks) {
				fmt.Fprintf(&stream, "event: status_update_event\r\ndata: {\"slaveId\":\"S1\",\"taskId\":%q,\"taskStatus\":%q,\"message\":\"\",\"appId\":%q,\"host\":%q,\"ipAddresses\":[],\"ports\":[31000],\"version\":%q,\"eventType\":\"status_update_event\",\"timestamp\":\"2024-05-01T12:00:00.000Z\"}\r\n\r\n",
					e.task, []string{"TASK_RUNNING", "TASK_UNREACHABLE"}[i%2], e.app, e.host, e.version)
			}
			r := newEventReader(&endless{text: stream.Bytes()})
			pending := newPending()
			var events []event
			at := int64(1714557700000)
			runtime.GC()
			b.ReportAllocs()
			for b.Loop() {
				f, _, err := r.next(true)
				if err != nil {
					b.Fatal(err)
				}
				if events, err = appendEvents(events[:0], f); err != nil {
					b.Fatal(err)
				}
				at++
				events[0].at = at // the stream repeats itself
				p.apply(&events[0])
				pending.heard(f.received, 1)
				p.take(pending)
				if len(pending.update.Services) != 1 {
					b.Fatal("the event touched nothing")
				}
				pending.sent()
			}
		})
	}
}

// flips makes events that change the health of one task each, anywhere in the cluster.
func flips(tasks int) []event {
	rng := rand.New(rand.NewPCG(1, 1))
	events := make([]event, 4096)
	for i := range events {
		app, n := rng.IntN(max(1, tasks/perApp)), rng.IntN(perApp)
		events[i] = event{typ: statusUpdate, app: fmt.Sprintf("/app/%d", app), task: benchID(app, n), host: "10.1.0.9", ports: []uint16{31000}, version: "2024-05-01T09:00:00.000Z", phase: phaseRunning}
	}
	return events
}

// BenchmarkStateApply is what a task event costs from the decoded event to the Update,
// in clusters of different sizes.
func BenchmarkStateApply(b *testing.B) {
	for _, tasks := range benchSizes {
		b.Run(fmt.Sprintf("tasks=%d", tasks), func(b *testing.B) {
			p := loaded(b, answerText(tasks))
			events := flips(tasks)
			pending := newPending()
			at := int64(1714557700000)
			runtime.GC()
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				e := &events[i%len(events)]
				i++
				at++
				e.at, e.phase = at, phaseRunning+phase(i%2) // running, unreachable
				p.apply(e)
				p.take(pending)
				if len(pending.update.Services) != 1 {
					b.Fatal("the event touched nothing")
				}
				pending.sent()
			}
		})
	}
}

const statusEvent = `{"slaveId":"20240501-S3","taskId":"shop_cart.instance-0f3bc0de-7c1e-11ee-8000-000000000001._app.1","taskStatus":"TASK_RUNNING","message":"","appId":"/shop/cart","host":"agent3.example","ipAddresses":[{"ipAddress":"9.0.1.4","protocol":"IPv4"}],"ports":[31001,31002],"version":"2024-05-01T09:59:00.000Z","eventType":"status_update_event","timestamp":"2024-05-01T10:00:00.123Z"}`

func BenchmarkEventDecode(b *testing.B) {
	for name, f := range map[string]frame{
		"type=status_update":       {name: []byte("status_update_event"), data: []byte(statusEvent)},
		"type=failed_health_check": {name: []byte("failed_health_check_event"), data: []byte(`{"appId":"/shop/cart","eventType":"failed_health_check_event","healthCheck":{"path":"/h"}}`)},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var events []event
			for b.Loop() {
				var err error
				if events, err = appendEvents(events[:0], f); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkStream is the cost of an event from the bytes of the stream on.
func BenchmarkStream(b *testing.B) {
	one := []byte("event: status_update_event\r\ndata: " + statusEvent + "\r\n\r\n\r\n")
	r := newEventReader(&endless{text: one})
	b.SetBytes(int64(len(one)))
	b.ReportAllocs()
	for b.Loop() {
		if _, ok, err := r.next(true); !ok || err != nil {
			b.Fatal(err)
		}
	}
}

// endless repeats text for ever, a read's worth at a time.
type endless struct {
	text []byte
	off  int
}

func (e *endless) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		m := copy(p[n:], e.text[e.off:])
		n += m
		e.off = (e.off + m) % len(e.text)
	}
	return n, nil
}

// BenchmarkSnapshot is the cost of a whole answer: decoded and merged, first into
// nothing, then into a picture that has it all (what an audit costs).
func BenchmarkSnapshot(b *testing.B) {
	for _, tasks := range benchSizes {
		text := answerText(tasks)
		b.Run(fmt.Sprintf("tasks=%d/first", tasks), func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				s := newState("", testHosts)
				load(b, s, text)
				s.take(newPending())
			}
		})
		b.Run(fmt.Sprintf("tasks=%d/same", tasks), func(b *testing.B) {
			p := loaded(b, text)
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				load(b, p.state, text)
				if len(p.touched) > 0 {
					b.Fatal("the same answer touched something")
				}
			}
		})
	}
}

// TestHotPathAllocations holds what one task event may allocate: decoding (the strings
// that are kept), and one service with its tasks.
func TestHotPathAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates too")
	}
	f := frame{name: []byte("status_update_event"), data: []byte(statusEvent)}
	var events []event
	decode := testing.AllocsPerRun(100, func() { events, _ = appendEvents(events[:0], f) })
	if decode > 22 {
		t.Errorf("decoding an event: %v allocations, want at most 22", decode)
	}
	other := frame{name: []byte("failed_health_check_event"), data: []byte("{}")}
	if n := testing.AllocsPerRun(100, func() { events, _ = appendEvents(events[:0], other) }); n > 0 {
		t.Errorf("skipping an event: %v allocations, want none", n)
	}
	p := loaded(t, answerText(1000))
	flipped := flips(1000)[0]
	pending := newPending()
	at := int64(1714557700000)
	apply := testing.AllocsPerRun(100, func() {
		at++
		flipped.at, flipped.phase = at, phaseRunning+phase(at%2)
		p.apply(&flipped)
		p.take(pending)
		pending.sent()
	})
	if apply > 6 {
		t.Errorf("applying an event: %v allocations, want at most 6", apply)
	}
	stream := newEventReader(&endless{text: []byte("event: x\r\ndata: {}\r\n\r\n")})
	if n := testing.AllocsPerRun(1000, func() { stream.next(true) }); n > 0 {
		t.Errorf("reading an event: %v allocations, want none", n)
	}
}

// TestMemoryOfThePicture: what 10 000 tasks keep in memory, published services included.
func TestMemoryOfThePicture(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector needs memory too")
	}
	text := answerText(10_000)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := newState("", func(host string) (netip.Addr, bool) { return testHosts(host) })
	load(t, s, text)
	pending := newPending()
	s.take(pending)
	runtime.GC()
	runtime.ReadMemStats(&after)
	kept := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / 10_000
	t.Logf("%d bytes a task", kept)
	if kept > 800 {
		t.Errorf("%d bytes a task are kept, want at most 800", kept)
	}
	runtime.KeepAlive(pending)
	runtime.KeepAlive(s)
	runtime.KeepAlive(text)
}
