// Command clusterctl builds, changes and removes Mesos clusters on vSphere from one blueprint.
// It has nothing to do with the Kubernetes program of the same name.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"bridged/internal/provision"
)

// version is set by the build: -ldflags "-X main.version=1.2.3".
var version = "dev"

// Exit codes; scripts rely on them.
const (
	exitOK      = 0
	exitError   = 1
	exitUsage   = 2
	exitChanges = 3 // plan --detailed-exitcode: there is something to change
	exitPartial = 4 // some of it was done: run the same command again
	exitLease   = 5 // another operator holds the cluster's lease
)

func main() {
	// One interrupt asks to stop after what runs now, a second one stops at once.
	// Either is safe: the next run finds what there is.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	os.Exit(run(context.Background(), signals, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run executes one command and returns its exit code. Every line of an error
// is one thing that is wrong.
func run(ctx context.Context, signals <-chan os.Signal, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{signals: signals, getenv: os.Getenv, connect: connectVSphere}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil && !errors.Is(err, errChanges) {
		for line := range strings.Lines(err.Error()) {
			fmt.Fprintf(stderr, "clusterctl: %s\n", strings.TrimSuffix(line, "\n"))
		}
	}
	return exitCode(err)
}

// errChanges ends `plan --detailed-exitcode` when there is something to change.
var errChanges = errors.New("the plan has changes")

// usageError is a wrong command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if errors.Is(err, errChanges) {
		return exitChanges
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*provision.HeldError](err); ok {
		return exitLease
	}
	if errors.Is(err, provision.ErrPartial) {
		return exitPartial
	}
	return exitError
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "clusterctl",
		Short: "Build, change and remove Mesos clusters on vSphere",
		Long: `clusterctl makes a vSphere inventory match one blueprint: ZooKeeper, Mesos, Marathon
and Chronos, with Docker, HAProxy and bridged on every node. It keeps no state file:
what there is, vCenter says; run it again, from anywhere, and it goes on.

This is the clusterctl of bridged, not the one of the Kubernetes Cluster API.`,
		Example: `  clusterctl init dev > dev.yaml
  clusterctl validate -f dev.yaml
  clusterctl plan -f dev.yaml
  clusterctl apply -f dev.yaml
  clusterctl scale -f dev.yaml slave=8
  clusterctl destroy -f dev.yaml`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q; see clusterctl --help", args[0])}
			}
			if err := cmd.Help(); err != nil {
				return err
			}
			return usageError{errors.New("name a command, such as: clusterctl plan -f dev.yaml")}
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		a.initCommand(), a.validateCommand(), a.planCommand(), a.applyCommand(), a.statusCommand(),
		a.scaleCommand(), a.upgradeCommand(), a.replaceCommand(), a.destroyCommand(),
		a.renderCommand(), a.exportCommand(), a.distroCommand(), a.rotateCommand(), a.versionCommand(),
	)
	return root
}

// noArgs refuses arguments behind a command that takes flags alone.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no argument, have %q; see %s --help", cmd.CommandPath(), args[0], cmd.CommandPath())}
	}
	return nil
}
