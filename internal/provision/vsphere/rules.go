package vsphere

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"bridged/internal/provision"
)

// Groups of a rule that binds VMs to hosts are named after the rule.
const (
	vmGroupSuffix   = ":vms"
	hostGroupSuffix = ":hosts"
)

// ourRules are the cluster's rules, found by their names. A rule that is
// switched off, or of a kind we do not make, is shown without nodes: so it
// differs from what is wanted and is put right.
func (c *cluster) ourRules(name string, pl *place) []provision.Rule {
	hosts := map[ref]string{}
	for _, h := range pl.hosts {
		hosts[h.ref] = h.name
	}
	var list []provision.Rule
	for _, r := range c.rules {
		info := r.GetClusterRuleInfo()
		if !strings.HasPrefix(info.Name, provision.RulePrefix(name)) {
			continue
		}
		rule := provision.Rule{Name: info.Name, Mandatory: isTrue(info.Mandatory)}
		switch r := r.(type) {
		case *types.ClusterAntiAffinityRuleSpec:
			rule.Kind, rule.Nodes = provision.RuleSeparate, c.names(r.Vm, c.name)
		case *types.ClusterVmHostRuleInfo:
			rule.Kind = provision.RuleHosts
			for _, g := range c.groups {
				switch g := g.(type) {
				case *types.ClusterVmGroup:
					if g.Name == r.VmGroupName {
						rule.Nodes = c.names(g.Vm, c.name)
					}
				case *types.ClusterHostGroup:
					if g.Name == r.AffineHostGroupName {
						rule.Hosts = c.names(g.Host, hosts)
					}
				}
			}
		}
		if !isTrue(info.Enabled) {
			rule.Nodes = nil
		}
		list = append(list, rule)
	}
	slices.SortFunc(list, func(a, b provision.Rule) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func isTrue(b *bool) bool { return b != nil && *b }

// names of members, sorted. A member that is not the cluster's keeps its
// reference for a name, so that the rule shows as different.
func (c *cluster) names(members []ref, known map[ref]string) []string {
	list := make([]string, 0, len(members))
	for _, m := range members {
		if name, ok := known[m]; ok {
			list = append(list, name)
		} else {
			list = append(list, m.Value)
		}
	}
	slices.Sort(list)
	return list
}

// putRule makes the rule, or makes its members equal.
func (a *applying) putRule(ctx context.Context, want *provision.Rule) error {
	return a.changeRules(ctx, func(c *cluster, owner *compute) (*types.ClusterConfigSpecEx, error) {
		vms, err := a.vmRefs(c, want.Nodes)
		if err != nil {
			return nil, err
		}
		info := types.ClusterRuleInfo{Name: want.Name, Enabled: new(true), Mandatory: new(want.Mandatory), UserCreated: new(true)}
		spec := &types.ClusterConfigSpecEx{}
		var rule types.BaseClusterRuleInfo
		switch want.Kind {
		case provision.RuleSeparate:
			rule = &types.ClusterAntiAffinityRuleSpec{ClusterRuleInfo: info, Vm: vms}
		case provision.RuleHosts:
			hosts, err := a.hostRefs(want.Hosts, owner)
			if err != nil {
				return nil, err
			}
			spec.GroupSpec = []types.ClusterGroupSpec{
				c.putGroup(&types.ClusterVmGroup{ClusterGroupInfo: types.ClusterGroupInfo{Name: want.Name + vmGroupSuffix, UserCreated: new(true)}, Vm: vms}),
				c.putGroup(&types.ClusterHostGroup{ClusterGroupInfo: types.ClusterGroupInfo{Name: want.Name + hostGroupSuffix, UserCreated: new(true)}, Host: hosts}),
			}
			rule = &types.ClusterVmHostRuleInfo{ClusterRuleInfo: info, VmGroupName: want.Name + vmGroupSuffix, AffineHostGroupName: want.Name + hostGroupSuffix}
		default:
			return nil, fmt.Errorf("no such rule kind: %s", want.Kind)
		}
		change := types.ClusterRuleSpec{Info: rule}
		change.Operation = types.ArrayUpdateOperationAdd
		if have := c.rule(want.Name); have != nil {
			old := have.GetClusterRuleInfo()
			if fmt.Sprintf("%T", have) == fmt.Sprintf("%T", rule) {
				change.Operation = types.ArrayUpdateOperationEdit
				now := rule.GetClusterRuleInfo()
				now.Key, now.RuleUuid = old.Key, old.RuleUuid
			} else {
				spec.RulesSpec = append(spec.RulesSpec, removeRuleSpec(old.Key))
			}
		}
		spec.RulesSpec = append(spec.RulesSpec, change)
		return spec, nil
	})
}

// removeRule removes the rule with the groups made for it.
func (a *applying) removeRule(ctx context.Context, s *provision.Step) error {
	name := s.Object
	if name == "" && s.Rule != nil {
		name = s.Rule.Name
	}
	if !strings.HasPrefix(name, provision.RulePrefix(a.p.cluster.Metadata.Name)) {
		return fmt.Errorf("the rule %q is not this cluster's", name)
	}
	return a.changeRules(ctx, func(c *cluster, _ *compute) (*types.ClusterConfigSpecEx, error) {
		spec := &types.ClusterConfigSpecEx{}
		if have := c.rule(name); have != nil {
			spec.RulesSpec = append(spec.RulesSpec, removeRuleSpec(have.GetClusterRuleInfo().Key))
		}
		for _, suffix := range []string{vmGroupSuffix, hostGroupSuffix} {
			if c.group(name+suffix) != nil {
				spec.GroupSpec = append(spec.GroupSpec, types.ClusterGroupSpec{
					ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: types.ArrayUpdateOperationRemove, RemoveKey: name + suffix},
				})
			}
		}
		if len(spec.RulesSpec)+len(spec.GroupSpec) == 0 {
			return nil, nil
		}
		return spec, nil
	})
}

func removeRuleSpec(key int32) types.ClusterRuleSpec {
	return types.ClusterRuleSpec{ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: types.ArrayUpdateOperationRemove, RemoveKey: key}}
}

// changeRules reads the rules and writes what build makes of them. A rule that
// appeared or went between the two is looked at again.
func (a *applying) changeRules(ctx context.Context, build func(c *cluster, owner *compute) (*types.ClusterConfigSpecEx, error)) error {
	a.rules.Lock()
	defer a.rules.Unlock()
	i := slices.IndexFunc(a.place.computes, func(c *compute) bool { return c.cluster })
	if i < 0 {
		return fmt.Errorf("placement rules need a compute cluster, and the blueprint names stand-alone hosts")
	}
	owner := a.place.computes[i]
	for try := 0; ; try++ {
		c, err := a.p.readCluster(ctx, &place{folder: a.place.folder, computes: a.place.computes})
		if err != nil {
			return err
		}
		spec, err := build(c, owner)
		if err != nil || spec == nil {
			return err
		}
		err = a.p.reconfigureCluster(ctx, owner.ref, spec)
		if try < 3 && (fault.Is(err, &types.InvalidArgument{}) || fault.Is(err, &types.ConcurrentAccess{}) || fault.Is(err, &types.ManagedObjectNotFound{})) {
			continue
		}
		return err
	}
}

func (p *Provider) reconfigureCluster(ctx context.Context, cluster ref, spec *types.ClusterConfigSpecEx) error {
	ctx, cancel := context.WithTimeout(ctx, powerTimeout)
	defer cancel()
	res, err := methods.ReconfigureComputeResource_Task(ctx, p.client, &types.ReconfigureComputeResource_Task{This: cluster, Spec: spec, Modify: true})
	if err != nil {
		return err
	}
	_, err = p.task(ctx, res.Returnval, nil)
	return err
}

func (c *cluster) rule(name string) types.BaseClusterRuleInfo {
	for _, r := range c.rules {
		if r.GetClusterRuleInfo().Name == name {
			return r
		}
	}
	return nil
}

func (c *cluster) group(name string) types.BaseClusterGroupInfo {
	for _, g := range c.groups {
		if g.GetClusterGroupInfo().Name == name {
			return g
		}
	}
	return nil
}

func (c *cluster) putGroup(g types.BaseClusterGroupInfo) types.ClusterGroupSpec {
	spec := types.ClusterGroupSpec{Info: g}
	spec.Operation = types.ArrayUpdateOperationAdd
	if c.group(g.GetClusterGroupInfo().Name) != nil {
		spec.Operation = types.ArrayUpdateOperationEdit
	}
	return spec
}

func (a *applying) vmRefs(c *cluster, names []string) ([]ref, error) {
	byName := map[string]ref{}
	for _, m := range c.machines {
		byName[m.Name] = m.ref
	}
	var list []ref
	for _, n := range names {
		// A member whose creation failed is left out; the next run puts it in.
		if r, ok := byName[n]; ok {
			list = append(list, r)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("none of the rule's VMs exists: %s", strings.Join(names, ", "))
	}
	return list, nil
}

func (a *applying) hostRefs(names []string, owner *compute) ([]ref, error) {
	var list []ref
	for _, n := range names {
		i := slices.IndexFunc(a.place.hosts, func(h *host) bool { return h.name == n && h.compute == owner.ref })
		if i < 0 {
			return nil, fmt.Errorf("host %s is not in cluster %s", n, owner.name)
		}
		list = append(list, a.place.hosts[i].ref)
	}
	return list, nil
}

// restartPriorities tells vSphere HA how urgent the nodes are that this stage
// made or changed, in one call for all of them.
func (a *applying) restartPriorities(ctx context.Context) {
	spec := &types.ClusterConfigSpecEx{}
	for i := range a.stage.Steps {
		s := &a.stage.Steps[i]
		if s.Want == nil || s.Want.HA == "" || a.errs[i] != nil {
			continue
		}
		switch s.Kind {
		case provision.StepCreate, provision.StepReconfigure, provision.StepRestart:
		default:
			continue
		}
		vm, ok := a.p.noted(s.Node)
		if !ok {
			continue
		}
		change := types.ClusterDasVmConfigSpec{Info: &types.ClusterDasVmConfigInfo{
			Key: vm, DasSettings: &types.ClusterDasVmSettings{RestartPriority: s.Want.HA},
		}}
		change.Operation = types.ArrayUpdateOperationAdd
		spec.DasVmConfigSpec = append(spec.DasVmConfigSpec, change)
	}
	i := slices.IndexFunc(a.place.computes, func(c *compute) bool { return c.cluster })
	if len(spec.DasVmConfigSpec) == 0 || i < 0 || ctx.Err() != nil {
		return
	}
	if err := a.p.reconfigureCluster(ctx, a.place.computes[i].ref, spec); err != nil {
		// The cluster works without it; HA then treats the nodes as any other VM.
		a.p.log.Warn("set the HA restart priority", "err", err)
	}
}
