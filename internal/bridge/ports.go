package bridge

import (
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"bridged/internal/discovery"
	"bridged/internal/haproxy"
)

// claim is something that only one service may have: a listener or a proxy name.
type claim struct {
	addr string // of a listener; "" for a name
	port uint16
	name string
}

// contest is who wants one thing. The holder keeps it as long as it wants it, so that
// a newcomer never takes a port away from a service that runs.
type contest struct {
	holder  *entry
	seekers map[*entry]bool
}

func (f *fragment) claims() []claim {
	if f == nil {
		return nil
	}
	claims := []claim{{name: f.name}, {addr: wildcard(f.bind.Addr), port: f.bind.Port}}
	if f.specific() {
		// A listener on one address would take what is meant for a wildcard's on the same
		// port: it wants the wildcard too, and shares it with its like.
		claims = append(claims, claim{addr: "*", port: f.bind.Port})
	}
	return claims
}

// specific says whether the fragment listens on one address only.
func (f *fragment) specific() bool { return f.bind.Port != 0 && wildcard(f.bind.Addr) != "*" }

// wildcard gives the spellings of "every address" one name.
func wildcard(addr string) string {
	switch addr {
	case "", "*", "0.0.0.0", "::":
		return "*"
	}
	return addr
}

// setClaims enters what the wanted fragment of e needs, and gives up the rest.
func (t *Translator) setClaims(e *entry, w *work) {
	want := e.frag.claims()
	for _, cl := range e.claimed {
		gone := true
		for _, c := range want {
			gone = gone && c != cl
		}
		if gone {
			w.claims[cl] = true
			ct := t.contests[cl]
			delete(ct.seekers, e)
			if ct.holder == e {
				ct.holder = nil
			}
		}
	}
	for _, cl := range want {
		ct := t.contests[cl]
		if ct == nil {
			ct = &contest{seekers: make(map[*entry]bool)}
			t.contests[cl] = ct
		}
		if !ct.seekers[e] {
			ct.seekers[e] = true
			w.claims[cl] = true
		}
	}
	e.claimed = want
}

// decide finds the holder of what changed hands: who runs on it already; else a native
// service port before a port from a label; else the definition that is older; else the
// smaller id. Everyone who wants it is looked at again.
func (t *Translator) decide(cl claim, w *work) {
	ct := t.contests[cl]
	if ct == nil {
		return
	}
	if len(ct.seekers) == 0 {
		delete(t.contests, cl)
		return
	}
	if ct.holder == nil {
		running := t.opts.Incumbents[cl.port]
		for e := range ct.seekers {
			if ct.holder == nil || e.before(ct.holder, running) {
				ct.holder = e
			}
		}
	}
	for e := range ct.seekers {
		w.affect[e] = true
	}
}

// before orders two services that want one port, on which the proxy named running was found.
func (e *entry) before(other *entry, running string) bool {
	a, b := e.frag, other.frag
	if ra, rb := a.name == running, b.name == running; ra != rb {
		return ra
	}
	if a.view.override != b.view.override {
		return b.view.override
	}
	if x, y := a.view.app.LastConfigChange, b.view.app.LastConfigChange; x != y {
		return x < y
	}
	if x, y := a.view.owner, b.view.owner; x != y {
		return x < y
	}
	return e.index < other.index
}

// standing says whether e has all that its fragment needs; else why not.
func (t *Translator) standing(e *entry) *Rejection {
	f := e.frag
	if f.bind.Port != 0 {
		if by, ok := t.opts.Reserved[f.bind.Port]; ok {
			return e.loses(ReasonPortReserved, fmt.Sprintf("port %d is %s: give the app another service port", f.bind.Port, by))
		}
		for _, b := range t.sharedBinds() {
			if b.Port == f.bind.Port && (wildcard(b.Addr) == "*" || !f.specific() || b.Addr == f.bind.Addr) {
				return e.loses(ReasonPortReserved, fmt.Sprintf("port %d is a shared listener's: give the app another service port", f.bind.Port))
			}
		}
	}
	for _, cl := range e.claimed {
		holder := t.contests[cl].holder
		if holder == e || cl.addr == "*" && f.specific() && holder.frag.specific() {
			continue
		}
		by := fmt.Sprintf("%s[%d]", holder.frag.view.owner, holder.index)
		if cl.name != "" {
			return e.loses(ReasonNameClash, fmt.Sprintf("proxy name %s is taken by %s: give one of them another port or id", cl.name, by))
		}
		at := "port " + strconv.Itoa(int(cl.port))
		if cl.port == 0 {
			at = "socket " + cl.addr
		}
		return e.loses(ReasonPortClash, fmt.Sprintf("%s is taken by %s: give one of them another service port", at, by))
	}
	if t.needsOwnPort(e) {
		return e.loses(ReasonNodePort, fmt.Sprintf(
			"a task on this node needs port %d itself: set haproxy.bind to an address that tasks do not use, or give the app another service port", f.bind.Port))
	}
	return nil
}

// sharedBinds are the listeners that belong to no service.
func (t *Translator) sharedBinds() []haproxy.Bind {
	binds := t.opts.HTTPBinds
	if t.opts.Dialect == DialectMarathonLB {
		binds = append(slices.Clip(binds), t.opts.MarathonLB.AppIDBind, t.opts.MarathonLB.StatsBind)
	}
	return binds
}

func (e *entry) loses(reason Reason, detail string) *Rejection {
	return &Rejection{App: e.frag.view.owner, Index: e.index, Reason: reason, Detail: detail}
}

// needsOwnPort says whether a task on this node listens where HAProxy would.
func (t *Translator) needsOwnPort(e *entry) bool {
	f := e.frag
	if f.bind.Port == 0 || len(t.local) == 0 {
		return false
	}
	v := f.view
	if e.nodePort && e.nodePortFor == v.app.Version {
		return true
	}
	e.nodePort = false
	for _, task := range v.tasks {
		a := task.Addr
		if a.Port() != f.bind.Port || !t.local[a.Addr().Unmap()] {
			continue
		}
		if b := wildcard(f.bind.Addr); b == "*" || b == a.Addr().Unmap().String() {
			// Only a port that the definition asks for comes again at the next start.
			if v.app.RequirePorts || v.port.Host == f.bind.Port {
				e.nodePort, e.nodePortFor = true, v.app.Version
			}
			return true
		}
	}
	return false
}

// autoPortTries is how many hashed candidates marathon-lb looks at before it searches
// upwards.
const autoPortTries = 50

// assignPort gives a service of a container network without a service port one of the
// configured range, found as marathon-lb finds it from app id and task port. Unlike
// there the port is kept while the service exists, so that no other app's coming or
// going moves it. It says whether v.number is set.
func (t *Translator) assignPort(v *view) bool {
	o := t.opts.MarathonLB
	if v.entry.autoPort != 0 {
		v.number = v.entry.autoPort
		return true
	}
	if v.app.Network != discovery.ContainerNetwork || o.MaxAutoPort == 0 || len(v.tasks) == 0 {
		return false
	}
	size := uint32(o.MaxAutoPort) - uint32(o.MinAutoPort) + 1
	free := func(p uint16) bool { return t.auto[p] == nil && t.opts.Reserved[p] == "" }
	port := uint16(0)
	for i := range autoPortTries {
		sum := sha1.Sum(fmt.Appendf(nil, "%s-%d-%d", v.id, v.tasks[0].Addr.Port(), i))
		p := o.MinAutoPort + uint16(binary.BigEndian.Uint32(sum[:4])%size)
		if free(p) {
			port = p
			break
		}
	}
	for p := uint32(o.MinAutoPort); port == 0 && p <= uint32(o.MaxAutoPort); p++ {
		if free(uint16(p)) {
			port = uint16(p)
		}
	}
	if port == 0 {
		return false
	}
	t.auto[port] = v.entry
	v.entry.autoPort, v.number = port, port
	return true
}

// freePort gives an assigned port back.
func (t *Translator) freePort(e *entry) {
	if e.autoPort != 0 {
		delete(t.auto, e.autoPort)
		e.autoPort = 0
	}
}

// appName is an app id as it stands in proxy names.
func appName(id string) string {
	return strings.ReplaceAll(strings.TrimPrefix(id, "/"), "/", "_")
}

// serviceBind is the listener of a service port.
func serviceBind(v *view, o *TranslateOptions) haproxy.Bind {
	b := haproxy.Bind{Addr: o.Bind, Port: v.number}
	if v.set.bindAddr != "" {
		b.Addr = v.set.bindAddr
	}
	if strings.HasPrefix(b.Addr, "unix@") || strings.HasPrefix(b.Addr, "abns@") {
		b.Port = 0
	}
	words := make([]string, 0, 8)
	if len(v.set.certs) > 0 {
		words = append(words, "ssl")
		for _, c := range v.set.certs {
			words = append(words, "crt", c)
		}
	}
	b.Options = strings.Join(append(words, v.set.bindOptions...), " ")
	return b
}
