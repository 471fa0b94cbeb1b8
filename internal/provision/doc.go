// Package provision makes a vSphere inventory match a Cluster.
//
// A Cluster is one YAML file, the blueprint. The package reads it strictly
// (Load), names everything that is wrong with it at once (Validate), works out
// which machines it asks for (Expand), compares them with what exists (Diff)
// and runs the difference through a Provider (Run):
//
//	blueprint ─Load─► Cluster ─Expand─► Want ─┐
//	                                          ├─Diff─► Plan ─Run─► Provider.Apply
//	provider ──Inventory──────────────────────┘
//
// Everything up to the Plan is pure: no I/O, no clock, no goroutine that
// outlives a call. Equal inputs give equal bytes, because the hash of what was
// asked is what says later whether a machine is still right.
//
// # State
//
// There is no state file. A machine carries its marks (cluster, node,
// generation, what was asked) in the hypervisor, set by the same call that
// creates it; names, addresses, MAC addresses and instance UUIDs are derived
// from the blueprint. A run that was killed at any call is finished by the next
// one: Diff sees what is there and plans what is missing.
//
// # Order
//
// A Plan is a list of stages, one after the other; a stage is a list of steps
// that may run at once, except that steps of one node keep their order. Nodes
// that hold a quorum (ZooKeeper, Mesos master) are changed one at a time, each
// behind a gate, and never while another of them is missing.
//
// # Secrets
//
// A blueprint names secrets by reference and never holds them. References are
// resolved when a value is used, which is while guest files for a new machine
// are rendered for Apply and nowhere else; the hash of the guest files is taken
// over a rendering with placeholders, so that neither plan nor marks depend on
// a secret's value.
package provision
