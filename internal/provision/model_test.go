package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// model is a hypervisor in memory that does what the steps of a plan say, and
// nothing else: the law is that what Diff plans is what makes its next Diff empty.
type model struct {
	mu    sync.Mutex
	inv   Inventory        // guarded by mu, as all below
	fail  map[string]error // by step ID, taken away once it happened
	log   []string
	dying bool           // the cluster is destroyed: its quorum may go
	guest func(*Machine) // what a guest does when it is powered on
}

func newModel(cluster string) *model {
	return &model{
		inv: Inventory{Cluster: cluster, Server: "model"}, fail: map[string]error{},
		guest: func(m *Machine) { m.Report = Report{Generation: m.Marks.Generation, Phase: PhaseServices} },
	}
}

// settle lets guests become ready: slaves at once, members of the quorum when a
// majority of it is up, as real ones do.
func (m *model) settle() {
	up, total := 0, 0
	for i := range m.inv.Machines {
		if x := &m.inv.Machines[i]; x.member() {
			total = max(total, len(strings.Fields(x.Marks.Spec["zookeeper"])))
			if x.up() {
				up++
			}
		}
	}
	for i := range m.inv.Machines {
		if x := &m.inv.Machines[i]; x.up() && (!x.member() || up > total/2) {
			x.Report.Phase = PhaseReady
		}
	}
}

func (x *Machine) member() bool { return slices.Contains(x.Marks.Roles, RoleZooKeeper) }

func (x *Machine) up() bool { return x.Power == PoweredOn && x.Report.Phase != PhaseFailed }

// modelGuests holds the gates of a plan against the model, and fails where real
// ones would wait for ever.
type modelGuests struct {
	*model
	want *Want
}

func (g modelGuests) Apply(_ context.Context, stage *Stage, run Run) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.settle()
	ready := map[string]bool{}
	for i := range g.inv.Machines {
		ready[g.inv.Machines[i].Name] = g.inv.Machines[i].up() && g.inv.Machines[i].Report.Phase == PhaseReady
	}
	for _, s := range stage.Steps {
		if s.Kind != StepGate {
			continue
		}
		if s.Gate.Without != "" {
			members, well := 0, 0
			for _, n := range g.want.With(RoleZooKeeper) {
				members++
				if ready[n.Name] && n.Name != s.Gate.Without {
					well++
				}
			}
			if members > 1 && well < members/2+1 {
				return fmt.Errorf("%s: only %d of %d serve", s.ID, well, members)
			}
			continue
		}
		for _, n := range s.Gate.Nodes {
			if !ready[n] {
				return fmt.Errorf("%s: %s is not ready", s.ID, n)
			}
		}
	}
	return nil
}

func (m *model) Inventory(context.Context, Scope) (*Inventory, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	inv := m.inv
	inv.Machines = slices.Clone(m.inv.Machines)
	inv.Rules = slices.Clone(m.inv.Rules)
	inv.Images = slices.Clone(m.inv.Images)
	slices.SortFunc(inv.Machines, func(a, b Machine) int { return strings.Compare(a.Name, b.Name) })
	return &inv, nil
}

func (m *model) Apply(_ context.Context, stage *Stage, run Run) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	broken := map[string]bool{}
	// Nodes of a stage run at once, so all are made before any is waited for.
	steps := slices.Clone(stage.Steps)
	slices.SortStableFunc(steps, func(a, b Step) int {
		order := map[StepKind]int{StepWait: 1}
		return order[a.Kind] - order[b.Kind]
	})
	for i := range steps {
		s := &steps[i]
		if broken[s.Node] && s.Node != "" {
			run.Report(Event{Step: s.ID, Node: s.Node, State: StateSkipped})
			continue
		}
		err := m.fail[s.ID]
		delete(m.fail, s.ID)
		if err == nil {
			err = m.do(s)
		}
		if err != nil {
			broken[s.Node] = true
			errs = append(errs, &StepError{Step: s.ID, Node: s.Node, Err: err})
			run.Report(Event{Step: s.ID, Node: s.Node, State: StateFailed, Err: err.Error()})
			continue
		}
		m.log = append(m.log, s.ID)
		run.Report(Event{Step: s.ID, Node: s.Node, State: StateDone})
	}
	return errors.Join(errs...)
}

func (m *model) find(name string) int {
	return slices.IndexFunc(m.inv.Machines, func(x Machine) bool { return x.Name == name })
}

// quorumWithout says whether the quorum, if there is one, bears the loss of x.
func (m *model) quorumWithout(x *Machine) error {
	others, total := 0, 0
	for i := range m.inv.Machines {
		if o := &m.inv.Machines[i]; o.member() {
			total = max(total, len(strings.Fields(o.Marks.Spec["zookeeper"])))
			if o.Name != x.Name && o.up() && o.Report.Phase == PhaseReady {
				others++
			}
		}
	}
	if total > 1 && others < total/2+1 {
		return fmt.Errorf("the quorum is lost: without %s only %d of %d members work", x.Name, others, total)
	}
	return nil
}

func (m *model) do(s *Step) error {
	if (s.Kind == StepDelete || s.Kind == StepRestart) && !m.dying {
		if at := m.find(s.Have.Name); at >= 0 && m.inv.Machines[at].member() && m.inv.Machines[at].Report.Phase == PhaseReady && m.inv.Machines[at].up() {
			if err := m.quorumWithout(&m.inv.Machines[at]); err != nil {
				return err
			}
		}
	}
	switch s.Kind {
	case StepFolder:
		m.inv.Folder = s.Object
	case StepPool:
		m.inv.Pool = s.Object
	case StepImage:
		m.inv.Images = append(m.inv.Images, Machine{Name: s.Object})
	case StepCreate:
		return m.create(s.Want)
	case StepPower, StepReconfigure, StepRestart:
		at := slices.IndexFunc(m.inv.Machines, func(x Machine) bool { return x.Ref == s.Have.Ref })
		if at < 0 {
			return fmt.Errorf("%s is gone", s.Have.Name)
		}
		x := &m.inv.Machines[at]
		if s.Kind != StepPower {
			hardware(x, s.Want)
		}
		if s.Kind != StepReconfigure {
			x.Power = PoweredOn
			m.guest(x)
		}
	case StepWait:
		m.settle()
		if at := m.find(s.Node); at < 0 || m.inv.Machines[at].Report.Phase != PhaseReady {
			return fmt.Errorf("%s is not ready", s.Node)
		}
	case StepDelete:
		m.inv.Machines = slices.DeleteFunc(m.inv.Machines, func(x Machine) bool { return x.Name == s.Have.Name })
		m.inv.Images = slices.DeleteFunc(m.inv.Images, func(x Machine) bool { return x.Name == s.Have.Name })
		for i := range m.inv.Rules {
			r := &m.inv.Rules[i]
			r.Nodes = slices.DeleteFunc(slices.Clone(r.Nodes), func(n string) bool { return n == s.Have.Name })
		}
	case StepPutRule:
		m.inv.Rules = slices.DeleteFunc(m.inv.Rules, func(r Rule) bool { return r.Name == s.Rule.Name })
		m.inv.Rules = append(m.inv.Rules, *s.Rule)
	case StepRemoveRule:
		m.inv.Rules = slices.DeleteFunc(m.inv.Rules, func(r Rule) bool { return r.Name == s.Object })
	case StepRemovePool:
		m.inv.Pool = ""
	case StepRemoveFolder:
		m.inv.Folder = ""
	default:
		return fmt.Errorf("a provider has no step %s", s.Kind)
	}
	return nil
}

func (m *model) create(n *Node) error {
	if m.find(n.Name) >= 0 {
		return fmt.Errorf("%s exists", n.Name)
	}
	if n.UserData == nil || n.MetaData == nil {
		return fmt.Errorf("%s has no guest data", n.Name)
	}
	for _, x := range m.inv.Machines {
		if len(x.NICs) > 0 && x.NICs[0].MAC == n.NICs[0].MAC {
			return fmt.Errorf("the MAC of %s is in use by %s", n.Name, x.Name)
		}
	}
	x := Machine{
		Name: n.Name, Ref: fmt.Sprintf("vm-%d", len(m.log)), InstanceUUID: n.InstanceUUID, Power: PoweredOn, ImageDisks: 1,
		Disks: []MachineDisk{{SizeMiB: 10 << 10}}, NICs: []MachineNIC{{}},
	}
	for range n.Disks {
		x.Disks = append(x.Disks, MachineDisk{})
	}
	hardware(&x, n)
	m.guest(&x)
	m.inv.Machines = append(m.inv.Machines, x)
	return nil
}

// hardware makes a machine equal to a node.
func hardware(x *Machine, n *Node) {
	x.Name = n.Name
	x.CPUs, x.MemoryMiB = n.CPUs, n.MemoryMiB
	if n.CoresPerSocket > 0 {
		x.CoresPerSocket = n.CoresPerSocket
	}
	x.ReservedMHz, x.ReservedMiB = n.ReservedMHz, n.ReservedMiB
	x.NICs[0] = MachineNIC{Network: n.NICs[0].Network, MAC: n.NICs[0].MAC}
	for i, d := range n.Disks {
		x.Disks[len(x.Disks)-len(n.Disks)+i].SizeMiB = d.SizeMiB
	}
	marks, _, err := DecodeMarks(n.Cluster, n.Marks())
	if err != nil {
		panic(err)
	}
	x.Marks = marks
}

func (m *model) Acquire(context.Context, Holder) (Lease, error) { return modelLease{}, nil }
func (m *model) Close(context.Context) error                    { return nil }

type modelLease struct{}

func (modelLease) Check(context.Context) error   { return nil }
func (modelLease) Release(context.Context) error { return nil }

// asked is a GuestRenderer that shows what it was given.
func asked(want *Want, n *Node, secret SecretFunc) (Guest, error) {
	stats, err := secret("haproxyStats")
	if err != nil && !errors.Is(err, ErrNoSecret) {
		return Guest{}, err
	}
	var control []string
	for _, role := range []Role{RoleZooKeeper, RoleMaster, RoleMarathon} {
		for _, c := range want.With(role) {
			control = append(control, c.Address().String())
		}
	}
	return Guest{
		UserData: fmt.Appendf(nil, "#cloud-config\n# %s %v %s %s %s\n", n.Name, n.Roles, strings.Join(control, " "), want.Distro.Name, stats),
		MetaData: fmt.Appendf(nil, "instance-id: %s\n", n.InstanceID()),
	}, nil
}

// wantOf loads and expands a blueprint that has to be good.
func wantOf(t testing.TB, text string) *Want {
	t.Helper()
	manifests := builtin(t)
	c, problems := Load("b.yaml", []byte(text), manifests)
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	w, err := Expand(c, manifests, asked)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// apply runs one plan against the model.
func (m *model) apply(t testing.TB, w *Want, plan *Plan) error {
	t.Helper()
	r := &Runner{Provider: m, Guests: modelGuests{m, w}, Render: asked, Secrets: func(name string) (string, error) { return "s3cret-" + name, nil }, Now: func() time.Time { return time.Unix(0, 0) }}
	return r.Run(t.Context(), w, plan, nil, Run{Report: func(Event) {}})
}

// converge plans and applies once, and expects nothing to be left.
func (m *model) converge(t testing.TB, w *Want, opt DiffOptions) *Plan {
	t.Helper()
	plan := m.plan(t, w, opt)
	if err := m.apply(t, w, plan); err != nil {
		t.Fatalf("apply: %v", err)
	}
	if left := m.plan(t, w, DiffOptions{}); len(left.Stages) > 0 {
		var b strings.Builder
		_ = left.WriteText(&b)
		t.Fatalf("a second plan is not empty:\n%s", b.String())
	}
	return plan
}

func (m *model) plan(t testing.TB, w *Want, opt DiffOptions) *Plan {
	t.Helper()
	have, _ := m.Inventory(t.Context(), ScopeCluster)
	plan, err := Diff(have, w, opt)
	if err != nil {
		t.Fatalf("diff: %v", err)
	}
	return plan
}
