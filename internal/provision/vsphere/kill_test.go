package vsphere_test

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bridged/internal/provision/vsim"
)

// killer ends a run at one of its API calls, as SIGKILL would: nothing of that
// run reaches the server after it.
type killer struct {
	vc   *vsim.Server
	full bool // every call counts, not only those that change something

	mu    sync.Mutex // guards what follows
	at    int        // the call at which to kill, from 1
	after bool       // when it is done but not answered
	seen  int
	index map[int]int // of a call by its Seq
	dead  bool
	kill  context.CancelFunc
	what  string
}

func (k *killer) hook(c vsim.Call, done bool) vsim.Verdict {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dead && !done {
		return vsim.Cut
	}
	if k.kill == nil || !k.full && !c.Mutating() {
		return vsim.Pass
	}
	if !done {
		k.seen++
		k.index[c.Seq] = k.seen
	}
	if k.dead || done != k.after || k.index[c.Seq] != k.at {
		return vsim.Pass
	}
	k.dead, k.what = true, fmt.Sprintf("%s (call %d, after=%v)", c.Method, k.at, k.after)
	k.kill()
	return vsim.Cut
}

// run runs do and kills it at a call; killed is "" when it ended before.
func (k *killer) run(ctx context.Context, at int, after bool, do func(context.Context) error) (killed string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	k.mu.Lock()
	k.at, k.after, k.seen, k.index, k.dead, k.kill, k.what = at, after, 0, map[int]int{}, false, cancel, ""
	k.mu.Unlock()
	k.vc.Hook(k.hook)
	err = do(ctx)
	k.vc.Hook(nil)
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.what, err
}

// What a run that was interrupted may leave different: how often a machine was
// made anew, and the documents that carry that number.
var generations = regexp.MustCompile(`\\"gen\\":\d+|guestinfo\.metadata=[^"]*`)

func outcome(vc *vsim.Server) string { return generations.ReplaceAllString(vc.Dump(), "") }

// TestKilledAtEveryCall kills apply (of a new cluster, of more nodes, of fewer,
// of changed ones, of replaced ones) and destroy at every call, before and after
// it is made. The next run converges to what an undisturbed run gives, and one
// more changes nothing. By default only at the calls that change something; with
// CLUSTERCTL_SWEEP=all at all of them.
func TestKilledAtEveryCall(t *testing.T) {
	small, more := blueprint(1, 1), blueprint(1, 3)
	resized := blueprint(1, 1, "sizes: {medium: {cpus: 4, memory: 8GiB}}")
	cases := []struct {
		name, from, to string // "": nothing
	}{
		{"create", "", blueprint(1, 2)},
		{"scale-out", small, more},
		{"scale-in", more, small},
		{"restart", small, resized},
		{"replace", small, strings.Replace(small, "roles: [mesos-slave]", "roles: [mesos-slave], attributes: {tier: web}", 1)},
		{"destroy", more, ""},
	}
	full := sweepAll()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			vc := vsim.Run(t, vsim.Options{Foreign: 1, NoSnapshot: c.name == "restart"})
			killSweep(t, vc, c.from, c.to, full)
		})
	}
}

func killSweep(t *testing.T, vc *vsim.Server, from, to string, full bool) {
	empty := vc.Dump()
	reach := func(ctx context.Context, blueprint string) error {
		if blueprint == "" {
			return newOperator(t, vc, small()).destroy(ctx)
		}
		return newOperator(t, vc, blueprint).apply(ctx)
	}
	must := func(ctx context.Context, blueprint, when string) {
		t.Helper()
		if err := reach(ctx, blueprint); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	k := &killer{vc: vc, full: full}
	want := ""
	kills := 0
	if raceDetector && !full {
		t.Skip("too slow under the race detector; the same code runs in the other tests. CLUSTERCTL_SWEEP=all runs it")
	}
	for at := 0; ; at++ {
		ended := true
		for _, after := range []bool{false, true} {
			if !full && after != (at%2 == 0) {
				continue
			}
			// A test's own time, so that one hang does not take the others' time.
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			must(ctx, from, "prepare")
			killed, err := k.run(ctx, at, after, func(ctx context.Context) error { return reach(ctx, to) })
			if killed != "" {
				kills++
				ended = false
				if err == nil && !strings.HasPrefix(killed, "Logout") && !strings.HasPrefix(killed, "Retrieve") { // those may come when all is done
					t.Errorf("killed at %s, and the run says it went well", killed)
				}
				vc.Advance(2 * time.Minute) // the dead run's lease is over
				must(ctx, to, "killed at "+killed+", run again")
			} else if err != nil {
				t.Fatalf("undisturbed run: %v", err)
			}
			got := outcome(vc)
			if want == "" {
				want = got
			}
			if got != want {
				t.Fatalf("killed at %s (-want +got):\n%s", killed, diff(want, got))
			}
			vc.ResetCalls()
			must(ctx, to, "third run")
			if m := vc.Mutations(); len(m) > 0 {
				t.Fatalf("killed at %s: a third run makes changing calls: %v", killed, m)
			}
			must(ctx, "", "clean up")
			if got := vc.Dump(); got != empty {
				t.Fatalf("killed at %s and destroyed (-want +got):\n%s", killed, diff(empty, got))
			}
			cancel()
		}
		if ended && at > 0 {
			break
		}
	}
	t.Logf("%d kills", kills)
}

// sweepAll asks for every case of the tests that go through many.
func sweepAll() bool { return os.Getenv("CLUSTERCTL_SWEEP") == "all" }

func small() string { return blueprint(1, 1) }

func diff(want, got string) string {
	return cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n"))
}
