package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bridged/internal/bridge"
	"bridged/internal/discovery"
	"bridged/internal/haproxy"
)

const (
	// maxApps bounds an answer: a hundred thousand tasks are some 100 MB.
	maxApps = 1 << 30
)

func newRenderCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "render",
		Short: "Print the haproxy.cfg that the apps ask for",
		Long: `Print the haproxy.cfg that bridged would run for the apps of Marathon, or for a
saved answer of GET /v2/apps?embed=apps.tasks. Nothing on this machine is changed.

Apps that cannot be served are named on stderr, and the exit code is 4 then.`,
		Example: `  curl -s http://m1:8080/v2/apps?embed=apps.tasks >apps.json
  bridged render --from apps.json
  bridged render --from http://m1:8080 --dialect marathon-lb --group external`,
		Args: noArgs,
	}
	var from, dir string
	cmd.Flags().StringVarP(&from, "from", "f", "", "file with a saved answer, - for standard input, or URL of a Marathon; by default the configured Marathon")
	cmd.Flags().StringVar(&dir, "dir", "", "write haproxy.cfg and its maps into this directory instead of printing one file")
	flags := addConfigFlags(cmd, environ, rendersKey)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		src := flags.sources()
		src.Offline = true
		cfg, err := bridge.Load(src)
		if err != nil {
			return err
		}
		r, err := renderFrom(cmd.Context(), cfg, from, cmd.InOrStdin(), cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		if err := r.write(dir, cmd.OutOrStdout()); err != nil {
			return err
		}
		if r.rejected {
			return errRejected
		}
		return nil
	}
	return cmd
}

// rendersKey reports whether a key has a say in what is rendered.
func rendersKey(key string) bool {
	switch key {
	case "haproxy.binary", "haproxy.template", "haproxy.bind", "haproxy.check_interval", "haproxy.socket", "haproxy.max_old_workers",
		"dialect", "groups", "health", "allow_template_labels", "http.bind":
		return true
	}
	return strings.HasPrefix(key, "marathon.") && !strings.HasPrefix(key, "marathon.callback.")
}

// rendering is a bridge.Rendering, after who was rejected stands on stderr.
type rendering struct {
	*bridge.Rendering
	rejected bool
}

// errNoApps: no Marathon gave its apps.
var errNoApps = errors.New("no Marathon answers")

// renderFrom reads apps and renders them. Who is left out is named on stderr.
func renderFrom(ctx context.Context, cfg *bridge.Config, from string, stdin io.Reader, stderr io.Writer) (*rendering, error) {
	in, err := openApps(ctx, cfg, from, stdin)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	services, problems := discovery.ReadApps(ctx, io.LimitReader(in, maxApps), nil)
	for _, p := range problems {
		if _, ok := errors.AsType[*discovery.AppError](p); !ok {
			return nil, fmt.Errorf("read apps from %s: %w", sourceName(from), p)
		}
	}
	return renderServices(ctx, cfg, services, problems, stderr)
}

// renderServices renders services; problems are the apps that could not be read.
func renderServices(ctx context.Context, cfg *bridge.Config, services []*discovery.Service, problems []error, stderr io.Writer) (*rendering, error) {
	template := ""
	if path := cfg.HAProxy.Template; path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, cfg.Problem("haproxy.template", "cannot be read", err)
		}
		template = string(text)
	}
	r, err := bridge.Render(ctx, cfg, template, services, capabilities(ctx, cfg.HAProxy.Binary), time.Now())
	if err != nil {
		return nil, err
	}
	for _, p := range problems {
		fmt.Fprintf(stderr, "bridged: left out: %v\n", p)
	}
	for _, r := range r.Rejected {
		fmt.Fprintf(stderr, "bridged: rejected: app %s port index %d: %s: %s\n", r.App, r.Index, r.Reason, r.Detail)
	}
	for _, r := range r.Refused {
		fmt.Fprintf(stderr, "bridged: refused by HAProxy: app %s: %s: %s\n", r.Owner, r.Section, r.Detail)
	}
	if r.Unchecked {
		fmt.Fprintf(stderr, "bridged: no %s on this machine (--haproxy-binary), so HAProxy has not checked this\n", cfg.HAProxy.Binary)
	}
	return &rendering{Rendering: r, rejected: len(problems)+len(r.Rejected)+len(r.Refused) > 0}, nil
}

func sourceName(from string) string {
	switch from {
	case "":
		return "Marathon"
	case "-":
		return "standard input"
	}
	return from
}

// openApps opens a saved answer, or asks a Marathon for a fresh one.
func openApps(ctx context.Context, cfg *bridge.Config, from string, stdin io.Reader) (io.ReadCloser, error) {
	switch {
	case from == "-":
		return io.NopCloser(stdin), nil
	case from != "" && !strings.Contains(from, "://"):
		f, err := os.Open(from)
		if err != nil {
			return nil, usageError{fmt.Errorf("--from: %w", err)}
		}
		return f, nil
	}
	sources, err := cfg.DiscoveryOptions()
	if err != nil {
		return nil, err
	}
	ask := sources[0]
	switch {
	case from != "":
		// The whole query is accepted too, as it was sent for a saved answer.
		base, _, _ := strings.Cut(from, "/v2/")
		if u, err := url.Parse(base); err != nil || u.Host == "" || u.User != nil {
			return nil, usageError{errors.New("--from: want a file, or a URL such as http://m1:8080 without a password")}
		}
		ask.URLs = []string{base}
	case len(sources) > 1:
		return nil, usageError{fmt.Errorf("%d Marathons are configured; name one with --from URL", len(sources))}
	case len(ask.URLs) == 0:
		return nil, usageError{errors.New("no apps to render; name a saved answer or a Marathon with --from, or configure marathon.urls")}
	}
	in, err := discovery.FetchApps(ctx, ask)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoApps, err)
	}
	return in, nil
}

// capabilities are those of the HAProxy on this machine; where there is none, of the
// newest that we know, whose configuration is the shortest.
func capabilities(ctx context.Context, binary string) haproxy.Capabilities {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "-v").Output()
	if err == nil {
		if v, err := versionOf(out); err == nil {
			return haproxy.CapabilitiesOf(v)
		}
	}
	return haproxy.CapabilitiesOf(haproxy.Version{Major: 3, Minor: 2})
}

// versionOf reads the first line of haproxy -v: "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - …".
func versionOf(out []byte) (haproxy.Version, error) {
	line, _, _ := bytes.Cut(out, []byte("\n"))
	_, rest, ok := bytes.Cut(line, []byte("version "))
	if !ok {
		return haproxy.Version{}, fmt.Errorf("haproxy -v says %.60q", line)
	}
	return haproxy.ParseVersion(string(rest))
}

// write prints one file, or writes haproxy.cfg and its maps into dir.
func (r *rendering) write(dir string, stdout io.Writer) error {
	if dir == "" {
		text, _, err := r.Text("")
		if err != nil {
			return err
		}
		_, err = stdout.Write(text)
		return err
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	text, files, err := r.Text(abs)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(abs, 0o755); err != nil {
		return usageError{fmt.Errorf("--dir: %w", err)}
	}
	files[filepath.Join(abs, "haproxy.cfg")] = text
	for path, text := range files {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return fmt.Errorf("write what was rendered: %w", err)
		}
	}
	return nil
}
