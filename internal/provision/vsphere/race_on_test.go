//go:build race

package vsphere_test

// raceDetector makes everything several times slower: tests that go through
// many cases take a sample of them, or none.
const raceDetector = true
