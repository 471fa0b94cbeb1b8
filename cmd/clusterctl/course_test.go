package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/goleak"

	"bridged/internal/provision"
	"bridged/internal/provision/vsim"
)

// onText calls do once, when the text has been written.
type onText struct {
	io.Writer
	text string
	do   func()
	once sync.Once
}

func (w *onText) Write(p []byte) (int, error) {
	if strings.Contains(string(p), w.text) {
		w.once.Do(w.do)
	}
	return w.Writer.Write(p)
}

func TestInterruptStopsAndTheNextRunFinishes(t *testing.T) {
	c, _ := newCtl(t)
	file := c.init("dev")
	signals := make(chan os.Signal, 2)
	var out, complaint bytes.Buffer
	stopping := make(chan struct{})
	w := &onText{Writer: &out, text: "create (stage 1", do: func() { signals <- os.Interrupt; <-stopping }}
	cw := &onText{Writer: &complaint, text: "stopping after", do: func() { close(stopping) }}
	code := run(t.Context(), signals, []string{"apply", "-f", file, "--yes"}, strings.NewReader(""), w, cw)
	if code != exitError && code != exitPartial {
		t.Fatalf("exit %d after an interrupt\n%s%s", code, out.String(), complaint.String())
	}
	contains(t, complaint.String(), "stopping after what runs now", "run the same command again")
	c.run(exitOK, "apply", "-f", file, "--yes")
	c.run(exitOK, "plan", "-f", file, "--detailed-exitcode")
	goleak.VerifyNone(t, goleak.IgnoreCurrent())
}

func TestSickNodeIsNamedAndHealedByTheNextRun(t *testing.T) {
	var mu sync.Mutex
	sick := map[string]bool{"dev-slave-2": true}
	s := vsim.Run(t, vsim.Options{Sick: func(vm string) vsim.Sickness {
		mu.Lock()
		defer mu.Unlock()
		if sick[vm] {
			return vsim.Sickness{FailAt: string(provision.PhasePackages), Err: "no such package"}
		}
		return vsim.Sickness{}
	}})
	c := ctlFor(t, s)
	file := c.init("dev")
	out, complaint := c.run(exitPartial, "apply", "-f", file, "--yes")
	contains(t, complaint, "wait dev-slave-2", "no such package", "run the same command again")
	contains(t, out, "✓ wait dev-slave-4", "✗ wait dev-slave-2")
	mu.Lock()
	sick = nil
	mu.Unlock()
	out, _ = c.run(exitOK, "apply", "-f", file, "--yes", "--gate", "guestinfo")
	contains(t, out, "± replace  vm     dev-slave-2", "its first boot failed: no such package")
}

func TestTwoOperators(t *testing.T) {
	c, _ := newCtl(t)
	file := c.init("dev")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	holding, holder := make(chan struct{}), make(chan error, 1)
	// The first operator takes the lease and does not give it back.
	var first bytes.Buffer
	cmd := &cobra.Command{Use: "hold", RunE: func(cmd *cobra.Command, _ []string) error {
		a := &app{getenv: os.Getenv, connect: connectVSphere, file: file}
		b, err := a.load(cmd)
		if err != nil {
			return err
		}
		return a.with(ctx, cmd, b, func(p provision.Provider) error {
			lease, err := p.Acquire(ctx, provision.Holder{ID: "1", Who: "alice@desk pid 1"})
			if err != nil {
				return err
			}
			close(holding)
			<-ctx.Done()
			return lease.Release(context.WithoutCancel(ctx))
		})
	}}
	cmd.SetOut(&first)
	cmd.SetErr(&first)
	cmd.SetArgs(nil)
	go func() { holder <- cmd.ExecuteContext(ctx) }()
	select {
	case <-holding:
	case err := <-holder:
		t.Fatalf("the first operator got no lease: %v\n%s", err, first.String())
	}
	_, complaint := c.run(exitLease, "apply", "-f", file, "--yes")
	contains(t, complaint, "lease is held by alice@desk pid 1")
	cancel()
	if err := <-holder; err != nil {
		t.Fatal(err)
	}
	c.run(exitOK, "apply", "-f", file, "--yes")
}

// TestSecretsShowNowhere greps everything that a cluster with secrets writes,
// except the guest data that needs them.
func TestSecretsShowNowhere(t *testing.T) {
	c, s := newCtl(t)
	const key, stats = "kEy-0123456789-0123456789-0123456789", "sTaTs-s3cret-value"
	t.Setenv("BRIDGED_CLUSTER_KEY", key)
	t.Setenv("STATS", stats)
	file := c.init("dev")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.Replace(string(text), "  groups:\n", "  secrets: {haproxyStats: {env: STATS}, mesosCredential: derive}\n  groups:\n", 1))
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	dir := filepath.Join(c.dir, "out")
	for _, args := range [][]string{
		{"validate", "-f", file, "--online", "-o", "json"}, {"plan", "-f", file, "-o", "json"}, {"plan", "-f", file}, {"apply", "-f", file, "--yes", "-o", "json"},
		{"status", "-f", file, "-o", "yaml", "--gate", "guestinfo"}, {"render", "-f", file, "--dir", dir}, {"export", "heat", "-f", file},
	} {
		out, complaint := c.run(exitOK, args...)
		all.WriteString(out + complaint)
	}
	rendered, err := os.ReadFile(filepath.Join(dir, "dev-master-0", "user-data"))
	if err != nil {
		t.Fatal(err)
	}
	all.Write(rendered)
	all.WriteString(s.Dump())
	for _, secret := range []string{key, stats, s.Password + "\"", "password=" + s.Password} {
		if strings.Contains(all.String(), secret) {
			t.Errorf("%q shows", secret)
		}
	}
	if !strings.Contains(string(rendered), "<secret:haproxyStats#0>") {
		t.Error("the rendered user-data has no placeholder")
	}
}

func TestEveryCommandHasHelpWithExamples(t *testing.T) {
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		if cmd.Short == "" || cmd.Example == "" && !cmd.HasSubCommands() {
			t.Errorf("%s: help without summary or example", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			if sub.Name() != "help" && sub.Name() != "completion" {
				visit(sub)
			}
		}
	}
	visit(new(app).root())
}

func TestLivePicture(t *testing.T) {
	now := time.Unix(1000, 0)
	plan := &provision.Plan{Stages: []provision.Stage{{Name: "create", Steps: []provision.Step{
		{ID: "create a", Node: "a"}, {ID: "wait a", Node: "a"}, {ID: "create b", Node: "b"}, {ID: "wait b", Node: "b"}, {ID: "create c", Node: "c"},
	}}}}
	out, err := os.Create(filepath.Join(t.TempDir(), "screen"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	l := newLive(out, plan, func() time.Time { return now })
	at := func(seconds int, e provision.Event) {
		now = time.Unix(1000+int64(seconds), 0)
		e.Time, e.Stage = now, "create"
		l.event(e)
	}
	at(0, provision.Event{State: provision.StateRunning})
	at(0, provision.Event{Step: "create a", Node: "a", State: provision.StateRunning, Detail: "clone 10 %"})
	at(2, provision.Event{Step: "create a", Node: "a", State: provision.StateDone})
	at(4, provision.Event{Step: "wait a", Node: "a", State: provision.StateDone})
	at(5, provision.Event{Step: "wait b", Node: "b", State: provision.StateRunning, Detail: "packages"})
	at(6, provision.Event{Step: "create c", Node: "c", State: provision.StateFailed, Err: "no space"})
	now = time.Unix(1010, 0)
	got := strings.Join(l.picture(20), "\n")
	want := `[1/1] create  2/3  elapsed 10s  eta 5s
  ✓ a                        wait              4s
  … b                        wait              5s  packages
  ✗ c                        create            0s  no space`
	if strings.ReplaceAll(got, "  \n", "\n") != want {
		t.Errorf("have:\n%s\nwant:\n%s", got, want)
	}
	if small := l.picture(3); len(small) != 3 || !strings.Contains(small[1], "✗ c") || !strings.Contains(small[2], "… 2 more") {
		t.Errorf("a small terminal shows:\n%s", strings.Join(small, "\n"))
	}
}
