package templates

import "embed"

// Guest holds the texts that a new node of a cluster gets: service
// configuration, systemd units and the script that starts and reports.
//
//go:embed guest
var Guest embed.FS
