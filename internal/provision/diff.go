package provision

import (
	"fmt"
	"slices"
	"strings"
)

// DiffOptions are what an operator asks for besides the blueprint.
type DiffOptions struct {
	Replace []string // nodes to replace whatever their state
	Last    []string // nodes to change after their equals: the current leaders
}

// Diff works out what turns have into want. It fails with Problems when that
// can't be done safely.
func Diff(have *Inventory, want *Want, opt DiffOptions) (*Plan, error) {
	p := &planner{have: have, want: want, opt: opt, plan: &Plan{
		Cluster: want.Cluster.Metadata.Name, Server: have.Server, Changes: []Change{}, Stages: []Stage{}, StaleLease: have.StaleLease,
	}}
	p.match()
	p.check()
	if err := p.problems.Err(); err != nil {
		return nil, err
	}
	p.surge()
	p.prepare()
	p.removeRules()
	p.removeExtras(true)
	p.restore()
	p.repair()
	p.roll()
	p.removeExtras(false)
	p.putRules()
	p.images()
	p.pending()
	return p.plan, nil
}

// planner is the state of one Diff.
type planner struct {
	have *Inventory
	want *Want
	opt  DiffOptions
	plan *Plan

	verdicts []verdict           // of the wanted nodes, in order
	machines map[string]*Machine // by the node they are
	extras   []*Machine          // ours, and not wanted
	leaving  []*Machine          // stand in during this plan and go at its end
	copies   []*Machine          // carry a node's marks without being it
	problems Problems
}

func (p *planner) problem(code, at, what, remedy string) {
	src := &p.want.Cluster.source
	p.problems = append(p.problems, Problem{Code: code, Path: at, Pos: src.position(at), What: what, Remedy: remedy, file: src.file})
}

// match finds the machine of every node. A machine cloned by hand has the marks
// of the one it came from: the one with the derived identity, else with the
// right name, is it, and the other is left alone.
func (p *planner) match() {
	cluster := p.want.Cluster.Metadata.Name
	p.machines = map[string]*Machine{}
	score := func(m *Machine) int {
		s := 0
		if m.InstanceUUID == InstanceUUID(cluster, m.Marks.Node) {
			s += 2
		}
		if m.Name == m.Marks.Node {
			s++
		}
		return s
	}
	for i := range p.have.Machines {
		m := &p.have.Machines[i]
		other, taken := p.machines[m.Marks.Node]
		switch {
		case score(m) == 0:
			p.copies = append(p.copies, m)
		case !taken:
			p.machines[m.Marks.Node] = m
		case score(m) > score(other):
			p.machines[m.Marks.Node] = m
			p.copies = append(p.copies, other)
		default:
			p.copies = append(p.copies, m)
		}
	}
	wanted := map[string]bool{}
	for _, n := range p.want.Nodes {
		wanted[n.Name] = true
		p.verdicts = append(p.verdicts, judge(p.want, n, p.machines[n.Name], slices.Contains(p.opt.Replace, n.Name)))
	}
	for _, name := range sortedKeys(p.machines) {
		if !wanted[name] {
			p.extras = append(p.extras, p.machines[name])
		}
	}
}

// check refuses what must not be done and notes what an operator should know.
func (p *planner) check() {
	for _, f := range p.have.Foreign {
		if f.Blocks != "" {
			p.problem("V04", "metadata.name", fmt.Sprintf("%s %s %s %s", f.Kind, f.Path, f.Why, f.Blocks), "it is not ours and is left alone: rename or remove it, or change the blueprint")
		} else {
			p.note("%s %s is not ours and is left alone", f.Kind, or(f.Path, f.Name))
		}
	}
	for _, m := range p.copies {
		p.note("vm %s carries the marks of %s without being it (a clone made by hand?) and is left alone", m.Name, m.Marks.Node)
	}
	for _, name := range p.opt.Replace {
		if !slices.ContainsFunc(p.want.Nodes, func(n *Node) bool { return n.Name == name }) {
			p.problem("E01", "spec.groups", fmt.Sprintf("there is no node %s to replace", name), didYouMean(name, p.nodeNames()))
		}
	}
	p.checkEnsemble()
	p.checkDistro()
	if len(p.problems) == 0 {
		p.checkAddresses()
	}
	for i := range p.verdicts {
		if m := p.verdicts[i].machine; m != nil && m.Busy != "" {
			p.note("%s is busy: %s", m.Name, m.Busy)
		}
	}
}

func (p *planner) note(format string, args ...any) {
	p.plan.Notes = append(p.plan.Notes, fmt.Sprintf(format, args...))
}

func (p *planner) nodeNames() []string {
	names := make([]string, len(p.want.Nodes))
	for i, n := range p.want.Nodes {
		names[i] = n.Name
	}
	return names
}

// checkEnsemble refuses another number or other addresses of ZooKeeper servers
// and Mesos masters: replaced one by one, old and new would each see another
// ensemble, and two majorities could write (Mesos, operational guide).
func (p *planner) checkEnsemble() {
	for _, e := range []struct{ key, what, role string }{{"zookeeper", "ZooKeeper servers", "zookeeper"}, {"masters", "Mesos masters", "mesos-master"}} {
		for _, name := range sortedKeys(p.machines) {
			m := p.machines[name]
			asked, want := m.Marks.Spec[e.key], ""
			if len(p.want.Nodes) > 0 {
				want = p.want.Nodes[0].Spec[e.key]
			}
			if asked == "" || asked == want || !slices.Contains(m.Marks.Roles, Role(e.role)) {
				continue
			}
			p.problem("E19", "spec.groups", fmt.Sprintf("the %s would change from %d (%s) to %d (%s)", e.what, len(strings.Fields(asked)), asked, len(strings.Fields(want)), want),
				"keep their count and addresses; another ensemble is another cluster: make it beside this one, move the apps, destroy this one")
			break
		}
	}
}

// checkDistro refuses jumps that the manifests do not allow.
func (p *planner) checkDistro() {
	to := p.want.Distro
	for _, name := range sortedKeys(p.machines) {
		from := p.machines[name].Marks.Spec["distro"]
		if from == "" || from == to.Name || slices.Contains(to.UpgradeFrom, from) {
			continue
		}
		var back []string
		if d, ok := p.want.manifests.Get(from); ok {
			back = d.UpgradeFrom
		}
		if slices.Contains(back, to.Name) || len(back) == 0 && len(to.UpgradeFrom) == 0 {
			continue
		}
		p.problem("E13", "spec.distro", fmt.Sprintf("there is no upgrade from %s to %s", from, to.Name),
			fmt.Sprintf("go through one that both know: %s comes from %s", to.Name, or(strings.Join(to.UpgradeFrom, ", "), "none")))
		return
	}
}

// checkAddresses refuses to give a node the address that another living node
// of ours keeps.
func (p *planner) checkAddresses() {
	holder := map[string]string{}
	for i := range p.verdicts {
		if m := p.verdicts[i].machine; m != nil {
			holder[m.Marks.Spec["address"]] = m.Marks.Node
		}
	}
	for i := range p.verdicts {
		v := &p.verdicts[i]
		address := v.node.Spec["address"]
		if v.action != ActionCreate && v.action != ActionReplace || address == "dhcp" {
			continue
		}
		if other, taken := holder[address]; taken && other != v.node.Name {
			p.problem("E07", "spec.network", fmt.Sprintf("%s would get %s, which %s has now", v.node.Name, address, other),
				"move to a range that does not overlap the one in use")
			return
		}
	}
}

// change adds a line to what the operator reads.
func (p *planner) change(action Action, kind, name, what string, why ...string) {
	p.plan.Changes = append(p.plan.Changes, Change{Action: action, Kind: kind, Name: name, What: what, Why: why})
}

// stage adds a stage unless it is empty.
func (p *planner) stage(name string, steps ...Step) {
	if len(steps) > 0 {
		p.plan.Stages = append(p.plan.Stages, Stage{Name: name, Steps: steps})
	}
}

func step(kind StepKind, n *Node, m *Machine, reason string) Step {
	s := Step{Kind: kind, Want: n, Have: m, Reason: reason}
	if n != nil {
		s.Node = n.Name
	} else if m != nil {
		s.Node = m.Name
	}
	s.ID = string(kind) + " " + s.Node
	return s
}

func objectStep(kind StepKind, object, reason string) Step {
	return Step{ID: string(kind) + " " + object, Kind: kind, Object: object, Reason: reason}
}

// prepare makes what nodes stand in and come from.
func (p *planner) prepare() {
	var steps []Step
	if p.have.Folder == "" && !p.idle() {
		steps = append(steps, objectStep(StepFolder, p.want.Folder, "it does not exist"))
		p.change(ActionCreate, "folder", p.want.Folder, "", "it does not exist")
	}
	if p.want.Pool != "" && p.have.Pool == "" {
		steps = append(steps, objectStep(StepPool, p.want.Pool, "it does not exist"))
		p.change(ActionCreate, "pool", p.want.Pool, "", "it does not exist")
	}
	p.stage("prepare", steps...)
	if p.want.Image == "" || slices.ContainsFunc(p.have.Images, func(m Machine) bool { return m.Name == p.want.Image }) {
		return
	}
	from := or(p.want.Cluster.Spec.Image.OVA, p.want.Cluster.Spec.Image.Library)
	p.change(ActionCreate, "image", p.want.Image, from, "it does not exist")
	p.stage("import "+p.want.Image, objectStep(StepImage, p.want.Image, "it does not exist"))
}

// idle reports a cluster without any node, which needs no folder either.
func (p *planner) idle() bool { return len(p.want.Nodes) == 0 }

// title names nodes for a stage.
func title(nodes []*Node) string {
	if len(nodes) > 1 {
		return fmt.Sprintf("%s and %d more", nodes[0].Name, len(nodes)-1)
	}
	return nodes[0].Name
}

// repair does what can be done to living machines without disturbing them.
func (p *planner) repair() {
	var steps []Step
	for i := range p.verdicts {
		v := &p.verdicts[i]
		if (v.action == ActionRepair || v.action == ActionChange) && !v.lost() {
			p.change(v.action, "vm", v.node.Name, "", v.why...)
			steps = append(steps, v.steps()...)
		}
	}
	p.stage("repair", steps...)
}

// gate adds a guest stage that waits until the cluster is whole again, or
// would still have its quorum without a node.
func (p *planner) gate(name, without string, nodes ...*Node) {
	g := &Gate{Without: without}
	object := without
	for _, n := range nodes {
		g.Nodes = append(g.Nodes, n.Name)
		for _, r := range n.Roles {
			if !slices.Contains(g.Services, r) {
				g.Services = append(g.Services, r)
			}
		}
		object = or(object, n.Name)
	}
	s := objectStep(StepGate, object, "nothing else is changed before this holds")
	s.Gate = g
	p.stage(name, s)
}

// pending waits for nodes that are on their way, so that a second run after a
// kill ends when the cluster works. It changes nothing.
func (p *planner) pending() {
	var steps []Step
	for i := range p.verdicts {
		if v := &p.verdicts[i]; v.action == "" && v.machine.Report.Phase != PhaseReady {
			steps = append(steps, step(StepWait, v.node, v.machine, "it is not ready yet"))
			p.note("%s is not ready yet (%s)", v.node.Name, or(string(v.machine.Report.Phase), "no report"))
		}
	}
	p.stage("wait", steps...)
}
