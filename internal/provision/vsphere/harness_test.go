package vsphere_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"bridged/internal/provision"
	"bridged/internal/provision/guest"
	"bridged/internal/provision/vsim"
	"bridged/internal/provision/vsphere"
)

// blueprint of a cluster with one group of masters and one of slaves. Lines of
// more go below spec.
func blueprint(masters, slaves int, more ...string) string {
	text := fmt.Sprintf(`apiVersion: bridged/v1
kind: Cluster
metadata: {name: t}
spec:
  provider:
    vsphere: {cluster: C0, network: VM Network, datastores: [LocalDS_*]}
  image: {template: debian12, os: debian12, packages: prebaked}
  distro: mesos-1.11
  network: {cidr: 10.7.0.0/16, gateway: 10.7.0.1, dns: [10.7.0.1], ranges: [10.7.1.0-10.7.9.250]}
  access: {user: ops, sshKeys: []}
  groups:
    - {name: master, roles: [zookeeper, mesos-master, marathon], count: %d, size: small}
    - {name: slave, roles: [mesos-slave], count: %d, size: medium}
`, masters, slaves)
	for _, m := range more {
		text += "  " + m + "\n"
	}
	return text
}

var manifests = sync.OnceValue(func() *provision.Manifests {
	m, err := provision.BuiltinManifests()
	if err != nil {
		panic(err)
	}
	return m
})

// expanded keeps what expand has worked out: a Want is not changed by its use,
// and the tests ask for the same ones hundreds of times.
var expanded sync.Map // text → *provision.Want

func expand(tb testing.TB, text string) *provision.Want {
	tb.Helper()
	if want, ok := expanded.Load(text); ok {
		return want.(*provision.Want)
	}
	c, problems := provision.Load("test.yaml", []byte(text), manifests())
	for i := range problems {
		if strings.HasPrefix(problems[i].Code, "E") {
			tb.Fatalf("blueprint: %s", problems[i].String())
		}
	}
	want, err := provision.Expand(c, manifests(), guest.Render)
	if err != nil {
		tb.Fatal(err)
	}
	expanded.Store(text, want)
	return want
}

// operator is one clusterctl: it signs in, plans and applies.
type operator struct {
	tb   testing.TB
	vc   *vsim.Server
	want *provision.Want

	name   string // who holds the lease
	ttl    time.Duration
	diff   provision.DiffOptions
	noWait bool
	stop   <-chan struct{}
	plan   *provision.Plan // as of the last run
	report func(provision.Event)
	modify func(*vsphere.Options)
}

func newOperator(tb testing.TB, vc *vsim.Server, text string) *operator {
	return &operator{tb: tb, vc: vc, want: expand(tb, text), name: "alice@lab pid 1"}
}

func (o *operator) connect(ctx context.Context) (*vsphere.Provider, error) {
	opt := vsphere.Options{
		Cluster: o.want.Cluster, Server: o.vc.URL.String(), User: o.vc.User, Password: o.vc.Password,
		Thumbprint: o.vc.Thumbprint(), LeaseTTL: o.ttl,
	}
	if o.modify != nil {
		o.modify(&opt)
	}
	return vsphere.Connect(ctx, opt)
}

// secret gives no secret: the blueprints of these tests have none.
func (o *operator) secret(name string) (string, error) { return o.want.Cluster.Placeholder(name) }

// run plans with plan and does it under the lease, as the command does.
func (o *operator) run(ctx context.Context, plan func(*provision.Inventory) (*provision.Plan, error)) (err error) {
	p, err := o.connect(ctx)
	if err != nil {
		return err
	}
	defer p.Close(ctx)
	have, err := p.Inventory(ctx, provision.ScopeCluster)
	if err != nil {
		return err
	}
	if o.plan, err = plan(have); err != nil || o.plan.Empty() && !have.StaleLease {
		return err
	}
	lease, err := p.Acquire(ctx, provision.Holder{ID: fmt.Sprintf("%s %p %d", o.name, o, time.Now().UnixNano()), Who: o.name})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lease.Release(ctx)) }()
	if have, err = p.Inventory(ctx, provision.ScopeCluster); err != nil {
		return err
	}
	if o.plan, err = plan(have); err != nil {
		return err
	}
	runner := provision.Runner{Provider: p, Render: guest.Render, Secrets: o.secret, Now: time.Now}
	report := o.report
	if report == nil {
		report = func(provision.Event) {}
	}
	return runner.Run(ctx, o.want, o.plan, lease, provision.Run{Report: report, Stop: o.stop, Gate: provision.GateGuestinfo, NoWait: o.noWait})
}

func (o *operator) apply(ctx context.Context) error {
	return o.run(ctx, func(have *provision.Inventory) (*provision.Plan, error) { return provision.Diff(have, o.want, o.diff) })
}

func (o *operator) destroy(ctx context.Context) error {
	return o.run(ctx, func(have *provision.Inventory) (*provision.Plan, error) {
		return provision.Destroy(have, o.want.Cluster.Metadata.Name), nil
	})
}

// mustApply applies, and then shows that a second run plans nothing.
func (o *operator) mustApply(ctx context.Context) {
	o.tb.Helper()
	if err := o.apply(ctx); err != nil {
		o.tb.Fatalf("apply: %v", err)
	}
	o.mustBeDone(ctx)
}

func (o *operator) mustBeDone(ctx context.Context) {
	o.tb.Helper()
	o.vc.ResetCalls()
	if err := o.apply(ctx); err != nil {
		o.tb.Fatalf("second apply: %v", err)
	}
	if !o.plan.Empty() {
		o.tb.Fatalf("second apply plans: %s", text(o.plan))
	}
	if m := o.vc.Mutations(); len(m) > 0 {
		o.tb.Fatalf("second apply changes something: %v", m)
	}
}

func text(p *provision.Plan) string {
	var b strings.Builder
	for _, c := range p.Changes {
		fmt.Fprintf(&b, "%s %s %s: %s\n", c.Action, c.Kind, c.Name, strings.Join(c.Why, "; "))
	}
	for _, s := range p.Stages {
		fmt.Fprintf(&b, "stage %s:", s.Name)
		for _, step := range s.Steps {
			fmt.Fprintf(&b, " [%s]", step.ID)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// bounded gives a test a context that ends it, so that nothing can hang.
func bounded(tb testing.TB) context.Context {
	tb.Helper()
	limit := time.Minute
	if s := os.Getenv("CLUSTERCTL_TEST_TIMEOUT"); s != "" {
		if d, err := time.ParseDuration(s); err == nil {
			limit = d
		}
	}
	ctx, cancel := context.WithTimeout(tb.Context(), limit)
	tb.Cleanup(cancel)
	return ctx
}
