// Package vsphere makes plans true in a vCenter, through govmomi.
//
// It implements provision.Provider. Nothing is remembered between runs: what a
// cluster owns is found by the marks that its VMs carry in extraConfig, by the
// cluster's folder, and by the names of its rules.
//
// # Calls
//
// vCenter is asked as little as possible, because calls are what it is slow at:
//
//   - The inventory is read in two passes of the property collector whatever its
//     size: one over names (place.go), one over the cluster's folder, the image
//     and the cluster's rules (inventory.go).
//   - A machine is one CloneVM_Task with its hardware, network, marks and guest
//     data, powered on by the same call (create.go).
//   - All tasks in flight and all guests that are waited for are read by one
//     collector call at a time (poll.go), never by a wait per task.
//
// # Concurrency
//
// A Provider may be used concurrently. Apply runs the steps of a node in their
// order and nodes side by side within the limits of the blueprint (limits.go);
// a slot is held while vCenter works and never while a guest boots. Goroutines
// end before the call that started them, the poller with the last thing that is
// waited for, and the lease's renewal with its Release.
//
// # Failure
//
// A call that found its session gone signs in again and is repeated: it was not
// made. A call whose connection broke may have been made; it is repeated only
// where making it twice is harmless, which names, marks and change versions see
// to (session.go). Everything else is left as it is, reported by node with what
// an operator can do (fault.go), and seen by the next run. Only a VM, folder,
// pool or rule that is the cluster's own is ever changed or removed.
//
// Methods and faults are those of the vSphere Web Services API reference.
package vsphere
