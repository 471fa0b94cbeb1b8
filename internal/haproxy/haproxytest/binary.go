package haproxytest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
)

// Binary is one HAProxy program.
type Binary struct {
	Path    string
	Version string // such as "2.6.12"
	Major   int
	Minor   int
}

// Name is the branch, such as "2.6".
func (b Binary) Name() string { return fmt.Sprintf("%d.%d", b.Major, b.Minor) }

// AtLeast reports whether b is of the branch major.minor or a newer one.
func (b Binary) AtLeast(major, minor int) bool {
	return b.Major > major || b.Major == major && b.Minor >= minor
}

var versionLine = regexp.MustCompile(`(?m)^HA-?Proxy version ((\d+)\.(\d+)[^\s-]*)`)

// Inspect asks the program at path for its version.
func Inspect(path string) (Binary, error) {
	out, err := exec.Command(path, "-v").CombinedOutput()
	if err != nil {
		return Binary{}, fmt.Errorf("%s -v: %w: %s", path, err, out)
	}
	m := versionLine.FindSubmatch(out)
	if m == nil {
		return Binary{}, fmt.Errorf("%s -v: no version in %q", path, out)
	}
	major, _ := strconv.Atoi(string(m[2]))
	minor, _ := strconv.Atoi(string(m[3]))
	return Binary{Path: path, Version: string(m[1]), Major: major, Minor: minor}, nil
}

// installed looks once per test process: each look costs a process per binary.
var installed = sync.OnceValues(func() ([]Binary, error) {
	var paths []string
	if p, err := exec.LookPath("haproxy"); err == nil {
		paths = append(paths, p)
	}
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	unpacked, err := filepath.Glob(filepath.Join(root, ".deps/haproxy/*/haproxy"))
	if err != nil {
		return nil, err
	}
	var all []Binary
	for _, path := range append(paths, unpacked...) {
		b, err := Inspect(path)
		if err != nil {
			return nil, fmt.Errorf("%w; run `make deps` again", err)
		}
		// The program on PATH is what an operator of this machine runs: it stands for its
		// branch even when another build of that branch is unpacked.
		if !slices.ContainsFunc(all, func(o Binary) bool { return o.Name() == b.Name() }) {
			all = append(all, b)
		}
	}
	slices.SortFunc(all, func(a, b Binary) int {
		return (a.Major-b.Major)*1000 + a.Minor - b.Minor
	})
	return all, nil
})

// Versions returns one program per HAProxy branch on this machine, oldest first. It
// skips the test when there is none, and fails it when a 3.x is required (see the
// package comment) and absent.
func Versions(t testing.TB) []Binary {
	t.Helper()
	all, err := installed()
	if err != nil {
		t.Fatal(err)
	}
	if required() && !slices.ContainsFunc(all, func(b Binary) bool { return b.Major >= 3 }) {
		t.Fatalf("HAProxy 3.x is required here and there is none among %v: run `make deps`", all)
	}
	if len(all) == 0 {
		t.Skip("no haproxy on PATH and none below .deps/haproxy: run `make deps`")
	}
	return all
}

// ForEach runs test once per HAProxy branch of this machine as a subtest named after it.
func ForEach(t *testing.T, test func(t *testing.T, bin Binary)) {
	t.Helper()
	for _, bin := range Versions(t) {
		t.Run(bin.Name(), func(t *testing.T) {
			t.Logf("HAProxy %s (%s)", bin.Version, bin.Path)
			test(t, bin)
		})
	}
}

// Default returns the program on PATH, else the newest of the unpacked ones.
func Default(t testing.TB) Binary {
	t.Helper()
	all := Versions(t)
	if p, err := exec.LookPath("haproxy"); err == nil {
		for _, b := range all {
			if b.Path == p {
				return b
			}
		}
	}
	return all[len(all)-1]
}

// Newest returns the program of the newest branch.
func Newest(t testing.TB) Binary {
	t.Helper()
	all := Versions(t)
	return all[len(all)-1]
}

func required() bool {
	return os.Getenv("CI") == "true" || os.Getenv("BRIDGED_REQUIRE_HAPROXY") == "1"
}

// moduleRoot walks up from the test's directory to go.mod.
func moduleRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod above %s", start)
		}
	}
}
