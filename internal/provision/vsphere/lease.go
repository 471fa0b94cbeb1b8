package vsphere

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"bridged/internal/provision"
)

// A lease is a folder in the cluster's folder, whose name says everything:
// until when it lasts (seconds since 1970 on the server's clock), whose it is
// (the first digits of a hash of the holder's ID) and who that is for people.
// A folder is the one thing that every vCenter user who may create VMs may
// create, its creation is atomic, and its name can be changed to renew it.
type lease struct {
	folder ref
	holder provision.Holder // ID is the short form
}

const (
	maxName   = 80 // of an object in vCenter
	shortID   = 12
	maxRivals = 12 // times that two who come at once step back before one gives up
)

// leaseName is the folder's name.
func leaseName(h provision.Holder) string {
	who := strings.Map(func(r rune) rune {
		if r < ' ' || strings.ContainsRune(`/\%`, r) {
			return '-' // vCenter escapes these to three characters
		}
		return r
	}, h.Who)
	name := fmt.Sprintf("%s%d %s %s", leasePrefix, h.Expires.Unix(), h.ID, who)
	for len(name) > maxName {
		r := []rune(name)
		name = string(r[:len(r)-1])
	}
	return strings.TrimSpace(name)
}

// parseLease reads a folder's name; ok is false for any other folder.
func parseLease(name string, folder ref) (lease, bool) {
	rest, ok := strings.CutPrefix(name, leasePrefix)
	if !ok {
		return lease{}, false
	}
	until, rest, _ := strings.Cut(rest, " ")
	id, who, _ := strings.Cut(rest, " ")
	seconds, err := strconv.ParseInt(until, 10, 64)
	if err != nil || id == "" {
		return lease{}, false
	}
	if who == "" {
		who = "somebody"
	}
	return lease{folder: folder, holder: provision.Holder{ID: id, Who: who, Expires: time.Unix(seconds, 0).UTC()}}, true
}

// liveLease is a lease that has not expired; nil: nobody holds one.
func (c *cluster) liveLease(now time.Time) *lease {
	for i := range c.leases {
		if c.leases[i].holder.Expires.After(now) {
			return &c.leases[i]
		}
	}
	return nil
}

// heldLease is a lease of this process.
type heldLease struct {
	p       *Provider
	holder  provision.Holder // ID is the short form
	madeDir bool             // the cluster's folder was made for the lease

	cancel context.CancelFunc // ends the renewal
	done   sync.WaitGroup

	mu     sync.Mutex // guards what follows
	folder ref        // empty when it was given up
}

// holds reports whether l is this process's lease.
func (p *Provider) holds(l *lease) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held != nil && p.held.holder.ID == l.holder.ID
}

// dropLease stops renewing: the lease's folder is about to be removed.
func (p *Provider) dropLease() {
	p.mu.Lock()
	h := p.held
	p.mu.Unlock()
	if h != nil {
		h.stop()
	}
}

func (h *heldLease) stop() ref {
	h.cancel()
	h.done.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	folder := h.folder
	h.folder = ref{}
	return folder
}

// Acquire takes the cluster's lease. See provision.Provider.
//
// Whoever wants it makes its lease folder first and looks second; who then sees
// another live lease steps back. So two can never both have it. Two who come at
// the same moment may both step back, and try again after random times.
func (p *Provider) Acquire(ctx context.Context, holder provision.Holder) (provision.Lease, error) {
	pl, err := p.current(ctx)
	if err != nil {
		return nil, p.explain(err)
	}
	sum := sha256.Sum256([]byte(holder.ID))
	h := &heldLease{p: p, holder: provision.Holder{ID: fmt.Sprintf("%x", sum)[:shortID], Who: holder.Who}}
	for try := 0; ; try++ {
		rival, err := h.try(ctx, pl)
		if err != nil {
			return nil, p.explain(fmt.Errorf("take the lease of cluster %s: %w", p.cluster.Metadata.Name, err))
		}
		if rival == nil {
			break
		}
		// A lease that was made just now may be stepped back from; an older one is held.
		fresh := rival.holder.Expires.Sub(p.session.now()) > p.ttl-p.ttl/30
		if !fresh || try == maxRivals {
			return nil, &provision.HeldError{Cluster: p.cluster.Metadata.Name, Holder: rival.holder}
		}
		n, err := rand.Int(rand.Reader, big.NewInt(int64(50*time.Millisecond)<<min(try, 2)))
		if err != nil {
			return nil, err
		}
		select {
		case <-time.After(time.Duration(n.Int64())):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	var renewing context.Context
	renewing, h.cancel = context.WithCancel(p.ctx)
	h.done.Go(func() { h.renew(renewing) })
	p.mu.Lock()
	p.held = h
	p.mu.Unlock()
	return h, nil
}

// try makes the lease's folder and returns the lease that stands in its way.
func (h *heldLease) try(ctx context.Context, pl *place) (*lease, error) {
	p := h.p
	dir, made, err := p.ensureFolder(ctx, pl)
	if err != nil {
		return nil, err
	}
	h.madeDir = h.madeDir || made
	h.holder.Expires = p.session.now().Add(p.ttl)
	res, err := methods.CreateFolder(ctx, p.client, &types.CreateFolder{This: dir, Name: leaseName(h.holder)})
	var duplicate *types.DuplicateName
	switch _, taken := fault.As(err, &duplicate); {
	case taken: // our own, made by a call whose answer was lost
		h.folder = duplicate.Object
	case fault.Is(err, &types.ManagedObjectNotFound{}):
		// Another run has destroyed the cluster since we looked.
		p.mu.Lock()
		pl.folder = ref{}
		p.mu.Unlock()
		return nil, fmt.Errorf("the cluster's folder has just been removed: %w", err)
	case err != nil:
		return nil, err
	default:
		h.folder = res.Returnval
	}
	p.mu.Lock()
	pl.folder = dir
	p.mu.Unlock()

	c, err := p.readCluster(ctx, &place{folder: dir})
	if err != nil {
		return nil, errors.Join(err, h.giveUp(ctx))
	}
	now := p.session.now()
	for i, l := range c.leases {
		switch {
		case l.folder == h.folder:
		case l.holder.Expires.After(now):
			return &c.leases[i], h.giveUp(ctx)
		default:
			p.log.Info("remove the lease of a dead run", "who", l.holder.Who, "expired", l.holder.Expires)
			if err := p.destroy(ctx, l.folder); err != nil {
				return nil, errors.Join(err, h.giveUp(ctx))
			}
		}
	}
	return nil, nil
}

// giveUp removes our lease folder.
func (h *heldLease) giveUp(ctx context.Context) error {
	folder := h.folder
	h.folder = ref{}
	return h.p.destroy(ctx, folder)
}

// renew renames the folder three times in a lease's life.
func (h *heldLease) renew(ctx context.Context) {
	ticker := time.NewTicker(h.p.ttl / 3)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		until := h.holder
		until.Expires = h.p.session.now().Add(h.p.ttl)
		h.mu.Lock()
		folder := h.folder
		h.mu.Unlock()
		res, err := methods.Rename_Task(ctx, h.p.client, &types.Rename_Task{This: folder, NewName: leaseName(until)})
		if err == nil {
			_, err = h.p.task(ctx, res.Returnval, nil)
		}
		if err != nil && ctx.Err() == nil {
			// Check finds out before anything is removed.
			h.p.log.Warn("renew the lease", "err", err)
		}
	}
}

// Check reads the lease back.
func (h *heldLease) Check(ctx context.Context) error {
	p := h.p
	pl, err := p.current(ctx)
	if err != nil {
		return p.explain(err)
	}
	c, err := p.readCluster(ctx, &place{folder: pl.folder})
	if err != nil {
		return p.explain(fmt.Errorf("check the lease: %w", err))
	}
	now := p.session.now()
	h.mu.Lock()
	folder := h.folder
	h.mu.Unlock()
	i := slices.IndexFunc(c.leases, func(l lease) bool { return l.folder == folder })
	if i >= 0 && c.leases[i].holder.Expires.After(now) {
		return nil
	}
	if l := c.liveLease(now); l != nil {
		return &provision.HeldError{Cluster: p.cluster.Metadata.Name, Holder: l.holder}
	}
	return fmt.Errorf("the lease of cluster %s was lost: it could not be renewed in time; run the command again", p.cluster.Metadata.Name)
}

// Release gives the lease back, and with it a folder that was made for it and
// in which nothing was put.
func (h *heldLease) Release(ctx context.Context) error {
	p := h.p
	folder := h.stop()
	p.mu.Lock()
	p.held = nil
	dir := ref{}
	if p.place != nil {
		dir = p.place.folder
	}
	p.mu.Unlock()
	if folder.Value == "" {
		return nil
	}
	if err := p.destroy(ctx, folder); err != nil {
		return p.explain(fmt.Errorf("release the lease of cluster %s: %w", p.cluster.Metadata.Name, err))
	}
	if !h.madeDir || dir.Value == "" {
		return nil
	}
	c, err := p.readCluster(ctx, &place{folder: dir})
	if err != nil || c.children > 0 {
		return nil // somebody needs it, or nobody can tell
	}
	return p.destroy(ctx, dir)
}
