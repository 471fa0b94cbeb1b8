package discovery

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// saved is what outlives a restart: health verdicts, for Marathons that have forgotten
// them, addresses, for when DNS is away, and how much there was, to know a picture that
// is too small.
type saved struct {
	due      time.Time // of the next writing; zero: nothing is to be written but in time
	next     time.Time // not before
	judged   uint64    // state.judged of what was written last
	writing  bool
	failed   bool
	written  chan error        // capacity 1: how the writing under way ended
	verdicts map[string]Health // by task id, of an earlier life; dropped after the first sync
}

// savedFile is the file's form. It is this program's own and may change: what is not
// understood is ignored.
type savedFile struct {
	Format    int                   `json:"format"`
	Routed    int                   `json:"routed"` // tasks that ran
	Alive     []string              `json:"alive"`
	Dead      []string              `json:"dead"`
	Addresses map[string]netip.Addr `json:"addresses"`
}

const (
	savedFormat = 1
	saveEvery   = 30 * time.Second
	// savePause is what lies between two writings at least. A bridge that is killed forgets
	// the verdicts of that time, and a Marathon that has forgotten them as well cannot
	// give them back: until the next check the tasks would get no traffic.
	savePause = time.Second
	maxSaved  = 64 << 20
)

func (l *loop) savedPath() string {
	if l.w.opts.StateDir == "" {
		return ""
	}
	name := "discovery.json"
	if s := l.w.opts.Source; s != "" {
		name = fmt.Sprintf("discovery-%x.json", s)
	}
	return filepath.Join(l.w.opts.StateDir, name)
}

// restore reads what an earlier life saved. Without it everything works, only later.
func (l *loop) restore() {
	path := l.savedPath()
	if path == "" {
		return
	}
	f, err := readSaved(path)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			l.w.log.Warn("saved verdicts and addresses not read", "err", err)
		}
		return
	}
	l.known = f.Routed
	l.saved.verdicts = make(map[string]Health, len(f.Alive)+len(f.Dead))
	for _, id := range f.Alive {
		l.saved.verdicts[id] = Alive
	}
	for _, id := range f.Dead {
		l.saved.verdicts[id] = Dead
	}
	for host, addr := range f.Addresses {
		if addr.IsValid() && addr.Zone() == "" {
			l.addresses.remember(host, addr)
		}
	}
}

func readSaved(path string) (*savedFile, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxSaved {
		return nil, fmt.Errorf("%s: %d bytes are too many to be ours", path, info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var f savedFile
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if f.Format != savedFormat {
		return nil, fmt.Errorf("%s: format %d, want %d", path, f.Format, savedFormat)
	}
	return &f, nil
}

// verdicts gives tasks of a the verdicts of an earlier life where Marathon has none.
func (l *loop) verdicts(a *appData) {
	if l.saved.verdicts == nil {
		return
	}
	for i := range a.tasks {
		if t := &a.tasks[i]; t.health == HealthUnknown {
			t.health = l.saved.verdicts[t.id]
		}
	}
}

// save writes what is worth keeping soon after it changed, and now and then in any case. It
// returns when it wants to be called again. The loop only collects: 10 000 tasks take half a
// millisecond; the disk is waited for elsewhere.
func (l *loop) save(now time.Time) (next time.Time) {
	s := &l.saved
	path := l.savedPath()
	if path == "" || !l.synced {
		return time.Time{}
	}
	if s.writing {
		select {
		case err := <-s.written:
			l.savedAs(err)
		default:
			return now.Add(savePause)
		}
	}
	if s.due.IsZero() && s.judged != l.state.judged {
		s.due = now.Add(savePause)
	}
	if at := sooner(s.due, s.next); at.After(now) {
		return s.due
	}
	f := l.worthKeeping(now)
	s.writing = true
	l.group.Go(func() { s.written <- writeSaved(path, f) })
	return now.Add(savePause)
}

// saveLast writes what is there at the end. No other writing runs any more.
func (l *loop) saveLast(now time.Time) {
	if path := l.savedPath(); path != "" && l.synced {
		l.savedAs(writeSaved(path, l.worthKeeping(now)))
	}
}

// savedAs takes in how a writing ended.
func (l *loop) savedAs(err error) {
	if err != nil && !l.saved.failed {
		l.w.log.Warn("verdicts and addresses not saved", "err", err)
	}
	l.saved.failed, l.saved.writing = err != nil, false
}

// worthKeeping is what the file is to hold.
func (l *loop) worthKeeping(now time.Time) *savedFile {
	s := &l.saved
	s.verdicts, s.judged = nil, l.state.judged
	s.due, s.next = time.Time{}, now.Add(saveEvery)
	f := &savedFile{Format: savedFormat, Addresses: map[string]netip.Addr{}}
	for _, a := range l.state.apps {
		for _, t := range a.tasks {
			if t.phase == phaseRunning {
				f.Routed++
			}
			switch t.inst.verdict {
			case Alive:
				f.Alive = append(f.Alive, t.id)
			case Dead:
				f.Dead = append(f.Dead, t.id)
			}
		}
	}
	for host, e := range l.addresses.entries {
		if _, err := netip.ParseAddr(host); err != nil && e.addr.IsValid() {
			f.Addresses[host] = e.addr
		}
	}
	return f
}

func writeSaved(path string, f *savedFile) (err error) {
	data, err := json.Marshal(f)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
