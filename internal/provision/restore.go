package provision

import "strings"

// restore brings back what is not there: nodes that are missing, off or failed,
// which comes before anything that takes a working node down.
//
// Members come back in an order that can't wait for itself. A node is ready when
// its ZooKeeper serves, which takes a majority; so the first stage has as many
// members as a majority lacks (those with data on their disks first), and the
// rest follow one at a time, each behind a gate. New members without data must
// never be a majority beside a working one that holds the data. Where no member
// has ever worked there is no data, and all go at once, slaves too.
func (p *planner) restore() {
	var steps []Step
	var keep, blank []*verdict // lost members, with and without data on their disks
	total, up, ready := 0, 0, 0
	for i := range p.verdicts {
		v := &p.verdicts[i]
		if v.node.Quorum() {
			total++
		}
		switch {
		case !v.lost():
			if v.node.Quorum() {
				up++
				if v.machine.Report.Phase == PhaseReady {
					ready++
				}
			}
			continue
		case !v.node.Quorum():
			steps = append(steps, v.steps()...)
		case v.action == ActionCreate || v.action == ActionReplace:
			blank = append(blank, v)
		default:
			keep = append(keep, v)
		}
		what := v.node.describe()
		if v.action == ActionRepair || v.action == ActionChange {
			what = "" // it stays what it is
		}
		p.change(v.action, "vm", v.node.Name, what, v.why...)
	}
	first := len(keep) + max(0, total/2+1-up-len(keep))
	if ready == 0 && len(keep) == 0 {
		first = len(blank)
	}
	lost := append(keep, blank...)
	first = min(first, len(lost))
	var nodes []*Node
	for _, v := range lost[:first] {
		steps = append(steps, v.steps()...)
		nodes = append(nodes, v.node)
	}
	p.stage(stageName(steps), steps...)
	if ready > 0 && len(nodes) > 0 {
		p.gate("check that "+title(nodes)+" joined", "", nodes...)
	}
	for _, v := range lost[first:] {
		steps := v.steps()
		p.stage(stageName(steps)+" "+v.node.Name, steps...)
		p.gate("check that "+v.node.Name+" joined", "", v.node)
	}
}

// lost reports a node that does not exist, or whose machine serves nothing, so
// that changing it takes nothing away.
func (v *verdict) lost() bool {
	if v.action == "" || v.action == ActionCreate {
		return v.action != ""
	}
	return v.machine.Report.Phase == PhaseFailed || v.machine.Power != PoweredOn
}

// stageName says whether something is made for the first time or brought back.
func stageName(steps []Step) string {
	for i := range steps {
		if k := steps[i].Kind; k != StepCreate && k != StepWait {
			return "bring back"
		}
	}
	return "create"
}

// steps are what has to be done to the machine for its verdict.
func (v *verdict) steps() []Step {
	reason := strings.Join(v.why, "; ")
	switch v.action {
	case ActionCreate:
		return []Step{step(StepCreate, v.node, nil, reason), step(StepWait, v.node, nil, "it was created")}
	case ActionReplace:
		return []Step{
			step(StepDelete, v.node, v.machine, reason),
			step(StepCreate, v.node, nil, reason),
			step(StepWait, v.node, nil, "it was created"),
		}
	case ActionRestart:
		return []Step{step(StepRestart, v.node, v.machine, reason), step(StepWait, v.node, v.machine, "it was restarted")}
	}
	var steps []Step
	if len(v.why) > 1 || !v.start {
		steps = append(steps, step(StepReconfigure, v.node, v.machine, reason))
	}
	if v.start {
		steps = append(steps, step(StepPower, v.node, v.machine, reason), step(StepWait, v.node, v.machine, "it was started"))
	}
	return steps
}
