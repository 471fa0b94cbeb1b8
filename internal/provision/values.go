package provision

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Bytes is a size, written as 20GiB, 512MiB or 1TiB. Decimal units (GB) are
// refused, because vSphere counts in powers of two.
type Bytes int64

// Sizes.
const (
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

// MiB returns b in mebibytes, rounded up.
func (b Bytes) MiB() int64 { return int64((b + MiB - 1) / MiB) }

// GiB returns b in gibibytes, rounded up.
func (b Bytes) GiB() int64 { return int64((b + GiB - 1) / GiB) }

// String writes b in the largest unit that divides it.
func (b Bytes) String() string {
	switch {
	case b == 0:
		return "0"
	case b%TiB == 0:
		return fmt.Sprintf("%dTiB", b/TiB)
	case b%GiB == 0:
		return fmt.Sprintf("%dGiB", b/GiB)
	case b%MiB == 0:
		return fmt.Sprintf("%dMiB", b/MiB)
	}
	return fmt.Sprintf("%dB", int64(b))
}

// ParseBytes reads 20GiB, 1.5TiB, 512MiB.
func ParseBytes(s string) (Bytes, error) {
	for _, u := range []struct {
		suffix string
		unit   Bytes
	}{{"MiB", MiB}, {"GiB", GiB}, {"TiB", TiB}} {
		number, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		f, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || f < 0 || math.IsNaN(f) || math.IsInf(f, 0) || f > float64(1<<20) {
			return 0, fmt.Errorf("want a size like 20GiB, have %q", s)
		}
		b := Bytes(f * float64(u.unit))
		if b%MiB != 0 {
			return 0, fmt.Errorf("want a whole number of MiB, have %q", s)
		}
		return b, nil
	}
	return 0, fmt.Errorf("want a size with unit MiB, GiB or TiB, have %q", s)
}

// Range is a closed interval of IPv4 addresses.
type Range struct {
	First, Last netip.Addr
}

// Size is the number of addresses in r.
func (r Range) Size() int {
	return int(addrNumber(r.Last)-addrNumber(r.First)) + 1
}

// Contains reports whether a lies in r.
func (r Range) Contains(a netip.Addr) bool {
	return a.Compare(r.First) >= 0 && a.Compare(r.Last) <= 0
}

func (r Range) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

// ParseRange reads 10.0.0.5 or 10.0.0.5-10.0.0.9.
func ParseRange(s string) (Range, error) {
	first, last, two := strings.Cut(s, "-")
	a, err := parseIPv4(strings.TrimSpace(first))
	if err != nil {
		return Range{}, fmt.Errorf("want an IPv4 address or first-last, have %q", s)
	}
	if !two {
		return Range{a, a}, nil
	}
	b, err := parseIPv4(strings.TrimSpace(last))
	if err != nil {
		return Range{}, fmt.Errorf("want an IPv4 address or first-last, have %q", s)
	}
	if b.Less(a) {
		return Range{}, fmt.Errorf("range %s ends before it starts", s)
	}
	return Range{a, b}, nil
}

func parseIPv4(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err == nil && !a.Is4() {
		err = fmt.Errorf("%s is not an IPv4 address", s)
	}
	return a, err
}

// addrNumber is an IPv4 address as a number.
func addrNumber(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func addrFrom(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// Addresses of a group: its own ranges, or the word dhcp, or nothing for the
// network's ranges (DHCP when there are none).
type Addresses struct {
	DHCP   bool
	Ranges []Range
}

// Heap is the size of a Java heap; 0 is auto.
type Heap Bytes

func (h Heap) String() string {
	if h == 0 {
		return "auto"
	}
	return Bytes(h).String()
}

// MHz is written as 500MHz or 2GHz.
type MHz int

func (m MHz) String() string { return strconv.Itoa(int(m)) + "MHz" }

// ParseMHz reads 500MHz or 2.5GHz.
func ParseMHz(s string) (MHz, error) {
	number, giga := strings.CutSuffix(s, "GHz")
	if !giga {
		var mega bool
		if number, mega = strings.CutSuffix(s, "MHz"); !mega {
			return 0, fmt.Errorf("want a frequency like 500MHz, have %q", s)
		}
	}
	f, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || !(f >= 0 && f <= 1e6) {
		return 0, fmt.Errorf("want a frequency like 500MHz, have %q", s)
	}
	if giga {
		f *= 1000
	}
	return MHz(f), nil
}

// Percent is written as 50%.
type Percent int

func (p Percent) String() string { return strconv.Itoa(int(p)) + "%" }

// Count is a number (3) or a share of a group (10%), rounded down but at least 1.
type Count struct {
	N       int
	Percent int
}

// Of is the count for a group of n nodes.
func (c Count) Of(n int) int {
	if c.Percent > 0 {
		return max(1, n*c.Percent/100)
	}
	return c.N
}

func (c Count) String() string {
	if c.Percent > 0 {
		return strconv.Itoa(c.Percent) + "%"
	}
	return strconv.Itoa(c.N)
}

// sortedKeys gives a map's keys in order: everything that is printed, hashed
// or planned goes through maps in one order.
func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	return slices.Sorted(maps.Keys(m))
}
