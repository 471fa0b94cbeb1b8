// Package guest renders the first-boot documents of a node: cloud-init's
// user-data and meta-data for VMware's guestinfo datasource.
//
// A node gets everything it will ever be told in these two documents: its
// repositories and exact package versions, its users, disks and time servers,
// one file per setting of each role, its systemd units, and a small script that
// starts the services in order and reports through guestinfo how far it has
// come. There is no server to ask and no agent that stays.
//
// Order on the node: cloud-init's bootcmd masks every service before its
// package is installed (packages start what they bring, with defaults such as a
// ZooKeeper under /tmp and a quorum of 1); packages are installed; the files
// that packages also bring are written after them (write_files with defer);
// clusterctl-node.service unmasks and starts the services and waits until each
// answers.
//
// Equal input gives equal bytes: everything is sorted, nothing reads a clock.
// The user-data of a node depends on the control plane (ZooKeeper, masters,
// Marathon) and on the node itself, never on another slave, so that a scale-out
// changes no existing node. The generation stands in the meta-data alone.
//
// Secrets are written to files of mode 0600 that the service reads; which file
// holds which is listed in docs/provisioning.md.
package guest
