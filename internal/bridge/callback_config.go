package bridge

import (
	"fmt"
	"net"
	"net/netip"

	"bridged/internal/discovery"
)

// callback is where and from whom events of m are taken, as discovery knows it. An error
// is a value that cannot be read.
func (m *MarathonConfig) callback() (discovery.CallbackOptions, error) {
	o := discovery.CallbackOptions{Listen: m.Callback.Listen}
	if m.Callback.URL != "" {
		u, err := marathonURL(m.Callback.URL)
		if err != nil {
			return o, err
		}
		o.URL = u
	}
	for _, s := range m.Callback.From {
		p, err := prefixOf(s)
		if err != nil {
			return o, err
		}
		o.From = append(o.From, p)
	}
	return o, nil
}

// prefixOf reads a network, or an address as the network of that one alone.
func prefixOf(s string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("want an address or a network such as 10.0.0.0/24, have %q", s)
	}
	a = a.Unmap() // as senders are compared
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// callback checks where the Marathon m, whose keys stand below at, posts its events.
func (v *validator) callback(at string, m *MarathonConfig) {
	key, c := at+".callback.", &m.Callback
	for _, s := range c.From {
		if _, err := prefixOf(s); err != nil {
			v.add(key+"from", err.Error(), nil)
		}
	}
	if c.URL != "" {
		if _, err := marathonURL(c.URL); err != nil {
			v.add(key+"url", err.Error(), nil)
		}
	}
	switch {
	case c.Listen != "":
	case m.Transport == string(discovery.TransportCallback):
		v.add(key+"listen", at+".transport: callback needs it; set the host:port that Marathon posts its events to, such as 10.0.0.7:9378", nil)
		return
	case c.URL != "" || len(c.From) > 0:
		v.add(key+"listen", "is not set, so that nothing is taken in; set it, or remove what stands below "+at+".callback", nil)
		return
	default:
		return
	}
	before := len(v.problems)
	v.hostPort(key+"listen", c.Listen, false)
	if len(v.problems) > before {
		return
	}
	if c.Listen == v.c.Listen || c.Listen == v.c.MetricsListen {
		v.add(key+"listen", c.Listen+" is where bridged listens for others already; choose another port", nil)
	}
	host, _, _ := net.SplitHostPort(c.Listen)
	if addr, err := netip.ParseAddr(host); c.URL == "" && (host == "" || err == nil && addr.IsUnspecified()) {
		v.add(key+"url", "is needed where "+key+"listen is every address; set how Marathon reaches this node, such as http://node7:9378", nil)
	}
}
