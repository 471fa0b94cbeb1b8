package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"bridged/internal/provision"
	"bridged/internal/provision/guest"
	"bridged/internal/provision/inside"
)

// applyFlags are common to the commands that change a cluster.
type applyFlags struct {
	yes    bool
	noWait bool
	gate   string
}

func (a *app) applyFlags(cmd *cobra.Command, f *applyFlags) {
	a.fileFlag(cmd)
	a.outputFlag(cmd)
	a.connectionFlags(cmd)
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&f.noWait, "no-wait", false, "do not wait for guests to become ready")
	cmd.Flags().StringVar(&f.gate, "gate", "auto", "whom to ask whether nodes are ready: auto, guestinfo (what they report to vCenter) or direct (their services)")
}

func (f *applyFlags) check() error {
	switch provision.GateMode(f.gate) {
	case provision.GateAuto, provision.GateGuestinfo, provision.GateDirect:
		return nil
	}
	return usageError{fmt.Errorf("--gate %s: want auto, guestinfo or direct", f.gate)}
}

func (a *app) applyCommand() *cobra.Command {
	var f applyFlags
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Make vCenter match the blueprint",
		Long: `apply shows the plan, asks, and does it: stage by stage, nodes in parallel, with live
progress. What fails is named and the rest goes on; run it again to finish (exit 4).
An interrupt stops after what runs now; a second one stops at once. Both are safe.`,
		Example: `  clusterctl apply -f dev.yaml
  clusterctl apply -f dev.yaml --yes -o json      one event a line`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := a.begin(cmd, &f)
			if err != nil {
				return err
			}
			return a.apply(cmd, b, &f, provision.DiffOptions{}, nil)
		},
	}
	a.applyFlags(cmd, &f)
	return cmd
}

// begin checks flags and loads the blueprint.
func (a *app) begin(cmd *cobra.Command, f *applyFlags) (*blueprint, error) {
	if err := errors.Join(a.checkOutput(), f.check()); err != nil {
		return nil, err
	}
	return a.load(cmd)
}

// edit loads the blueprint with a changed text; the file is written when the plan is accepted.
func (a *app) edit(cmd *cobra.Command, f *applyFlags, change func([]byte) ([]byte, error)) (*blueprint, error) {
	if err := errors.Join(a.checkOutput(), f.check()); err != nil {
		return nil, err
	}
	if a.file == "-" {
		return nil, usageError{errors.New("the change is written into the blueprint: pass a file, not -")}
	}
	text, err := a.read(cmd)
	if err != nil {
		return nil, err
	}
	changed, err := change(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.file, err)
	}
	return a.parse(cmd, changed)
}

func (a *app) scaleCommand() *cobra.Command {
	var f applyFlags
	cmd := &cobra.Command{
		Use:   "scale -f FILE GROUP=N...",
		Short: "Write new counts into the blueprint, comments kept, and apply it",
		Example: `  clusterctl scale -f dev.yaml slave=20
  clusterctl scale -f dev.yaml slave=3 --yes      tasks are drained from what goes`,
		Args: someArgs("GROUP=N"),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := a.edit(cmd, &f, func(text []byte) ([]byte, error) {
				for _, arg := range args {
					group, number, ok := strings.Cut(arg, "=")
					n, err := strconv.Atoi(number)
					if !ok || err != nil || n < 0 {
						return nil, usageError{fmt.Errorf("%q: want GROUP=N, as in slave=20", arg)}
					}
					if text, err = provision.SetCount(text, group, n); err != nil {
						return nil, err
					}
				}
				return text, nil
			})
			if err != nil {
				return err
			}
			return a.apply(cmd, b, &f, provision.DiffOptions{}, b.write)
		},
	}
	a.applyFlags(cmd, &f)
	return cmd
}

func (a *app) upgradeCommand() *cobra.Command {
	var f applyFlags
	var distro string
	cmd := &cobra.Command{
		Use:   "upgrade -f FILE --distro NAME",
		Short: "Write another distro into the blueprint, and change node after node",
		Long: `upgrade changes ZooKeeper servers and Mesos masters one at a time, then slaves in
batches after their tasks have left, then schedulers, each behind a gate. Interrupt it
to pause, run it again to go on, name the old distro to go back.`,
		Example: `  clusterctl upgrade -f prod.yaml --distro mesos-1.11
  clusterctl upgrade -f prod.yaml --distro mesos-1.5      back again`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if distro == "" {
				b, err := a.begin(cmd, &f)
				if err != nil {
					return err
				}
				return a.apply(cmd, b, &f, provision.DiffOptions{}, nil)
			}
			b, err := a.edit(cmd, &f, func(text []byte) ([]byte, error) { return provision.SetDistro(text, distro) })
			if err != nil {
				return err
			}
			return a.apply(cmd, b, &f, provision.DiffOptions{}, b.write)
		},
	}
	a.applyFlags(cmd, &f)
	cmd.Flags().StringVar(&distro, "distro", "", "the distro to go to (default: what the blueprint says)")
	return cmd
}

func (a *app) replaceCommand() *cobra.Command {
	var f applyFlags
	cmd := &cobra.Command{
		Use:     "replace -f FILE NODE...",
		Short:   "Replace sick nodes with new machines of the same name",
		Example: "  clusterctl replace -f dev.yaml slave-3",
		Args:    someArgs("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := a.begin(cmd, &f)
			if err != nil {
				return err
			}
			var opt provision.DiffOptions
			for _, name := range args {
				opt.Replace = append(opt.Replace, b.nodeName(name))
			}
			return a.apply(cmd, b, &f, opt, nil)
		},
	}
	a.applyFlags(cmd, &f)
	return cmd
}

func (a *app) rotateCommand() *cobra.Command {
	var f applyFlags
	cmd := &cobra.Command{
		Use:   "rotate -f FILE SECRET...",
		Short: "Count up secrets in the blueprint, and bring them to the nodes",
		Long: `rotate writes the next generation of a secret into the blueprint and changes the nodes
that use it, in the order of an upgrade. A derived secret gets another value by itself;
for a reference, put the new value behind it first.`,
		Example: "  clusterctl rotate -f prod.yaml haproxyStats",
		Args:    someArgs("SECRET"),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := a.edit(cmd, &f, func(text []byte) ([]byte, error) {
				var err error
				for _, name := range args {
					if text, err = provision.Rotate(text, name); err != nil {
						return nil, err
					}
				}
				return text, nil
			})
			if err != nil {
				return err
			}
			return a.apply(cmd, b, &f, provision.DiffOptions{}, b.write)
		},
	}
	a.applyFlags(cmd, &f)
	return cmd
}

func (a *app) destroyCommand() *cobra.Command {
	var f applyFlags
	cmd := &cobra.Command{
		Use:   "destroy -f FILE",
		Short: "Remove everything the cluster owns, and nothing else",
		Long: `destroy shows what it found, asks, removes it, and looks again to prove that nothing
is left. Objects that are not the cluster's stay, and are named.`,
		Example: `  clusterctl destroy -f dev.yaml
  clusterctl destroy -f dev.yaml --yes`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := a.begin(cmd, &f)
			if err != nil {
				return err
			}
			if b.cluster.Spec.Protect {
				return fmt.Errorf("cluster %s is protected; set spec.protect: false in %s first", b.cluster.Metadata.Name, b.path)
			}
			name := b.cluster.Metadata.Name
			return a.change(cmd, b, &f, nil, func(ctx context.Context, p provision.Provider) (*provision.Plan, error) {
				have, err := p.Inventory(ctx, provision.ScopeCluster)
				if err != nil {
					return nil, err
				}
				return provision.Destroy(have, name), nil
			})
		},
	}
	a.applyFlags(cmd, &f)
	return cmd
}

// apply makes vCenter match b. accepted is called between the question and the
// first change; it may be nil.
func (a *app) apply(cmd *cobra.Command, b *blueprint, f *applyFlags, opt provision.DiffOptions, accepted func() error) error {
	return a.change(cmd, b, f, accepted, func(ctx context.Context, p provision.Provider) (*provision.Plan, error) {
		have, err := a.inventory(ctx, cmd, p, b)
		if err != nil {
			return nil, err
		}
		plan, err := provision.Diff(have, b.want, opt)
		if err != nil || !plan.TakesDownQuorum() || provision.GateMode(f.gate) == provision.GateGuestinfo {
			return plan, err
		}
		// Leaders go last, so that leadership moves once; who leads is asked only now that it matters.
		opt := opt
		opt.Last = inside.Look(ctx, insideOptions(ctx, b)).Leaders()
		return provision.Diff(have, b.want, opt)
	})
}

// change is the course of every command that changes something: plan, question,
// lease, plan again under the lease, run, and a last look that must find
// nothing to do.
func (a *app) change(cmd *cobra.Command, b *blueprint, f *applyFlags, accepted func() error, plan func(context.Context, provision.Provider) (*provision.Plan, error)) error {
	ctx, stop, done := a.interruptible(cmd, true)
	defer done()
	if total := b.cluster.Spec.Timeouts.Total; total > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, total)
		defer cancel()
	}
	return a.with(ctx, cmd, b, func(p provision.Provider) error {
		shown, err := plan(ctx, p)
		if err != nil {
			return err
		}
		if err := a.announce(cmd, shown); err != nil {
			return err
		}
		if len(shown.Stages) > 0 && !shown.Empty() && !f.yes {
			if err := ask(cmd, shown); err != nil {
				return err
			}
		}
		if accepted != nil {
			if err := accepted(); err != nil {
				return err
			}
		}
		if !shown.StaleLease && (len(shown.Stages) == 0 || shown.Empty() && f.noWait) {
			return nil
		}
		return a.execute(ctx, stop, cmd, b, f, p, shown, plan)
	})
}

func (a *app) execute(ctx context.Context, stop <-chan struct{}, cmd *cobra.Command, b *blueprint, f *applyFlags, p provision.Provider, shown *provision.Plan, plan func(context.Context, provision.Provider) (*provision.Plan, error)) (err error) {
	var lease provision.Lease
	current := shown
	if !shown.Empty() || shown.StaleLease {
		if lease, err = p.Acquire(ctx, holder()); err != nil {
			return err
		}
		// Given back even when ctx has ended, so that the next run need not wait.
		defer func() { err = errors.Join(err, lease.Release(context.WithoutCancel(ctx))) }()
		if current, err = plan(ctx, p); err != nil {
			return err
		}
		if !current.SameChanges(shown) && !f.yes {
			return fmt.Errorf("vCenter has changed since the plan was shown (%s before, %s now); run the command again", shown.Summary(), current.Summary())
		}
	}
	progress := a.progress(cmd, current)
	runner := &provision.Runner{
		Provider: p, Guests: guests(ctx, b, p), Render: guest.Render,
		Secrets: b.secrets.Secrets(ctx, b.cluster), Now: time.Now,
	}
	runErr := runner.Run(ctx, b.want, current, lease, provision.Run{
		Report: progress.event, Stop: stop, Gate: provision.GateMode(f.gate), NoWait: f.noWait,
	})
	progress.end(runErr)
	if runErr != nil {
		return fmt.Errorf("%w\n%s", runErr, "what is done is kept: run the same command again to go on")
	}
	return a.verify(ctx, cmd, f, p, plan)
}

// verify looks again: after a run that reports success nothing may be left to do.
func (a *app) verify(ctx context.Context, cmd *cobra.Command, f *applyFlags, p provision.Provider, plan func(context.Context, provision.Provider) (*provision.Plan, error)) error {
	if cmd.Name() == "replace" {
		return nil // asked again, it would replace again
	}
	left, err := plan(ctx, p)
	if err != nil {
		return fmt.Errorf("look at the result: %w", err)
	}
	if !left.Empty() {
		return fmt.Errorf("%w: %s after the run; run the same command again", provision.ErrPartial, left.Summary())
	}
	if len(left.Stages) > 0 && !f.noWait {
		return fmt.Errorf("%w: some nodes are not ready; run the same command again", provision.ErrPartial)
	}
	if a.output == "json" {
		return nil
	}
	text := "done: everything is as the blueprint says"
	if cmd.Name() == "destroy" {
		text = "done: nothing of the cluster is left"
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
	return err
}

// announce shows the plan. With -o json the stream of events begins with it.
func (a *app) announce(cmd *cobra.Command, plan *provision.Plan) error {
	if a.output == "json" {
		return writeLine(cmd.OutOrStdout(), map[string]any{"plan": plan})
	}
	return plan.WriteText(cmd.OutOrStdout())
}

// ask wants the word yes.
func ask(cmd *cobra.Command, plan *provision.Plan) error {
	fmt.Fprintf(cmd.ErrOrStderr(), "%s. Go on? Only yes is taken for yes: ", plan.Summary())
	line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if err != nil && (!errors.Is(err, io.EOF) || line == "") {
		return usageError{errors.New("nobody answered; pass --yes where nobody can")}
	}
	if strings.TrimSpace(line) != "yes" {
		return errors.New("not confirmed, nothing was changed")
	}
	return nil
}

func holder() provision.Holder {
	who := "unknown"
	if u, err := user.Current(); err == nil {
		who = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return provision.Holder{ID: uuid.NewString(), Who: fmt.Sprintf("%s@%s pid %d", who, host, os.Getpid())}
}

func someArgs(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usageError{fmt.Errorf("%s takes %s; see %s --help", cmd.CommandPath(), what, cmd.CommandPath())}
		}
		return nil
	}
}
