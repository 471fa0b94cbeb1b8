package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"bridged/internal/provision"
)

func (a *app) planCommand() *cobra.Command {
	var detailed, offline bool
	cmd := &cobra.Command{
		Use:   "plan -f FILE",
		Short: "Show what apply would do, and why",
		Long: `plan compares the blueprint with what vCenter has and shows every object that would
be created, changed, replaced or removed, with the reason, and the order. It changes
nothing. --offline plans for an empty vCenter, without asking one.`,
		Example: `  clusterctl plan -f dev.yaml
  clusterctl plan -f dev.yaml -o json
  clusterctl plan -f dev.yaml --detailed-exitcode    exits 3 when there are changes
  clusterctl plan -f dev.yaml --offline              without vCenter`,
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
			var plan *provision.Plan
			if offline {
				plan, err = provision.Diff(&provision.Inventory{Cluster: b.cluster.Metadata.Name}, b.want, provision.DiffOptions{})
			} else {
				err = a.with(ctx, cmd, b, func(p provision.Provider) error {
					have, err := a.inventory(ctx, cmd, p, b)
					if err == nil {
						plan, err = provision.Diff(have, b.want, provision.DiffOptions{})
					}
					return err
				})
			}
			if err != nil {
				return err
			}
			if err := a.showPlan(cmd, plan); err != nil {
				return err
			}
			if detailed && !plan.Empty() {
				return errChanges
			}
			return nil
		},
	}
	a.fileFlag(cmd)
	a.outputFlag(cmd)
	a.connectionFlags(cmd)
	cmd.Flags().BoolVar(&detailed, "detailed-exitcode", false, "exit 3 when there is something to change")
	cmd.Flags().BoolVar(&offline, "offline", false, "plan for an empty vCenter without asking one")
	return cmd
}

func (a *app) showPlan(cmd *cobra.Command, plan *provision.Plan) error {
	if ok, err := a.structured(cmd.OutOrStdout(), plan); ok {
		return err
	}
	return plan.WriteText(cmd.OutOrStdout())
}

// with runs f with a signed-in provider.
func (a *app) with(ctx context.Context, cmd *cobra.Command, b *blueprint, f func(provision.Provider) error) error {
	c, err := a.connection(cmd, ctx, b)
	if err != nil {
		return err
	}
	p, err := a.connect(ctx, c)
	if err != nil {
		return err
	}
	// The session ends even when ctx did.
	return errors.Join(f(p), p.Close(context.WithoutCancel(ctx)))
}

// inventory reads what there is and refuses to go on from names that vCenter
// does not have.
func (a *app) inventory(ctx context.Context, cmd *cobra.Command, p provision.Provider, b *blueprint) (*provision.Inventory, error) {
	have, err := p.Inventory(ctx, provision.ScopeCluster)
	if err != nil {
		return nil, err
	}
	problems := provision.CheckOnline(have, b.want)
	for _, w := range problems.Warnings() {
		if w.Code != "W06" { // the lease is asked for when it is needed
			fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w.String())
		}
	}
	return have, problems.Err()
}

func (a *app) validateOnline(cmd *cobra.Command, b *blueprint) (provision.Problems, error) {
	ctx, _, done := a.interruptible(cmd, false)
	defer done()
	var problems provision.Problems
	err := a.with(ctx, cmd, b, func(p provision.Provider) error {
		have, err := p.Inventory(ctx, provision.ScopeOnline)
		if err == nil {
			problems = provision.CheckOnline(have, b.want)
			if _, err := provision.Diff(have, b.want, provision.DiffOptions{}); err != nil {
				if more, ok := errors.AsType[provision.Problems](err); ok {
					problems = append(problems, more...)
				}
			}
		}
		return err
	})
	return problems.Unique(), err
}
