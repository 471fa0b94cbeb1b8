// Command bridged keeps the HAProxy of this node in step with Marathon.
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

	"bridged/internal/bridge"
	"bridged/internal/bridge/zdd"
)

// version is set by the build: -ldflags "-X main.version=1.2.3".
var version = "dev"

// Exit codes.
const (
	exitOK       = 0
	exitError    = 1
	exitUsage    = 2 // usage or configuration: starting again changes nothing
	exitRejected = 4 // done, but apps were rejected
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes one command and returns its exit code. An error is one line on stderr
// for each thing that is wrong.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	root := newRoot(environ)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil && !errors.Is(err, errRejected) {
		for line := range strings.Lines(err.Error()) {
			fmt.Fprintf(stderr, "bridged: %s\n", strings.TrimSuffix(line, "\n"))
		}
	}
	return exitCode(err)
}

// errRejected ends a command that is done and has said on stderr which apps it had to
// leave out.
var errRejected = errors.New("apps were rejected")

// usageError is a wrong command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if errors.Is(err, errRejected) {
		return exitRejected
	}
	if e, ok := errors.AsType[*zdd.Error](err); ok {
		return e.Code // scripts know those of zdd.py
	}
	if _, ok := errors.AsType[*bridge.ConfigError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	return exitError
}

func newRoot(environ []string) *cobra.Command {
	root := &cobra.Command{
		Use:   "bridged",
		Short: "Keep the HAProxy of this node in step with Marathon",
		Long: `bridged listens to Marathon's events and makes HAProxy on the same machine route
to the tasks that run: without a reload where HAProxy can be changed while it runs,
with a reload that drops nothing where it can't.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		// Without a command: help, and the exit code of a wrong command line.
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q; see bridged --help", args[0])}
			}
			if err := cmd.Help(); err != nil {
				return err
			}
			return usageError{errors.New("name a command, such as: bridged run")}
		},
		Args: cobra.ArbitraryArgs,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	root.AddCommand(
		newRunCommand(environ),
		newDemoCommand(),
		newRenderCommand(environ),
		newCheckCommand(environ),
		newMarathonLBCommand(environ),
		newZDDCommand(environ),
		newVersionCommand(),
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
