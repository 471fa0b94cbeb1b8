package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"bridged/internal/bridge"
)

func newCheckCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check configuration, template and what they make of Marathon's apps",
		Long: `Check the configuration and the files that it names, render haproxy.cfg for the apps
of Marathon (or of a saved answer) and let HAProxy check that. Nothing is changed.

Where no Marathon answers, what is checked is haproxy.cfg without apps; where there is
no haproxy on this machine, its own check is left out. Both are said.`,
		Args: noArgs,
	}
	var from string
	cmd.Flags().StringVarP(&from, "from", "f", "", "file with a saved answer of GET /v2/apps?embed=apps.tasks, - for standard input, or URL of a Marathon")
	flags := addConfigFlags(cmd, environ, nil)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		src := flags.sources()
		src.Offline = from != ""
		return check(cmd.Context(), src, from, cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	return cmd
}

func check(ctx context.Context, src bridge.Sources, from string, stdin io.Reader, stdout, stderr io.Writer) error {
	cfg, err := bridge.Load(src)
	if err != nil {
		return err
	}
	for _, name := range bridge.UnknownEnviron(src.Environ) {
		fmt.Fprintf(stderr, "bridged: variable %s sets nothing, is it misspelt?\n", name)
	}
	fmt.Fprintf(stdout, "configuration  ok%s\n", inFile(cfg.File))

	r, err := renderFrom(ctx, cfg, from, stdin, stderr)
	if from == "" && errors.Is(err, errNoApps) {
		// Marathon being away says nothing about the configuration.
		fmt.Fprintf(stderr, "bridged: checked without apps: %v\n", err)
		r, err = renderServices(ctx, cfg, nil, nil, stderr)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "rendering      ok, %d proxies, %d left out\n", len(r.Config.Backends), len(r.Rejected)+len(r.Refused))
	if !r.Unchecked {
		fmt.Fprintln(stdout, "haproxy -c     ok")
	}
	if r.rejected {
		return errRejected
	}
	return nil
}

func inFile(name string) string {
	if name == "" {
		return ", no file"
	}
	return ", " + name
}
