package vsphere

import (
	"context"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// object is one managed object as the property collector returned it.
type object struct {
	ref   types.ManagedObjectReference
	props map[string]types.AnyType
}

func (o *object) str(name string) string {
	s, _ := o.props[name].(string)
	return s
}

func (o *object) int(name string) int64 {
	switch n := o.props[name].(type) {
	case int32:
		return int64(n)
	case int64:
		return n
	case int16:
		return int64(n)
	}
	return 0
}

func (o *object) bool(name string) bool {
	b, _ := o.props[name].(bool)
	return b
}

// ref1 is a property that is one reference; ok is false when it is not set.
func (o *object) ref1(name string) (types.ManagedObjectReference, bool) {
	r, ok := o.props[name].(types.ManagedObjectReference)
	return r, ok
}

func (o *object) refs(name string) []types.ManagedObjectReference {
	switch a := o.props[name].(type) {
	case types.ArrayOfManagedObjectReference:
		return a.ManagedObjectReference
	case []types.ManagedObjectReference:
		return a
	}
	return nil
}

// extra is an extraConfig entry read by its key.
func (o *object) extra(key string) string {
	switch v := o.props[extraPath(key)].(type) {
	case types.OptionValue:
		s, _ := v.Value.(string)
		return s
	case *types.OptionValue:
		s, _ := v.Value.(string)
		return s
	}
	if list, ok := o.props["config.extraConfig"].(types.ArrayOfOptionValue); ok {
		for _, e := range list.OptionValue {
			if v := e.GetOptionValue(); v.Key == key {
				s, _ := v.Value.(string)
				return s
			}
		}
	}
	return ""
}

func extraPath(key string) string { return `config.extraConfig["` + key + `"]` }

// retrieve reads properties in one call, plus one per further page. Objects
// that are gone are left out; what the user may not read is there without it.
func (p *Provider) retrieve(ctx context.Context, specs ...types.PropertyFilterSpec) ([]object, error) {
	yes := true
	for i := range specs {
		specs[i].ReportMissingObjectsInResults = &yes
	}
	collector := p.client.ServiceContent.PropertyCollector
	res, err := methods.RetrievePropertiesEx(ctx, p.client, &types.RetrievePropertiesEx{This: collector, SpecSet: specs})
	if err != nil {
		return nil, err
	}
	var list []object
	for page := res.Returnval; page != nil; {
		for _, content := range page.Objects {
			o := object{ref: content.Obj, props: make(map[string]types.AnyType, len(content.PropSet))}
			for _, prop := range content.PropSet {
				o.props[prop.Name] = prop.Val
			}
			list = append(list, o)
		}
		if page.Token == "" {
			break
		}
		next, err := methods.ContinueRetrievePropertiesEx(ctx, p.client, &types.ContinueRetrievePropertiesEx{This: collector, Token: page.Token})
		if err != nil {
			return nil, err
		}
		page = &next.Returnval
	}
	return list, nil
}

// read is retrieve of the same properties of some objects of one type.
func (p *Provider) read(ctx context.Context, refs []types.ManagedObjectReference, kind string, paths ...string) (map[types.ManagedObjectReference]*object, error) {
	if len(refs) == 0 {
		return nil, nil
	}
	spec := types.PropertyFilterSpec{PropSet: []types.PropertySpec{{Type: kind, PathSet: paths}}}
	for _, r := range refs {
		spec.ObjectSet = append(spec.ObjectSet, types.ObjectSpec{Obj: r})
	}
	list, err := p.retrieve(ctx, spec)
	if err != nil {
		return nil, err
	}
	found := make(map[types.ManagedObjectReference]*object, len(list))
	for i := range list {
		found[list[i].ref] = &list[i]
	}
	return found, nil
}

// step follows a property from objects of a type to others, whose own steps
// are given by name.
func step(name, kind, path string, then ...string) *types.TraversalSpec {
	t := &types.TraversalSpec{SelectionSpec: types.SelectionSpec{Name: name}, Type: kind, Path: path}
	for _, n := range then {
		t.SelectSet = append(t.SelectSet, &types.SelectionSpec{Name: n})
	}
	return t
}
