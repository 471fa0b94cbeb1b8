package haproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
)

// oldWorkers asks the master which workers finish their connections. It runs in the
// background: a master that loads answers late.
func (p *Proxy) oldWorkers(ctx context.Context) (pids []int, err error) {
	if p.opts.MasterSocket == "" {
		return nil, fs.ErrNotExist
	}
	answer, err := askMaster(ctx, p.opts.MasterSocket, "show proc", probeEvery)
	procs := parseProcs([]byte(answer))
	if err == nil && procs.Master == 0 {
		err = errNoProcs
	}
	return procs.Old, err
}

// errNoProcs: the master executed itself anew with our question open.
var errNoProcs = errors.New("show proc: no answer that names the master")

// sawOldWorkers takes in what oldWorkers found when the given worker served.
func (p *Proxy) sawOldWorkers(epoch uint64, pids []int, err error) {
	switch {
	case epoch != p.epoch: // another one has taken over since
	case err == nil:
		p.oldPids, p.masterSays = pids, true
	case nobody(err), errors.Is(err, fs.ErrPermission):
		p.masterSays = false
	}
	p.countOldWorkers()
}

// askOldWorkers counts anew, and then goes on with then.
func (p *Proxy) askOldWorkers(then func()) {
	epoch := p.epoch
	p.bg(func(ctx context.Context) func(context.Context) {
		pids, err := p.oldWorkers(ctx)
		return func(context.Context) {
			p.sawOldWorkers(epoch, pids, err)
			then()
		}
	})
}

// countOldWorkers forgets replaced workers that have ended. A master that answers knows best,
// also where we cannot see HAProxy's processes. Else they are looked up: pids are of this
// machine, and of a HAProxy in a pid namespace of its own none is counted.
func (p *Proxy) countOldWorkers() {
	p.oldPids = slices.DeleteFunc(p.oldPids, func(pid int) bool {
		if pid == p.info.Pid || p.masterSays {
			return pid == p.info.Pid
		}
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // the pid may be another's by now
		return err != nil || !bytes.HasPrefix(name, []byte("haproxy"))
	})
	p.m.oldWorkers.Set(float64(len(p.oldPids)))
}

// replaced notes that another worker has taken over from pid.
func (p *Proxy) replaced(pid int) {
	if pid != 0 && pid != p.info.Pid && !slices.Contains(p.oldPids, pid) {
		p.oldPids = append(p.oldPids, pid)
	}
	p.countOldWorkers()
}
