package vsphere

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/pbm"
	"github.com/vmware/govmomi/vapi/tags"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"bridged/internal/provision"
)

// Decoration is what vSphere's users see of a cluster besides its VMs: tags for
// metadata.labels, and custom attributes. Nothing of clusterctl depends on it;
// it takes calls of its own and rights that many users lack. So it is off unless
// the blueprint asks for it, and its failure is a warning.

// tagCategory holds the tags of all clusters; a tag is named key=value.
const tagCategory = "clusterctl"

// decorate marks the VMs that the stage made.
func (a *applying) decorate(ctx context.Context) {
	if ctx.Err() != nil || !a.p.spec.Tags && !a.p.spec.Attributes {
		return
	}
	made := map[string]ref{}
	for i := range a.stage.Steps {
		s := &a.stage.Steps[i]
		if s.Kind != provision.StepCreate || a.errs[i] != nil {
			continue
		}
		if vm, ok := a.p.noted(s.Node); ok {
			made[s.Node] = vm
		}
	}
	if len(made) == 0 {
		return
	}
	if a.p.spec.Attributes {
		if err := a.p.setAttributes(ctx, made); err != nil {
			a.p.log.Warn("set custom attributes", "err", err)
		}
	}
	if labels := a.p.cluster.Metadata.Labels; a.p.spec.Tags && len(labels) > 0 {
		if err := a.p.attachTags(ctx, labels, slices.Collect(maps.Values(made))); err != nil {
			a.p.log.Warn("attach tags", "err", err)
		}
	}
}

// setAttributes makes the two attributes if need be and sets them, two calls a VM.
func (p *Provider) setAttributes(ctx context.Context, vms map[string]ref) error {
	manager := p.client.ServiceContent.CustomFieldsManager
	if manager == nil {
		return errors.New("this vCenter has no custom attributes")
	}
	found, err := p.read(ctx, []ref{*manager}, manager.Type, "field")
	if err != nil {
		return err
	}
	keys := map[string]int32{}
	if o := found[*manager]; o != nil {
		if fields, ok := o.props["field"].(types.ArrayOfCustomFieldDef); ok {
			for _, f := range fields.CustomFieldDef {
				if f.ManagedObjectType == "" || f.ManagedObjectType == "VirtualMachine" {
					keys[f.Name] = f.Key
				}
			}
		}
	}
	for _, name := range []string{provision.MarkCluster, provision.MarkNode} {
		if _, ok := keys[name]; ok {
			continue
		}
		res, err := methods.AddCustomFieldDef(ctx, p.client, &types.AddCustomFieldDef{This: *manager, Name: name, MoType: "VirtualMachine"})
		if err != nil {
			return fmt.Errorf("define %s: %w", name, err)
		}
		keys[name] = res.Returnval.Key
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(vms)) {
		for key, value := range map[int32]string{keys[provision.MarkCluster]: p.cluster.Metadata.Name, keys[provision.MarkNode]: name} {
			if _, err := methods.SetField(ctx, p.client, &types.SetField{This: *manager, Entity: vms[name], Key: key, Value: value}); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// attachTags makes category and tags if need be and attaches them, one call a tag.
func (p *Provider) attachTags(ctx context.Context, labels map[string]string, vms []ref) error {
	c, err := p.restClient(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Logout(context.WithoutCancel(ctx)) }()
	m := tags.NewManager(c)
	have, err := m.GetCategory(ctx, tagCategory)
	if err != nil {
		id, err := m.CreateCategory(ctx, &tags.Category{
			Name: tagCategory, Description: "labels of clusters made by clusterctl",
			Cardinality: "MULTIPLE", AssociableTypes: []string{"VirtualMachine"},
		})
		if err != nil {
			return fmt.Errorf("make the tag category %s: %w", tagCategory, err)
		}
		have = &tags.Category{ID: id}
	}
	known, err := m.GetTagsForCategory(ctx, have.ID)
	if err != nil {
		return fmt.Errorf("read the tags of %s: %w", tagCategory, err)
	}
	refs := make([]mo.Reference, len(vms))
	for i, vm := range vms {
		refs[i] = vm
	}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		name := key + "=" + labels[key]
		id := ""
		for _, t := range known {
			if t.Name == name {
				id = t.ID
			}
		}
		if id == "" {
			if id, err = m.CreateTag(ctx, &tags.Tag{Name: name, CategoryID: have.ID}); err != nil {
				return fmt.Errorf("make the tag %s: %w", name, err)
			}
		}
		if err := m.AttachTagToMultipleObjects(ctx, id, refs); err != nil {
			return fmt.Errorf("attach the tag %s: %w", name, err)
		}
	}
	return nil
}

// removeTags removes the cluster's tags that no living VM has any more, and the
// category with the last of them.
func (p *Provider) removeTags(ctx context.Context) error {
	labels := p.cluster.Metadata.Labels
	if !p.spec.Tags || len(labels) == 0 {
		return nil
	}
	c, err := p.restClient(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Logout(context.WithoutCancel(ctx)) }()
	m := tags.NewManager(c)
	category, err := m.GetCategory(ctx, tagCategory)
	if err != nil {
		return nil // there are none
	}
	known, err := m.GetTagsForCategory(ctx, category.ID)
	if err != nil {
		return fmt.Errorf("read the tags of %s: %w", tagCategory, err)
	}
	left := len(known)
	for i := range known {
		t := &known[i]
		if !slices.ContainsFunc(slices.Collect(maps.Keys(labels)), func(k string) bool { return k+"="+labels[k] == t.Name }) {
			continue
		}
		attached, err := m.ListAttachedObjects(ctx, t.ID)
		if err != nil {
			return fmt.Errorf("read what has the tag %s: %w", t.Name, err)
		}
		var vms []ref
		for _, o := range attached {
			vms = append(vms, o.Reference())
		}
		alive, err := p.read(ctx, vms, "VirtualMachine", "name")
		if err != nil {
			return err
		}
		if len(alive) > 0 {
			continue
		}
		if err := m.DeleteTag(ctx, t); err != nil {
			return fmt.Errorf("remove the tag %s: %w", t.Name, err)
		}
		left--
	}
	if left == 0 {
		if err := m.DeleteCategory(ctx, category); err != nil {
			return fmt.Errorf("remove the tag category %s: %w", tagCategory, err)
		}
	}
	return nil
}

// findPolicy turns the storage policy's name into its ID. Policies live behind
// an endpoint of their own.
func (p *Provider) findPolicy(ctx context.Context, pl *place) error {
	name := p.spec.StoragePolicy
	if name == "" {
		return nil
	}
	client, err := pbm.NewClient(ctx, p.client)
	if err != nil {
		return fmt.Errorf("connect to the storage policy service: %w", err)
	}
	profiles, err := client.ProfileMap(ctx)
	if fault.Is(err, &types.NoPermission{}) {
		err = fmt.Errorf("%w; the privilege is StorageProfile.View", err)
	}
	if err != nil {
		return fmt.Errorf("read the storage policies: %w", err)
	}
	if policy, ok := profiles.Name[name]; ok {
		pl.policy = policy.GetPbmProfile().ProfileId.UniqueId
		return nil
	}
	known := slices.Sorted(maps.Keys(profiles.Name))
	pl.missing = append(pl.missing, provision.Missing{Path: specPath + "storagePolicy", Kind: "storage policy", Name: name, Known: known[:min(len(known), 20)]})
	return nil
}
