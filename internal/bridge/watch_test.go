package bridge

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// startWatcher runs a fileWatcher on paths and waits until it has looked at them.
func startWatcher(t *testing.T, paths ...string) *fileWatcher {
	t.Helper()
	w := newFileWatcher(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	w.Watch(paths...)
	return w
}

func awaitChange(t *testing.T, w *fileWatcher, what string) {
	t.Helper()
	select {
	case <-w.Changed():
	case <-time.After(20 * time.Second): // longer than the slow look
		t.Fatalf("%s: no change was noticed", what)
	}
}

func TestFileWatcherSeesWhatEditorsDo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := writeFile(t, dir, "bridged.yaml", "a")
	w := startWatcher(t, path, "")

	steps := []struct {
		name string
		do   func() error
	}{
		{"written in place", func() error { return os.WriteFile(path, []byte("b"), 0o600) }},
		{"replaced by rename", func() error {
			other := filepath.Join(dir, "other")
			if err := os.WriteFile(other, []byte("c"), 0o600); err != nil {
				return err
			}
			return os.Rename(other, path)
		}},
		{"removed", func() error { return os.Remove(path) }},
		{"created again", func() error { return os.WriteFile(path, []byte("d"), 0o600) }},
		{"turned into a link", func() error {
			target := filepath.Join(dir, "target")
			if err := os.WriteFile(target, []byte("e"), 0o600); err != nil {
				return err
			}
			if err := os.Remove(path); err != nil {
				return err
			}
			return os.Symlink(target, path)
		}},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			t.Fatal(err)
		}
		awaitChange(t, w, s.name)
	}
}

// Where no event arrives the slow look finds the change, and the same contents are none.
func TestFileWatcherFindsWhatEventsMissed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "bridged.yaml") // its directory does not exist yet
	w := newFileWatcher(slog.New(slog.DiscardHandler))
	seen := map[string]digest{path: digestOf(path)}
	w.look(seen)
	if len(w.changed) != 0 {
		t.Fatal("an unchanged file counts as a change")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.look(seen)
	if len(w.changed) != 1 {
		t.Fatal("a file that appeared is no change")
	}
}
