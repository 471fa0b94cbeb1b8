package provision

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"bridged/examples"
)

// TestPlanGoldens: each archive has a blueprint that is applied, then `edits`
// of it (old => new), then `hand`: what somebody does to the machines. The plan
// that follows is the golden text; applying it has to leave nothing to do.
func TestPlanGoldens(t *testing.T) {
	files, err := filepath.Glob("testdata/plan/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			parts := map[string]string{}
			for _, f := range archive.Files {
				parts[f.Name] = string(f.Data)
			}
			text := map[string]string{"dev\n": examples.Dev, "prod\n": strings.ReplaceAll(examples.Prod, "protect: true", "protect: false"), "photon\n": examples.Photon}[parts["example"]]
			if text == "" {
				t.Fatalf("example %q: want dev, prod or photon", parts["example"])
			}
			text = edited(t, text, parts["before"])
			m := newModel("")
			if parts["fresh"] == "" {
				m.converge(t, wantOf(t, text), DiffOptions{})
			}
			w := wantOf(t, edited(t, text, parts["edits"]))
			opt := DiffOptions{}
			m.hand(t, parts["hand"], &opt)
			have, _ := m.Inventory(t.Context(), ScopeCluster)
			plan, err := Diff(have, w, opt)
			var got strings.Builder
			if err != nil {
				got.WriteString(err.Error() + "\n")
			} else if err := plan.WriteText(&got); err != nil {
				t.Fatal(err)
			}
			if *update {
				for i := range archive.Files {
					if archive.Files[i].Name == "plan" {
						archive.Files[i].Data = []byte(got.String())
					}
				}
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if d := cmp.Diff(parts["plan"], got.String()); d != "" {
				t.Errorf("plan (-want +got):\n%s", d)
			}
			if plan != nil {
				m.converge(t, w, opt)
			}
		})
	}
}

func edited(t *testing.T, text, edits string) string {
	t.Helper()
	for edit := range strings.Lines(edits) {
		old, replacement, ok := strings.Cut(strings.TrimSuffix(edit, "\n"), " => ")
		unescape := strings.NewReplacer(`\n`, "\n")
		if old = unescape.Replace(old); !ok || !strings.Contains(text, old) {
			t.Fatalf("edit %q is not in the text", edit)
		}
		text = strings.Replace(text, old, unescape.Replace(replacement), 1)
	}
	return text
}

// hand does to machines what operators do behind our back.
func (m *model) hand(t *testing.T, script string, opt *DiffOptions) {
	t.Helper()
	for line := range strings.Lines(script) {
		words := strings.Fields(line)
		at := m.find(words[len(words)-1])
		if at < 0 {
			t.Fatalf("%s: no such machine", line)
		}
		x := &m.inv.Machines[at]
		switch words[0] {
		case "delete":
			m.inv.Machines = slices.Delete(m.inv.Machines, at, at+1)
		case "off":
			x.Power = PoweredOff
		case "rename":
			x.Name = "renamed"
		case "shrink":
			x.MemoryMiB /= 2
		case "hot":
			x.HotAddCPU, x.HotAddMemory = true, true
		case "network":
			x.NICs[0].Network = "elsewhere"
		case "fail":
			x.Report = Report{Phase: PhaseFailed, Step: "packages", Err: "no such package"}
		case "busy":
			x.Report = Report{Phase: PhaseConfig}
		case "clone":
			c := *x
			c.Name, c.InstanceUUID, c.Ref = "copy of "+x.Name, "other", "vm-copy"
			m.inv.Machines = append(m.inv.Machines, c)
		case "replace":
			opt.Replace = append(opt.Replace, x.Name)
		case "leader":
			opt.Last = append(opt.Last, x.Name)
		default:
			t.Fatalf("unknown line %q", line)
		}
	}
}

// TestDiffLaws: whatever is done to the machines of a cluster and whatever the
// blueprint becomes, one plan repairs it, and at every moment no two members of
// the quorum are taken down in one stage.
func TestDiffLaws(t *testing.T) {
	counts := []string{"count: 0", "count: 3", "count: 5", "count: 9"}
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 7))
		text := examples.Dev
		m := newModel("dev")
		m.converge(t, wantOf(t, text), DiffOptions{})
		if rng.IntN(2) == 0 {
			text = strings.Replace(text, "count: 5 ", counts[rng.IntN(len(counts))]+" ", 1)
		}
		if rng.IntN(3) == 0 {
			text = replaceLast(text, "size: medium", "size: large")
		}
		if rng.IntN(3) == 0 {
			text = strings.Replace(text, "size: small", "size: medium\n      disks: {data: [{name: zk, size: 2GiB, mount: /var/lib/zookeeper}]}", 1)
		}
		if rng.IntN(3) == 0 {
			text += "      strategy: {maxUnavailable: 40%, maxSurge: 2, canary: 0}\n      disks: {root: 20GiB}\n"
		}
		for range rng.IntN(5) {
			damage(rng, m)
		}
		w := wantOf(t, text)
		plan := m.plan(t, w, DiffOptions{})
		for _, s := range plan.Stages {
			down := 0
			for _, step := range s.Steps {
				if (step.Kind == StepDelete || step.Kind == StepRestart) && step.Want != nil && step.Want.Quorum() && step.Have.up() {
					down++
				}
			}
			if down > 1 {
				t.Fatalf("seed %d: stage %q takes %d members of the quorum down at once", seed, s.Name, down)
			}
		}
		// Some step fails once: the next plan finishes what is left.
		if n := len(plan.Stages); n > 0 {
			s := plan.Stages[rng.IntN(n)]
			if len(s.Steps) > 0 && !s.Guest() {
				m.fail[s.Steps[rng.IntN(len(s.Steps))].ID] = errors.New("host is on fire")
				if err := m.apply(t, w, plan); err == nil {
					t.Fatalf("seed %d: the failure was not reported", seed)
				}
			}
		}
		m.converge(t, w, DiffOptions{})
	}
}

// TestQuorumIsRevived: whichever members of an ensemble of five are missing,
// off or failed, and whatever else the blueprint changes on them, plans bring
// the cluster back without ever waiting for a majority that can't come, and
// without taking a working member down when the rest would not do.
func TestQuorumIsRevived(t *testing.T) {
	five := strings.Replace(examples.Dev, "count: 3  ", "count: 5  ", 1)
	states := []func(*model, int){
		func(*model, int) {},
		func(m *model, i int) { m.inv.Machines = slices.Delete(m.inv.Machines, i, i+1) },
		func(m *model, i int) { m.inv.Machines[i].Power = PoweredOff },
		func(m *model, i int) { m.inv.Machines[i].Report.Phase = PhaseFailed },
	}
	base, first := newModel("dev"), wantOf(t, five)
	base.converge(t, first, DiffOptions{})
	for _, w := range []*Want{
		first,
		wantOf(t, strings.Replace(five, "size: small", "size: large", 1)),
		wantOf(t, strings.Replace(five, "distro: mesos-1.11", "distro: mesos-1.5", 1)),
	} {
		for code := range 1024 { // four states of five members
			m := newModel("dev")
			m.inv = base.inv
			m.inv.Machines, m.inv.Rules = slices.Clone(base.inv.Machines), slices.Clone(base.inv.Rules)
			for i := range m.inv.Machines {
				m.inv.Machines[i].NICs = slices.Clone(m.inv.Machines[i].NICs)
			}
			for member, rest := 0, code; member < 5; member, rest = member+1, rest/4 {
				states[rest%4](m, m.find(fmt.Sprintf("dev-master-%d", member)))
			}
			m.converge(t, w, DiffOptions{})
		}
		if testing.Short() {
			break
		}
	}
}

func replaceLast(text, old, replacement string) string {
	at := strings.LastIndex(text, old)
	return text[:at] + replacement + text[at+len(old):]
}

func damage(rng *rand.Rand, m *model) {
	if len(m.inv.Machines) == 0 {
		return
	}
	at := rng.IntN(len(m.inv.Machines))
	x := &m.inv.Machines[at]
	switch rng.IntN(7) {
	case 0:
		m.inv.Machines = slices.Delete(m.inv.Machines, at, at+1)
	case 1:
		x.Power = PoweredOff
	case 2:
		x.CPUs++
	case 3:
		x.NICs[0].Network = "elsewhere"
	case 4:
		x.Report = Report{Phase: PhaseFailed, Step: "config"}
	case 5:
		m.inv.Rules = nil
	case 6:
		x.Marks.Hash = "of another blueprint"
	}
}

func TestScaleOutTouchesNoLivingNode(t *testing.T) {
	m := newModel("dev")
	m.converge(t, wantOf(t, examples.Dev), DiffOptions{})
	plan := m.converge(t, wantOf(t, strings.Replace(examples.Dev, "count: 5 ", "count: 20 ", 1)), DiffOptions{})
	for _, c := range plan.Changes {
		if c.Action != ActionCreate {
			t.Errorf("%s %s %s: %v", c.Action, c.Kind, c.Name, c.Why)
		}
	}
	if len(plan.Changes) != 15 {
		t.Errorf("%d changes, want 15 new slaves", len(plan.Changes))
	}
}

func TestDestroyRemovesAllAndOnlyOurs(t *testing.T) {
	m := newModel("prod")
	w := wantOf(t, strings.ReplaceAll(examples.Prod, "protect: true", "protect: false"))
	m.converge(t, w, DiffOptions{})
	have, _ := m.Inventory(t.Context(), ScopeCluster)
	m.dying = true
	if err := m.apply(t, w, Destroy(have, "prod")); err != nil {
		t.Fatal(err)
	}
	if left := m.inv; len(left.Machines)+len(left.Rules)+len(left.Images) > 0 || left.Folder != "" || left.Pool != "" {
		t.Errorf("left over: %+v", left)
	}
	have, _ = m.Inventory(t.Context(), ScopeCluster)
	if p := Destroy(have, "prod"); len(p.Stages) > 0 {
		t.Errorf("a second destroy plans %s", p.Summary())
	}
	m.dying = false

	m.converge(t, w, DiffOptions{})
	m.inv.Foreign = []Foreign{{Name: "pet", Kind: "vm", Path: "/DC0/vm/clusters/prod/pet"}}
	have, _ = m.Inventory(t.Context(), ScopeCluster)
	plan := Destroy(have, "prod")
	for _, s := range plan.Stages {
		for _, step := range s.Steps {
			if step.Kind == StepRemoveFolder {
				t.Error("a folder with a foreign VM would be removed")
			}
		}
	}
	if len(plan.Notes) != 2 || !strings.Contains(plan.Notes[0], "pet is not ours") {
		t.Errorf("notes: %q", plan.Notes)
	}
}

func TestPlanJSONHoldsNoGuestData(t *testing.T) {
	m := newModel("prod")
	w := wantOf(t, examples.Prod)
	plan := m.converge(t, w, DiffOptions{})
	text, err := json.Marshal(plan)
	if err != nil {
		t.Fatal(err)
	}
	have, _ := m.Inventory(t.Context(), ScopeCluster)
	marks, err := json.Marshal(have)
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{"plan": string(text), "marks": string(marks)} {
		for _, leak := range []string{"s3cret", "cloud-config"} {
			if strings.Contains(text, leak) {
				t.Errorf("the %s holds %q", what, leak)
			}
		}
	}
}

func TestIdentityIsStable(t *testing.T) {
	// Machines in the field are found by this value: it must never change.
	if got, want := InstanceUUID("dev", "dev-master-0"), "f3543f81-aff7-590e-83b5-1e9e69bb6062"; got != want {
		t.Errorf("instance UUID %s, want %s", got, want)
	}
	w := wantOf(t, examples.Dev)
	seen := map[string]string{}
	for _, n := range w.Nodes {
		mac := n.NICs[0].MAC
		if len(mac) != 17 || strings.Count(mac, ":") != 5 || mac[:8] != "00:50:56" || mac[9:11] > "3f" {
			t.Errorf("%s: MAC %s, want six octets in 00:50:56:00:00:00 to 00:50:56:3f:ff:ff", n.Name, mac)
		}
		for _, key := range []string{mac, n.InstanceUUID, n.Address().String()} {
			if other, taken := seen[key]; taken {
				t.Errorf("%s and %s share %s", other, n.Name, key)
			}
			seen[key] = n.Name
		}
	}
	if d := cmp.Diff("00:50:56:28:32:14", w.Nodes[0].NICs[0].MAC); d != "" {
		t.Errorf("MAC of 192.168.50.20 (-want +got):\n%s", d)
	}
}

func TestEveryMACIsUniqueWithDHCP(t *testing.T) {
	text := strings.Replace(examples.Photon, "count: 3\n      size: large", "count: 3000\n      size: large", 1)
	w := wantOf(t, text)
	seen := map[string]string{}
	for _, n := range w.Nodes {
		if other, taken := seen[n.NICs[0].MAC]; taken {
			t.Fatalf("%s and %s share %s", other, n.Name, n.NICs[0].MAC)
		}
		seen[n.NICs[0].MAC] = n.Name
	}
}

func TestExpandIsDeterministic(t *testing.T) {
	first := fmt.Sprintf("%+v", deref(wantOf(t, examples.Prod).Nodes))
	for range 5 {
		if again := fmt.Sprintf("%+v", deref(wantOf(t, examples.Prod).Nodes)); again != first {
			t.Fatal("two expansions of one blueprint differ")
		}
	}
}

func deref(nodes []*Node) []Node {
	out := make([]Node, len(nodes))
	for i, n := range nodes {
		out[i] = *n
	}
	return out
}
