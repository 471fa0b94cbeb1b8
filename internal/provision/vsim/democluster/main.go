// Democluster shows clusterctl at work without a vCenter: it stands up the
// vSphere simulator of package vsim on a free port and runs the real clusterctl
// binary against it, from the first plan of the example blueprint to its removal.
//
//	democluster -clusterctl bin/clusterctl -blueprint examples/dev.yaml
//	democluster -serve     only the vCenter, to try commands by hand
//
// It exits with 0 only if every command did what it should, and the inventory is
// at the end what it was at the beginning.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/vmware/govmomi/object"
	"go.yaml.in/yaml/v3"

	"bridged/internal/provision/vsim"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "democluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("democluster", flag.ContinueOnError)
	flags.SetOutput(stderr)
	binary := flags.String("clusterctl", "bin/clusterctl", "the clusterctl to show")
	file := flags.String("blueprint", "examples/dev.yaml", "the blueprint; a copy of it is used")
	speed := flags.Float64("speed", 1, "how many times faster than a quick vCenter; 0: as fast as can be")
	serve := flags.Bool("serve", false, "only stand up the vCenter, until interrupted")
	if err := flags.Parse(args); err != nil {
		return err
	}
	log.SetOutput(io.Discard) // the simulator logs what it does not know

	text, err := os.ReadFile(*file)
	if err != nil {
		return err
	}
	// Nothing here leaves the machine: the nodes live on loopback addresses,
	// where stand-ins of their services answer.
	text = loopback(text)
	inside := newServices()
	defer inside.close()
	opt, err := options(text, *speed)
	if err != nil {
		return fmt.Errorf("%s: %w", *file, err)
	}
	opt.Ready, opt.Gone = inside.start, inside.stop
	vc, err := vsim.Start(opt)
	if err != nil {
		return err
	}
	defer vc.Close()
	fmt.Fprintf(stdout, "A vCenter simulator listens on %s: %d hosts, %d VMs of others, the template %s.\n", vc.URL.Host, 4, opt.Foreign, opt.Template)

	d := &demo{vc: vc, stdout: stdout, stderr: stderr}
	d.env = append(os.Environ(), "GOVC_URL="+vc.URL.String(), "GOVC_USERNAME="+vc.User, "GOVC_PASSWORD="+vc.Password)
	if *serve {
		fmt.Fprintf(stdout, "\nexport GOVC_URL=%s GOVC_USERNAME=%s GOVC_PASSWORD=%s\nclusterctl plan -f %s --thumbprint %s\n\nInterrupt to end it.\n",
			vc.URL, vc.User, vc.Password, *file, vc.Thumbprint())
		<-ctx.Done()
		return nil
	}
	if d.binary, err = filepath.Abs(*binary); err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp("", "democluster-"); err != nil {
		return err
	}
	defer os.RemoveAll(d.dir)
	d.file = filepath.Base(*file)
	if err := os.WriteFile(filepath.Join(d.dir, d.file), text, 0o600); err != nil {
		return err
	}
	started := time.Now()
	if err := d.show(ctx); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "\nDone in %v: the inventory is what it was at the beginning.\n", time.Since(started).Round(time.Second))
	return nil
}

// network is the blueprint's own, as in cidr: 192.168.50.0/24.
var network = regexp.MustCompile(`(?m)^\s*cidr:\s*(\d+\.\d+\.\d+\.)0/24`)

// loopback moves the blueprint's network to 127.0.50.0/24.
func loopback(text []byte) []byte {
	m := network.FindSubmatch(text)
	if m == nil {
		return text
	}
	return bytes.ReplaceAll(text, m[1], []byte("127.0.50."))
}

// options make a vCenter in which the blueprint's names lead somewhere.
func options(text []byte, speed float64) (vsim.Options, error) {
	var b struct {
		Spec struct {
			Provider struct {
				VSphere struct{ Cluster string } `yaml:"vsphere"`
			} `yaml:"provider"`
			Image struct{ Template string } `yaml:"image"`
		} `yaml:"spec"`
	}
	if err := yaml.Unmarshal(text, &b); err != nil {
		return vsim.Options{}, err
	}
	opt := vsim.Options{Cluster: b.Spec.Provider.VSphere.Cluster, Template: b.Spec.Image.Template, Foreign: 3}
	if speed > 0 {
		times := func(d time.Duration) time.Duration { return time.Duration(float64(d) / speed) }
		opt.Clone, opt.PowerOn, opt.PowerOff = times(1500*time.Millisecond), times(300*time.Millisecond), times(200*time.Millisecond)
		opt.Reconfigure, opt.Destroy = times(300*time.Millisecond), times(300*time.Millisecond)
		opt.Boot, opt.Phase = times(time.Second), times(400*time.Millisecond)
	}
	return opt, nil
}

// demo is one run of the show.
type demo struct {
	vc             *vsim.Server
	binary         string
	dir, file      string
	env            []string
	stdout, stderr io.Writer
}

func (d *demo) show(ctx context.Context) error {
	before := d.vc.Dump()
	step := func(what string, args ...string) func() error {
		return func() error {
			if what != "" {
				fmt.Fprintf(d.stdout, "\n# %s\n", what)
			}
			return d.clusterctl(ctx, args...)
		}
	}
	for _, do := range []func() error{
		step("What would be made, and why.", "plan", "-f", d.file),
		step("Make it.", "apply", "-f", d.file, "--yes"),
		step("The same again: there is nothing to do.", "apply", "-f", d.file, "--yes"),
		step("How is it?", "status", "-f", d.file),
		step("Two slaves more. The count is written into the blueprint.", "scale", "-f", d.file, "slave=7", "--yes"),
		func() error { return d.accident(ctx) },
		step("What the blueprint says is repaired, and nothing else is touched.", "apply", "-f", d.file, "--yes"),
		step("Back to five slaves.", "scale", "-f", d.file, "slave=5", "--yes"),
		step("Remove it all.", "destroy", "-f", d.file, "--yes"),
	} {
		if err := do(); err != nil {
			return err
		}
	}
	if d.vc.Dump() != before {
		return errors.New("the inventory is not what it was at the beginning")
	}
	return nil
}

// clusterctl runs one command as an operator would.
func (d *demo) clusterctl(ctx context.Context, args ...string) error {
	fmt.Fprintf(d.stdout, "$ clusterctl %s\n", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, d.binary, append(args, "--thumbprint", d.vc.Thumbprint())...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = d.dir, d.env, d.stdout, d.stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("clusterctl %s: %w", args[0], err)
	}
	return nil
}

// accident powers one VM off and deletes another, as somebody in the vSphere
// client might.
func (d *demo) accident(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	client, err := d.vc.Client(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = client.Logout(ctx) }()
	var vms []vsim.Entity
	for _, e := range d.vc.Entities("VirtualMachine") {
		if strings.Contains(e.Path, "-slave-") {
			vms = append(vms, e)
		}
	}
	if len(vms) < 2 {
		return errors.New("there are no two slaves")
	}
	fmt.Fprintf(d.stdout, "\n# Somebody deletes %s and powers %s off by hand.\n", path.Base(vms[0].Path), path.Base(vms[1].Path))
	for i, e := range vms[:2] {
		vm := object.NewVirtualMachine(client.Client, e.Ref)
		task, err := vm.PowerOff(ctx)
		if err == nil {
			err = task.Wait(ctx)
		}
		if err == nil && i == 0 {
			if task, err = vm.Destroy(ctx); err == nil {
				err = task.Wait(ctx)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
