// Package inside asks a running cluster's own services how they are, and has
// Mesos move tasks away from slaves that are about to change.
//
// Look gives a picture for people; Guests does the drains and gates of a plan
// (provision.Guests). Both ask all nodes at once, each with a deadline, and tell
// a service that is down from a network that does not lead there: where nothing
// at all answers, the operator's machine has no route to the nodes, and what
// they report through the hypervisor has to do (GateAuto). With GateDirect that
// is an error.
//
// Protocols: ZooKeeper's four-letter word mntr (ZooKeeper administrator's guide,
// "The Four Letter Words"), Mesos' /state, /slaves, /api/v1 and /maintenance
// endpoints (Mesos documentation, "HTTP endpoints", "Maintenance primitives"),
// Marathon's /ping, /v2/leader and /v2/tasks (Marathon REST API).
package inside

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"bridged/internal/provision"
)

// answerTimeout bounds one question to one service.
const answerTimeout = 2 * time.Second

// maxAnswer bounds what is read of an answer; /state of a large cluster is big.
const maxAnswer = 64 << 20

// Options say which cluster is asked.
type Options struct {
	Want *provision.Want
	// Address gives the address of a node that has none in the blueprint (DHCP);
	// nil: such nodes are left out.
	Address func(node string) netip.Addr
	// MarathonAuth gives user:password for Marathon; nil, or an error that is
	// provision.ErrNoSecret: none.
	MarathonAuth func() (string, error)
}

// asker asks services of nodes.
type asker struct {
	opt    Options
	client *http.Client
}

func newAsker(opt Options) *asker {
	return &asker{opt: opt, client: &http.Client{
		// No proxy, whatever the environment says: nodes are on the operator's own network.
		Transport: &http.Transport{Proxy: nil, DialContext: (&net.Dialer{Timeout: answerTimeout}).DialContext, DisableKeepAlives: true},
		// Redirects lead to the leader, under whatever name it gives itself.
		CheckRedirect: func(_ *http.Request, via []*http.Request) error {
			if len(via) > 3 {
				return errors.New("too many redirects")
			}
			return nil
		},
	}}
}

// Node is one node as its services describe it.
type Node struct {
	Name     string            `json:"name"`
	Services map[string]string `json:"services"` // service → ok, leader, follower, standby, or what is wrong
	asked    int
	silent   int // of these, how many did not answer for want of a route
}

// View is the cluster from the inside.
type View struct {
	Reachable   bool   `json:"reachable"`   // at least one service answered, or refused
	ZooKeeper   string `json:"zookeeper"`   // "leader dev-master-1, 2 of 2 followers synced"
	MesosLeader string `json:"mesosLeader"` // node name, "" for none
	Slaves      int    `json:"slaves"`      // active, as the leader says
	Marathon    string `json:"marathon"`    // node name of the leader, "" for none
	Nodes       []Node `json:"nodes"`

	zkLeader string
	synced   int // followers the ZooKeeper leader calls synced
}

// Look asks every service of every node.
func Look(ctx context.Context, opt Options) *View {
	a := newAsker(opt)
	view := &View{Nodes: make([]Node, len(opt.Want.Nodes))}
	var mu sync.Mutex // guards view but for Nodes, whose elements have one writer each
	var all sync.WaitGroup
	gate := make(chan struct{}, 64)
	for i, n := range opt.Want.Nodes {
		all.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			view.Nodes[i] = a.node(ctx, n, &mu, view)
		})
	}
	all.Wait()
	view.summarise(opt.Want)
	return view
}

func (a *asker) address(n *provision.Node) netip.Addr {
	if addr := n.Address(); addr.IsValid() || a.opt.Address == nil {
		return addr
	}
	return a.opt.Address(n.Name)
}

// node asks the services of one node, one after the other.
func (a *asker) node(ctx context.Context, n *provision.Node, mu *sync.Mutex, view *View) Node {
	out := Node{Name: n.Name, Services: map[string]string{}}
	addr := a.address(n)
	if !addr.IsValid() {
		return out
	}
	s := &a.opt.Want.Cluster.Spec.Services
	note := func(service, state string, err error) {
		out.asked++
		if err != nil {
			if unreachable(err) {
				out.silent++
			}
			state = cause(err)
		}
		out.Services[service] = state
	}
	if n.Has(provision.RoleZooKeeper) {
		stats, err := a.mntr(ctx, addr, s.ZooKeeper.ClientPort)
		note("zookeeper", stats["zk_server_state"], err)
		if stats["zk_server_state"] == "leader" {
			mu.Lock()
			view.zkLeader = n.Name
			view.synced, _ = strconv.Atoi(stats["zk_synced_followers"])
			mu.Unlock()
		}
	}
	if n.Has(provision.RoleMaster) {
		state, err := a.mesosState(ctx, addr)
		role := "follower"
		if err == nil && state.leads(addr) {
			role = "leader"
			mu.Lock()
			view.MesosLeader, view.Slaves = n.Name, state.Activated
			mu.Unlock()
		}
		note("mesos-master", role, err)
	}
	if n.Has(provision.RoleSlave) {
		note("mesos-slave", "ok", a.get(ctx, addr, s.Mesos.AgentPort, "/health", "", nil))
	}
	if n.Has(provision.RoleMarathon) {
		var leader struct{ Leader string }
		err := a.get(ctx, addr, s.Marathon.Port, "/v2/leader", a.marathonAuth(), &leader)
		role := "standby"
		if host, _, e := net.SplitHostPort(leader.Leader); err == nil && e == nil && (host == addr.String() || host == n.Name || strings.HasPrefix(host, n.Name+".")) {
			role = "leader"
			mu.Lock()
			view.Marathon = n.Name
			mu.Unlock()
		}
		note("marathon", role, err)
	}
	if n.Has(provision.RoleChronos) {
		note("chronos", "ok", a.get(ctx, addr, s.Chronos.Port, "/scheduler/jobs", "", nil))
	}
	if g := groupOf(a.opt.Want, n); g != nil && g.HAProxy {
		note("bridged", "ok", a.get(ctx, addr, s.Bridged.Port, "/readyz", "", nil))
	}
	return out
}

func groupOf(w *provision.Want, n *provision.Node) *provision.Group {
	for i := range w.Cluster.Spec.Groups {
		if g := &w.Cluster.Spec.Groups[i]; g.Name == n.Group {
			return g
		}
	}
	return nil
}

func (v *View) summarise(w *provision.Want) {
	for i := range v.Nodes {
		if v.Nodes[i].silent < v.Nodes[i].asked {
			v.Reachable = true
		}
	}
	servers := len(w.With(provision.RoleZooKeeper))
	switch {
	case v.zkLeader != "":
		v.ZooKeeper = fmt.Sprintf("leader %s, %d of %d followers synced", v.zkLeader, v.synced, servers-1)
	case servers == 1 && len(w.With(provision.RoleZooKeeper)) == 1:
		v.ZooKeeper = v.service(w.With(provision.RoleZooKeeper)[0].Name, "zookeeper")
	default:
		v.ZooKeeper = "no leader"
	}
}

// service is what a node's service said, "" when it was not asked.
func (v *View) service(node, service string) string {
	for i := range v.Nodes {
		if v.Nodes[i].Name == node {
			return v.Nodes[i].Services[service]
		}
	}
	return ""
}

// Leaders names the nodes that lead something now.
func (v *View) Leaders() []string {
	var names []string
	for _, n := range []string{v.zkLeader, v.MesosLeader, v.Marathon} {
		if n != "" {
			names = append(names, n)
		}
	}
	return names
}

// mntr asks a ZooKeeper server for its figures.
func (a *asker) mntr(ctx context.Context, addr netip.Addr, port int) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", netip.AddrPortFrom(addr, uint16(port)).String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn, "mntr"); err != nil {
		return nil, err
	}
	stats := map[string]string{}
	lines := bufio.NewScanner(io.LimitReader(conn, 1<<20))
	first := ""
	for lines.Scan() {
		if key, value, ok := strings.Cut(lines.Text(), "\t"); ok {
			stats[key] = strings.TrimSpace(value)
		} else if first == "" {
			first = lines.Text()
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if stats["zk_server_state"] == "" {
		// "This ZooKeeper instance is not currently serving requests": up, without quorum.
		return nil, fmt.Errorf("%.100s", or(first, "no answer to mntr"))
	}
	return stats, nil
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// mesosState is what is needed of a master's /state.
type mesosState struct {
	PID       string `json:"pid"`    // master@10.0.0.11:5050
	Leader    string `json:"leader"` // as PID
	Activated int    `json:"activated_slaves"`
}

func (s *mesosState) leads(addr netip.Addr) bool {
	return s.Leader != "" && s.Leader == s.PID && strings.Contains(s.PID, "@"+addr.String()+":")
}

func (a *asker) mesosState(ctx context.Context, addr netip.Addr) (*mesosState, error) {
	s := new(mesosState)
	path := or(a.opt.Want.Distro.Features.StateEndpoint, "/state")
	return s, a.get(ctx, addr, a.opt.Want.Cluster.Spec.Services.Mesos.Port, path, "", s)
}

func (a *asker) marathonAuth() string {
	if a.opt.MarathonAuth == nil {
		return ""
	}
	auth, err := a.opt.MarathonAuth()
	if err != nil {
		return ""
	}
	return auth
}

// get asks one service; into may be nil.
func (a *asker) get(ctx context.Context, addr netip.Addr, port int, path, auth string, into any) error {
	return a.do(ctx, http.MethodGet, addr, port, path, auth, nil, into)
}

func (a *asker) do(ctx context.Context, method string, addr netip.Addr, port int, path, auth string, body, into any) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var reader io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		reader = strings.NewReader(string(text))
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+netip.AddrPortFrom(addr, uint16(port)).String()+path, reader)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if user, password, ok := strings.Cut(auth, ":"); ok {
		req.SetBasicAuth(user, password)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s answers %s", path, resp.Status)
	}
	if into == nil || len(text) == 0 {
		return nil
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// unreachable tells a missing route from a service that is down: a host that is
// there refuses a connection, one that is not says nothing.
func unreachable(err error) bool {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return false
	}
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" || errors.Is(err, context.DeadlineExceeded)
}

// cause is the end of a chain of network errors.
func cause(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case unreachable(err):
		return "unreachable"
	}
	return err.Error()
}
