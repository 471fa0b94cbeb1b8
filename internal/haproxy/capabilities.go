package haproxy

import (
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// Version is the major and minor number of a HAProxy; its fixes are not told apart.
type Version struct{ Major, Minor int }

// AtLeast reports whether v is major.minor or newer.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

func (v Version) String() string { return strconv.Itoa(v.Major) + "." + strconv.Itoa(v.Minor) }

// ParseVersion reads the numbers that open a version as `show info` and `haproxy -v`
// print it: "2.6.12-1+deb12u4", "3.4.0", "3.1-dev3-4a1c2f".
func ParseVersion(text string) (Version, error) {
	major, rest, ok := strings.Cut(strings.TrimSpace(text), ".")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	var v Version
	var errMajor, errMinor error
	v.Major, errMajor = strconv.Atoi(major)
	v.Minor, errMinor = strconv.Atoi(rest[:end])
	if !ok || errMajor != nil || errMinor != nil || v.Major < 1 {
		return Version{}, fmt.Errorf("HAProxy version %.40q: want numbers such as 2.6.12", text)
	}
	return v, nil
}

// BinaryVersion asks a haproxy program for its version, for where none runs to be asked.
func BinaryVersion(ctx context.Context, binary string) (Version, error) {
	out, err := exec.CommandContext(ctx, cmp.Or(binary, "haproxy"), "-v").Output()
	if err != nil {
		return Version{}, fmt.Errorf("%s -v: %w", binary, err)
	}
	// "HAProxy version 2.6.12-1+deb12u4 2023/12/16 - …", before 2.4 "HA-Proxy version …".
	_, rest, _ := strings.Cut(string(out), "version ")
	v, err := ParseVersion(rest)
	if err != nil {
		return Version{}, fmt.Errorf("%s -v: %w", binary, err)
	}
	return v, nil
}

// Capabilities is what one HAProxy can do, decided once per worker from its version. It
// is the only place that knows versions: all other code asks for a capability by name.
//
// Sources: the CHANGELOG and doc/management.txt of each branch.
type Capabilities struct {
	Version Version

	// AddServer: `add server` works without experimental-mode (2.6; 2.4 and 2.5 ask for it).
	AddServer bool

	// DynamicServers: servers come and go at run time, named by their address. Not before
	// 2.9, although the commands exist: `del server` there frees servers that streams still
	// use (fixed upstream by 95c4d2482 and 1b8c5abee, which Debian's 2.6 does not have),
	// and runtime servers reuse no idle connection (8a31783b6) and get consistent-hash keys
	// from a wrong id (2ff861747).
	DynamicServers bool

	// SetAddr: `set server addr` is applied before it is answered. From 2.9 on it is queued,
	// and a change that returns to the address still in force is lost, so we never send it.
	SetAddr bool

	ServerCookie    bool // `add server … cookie` (3.0)
	HashKey         bool // `hash-key addr-port` on servers (3.0)
	InitState       bool // `init-state` on servers (3.1)
	DynamicBackends bool // `add backend … from` (3.4)

	ReloadAnswers bool // the master's `reload` waits and says Success=0|1 (2.7)
	NamedDefaults bool // `defaults NAME`, `from NAME` (2.4)

	// HTTPClient: the httpclient exists and `httpclient.ssl.verify` configures it (2.6).
	// Without that line each start and each check loads the system's CA store, 65 to 120 ms.
	HTTPClient bool

	BindCurves bool // `ssl-default-bind-curves` (2.9)

	// IdleCloseOnResponse: `option idle-close-on-response` (2.4).
	IdleCloseOnResponse bool
}

// CapabilitiesOf says what a HAProxy of version v can do.
func CapabilitiesOf(v Version) Capabilities {
	return Capabilities{
		Version:             v,
		AddServer:           v.AtLeast(2, 6),
		DynamicServers:      v.AtLeast(2, 9),
		SetAddr:             !v.AtLeast(2, 9),
		ServerCookie:        v.AtLeast(3, 0),
		HashKey:             v.AtLeast(3, 0),
		InitState:           v.AtLeast(3, 1),
		DynamicBackends:     v.AtLeast(3, 4),
		ReloadAnswers:       v.AtLeast(2, 7),
		NamedDefaults:       v.AtLeast(2, 4),
		HTTPClient:          v.AtLeast(2, 6),
		BindCurves:          v.AtLeast(2, 9),
		IdleCloseOnResponse: v.AtLeast(2, 4),
	}
}

// A lack costs speed but nothing else; name is a metric's label.
type lack struct{ name, effect string }

func (c Capabilities) lacks() []lack {
	var out []lack
	if !c.AddServer {
		out = append(out, lack{"add-server", "no add server: a new server that keeps its name takes the slow lane"})
	}
	if !c.DynamicServers {
		out = append(out, lack{"del-server", "no safe del server: spare server slots stand in for servers made at run time"})
	}
	if !c.ReloadAnswers {
		out = append(out, lack{"reload-answer", "reload gives no answer: haproxy -c explains a refused configuration afterwards"})
	}
	return out
}

// Degraded says what this HAProxy cannot do and what is done in its place, for the log
// and for the status page; empty when it can do everything we use.
func (c Capabilities) Degraded() []string {
	var out []string
	for _, l := range c.lacks() {
		out = append(out, l.effect)
	}
	return out
}
