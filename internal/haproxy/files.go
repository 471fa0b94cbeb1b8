package haproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// FilesOptions says where the files are.
type FilesOptions struct {
	Config string           // path of haproxy.cfg; a symbolic link is followed, not replaced
	Step   func(Step)       // told at each step; nil in production
	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: discards
}

// Files writes haproxy.cfg and the map files that it names. The rename of haproxy.cfg is
// the only switch: maps are complete under new names before a file names them, and a
// reader sees the old file or the new one, whole, at any time. Nothing that HAProxy could
// be told to load is ever truncated or unlinked: a reload without the file kills the
// master of HAProxy 3.x. Not for concurrent use.
type Files struct {
	path   string // of haproxy.cfg, links resolved
	dir    string
	step   func(Step)
	now    func() time.Time
	log    *slog.Logger
	ours   bool // the file is known to be ours, so that no copy of it is due
	seen   bool // the directory has been looked at
	next   int  // number of the next map file
	maps   map[string]savedMap
	unused map[string]time.Time // map files that haproxy.cfg no longer names, and since when
	strays map[string]string    // path → map name of files that no haproxy.cfg of ours has named yet
}

type savedMap struct {
	path string
	text []byte
}

// Saved is what a Save has left on disk.
type Saved struct {
	MapPaths map[string]string // map name → path
	Text     []byte            // of haproxy.cfg
	Previous []byte            // what stood there before; nil when there was no file
	Written  bool              // false: the file had this content already
}

// SaveError is a file that could not be written. What stood there before still does.
type SaveError struct {
	Path string
	Err  error
}

func (e *SaveError) Unwrap() error { return e.Err }

func (e *SaveError) Error() string {
	remedy := ""
	switch {
	case errors.Is(e.Err, syscall.ENOSPC), errors.Is(e.Err, syscall.EDQUOT):
		remedy = "; free space there, HAProxy goes on with the file as it was"
	case errors.Is(e.Err, syscall.EROFS):
		remedy = "; the file system is read-only: set haproxy.config to a path that can be written"
	case errors.Is(e.Err, fs.ErrPermission):
		remedy = "; give bridged's user write permission on the directory, the file is replaced and not changed"
	case errors.Is(e.Err, fs.ErrNotExist):
		remedy = "; create the directory"
	}
	return fmt.Sprintf("save %s: %v%s", e.Path, e.Err, remedy)
}

// collectAfter is how long a map file outlives the last haproxy.cfg that named it. Somebody
// may have read that file just before it was replaced and be about to open its maps.
const collectAfter = time.Minute

// backupSuffix marks the copy of the file that stood there before the first takeover.
const backupSuffix = ".before-bridged"

// tempPrefix marks files that are being written. One that is left was left by a crash.
const tempPrefix = ".bridged-"

// NewFiles makes Files. It touches nothing.
func NewFiles(o FilesOptions) *Files {
	f := &Files{path: o.Config, step: o.Step, now: o.Now, log: o.Logger,
		maps: make(map[string]savedMap), unused: make(map[string]time.Time), strays: make(map[string]string)}
	if resolved, err := filepath.EvalSymlinks(o.Config); err == nil {
		f.path = resolved
	}
	if abs, err := filepath.Abs(f.path); err == nil {
		f.path = abs
	}
	f.dir = filepath.Dir(f.path)
	if f.step == nil {
		f.step = func(Step) {}
	}
	if f.now == nil {
		f.now = time.Now
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	return f
}

// Path is where haproxy.cfg is.
func (f *Files) Path() string { return f.path }

// Save writes out with generation. Maps that have changed go first, under new names. A
// failure is a *SaveError and leaves haproxy.cfg as it was.
func (f *Files) Save(ctx context.Context, out *Rendered, generation string) (Saved, error) {
	if err := ctx.Err(); err != nil {
		return Saved{}, err
	}
	if err := f.look(); err != nil {
		return Saved{}, err
	}
	previous, err := os.ReadFile(f.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Saved{}, &SaveError{Path: f.path, Err: err}
	}
	if err := f.backup(previous); err != nil {
		return Saved{}, err
	}
	f.step(StepBackup)
	for path, name := range f.strays {
		if _, ours := out.Maps[name]; ours { // left by an earlier process
			f.unused[path] = f.now()
			delete(f.strays, path)
		}
	}
	next, err := f.writeMaps(out.Maps)
	if err != nil {
		return Saved{}, err
	}
	f.step(StepMapsWritten)
	saved := Saved{MapPaths: make(map[string]string, len(next)), Previous: previous}
	for name, m := range next {
		saved.MapPaths[name] = m.path
	}
	saved.Text = out.Bytes(generation, func(name string) string { return next[name].path })
	if previous == nil || !bytes.Equal(previous, saved.Text) {
		saved.Written = true
		if err := f.replace(saved.Text); err != nil {
			return Saved{}, err
		}
	}
	f.ours = true
	for name, m := range f.maps {
		if next[name].path != m.path {
			f.unused[m.path] = f.now()
		}
	}
	f.maps = next
	f.step(StepSaved)
	return saved, nil
}

// Restore puts text back in place of a haproxy.cfg that HAProxy refused.
func (f *Files) Restore(text []byte) error { return f.replace(text) }

// Holds reports whether haproxy.cfg has exactly this content now.
func (f *Files) Holds(text []byte) bool {
	now, err := os.ReadFile(f.path)
	return err == nil && bytes.Equal(now, text)
}

// Collect deletes map files that no haproxy.cfg has named for a minute, but those in inUse.
// What cannot be deleted stays for the next time.
func (f *Files) Collect(inUse map[string]string) {
	for path, since := range f.unused {
		if f.now().Sub(since) < collectAfter || slices.Contains(mapValues(inUse), path) {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.log.Warn("cannot delete an old map file", "path", path, "err", err)
			continue
		}
		delete(f.unused, path)
	}
	f.step(StepCollected)
}

func mapValues(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

// look takes stock of the directory once: leftovers of a crash, numbers of map files, and
// which of them are named by the present file.
func (f *Files) look() error {
	if f.seen {
		return nil
	}
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return &SaveError{Path: f.path, Err: err}
	}
	text, err := os.ReadFile(f.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &SaveError{Path: f.path, Err: err}
	}
	named := mapPaths(string(text))
	for _, e := range entries {
		path := filepath.Join(f.dir, e.Name())
		if strings.HasPrefix(e.Name(), tempPrefix) {
			if err := os.Remove(path); err != nil {
				f.log.Warn("cannot delete a leftover", "path", path, "err", err)
			}
			continue
		}
		name := mapName(path)
		if name == "" {
			continue
		}
		number, _ := strconv.Atoi(strings.TrimPrefix(strings.TrimSuffix(e.Name(), ".map"), name+"."))
		f.next = max(f.next, number+1)
		if named[name] != path {
			f.strays[path] = name // perhaps not ours
			continue
		}
		content, err := os.ReadFile(path)
		if err == nil {
			f.maps[name] = savedMap{path: path, text: content}
		}
	}
	f.seen = true
	return nil
}

// backup copies a file that is not ours before it is replaced for the first time.
func (f *Files) backup(text []byte) error {
	if f.ours || text == nil {
		return nil
	}
	present, err := parseOperatorFile(string(text), "")
	if err == nil && present.Ours {
		return nil
	}
	for n := 1; ; n++ {
		path := f.path + backupSuffix
		if n > 1 {
			path += "." + strconv.Itoa(n)
		}
		kept, err := os.ReadFile(path)
		if err == nil && bytes.Equal(kept, text) {
			return nil
		}
		if err == nil {
			continue // an earlier takeover's
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return &SaveError{Path: path, Err: err}
		}
		if err := f.write(path, text, f.path, nil); err != nil {
			return &SaveError{Path: path, Err: err}
		}
		f.log.Info("the configuration before the takeover is kept", "path", path)
		return nil
	}
}

// writeMaps writes each map that differs from its present file under a new name.
func (f *Files) writeMaps(maps map[string][]byte) (map[string]savedMap, error) {
	next := make(map[string]savedMap, len(maps))
	for name, text := range maps {
		if have, ok := f.maps[name]; ok && bytes.Equal(have.text, text) {
			if _, err := os.Stat(have.path); err == nil {
				next[name] = have
				continue
			}
		}
		path := filepath.Join(f.dir, fmt.Sprintf("%s.%d.map", name, f.next))
		f.next++
		if err := f.write(path, text, f.path, nil); err != nil {
			return nil, &SaveError{Path: path, Err: err}
		}
		next[name] = savedMap{path: path, text: text}
		// Until a file that names it is in place, nobody does.
		f.unused[path] = f.now()
	}
	return next, nil
}

// replace swaps haproxy.cfg.
func (f *Files) replace(text []byte) error {
	if err := f.write(f.path, text, f.path, func() { f.step(StepTempWritten) }); err != nil {
		return &SaveError{Path: f.path, Err: err}
	}
	for _, path := range mapPaths(string(text)) {
		delete(f.unused, path)
	}
	return nil
}

// write puts text at path in one step: temporary file in the same directory, mode and owner
// of the file at like, fsync, rename, fsync of the directory. Between writing and renaming it
// calls written, which may be nil. ext4 flushes at a rename over a file anyway, so that fsync
// costs 0.5 to 2 ms; without it other file systems may bring an empty file after a power cut.
func (f *Files) write(path string, text []byte, like string, written func()) (err error) {
	temp, err := os.CreateTemp(f.dir, tempPrefix+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			temp.Close()
			os.Remove(temp.Name())
		}
	}()
	if err := takeAfter(temp, like); err != nil {
		return err
	}
	if _, err := temp.Write(text); err != nil {
		return err
	}
	if err := temp.Sync(); err != nil {
		return err
	}
	if err := temp.Close(); err != nil {
		return err
	}
	if written != nil {
		written()
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return err
	}
	if path == f.path {
		f.step(StepSwapped)
	}
	dir, err := os.Open(f.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// takeAfter gives temp the mode and the owner of the file at like, or 0644 and our own
// when there is none. An owner that we may not give stays ours.
func takeAfter(temp *os.File, like string) error {
	info, err := os.Stat(like)
	if errors.Is(err, fs.ErrNotExist) {
		return temp.Chmod(0o644)
	}
	if err != nil {
		return err
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		if err := temp.Chown(int(owner.Uid), int(owner.Gid)); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return temp.Chmod(info.Mode().Perm())
}
