package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"bridged/internal/bridge"
	"bridged/internal/bridge/zdd"
	"bridged/internal/discovery"
)

// zddFlags are what the command line of zdd says beyond bridged's configuration.
type zddFlags struct {
	json, group                          string
	marathonLB, bridges                  []string
	resume, complete, abort              bool
	dryRun, force, redeploy              bool
	initial, linear, newInstances        int
	delay, maxWait                       seconds
	drain, killAfter                     time.Duration
	hook, output                         string
	basicFile, basic, dcosInline, caFile string
}

func newZDDCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "zdd",
		Short: "Deploy the next version of an app with no request lost (blue/green)",
		Long: `Deploy the next version of an app beside the running one, shift the traffic step by
step, and remove the old one, with no request lost and never fewer healthy tasks than
before.

The app's definition needs the label HAPROXY_DEPLOYMENT_GROUP, which load balancers
serve as one app. Its colours use two sets of service ports: HAPROXY_DEPLOYMENT_ALT_PORT
names the second one, a list where the app has several ports; Marathon chooses what is not
named. Flags and exit codes are those of marathon-lb's zdd.py.

Nothing is kept but on Marathon: a run that ends anywhere, killed or interrupted, is
gone on with by the same command or by --resume. An app that was changed by nothing but
this tool can always be taken back with --abort.

Exit codes: 0 done · 1 declined, by the operator or a hook, or interrupted · 2 usage, or
anything else · 3 arguments that do not fit together or what runs · 4 a field or label is
missing or bad · 5 a load balancer does not answer · 6 Marathon does not answer ·
7 create failed · 8 delete failed · 9 scale or kill failed · 10 nothing moved for
--max-wait.`,
		Example: `  bridged zdd --marathon http://m1:8080 --marathon-lb http://lb.example:9090 --json app.json
  bridged zdd --marathon http://m1:8080 --bridge http://n1:9377,http://n2:9377 --json app.json --force
  bridged zdd --marathon http://m1:8080 --deployment-group nginx --abort`,
		Args: noArgs,
	}
	// zdd.py has -c for something else than --config.
	scratch := &cobra.Command{}
	config := addConfigFlags(scratch, environ, func(key string) bool {
		return strings.HasPrefix(key, "marathon.") && key != "marathon.transport" && key != "marathon.resync"
	})
	scratch.Flags().VisitAll(func(f *pflag.Flag) {
		f.Shorthand = map[string]string{"marathon": "m"}[f.Name]
		cmd.Flags().AddFlag(f)
	})
	f := addZDDFlags(cmd.Flags())
	cmd.Flags().SortFlags = false
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return runZDD(cmd, config, f) }
	return cmd
}

func addZDDFlags(set *pflag.FlagSet) *zddFlags {
	f := &zddFlags{delay: seconds(5 * time.Second), maxWait: seconds(5 * time.Minute)}
	set.StringVarP(&f.json, "json", "j", "", "file with the app's definition, - for standard input")
	set.StringVar(&f.group, "deployment-group", "", "deployment group, with --resume, --complete-cur and --abort in place of --json")
	set.StringSliceVarP(&f.marathonLB, "marathon-lb", "l", nil, "URLs of HAProxy's statistics on each load balancer, as of marathon-lb; every address of a name is asked")
	set.StringSliceVar(&f.bridges, "bridge", nil, "URLs of bridged's own listener on each node; without these and --marathon-lb Marathon's health checks are relied on")
	set.BoolVarP(&f.resume, "resume", "r", false, "go on with a deployment, in whichever direction it went")
	set.BoolVarP(&f.complete, "complete-cur", "c", false, "go on until the new app alone is left")
	set.BoolVarP(&f.abort, "complete-prev", "p", false, "go back until the old app alone is left")
	set.BoolVar(&f.abort, "abort", false, "the same as --complete-prev")
	set.IntVarP(&f.initial, "initial-instances", "i", 1, "instances of the new app to begin with")
	set.IntVar(&f.linear, "linear-increase", 0, "instances to add in a step; 0: half of those there are")
	set.IntVarP(&f.newInstances, "new-instances", "n", 0, "instances at which the new app stays beside the old one; 0: replaces it")
	set.VarP(&f.delay, "step-delay", "s", "time between two looks, such as 5 (seconds) or 500ms")
	set.VarP(&f.maxWait, "max-wait", "w", "give up when nothing moved for so long; everything stays as it is then")
	set.DurationVar(&f.drain, "drain", 30*time.Second, "how long old tasks drain where no load balancer tells their sessions")
	set.DurationVar(&f.killAfter, "kill-after", 0, "kill drained tasks that still have sessions after so long; 0: never")
	set.StringVar(&f.hook, "pre-kill-hook", "", "program to call before tasks are killed, with the old app, the tasks' ids and the new app as JSON; another exit code than 0 ends the run")
	set.BoolVarP(&f.dryRun, "dry-run", "d", false, "say what would be done and change nothing")
	set.BoolVarP(&f.force, "force", "f", false, "do not ask")
	set.BoolVarP(&f.force, "yes", "y", false, "the same as --force")
	set.BoolVar(&f.redeploy, "redeploy", false, "deploy although the running app was made of the same definition")
	set.StringVarP(&f.output, "output", "o", "text", "text, or json: one object a line")
	set.StringVar(&f.basicFile, "marathon-auth-credential-file", "", "the same as --marathon-auth-basic-file")
	set.StringVar(&f.basic, "auth-credentials", "", "user:password for Marathon; others on this machine can read it: better in a file")
	set.StringVar(&f.dcosInline, "dcos-auth-credentials", "", "refused: name a file with --marathon-auth-dcos-file")
	set.StringVar(&f.caFile, "marathon-ca-cert", "", "the same as --marathon-tls-ca-file")
	for _, name := range []string{"log-level", "log-format", "syslog-socket"} {
		set.String(name, "", "accepted, without effect")
		if err := set.MarkHidden(name); err != nil {
			panic(err) // it was defined a line above
		}
	}
	return f
}

func runZDD(cmd *cobra.Command, config *configFlags, f *zddFlags) error {
	mode, err := f.mode()
	if err != nil {
		return err
	}
	cfg, err := bridge.Load(config.sources())
	if err != nil {
		return &zdd.Error{Code: zdd.CodeOther, Err: err}
	}
	options, err := f.marathon(cfg)
	if err != nil {
		return &zdd.Error{Code: zdd.CodeOther, Err: err}
	}
	o := zdd.Options{
		Group: "/" + strings.Trim(f.group, "/"), Mode: mode, Redeploy: f.redeploy,
		Initial: f.initial, Linear: f.linear, NewInstances: f.newInstances,
		Delay: time.Duration(f.delay), MaxWait: time.Duration(f.maxWait), Drain: f.drain, KillAfter: f.killAfter,
		Hook: f.hook, DryRun: f.dryRun, Report: reporter(cmd.OutOrStdout(), f.output),
	}
	if f.json != "" {
		if o.Definition, err = f.definition(cmd.InOrStdin()); err != nil {
			return err
		}
	}
	if !f.force && !f.dryRun {
		in, ok := cmd.InOrStdin().(*os.File)
		if !ok || !term.IsTerminal(int(in.Fd())) || f.json == "-" {
			return &zdd.Error{Code: zdd.CodeDeclined, Err: errors.New("there is no terminal to ask on; say yes beforehand with --force")}
		}
		o.Confirm = func(question string) bool { return confirmed(in, cmd.ErrOrStderr(), question) }
	}
	if o.API, err = discovery.NewAPI(options); err != nil {
		return &zdd.Error{Code: zdd.CodeOther, Err: err}
	}
	defer o.API.Close()
	if o.Balancers, err = zdd.BalancersOf(cmd.Context(), f.marathonLB, f.bridges); err != nil {
		return err
	}
	return zdd.Run(cmd.Context(), o)
}

// mode reads what the flags say together.
func (f *zddFlags) mode() (zdd.Mode, error) {
	bad := func(format string, args ...any) error {
		return &zdd.Error{Code: zdd.CodeArguments, Err: fmt.Errorf(format, args...)}
	}
	mode, given := zdd.Deploy, 0
	for _, m := range []struct {
		set  bool
		mode zdd.Mode
	}{{f.resume, zdd.Resume}, {f.complete, zdd.Complete}, {f.abort, zdd.Abort}} {
		if m.set {
			mode = m.mode
			given++
		}
	}
	switch {
	case given > 1:
		return 0, bad("--resume, --complete-cur and --complete-prev (--abort) exclude each other")
	case given == 1 && f.newInstances != 0:
		return 0, bad("--new-instances belongs to the beginning of a deployment, not to --resume, --complete-cur or --complete-prev")
	case given == 0 && f.json == "":
		return 0, bad("--json FILE: missing; it is the app to deploy")
	case f.json == "" && f.group == "":
		return 0, bad("--json FILE or --deployment-group NAME: missing")
	case f.json != "" && f.group != "":
		return 0, bad("--json and --deployment-group exclude each other")
	case f.initial < 1 || f.linear < 0 || f.newInstances < 0:
		return 0, bad("--initial-instances wants at least 1, --linear-increase and --new-instances at least 0")
	case f.delay <= 0 || f.maxWait <= 0 || f.drain < 0 || f.killAfter < 0:
		return 0, bad("--step-delay and --max-wait want more than 0, --drain and --kill-after at least 0")
	case f.output != "text" && f.output != "json":
		return 0, bad("--output: want text or json, have %q", f.output)
	case f.dcosInline != "":
		return 0, bad("--dcos-auth-credentials: a private key does not belong on a command line; write it to a file and name that with --marathon-auth-dcos-file")
	case f.basic != "" && strings.Count(f.basic, ":") != 1:
		return 0, bad("--auth-credentials: want user:password")
	}
	return mode, nil
}

// marathon is how to reach Marathon.
func (f *zddFlags) marathon(cfg *bridge.Config) (discovery.Options, error) {
	m := cfg.Marathon
	urls, err := cfg.MarathonURLs()
	if err != nil {
		return discovery.Options{}, err
	}
	o := discovery.Options{
		URLs: urls,
		Auth: discovery.AuthOptions{BasicFile: m.Auth.BasicFile, TokenFile: m.Auth.TokenFile, DCOSFile: m.Auth.DCOSFile},
		TLS:  discovery.TLSOptions{CAFile: m.TLS.CAFile, CertFile: m.TLS.CertFile, KeyFile: m.TLS.KeyFile, Insecure: m.TLS.Insecure},
	}
	if f.caFile != "" {
		o.TLS.CAFile = f.caFile
	}
	if f.basicFile != "" { // wins over the others, as in marathon-lb
		o.Auth = discovery.AuthOptions{BasicFile: f.basicFile}
	} else if name, password, ok := strings.Cut(f.basic, ":"); ok {
		o.Auth = discovery.AuthOptions{}
		for i, text := range o.URLs {
			u, err := url.Parse(text)
			if err != nil {
				return o, fmt.Errorf("marathon URL %d: cannot be parsed", i+1)
			}
			u.User = url.UserPassword(name, password)
			o.URLs[i] = u.String()
		}
	}
	return o, nil
}

func (f *zddFlags) definition(stdin io.Reader) (*zdd.Definition, error) {
	in, name := stdin, "standard input"
	if f.json != "-" {
		file, err := os.Open(f.json)
		if err != nil {
			return nil, &zdd.Error{Code: zdd.CodeArguments, Err: fmt.Errorf("--json: %w", err)}
		}
		defer file.Close()
		in, name = file, f.json
	}
	d, err := zdd.ReadDefinition(in)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return d, nil
}

func confirmed(in io.Reader, out io.Writer, question string) bool {
	fmt.Fprintf(out, "%s [y/N] ", question)
	answer, err := bufio.NewReader(in).ReadString('\n')
	if err != nil {
		return false
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return true
	}
	return false
}

// reporter writes progress, a line for each event.
func reporter(w io.Writer, format string) func(zdd.Event) {
	if format == "json" {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		return func(e zdd.Event) { enc.Encode(e) } // a reader that is gone is not our trouble
	}
	return func(e zdd.Event) {
		var b strings.Builder
		fmt.Fprintf(&b, "%s  %-6s", e.Time.Format("15:04:05"), e.Step)
		if e.App != "" {
			fmt.Fprintf(&b, " %s", e.App)
		}
		switch {
		case len(e.Tasks) > 0:
			fmt.Fprintf(&b, " %s", strings.Join(e.Tasks, " "))
		case e.Instances > 0:
			fmt.Fprintf(&b, " to %d", e.Instances)
		}
		if e.Detail != "" {
			fmt.Fprintf(&b, "  %s", e.Detail)
		}
		for i, a := range e.Apps {
			sep := ", "
			if i == 0 {
				sep = "  ["
			}
			fmt.Fprintf(&b, "%s%s %d/%d", sep, a.ID, a.Healthy, a.Instances)
			if i == len(e.Apps)-1 {
				b.WriteString("]")
			}
		}
		fmt.Fprintln(w, b.String())
	}
}

// seconds is a flag that takes a plain number for seconds, as zdd.py does, besides a duration.
type seconds time.Duration

func (s *seconds) String() string { return time.Duration(*s).String() }
func (s *seconds) Type() string   { return "seconds" }

func (s *seconds) Set(text string) error {
	d, err := time.ParseDuration(text)
	if err != nil {
		if d, err = time.ParseDuration(text + "s"); err != nil {
			return errors.New("want seconds, or a duration such as 500ms")
		}
	}
	*s = seconds(d)
	return nil
}
