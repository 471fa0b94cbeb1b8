// Package templates holds every text that the programs render, embedded, so that each
// program is one file and an operator finds all of them in one folder.
package templates

import _ "embed"

// HAProxy is the template of haproxy.cfg. The data it is executed with is described in
// internal/haproxy/render.go.
//
//go:embed haproxy.cfg.tmpl
var HAProxy string

// BridgedService is the systemd unit of bridged.
//
//go:embed systemd/bridged.service
var BridgedService string
