package bridge

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"bridged/internal/discovery"
)

// Of several Marathons one may be away when bridged starts. The others must not wait for
// it, and what it last said must not be lost: so what each of them said is saved, and
// stands in for those that have not been read after a while.

const (
	// patience is how long a start waits for all Marathons to be read.
	patience = 30 * time.Second
	// lastPatience is for one that has been read, and whose services are on their way.
	lastPatience = 200 * time.Millisecond
	// pictureEvery is how often what Marathons said is saved. It is also saved at the end.
	pictureEvery = time.Minute

	pictureFormat = 1
	maxPicture    = 256 << 20
)

// several holds what one of several Marathons needs beside a watcher. It belongs to the
// loop.
type several struct {
	early   map[discovery.Key]*discovery.Service // what was said before all had been read
	patient *time.Timer                          // until when all are waited for; nil: the only one
	due     time.Time                            // of the next saving
}

// begin starts waiting, when there are several. ready is where it ends.
func (s *several) begin(b *Bridge) (ready <-chan time.Time) {
	if b.source.watchers[0].Status().Source == "" {
		return nil
	}
	s.early = make(map[discovery.Key]*discovery.Service)
	s.patient = time.NewTimer(cmp.Or(b.opts.Patience, patience))
	return s.patient.C
}

// collect keeps what some Marathons say while others have not been read. It reports
// whether there are several.
func (s *several) collect(u *discovery.Update) bool {
	if s.early == nil {
		return false
	}
	for _, sv := range u.Services {
		s.early[sv.Key] = sv
	}
	for _, k := range u.Gone {
		delete(s.early, k)
	}
	return true
}

// goWithout begins without the Marathons that are away: with what they said when they
// were last read. Once they are back their own words count again.
func (b *Bridge) goWithout(ctx context.Context) {
	s := &b.several
	if b.synced {
		return
	}
	heard := make(map[string]bool)
	full := &discovery.Update{Full: true}
	for k, sv := range s.early {
		heard[k.Source] = true
		full.Services = append(full.Services, sv)
	}
	synced := 0
	var away []string
	for _, m := range b.source.statuses() {
		switch {
		case m.Synced && !heard[m.Source] && m.Services > 0:
			s.patient.Reset(lastPatience)
			return
		case m.Synced || heard[m.Source]:
			synced++
		default:
			away = append(away, m.Source)
		}
	}
	if synced == 0 {
		s.patient.Reset(cmp.Or(b.opts.Patience, patience)) // HAProxy goes on with what it runs
		return
	}
	for _, name := range away {
		saved, err := readPicture(pictureFile(b.config.StateDir, name), name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.log.Warn("what a Marathon last said cannot be read", "source", name, "err", err)
		}
		full.Services = append(full.Services, saved...)
		b.log.Warn("a Marathon is away, beginning with what it last said", "source", name, "services", len(saved))
	}
	b.apply(ctx, full)
}

// savePictures writes what each Marathon says that has been read. Asked for while bridged
// runs it does so beside the loop, when it is due.
func (b *Bridge) savePictures(now time.Time, last bool) {
	s := &b.several
	dir := b.config.StateDir
	if s.early == nil || !b.synced || dir == "" || !last && now.Before(s.due) {
		return
	}
	s.due = now.Add(pictureEvery)
	pictures := make(map[string][]*discovery.Service)
	for _, m := range b.source.statuses() {
		if m.Synced {
			pictures[m.Source] = b.translator.services(m.Source)
		}
	}
	write := func() {
		for name, services := range pictures {
			if err := writePicture(pictureFile(dir, name), services); err != nil {
				b.log.Warn("what a Marathon says cannot be saved; without it a restart begins without that Marathon's apps while it is away", "source", name, "err", err)
			}
		}
	}
	b.saving.Wait() // the one of a minute ago has long ended
	if last {
		write()
		return
	}
	b.saving.Go(write)
}

// services lists what one Marathon says.
func (t *Translator) services(source string) (list []*discovery.Service) {
	for app, m := range t.apps {
		if app.source != source {
			continue
		}
		for _, s := range m.services {
			list = append(list, s)
		}
	}
	return list
}

// picture is the file's form. It is this program's own: what is not understood is ignored.
type picture struct {
	Format   int                  `json:"format"`
	Services []*discovery.Service `json:"services"`
}

func pictureFile(dir, source string) string {
	return filepath.Join(dir, fmt.Sprintf("services-%x.json", source))
}

func readPicture(path, source string) ([]*discovery.Service, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxPicture {
		return nil, fmt.Errorf("%s: %d bytes are too many to be ours", path, info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var p picture
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if p.Format != pictureFormat {
		return nil, fmt.Errorf("%s: format %d, want %d", path, p.Format, pictureFormat)
	}
	for _, s := range p.Services {
		if s == nil || s.App == nil || s.Key.Source != source || s.App.ID != s.Key.App {
			return nil, fmt.Errorf("%s: not a list of services of %s", path, source)
		}
	}
	return p.Services, nil
}

func writePicture(path string, services []*discovery.Service) (err error) {
	data, err := json.Marshal(picture{Format: pictureFormat, Services: services})
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
