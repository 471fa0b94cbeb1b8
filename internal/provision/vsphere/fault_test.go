package vsphere_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"bridged/internal/provision"
	"bridged/internal/provision/vsim"
	"bridged/internal/provision/vsphere"
)

// lifecycle makes a cluster, changes a node of it and removes it.
func lifecycle() []string {
	return []string{blueprint(3, 1), blueprint(3, 1, "sizes: {medium: {cpus: 4, memory: 8GiB}}"), ""}
}

// live runs the lifecycle; a step that fails is run again, which has to work.
// It returns the errors of the first tries.
func live(t *testing.T, ctx context.Context, vc *vsim.Server) []error {
	t.Helper()
	var failed []error
	last := ""
	for _, text := range lifecycle() {
		do := func() error {
			if text == "" {
				return newOperator(t, vc, last).destroy(ctx)
			}
			return newOperator(t, vc, text).apply(ctx)
		}
		if text != "" {
			last = text
		}
		if err := do(); err != nil {
			failed = append(failed, err)
			vc.Advance(2 * time.Minute) // whatever a failed sign-off left behind is over
			if err := do(); err != nil {
				t.Fatalf("second try: %v", err)
			}
		}
	}
	return failed
}

// TestEveryMethodFails lets each method that a cluster's life uses fail once in
// each way. Nothing hangs, what cannot be healed at once is reported, and the
// next run heals it. By default each method fails in two of the ways.
func TestEveryMethodFails(t *testing.T) {
	t.Parallel()
	vc := vsim.Run(t, vsim.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	vc.ResetCalls()
	if failed := live(t, ctx, vc); failed != nil {
		t.Fatal(failed)
	}
	methods := slices.Sorted(maps.Keys(vc.Calls()))
	t.Logf("methods used: %s", strings.Join(methods, " "))
	for i, method := range methods {
		if raceDetector && !sweepAll() && i%3 != 0 {
			continue
		}
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			fail(t, method, i)
		})
	}
}

func fail(t *testing.T, method string, turn int) {
	vc := vsim.Run(t, vsim.Options{})
	empty := vc.Dump()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	kinds := map[string]vsim.Fault{
		"fault":   {Err: &types.SystemError{Reason: "out of order"}},
		"session": {Lose: true},
		"reset":   {Cut: true},
		"status":  {Status: 503},
	}
	if strings.HasSuffix(method, "_Task") {
		kinds["task"] = vsim.Fault{Task: &types.SystemError{Reason: "failed half-way"}}
	}
	ways := slices.Sorted(maps.Keys(kinds))
	if !sweepAll() {
		ways = []string{"fault", ways[turn%len(ways)]}
	}
	for _, kind := range ways {
		f := kinds[kind]
		f.Method, f.Skip = method, 1
		if method == "Login" || method == "RetrieveServiceContent" || method == "Logout" {
			f.Skip = 0
		}
		vc.Inject(f)
		failed := live(t, ctx, vc)
		vc.Heal()
		for _, err := range failed {
			if text := err.Error(); !strings.Contains(text, "vCenter") && !strings.Contains(text, "503") {
				t.Errorf("%s %s: the message does not say where it went wrong: %v", method, kind, err)
			}
		}
		// Sessions that end and connections that break are nobody's business.
		if (kind == "session" || kind == "reset") && method != "Logout" && method != "RetrieveServiceContent" && method != "Login" && len(failed) > 0 {
			t.Errorf("%s %s: not healed within the run: %v", method, kind, failed)
		}
		if got := vc.Dump(); got != empty {
			t.Fatalf("%s %s: after destroy (-want +got):\n%s", method, kind, diff(empty, got))
		}
	}
}

func TestFailedNodeIsNamedAndTheOthersGoOn(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{})
	o := newOperator(t, vc, blueprint(1, 3))
	vc.Inject(vsim.Fault{Method: "CloneVM_Task", Name: "t-slave-1", Task: &types.NoDiskSpace{Datastore: "LocalDS_0"}})
	err := o.apply(ctx)
	var step *provision.StepError
	if !errors.As(err, &step) || step.Node != "t-slave-1" || !strings.Contains(step.Err.Error(), "datastore LocalDS_0 is full") || step.Remedy == "" {
		t.Errorf("error %v", err)
	}
	if !errors.Is(err, provision.ErrPartial) {
		t.Errorf("want ErrPartial, have %v", err)
	}
	want := []string{"debian12", "t-master-0", "t-slave-0", "t-slave-2"}
	if got := vc.VMs(); !slices.Equal(got, want) {
		t.Errorf("VMs %v, want %v", got, want)
	}
	o.mustApply(ctx)
}

func TestSickGuests(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sick vsim.Sickness
		want string
	}{
		"silent":  {vsim.Sickness{Silent: true}, "no report from the guest within 1s of power-on"},
		"stalled": {vsim.Sickness{StallAt: "packages"}, `stalled for more than 1s, last report "packages"`},
		"failed":  {vsim.Sickness{FailAt: "services", Err: "mesos-slave does not start"}, "mesos-slave does not start"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := bounded(t)
			vc := vsim.Run(t, vsim.Options{Sick: func(vm string) vsim.Sickness {
				if vm == "t-slave-0" {
					return c.sick
				}
				return vsim.Sickness{}
			}})
			o := newOperator(t, vc, blueprint(1, 1, "timeouts: {boot: 1s, bootstrap: 1s}"))
			err := o.apply(ctx)
			var step *provision.StepError
			if !errors.As(err, &step) || step.Node != "t-slave-0" || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestMessagesOfSigningIn(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{Password: "Tr0ub4dor"})
	before := vc.Dump()
	ca, err := vc.CAFile(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		modify func(*vsphere.Options)
		want   string // "": it works
	}{
		"wrong password":     {func(o *vsphere.Options) { o.Password = "no" }, "user name or password is wrong"},
		"wrong thumbprint":   {func(o *vsphere.Options) { o.Thumbprint = strings.Repeat("00:", 31) + "00" }, "it shows " + vc.Thumbprint()},
		"no thumbprint":      {func(o *vsphere.Options) { o.Thumbprint = "" }, "its certificate is not trusted (SHA-256 " + vc.Thumbprint() + ")"},
		"damaged thumbprint": {func(o *vsphere.Options) { o.Thumbprint = "12:34" }, "want 20 or 32 octets in hex"},
		"insecure":           {func(o *vsphere.Options) { o.Thumbprint, o.Insecure = "", true }, ""},
		"CA":                 {func(o *vsphere.Options) { o.Thumbprint, o.CAFile = "", ca }, ""},
		"thumbprint":         {func(o *vsphere.Options) {}, ""},
		"thumbprint beats insecure": {func(o *vsphere.Options) {
			o.Insecure, o.Thumbprint = true, strings.Repeat("00:", 31)+"00"
		}, "another certificate than the pinned one"},
		"no CA file":     {func(o *vsphere.Options) { o.CAFile = ca + ".missing" }, "tls.caFile"},
		"nobody there":   {func(o *vsphere.Options) { o.Server = "127.0.0.1:1" }, "no connection"},
		"not an address": {func(o *vsphere.Options) { o.Server = "::" }, "not a host name or URL"},
	} {
		o := newOperator(t, vc, small())
		o.modify = c.modify
		err := o.run(ctx, func(*provision.Inventory) (*provision.Plan, error) { return &provision.Plan{}, nil })
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v\nwant %s", name, err, c.want)
		case err != nil && strings.Contains(err.Error(), vc.Password):
			t.Errorf("%s: the message tells the password: %v", name, err)
		}
	}
	if after := vc.Dump(); after != before {
		t.Errorf("something changed (-want +got):\n%s", diff(before, after))
	}
}

func TestNoPermissionNamesPrivilegeAndObject(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{})
	before := vc.Dump()
	o := newOperator(t, vc, small())
	p, err := o.connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	inv, err := p.Inventory(ctx, provision.ScopeCluster)
	if err != nil {
		t.Fatal(err)
	}
	parent := types.ManagedObjectReference{Type: "Folder"}
	for _, e := range vc.Entities("Folder") {
		if strings.HasSuffix(e.Path, "/DC0/vm") {
			parent = e.Ref
		}
	}
	vc.Inject(vsim.Fault{Method: "CreateFolder", Err: &types.NoPermission{Object: &parent, PrivilegeId: "Folder.Create"}})
	_ = inv
	_, err = p.Acquire(ctx, provision.Holder{ID: "1", Who: "alice"})
	want := "privilege Folder.Create is missing on Folder /DC0/vm; give the user's role that privilege"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v\nwant %s", err, want)
	}
	if err := p.Close(ctx); err != nil {
		t.Error(err)
	}
	if after := vc.Dump(); after != before {
		t.Errorf("something changed (-want +got):\n%s", diff(before, after))
	}
}

func TestForeignVMOfANodesNameIsLeftAlone(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{})
	o := newOperator(t, vc, blueprint(1, 2))
	o.mustApply(ctx)
	// Somebody takes our marks off, or puts a VM of theirs in our folder.
	if err := vc.Change("t-slave-1", func(vm *simulator.VirtualMachine) {
		vm.Config.ExtraConfig = slices.DeleteFunc(slices.Clone(vm.Config.ExtraConfig), func(v types.BaseOptionValue) bool {
			return v.GetOptionValue().Key == provision.MarkCluster
		})
	}); err != nil {
		t.Fatal(err)
	}
	before := vc.Dump()
	err := o.apply(ctx)
	if err == nil || !strings.Contains(err.Error(), "t-slave-1") {
		t.Errorf("apply: %v", err)
	}
	if after := vc.Dump(); after != before {
		t.Errorf("something changed (-want +got):\n%s", diff(before, after))
	}
	if err := o.destroy(ctx); err != nil {
		t.Errorf("destroy: %v", err)
	}
	if got := vc.VMs(); !slices.Equal(got, []string{"debian12", "t-slave-1"}) {
		t.Errorf("VMs %v, want the foreign one untouched", got)
	}
}
