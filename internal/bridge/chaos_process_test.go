package bridge_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"

	"bridged/internal/bridge"
)

// bridgeConfig names the configuration of a test process that calls itself as a bridge, so
// that the bridge can be killed with -9.
const bridgeConfig = "BRIDGED_TEST_BRIDGE_CONFIG"

// runAsBridge is the whole life of such a process. It ends when its parent does.
func runAsBridge() int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	load := func() (*bridge.Config, error) {
		return bridge.Load(bridge.Sources{File: os.Getenv(bridgeConfig), Environ: os.Environ()})
	}
	cfg, err := load()
	if err == nil {
		var b *bridge.Bridge
		b, err = bridge.New(bridge.Options{Config: cfg, Load: load, Version: "test",
			Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		if err == nil {
			err = b.Run(ctx)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// bridgeProcess is a bridge as a process of its own.
type bridgeProcess struct {
	cmd   *exec.Cmd
	stdin io.Closer // held open: the process ends with it
}

// startBridgeProcess runs this test binary as a bridge with the rig's configuration. What it
// logs goes to log.
func (r *rig) startBridgeProcess(log io.Writer, environ ...string) *bridgeProcess {
	r.t.Helper()
	p := &bridgeProcess{cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(append(os.Environ(), bridgeConfig+"="+r.config), environ...)
	p.cmd.Stderr = log
	stdin, err := p.cmd.StdinPipe()
	r.must(err)
	p.stdin = stdin
	r.must(p.cmd.Start())
	r.t.Cleanup(p.kill)
	return p
}

// kill ends the process as kill -9 does, and waits for it.
func (p *bridgeProcess) kill() {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait() // killed
	}
}
