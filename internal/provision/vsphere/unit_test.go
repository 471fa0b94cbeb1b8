package vsphere

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"bridged/internal/provision"
)

func TestAdviceIsAboutFaultsThatExist(t *testing.T) {
	known := types.TypeFunc()
	for name, a := range advices {
		if _, ok := known(name); !ok {
			t.Errorf("there is no fault %s", name)
		}
		for _, text := range []string{a.what, a.remedy} {
			if strings.HasSuffix(text, ".") || text != "" && strings.ToUpper(text[:1]) == text[:1] && !strings.HasPrefix(text, "CPU") && !strings.HasPrefix(text, "VMware") {
				t.Errorf("%s: %q is not the middle of a sentence", name, text)
			}
		}
	}
}

func TestTranslate(t *testing.T) {
	p := &Provider{made: map[string]ref{"t-slave-0": {Type: "VirtualMachine", Value: "vm-7"}}, place: &place{folder: ref{Type: "Folder", Value: "group-3"}, folderPath: "/DC0/vm/t"}}
	vm := ref{Type: "VirtualMachine", Value: "vm-7"}
	for name, c := range map[string]struct {
		fault types.BaseMethodFault
		want  string // of a StepError, without the step
	}{
		"permission":   {&types.NoPermission{Object: &vm, PrivilegeId: "VirtualMachine.Interact.PowerOn"}, "privilege VirtualMachine.Interact.PowerOn is missing on VirtualMachine t-slave-0 (NoPermission); give the user's role"},
		"space":        {&types.NoDiskSpace{Datastore: "fast"}, "datastore fast is full (NoDiskSpace); free space"},
		"resources":    {&types.InsufficientResourcesFault{}, "the hosts have not enough CPU or memory left (InsufficientResourcesFault); free capacity"},
		"name":         {&types.DuplicateName{Name: "t", Object: vm}, "the name t is taken by a VirtualMachine (DuplicateName); rename or move"},
		"power":        {&types.InvalidPowerState{ExistingState: "poweredOff", RequestedState: "poweredOn"}, "it is poweredOff, and has to be poweredOn (InvalidPowerState)"},
		"gone":         {&types.ManagedObjectNotFound{Obj: vm}, "it exists no more: somebody else removed it (ManagedObjectNotFound)"},
		"host":         {&types.HostNotConnected{}, "the host is not connected to vCenter (HostNotConnected); reconnect it"},
		"hot plug":     {&types.CpuHotPlugNotSupported{}, "CPUs cannot be added while it runs (CpuHotPlugNotSupported); switch CPU hot-add on"},
		"admission":    {&types.InsufficientFailoverResourcesFault{}, "vSphere HA admission control refuses it"},
		"rules":        {&types.RuleViolation{}, "a placement rule forbids it (RuleViolation); usable hosts are fewer"},
		"argument":     {&types.InvalidArgument{InvalidProperty: "spec.snapshot"}, "vCenter does not accept spec.snapshot (InvalidArgument)"},
		"system error": {&types.SystemError{Reason: "disk on fire"}, "vCenter failed: disk on fire (SystemError)"},
		"no advice":    {&types.PatchMetadataInvalid{}, "as vCenter says"},
	} {
		for kind, err := range map[string]error{
			"task": &taskError{fault: types.LocalizedMethodFault{Fault: c.fault, LocalizedMessage: "as vCenter says"}},
			"vim":  soap.WrapVimFault(c.fault),
		} {
			if kind == "vim" && name == "no advice" {
				continue
			}
			got := p.stepError(&provision.Step{ID: "create x"}, fmt.Errorf("power on: %w", err)).Error()
			if !strings.Contains(got, c.want) {
				t.Errorf("%s, %s: %s\nwant %s", name, kind, got, c.want)
			}
			if !errors.Is(fmt.Errorf("x: %w", p.stepError(&provision.Step{}, err)), err) {
				t.Errorf("%s: the cause is lost", name)
			}
		}
	}
}

func TestLeaseName(t *testing.T) {
	until := time.Unix(1_800_000_000, 0).UTC()
	for who, want := range map[string]string{
		"alice@lab pid 7":              "alice@lab pid 7",
		"a/b%c\\d\n":                   "a-b-c-d-",
		strings.Repeat("ö", 80):        strings.Repeat("ö", 19),
		"":                             "somebody",
		"x " + strings.Repeat("y", 90): "x " + strings.Repeat("y", 35),
	} {
		name := leaseName(provision.Holder{ID: "0123456789ab", Who: who, Expires: until})
		if len(name) > maxName {
			t.Errorf("%q has %d bytes, want at most %d", name, len(name), maxName)
		}
		l, ok := parseLease(name, ref{})
		if !ok || l.holder.ID != "0123456789ab" || !l.holder.Expires.Equal(until) || !strings.HasPrefix(l.holder.Who, strings.TrimRight(want, " ")) {
			t.Errorf("%q: %+v, %v; want %q", name, l.holder, ok, want)
		}
	}
	for _, name := range []string{"slaves", leasePrefix, leasePrefix + "soon 01 alice", leasePrefix + "17"} {
		if _, ok := parseLease(name, ref{}); ok {
			t.Errorf("%q is taken for a lease", name)
		}
	}
}

func FuzzParseReport(f *testing.F) {
	f.Add(`{"gen":3,"phase":"ready","svc":{"a":"ok"}}`)
	f.Add(`{"gen":"x"}`)
	f.Fuzz(func(t *testing.T, text string) {
		if r := parseReport(text); len(text) > 4<<10 && !reflect.DeepEqual(r, provision.Report{}) {
			t.Errorf("an oversized report was read: %+v", r)
		}
	})
}

func TestSlots(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	s := newSlots(provision.Limits{Parallel: 3, PerHost: 1, PerDatastore: 2})
	take := func(host, datastore string) (func(), bool) {
		short, cancel := context.WithCancel(ctx)
		cancel() // take what is free now, wait for nothing
		free, err := s.take(short, host, datastore)
		if err != nil {
			return nil, false
		}
		return free, true
	}
	must := func(host, datastore string) func() {
		t.Helper()
		free, err := s.take(ctx, host, datastore)
		if err != nil {
			t.Fatalf("no slot on %s, %s: %v", host, datastore, err)
		}
		return free
	}
	a := must("h1", "d1")
	if _, ok := take("h1", "d2"); ok {
		t.Error("two on one host")
	}
	b := must("h2", "d1")
	if _, ok := take("h3", "d1"); ok {
		t.Error("three on one datastore")
	}
	c := must("h3", "d2")
	if _, ok := take("h4", "d3"); ok {
		t.Error("four at once")
	}
	got := make(chan func())
	go func() {
		free, err := s.take(ctx, "h1", "d1")
		if err != nil {
			t.Error(err)
		}
		got <- free
	}()
	a()
	d := <-got
	for _, free := range []func(){b, c, d} {
		free()
	}
	for key, n := range s.used {
		if n != 0 {
			t.Errorf("%d slots of %q are lost", n, key)
		}
	}
}

func TestWhatIsRepeated(t *testing.T) {
	reset := &url.Error{Op: "Post", URL: "/sdk", Err: errors.New("connection reset by peer")}
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"reset":    {reset, true},
		"wrapped":  {fmt.Errorf("x: %w", reset), true},
		"503":      {&url.Error{Err: errors.New("503 Service Unavailable")}, true},
		"404":      {&url.Error{Err: errors.New("404 Not Found")}, false},
		"a fault":  {soap.WrapVimFault(&types.SystemError{}), false},
		"anything": {errors.New("no"), false},
	} {
		if got := broken(c.err); got != c.want {
			t.Errorf("broken(%s) = %v, want %v", name, got, c.want)
		}
	}
	for _, c := range []struct {
		req  soap.HasFault
		want bool
	}{
		{&methods.CloneVM_TaskBody{}, true},
		{&methods.ReconfigVM_TaskBody{Req: &types.ReconfigVM_Task{}}, false},
		{&methods.ReconfigVM_TaskBody{Req: &types.ReconfigVM_Task{Spec: types.VirtualMachineConfigSpec{ChangeVersion: "1"}}}, true},
		{&methods.CreateSnapshot_TaskBody{}, false},
		{&methods.ImportVAppBody{}, false},
	} {
		if got := repeatable(c.req); got != c.want {
			t.Errorf("repeatable(%T) = %v, want %v", c.req, got, c.want)
		}
	}
}

func TestFindNames(t *testing.T) {
	n := &names{kinds: map[string][]*entity{"Folder": {
		{name: "a", path: "/DC0/vm/a"}, {name: "a", path: "/DC0/vm/b/a"}, {name: "b", path: "/DC0/vm/b"}, {name: "c/d", path: "/DC0/vm/c/d"},
		{name: "z", path: "/DC1/vm/z"},
	}}}
	for name, want := range map[string][]string{
		"a": {"/DC0/vm/a"}, "b/a": {"/DC0/vm/b/a"}, "/DC0/vm/b/a": {"/DC0/vm/b/a"}, "b": {"/DC0/vm/b"}, "c/d": {"/DC0/vm/c/d"},
		"z": nil, "nothing": nil,
	} {
		var got []string
		for _, e := range n.find(name, "/DC0/vm", "Folder") {
			got = append(got, e.path)
		}
		if !slices.Equal(got, want) {
			t.Errorf("find(%q) = %v, want %v", name, got, want)
		}
	}
	if got := unescape("a%2fb%5cc%25d"); got != `a/b\c%d` {
		t.Errorf("unescape: %s", got)
	}
}
