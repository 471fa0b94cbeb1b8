package inside

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"bridged/internal/provision"
)

// drainer moves the tasks of one slave away, or lets it take tasks again. What
// it does depends on what the version of Mesos knows: DRAIN_AGENT from 1.9 on,
// maintenance windows from 0.25 on, and before that only Marathon's kill.
type drainer struct {
	*asker
	node   *provision.Node
	detail string
}

// agent is what is needed of a slave in the leader's /slaves.
type agent struct {
	ID        string `json:"id"`
	Hostname  string `json:"hostname"`
	PID       string `json:"pid"`
	Active    bool   `json:"active"`
	DrainInfo *struct {
		State string `json:"state"` // DRAINING | DRAINED
	} `json:"drain_info"`
}

func (d *drainer) run(ctx context.Context, away bool) error {
	leader, err := d.leader(ctx)
	if err != nil {
		return err
	}
	slave, found, err := d.agent(ctx, leader)
	if err != nil {
		return err
	}
	if !found {
		d.detail = "Mesos does not know it"
		return nil
	}
	drain, mesos := d.settings(), d.opt.Want.Distro.Features
	if !away {
		return d.back(ctx, leader, slave)
	}
	ctx, cancel := context.WithTimeout(ctx, drain.Timeout+answerTimeout)
	defer cancel()
	switch {
	case mesos.DrainAgent:
		err = d.call(ctx, leader, map[string]any{"type": "DRAIN_AGENT", "drain_agent": map[string]any{
			"agent_id":         map[string]string{"value": slave.ID},
			"max_grace_period": map[string]int64{"nanoseconds": drain.Timeout.Nanoseconds()},
		}})
	case mesos.Maintenance:
		if err = d.schedule(ctx, leader, slave, true); err == nil {
			err = d.kill(ctx, slave)
		}
	default:
		err = d.kill(ctx, slave)
	}
	if err != nil {
		return err
	}
	return d.empty(ctx, leader, slave.ID)
}

func (d *drainer) settings() provision.Drain {
	if g := groupOf(d.opt.Want, d.node); g != nil {
		return g.Strategy.Drain
	}
	return provision.Drain{Timeout: 10 * time.Minute} // a group that the blueprint no longer has
}

// leader finds the leading master.
func (d *drainer) leader(ctx context.Context) (netip.Addr, error) {
	err := errNoRoute
	for _, n := range d.opt.Want.With(provision.RoleMaster) {
		state, e := d.mesosState(ctx, n.Address())
		if e != nil {
			if !unreachable(e) {
				err = fmt.Errorf("mesos-master on %s: %s", n.Name, cause(e))
			}
			continue
		}
		_, hostPort, _ := strings.Cut(state.Leader, "@")
		if at, e := netip.ParseAddrPort(hostPort); e == nil {
			return at.Addr(), nil
		}
		err = errors.New("no Mesos master leads")
	}
	return netip.Addr{}, err
}

func (d *drainer) agent(ctx context.Context, leader netip.Addr) (agent, bool, error) {
	var answer struct{ Slaves []agent }
	if err := d.get(ctx, leader, d.opt.Want.Cluster.Spec.Services.Mesos.Port, d.path("/slaves"), "", &answer); err != nil {
		return agent{}, false, err
	}
	address := "@" + d.address(d.node).String() + ":"
	at := slices.IndexFunc(answer.Slaves, func(s agent) bool {
		return s.Hostname == d.node.Name || strings.HasPrefix(s.Hostname, d.node.Name+".") || strings.Contains(s.PID, address)
	})
	if at < 0 {
		return agent{}, false, nil
	}
	return answer.Slaves[at], true, nil
}

// path is an endpoint's path: below /master before Mesos 0.25.
func (d *drainer) path(p string) string {
	if strings.HasPrefix(d.opt.Want.Distro.Features.StateEndpoint, "/master/") {
		return "/master" + p
	}
	return p
}

func (d *drainer) call(ctx context.Context, leader netip.Addr, body any) error {
	return d.do(ctx, http.MethodPost, leader, d.opt.Want.Cluster.Spec.Services.Mesos.Port, "/api/v1", "", body, nil)
}

// machine is a maintenance MachineID; Mesos compares both members.
func (d *drainer) machine(s agent) map[string]any {
	_, hostPort, _ := strings.Cut(s.PID, "@")
	ip, _, _ := strings.Cut(hostPort, ":")
	return map[string]any{"hostname": s.Hostname, "ip": ip}
}

// schedule adds the slave's window to the maintenance schedule, or takes it out.
// A post replaces the whole schedule, so others' windows are carried over.
func (d *drainer) schedule(ctx context.Context, leader netip.Addr, s agent, window bool) error {
	port := d.opt.Want.Cluster.Spec.Services.Mesos.Port
	var schedule struct {
		Windows []map[string]any `json:"windows"`
	}
	if err := d.get(ctx, leader, port, "/maintenance/schedule", "", &schedule); err != nil {
		return err
	}
	mine := d.machine(s)
	same := func(m any) bool {
		id, ok := m.(map[string]any)
		return ok && id["hostname"] == mine["hostname"] && id["ip"] == mine["ip"]
	}
	kept := []map[string]any{}
	for _, w := range schedule.Windows {
		machines, _ := w["machine_ids"].([]any)
		if machines = slices.DeleteFunc(machines, same); len(machines) > 0 {
			w["machine_ids"] = machines
			kept = append(kept, w)
		}
	}
	if window {
		kept = append(kept, map[string]any{
			"machine_ids":    []any{mine},
			"unavailability": map[string]any{"start": map[string]int64{"nanoseconds": time.Now().UnixNano()}},
		})
	}
	return d.do(ctx, http.MethodPost, leader, port, "/maintenance/schedule", "", map[string]any{"windows": kept}, nil)
}

// kill has Marathon start the slave's tasks elsewhere: killed without scaling,
// they are started again, and not on a slave that is in maintenance.
func (d *drainer) kill(ctx context.Context, s agent) error {
	var errs []error
	for _, n := range d.opt.Want.With(provision.RoleMarathon) {
		port, auth := d.opt.Want.Cluster.Spec.Services.Marathon.Port, d.marathonAuth()
		var answer struct {
			Tasks []struct {
				ID      string `json:"id"`
				SlaveID string `json:"slaveId"`
			} `json:"tasks"`
		}
		if err := d.get(ctx, n.Address(), port, "/v2/tasks", auth, &answer); err != nil {
			errs = append(errs, fmt.Errorf("marathon on %s: %s", n.Name, cause(err)))
			continue
		}
		var ids []string
		for _, t := range answer.Tasks {
			if t.SlaveID == s.ID {
				ids = append(ids, t.ID)
			}
		}
		if ids == nil {
			return nil
		}
		d.detail = fmt.Sprintf("%d tasks moved", len(ids))
		query := url.Values{"scale": {"false"}, "wipe": {"false"}}
		return d.do(ctx, http.MethodPost, n.Address(), port, "/v2/tasks/delete?"+query.Encode(), auth, map[string]any{"ids": ids}, nil)
	}
	return errors.Join(errs...)
}

// empty waits until the slave runs nothing.
func (d *drainer) empty(ctx context.Context, leader netip.Addr, id string) error {
	for {
		n, drained, err := d.left(ctx, leader, id)
		if err == nil && (n == 0 || drained) {
			d.detail = "no task left"
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d tasks remain: %w", n, ctx.Err())
		case <-time.After(pollInterval):
		}
	}
}

// left counts the slave's tasks.
func (d *drainer) left(ctx context.Context, leader netip.Addr, id string) (int, bool, error) {
	var state struct {
		Slaves     []agent `json:"slaves"`
		Frameworks []struct {
			Tasks []struct {
				SlaveID string `json:"slave_id"`
				State   string `json:"state"`
			} `json:"tasks"`
		} `json:"frameworks"`
	}
	path := or(d.opt.Want.Distro.Features.StateEndpoint, "/state")
	if err := d.get(ctx, leader, d.opt.Want.Cluster.Spec.Services.Mesos.Port, path, "", &state); err != nil {
		return 0, false, err
	}
	n := 0
	for _, f := range state.Frameworks {
		for _, t := range f.Tasks {
			if t.SlaveID == id {
				n++
			}
		}
	}
	at := slices.IndexFunc(state.Slaves, func(s agent) bool { return s.ID == id })
	return n, at >= 0 && state.Slaves[at].DrainInfo != nil && state.Slaves[at].DrainInfo.State == "DRAINED", nil
}

// back lets the slave take tasks again. A replaced one has another id and was
// never drained, which is as good.
func (d *drainer) back(ctx context.Context, leader netip.Addr, s agent) error {
	f := d.opt.Want.Distro.Features
	switch {
	case f.DrainAgent && s.DrainInfo != nil:
		return d.call(ctx, leader, map[string]any{"type": "REACTIVATE_AGENT", "reactivate_agent": map[string]any{"agent_id": map[string]string{"value": s.ID}}})
	case !f.DrainAgent && f.Maintenance:
		return d.schedule(ctx, leader, s, false)
	}
	return nil
}
