package provision

import (
	"fmt"
	"slices"
	"strings"
)

// CheckOnline judges what a provider found against what is wanted: rules V01 to
// V06. Machines that exist already need nothing more. It expects an Inventory
// read with ScopeOnline, and does what it can with less.
func CheckOnline(have *Inventory, want *Want) Problems {
	k := &onlineCheck{have: have, want: want}
	k.names()
	k.hosts()
	k.capacity()
	k.conflicts()
	k.image()
	return k.problems.sorted()
}

type onlineCheck struct {
	have     *Inventory
	want     *Want
	problems Problems
}

func (k *onlineCheck) bad(code, at, what, remedy string) {
	src := &k.want.Cluster.source
	k.problems = append(k.problems, Problem{Code: code, Path: at, Pos: src.position(at), What: what, Remedy: remedy, file: src.file})
}

// names: V01, every name has one object, and the session may do what it must.
func (k *onlineCheck) names() {
	for _, m := range k.have.Facts.Missing {
		if len(m.Matches) > 1 {
			k.bad("V01", m.Path, fmt.Sprintf("%s %q matches %d: %s", m.Kind, m.Name, len(m.Matches), some(m.Matches)), "write the full path of one")
			continue
		}
		remedy := "make it, or correct the name"
		if len(m.Known) > 0 {
			remedy = didYouMean(m.Name, m.Known)
		}
		k.bad("V01", m.Path, fmt.Sprintf("there is no %s %q", m.Kind, m.Name), remedy)
	}
	for _, d := range k.have.Facts.Denied {
		k.bad("V01", "spec.provider.vsphere", fmt.Sprintf("the user lacks %s on %s", d.Privilege, d.Object), "have the privilege granted there, with propagation")
	}
}

func some(names []string) string {
	if len(names) > 6 {
		return strings.Join(names[:6], ", ") + ", …"
	}
	return strings.Join(names, ", ")
}

// hosts: V02, required anti-affinity finds enough hosts that may be used.
func (k *onlineCheck) hosts() {
	usable := map[string]bool{}
	for _, h := range k.have.Facts.Hosts {
		if h.Usable {
			usable[h.Name] = true
		}
	}
	if len(k.have.Facts.Hosts) == 0 {
		return
	}
	for i := range k.want.Cluster.Spec.Groups {
		g := &k.want.Cluster.Spec.Groups[i]
		if g.Placement.AntiAffinity != "required" {
			continue
		}
		n := len(usable)
		if len(g.Placement.Hosts) > 0 {
			n = 0
			for _, h := range g.Placement.Hosts {
				if usable[h] {
					n++
				}
			}
		}
		if n < g.Count {
			k.bad("V02", fmt.Sprintf("spec.groups[%d].placement.antiAffinity", i), fmt.Sprintf("%d nodes need as many hosts, and %d of %d are connected and not in maintenance", g.Count, n, len(k.have.Facts.Hosts)),
				"bring hosts back, or write antiAffinity: preferred")
		}
	}
}

// writtenShare is how much of a disk is taken to be written sooner or later at
// the least, and freeShare is what has to stay free on datastores, both in percent.
const (
	writtenShare = 20
	freeShare    = 10
)

// capacity: V03, what is to be made fits. Memory and thin disks may be promised
// more than once, so a promise too many is a warning; what is certainly needed
// and not there is refused.
func (k *onlineCheck) capacity() {
	f := &k.have.Facts
	exists := map[string]bool{}
	for i := range k.have.Machines {
		exists[k.have.Machines[i].Marks.Node] = true
	}
	var nodes int
	var memory, reserved, disks, written int64 // MiB
	for _, n := range k.want.Nodes {
		if exists[n.Name] {
			continue
		}
		nodes++
		memory += n.MemoryMiB
		reserved += n.ReservedMiB
		size := max(n.RootMiB, f.Image.RootMiB)
		for _, d := range n.Disks {
			size += d.SizeMiB
		}
		disks += size
		written += size * writtenShare / 100
	}
	if nodes == 0 {
		return
	}
	var freeMemory, space int64
	for _, h := range f.Hosts {
		if h.Usable {
			freeMemory += max(0, h.MemoryMiB-h.UsedMiB)
		}
	}
	for _, d := range f.Datastores {
		if d.Usable {
			space += max(0, d.FreeMiB-d.CapacityMiB*freeShare/100)
		}
	}
	if len(f.Hosts) > 0 {
		const remedy = "make fewer or smaller nodes, or add hosts"
		if reserved > freeMemory {
			k.bad("V03", "spec.groups", fmt.Sprintf("%d new nodes reserve %s of memory, and %s is free", nodes, Bytes(reserved)*MiB, Bytes(freeMemory)*MiB), remedy)
		} else if memory > freeMemory {
			k.bad("W08", "spec.groups", fmt.Sprintf("%d new nodes have %s of memory, and %s is free", nodes, Bytes(memory)*MiB, Bytes(freeMemory)*MiB), remedy)
		}
	}
	if len(f.Datastores) > 0 {
		const at, remedy = "spec.provider.vsphere.datastores", "add datastores, or make disks smaller"
		if written > space {
			k.bad("V03", at, fmt.Sprintf("%d new nodes need at least %s of disk, and %s is free besides a reserve of %d%%", nodes, Bytes(written)*MiB, Bytes(space)*MiB, freeShare), remedy)
		} else if disks > space {
			k.bad("W08", at, fmt.Sprintf("disks of %d new nodes may grow to %s, and %s is free besides a reserve of %d%%", nodes, Bytes(disks)*MiB, Bytes(space)*MiB, freeShare), remedy)
		}
	}
}

// conflicts: V04, names, MACs and addresses are free.
func (k *onlineCheck) conflicts() {
	for _, f := range k.have.Foreign {
		if f.Blocks != "" {
			k.bad("V04", "metadata.name", fmt.Sprintf("%s %s %s %s", f.Kind, or(f.Path, f.Name), f.Why, f.Blocks), "it is not ours and is left alone: rename or remove it, or change the blueprint")
		}
	}
	node := map[string]string{}
	for _, n := range k.want.Nodes {
		for _, nic := range n.NICs {
			node[nic.MAC] = n.Name
			if nic.Address.IsValid() {
				node[nic.Address.Addr().String()] = n.Name
			}
		}
	}
	for _, other := range k.have.Facts.Neighbours {
		used := slices.Clone(other.MACs)
		for _, a := range other.Addresses {
			used = append(used, a.String())
		}
		for _, u := range used {
			if n, taken := node[u]; taken {
				k.bad("V04", "spec.network", fmt.Sprintf("vm %s uses %s, which %s is to get", other.Name, u, n), "choose other ranges, or move that VM")
			}
		}
	}
	if l := k.have.Lease; l != nil {
		k.bad("W06", "metadata.name", "the cluster's lease is held by "+l.Who, "another run is at work")
	}
}

// image: V06, the image is fit for cloud-init.
func (k *onlineCheck) image() {
	m, spec := &k.have.Facts.Image, &k.want.Cluster.Spec.Image
	at := "spec.image.template"
	if !m.Found || slices.ContainsFunc(k.have.Facts.Missing, func(x Missing) bool { return x.Path == at }) {
		return
	}
	if !m.Marked {
		k.bad("W07", at, fmt.Sprintf("%s does not say that it has cloud-init and open-vm-tools", m.Name), "check it, then set the attribute clusterctl.image on it")
	}
	if spec.Clone == CloneLinked && m.Snapshot == "" {
		k.bad("V06", at, fmt.Sprintf("%s has no snapshot to link clones to", m.Name), "take one, or write clone: auto")
	}
	if spec.Clone == CloneInstant && !m.Instant {
		k.bad("V06", at, fmt.Sprintf("%s is not a running VM that can be cloned instantly", m.Name), "power it on and freeze it, or write clone: auto")
	}
	if m.Disks > 0 && m.NICs == 0 {
		k.bad("V06", at, m.Name+" has no network card", "add one; nodes take its place in the device list")
	}
	for i := range k.want.Cluster.Spec.Groups {
		if root := k.want.Cluster.Spec.Groups[i].Disks.Root; root > 0 && root.MiB() < m.RootMiB {
			k.bad("E14", fmt.Sprintf("spec.groups[%d].disks.root", i), fmt.Sprintf("%s is smaller than the image's %s", root, Bytes(m.RootMiB)*MiB), "leave it out, or give at least that")
		}
	}
}
