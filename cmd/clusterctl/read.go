package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"

	"bridged/examples"
	"bridged/internal/provision"
	"bridged/internal/provision/guest"
)

// The commands that read and write files, and need no vCenter.

func (a *app) initCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "init [dev|prod|photon]",
		Short: "Print a commented blueprint to start from",
		Example: `  clusterctl init dev > dev.yaml       a small cluster, few lines
  clusterctl init prod > prod.yaml     racks, data disks, reservations, secrets
  clusterctl init photon               Photon OS from an OVA`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("%s takes one argument, have %d", cmd.CommandPath(), len(args))}
			}
			return nil
		},
		ValidArgs: []string{"dev", "prod", "photon"},
		RunE: func(cmd *cobra.Command, args []string) error {
			kind := "dev"
			if len(args) == 1 {
				kind = args[0]
			}
			text, ok := map[string]string{"dev": examples.Dev, "prod": examples.Prod, "photon": examples.Photon}[kind]
			if !ok {
				return usageError{fmt.Errorf("unknown example %q: want dev, prod or photon", kind)}
			}
			_, err := fmt.Fprint(cmd.OutOrStdout(), text)
			return err
		},
	}
}

func (a *app) validateCommand() *cobra.Command {
	var online bool
	cmd := &cobra.Command{
		Use:   "validate -f FILE",
		Short: "Check a blueprint and report all that is wrong with it at once",
		Long: `validate reads the blueprint strictly and names every mistake with its place in the
file, a code and what to write instead. It needs no vCenter and resolves no
reference. --online asks vCenter too: names, capacity, privileges, conflicts.`,
		Example: `  clusterctl validate -f dev.yaml
  clusterctl validate -f dev.yaml --online
  clusterctl validate -f dev.yaml -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			text, err := a.read(cmd)
			if err != nil {
				return err
			}
			manifests, err := a.manifests()
			if err != nil {
				return err
			}
			cluster, problems := provision.Load(a.file, text, manifests)
			var want *provision.Want
			if problems.Err() == nil {
				if want, err = provision.Expand(cluster, manifests, guest.Render); err != nil {
					more, ok := errors.AsType[provision.Problems](err)
					if !ok {
						return err
					}
					problems = append(problems, more...)
				}
			}
			if online && problems.Err() == nil {
				b := &blueprint{path: a.file, text: text, cluster: cluster, want: want, secrets: &provision.Resolver{Dir: filepath.Dir(a.file)}}
				more, err := a.validateOnline(cmd, b)
				if err != nil {
					return err
				}
				problems = append(problems, more...)
			}
			return a.writeProblems(cmd, cluster, want, problems)
		},
	}
	a.fileFlag(cmd)
	a.outputFlag(cmd)
	a.connectionFlags(cmd)
	cmd.Flags().BoolVar(&online, "online", false, "ask vCenter too")
	return cmd
}

func (a *app) writeProblems(cmd *cobra.Command, cluster *provision.Cluster, want *provision.Want, problems provision.Problems) error {
	bad := problems.Err()
	if problems == nil {
		problems = provision.Problems{}
	}
	if ok, err := a.structured(cmd.OutOrStdout(), map[string]any{"valid": bad == nil, "problems": problems}); ok {
		if err == nil && bad != nil {
			err = fmt.Errorf("%s is not valid", a.file)
		}
		return err
	}
	for _, w := range problems.Warnings() {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w.String())
	}
	if bad != nil {
		return bad
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: valid: cluster %s, %d nodes in %d groups, %s\n",
		a.file, cluster.Metadata.Name, len(want.Nodes), len(cluster.Spec.Groups), want.Distro.Name)
	return err
}

func (a *app) renderCommand() *cobra.Command {
	var dir string
	var secrets bool
	cmd := &cobra.Command{
		Use:   "render -f FILE --dir OUT",
		Short: "Write the guest files of every node, OUT/<node>/user-data and meta-data",
		Long: `render writes the cloud-init documents that apply hands to each node. References are
not resolved: a placeholder such as <secret:haproxyStats#0> stands for each secret.
--secrets writes the values instead. All files are readable by their owner only.`,
		Example: `  clusterctl render -f dev.yaml --dir out
  cloud-init schema -c out/dev-master-0/user-data`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return usageError{errors.New("where to? pass --dir OUT")}
			}
			b, err := a.load(cmd)
			if err != nil {
				return err
			}
			values := b.cluster.Placeholder
			if secrets {
				values = b.secrets.Secrets(cmd.Context(), b.cluster)
			}
			for _, n := range b.want.Nodes {
				g, err := guest.Render(b.want, n, values)
				if err != nil {
					return fmt.Errorf("render guest files of %s: %w", n.Name, err)
				}
				out := filepath.Join(dir, n.Name)
				if err := os.MkdirAll(out, 0o755); err != nil {
					return err
				}
				for name, text := range map[string][]byte{"user-data": g.UserData, "meta-data": g.MetaData} {
					if err := os.WriteFile(filepath.Join(out, name), text, 0o600); err != nil {
						return err
					}
				}
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d nodes written to %s\n", len(b.want.Nodes), dir)
			return err
		},
	}
	a.fileFlag(cmd)
	cmd.Flags().StringVar(&dir, "dir", "", "directory to write to; it is made if need be")
	cmd.Flags().BoolVar(&secrets, "secrets", false, "resolve references and write the secrets themselves")
	return cmd
}

func (a *app) exportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export heat",
		Short: "Write the cluster for another system",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown format %q: want heat", args[0])}
			}
			return usageError{errors.New("which format? `clusterctl export heat -f FILE`")}
		},
	}
	heat := &cobra.Command{
		Use:   "heat -f FILE",
		Short: "Print an OpenStack Heat template (HOT) of the blueprint",
		Long: `export heat prints a Heat template that makes the same nodes with the same cloud-init
on OpenStack: ports with the same addresses and MACs, volumes, servers, and server
groups for anti-affinity. Secrets become hidden parameters of the stack.`,
		Example: `  clusterctl export heat -f dev.yaml > dev.hot.yaml
  openstack stack create -t dev.hot.yaml --parameter network=lan --parameter image=debian12 dev`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := a.load(cmd)
			if err != nil {
				return err
			}
			text, err := provision.Heat(b.want, guest.Render)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	a.fileFlag(heat)
	cmd.AddCommand(heat)
	return cmd
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  clusterctl version",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "clusterctl %s (bridged; %s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
