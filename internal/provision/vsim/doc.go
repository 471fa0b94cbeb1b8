// Package vsim is a vCenter for tests and for the demo: govmomi's simulator
// behind TLS, made stricter and livelier than it comes.
//
// What it adds:
//
//   - Guests. A VM that is powered on boots, reads its guestinfo.metadata as
//     cloud-init would, takes the address written there and reports its phases
//     through guestinfo.clusterctl.status, as a node does. Guests can be sick.
//   - Time. Tasks take as long as Options says, without holding the locks of
//     what they work on, so that many run at once as they do in vCenter.
//   - Faults. Any call can be refused, delayed, answered with an HTTP status,
//     lose its session, or start a task that fails half-way (Inject).
//   - Kill points. A hook is called before and after every call and can cut the
//     connection there, with the call undone or done (Hook).
//   - Strictness where the simulator is lenient and vCenter is not: a clone
//     honours its whole configuration, a linked clone needs a snapshot, disks
//     never shrink, CPUs and memory are hot-added only where that is switched
//     on, a folder that holds VMs is not destroyed, an address is gone when its
//     VM is off, datastores fill up, rules forget destroyed VMs.
//   - Instant clone, which the simulator does not know.
//   - Dump, the whole inventory as text, to compare before and after.
//
// It stands in for API behaviour only. Linked disk chains, DRS that moves VMs,
// storage policies and real timings need a real vCenter.
//
// The package is never linked into a release binary; a test of the provider
// says so. A Server may be used concurrently.
package vsim
