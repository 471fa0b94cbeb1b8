package zdd

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"bridged/internal/discovery"
	"bridged/internal/discovery/marathontest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lab is a Marathon and what a run does to it.
type lab struct {
	t      *testing.T
	c      *marathontest.Cluster
	api    *discovery.API
	events []string
	least  int // fewest tasks that served at any step, since the first app served
}

func newLab(t *testing.T, o marathontest.Options) *lab {
	t.Helper()
	l := &lab{t: t, c: marathontest.New(o), least: -1}
	if err := l.c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.c.Close)
	api, err := discovery.NewAPI(discovery.Options{URLs: l.c.URLs()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Close)
	l.api = api
	return l
}

// definition is version n of the app /web in group /web.
func definition(t *testing.T, n, instances int) *Definition {
	t.Helper()
	d, err := ReadDefinition(strings.NewReader(fmt.Sprintf(`{"id":"/web","cmd":"serve v%d","instances":%d,"cpus":0.1,
		"labels":{"HAPROXY_DEPLOYMENT_GROUP":"web","HAPROXY_DEPLOYMENT_ALT_PORT":"10001"},
		"ports":[8080],"healthChecks":[{"protocol":"HTTP","path":"/"}]}`, n, instances)))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

var errKilled = errors.New("killed")

// run runs until it is done, or dies before or after its n-th change (0: it doesn't).
func (l *lab) run(o Options, dies string, n int) error {
	l.t.Helper()
	o.API, o.Delay = l.api, time.Millisecond
	if o.MaxWait == 0 {
		o.MaxWait = 20 * time.Second
	}
	changes := 0
	o.interrupt = func(when string, s step) error {
		if when == "before" {
			changes++
		}
		l.count()
		if dies == when && changes == n {
			return errKilled
		}
		return nil
	}
	o.Report = func(e Event) {
		if e.Step != "wait" && e.Step != "note" {
			text := e.Step + " " + e.App
			if e.Instances > 0 {
				text += fmt.Sprint(" ", e.Instances)
			}
			if e.Step == "kill" {
				text += fmt.Sprint(" -", len(e.Tasks))
			}
			l.events = append(l.events, strings.TrimSpace(text))
		}
		l.count()
	}
	return Run(l.t.Context(), o)
}

// count notes how many tasks serve now.
func (l *lab) count() {
	n := 0
	for _, t := range l.c.Tasks("") {
		if t.Live() {
			n++
		}
	}
	if l.least < 0 || n < l.least {
		l.least = n
	}
}

// apps is what runs: id and live tasks of instances.
func (l *lab) apps() []string {
	var list []string
	for _, id := range l.c.Apps() {
		live := 0
		for _, t := range l.c.Tasks(id) {
			if t.Live() {
				live++
			}
		}
		list = append(list, fmt.Sprintf("%s %d", id, live))
	}
	return list
}

func (l *lab) want(apps ...string) {
	l.t.Helper()
	if diff := cmp.Diff(apps, l.apps()); diff != "" {
		l.t.Errorf("apps and their live tasks (-want +got):\n%s", diff)
	}
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatalf("%v\nsteps so far:\n%s", err, strings.Join(l.events, "\n"))
	}
}

func (l *lab) capacity(want int) {
	l.t.Helper()
	if l.least < want {
		l.t.Errorf("at some step %d tasks served, want never fewer than %d; steps:\n%s", l.least, want, strings.Join(l.events, "\n"))
	}
}

// begun is a lab in which version 1 serves with n instances.
func begun(t *testing.T, o marathontest.Options, n int) *lab {
	t.Helper()
	l := newLab(t, o)
	l.must(l.run(Options{Definition: definition(t, 1, n)}, "", 0))
	l.events, l.least = nil, -1
	return l
}

func TestDeployment(t *testing.T) {
	for _, version := range []string{"0.8.2", "0.10.0", "1.1.0", "1.4.0", "1.5.9", "1.11.0"} {
		t.Run(version, func(t *testing.T) {
			l := begun(t, marathontest.Options{Version: version}, 4)
			l.want("/web-blue 4")
			l.must(l.run(Options{Definition: definition(t, 2, 4)}, "", 0))
			l.want("/web-green 4")
			l.capacity(4)
			if diff := cmp.Diff([]string{
				"create /web-green 1", "kill /web-blue -1", "scale /web-green 2", "kill /web-blue -1", "scale /web-green 3",
				"kill /web-blue -1", "scale /web-green 4", "delete /web-blue", "done",
			}, l.events); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
			if got := l.c.ServicePorts("/web-green"); !slices.Equal(got, []int{10001}) {
				t.Errorf("service ports of green %v, want the other one", got)
			}

			// The same definition again changes nothing, unless it is asked for.
			l.events = nil
			l.must(l.run(Options{Definition: definition(t, 2, 4)}, "", 0))
			if diff := cmp.Diff([]string{"done"}, l.events); diff != "" {
				t.Errorf("again (-want +got):\n%s", diff)
			}
			l.must(l.run(Options{Definition: definition(t, 2, 4), Redeploy: true, Initial: 2, Linear: 2}, "", 0))
			l.want("/web-blue 4")
			l.capacity(4)
			if got := l.c.ServicePorts("/web-blue"); !slices.Equal(got, []int{8080}) {
				t.Errorf("service ports of the next blue %v, want the published one", got)
			}
		})
	}
}

// A run that dies before or after any of its changes is gone on with, by the same command
// and by --resume, in the direction it had, and no capacity is lost on the way.
func TestKilledAtEachStep(t *testing.T) {
	type scene struct {
		first  Options // what runs, and dies
		prior  int     // changes of a deployment that it finds
		finish string
	}
	same := func(o Options) Options { return o }
	resume := func(o Options) Options { o.Mode = Resume; return o }
	scenes := map[string]scene{
		"deploy":        {first: Options{Definition: definition(t, 2, 4)}, finish: "/web-green 4"},
		"abort":         {first: Options{Group: "/web", Mode: Abort}, prior: 3, finish: "/web-blue 4"},
		"abort-at-once": {first: Options{Group: "/web", Mode: Abort}, prior: 1, finish: "/web-blue 4"},
	}
	for name, sc := range scenes {
		for _, when := range []string{"before", "after"} {
			for again, next := range map[string]func(Options) Options{"same": same, "resume": resume} {
				t.Run(fmt.Sprintf("%s/%s/%s", name, when, again), func(t *testing.T) {
					for n := 1; ; n++ {
						l := begun(t, marathontest.Options{}, 4)
						if sc.prior > 0 {
							if err := l.run(Options{Definition: definition(t, 2, 4)}, "after", sc.prior); !errors.Is(err, errKilled) {
								t.Fatalf("the first deployment: %v", err)
							}
						}
						err := l.run(sc.first, when, n)
						if err == nil {
							if n < 3 {
								t.Errorf("only %d changes were made", n-1)
							}
							return
						}
						if !errors.Is(err, errKilled) {
							t.Fatal(err)
						}
						o := next(sc.first)
						// The first change of an abort is what records the direction; a
						// resumption before it goes on forward, as nothing else is known.
						unrecorded := sc.first.Mode == Abort && again == "resume" && l.forward()
						if len(l.c.Apps()) == 1 && o.Mode == Resume && when == "before" && n == 1 {
							continue // nothing was begun
						}
						l.must(l.run(o, "", 0))
						if unrecorded {
							l.want("/web-green 4")
						} else {
							l.want(sc.finish)
						}
						l.capacity(4)
					}
				})
			}
		}
	}
}

// forward: Marathon alone says that the group goes forward.
func (l *lab) forward() bool {
	r := &runner{o: Options{API: l.api, Mode: Resume}, group: "/web", hosts: resolver{}, known: map[string]bool{}, drained: map[string]time.Time{}}
	v, err := r.look(l.t.Context())
	l.must(err)
	if len(v.apps) < 2 {
		return false
	}
	g, _, err := r.begin(v)
	l.must(err)
	return g.direction == forward
}

func TestBothBesideEachOther(t *testing.T) {
	l := begun(t, marathontest.Options{}, 6)
	l.must(l.run(Options{Definition: definition(t, 2, 6), NewInstances: 2}, "", 0))
	l.want("/web-blue 4", "/web-green 2")
	l.must(l.run(Options{Group: "/web", Mode: Resume}, "", 0))
	l.want("/web-blue 4", "/web-green 2")
	l.capacity(6)
}

func TestHybridThenCompleteOrAbort(t *testing.T) {
	for name, tc := range map[string]struct {
		mode Mode
		want string
	}{"complete": {Complete, "/web-green 6"}, "abort": {Abort, "/web-blue 6"}} {
		t.Run(name, func(t *testing.T) {
			l := begun(t, marathontest.Options{}, 6)
			l.must(l.run(Options{Definition: definition(t, 2, 6), NewInstances: 2}, "", 0))
			l.want("/web-blue 4", "/web-green 2")
			if err := l.run(Options{Group: "/web", Mode: tc.mode}, "after", 1); !errors.Is(err, errKilled) {
				t.Fatal(err)
			}
			l.must(l.run(Options{Group: "/web", Mode: Resume}, "", 0))
			l.want(tc.want)
			l.capacity(6)
		})
	}
}

// A version that never gets healthy costs nothing: the run gives up, and going back works
// though Marathon still deploys it.
func TestSickVersion(t *testing.T) {
	l := begun(t, marathontest.Options{}, 3)
	sick := l.c.Inject(marathontest.Fault{Kind: marathontest.ForgetHealth}) // nobody's health is known any more
	err := l.run(Options{Definition: definition(t, 2, 3), MaxWait: 30 * time.Millisecond}, "", 0)
	if e, ok := errors.AsType[*Error](err); !ok || e.Code != CodeTimeout {
		t.Fatalf("%v, want a time-out", err)
	}
	sick.Remove()
	for _, task := range l.c.Tasks("/web-green") {
		l.must(l.c.SetHealth(task.ID, false))
	}
	l.must(l.run(Options{Group: "/web", Mode: Abort}, "", 0))
	l.want("/web-blue 3")
	l.capacity(3)
}

func TestRefusals(t *testing.T) {
	code := func(err error, want int, says string) {
		t.Helper()
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Code != want || !strings.Contains(e.Error(), says) {
			t.Errorf("%v, want code %d and %q", err, want, says)
		}
	}
	l := newLab(t, marathontest.Options{})
	code(l.run(Options{Group: "/web", Mode: Resume}, "", 0), CodeArguments, "has no app")
	l = begun(t, marathontest.Options{}, 2)
	l.run(Options{Definition: definition(t, 2, 2)}, "after", 2)
	code(l.run(Options{Definition: definition(t, 3, 2)}, "", 0), CodeArguments, "begun with another definition")
	code(l.run(Options{Group: "/web", Mode: Resume, Confirm: func(string) bool { return false }}, "", 0), CodeDeclined, "declined")
	code(l.run(Options{Group: "/web", Mode: Resume, Hook: "/bin/false"}, "", 0), CodeDeclined, "hook /bin/false")
	l.must(l.c.DeployJSON([]byte(`{"id":"/third","cmd":"x","instances":0,"labels":{"HAPROXY_DEPLOYMENT_GROUP":"/web"}}`)))
	code(l.run(Options{Group: "/web", Mode: Resume}, "", 0), CodeArguments, "want two at most")
	l.c.Stop(0, marathontest.Refuse)
	code(l.run(Options{Group: "/web", Mode: Resume}, "", 0), CodeMarathon, "Marathon: ")
}

// An answer that is lost says nothing about the change; the run finds out.
func TestLostAnswers(t *testing.T) {
	for _, kind := range []marathontest.FaultKind{marathontest.DropRequest, marathontest.FailRequest} {
		for _, method := range []string{"POST", "PUT", "DELETE", "GET"} {
			l := begun(t, marathontest.Options{}, 3)
			f := l.c.Inject(marathontest.Fault{Kind: kind, Method: method, Path: "/v2/", Skip: map[string]int{"GET": 6, "POST": 1}[method], Times: 1})
			l.must(l.run(Options{Definition: definition(t, 2, 3)}, "", 0))
			if f.Count() != 1 {
				t.Errorf("%s: the fault struck %d times", method, f.Count())
			}
			l.want("/web-green 3")
			l.capacity(3)
		}
	}
}

func TestRehearsalChangesNothing(t *testing.T) {
	l := begun(t, marathontest.Options{}, 4)
	before := l.c.Dump()
	l.must(l.run(Options{Definition: definition(t, 2, 4), DryRun: true, Initial: 2}, "", 0))
	if diff := cmp.Diff(before, l.c.Dump()); diff != "" {
		t.Errorf("a rehearsal changed (-before +after):\n%s", diff)
	}
	told := l.events
	l.events = nil
	l.must(l.run(Options{Definition: definition(t, 2, 4), Initial: 2}, "", 0))
	if diff := cmp.Diff(told, l.events); diff != "" {
		t.Errorf("what was done is not what was told (-told +done):\n%s", diff)
	}
}
