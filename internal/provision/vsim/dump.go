package vsim

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// Dump is the inventory as text, a line per object, sorted: folders, pools,
// VMs with all that a client can set, rules, groups, custom fields and their
// values. Two equal inventories give equal text; references, times and
// free space, which a VM that came and went leaves different, are not in it.
func (s *Server) Dump() (text string) {
	s.alone(func() { text = s.dump() })
	return text
}

func (s *Server) dump() string {
	bg := s.background()
	var lines []string
	for _, e := range bg.Map.All("") {
		path := s.path(e)
		var line string
		switch o := e.(type) {
		case *simulator.VirtualMachine:
			bg.WithLock(o, func() { line = describeVM(bg, o) })
		case *simulator.ClusterComputeResource:
			bg.WithLock(o, func() { line = describeCluster(bg, o) })
		case *simulator.Folder, *simulator.ResourcePool:
			line = "values=" + describeValues(e.Entity())
		default:
			continue
		}
		lines = append(lines, fmt.Sprintf("%s %s %s", e.Reference().Type, path, line))
	}
	for _, f := range s.registry().CustomFieldsManager().Field {
		lines = append(lines, fmt.Sprintf("CustomField %s %s", f.Name, f.ManagedObjectType))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

// VMs lists the names of all VMs, sorted; a name that several VMs have is
// there as often.
func (s *Server) VMs() []string {
	var names []string
	s.alone(func() {
		for _, e := range s.registry().All("VirtualMachine") {
			if vm, ok := e.(*simulator.VirtualMachine); ok {
				s.background().WithLock(vm, func() { names = append(names, vm.Name) })
			}
		}
	})
	slices.Sort(names)
	return names
}

// Change applies what an operator does by hand in the vSphere client to the VM
// of that name, under its lock.
func (s *Server) Change(name string, change func(vm *simulator.VirtualMachine)) error {
	bg := s.background()
	for _, e := range bg.Map.All("VirtualMachine") {
		vm, ok := e.(*simulator.VirtualMachine)
		if !ok {
			continue
		}
		found := false
		s.alone(func() {
			bg.WithLock(vm, func() {
				if found = vm.Name == name; found {
					change(vm)
				}
			})
		})
		if found {
			return nil
		}
	}
	return fmt.Errorf("vsim: no VM %s", name)
}

func (s *Server) path(e mo.Entity) string {
	var parts []string
	for {
		entity := e.Entity()
		parts = append(parts, entity.Name)
		if entity.Parent == nil {
			break
		}
		parent, ok := s.registry().Get(*entity.Parent).(mo.Entity)
		if !ok {
			parts = append(parts, "(orphan)")
			break
		}
		e = parent
	}
	slices.Reverse(parts)
	return "/" + strings.Join(parts[1:], "/")
}

func describeVM(bg *simulator.Context, vm *simulator.VirtualMachine) string {
	var b strings.Builder
	c := vm.Config
	fmt.Fprintf(&b, "power=%s cpus=%d cores=%d mem=%d template=%v uuid=%s note=%q", vm.Runtime.PowerState,
		c.Hardware.NumCPU, deref(c.Hardware.NumCoresPerSocket), c.Hardware.MemoryMB, c.Template, c.InstanceUuid, c.Annotation)
	for _, d := range object.VirtualDeviceList(c.Hardware.Device) {
		switch d := d.(type) {
		case *types.VirtualDisk:
			fmt.Fprintf(&b, " disk=%d", d.CapacityInKB)
		case types.BaseVirtualEthernetCard:
			fmt.Fprintf(&b, " nic=%s", d.GetVirtualEthernetCard().MacAddress)
		}
	}
	var extra []string
	for _, o := range c.ExtraConfig {
		v := o.GetOptionValue()
		extra = append(extra, fmt.Sprintf("%s=%v", v.Key, v.Value))
	}
	slices.Sort(extra)
	fmt.Fprintf(&b, " extra=%q values=%s", extra, describeValues(&vm.ManagedEntity))
	if vm.ResourcePool != nil {
		if p, ok := bg.Map.Get(*vm.ResourcePool).(mo.Entity); ok {
			fmt.Fprintf(&b, " pool=%s", p.Entity().Name)
		}
	}
	return b.String()
}

func describeCluster(bg *simulator.Context, c *simulator.ClusterComputeResource) string {
	config, ok := c.ConfigurationEx.(*types.ClusterConfigInfoEx)
	if !ok {
		return ""
	}
	name := func(refs []types.ManagedObjectReference) string {
		var names []string
		for _, r := range refs {
			if e, ok := bg.Map.Get(r).(mo.Entity); ok {
				names = append(names, e.Entity().Name)
			} else {
				names = append(names, "(gone)")
			}
		}
		slices.Sort(names)
		return strings.Join(names, ",")
	}
	var parts []string
	for _, r := range config.Rule {
		info := r.GetClusterRuleInfo()
		part := fmt.Sprintf("rule=%s mandatory=%v", info.Name, info.Mandatory != nil && *info.Mandatory)
		switch r := r.(type) {
		case *types.ClusterAntiAffinityRuleSpec:
			part += " apart=" + name(r.Vm)
		case *types.ClusterVmHostRuleInfo:
			part += " " + r.VmGroupName + " on " + r.AffineHostGroupName
		}
		parts = append(parts, part)
	}
	for _, g := range config.Group {
		switch g := g.(type) {
		case *types.ClusterVmGroup:
			parts = append(parts, "group="+g.Name+" vms="+name(g.Vm))
		case *types.ClusterHostGroup:
			parts = append(parts, "group="+g.Name+" hosts="+name(g.Host))
		}
	}
	for _, d := range config.DasVmConfig {
		parts = append(parts, "ha="+name([]types.ManagedObjectReference{d.Key}))
	}
	slices.Sort(parts)
	return strings.Join(parts, "; ")
}

func describeValues(e *mo.ManagedEntity) string {
	var parts []string
	for _, v := range e.CustomValue {
		if s, ok := v.(*types.CustomFieldStringValue); ok {
			parts = append(parts, fmt.Sprintf("%d:%s", s.Key, s.Value))
		}
	}
	slices.Sort(parts)
	return "[" + strings.Join(parts, " ") + "]"
}

func deref(n *int32) int32 {
	if n == nil {
		return 0
	}
	return *n
}

// Entity is one object of the inventory.
type Entity struct {
	Ref  types.ManagedObjectReference
	Path string
}

// Entities lists the objects of a kind, such as Folder, sorted by path.
func (s *Server) Entities(kind string) []Entity {
	var list []Entity
	s.alone(func() {
		for _, e := range s.registry().All(kind) {
			list = append(list, Entity{Ref: e.Reference(), Path: s.path(e)})
		}
	})
	slices.SortFunc(list, func(a, b Entity) int { return strings.Compare(a.Path, b.Path) })
	return list
}
