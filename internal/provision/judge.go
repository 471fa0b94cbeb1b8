package provision

import (
	"fmt"
	"slices"
	"strings"
)

// verdict is what has to happen to one wanted node.
type verdict struct {
	node    *Node    // with the generation it will have
	machine *Machine // nil: there is none
	action  Action   // "": nothing
	why     []string
	start   bool // it is off and has to be powered on
	drain   bool // tasks may run on it
}

func (v *verdict) because(action Action, format string, args ...any) {
	if rank(action) > rank(v.action) {
		v.action = action
	}
	v.why = append(v.why, fmt.Sprintf(format, args...))
}

// rank orders actions by how much they disturb.
func rank(a Action) int {
	return slices.Index([]Action{"", ActionRepair, ActionChange, ActionRestart, ActionReplace, ActionCreate}, a)
}

// judge compares one wanted node with the machine that has its identity.
func judge(want *Want, n *Node, m *Machine, forced bool) verdict {
	v := verdict{machine: m}
	if m == nil {
		v.node = n
		v.because(ActionCreate, "it does not exist")
		return v
	}
	v.drain = n.Has(RoleSlave) && m.Power == PoweredOn && m.Report.Phase != PhaseFailed
	if forced {
		v.because(ActionReplace, "asked for")
	}
	if m.Report.Phase == PhaseFailed {
		where := ""
		if m.Report.Step != "" {
			where = " at " + m.Report.Step
		}
		v.because(ActionReplace, "its first boot failed%s: %s", where, or(m.Report.Err, "no reason given"))
	}
	fresh := v.guest(want, n, m)
	v.hardware(n, m)
	if v.action != ActionReplace {
		v.repairs(n, m)
	}
	v.node = n.at(max(1, m.Marks.Generation))
	if v.action == ActionReplace || fresh {
		v.node = n.at(max(1, m.Marks.Generation) + 1)
	}
	return v
}

// at is a copy of the node with a generation.
func (n *Node) at(generation int) *Node {
	c := *n
	c.Generation = generation
	return &c
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// softKeys are the parts of a spec that a second first boot can change on a
// machine that stays.
var softKeys = []string{"distro", "guest", "zookeeper", "masters", "marathons"}

// guest judges what can't be seen on the machine itself, by its marks. It
// reports whether first boot has to run again on the same machine.
func (v *verdict) guest(want *Want, n *Node, m *Machine) bool {
	if m.Marks.Hash == n.Hash {
		return false
	}
	action := ActionReplace
	var changed []string
	for key := range n.Spec {
		changed = append(changed, key)
	}
	for key := range m.Marks.Spec {
		changed = append(changed, key)
	}
	slices.Sort(changed)
	changed = slices.DeleteFunc(slices.Compact(changed), func(key string) bool { return m.Marks.Spec[key] == n.Spec[key] })
	hard := slices.ContainsFunc(changed, func(key string) bool { return !slices.Contains(softKeys, key) })
	if g := want.group(n.Group); g != nil && g.Strategy.Type == "inPlace" && !hard && len(changed) > 0 {
		action = ActionRestart
	}
	before := len(v.why)
	for _, key := range changed {
		if key != "guest" {
			v.because(action, "%s %s → %s", key, or(m.Marks.Spec[key], "none"), or(n.Spec[key], "none"))
		}
	}
	if len(v.why) == before {
		v.because(action, "its guest files changed")
	}
	return action == ActionRestart
}

func (w *Want) group(name string) *Group {
	for i := range w.Cluster.Spec.Groups {
		if g := &w.Cluster.Spec.Groups[i]; g.Name == name {
			return g
		}
	}
	return nil
}

// hardware judges CPUs, memory, reservations and disks.
func (v *verdict) hardware(n *Node, m *Machine) {
	resize := func(grows, hot bool) Action {
		if m.Power != PoweredOn || grows && hot {
			return ActionChange
		}
		return ActionRestart
	}
	if m.CPUs != n.CPUs {
		v.because(resize(n.CPUs > m.CPUs, m.HotAddCPU), "CPUs %d → %d", m.CPUs, n.CPUs)
	}
	if n.CoresPerSocket > 0 && m.CoresPerSocket != n.CoresPerSocket {
		v.because(resize(false, false), "cores per socket %d → %d", m.CoresPerSocket, n.CoresPerSocket)
	}
	if m.MemoryMiB != n.MemoryMiB {
		v.because(resize(n.MemoryMiB > m.MemoryMiB, m.HotAddMemory), "memory %s → %s", Bytes(m.MemoryMiB)*MiB, Bytes(n.MemoryMiB)*MiB)
	}
	if n.ReservedMHz > 0 && m.ReservedMHz != n.ReservedMHz {
		v.because(ActionChange, "CPU reservation %dMHz → %dMHz", m.ReservedMHz, n.ReservedMHz)
	}
	if n.ReservedMiB > 0 && m.ReservedMiB != n.ReservedMiB {
		v.because(ActionChange, "memory reservation %dMiB → %dMiB", m.ReservedMiB, n.ReservedMiB)
	}
	// Data disks come after the image's; a disk attached by hand comes last.
	own := len(m.Disks) - len(n.Disks)
	if own < 1 {
		if len(m.Disks) > 0 || len(n.Disks) > 0 {
			v.because(ActionReplace, "it has %d disks and needs the image's and %d more", len(m.Disks), len(n.Disks))
		}
		return
	}
	first := max(1, min(own, m.ImageDisks))
	for i, d := range n.Disks {
		switch have := m.Disks[first+i].SizeMiB; {
		case d.SizeMiB > have:
			// The guest grows the file system when it mounts it.
			v.because(ActionRestart, "disk %s %s → %s", d.Name, Bytes(have)*MiB, Bytes(d.SizeMiB)*MiB)
		case d.SizeMiB < have:
			v.because(ActionReplace, "disk %s %s → %s, and disks can't shrink", d.Name, Bytes(have)*MiB, Bytes(d.SizeMiB)*MiB)
		}
	}
}

// repairs judges what somebody changed by hand.
func (v *verdict) repairs(n *Node, m *Machine) {
	if m.Name != n.Name {
		v.because(ActionRepair, "it was renamed to %s", m.Name)
	}
	if len(m.NICs) > 0 {
		nic := m.NICs[0]
		if nic.Network != "" && nic.Network != n.NICs[0].Network {
			v.because(ActionRepair, "its network is %s, not %s", nic.Network, n.NICs[0].Network)
		}
		if nic.MAC != "" && nic.MAC != n.NICs[0].MAC {
			v.because(ActionRestart, "its MAC is %s, not %s", nic.MAC, n.NICs[0].MAC)
		}
	} else {
		v.because(ActionRestart, "its network card is gone")
	}
	if m.Power != PoweredOn {
		v.start = true
		v.because(ActionRepair, "it is %s", map[Power]string{Suspended: "suspended"}[m.Power]+map[Power]string{PoweredOff: "powered off"}[m.Power])
	}
}

// describe is a node's line in a plan.
func (n *Node) describe() string {
	parts := []string{fmt.Sprintf("%d CPU", n.CPUs), (Bytes(n.MemoryMiB) * MiB).String()}
	for _, d := range n.Disks {
		parts = append(parts, fmt.Sprintf("%s %s", (Bytes(d.SizeMiB)*MiB), d.Mount))
	}
	if a := n.Address(); a.IsValid() {
		parts = append(parts, a.String())
	} else {
		parts = append(parts, "dhcp")
	}
	roles := make([]string, len(n.Roles))
	for i, r := range n.Roles {
		roles[i] = string(r)
	}
	return strings.Join(append(parts, strings.Join(roles, " ")), ", ")
}
