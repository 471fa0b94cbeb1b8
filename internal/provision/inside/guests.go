package inside

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"bridged/internal/provision"
)

// pollInterval is how often a gate or a drain is looked at.
const pollInterval = time.Second

// Guests does the guest steps of a plan.
type Guests struct {
	Options
	// Inventory reads what nodes report through the hypervisor.
	Inventory func(context.Context) (*provision.Inventory, error)

	silent bool // nothing answered once: there is no route, and it is not tried again
}

var errNoRoute = errors.New("the nodes can't be reached from here")

// Apply implements provision.Guests. Steps run in their order; the ones of a
// stage are all drains, all undrains, or one gate.
func (g *Guests) Apply(ctx context.Context, stage *provision.Stage, run provision.Run) error {
	var errs []error
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range stage.Steps {
		s := &stage.Steps[i]
		all.Go(func() {
			run.Report(provision.Event{Step: s.ID, Node: s.Node, State: provision.StateRunning})
			detail, err := g.step(ctx, s, run)
			event := provision.Event{Step: s.ID, Node: s.Node, State: provision.StateDone, Detail: detail}
			if err != nil {
				event.State, event.Err = provision.StateFailed, err.Error()
				mu.Lock()
				errs = append(errs, &provision.StepError{Step: s.ID, Node: s.Node, Err: err, Remedy: remedy(s.Kind)})
				mu.Unlock()
			}
			run.Report(event)
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func remedy(k provision.StepKind) string {
	switch k {
	case provision.StepDrain:
		return "mend Mesos, give strategy.drain a longer timeout or force: true, or pass --gate guestinfo to change slaves without draining them"
	case provision.StepGate:
		return "look with `clusterctl status`, mend the node or `clusterctl replace` it, and run this again"
	}
	return ""
}

func (g *Guests) step(ctx context.Context, s *provision.Step, run provision.Run) (detail string, err error) {
	switch s.Kind {
	case provision.StepGate:
		return g.gate(ctx, s.Gate, run)
	case provision.StepDrain, provision.StepUndrain:
		if run.Gate == provision.GateGuestinfo {
			return "left to Mesos: only guestinfo is asked", nil
		}
		d := &drainer{asker: newAsker(g.Options), node: s.Want}
		err = d.run(ctx, s.Kind == provision.StepDrain)
		if errors.Is(err, errNoRoute) && run.Gate != provision.GateDirect {
			return "not done: " + err.Error(), nil
		}
		if err != nil && d.settings().Force && ctx.Err() == nil {
			return fmt.Sprintf("not done: %v; going on, as drain.force says", err), nil
		}
		return d.detail, err
	}
	return "", fmt.Errorf("a guest has no step %s", s.Kind)
}

// gate waits until the condition holds, or says after the timeout why it does not.
func (g *Guests) gate(ctx context.Context, gate *provision.Gate, run provision.Run) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, g.Want.Cluster.Spec.Timeouts.Gate)
	defer cancel()
	last := errors.New("not looked at yet")
	for {
		detail, err := g.holds(ctx, gate, run.Gate)
		if err == nil {
			return detail, nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%w: %w", last, ctx.Err())
		case <-run.Stop:
			return "", fmt.Errorf("%w: %w", last, provision.ErrStopped)
		case <-time.After(pollInterval):
		}
	}
}

// holds looks at a gate once.
func (g *Guests) holds(ctx context.Context, gate *provision.Gate, mode provision.GateMode) (string, error) {
	if mode != provision.GateDirect {
		have, err := g.Inventory(ctx)
		if err != nil {
			return "", err
		}
		if err := reported(g.Want, have, gate); err != nil {
			return "", err
		}
	}
	if mode == provision.GateGuestinfo || g.silent {
		return "by guestinfo", nil
	}
	view := Look(ctx, g.Options)
	if !view.Reachable {
		if mode == provision.GateDirect {
			return "", errNoRoute
		}
		g.silent = true
		return "by guestinfo, no route to the nodes", nil
	}
	return "by guestinfo and services", view.holds(g.Want, gate)
}

// reported checks what nodes report. Before a change (gate.Without) the rest of
// the quorum must be there; after one, every node of the gate.
func reported(w *provision.Want, have *provision.Inventory, gate *provision.Gate) error {
	ready := map[string]bool{}
	why := map[string]string{}
	for i := range have.Machines {
		m := &have.Machines[i]
		ready[m.Marks.Node] = m.Power == provision.PoweredOn && m.Report.Phase == provision.PhaseReady
		why[m.Marks.Node] = strings.TrimSpace(fmt.Sprintf("%s %s %s", m.Report.Phase, m.Report.Step, m.Report.Err))
	}
	if gate.Without == "" {
		for _, n := range gate.Nodes {
			if !ready[n] {
				return fmt.Errorf("%s is not ready (%s)", n, or(why[n], "no report"))
			}
		}
		return nil
	}
	return majority(w, gate, "is ready", func(n *provision.Node) bool { return ready[n.Name] })
}

// majority checks for ZooKeeper and Mesos that more than half of all members
// are well, not counting the one that is about to go.
func majority(w *provision.Want, gate *provision.Gate, what string, well func(*provision.Node) bool) error {
	for _, r := range []provision.Role{provision.RoleZooKeeper, provision.RoleMaster} {
		members := w.With(r)
		if !slices.ContainsFunc(members, func(n *provision.Node) bool { return n.Name == gate.Without }) || len(members) == 1 {
			continue // not a member; or the only one, which can't be replaced otherwise
		}
		n := 0
		for _, m := range members {
			if m.Name != gate.Without && well(m) {
				n++
			}
		}
		if need := len(members)/2 + 1; n < need {
			return fmt.Errorf("without %s only %d of %d %s nodes %s, and %d are needed", gate.Without, n, len(members), r, what, need)
		}
	}
	return nil
}

// holds judges a gate by the services' own word.
func (v *View) holds(w *provision.Want, gate *provision.Gate) error {
	if gate.Without != "" {
		return majority(w, gate, "serve", func(n *provision.Node) bool {
			s := v.nodeServices(n.Name)
			zk, master := s["zookeeper"], s["mesos-master"]
			return (zk == "" || zk == "leader" || zk == "follower" || zk == "standalone") && (master == "" || master == "leader" || master == "follower")
		})
	}
	for _, name := range gate.Nodes {
		services := v.nodeServices(name)
		for _, service := range slices.Sorted(maps.Keys(services)) {
			switch state := services[service]; state {
			case "ok", "leader", "follower", "standby", "standalone":
			default:
				return fmt.Errorf("%s on %s: %s", service, name, state)
			}
		}
	}
	for _, r := range gate.Services {
		switch r {
		case provision.RoleZooKeeper:
			if n := len(w.With(r)); n > 1 && (v.zkLeader == "" || v.synced < n-1 && len(gate.Nodes) >= n) {
				return fmt.Errorf("ZooKeeper: %s", v.ZooKeeper)
			}
		case provision.RoleMaster:
			if v.MesosLeader == "" {
				return errors.New("no Mesos master leads")
			}
		case provision.RoleMarathon:
			if v.Marathon == "" {
				return errors.New("no Marathon leads")
			}
		}
	}
	return nil
}

func (v *View) nodeServices(name string) map[string]string {
	for i := range v.Nodes {
		if v.Nodes[i].Name == name {
			return v.Nodes[i].Services
		}
	}
	return nil
}

// AddressOf finds addresses of nodes without a fixed one in an inventory.
func AddressOf(have *provision.Inventory) func(string) netip.Addr {
	return func(node string) netip.Addr {
		for i := range have.Machines {
			if m := &have.Machines[i]; m.Marks.Node == node && len(m.Addresses) > 0 {
				return m.Addresses[0]
			}
		}
		return netip.Addr{}
	}
}
