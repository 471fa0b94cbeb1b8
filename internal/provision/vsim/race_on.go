//go:build race

package vsim

// raceDetector: the simulator reads objects without their locks here and there.
// Under the race detector all work on the inventory is therefore done one after
// the other, so that what is found are races of others.
const raceDetector = true
