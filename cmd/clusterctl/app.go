package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"bridged/internal/provision"
	"bridged/internal/provision/guest"
)

// app is what the commands share: flags, and the world outside.
type app struct {
	signals <-chan os.Signal
	getenv  func(string) string
	connect func(context.Context, *connection) (provision.Provider, error)

	file      string
	output    string
	distroDir string
	flags     connectionFlags
}

// blueprint is a loaded file with all that follows from it.
type blueprint struct {
	path    string
	text    []byte
	cluster *provision.Cluster
	want    *provision.Want
	secrets *provision.Resolver
}

func (a *app) fileFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&a.file, "file", "f", "", "the blueprint; - reads standard input")
	cmd.Flags().StringVar(&a.distroDir, "distro-dir", "", "directory of own distro manifests (default: clusterctl/distros in the user's configuration directory)")
}

func (a *app) outputFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&a.output, "output", "o", "table", "table, json or yaml")
}

// checkOutput refuses an unknown -o before anything is done.
func (a *app) checkOutput() error {
	switch a.output {
	case "", "table", "json", "yaml":
		return nil
	}
	return usageError{fmt.Errorf("-o %s: want table, json or yaml", a.output)}
}

// structured writes v as JSON or YAML; ok is false for the table format.
func (a *app) structured(w io.Writer, v any) (ok bool, err error) {
	switch a.output {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return true, enc.Encode(v)
	case "yaml":
		// Through JSON, so that both formats have the same names.
		text, err := json.Marshal(v)
		if err != nil {
			return true, err
		}
		var generic any
		if err := json.Unmarshal(text, &generic); err != nil {
			return true, err
		}
		enc := yaml.NewEncoder(w)
		enc.SetIndent(2)
		return true, errors.Join(enc.Encode(generic), enc.Close())
	}
	return false, nil
}

// manifests are the built-in distros and those of the operator's directory.
func (a *app) manifests() (*provision.Manifests, error) {
	m, err := provision.BuiltinManifests()
	if err != nil {
		return nil, err
	}
	dir, explicit := a.distroPath()
	if dir == "" {
		return m, nil
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) && !explicit {
		return m, nil
	} else if err != nil {
		return nil, fmt.Errorf("--distro-dir: %w", err)
	}
	if err := m.Add(os.DirFS(dir)); err != nil {
		return nil, fmt.Errorf("distro manifests in %s:\n%w", dir, err)
	}
	return m, nil
}

// distroPath is where own manifests lie, and whether a flag said so.
func (a *app) distroPath() (dir string, explicit bool) {
	if a.distroDir != "" {
		return a.distroDir, true
	}
	config, err := os.UserConfigDir()
	if err != nil {
		return "", false
	}
	return filepath.Join(config, "clusterctl", "distros"), false
}

// read gets the blueprint's text.
func (a *app) read(cmd *cobra.Command) ([]byte, error) {
	switch a.file {
	case "":
		return nil, usageError{errors.New("which blueprint? pass -f FILE; `clusterctl init` prints one to start from")}
	case "-":
		return io.ReadAll(cmd.InOrStdin())
	}
	return os.ReadFile(a.file)
}

// load reads and checks the blueprint and works out what it asks for. Warnings go to stderr.
func (a *app) load(cmd *cobra.Command) (*blueprint, error) {
	text, err := a.read(cmd)
	if err != nil {
		return nil, err
	}
	return a.parse(cmd, text)
}

// parse is load for a text that is not, or not yet, what the file holds.
func (a *app) parse(cmd *cobra.Command, text []byte) (*blueprint, error) {
	manifests, err := a.manifests()
	if err != nil {
		return nil, err
	}
	cluster, problems := provision.Load(a.file, text, manifests)
	for _, w := range problems.Warnings() {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w.String())
	}
	if err := problems.Err(); err != nil {
		return nil, err
	}
	want, err := provision.Expand(cluster, manifests, guest.Render)
	if err != nil {
		return nil, err
	}
	return &blueprint{
		path: a.file, text: text, cluster: cluster, want: want,
		secrets: &provision.Resolver{Dir: filepath.Dir(a.file)},
	}, nil
}

// write replaces the blueprint's file; readers see the old or the new one.
func (b *blueprint) write() error {
	path, err := filepath.EvalSymlinks(b.path)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = temp.Write(b.text)
	err = errors.Join(err, temp.Chmod(info.Mode().Perm()), temp.Sync(), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(temp.Name()))
	}
	return nil
}

// nodeName completes a short node name: slave-3 of cluster dev is dev-slave-3.
func (b *blueprint) nodeName(name string) string {
	prefix := b.cluster.Metadata.Name + "-"
	for _, n := range b.want.Nodes {
		if n.Name == name {
			return name
		}
	}
	return prefix + strings.TrimPrefix(name, prefix)
}

// interruptible gives a context that the second interrupt cancels and a channel
// that the first one closes. Commands that only read pass graceful false: the
// first interrupt cancels them. done must be called.
func (a *app) interruptible(cmd *cobra.Command, graceful bool) (ctx context.Context, stop <-chan struct{}, done func()) {
	ctx, cancel := context.WithCancel(cmd.Context())
	stopping := make(chan struct{})
	over := make(chan struct{})
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		for first := true; ; first = false {
			select {
			case <-over:
				return
			case <-a.signals:
			}
			if !graceful || !first {
				cancel()
				return
			}
			close(stopping)
			fmt.Fprintln(cmd.ErrOrStderr(), "clusterctl: stopping after what runs now; interrupt again to leave at once")
		}
	}()
	return ctx, stopping, func() { close(over); <-finished; cancel() }
}
