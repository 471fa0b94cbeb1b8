package discovery

import (
	"cmp"
	"strconv"
	"strings"
)

// version is Marathon's, as far as behaviour depends on it; zero while unknown.
type version struct{ major, minor, patch int }

// parseVersion takes the leading numbers: "0.8.2-RC3", "1.5.1.2" and
// "1.9.109-c9aba0f" were all seen.
func parseVersion(s string) version {
	var n [3]int
	for i, part := range strings.SplitN(s, ".", 4) {
		if i == len(n) {
			break
		}
		digits := part
		if end := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
			digits = part[:end]
		}
		v, err := strconv.Atoi(digits)
		if err != nil {
			break
		}
		n[i] = v
		if digits != part {
			break
		}
	}
	return version{n[0], n[1], n[2]}
}

func (v version) known() bool { return v != version{} }

func (v version) before(major, minor, patch int) bool {
	return cmp.Or(cmp.Compare(v.major, major), cmp.Compare(v.minor, minor), cmp.Compare(v.patch, patch)) < 0
}

// combinesHealth: instance_health_changed_event sums up all checks of an app,
// Marathon's own included (1.5.8, 1.6.486).
func (v version) combinesHealth() bool {
	switch {
	case v.before(1, 5, 8):
		return false
	case v.before(1, 6, 0):
		return true
	}
	return !v.before(1, 6, 486)
}

// hasDefinitions: api_post_event comes after the change and holds the definition.
func (v version) hasDefinitions() bool { return !v.before(0, 11, 0) }

// losesBursts: more than 50 events that wait for one subscriber are dropped.
func (v version) losesBursts() bool { return v.before(1, 5, 0) }

// goals: a condition is repeated when the goal of an instance changes.
func (v version) goals() bool { return !v.before(1, 8, 0) }
