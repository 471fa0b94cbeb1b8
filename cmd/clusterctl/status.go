package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"bridged/internal/provision"
)

// nodeStatus is one node as `status` shows it; the JSON names are an interface.
type nodeStatus struct {
	Name       string            `json:"name"`
	Group      string            `json:"group"`
	Roles      []provision.Role  `json:"roles"`
	Exists     bool              `json:"exists"`
	Power      provision.Power   `json:"power,omitempty"`
	Phase      provision.Phase   `json:"phase,omitempty"`
	Step       string            `json:"step,omitempty"`
	Err        string            `json:"error,omitempty"`
	Generation int               `json:"generation,omitempty"`
	Address    string            `json:"address,omitempty"`
	Host       string            `json:"host,omitempty"`
	Services   map[string]string `json:"services,omitempty"`
	Extra      bool              `json:"extra,omitempty"` // ours, and not in the blueprint
}

type clusterStatus struct {
	Cluster string        `json:"cluster"`
	Server  string        `json:"server"`
	Ready   int           `json:"ready"`
	Nodes   []nodeStatus  `json:"nodes"`
	Lease   string        `json:"lease,omitempty"`
	Pending string        `json:"pending"` // what a plan would do, in a word
	Inside  *insideStatus `json:"inside,omitempty"`
}

func (a *app) statusCommand() *cobra.Command {
	var watch time.Duration
	var gate string
	cmd := &cobra.Command{
		Use:   "status -f FILE",
		Short: "Show the cluster's health, as vCenter and its own services see it",
		Example: `  clusterctl status -f dev.yaml
  clusterctl status -f dev.yaml --watch 5s
  clusterctl status -f dev.yaml -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			b, err := a.load(cmd)
			if err != nil {
				return err
			}
			ctx, _, done := a.interruptible(cmd, false)
			defer done()
			return a.with(ctx, cmd, b, func(p provision.Provider) error {
				for {
					have, err := p.Inventory(ctx, provision.ScopeCluster)
					if err != nil {
						return err
					}
					s := statusOf(b.want, have)
					if provision.GateMode(gate) != provision.GateGuestinfo {
						s.Inside = lookInside(ctx, b, have)
					}
					if err := a.writeStatus(cmd, s); err != nil || watch <= 0 {
						return err
					}
					select {
					case <-ctx.Done():
						return nil // that is how a watch ends
					case <-time.After(watch):
					}
				}
			})
		},
	}
	a.fileFlag(cmd)
	a.outputFlag(cmd)
	a.connectionFlags(cmd)
	cmd.Flags().DurationVar(&watch, "watch", 0, "show it again after this long, until interrupted")
	cmd.Flags().StringVar(&gate, "gate", "auto", "guestinfo: do not ask the services themselves")
	return cmd
}

func statusOf(want *provision.Want, have *provision.Inventory) *clusterStatus {
	s := &clusterStatus{Cluster: want.Cluster.Metadata.Name, Server: have.Server, Nodes: []nodeStatus{}}
	machines := map[string]*provision.Machine{}
	for i := range have.Machines {
		machines[have.Machines[i].Marks.Node] = &have.Machines[i]
	}
	wanted := map[string]bool{}
	for _, n := range want.Nodes {
		wanted[n.Name] = true
		line := nodeStatus{Name: n.Name, Group: n.Group, Roles: n.Roles}
		if a := n.Address(); a.IsValid() {
			line.Address = a.String()
		}
		line.observe(machines[n.Name])
		if line.Phase == provision.PhaseReady && line.Power == provision.PoweredOn {
			s.Ready++
		}
		s.Nodes = append(s.Nodes, line)
	}
	for i := range have.Machines {
		if m := &have.Machines[i]; !wanted[m.Marks.Node] {
			line := nodeStatus{Name: m.Name, Group: m.Marks.Group, Roles: m.Marks.Roles, Extra: true}
			line.observe(m)
			s.Nodes = append(s.Nodes, line)
		}
	}
	if have.Lease != nil {
		s.Lease = have.Lease.Who
	}
	if plan, err := provision.Diff(have, want, provision.DiffOptions{}); err != nil {
		s.Pending = "the blueprint can't be applied: see clusterctl plan"
	} else {
		s.Pending = plan.Summary()
	}
	return s
}

func (n *nodeStatus) observe(m *provision.Machine) {
	if m == nil {
		return
	}
	n.Exists, n.Power, n.Host, n.Generation = true, m.Power, m.Host, m.Marks.Generation
	n.Phase, n.Step, n.Err, n.Services = m.Report.Phase, m.Report.Step, m.Report.Err, m.Report.Services
	if n.Address == "" && len(m.Addresses) > 0 {
		n.Address = m.Addresses[0].String()
	}
}

func (a *app) writeStatus(cmd *cobra.Command, s *clusterStatus) error {
	out := cmd.OutOrStdout()
	if ok, err := a.structured(out, s); ok {
		return err
	}
	fmt.Fprintf(out, "cluster %s @ %s: %d of %d nodes ready; %s\n", s.Cluster, s.Server, s.Ready, len(s.Nodes), s.Pending)
	if s.Lease != "" {
		fmt.Fprintf(out, "lease held by %s\n", s.Lease)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tPOWER\tPHASE\tADDRESS\tHOST\tROLES\tNOTE")
	for i := range s.Nodes {
		n := &s.Nodes[i]
		power, phase, note := string(n.Power), string(n.Phase), strings.TrimSpace(n.Step+" "+n.Err)
		if !n.Exists {
			power, phase, note = "missing", "-", "clusterctl apply makes it"
		} else if n.Extra {
			note = "not in the blueprint"
		}
		if phase == "" {
			phase = "no report"
		}
		roles := make([]string, len(n.Roles))
		for j, r := range n.Roles {
			roles[j] = string(r)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", n.Name, power, phase, n.Address, n.Host, strings.Join(roles, ","), note)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return s.Inside.write(out)
}
