package vsphere

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"bridged/internal/provision"
)

// online adds what only validation against the vCenter asks for: rights, and
// VMs of others that use a name, address or MAC of ours. Two calls.
func (p *Provider) online(ctx context.Context, pl *place, c *cluster, inv *provision.Inventory) error {
	if pl.datacenter.Value == "" {
		return nil
	}
	if err := p.denied(ctx, pl, inv); err != nil {
		return err
	}
	return p.neighbours(ctx, pl, c, inv)
}

// privileges that a run may need, by what they are needed on.
func (p *Provider) privileges(pl *place) map[ref][]string {
	need := map[ref][]string{
		pl.parent: {"Folder.Create", "Folder.Delete", "Folder.Rename", "VirtualMachine.Inventory.CreateFromExisting", "VirtualMachine.Inventory.Delete",
			"VirtualMachine.Interact.PowerOn", "VirtualMachine.Interact.PowerOff",
			"VirtualMachine.Config.CPUCount", "VirtualMachine.Config.Memory", "VirtualMachine.Config.AdvancedConfig",
			"VirtualMachine.Config.AddNewDisk", "VirtualMachine.Config.DiskExtend", "VirtualMachine.Config.EditDevice",
			"VirtualMachine.Config.Resource", "VirtualMachine.Config.Settings"},
		pl.image: {"VirtualMachine.Provisioning.DeployTemplate"},
		pl.pool:  {"Resource.AssignVMToPool"},
	}
	if p.spec.CreatePool {
		need[pl.pool] = append(need[pl.pool], "Resource.CreatePool", "Resource.DeletePool")
	}
	for _, d := range pl.datastores {
		need[d.ref] = []string{"Datastore.AllocateSpace"}
	}
	for _, n := range pl.networks {
		need[n.ref] = []string{"Network.Assign"}
	}
	for _, o := range pl.computes {
		if o.cluster {
			need[o.ref] = []string{"Host.Inventory.EditCluster"}
		}
	}
	delete(need, ref{})
	return need
}

func (p *Provider) denied(ctx context.Context, pl *place, inv *provision.Inventory) error {
	manager := p.client.ServiceContent.AuthorizationManager
	if manager == nil {
		return nil
	}
	need := p.privileges(pl)
	req := types.HasPrivilegeOnEntities{This: *manager, SessionId: p.session.sessionKey()}
	for o, list := range need {
		req.Entity = append(req.Entity, o)
		req.PrivId = append(req.PrivId, list...)
	}
	slices.SortFunc(req.Entity, func(a, b ref) int { return strings.Compare(a.String(), b.String()) })
	slices.Sort(req.PrivId)
	req.PrivId = slices.Compact(req.PrivId)
	res, err := methods.HasPrivilegeOnEntities(ctx, p.client, &req)
	if err != nil {
		return fmt.Errorf("read the user's privileges: %w", err)
	}
	names := map[ref]string{pl.parent: pl.parentPath, pl.image: pl.imagePath, pl.pool: pl.poolPath}
	for _, d := range pl.datastores {
		names[d.ref] = d.facts.Name
	}
	for name, n := range pl.networks {
		names[n.ref] = name
	}
	for _, o := range pl.computes {
		names[o.ref] = o.name
	}
	for _, e := range res.Returnval {
		for _, a := range e.PrivAvailability {
			if !a.IsGranted && slices.Contains(need[e.Entity], a.PrivId) {
				inv.Facts.Denied = append(inv.Facts.Denied, provision.Denied{Object: names[e.Entity], Privilege: a.PrivId})
			}
		}
	}
	slices.SortFunc(inv.Facts.Denied, func(a, b provision.Denied) int {
		return strings.Compare(a.Object+a.Privilege, b.Object+b.Privilege)
	})
	return nil
}

// neighbours looks at the other VMs on the cluster's networks. Whose address a
// blueprint wants is not known here: every address in its CIDR and every MAC
// with its prefix is reported with the VM that uses it, and the planner, which
// knows the nodes, says which of them blocks one.
func (p *Provider) neighbours(ctx context.Context, pl *place, c *cluster, inv *provision.Inventory) error {
	spec := types.PropertyFilterSpec{PropSet: []types.PropertySpec{{
		Type: "VirtualMachine", PathSet: []string{"name", "guest.ipAddress", "guest.net"},
	}}}
	skip := true
	for _, n := range pl.networks {
		spec.ObjectSet = append(spec.ObjectSet, types.ObjectSpec{Obj: n.ref, Skip: &skip, SelectSet: []types.BaseSelectionSpec{step("", "Network", "vm")}})
	}
	if len(spec.ObjectSet) == 0 {
		return nil
	}
	list, err := p.retrieve(ctx, spec)
	if err != nil {
		return fmt.Errorf("read the other VMs on the cluster's networks: %w", err)
	}
	cidr := p.cluster.Spec.Network.CIDR
	for i := range list {
		o := &list[i]
		if _, ours := c.name[o.ref]; ours {
			continue
		}
		n := provision.Neighbour{Name: unescape(o.str("name"))}
		for _, a := range addresses(o) {
			if cidr.IsValid() && cidr.Contains(a) {
				n.Addresses = append(n.Addresses, a)
			}
		}
		if nics, ok := o.props["guest.net"].(types.ArrayOfGuestNicInfo); ok {
			for _, nic := range nics.GuestNicInfo {
				if nic.MacAddress != "" {
					n.MACs = append(n.MACs, strings.ToLower(nic.MacAddress))
				}
			}
		}
		if len(n.Addresses)+len(n.MACs) > 0 {
			inv.Facts.Neighbours = append(inv.Facts.Neighbours, n)
		}
	}
	slices.SortFunc(inv.Facts.Neighbours, func(a, b provision.Neighbour) int { return strings.Compare(a.Name, b.Name) })
	return nil
}
