//go:build !race

package vsim

const raceDetector = false
