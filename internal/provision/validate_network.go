package provision

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

var (
	macPrefix     = regexp.MustCompile(`^[0-9a-f]{2}(?::[0-9a-f]{2}){2,3}$`)
	interfaceName = regexp.MustCompile(`^[a-z][a-z0-9]{0,14}$`)
)

func (k *checker) network() {
	const at = "spec.network"
	n := &k.c.Spec.Network
	switch p := n.CIDR; {
	case !p.IsValid():
		k.missing(at+".cidr", "give the nodes' network, as in 10.20.0.0/22")
	case p.Masked() != p:
		k.bad("E07", at+".cidr", fmt.Sprintf("%s has host bits set", p), fmt.Sprintf("write %s", p.Masked()))
	case p.Bits() < 8 || p.Bits() > 30:
		k.bad("E07", at+".cidr", fmt.Sprintf("want a prefix of 8 to 30 bits, have %d", p.Bits()), "correct the prefix")
	case n.Gateway.IsValid() && !usable(p, n.Gateway):
		k.bad("E07", at+".gateway", fmt.Sprintf("%s is not a host of %s", n.Gateway, p), "correct the gateway or the cidr")
	}
	if !n.Gateway.IsValid() {
		k.missing(at+".gateway", "nodes with fixed addresses need a router")
	}
	if len(n.DNS) == 0 {
		k.bad("W02", at+".dns", "no name server is given", "packages and images are fetched by name; add one")
	}
	for i, a := range n.DNS {
		if !a.IsValid() {
			k.bad("E01", fmt.Sprintf("%s.dns[%d]", at, i), "is empty", "give an IPv4 address")
		}
	}
	if len(n.Domain) > 180 {
		k.bad("E12", at+".domain", fmt.Sprintf("want at most 180 bytes, have %d", len(n.Domain)), "host names with it may have 253")
	} else if n.Domain != "" {
		k.pattern("E12", at+".domain", n.Domain, domainName, "a DNS domain in lower case")
	}
	for i, server := range n.NTP {
		if _, err := netip.ParseAddr(server); err != nil && !domainName.MatchString(server) {
			k.bad("E01", fmt.Sprintf("%s.ntp[%d]", at, i), "want an address or a host name, have "+shown(server), "correct it")
		}
	}
	if n.MTU != 0 {
		k.between(at+".mtu", n.MTU, 576, 9216)
	}
	k.pattern("E01", at+".interface", n.Interface, interfaceName, "an interface name like eth0 or ens192")
	k.mac(at+".macPrefix", n)
	for key, proxy := range map[string]string{"http": n.Proxy.HTTP, "https": n.Proxy.HTTPS} {
		if proxy != "" {
			k.url(at+".proxy."+key, proxy, "http", "https")
		}
	}
	for i, host := range n.Proxy.No {
		if k.text(fmt.Sprintf("%s.proxy.no[%d]", at, i), host) && strings.ContainsAny(host, " ,\"'") {
			k.bad("E01", fmt.Sprintf("%s.proxy.no[%d]", at, i), "want one host, domain or network, have "+shown(host), "one item per host")
		}
	}
}

// mac checks the prefix: VMware keeps 00:50:56:00 to 00:50:56:3f for addresses
// that are set by hand, and the rest of it has to tell the nodes apart.
func (k *checker) mac(at string, n *Network) {
	if !macPrefix.MatchString(n.MACPrefix) {
		k.bad("E07", at, "want 3 or 4 octets like 00:50:56:2a, have "+shown(n.MACPrefix), "leave it out for 00:50:56")
		return
	}
	octets := strings.Split(n.MACPrefix, ":")
	if strings.HasPrefix(n.MACPrefix, "00:50:56") && len(octets) == 4 && octets[3] > "3f" {
		k.bad("E07", at, fmt.Sprintf("%s is outside 00:50:56:00 to 00:50:56:3f, which vCenter lets people set", n.MACPrefix), "choose a fourth octet up to 3f")
		return
	}
	if octets[0] > "" && strings.ContainsAny(octets[0][1:], "13579bdf") {
		k.bad("E07", at, n.MACPrefix+" is a multicast prefix", "the first octet has to be even")
		return
	}
	if bits := 32 - n.CIDR.Bits(); n.CIDR.IsValid() && bits > macBits(n.MACPrefix) {
		k.bad("E07", at, fmt.Sprintf("leaves %d bits, and addresses of %s differ in %d", macBits(n.MACPrefix), n.CIDR, bits), "give 3 octets, or a smaller network")
	}
}

// macBits is how many bits of an address a prefix leaves free.
func macBits(prefix string) int {
	switch {
	case strings.Count(prefix, ":") == 3:
		return 16
	case prefix == "00:50:56":
		return 22
	}
	return 24
}

func (k *checker) url(at, text string, schemes ...string) {
	u, err := url.Parse(text)
	switch {
	case !k.text(at, text):
	case err != nil || u.Host == "" || !slices.Contains(schemes, u.Scheme):
		k.bad("E01", at, fmt.Sprintf("is not an %s URL", strings.Join(schemes, " or ")), "write it like "+schemes[0]+"://host:port")
	case u.User != nil:
		k.bad("E17", at, "holds a user or a password", "guests would keep it readable; use a proxy or mirror without one")
	}
}

// usable reports whether a may be a host's address in p.
func usable(p netip.Prefix, a netip.Addr) bool {
	first := addrNumber(p.Masked().Addr())
	last := first | (1<<(32-p.Bits()) - 1)
	n := addrNumber(a)
	return p.Contains(a) && n != first && n != last
}

// addresses checks who gets which address.
func (k *checker) addresses() {
	spec, net := &k.c.Spec, &k.c.Spec.Network
	type claim struct {
		at   string
		what string
		r    Range
	}
	var claims []claim
	for i, r := range net.Ranges {
		claims = append(claims, claim{fmt.Sprintf("spec.network.ranges[%d]", i), "spec.network.ranges", r})
	}
	for i := range spec.Groups {
		for j, r := range spec.Groups[i].Addresses.Ranges {
			claims = append(claims, claim{fmt.Sprintf("spec.groups[%d].addresses[%d]", i, j), "group " + spec.Groups[i].Name, r})
		}
	}
	for i, c := range claims {
		if !c.r.First.IsValid() {
			continue
		}
		if net.CIDR.IsValid() && net.CIDR.Bits() >= 8 && net.CIDR.Bits() <= 30 {
			k.inside(c.at, c.r)
		}
		for _, o := range claims[:i] {
			if o.r.First.IsValid() && o.r.First.Compare(c.r.Last) <= 0 && c.r.First.Compare(o.r.Last) <= 0 && !(nested(o.r, c.r) && o.what == "spec.network.ranges" && o.what != c.what) {
				k.bad("E07", c.at, fmt.Sprintf("%s overlaps %s of %s", c.r, o.r, o.what), "give every address to one group")
				break
			}
		}
	}
	k.enoughAddresses()
}

// nested reports whether inner lies in outer: a group may take its own part of
// the network's ranges, which others then do not get.
func nested(outer, inner Range) bool {
	return outer.Contains(inner.First) && outer.Contains(inner.Last)
}

// inside checks a range against the network and the addresses that are taken.
func (k *checker) inside(at string, r Range) {
	net := &k.c.Spec.Network
	for _, a := range []netip.Addr{r.First, r.Last} {
		if !net.CIDR.Contains(a) {
			k.bad("E07", at, fmt.Sprintf("%s is outside %s", a, net.CIDR), "correct the range or spec.network.cidr")
			return
		}
		if !usable(net.CIDR, a) {
			k.bad("E07", at, fmt.Sprintf("%s is the network or the broadcast address of %s", a, net.CIDR), "leave it out")
			return
		}
	}
	if g := net.Gateway; g.IsValid() && r.Contains(g) {
		k.bad("E07", at, fmt.Sprintf("%s holds the gateway %s", r, g), "leave it out")
	}
	for _, d := range net.DNS {
		if d.IsValid() && d != net.Gateway && r.Contains(d) {
			k.bad("E07", at, fmt.Sprintf("%s holds the name server %s", r, d), "leave it out")
		}
	}
}

func (k *checker) enoughAddresses() {
	spec, net := &k.c.Spec, &k.c.Spec.Network
	if k.c.source.problems.taint("spec.groups") || k.c.source.problems.taint("spec.network") {
		return
	}
	sharing, needed, elastic := -1, 0, -1
	for i := range spec.Groups {
		g := &spec.Groups[i]
		at := fmt.Sprintf("spec.groups[%d]", i)
		need := g.count()
		if !g.quorum() {
			need += max(0, g.Strategy.MaxSurge)
		}
		if need > MaxNodes {
			return // that is the mistake
		}
		switch {
		case !g.fixed(net) && g.quorum():
			where := at + ".addresses"
			k.bad("E09", where, fmt.Sprintf("group %s would get its addresses by DHCP, and ZooKeeper and Mesos masters are found by address", g.Name), "give addresses, or spec.network.ranges")
		case !g.fixed(net):
		case g.shared(net):
			sharing, needed = i, needed+need
			if g.quorum() {
				continue
			}
			if elastic >= 0 {
				k.bad("E07", at+".addresses", fmt.Sprintf("groups %s and %s both take addresses from spec.network.ranges, so that a change of one count would move the other", spec.Groups[elastic].Name, g.Name), "give one of them addresses of its own")
			}
			elastic = i
		default:
			have := 0
			for _, r := range g.Addresses.Ranges {
				if r.First.IsValid() {
					have += r.Size()
				}
			}
			if have < need {
				k.bad("E08", at+".addresses", fmt.Sprintf("%d nodes need addresses and %d are given: %d too few", need, have, need-have), "add a range")
			}
		}
	}
	if have := len(k.c.pool(needed)); sharing >= 0 && have < needed {
		k.bad("E08", "spec.network.ranges", fmt.Sprintf("%d nodes need addresses and %d are given: %d too few", needed, have, needed-have), "add a range")
	}
}

// pool lists the first n addresses of the network's ranges that no group has for itself.
func (c *Cluster) pool(n int) []netip.Addr {
	var own []Range
	for i := range c.Spec.Groups {
		own = append(own, c.Spec.Groups[i].Addresses.Ranges...)
	}
	return list(c.Spec.Network.Ranges, own, n)
}

// list gives the first n addresses of ranges, leaving out those in except.
func list(ranges, except []Range, n int) []netip.Addr {
	addrs := make([]netip.Addr, 0, min(n, 1<<16))
	for _, r := range ranges {
		if !r.First.IsValid() {
			continue
		}
		for a := addrNumber(r.First); len(addrs) < n; a++ {
			addr := addrFrom(a)
			if at := slices.IndexFunc(except, func(e Range) bool { return e.First.IsValid() && e.Contains(addr) }); at >= 0 {
				a = addrNumber(except[at].Last)
			} else {
				addrs = append(addrs, addr)
			}
			if a >= addrNumber(r.Last) {
				break
			}
		}
	}
	return addrs
}

func (k *checker) topology() {
	owner := map[string]string{}
	names := map[string]bool{}
	for i := range k.c.Spec.Topology.Racks {
		r, at := &k.c.Spec.Topology.Racks[i], fmt.Sprintf("spec.topology.racks[%d]", i)
		if r.Name == "" {
			k.missing(at+".name", "name the rack; slaves get it as their attribute rack")
		} else if k.pattern("E12", at+".name", r.Name, shortName, "1 to 30 lower-case letters, digits, dashes, dots and _") && names[r.Name] {
			k.bad("E12", at+".name", fmt.Sprintf("two racks are called %s", r.Name), "rename one")
		}
		names[r.Name] = true
		if len(r.Hosts) == 0 {
			k.missing(at+".hosts", "list the rack's hosts")
		}
		for j, h := range r.Hosts {
			here := fmt.Sprintf("%s.hosts[%d]", at, j)
			switch other, taken := owner[h]; {
			case h == "":
				k.bad("E01", here, "is empty", "name a host")
			case taken && other == r.Name:
				k.bad("E12", here, fmt.Sprintf("the host %s stands twice", h), "remove one of the two")
			case taken:
				k.bad("E12", here, fmt.Sprintf("the host %s is in rack %s already", h, other), "a host stands in one rack")
			default:
				owner[h] = r.Name
			}
		}
	}
}
