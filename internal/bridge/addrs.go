package bridge

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"time"
)

// addrsInterval is how often this node is asked for its addresses. They decide whether a
// task runs here and needs a port for itself.
const addrsInterval = time.Minute

// localAddrs returns the addresses of this node that a task may have, sorted. Addresses
// of the loopback and of single links are none, and the latter come and go with each
// container.
func localAddrs(read func() ([]net.Addr, error)) ([]netip.Addr, error) {
	ifaces, err := read()
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, a := range ifaces {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		addrs = append(addrs, p.Addr().Unmap())
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs), nil
}

// followAddrs has services translated again when this node has other addresses than
// before. It asks once in addrsInterval.
func (b *Bridge) followAddrs(ctx context.Context, now time.Time) {
	if now.Sub(b.addrsRead) < addrsInterval {
		return
	}
	b.addrsRead = now
	if addrs, err := localAddrs(b.opts.Interfaces); err != nil || slices.Equal(addrs, b.addrs) {
		return // what was known is better than nothing
	}
	b.log.Info("addresses of this node changed")
	b.retranslate(ctx, b.config)
}
