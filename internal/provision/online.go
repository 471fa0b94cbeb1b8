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

// linkedShare is how much of a linked clone's disks is expected to be written,
// and reserve is what has to stay free on datastores, both in percent.
const (
	linkedShare = 20
	reserve     = 10
)

// capacity: V03, what is to be made fits.
func (k *onlineCheck) capacity() {
	f := &k.have.Facts
	var newMiB, diskMiB, largestMiB int64
	exists := map[string]bool{}
	for i := range k.have.Machines {
		exists[k.have.Machines[i].Marks.Node] = true
	}
	nodes := 0
	linked := k.want.Cluster.Spec.Image.Clone != CloneFull && f.Image.Snapshot != ""
	for _, n := range k.want.Nodes {
		if exists[n.Name] {
			continue
		}
		nodes++
		newMiB += n.MemoryMiB
		largestMiB = max(largestMiB, n.MemoryMiB)
		root := max(n.RootMiB, f.Image.RootMiB)
		if linked {
			root = root * linkedShare / 100
		}
		diskMiB += root
		for _, d := range n.Disks {
			diskMiB += d.SizeMiB
		}
	}
	if nodes == 0 {
		return
	}
	var freeMiB, totalMiB, biggestMiB int64
	for _, h := range f.Hosts {
		if h.Usable {
			freeMiB += max(0, h.MemoryMiB-h.UsedMiB)
			totalMiB += h.MemoryMiB
			biggestMiB = max(biggestMiB, h.MemoryMiB)
		}
	}
	if totalMiB > 0 && largestMiB > biggestMiB {
		k.bad("V03", "spec.groups", fmt.Sprintf("a node needs %s of memory, and the largest host has %s", Bytes(largestMiB)*MiB, Bytes(biggestMiB)*MiB), "make the nodes smaller")
	} else if totalMiB > 0 && newMiB > freeMiB {
		k.bad("V03", "spec.groups", fmt.Sprintf("%d new nodes need %s of memory, and %s is free", nodes, Bytes(newMiB)*MiB, Bytes(freeMiB)*MiB), "make fewer or smaller nodes, or add hosts")
	}
	var spaceMiB int64
	for _, d := range f.Datastores {
		if d.Usable {
			spaceMiB += max(0, d.FreeMiB-d.CapacityMiB*reserve/100)
		}
	}
	if len(f.Datastores) > 0 && diskMiB > spaceMiB {
		k.bad("V03", "spec.provider.vsphere.datastores", fmt.Sprintf("%d new nodes need %s of disk, and %s is free besides a reserve of %d%%", nodes, Bytes(diskMiB)*MiB, Bytes(spaceMiB)*MiB, reserve),
			"add datastores, or make disks smaller")
	}
}

// conflicts: V04, names, MACs and addresses are free.
func (k *onlineCheck) conflicts() {
	for _, f := range k.have.Foreign {
		if f.Blocks != "" {
			k.bad("V04", "metadata.name", fmt.Sprintf("%s %s %s %s", f.Kind, or(f.Path, f.Name), f.Why, f.Blocks), "it is not ours and is left alone: rename or remove it, or change the blueprint")
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
