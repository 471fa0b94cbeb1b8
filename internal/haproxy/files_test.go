package haproxy

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func rendered(t testing.TB, cfg *Config) *Rendered {
	t.Helper()
	out, err := newRenderer(t, "", CapabilitiesOf(Version{3, 0})).Render(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

func TestSaveKeepsModeOwnerLinkAndTheOperatorsCopy(t *testing.T) {
	dir := t.TempDir()
	real := filepath.Join(dir, "real.cfg")
	link := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(real, []byte(debianConfig), 0o640); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(real, 1, 2); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("real.cfg", link); err != nil {
		t.Fatal(err)
	}
	files := NewFiles(FilesOptions{Config: link})
	cfg := bigConfig(1, "/s")
	for i := range 2 {
		saved, err := files.Save(t.Context(), rendered(t, cfg), "bridged-0123456789ab-1")
		if err != nil {
			t.Fatal(err)
		}
		if saved.Written != (i == 0) {
			t.Errorf("save %d: written = %v", i, saved.Written)
		}
	}
	info, err := os.Stat(real)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, want 0640", info.Mode())
	}
	if s := info.Sys().(*syscall.Stat_t); os.Getuid() == 0 && (s.Uid != 1 || s.Gid != 2) {
		t.Errorf("owner %d:%d, want 1:2", s.Uid, s.Gid)
	}
	if target, err := os.Readlink(link); err != nil || target != "real.cfg" {
		t.Errorf("the link is gone: %q, %v", target, err)
	}
	if text, err := os.ReadFile(real + backupSuffix); err != nil || string(text) != debianConfig {
		t.Errorf("copy: %v\n%s", err, text)
	}
	// A later file of somebody else gets a copy of its own, and no copy is overwritten.
	if err := os.WriteFile(real, []byte(oldBridgeConfig), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := NewFiles(FilesOptions{Config: link}).Save(t.Context(), rendered(t, cfg), "bridged-0123456789ab-1"); err != nil {
		t.Fatal(err)
	}
	if got, want := names(t, dir), "haproxy.cfg real.cfg real.cfg.before-bridged real.cfg.before-bridged.2"; got != want {
		t.Errorf("files %q, want %q", got, want)
	}
}

func TestMapsGetNewNamesAndOldOnesGoLater(t *testing.T) {
	dir := t.TempDir()
	now := time.Unix(0, 0)
	files := NewFiles(FilesOptions{Config: filepath.Join(dir, "haproxy.cfg"), Now: func() time.Time { return now }})
	cfg := everything("/d")
	save := func() Saved {
		t.Helper()
		saved, err := files.Save(t.Context(), rendered(t, cfg), "bridged-0123456789ab-1")
		if err != nil {
			t.Fatal(err)
		}
		return saved
	}
	first := save()
	cfg.Maps["ports"].Entries["15002"] = "nginx-80"
	second := save()
	if first.MapPaths["routes"] != second.MapPaths["routes"] {
		t.Error("a map that did not change has a new name")
	}
	if first.MapPaths["ports"] == second.MapPaths["ports"] {
		t.Error("a map that changed has its old name: a reader may pair it with another haproxy.cfg")
	}
	cfg.Maps["ports"].Entries["15003"] = "nginx-80"
	third := save()
	now = now.Add(collectAfter - 1)
	files.Collect(first.MapPaths)
	if got := names(t, dir); strings.Count(got, "ports.") != 3 {
		t.Errorf("files %q: a map was deleted within a minute", got)
	}
	now = now.Add(1)
	files.Collect(first.MapPaths)
	got := names(t, dir)
	for path, stays := range map[string]bool{first.MapPaths["ports"]: true, second.MapPaths["ports"]: false, third.MapPaths["ports"]: true} {
		if strings.Contains(got, filepath.Base(path)) != stays {
			t.Errorf("files %q: want %s there: %v", got, filepath.Base(path), stays)
		}
	}

	// The next process goes on counting, takes over what is named and removes what is not.
	if err := os.WriteFile(filepath.Join(dir, tempPrefix+"haproxy.cfg-1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	files = NewFiles(FilesOptions{Config: filepath.Join(dir, "haproxy.cfg"), Now: func() time.Time { return now }})
	if again := save(); again.Written || again.MapPaths["ports"] != third.MapPaths["ports"] {
		t.Errorf("the next process wrote %v, paths %v", again.Written, again.MapPaths)
	}
	now = now.Add(collectAfter)
	files.Collect(nil)
	if got := names(t, dir); strings.Count(got, "ports.") != 1 || strings.Contains(got, tempPrefix) {
		t.Errorf("files %q: want the one that is named", got)
	}
}

func TestSaveErrorsNameFileAndRemedyAndChangeNothing(t *testing.T) {
	dir := t.TempDir()
	_, err := NewFiles(FilesOptions{Config: filepath.Join(dir, "no", "haproxy.cfg")}).Save(t.Context(), rendered(t, bigConfig(1, "/s")), "g")
	if e, ok := errors.AsType[*SaveError](err); !ok || !strings.Contains(e.Error(), "create the directory") {
		t.Errorf("missing directory: %v", err)
	}
	for errno, remedy := range map[syscall.Errno]string{
		syscall.ENOSPC: "free space", syscall.EDQUOT: "free space", syscall.EROFS: "read-only", syscall.EACCES: "write permission",
	} {
		if e := (&SaveError{Path: "/x/haproxy.cfg", Err: &os.PathError{Op: "write", Path: "/x/t", Err: errno}}); !strings.Contains(e.Error(), remedy) || !strings.Contains(e.Error(), "/x/haproxy.cfg") {
			t.Errorf("%v: %v", errno, e)
		}
	}
}

// A file system of 64 KB is full for real.
func TestFullDiskLeavesTheOldFile(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("no mount here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	files := NewFiles(FilesOptions{Config: filepath.Join(dir, "haproxy.cfg")})
	if _, err := files.Save(t.Context(), rendered(t, bigConfig(1, "/s")), "bridged-0123456789ab-1"); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(files.Path())
	if err != nil {
		t.Fatal(err)
	}
	_, err = files.Save(t.Context(), rendered(t, bigConfig(1000, "/s")), "bridged-0123456789ab-2")
	if e, ok := errors.AsType[*SaveError](err); !ok || !errors.Is(e, syscall.ENOSPC) {
		t.Fatalf("error %v, want a SaveError for a full disk", err)
	}
	after, err := os.ReadFile(files.Path())
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the old file changed: %v", err)
	}
	if got := names(t, dir); got != "haproxy.cfg" {
		t.Errorf("left behind: %q", got)
	}
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Skipf("no remount here: %v", err)
	}
	_, err = files.Save(t.Context(), rendered(t, bigConfig(2, "/s")), "bridged-0123456789ab-3")
	if e, ok := errors.AsType[*SaveError](err); !ok || !errors.Is(e, syscall.EROFS) || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("error %v, want a SaveError for a read-only file system", err)
	}
}
