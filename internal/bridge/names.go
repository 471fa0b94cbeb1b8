package bridge

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"math/big"
	"net/netip"
	"strconv"
	"strings"
)

// marathon-lb's names and identifiers. Dashboards, sticky sessions and deployment tools
// know them, so they are kept to the byte (marathon-lb v1.15.0, marathon_lb.py and
// utils.py).

// cleaned replaces every character that is not a letter, a digit or '-' by '_'.
func cleaned(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '-' || '0' <= r && r <= '9' || 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' {
			return r
		}
		return '_'
	}, s)
}

// hostStem is what ACL names of a vhost are made from.
func hostStem(host, appID string) string { return cleaned(host) + "_" + appName(appID) }

// mlbServerName names a server by agent, address and port.
func mlbServerName(host string, addr netip.AddrPort) string {
	var buf [128]byte
	ip := addr.Addr().AppendTo(buf[:0])
	name := ip
	if host != "" && host != string(ip) {
		name = append(append(make([]byte, 0, 128), host...), '_')
		name = append(name, ip...)
	}
	name = strconv.AppendUint(append(name, '_'), uint64(addr.Port()), 10)
	return cleaned(string(name))
}

// mlbCookie is the persistence cookie of a server.
func mlbCookie(serverName string) string {
	sum := sha1.Sum([]byte(serverName))
	return hex.EncodeToString(sum[:])[:10]
}

// maxServerID is the modulus of server ids.
var maxServerID = big.NewInt(32767)

// mlbServerID is the id of a server: a hash of its name, hashed again until it is free
// in its backend. It enters the id in used.
func mlbServerID(name string, used map[int]bool) int {
	for {
		sum := sha256.Sum256([]byte(name))
		n := new(big.Int).SetBytes(sum[:])
		if id := int(n.Mod(n, maxServerID).Int64()); id > 0 && !used[id] {
			used[id] = true
			return id
		}
		name += " " + hex.EncodeToString(sum[:])
	}
}
