package provision

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// roll changes machines that have to go down for it: members of a quorum one
// at a time and behind gates, slaves in batches after their tasks have left,
// schedulers last (Mesos upgrades masters, then slaves, then schedulers).
func (p *planner) roll() {
	var quorum, rest []*verdict
	slaves := map[string][]*verdict{}
	for i := range p.verdicts {
		v := &p.verdicts[i]
		if v.action != ActionRestart && v.action != ActionReplace || v.lost() {
			continue
		}
		p.change(v.action, "vm", v.node.Name, v.node.describe(), v.why...)
		switch {
		case v.node.Quorum():
			quorum = append(quorum, v)
		case v.node.Has(RoleSlave):
			slaves[v.node.Group] = append(slaves[v.node.Group], v)
		default:
			rest = append(rest, v)
		}
	}
	p.order(quorum)
	for i, v := range quorum {
		p.one(v, i+1, len(quorum))
	}
	for i := range p.want.Cluster.Spec.Groups {
		g := &p.want.Cluster.Spec.Groups[i]
		p.order(slaves[g.Name])
		p.batches(g, slaves[g.Name])
	}
	p.order(rest)
	for i, v := range rest {
		p.one(v, i+1, len(rest))
	}
}

// order puts leaders last, so that leadership moves once.
func (p *planner) order(vs []*verdict) {
	last := func(v *verdict) int {
		if slices.Contains(p.opt.Last, v.node.Name) {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(vs, func(a, b *verdict) int { return cmp.Compare(last(a), last(b)) })
}

// verb names what happens to a node, for a stage.
func (v *verdict) verb() string {
	if v.action == ActionReplace {
		return "replace"
	}
	return "restart"
}

// one changes a single node between two gates.
func (p *planner) one(v *verdict, i, n int) {
	name := fmt.Sprintf("%s %s (%d of %d)", v.verb(), v.node.Name, i, n)
	p.gate("check the others before "+v.node.Name, v.node.Name, p.peers(v.node)...)
	if v.drain {
		p.stage("drain "+v.node.Name, step(StepDrain, v.node, v.machine, v.verb()))
	}
	p.stage(name, v.steps()...)
	if v.drain {
		p.stage("undrain "+v.node.Name, step(StepUndrain, v.node, v.machine, "it is back"))
	}
	p.gate("check "+v.node.Name, "", append(p.peers(v.node), v.node)...)
}

// peers are the other nodes that share a role other than slave with n.
func (p *planner) peers(n *Node) []*Node {
	var peers []*Node
	for i := range p.verdicts {
		o := p.verdicts[i].node
		shares := slices.ContainsFunc(o.Roles, func(r Role) bool { return r != RoleSlave && n.Has(r) })
		if o.Name != n.Name && shares {
			peers = append(peers, o)
		}
	}
	return peers
}

// batches changes slaves: a canary first, then as many at once as may be
// missing, never from two racks in one batch.
func (p *planner) batches(g *Group, vs []*verdict) {
	if len(vs) == 0 {
		return
	}
	size := g.Strategy.MaxUnavailable.Of(g.Count) + g.Strategy.MaxSurge
	// What an earlier run changed already counts, the canary included.
	for done := max(0, g.Count-len(vs)); len(vs) > 0; {
		n := size
		if left := g.Strategy.Canary - done; left > 0 {
			n = left
		}
		batch := []*verdict{vs[0]}
		var later []*verdict
		for _, v := range vs[1:] {
			if len(batch) < n && v.node.Rack == vs[0].node.Rack {
				batch = append(batch, v)
			} else {
				later = append(later, v)
			}
		}
		p.batch(g, batch, done)
		done += len(batch)
		vs = later
	}
}

func (p *planner) batch(g *Group, vs []*verdict, done int) {
	var drain, change, undrain []Step
	nodes := make([]*Node, len(vs))
	for i, v := range vs {
		nodes[i] = v.node
		if v.drain {
			drain = append(drain, step(StepDrain, v.node, v.machine, v.verb()))
			undrain = append(undrain, step(StepUndrain, v.node, v.machine, "it is back"))
		}
		change = append(change, v.steps()...)
	}
	title := title(nodes)
	if done < g.Strategy.Canary {
		title += " (canary)"
	}
	p.stage("drain "+title, drain...)
	p.stage(vs[0].verb()+" "+title, change...)
	p.stage("undrain "+title, undrain...)
	p.gate("check "+title, "", nodes...)
}

// surge adds the extra nodes of groups that are being replaced, and keeps those
// of an earlier run that was cut short; when nothing is left to replace they
// are extras like any other.
func (p *planner) surge() {
	for _, n := range p.want.Surge {
		replacing := slices.ContainsFunc(p.verdicts, func(v verdict) bool { return v.node.Group == n.Group && v.action == ActionReplace })
		if !replacing {
			continue
		}
		m := p.machines[n.Name]
		p.extras = slices.DeleteFunc(p.extras, func(e *Machine) bool { return e == m })
		v := judge(p.want, n, m, false)
		if v.action == ActionCreate {
			v.why = []string{"it stands in while others of its group are replaced"}
		}
		p.verdicts = append(p.verdicts, v)
		if m == nil {
			m = &Machine{Name: n.Name, Marks: Marks{Cluster: n.Cluster, Node: n.Name, Group: n.Group, Roles: n.Roles}, Power: PoweredOn}
		}
		p.leaving = append(p.leaving, m)
	}
}

// removeExtras removes machines of ours that are not wanted: early those that
// hold an address a new node needs, the others after everything else.
func (p *planner) removeExtras(early bool) {
	needed := map[string]bool{}
	for i := range p.verdicts {
		if v := &p.verdicts[i]; v.action == ActionCreate || v.action == ActionReplace {
			needed[v.node.Spec["address"]] = v.node.Spec["address"] != "dhcp"
		}
	}
	var drain, remove []Step
	take := func(m *Machine, why string) {
		if slices.Contains(m.Marks.Roles, RoleSlave) && m.Power == PoweredOn && m.Report.Phase != PhaseFailed {
			drain = append(drain, step(StepDrain, leaving(m), m, why))
		}
		remove = append(remove, step(StepDelete, leaving(m), m, why))
	}
	for _, m := range p.extras {
		if needed[m.Marks.Spec["address"]] != early {
			continue
		}
		const why = "the blueprint has no such node"
		p.change(ActionRemove, "vm", m.Name, "", why)
		take(m, why)
	}
	if !early {
		for _, m := range p.leaving {
			p.change(ActionRemove, "vm", m.Name, "", "the others of its group are replaced")
			take(m, "the others of its group are replaced")
		}
	}
	p.stage("drain what goes", drain...)
	p.stage("remove", remove...)
}

// leaving is a machine that is not wanted, as a node: enough to drain and delete it.
func leaving(m *Machine) *Node {
	return &Node{Name: m.Name, Cluster: m.Marks.Cluster, Group: m.Marks.Group, Index: m.Marks.Index, Roles: m.Marks.Roles, Generation: m.Marks.Generation, Spec: m.Marks.Spec}
}

// removeRules removes rules that the blueprint no longer has, before they can
// get in the way of what is created.
func (p *planner) removeRules() {
	var steps []Step
	for i := range p.have.Rules {
		r := &p.have.Rules[i]
		if slices.ContainsFunc(p.want.Rules, func(w Rule) bool { return w.Name == r.Name }) {
			continue
		}
		s := objectStep(StepRemoveRule, r.Name, "the blueprint has no such rule")
		s.Rule = r
		steps = append(steps, s)
		p.change(ActionRemove, "rule", r.Name, "", s.Reason)
	}
	p.stage("remove rules", steps...)
}

// putRules makes rules equal, once all their members exist. Replacing a member
// drops it from its rule, so a rule with such members is written again.
func (p *planner) putRules() {
	var steps []Step
	replaced := map[string]bool{}
	for i := range p.verdicts {
		if v := &p.verdicts[i]; v.action == ActionCreate || v.action == ActionReplace {
			replaced[v.node.Name] = true
		}
	}
	for i := range p.want.Rules {
		r := &p.want.Rules[i]
		at := slices.IndexFunc(p.have.Rules, func(h Rule) bool { return h.Name == r.Name })
		action, why := ActionCreate, "it does not exist"
		if at >= 0 {
			have := &p.have.Rules[at]
			again := slices.ContainsFunc(r.Nodes, func(n string) bool { return replaced[n] })
			if have.equal(r) && !again {
				continue
			}
			action, why = ActionChange, have.differs(r)
		}
		s := objectStep(StepPutRule, r.Name, why)
		s.Rule = r
		steps = append(steps, s)
		p.change(action, "rule", r.Name, r.describe(), why)
	}
	p.stage("rules", steps...)
}

func (r *Rule) equal(o *Rule) bool {
	return r.Kind == o.Kind && r.Mandatory == o.Mandatory && slices.Equal(r.Nodes, o.Nodes) && slices.Equal(r.Hosts, o.Hosts)
}

// differs says in which way r is not what is wanted.
func (r *Rule) differs(want *Rule) string {
	switch {
	case r.Kind != want.Kind:
		return fmt.Sprintf("it is a %s rule", r.Kind)
	case r.Mandatory != want.Mandatory:
		return fmt.Sprintf("mandatory %t → %t", r.Mandatory, want.Mandatory)
	case !slices.Equal(r.Hosts, want.Hosts):
		return "its hosts differ"
	case !slices.Equal(r.Nodes, want.Nodes):
		return fmt.Sprintf("its members differ (%d → %d)", len(r.Nodes), len(want.Nodes))
	}
	return "members of it are replaced"
}

func (r *Rule) describe() string {
	strength := "should"
	if r.Mandatory {
		strength = "must"
	}
	if r.Kind == RuleHosts {
		return fmt.Sprintf("%d nodes %s run on %s", len(r.Nodes), strength, strings.Join(r.Hosts, " "))
	}
	return fmt.Sprintf("%d nodes %s run on different hosts", len(r.Nodes), strength)
}

// images removes imported images that nothing is cloned from any more.
func (p *planner) images() {
	var steps []Step
	for i := range p.have.Images {
		m := &p.have.Images[i]
		if m.Name == p.want.Image {
			continue
		}
		steps = append(steps, step(StepDelete, nil, m, "the blueprint names another image"))
		p.change(ActionRemove, "image", m.Name, "", "the blueprint names another image")
	}
	p.stage("remove images", steps...)
}

// Destroy plans the removal of everything that the cluster owns and of nothing
// else. It needs no blueprint beyond the name.
func Destroy(have *Inventory, cluster string) *Plan {
	p := &planner{have: have, plan: &Plan{Cluster: cluster, Server: have.Server, Changes: []Change{}, Stages: []Stage{}, StaleLease: have.StaleLease}}
	var rules, machines, images, last []Step
	const why = "the cluster is destroyed"
	for i := range have.Rules {
		s := objectStep(StepRemoveRule, have.Rules[i].Name, why)
		s.Rule = &have.Rules[i]
		rules = append(rules, s)
		p.change(ActionRemove, "rule", s.Object, "", why)
	}
	for i := range have.Machines {
		m := &have.Machines[i]
		if m.InstanceUUID != InstanceUUID(cluster, m.Marks.Node) && m.Name != m.Marks.Node {
			p.note("vm %s carries the marks of %s without being it and is left alone", m.Name, m.Marks.Node)
			continue
		}
		machines = append(machines, step(StepDelete, leaving(m), m, why))
		p.change(ActionRemove, "vm", m.Name, "", why)
	}
	for i := range have.Images {
		images = append(images, step(StepDelete, nil, &have.Images[i], why))
		p.change(ActionRemove, "image", have.Images[i].Name, "", why)
	}
	stays := len(p.plan.Notes) > 0
	for _, f := range have.Foreign {
		if f.Blocks == "" {
			stays = true
			p.note("%s %s is not ours and is left alone", f.Kind, or(f.Path, f.Name))
		}
	}
	if have.Pool != "" {
		last = append(last, objectStep(StepRemovePool, have.Pool, why))
		p.change(ActionRemove, "pool", have.Pool, "", why)
	}
	if have.Folder != "" && !stays {
		last = append(last, objectStep(StepRemoveFolder, have.Folder, why))
		p.change(ActionRemove, "folder", have.Folder, "", why)
	} else if have.Folder != "" {
		p.note("folder %s is kept for what is not ours in it", have.Folder)
	}
	p.stage("remove rules", rules...)
	p.stage("remove machines", machines...)
	p.stage("remove images", images...)
	p.stage("remove folder and pool", last...)
	return p.plan
}
