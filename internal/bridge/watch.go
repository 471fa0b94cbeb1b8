package bridge

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// fileSettle is how long a burst of file events may last before the files are looked
	// at: an editor writes, renames and changes modes.
	fileSettle = 100 * time.Millisecond
	// filePoll finds what events missed: network file systems send none, the kernel's
	// queue can overflow, a directory can be replaced.
	filePoll = 15 * time.Second
	// maxWatchedFile keeps a wrong path from being read without end.
	maxWatchedFile = 4 << 20
)

// maxWatchedEntries keeps a wrong directory from being read without end.
const maxWatchedEntries = 1000

// digest stands for the contents of a file, or of the files in a directory.
type digest [sha256.Size]byte

// fileWatcher says when the contents of some files, or of the files in some directories,
// changed. It watches their
// directories, because files are replaced by rename; an event is a hint to look, and
// only other contents count as a change. A file that cannot be read has contents of
// its own, so that appearing and vanishing are changes too.
type fileWatcher struct {
	log     *slog.Logger
	changed chan struct{}          // capacity 1: a level
	files   chan map[string]digest // capacity 1: the latest set, as it was when it was named
}

func newFileWatcher(log *slog.Logger) *fileWatcher {
	return &fileWatcher{log: log, changed: make(chan struct{}, 1), files: make(chan map[string]digest, 1)}
}

// Changed delivers after the contents of at least one file changed.
func (w *fileWatcher) Changed() <-chan struct{} { return w.changed }

// Watch replaces the set of files; empty paths are skipped. What a new one holds now
// is not a change. Not for concurrent use.
func (w *fileWatcher) Watch(paths ...string) {
	set := make(map[string]digest, len(paths))
	for _, path := range paths {
		if path != "" {
			set[path] = digestOf(path)
		}
	}
	select {
	case <-w.files: // not taken up yet, and stale now
	default:
	}
	w.files <- set
}

// Run watches until ctx ends.
func (w *fileWatcher) Run(ctx context.Context) error {
	// Without a watcher from the kernel these stay nil, and polling is left.
	var events chan fsnotify.Event
	var lost chan error
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		w.log.Warn("no file events from the kernel, looking at files from time to time", "interval", filePoll, "err", err)
	} else {
		defer notify.Close()
		events, lost = notify.Events, notify.Errors
	}

	seen := map[string]digest{}
	poll := time.NewTicker(filePoll)
	defer poll.Stop()
	var settled <-chan time.Time // nil: no event since the last look

	for {
		select {
		case <-ctx.Done():
			return nil
		case set := <-w.files:
			for path := range set {
				if sum, ok := seen[path]; ok {
					set[path] = sum // what was last reported; a change since then is still to come
				}
			}
			seen = set
			w.watchDirs(notify, seen)
			w.look(seen) // for changes from before the directories were watched
		case <-events:
			// Later events of a burst do not put the look off: a file that changes all the
			// time is looked at too.
			if settled == nil {
				settled = time.After(fileSettle)
			}
		case err := <-lost:
			w.log.Warn("file events were lost", "err", err)
			w.look(seen)
		case <-settled:
			settled = nil
			w.look(seen)
		case <-poll.C:
			w.watchDirs(notify, seen) // one that was replaced has lost its watch
			w.look(seen)
		}
	}
}

// look compares the files with what was seen and remembers what they hold now.
func (w *fileWatcher) look(seen map[string]digest) {
	changed := false
	for path, before := range seen {
		if now := digestOf(path); now != before {
			seen[path] = now
			changed = true
		}
	}
	if changed {
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

// watchDirs makes notify watch the directories of the files and no others.
func (w *fileWatcher) watchDirs(notify *fsnotify.Watcher, files map[string]digest) {
	if notify == nil {
		return
	}
	want := map[string]bool{}
	for path := range files {
		want[filepath.Dir(path)] = true
		if st, err := os.Stat(path); err == nil && st.IsDir() {
			want[path] = true
		}
	}
	have := map[string]bool{}
	for _, dir := range notify.WatchList() {
		if !want[dir] {
			_ = notify.Remove(dir) // gone already is as good
			continue
		}
		have[dir] = true
	}
	for dir := range want {
		if have[dir] {
			continue
		}
		if err := notify.Add(dir); err != nil {
			w.log.Debug("directory cannot be watched, polling it", "dir", dir, "err", err)
		}
	}
}

func digestOf(path string) digest {
	f, err := os.Open(path)
	if err != nil {
		return digest{}
	}
	defer f.Close()
	h := sha256.New()
	if st, err := f.Stat(); err == nil && st.IsDir() {
		names, err := f.Readdirnames(maxWatchedEntries)
		if err != nil && !errors.Is(err, io.EOF) {
			return digest{}
		}
		slices.Sort(names)
		for _, name := range names {
			// A directory in it counts by its name alone: reading goes one level down.
			if st, err := os.Stat(filepath.Join(path, name)); err != nil || st.IsDir() {
				fmt.Fprintf(h, "%q\n", name)
				continue
			}
			sum := digestOf(filepath.Join(path, name))
			fmt.Fprintf(h, "%q %x\n", name, sum)
		}
		return digest(h.Sum(nil))
	}
	if _, err := io.Copy(h, io.LimitReader(f, maxWatchedFile)); err != nil {
		return digest{}
	}
	return digest(h.Sum(nil))
}

// watchCertificates follows which certificate files there are to watch: listeners name them.
func (b *Bridge) watchCertificates(ctx context.Context) {
	paths := b.proxy.CertificateFiles()
	if slices.Equal(paths, b.certFiles) {
		return
	}
	b.certFiles = paths
	b.certs.Watch(paths...)
	b.proxy.Certificates(ctx) // what changed between the last look and now
}
