package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"bridged/internal/provision"
)

func (a *app) distroCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "distro",
		Short: "List, add and verify distro manifests: which versions make up a cluster",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return usageError{errors.New("distro list, distro add FILE or distro verify [NAME|FILE]")}
		},
	}
	for _, sub := range []*cobra.Command{a.distroList(), a.distroAdd(), a.distroVerify()} {
		sub.Flags().StringVar(&a.distroDir, "distro-dir", "", "directory of own manifests (default: clusterctl/distros in the user's configuration directory)")
		cmd.AddCommand(sub)
	}
	return cmd
}

func (a *app) distroList() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the distros that a blueprint may name",
		Example: "  clusterctl distro list",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			m, err := a.manifests()
			if err != nil {
				return err
			}
			type row struct {
				Name    string   `json:"name"`
				Version string   `json:"version"`
				OS      []string `json:"os"`
				From    []string `json:"upgradeFrom"`
			}
			rows := []row{}
			for _, name := range m.Names() {
				d, _ := m.Get(name)
				rows = append(rows, row{d.Name, d.Version, d.Systems(), append([]string{}, d.UpgradeFrom...)})
			}
			if ok, err := a.structured(cmd.OutOrStdout(), rows); ok {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 3, ' ', 0)
			fmt.Fprintln(w, "NAME\tMESOS\tFROM\tPACKAGES FOR")
			for _, r := range rows {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.Name, r.Version, strings.Join(r.From, " "), strings.Join(r.OS, " "))
			}
			return w.Flush()
		},
	}
	a.outputFlag(cmd)
	return cmd
}

func (a *app) distroAdd() *cobra.Command {
	return &cobra.Command{
		Use:     "add FILE",
		Short:   "Check a manifest and keep it where blueprints find it",
		Example: "  clusterctl distro add mesos-1.11-lab.yaml",
		Args:    oneArg("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			d, problems := provision.ParseDistro(args[0], text)
			if err := problems.Err(); err != nil {
				return err
			}
			dir, _ := a.distroPath()
			if dir == "" {
				return errors.New("no configuration directory; pass --distro-dir")
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			to := filepath.Join(dir, d.Name+".yaml")
			if err := os.WriteFile(to, text, 0o644); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: added as %s\n", d.Name, to)
			return err
		},
	}
}

func (a *app) distroVerify() *cobra.Command {
	var offline bool
	cmd := &cobra.Command{
		Use:   "verify [NAME|FILE]...",
		Short: "Check manifests, and that their repositories answer",
		Example: `  clusterctl distro verify mesos-1.11
  clusterctl distro verify ./mesos-1.11-lab.yaml --offline`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := a.manifests()
			if err != nil {
				return err
			}
			if len(args) == 0 {
				args = m.Names()
			}
			var errs []error
			for _, name := range args {
				d, ok := m.Get(name)
				if !ok {
					text, err := os.ReadFile(name)
					if err != nil {
						errs = append(errs, fmt.Errorf("%s: neither a known distro (%s) nor a file: %w", name, strings.Join(m.Names(), ", "), err))
						continue
					}
					var problems provision.Problems
					if d, problems = provision.ParseDistro(name, text); problems.Err() != nil {
						errs = append(errs, problems)
						continue
					}
				}
				if !offline {
					if err := verifyRepos(cmd.Context(), d); err != nil {
						errs = append(errs, err)
						continue
					}
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: ok (%d repositories)\n", d.Name, len(d.Indexes()))
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVar(&offline, "offline", false, "do not ask the repositories")
	return cmd
}

// verifyRepos asks each repository for its index.
func verifyRepos(ctx context.Context, d *provision.Distro) error {
	client := &http.Client{Timeout: 20 * time.Second}
	var errs []error
	for _, index := range d.Indexes() {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, index, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w; check spec and network, or mirror the repository", d.Name, err))
			continue
		}
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
		resp.Body.Close()
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s answers %s; is the url, or the suite, right?", index, resp.Status)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", d.Name, err))
		}
	}
	return errors.Join(errs...)
}

func oneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usageError{fmt.Errorf("%s takes %s, have %d arguments; see %s --help", cmd.CommandPath(), what, len(args), cmd.CommandPath())}
		}
		return nil
	}
}
