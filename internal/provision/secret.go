package provision

import "errors"

// ErrNoSecret says that the blueprint gives no value for a secret.
var ErrNoSecret = errors.New("no such secret in the blueprint")

// Value is plain text or a reference to it: {env: NAME}, {file: path} or
// {exec: [command, arg…]}. A reference is resolved when the value is used.
type Value struct {
	Text string
	Env  string
	File string
	Exec []string
}

// Secret is none, derived from the cluster's key, or a reference.
type Secret struct {
	Derive     bool
	Value      Value
	Generation int // grows by one with every rotate; part of the hash of nodes that use it
}
