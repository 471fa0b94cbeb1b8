package vsim

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
	"go.yaml.in/yaml/v3"
)

// statusKey is where a guest writes its report.
const statusKey = "guestinfo.clusterctl.status"

// Sickness is what is wrong with a guest.
type Sickness struct {
	Silent         bool   // boots, but without cloud-init and open-vm-tools: no address, no report
	StallAt        string // the phase it never leaves
	FailAt         string // the phase in which it reports failed
	Err            string // what it reports then
	IgnoreShutdown bool   // a polite shutdown does nothing
}

func (s *Server) sick(vm string) Sickness {
	if s.opt.Sick == nil {
		return Sickness{}
	}
	return s.opt.Sick(vm)
}

// phases of a first boot, in the order in which a node reports them.
var phases = []string{"booting", "network", "packages", "config", "services", "ready"}

// guests live in powered-on VMs. They watch the registry for power changes.
type guests struct {
	self   types.ManagedObjectReference
	server *Server

	mu    sync.Mutex                           // guards lives
	lives map[types.ManagedObjectReference]int // grows with every power-on and power-off of a VM
}

func newGuests(s *Server) *guests {
	return &guests{
		self: types.ManagedObjectReference{Type: "VsimGuests", Value: "guests"}, server: s,
		lives: map[types.ManagedObjectReference]int{},
	}
}

// Reference makes guests a handler of the registry.
func (g *guests) Reference() types.ManagedObjectReference { return g.self }

// PutObject is part of simulator.RegisterObject.
func (g *guests) PutObject(*simulator.Context, mo.Reference) {}

// RemoveObject ends the guest of a removed VM.
func (g *guests) RemoveObject(_ *simulator.Context, ref types.ManagedObjectReference) { g.next(ref) }

// UpdateObject runs under the lock of the VM that changes.
func (g *guests) UpdateObject(ctx *simulator.Context, obj mo.Reference, changes []types.PropertyChange) {
	if obj.Reference().Type != "VirtualMachine" {
		return
	}
	i := slices.IndexFunc(changes, func(c types.PropertyChange) bool { return c.Name == "runtime.powerState" })
	if i < 0 {
		return
	}
	vm, ok := ctx.Map.Get(obj.Reference()).(*simulator.VirtualMachine)
	if !ok {
		return
	}
	life := g.next(vm.Self)
	if changes[i].Val == types.VirtualMachinePowerStatePoweredOn {
		g.server.work.Go(func() { g.live(vm, life) })
		return
	}
	if gone := g.server.opt.Gone; gone != nil {
		gone(vm.Name)
	}
	// What tools and rpctool reported is gone with the power.
	tools := string(types.VirtualMachineToolsRunningStatusGuestToolsNotRunning)
	ctx.Update(vm, []types.PropertyChange{
		{Name: "guest.ipAddress", Val: ""}, {Name: "summary.guest.ipAddress", Val: ""},
		{Name: "guest.net", Val: []types.GuestNicInfo{}},
		{Name: "guest.toolsRunningStatus", Val: tools}, {Name: "summary.guest.toolsRunningStatus", Val: tools},
		{Name: "config.extraConfig", Val: without(vm.Config.ExtraConfig, statusKey)},
	})
}

func (g *guests) next(ref types.ManagedObjectReference) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lives[ref]++
	return g.lives[ref]
}

func (g *guests) alive(ref types.ManagedObjectReference, life int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lives[ref] == life
}

// live is one boot of a guest, from power-on to ready.
func (g *guests) live(vm *simulator.VirtualMachine, life int) {
	s := g.server
	if s.sleep(s.opt.Boot) != nil {
		return
	}
	bg := s.background()
	var name string
	var meta metadata
	var userdata bool
	s.alone(func() {
		bg.WithLock(vm, func() {
			name = vm.Name
			meta, userdata = readGuestinfo(vm.Config.ExtraConfig)
		})
	})
	sick := s.sick(name)
	if sick.Silent {
		return
	}
	// The document says who the machine is; without it there is no cloud-init run.
	quick := s.opt.Phase == 0
	for _, phase := range phases {
		last := phase == sick.StallAt || phase == sick.FailAt || phase == "ready"
		if quick && !last {
			continue
		}
		changes := g.network(vm, meta)
		if userdata {
			r := report{Generation: meta.generation, Phase: phase, Percent: percent(phase)}
			if phase == sick.FailAt {
				r.Phase, r.Err = "failed", sick.Err
			}
			if phase == "ready" {
				r.Services = map[string]string{"haproxy": "ok", "bridged": "ok"}
			}
			text, err := json.Marshal(r)
			if err != nil {
				panic(err) // strings and numbers
			}
			changes = append(changes, types.PropertyChange{Name: statusKey, Val: string(text)})
		}
		if !g.update(bg, vm, life, changes) || !userdata {
			return
		}
		if last {
			if ready := s.opt.Ready; ready != nil && phase == "ready" && sick.FailAt != phase {
				ready(g.describe(bg, vm, meta))
			}
			return
		}
		if s.sleep(s.opt.Phase) != nil {
			return
		}
	}
}

func (g *guests) describe(bg *simulator.Context, vm *simulator.VirtualMachine, meta metadata) Guest {
	guest := Guest{Address: meta.address, Extra: map[string]string{}}
	g.server.alone(func() {
		bg.WithLock(vm, func() {
			guest.Name = vm.Name
			for _, o := range vm.Config.ExtraConfig {
				v := o.GetOptionValue()
				guest.Extra[v.Key], _ = v.Value.(string)
			}
		})
	})
	return guest
}

// update applies changes if the guest still runs; a change of statusKey goes
// into extraConfig. Leaf properties wake those who wait for one.
func (g *guests) update(bg *simulator.Context, vm *simulator.VirtualMachine, life int, changes []types.PropertyChange) bool {
	done := false
	g.server.alone(func() { done = g.updateAlone(bg, vm, life, changes) })
	return done
}

func (g *guests) updateAlone(bg *simulator.Context, vm *simulator.VirtualMachine, life int, changes []types.PropertyChange) (done bool) {
	bg.WithLock(vm, func() {
		if !g.alive(vm.Self, life) {
			return
		}
		for i, c := range changes {
			if c.Name == statusKey {
				changes[i] = types.PropertyChange{Name: "config.extraConfig",
					Val: append(without(vm.Config.ExtraConfig, statusKey), &types.OptionValue{Key: statusKey, Value: c.Val})}
			}
		}
		bg.Update(vm, changes)
		done = true
	})
	return done
}

// network is what tools report of the guest's NICs.
func (g *guests) network(vm *simulator.VirtualMachine, meta metadata) []types.PropertyChange {
	address := meta.address
	if !address.IsValid() {
		// DHCP: an address of the VM's own, from its number.
		n, _ := strconv.Atoi(vm.Self.Value[strings.LastIndexByte(vm.Self.Value, '-')+1:])
		address = netip.AddrFrom4([4]byte{10, 254, byte(n >> 8), byte(n)})
	}
	tools := string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
	return []types.PropertyChange{
		{Name: "guest.ipAddress", Val: address.String()}, {Name: "summary.guest.ipAddress", Val: address.String()},
		{Name: "guest.net", Val: []types.GuestNicInfo{{IpAddress: []string{address.String()}, MacAddress: meta.mac, Connected: true}}},
		{Name: "guest.toolsRunningStatus", Val: tools}, {Name: "summary.guest.toolsRunningStatus", Val: tools},
	}
}

// report is the status as a node writes it.
type report struct {
	Generation int               `json:"gen"`
	Phase      string            `json:"phase"`
	Percent    int               `json:"pct,omitempty"`
	Err        string            `json:"err,omitempty"`
	Services   map[string]string `json:"svc,omitempty"`
}

func percent(phase string) int { return 100 * slices.Index(phases, phase) / (len(phases) - 1) }

// metadata is what a guest learns from guestinfo.metadata.
type metadata struct {
	generation int // from the instance-id's -g<n>
	address    netip.Addr
	mac        string
}

// readGuestinfo reads what cloud-init's VMware datasource would. ok says that
// there is a #cloud-config.
func readGuestinfo(extra []types.BaseOptionValue) (m metadata, ok bool) {
	values := map[string]string{}
	for _, o := range extra {
		v := o.GetOptionValue()
		text, _ := v.Value.(string)
		values[v.Key] = text
	}
	decode := func(key string) []byte {
		data, err := decodeGuestinfo(values[key], values[key+".encoding"])
		if err != nil {
			return nil
		}
		return data
	}
	var doc struct {
		InstanceID string    `yaml:"instance-id"`
		Network    yaml.Node `yaml:"network"`
	}
	if err := yaml.Unmarshal(decode("guestinfo.metadata"), &doc); err != nil {
		return m, false
	}
	if i := strings.LastIndex(doc.InstanceID, "-g"); i >= 0 {
		m.generation, _ = strconv.Atoi(doc.InstanceID[i+2:])
	}
	var network struct {
		Config    *yaml.Node `yaml:"config"`
		Ethernets map[string]struct {
			Match struct {
				MACAddress string `yaml:"macaddress"`
			}
			Addresses []string `yaml:"addresses"`
		}
	}
	if doc.Network.Decode(&network) == nil {
		for _, id := range slices.Sorted(maps.Keys(network.Ethernets)) {
			e := network.Ethernets[id]
			if m.mac == "" {
				m.mac = e.Match.MACAddress
			}
			for _, a := range e.Addresses {
				if p, err := netip.ParsePrefix(a); err == nil && !m.address.IsValid() {
					m.address = p.Addr()
				}
			}
		}
	}
	return m, bytes.HasPrefix(decode("guestinfo.userdata"), []byte("#cloud-config"))
}

func decodeGuestinfo(text, encoding string) ([]byte, error) {
	switch encoding {
	case "":
		return []byte(text), nil
	case "base64", "b64":
		return base64.StdEncoding.DecodeString(text)
	case "gzip+base64", "gz+b64":
		data, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return nil, err
		}
		r, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(r)
	}
	return nil, fmt.Errorf("unknown encoding %q", encoding)
}

func without(extra []types.BaseOptionValue, key string) []types.BaseOptionValue {
	return slices.DeleteFunc(slices.Clone(extra), func(o types.BaseOptionValue) bool { return o.GetOptionValue().Key == key })
}
