package discovery

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unique"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "rewrite the expectations in testdata")

// testHosts resolves agentN to 10.1.0.N; anything else is not known.
func testHosts(host string) (netip.Addr, bool) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr, true
	}
	var n byte
	if _, err := fmt.Sscanf(host, "agent%d", &n); err != nil {
		return netip.Addr{}, false
	}
	return netip.AddrFrom4([4]byte{10, 1, 0, n}), true
}

// picture is a state with what was published of it.
type picture struct {
	*state
	changes *changes
	now     time.Time
	table   map[Key]*Service
}

func newPicture(version string) *picture {
	p := &picture{state: newState("", testHosts), changes: newChanges(), now: time.UnixMilli(1714557600000), table: map[Key]*Service{}}
	p.state.version = parseVersion(version)
	p.attached()
	return p
}

func (p *picture) event(line string) error {
	e, err := decodeEvent([]byte(line), otherEvent, p.now)
	if err != nil {
		return err
	}
	p.apply(&e)
	p.changes.apply(&e, p.state)
	return nil
}

func (p *picture) answer(text string) error {
	r := p.begin()
	var apps []appData
	err := decodeApps(strings.NewReader(text), func(a appData) error {
		apps = append(apps, a)
		return a.broken
	})
	if err != nil {
		return err
	}
	p.mergeAll(r, apps)
	return nil
}

func (p *picture) mergeAll(r *answer, apps []appData) {
	for i := range apps {
		p.merge(r, &apps[i], p.now)
	}
	p.finish(r, p.absentees(r, func(string) bool { return true }))
}

func (p *picture) publish() {
	pending := newPending()
	p.take(pending)
	if u := pending.update; u != nil {
		for _, s := range u.Services {
			p.table[s.Key] = s
		}
		for _, k := range u.Gone {
			delete(p.table, k)
		}
	}
}

// String is the published services and what the state would like to read.
func (p *picture) String() string {
	p.publish()
	var b strings.Builder
	for _, k := range sortedKeys(p.table) {
		b.WriteString(printService(p.table[k]))
	}
	for _, w := range p.wants {
		fmt.Fprintf(&b, "read %s", w.app)
		if w.version != "" {
			fmt.Fprintf(&b, " version %s", w.version)
		}
		if w.after != 0 {
			fmt.Fprintf(&b, " after %v", w.after)
		}
		b.WriteByte('\n')
	}
	p.wants = nil
	return b.String()
}

// TestState plays the archives of testdata/state: the comment names Marathon's version,
// "apps" is a whole answer, "events" has one event a line, "later" lets time pass, and
// "want" is the outcome so far.
func TestState(t *testing.T) {
	files, err := filepath.Glob("testdata/state/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, version, ok := strings.Cut(string(archive.Comment), "Marathon ")
			if !ok {
				t.Fatal("the comment names no version: want “Marathon 1.11.0”")
			}
			p := newPicture(strings.Fields(version)[0])
			for i := range archive.Files {
				f := &archive.Files[i]
				text := string(f.Data)
				switch f.Name {
				case "apps":
					if err := p.answer(text); err != nil {
						t.Fatal(err)
					}
				case "events":
					for line := range strings.Lines(text) {
						p.now = p.now.Add(time.Millisecond)
						if err := p.event(line); err != nil {
							t.Errorf("%s: %v", line, err)
						}
					}
				case "later":
					d, err := time.ParseDuration(strings.TrimSpace(text))
					if err != nil {
						t.Fatal(err)
					}
					p.now = p.now.Add(d)
					p.expire(p.now)
				case "want":
					got := p.String()
					if *update {
						f.Data = []byte(got)
					} else if diff := cmp.Diff(text, got); diff != "" {
						t.Errorf("file %d (-want +got):\n%s", i+1, diff)
					}
				default:
					t.Fatalf("file %s: want apps, events, later or want", f.Name)
				}
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// history makes a plausible life of some tasks: what Marathon would publish, each event
// with a timestamp of its own.
func history(rng *rand.Rand, version string) []event {
	at := int64(1714557600000)
	received := time.UnixMilli(at)
	goals := parseVersion(version).goals()
	var events []event
	add := func(e event) {
		at += 1 + rng.Int64N(50)
		e.at, e.received = at, received
		events = append(events, e)
	}
	for i := range 1 + rng.IntN(4) {
		uuid := fmt.Sprintf("%08x-0000-0000-0000-%012x", rng.Uint32(), i)
		app := fmt.Sprintf("/app%d", i%2)
		host := fmt.Sprintf("agent%d", 1+rng.IntN(3))
		for n := 1; n <= 1+rng.IntN(2); n++ {
			id, instance := fmt.Sprintf("app.%s", uuid), "app.marathon-"+uuid
			if goals {
				id, instance = fmt.Sprintf("app.instance-%s._app.%d", uuid, n), "app.instance-"+uuid
			} else if n > 1 {
				break // no second life under one id
			}
			ports := []uint16{uint16(31000 + i*10 + n)}
			status := func(p phase) {
				add(event{typ: statusUpdate, app: app, task: id, host: host, ports: ports, version: "2024-05-01T09:00:00.000Z", phase: p})
			}
			cond := func(p phase) {
				add(event{typ: instanceChanged, app: app, instance: instance, phase: p})
			}
			cond(phaseStaging)
			status(phaseStaging)
			status(phaseRunning)
			cond(phaseRunning)
			for range rng.IntN(4) {
				switch rng.IntN(5) {
				case 0, 1:
					add(event{typ: healthStatus, app: app, instance: instance, health: Alive + Health(rng.IntN(2))})
				case 2:
					status(phaseRunning)
				case 3:
					status(phaseUnreachable)
					cond(phaseUnreachable)
					if rng.IntN(2) == 0 {
						cond(phaseInactive)
					}
					status(phaseRunning)
					cond(phaseRunning)
				case 4:
					add(event{typ: instanceHealth, app: app, instance: instance, health: Health(rng.IntN(3))})
				}
			}
			if rng.IntN(2) == 0 {
				break // it goes on running
			}
			if goals {
				cond(phaseRunning) // the goal has changed
			}
			if rng.IntN(2) == 0 {
				status(phaseKilling)
			}
			if rng.IntN(5) > 0 {
				status(phaseGone)
			}
			cond(phaseGone)
		}
	}
	return events
}

func twoApps(p *picture) {
	for i := range 2 {
		a := p.app(fmt.Sprintf("/app%d", i))
		p.define(a, &App{
			ID: a.id, Version: "2024-05-01T09:00:00.000Z", LastConfigChange: "2024-05-01T09:00:00.000Z",
			Ports: []Port{{Service: uint16(10000 + i), Mapped: true, Protocol: "tcp"}}, Checks: []HealthCheck{{Protocol: "TCP"}},
		}, 0)
	}
}

func play(version string, events []event) string {
	p := newPicture(version)
	twoApps(p)
	for i := range events {
		e := events[i]
		p.apply(&e)
	}
	p.wants = nil
	return p.String()
}

// TestEventsCommute: the picture does not depend on the order of the events, nor on how
// often they come.
func TestEventsCommute(t *testing.T) {
	for _, version := range []string{"1.3.0", "1.4.0", "1.11.0"} {
		for seed := range uint64(300) {
			rng := rand.New(rand.NewPCG(seed, 1))
			events := history(rng, version)
			want := play(version, events)
			for range 8 {
				mixed := slices.Clone(events)
				for range rng.IntN(5) {
					mixed = append(mixed, events[rng.IntN(len(events))])
				}
				rng.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
				if diff := cmp.Diff(want, play(version, mixed)); diff != "" {
					var b bytes.Buffer
					for _, e := range mixed {
						fmt.Fprintf(&b, "%d %s %s%s phase %d health %d\n", e.at%1e6, eventNames[e.typ], e.task, e.instance, e.phase, e.health)
					}
					t.Fatalf("version %s, seed %d (-in order +mixed):\n%s\nmixed:\n%s", version, seed, diff, b.String())
				}
			}
		}
	}
}

// TestPatchesAreWhatABuildGives: services made from those published before and from
// what changed are the same as services made afresh.
func TestPatchesAreWhatABuildGives(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 4))
		p := newPicture("1.11.0")
		twoApps(p)
		events := history(rng, "1.11.0")
		for i := range 12 { // neighbours, so that one change does not make a build
			id := fmt.Sprintf("app.%08x-aaaa-0000-0000-%012x", rng.Uint32(), i)
			p.apply(&event{typ: statusUpdate, app: "/app0", task: id, host: "agent9", ports: []uint16{1}, phase: phaseRunning, at: 5, received: p.now})
		}
		p.publish()
		for i := range events {
			p.apply(&events[i])
			if rng.IntN(3) == 0 {
				continue // two changes in one update
			}
			p.publish()
			patched, counted := p.table, p.counts
			p.table = map[Key]*Service{}
			for _, a := range p.apps {
				p.touch(a)
			}
			p.publish()
			if diff := cmp.Diff(p.table, patched, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmpopts.EquateEmpty()); diff != "" || counted != p.counts {
				t.Fatalf("seed %d, event %d: counts %+v, patched %+v (-built +patched):\n%s", seed, i, p.counts, counted, diff)
			}
		}
	}
}

// TestSyncAfterEventsChangesNothing: a picture that heard everything is what an answer
// says, so that the answer touches nothing, whether it was asked for before or after.
func TestSyncAfterEventsChangesNothing(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 2))
		events := history(rng, "1.11.0")
		p := newPicture("1.11.0")
		twoApps(p)
		cut := rng.IntN(len(events) + 1)
		for i := range events[:cut] {
			p.apply(&events[i])
		}
		before := answerOf(p) // Marathon's picture after some of the events
		r := p.begin()
		for i := range events[cut:] {
			p.apply(&events[cut+i])
		}
		want := p.String()
		p.mergeAll(r, before)
		if diff := cmp.Diff(want, p.String()); diff != "" {
			t.Fatalf("seed %d: an older answer undid events (-want +got):\n%s", seed, diff)
		}
		r = p.begin()
		p.mergeAll(r, answerOf(p))
		if len(p.touched) > 0 || r.corrected > 0 {
			t.Fatalf("seed %d: an answer that says the same touched %d apps", seed, len(p.touched))
		}
	}
}

// answerOf is what Marathon would answer if it thought what p does.
func answerOf(p *picture) []appData {
	var apps []appData
	for _, a := range p.apps {
		d := appData{id: a.id, def: a.def}
		for _, t := range a.tasks {
			health := t.inst.verdict
			if t.inst.verdictAt < t.since {
				health = HealthUnknown
			}
			d.tasks = append(d.tasks, taskData{
				id: t.id, host: unique.Make(t.host.name), version: t.version, ports: t.ports, addrs: t.addrs,
				phase: t.phase, health: health, ready: t.ready,
			})
		}
		apps = append(apps, d)
	}
	return apps
}

// TestAnswerHealsEverything: whatever was heard before, an answer asked for afterwards
// makes the picture what Marathon says.
func TestAnswerHealsEverything(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 3))
		events := history(rng, "1.3.0")
		p := newPicture("1.3.0")
		twoApps(p)
		for i := range events {
			if rng.IntN(3) > 0 { // the others are lost
				p.apply(&events[i])
			}
		}
		truth := newPicture("1.3.0")
		twoApps(truth)
		for i := range events {
			truth.apply(&events[i])
		}
		p.now = p.now.Add(killSticks + time.Minute)
		p.mergeAll(p.begin(), answerOf(truth))
		p.wants, truth.wants = nil, nil
		if diff := cmp.Diff(withoutHealth(truth.String()), withoutHealth(p.String())); diff != "" {
			t.Fatalf("seed %d (-Marathon +ours):\n%s", seed, diff)
		}
		for key, in := range truth.insts { // what Marathon does not know of health is kept
			if have := p.insts[key]; have != nil && in.first != nil && in.first.phase == phaseRunning && in.verdict != HealthUnknown && have.verdict != in.verdict {
				t.Fatalf("seed %d: %s: health %d, Marathon says %d", seed, key, have.verdict, in.verdict)
			}
		}
	}
}

func withoutHealth(s string) string {
	return strings.NewReplacer(" unknown", "", " alive", "", " dead", "").Replace(s)
}

func TestInstanceKey(t *testing.T) {
	const uuid = "0f3bc0de-0000-11e6-a544-0853d77d884b"
	for id, want := range map[string]string{
		"shop_cart." + uuid:                      uuid,
		"shop_cart.marathon-" + uuid:             uuid,
		"shop_cart.instance-" + uuid:             uuid,
		"shop_cart.instance-" + uuid + "._app.2": uuid,
		"shop_cart." + uuid + ".3":               uuid,
		"p.instance-" + uuid + ".web.1":          uuid,
		uuid:                                     uuid,
		"my-app_0-1396592784349":                 "my-app_0-1396592784349",
		"a." + uuid[:35]:                         "a." + uuid[:35],
		"a.xx" + uuid:                            "a.xx" + uuid,
		"":                                       "",
	} {
		if got := instanceKey(id); got != want {
			t.Errorf("instanceKey(%q) = %q, want %q", id, got, want)
		}
	}
}

func TestGraveyardIsBounded(t *testing.T) {
	p := newPicture("1.11.0")
	for i := range 3 * maxGraves {
		id := fmt.Sprintf("a.%08x-0000-0000-0000-000000000000", i)
		p.now = p.now.Add(time.Millisecond)
		p.apply(&event{typ: statusUpdate, app: "/a", task: id, phase: phaseGone, at: p.now.UnixMilli(), received: p.now})
		if i%1000 == 0 {
			p.expire(p.now)
		}
	}
	p.expire(p.now)
	if n := len(p.insts); n > maxGraves {
		t.Errorf("%d instances are remembered, want at most %d", n, maxGraves)
	}
	p.expire(p.now.Add(graveLife + time.Second))
	if len(p.insts) != 0 || len(p.graves.queue)-p.graves.head != 0 || len(p.apps) != 0 {
		t.Errorf("%d instances, %d graves, %d apps are left", len(p.insts), len(p.graves.queue), len(p.apps))
	}
}
