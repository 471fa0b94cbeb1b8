package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"bridged/internal/provision"
	"bridged/internal/provision/inside"
)

// insideStatus is what the cluster's own services say.
type insideStatus struct {
	*inside.View
}

func (s *insideStatus) write(w io.Writer) error {
	if s == nil {
		return nil
	}
	if !s.Reachable {
		_, err := fmt.Fprintln(w, "inside: the nodes can't be reached from here; what they report through vCenter stands above")
		return err
	}
	none := func(s string) string {
		if s == "" {
			return "none"
		}
		return s
	}
	_, err := fmt.Fprintf(w, "inside: ZooKeeper %s · Mesos leader %s, %d slaves · Marathon leader %s\n", s.ZooKeeper, none(s.MesosLeader), s.Slaves, none(s.Marathon))
	for _, n := range s.Nodes {
		var bad []string
		for _, service := range []string{"zookeeper", "mesos-master", "mesos-slave", "marathon", "chronos", "bridged"} {
			switch state := n.Services[service]; state {
			case "", "ok", "leader", "follower", "standby", "standalone":
			default:
				bad = append(bad, service+" "+state)
			}
		}
		if bad != nil {
			_, e := fmt.Fprintf(w, "  %s: %s\n", n.Name, strings.Join(bad, ", "))
			err = errors.Join(err, e)
		}
	}
	return err
}

func insideOptions(ctx context.Context, b *blueprint) inside.Options {
	secrets := b.secrets.Secrets(ctx, b.cluster)
	return inside.Options{Want: b.want, MarathonAuth: func() (string, error) { return secrets("marathonAuth") }}
}

func lookInside(ctx context.Context, b *blueprint, have *provision.Inventory) *insideStatus {
	opt := insideOptions(ctx, b)
	opt.Address = inside.AddressOf(have)
	return &insideStatus{inside.Look(ctx, opt)}
}

// guests does a plan's drains and gates.
func guests(ctx context.Context, b *blueprint, p provision.Provider) provision.Guests {
	return &inside.Guests{Options: insideOptions(ctx, b), Inventory: func(ctx context.Context) (*provision.Inventory, error) {
		return p.Inventory(ctx, provision.ScopeCluster)
	}}
}
