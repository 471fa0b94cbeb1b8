package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bridged/internal/bridge"
	"bridged/internal/discovery"
)

const (
	// checkAsk is how long check waits for Marathon before it goes on without apps.
	checkAsk = 10 * time.Second
	// checkRun bounds haproxy -c: ten thousand servers take it a second or two.
	checkRun = time.Minute
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

	actx, cancel := context.WithTimeout(ctx, checkAsk)
	defer cancel()
	r, err := renderFrom(actx, cfg, from, stdin, stderr)
	unreached := err != nil && from == "" && errors.Is(err, errNoApps)
	if unreached {
		// Marathon being away says nothing about the configuration.
		fmt.Fprintf(stderr, "bridged: checked without apps: %v\n", err)
		r, err = renderServices(ctx, cfg, []*discovery.Service(nil), nil, stderr)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "rendering      ok, %d proxies, %d rejected\n", len(r.Config.Backends), len(r.Rejected))

	switch out, err := haproxyCheck(ctx, cfg.HAProxy.Binary, r); {
	case errors.Is(err, exec.ErrNotFound):
		fmt.Fprintf(stderr, "bridged: haproxy.binary: no %s on this machine, so HAProxy's own check was left out\n", cfg.HAProxy.Binary)
	case err != nil:
		return fmt.Errorf("haproxy -c refuses what was rendered: %w\n%s", err, out)
	default:
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

// haproxyCheck lets HAProxy judge r, and returns what it says against it.
func haproxyCheck(ctx context.Context, binary string, r *rendering) (string, error) {
	path, err := exec.LookPath(binary)
	if err != nil {
		return "", exec.ErrNotFound
	}
	dir, err := os.MkdirTemp("", "bridged-check-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	if err := r.write(dir, io.Discard); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, checkRun)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "-c", "-f", filepath.Join(dir, "haproxy.cfg")).CombinedOutput()
	if err != nil {
		return strings.TrimSpace(string(out)), err
	}
	return "", nil
}
