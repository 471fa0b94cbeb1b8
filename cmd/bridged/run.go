package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"bridged/internal/bridge"
)

func newRunCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Follow Marathon and keep HAProxy in step (the daemon)",
		Long: `Follow Marathon and keep HAProxy in step until a signal ends it. HAProxy goes on
then, and the next start takes it over as it is.

A flag wins over its variable (--haproxy-socket over BRIDGED_HAPROXY_SOCKET), which
wins over the file. SIGHUP reads the configuration again, as does a change of it.`,
		Example: `  bridged run --marathon http://m1:8080,http://m2:8080
  bridged run --config /etc/bridged/bridged.yaml --log-level debug`,
		Args: noArgs,
	}
	flags := addConfigFlags(cmd, environ, nil)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return runDaemon(cmd.Context(), flags.sources(), cmd.ErrOrStderr())
	}
	return cmd
}

// gcPercent trades a little CPU for memory on every node of the cluster: nearly all of
// the heap is state that stays, and an event leaves some 40 KB behind, so collections
// are rare at half the usual headroom too. GOGC in the environment wins.
const gcPercent = 50

func runDaemon(ctx context.Context, src bridge.Sources, stderr io.Writer) error {
	load := func() (*bridge.Config, error) { return bridge.Load(src) }
	cfg, err := load()
	if err != nil {
		return err
	}
	if envOf(src.Environ, "GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	level := new(slog.LevelVar)
	level.Set(cfg.Level())
	log := newLogger(stderr, cfg.LogFormat, level)
	for _, name := range bridge.UnknownEnviron(src.Environ) {
		log.Warn("variable sets nothing, is it misspelt?", "variable", name)
	}

	notify, err := newNotifier(src.Environ, os.Getpid())
	if err != nil {
		log.Warn("service manager cannot be told our state", "err", err)
	}
	defer notify.Close()

	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	kick := make(chan struct{}, 1)
	go func() {
		for {
			select {
			case <-hup:
				select {
				case kick <- struct{}{}:
				default: // one is due already
				}
			case <-ctx.Done():
				return
			}
		}
	}()

	b, err := bridge.New(bridge.Options{
		Config:   cfg,
		Load:     load,
		Kick:     kick,
		Version:  version,
		Logger:   log,
		LogLevel: level,
		Notify:   notify.Notify,
		Watchdog: notify.Watchdog(),
	})
	if err != nil {
		return err
	}
	log.Info("bridged starts", "version", version, "config", cfg.File, "listen", b.Addr(), "dialect", string(cfg.Dialect))
	return b.Run(ctx)
}

func newLogger(w io.Writer, format string, level slog.Leveler) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
