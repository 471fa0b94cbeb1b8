package vsphere_test

import (
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"bridged/internal/provision/vsim"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The simulator starts one to watch idle sessions and never ends it.
		goleak.IgnoreAnyFunction("github.com/vmware/govmomi/simulator.SessionIdleWatch.func1"))
}

// calls counts a log's calls: all, and those that only look at what is in progress.
func calls(log []vsim.Call) (all, reads int) {
	for _, c := range log {
		if all++; c.Method == "RetrievePropertiesEx" {
			reads++
		}
	}
	return all, reads
}

// TestCallBudget holds what a run may cost: a node is one call, everything else
// is constant, but for polls, of which there is one at a time.
func TestCallBudget(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{})
	const n = 60
	o := newOperator(t, vc, blueprint(3, n-3))
	vc.ResetCalls()
	if err := o.apply(ctx); err != nil {
		t.Fatal(err)
	}
	all, reads := calls(vc.CallLog())
	if clones := vc.Calls()["CloneVM_Task"]; clones != n {
		t.Errorf("%d clones for %d nodes", clones, n)
	}
	if all-reads > n+30 {
		t.Errorf("%d calls besides reads for %d nodes, want at most %d: %v", all-reads, n, n+30, vc.Calls())
	}
	t.Logf("create %d nodes: %d calls, of them %d reads", n, all, reads)

	vc.ResetCalls()
	if err := o.apply(ctx); err != nil || !o.plan.Empty() {
		t.Fatalf("no-change apply: %v, %s", err, text(o.plan))
	}
	if all, _ = calls(vc.CallLog()); all > 15 {
		t.Errorf("no-change plan makes %d calls, want at most 15: %v", all, vc.Calls())
	}
	t.Logf("no-change plan of %d nodes: %d calls", n, all)
}

// The simulator is for tests. The provider, and with it the released binary,
// must not carry it: it is 15 MB and answers to anybody.
func TestDependencies(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Skipf("go list: %v", err)
	}
	for _, dep := range strings.Fields(string(out)) {
		for _, ban := range []struct{ prefix, why string }{
			{"github.com/vmware/govmomi/simulator", "the simulator is for tests and the demo only"},
			{"bridged/internal/provision/vsim", "the simulator is for tests and the demo only"},
			{"bridged/internal/discovery", "provisioning knows nothing of Marathon's events"},
			{"bridged/internal/haproxy", "provisioning knows nothing of HAProxy's runtime"},
			{"bridged/internal/bridge", "provisioning knows nothing of the bridge"},
			{"testing", "tests stay out of the binary"},
		} {
			if dep == ban.prefix || strings.HasPrefix(dep, ban.prefix+"/") {
				t.Errorf("depends on %s: %s", dep, ban.why)
			}
		}
	}
}
