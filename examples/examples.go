// Package examples holds blueprints to start from; `clusterctl init` prints them.
package examples

import _ "embed"

// The blueprints, as they stand in this directory.
var (
	//go:embed dev.yaml
	Dev string
	//go:embed prod.yaml
	Prod string
	//go:embed photon.yaml
	Photon string
)
