package inside

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"bridged/examples"
	"bridged/internal/provision"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stand is a cluster of HTTP and ZooKeeper stand-ins, one address of 127/8 per
// node, with the ports that the blueprint says.
type stand struct {
	t    *testing.T
	want *provision.Want

	mu       sync.Mutex
	zkLeader string              // guarded by mu, as all below
	mesos    string              // node that leads
	marathon string              // node that leads
	tasks    map[string][]string // slave node → task ids
	draining map[string]bool
	windows  json.RawMessage
	calls    []string
}

// freePort finds a port that is free on every address we use, near enough.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func newStand(t *testing.T, edits ...string) *stand {
	t.Helper()
	s := &stand{t: t, zkLeader: "dev-master-1", mesos: "dev-master-1", marathon: "dev-master-2", tasks: map[string][]string{}, draining: map[string]bool{}}
	ports := fmt.Sprintf("  services: {zookeeper: {clientPort: %d}, mesos: {port: %d, agentPort: %d}, marathon: {port: %d}, bridged: {port: %d}}\n  groups:\n",
		freePort(t), freePort(t), freePort(t), freePort(t), freePort(t))
	text := strings.NewReplacer(append([]string{
		"192.168.50.0/24", "127.77.0.0/16", "192.168.50.1  ", "127.77.0.1", "[192.168.50.1]", "[127.77.0.1]",
		"192.168.50.20-192.168.50.60", "127.77.0.20-127.77.0.60", "  groups:\n", ports,
	}, edits...)...).Replace(examples.Dev)
	manifests, err := provision.BuiltinManifests()
	if err != nil {
		t.Fatal(err)
	}
	c, problems := provision.Load("stand.yaml", []byte(text), manifests)
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	s.want, err = provision.Expand(c, manifests, func(*provision.Want, *provision.Node, provision.SecretFunc) (provision.Guest, error) {
		return provision.Guest{}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// start brings the services of a node up; the returned function takes them down.
func (s *stand) start(n *provision.Node) (stop func()) {
	services := &s.want.Cluster.Spec.Services
	var stops []func()
	web := func(port int, h http.HandlerFunc) {
		l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", n.Address(), port))
		if err != nil {
			s.t.Skipf("can't listen on %s: %v", n.Address(), err)
		}
		srv := httptest.NewUnstartedServer(h)
		srv.Listener.Close()
		srv.Listener = l
		srv.Start()
		stops = append(stops, srv.Close)
	}
	if n.Has(provision.RoleZooKeeper) {
		l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", n.Address(), services.ZooKeeper.ClientPort))
		if err != nil {
			s.t.Skipf("can't listen on %s: %v", n.Address(), err)
		}
		go s.zookeeper(l, n)
		stops = append(stops, func() { l.Close() })
		web(services.Mesos.Port, s.master(n))
		web(services.Marathon.Port, s.marathonServer(n))
	} else {
		web(services.Mesos.AgentPort, func(http.ResponseWriter, *http.Request) {})
	}
	web(services.Bridged.Port, func(http.ResponseWriter, *http.Request) {})
	return sync.OnceFunc(func() {
		for _, stop := range stops {
			stop()
		}
	})
}

func (s *stand) startAll() map[string]func() {
	stops := map[string]func(){}
	for _, n := range s.want.Nodes {
		stops[n.Name] = s.start(n)
		s.t.Cleanup(stops[n.Name])
	}
	return stops
}

func (s *stand) zookeeper(l net.Listener, n *provision.Node) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		word := make([]byte, 4)
		if _, err := io.ReadFull(conn, word); err == nil && string(word) == "mntr" {
			s.mu.Lock()
			switch s.zkLeader {
			case "":
				fmt.Fprintln(conn, "This ZooKeeper instance is not currently serving requests")
			case n.Name:
				fmt.Fprint(conn, "zk_version\t3.8.0\nzk_server_state\tleader\nzk_synced_followers\t2\n")
			default:
				fmt.Fprint(conn, "zk_version\t3.8.0\nzk_server_state\tfollower\n")
			}
			s.mu.Unlock()
		}
		conn.Close()
	}
}

func (s *stand) find(name string) *provision.Node {
	return s.want.Nodes[slices.IndexFunc(s.want.Nodes, func(n *provision.Node) bool { return n.Name == name })]
}

func (s *stand) master(n *provision.Node) http.HandlerFunc {
	pid := func(n *provision.Node) string {
		return fmt.Sprintf("master@%s:%d", n.Address(), s.want.Cluster.Spec.Services.Mesos.Port)
	}
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if r.Method == http.MethodPost {
			body, _ := io.ReadAll(r.Body)
			s.calls = append(s.calls, r.URL.Path+" "+string(body))
			if r.URL.Path == "/maintenance/schedule" {
				s.windows = body
				return
			}
			for _, slave := range s.want.With(provision.RoleSlave) {
				if strings.Contains(string(body), `"S-`+slave.Name+`"`) {
					s.draining[slave.Name] = strings.Contains(string(body), "DRAIN_AGENT")
					s.tasks[slave.Name] = nil
				}
			}
			return
		}
		if r.URL.Path == "/maintenance/schedule" {
			_, _ = w.Write([]byte(or(string(s.windows), "{}")))
			return
		}
		state := map[string]any{"pid": pid(n), "activated_slaves": len(s.want.With(provision.RoleSlave))}
		if s.mesos != "" {
			state["leader"] = pid(s.find(s.mesos))
		}
		var slaves, tasks []any
		for _, slave := range s.want.With(provision.RoleSlave) {
			agent := map[string]any{"id": "S-" + slave.Name, "hostname": slave.Address().String(), "pid": fmt.Sprintf("slave(1)@%s:5051", slave.Address()), "active": true}
			if s.draining[slave.Name] {
				agent["drain_info"] = map[string]string{"state": "DRAINED"}
			}
			slaves = append(slaves, agent)
			for _, id := range s.tasks[slave.Name] {
				tasks = append(tasks, map[string]string{"id": id, "slave_id": "S-" + slave.Name})
			}
		}
		state["slaves"], state["frameworks"] = slaves, []any{map[string]any{"tasks": tasks}}
		_ = json.NewEncoder(w).Encode(state)
	}
}

func (s *stand) marathonServer(*provision.Node) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		switch r.URL.Path {
		case "/v2/leader":
			if s.marathon == "" {
				http.Error(w, "{}", http.StatusNotFound)
				return
			}
			fmt.Fprintf(w, `{"leader": "%s:8080"}`, s.find(s.marathon).Address())
		case "/v2/tasks":
			var tasks []any
			for slave, ids := range s.tasks {
				for _, id := range ids {
					tasks = append(tasks, map[string]string{"id": id, "slaveId": "S-" + slave})
				}
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"tasks": tasks})
		case "/v2/tasks/delete":
			var body struct{ IDs []string }
			_ = json.NewDecoder(r.Body).Decode(&body)
			s.calls = append(s.calls, r.URL.String())
			for slave, ids := range s.tasks {
				s.tasks[slave] = slices.DeleteFunc(ids, func(id string) bool { return slices.Contains(body.IDs, id) })
			}
		}
	}
}

func TestLook(t *testing.T) {
	s := newStand(t)
	stops := s.startAll()
	v := Look(t.Context(), Options{Want: s.want})
	if v.ZooKeeper != "leader dev-master-1, 2 of 2 followers synced" || v.MesosLeader != "dev-master-1" || v.Marathon != "dev-master-2" || v.Slaves != 5 || !v.Reachable {
		t.Errorf("view %+v", v)
	}
	if got := v.Leaders(); !slices.Equal(got, []string{"dev-master-1", "dev-master-1", "dev-master-2"}) {
		t.Errorf("leaders %v", got)
	}
	for _, n := range v.Nodes {
		for service, state := range n.Services {
			if !slices.Contains([]string{"ok", "leader", "follower", "standby"}, state) {
				t.Errorf("%s on %s: %s", service, n.Name, state)
			}
		}
	}
	stops["dev-slave-3"]()
	v = Look(t.Context(), Options{Want: s.want})
	if got := v.service("dev-slave-3", "bridged"); got != "connection refused" {
		t.Errorf("bridged of a dead node: %q", got)
	}
}

func TestGates(t *testing.T) {
	s := newStand(t)
	stops := s.startAll()
	all := &provision.Gate{Nodes: []string{"dev-master-0", "dev-master-1", "dev-master-2"}, Services: []provision.Role{provision.RoleZooKeeper, provision.RoleMaster, provision.RoleMarathon}}
	without := &provision.Gate{Without: "dev-master-0"}
	expect := func(g *provision.Gate, want string) {
		t.Helper()
		err := Look(t.Context(), Options{Want: s.want}).holds(s.want, g)
		if got := fmt.Sprint(err); !strings.Contains(got, want) {
			t.Errorf("gate %+v: %s, want %s", *g, got, want)
		}
	}
	expect(all, "<nil>")
	expect(without, "<nil>")
	s.mu.Lock()
	s.marathon = ""
	s.mu.Unlock()
	expect(all, "marathon on dev-master-0: /v2/leader answers 404")
	expect(without, "<nil>")
	s.mu.Lock()
	s.marathon, s.mesos = "dev-master-0", ""
	s.mu.Unlock()
	expect(all, "no Mesos master leads")
	s.mu.Lock()
	s.mesos = "dev-master-1"
	s.mu.Unlock()
	stops["dev-master-2"]()
	expect(all, "on dev-master-2: connection refused")
	expect(without, "without dev-master-0 only 1 of 3 zookeeper nodes serve, and 2 are needed")
	expect(&provision.Gate{Without: "dev-master-2"}, "<nil>")
	s.mu.Lock()
	s.zkLeader = ""
	s.mu.Unlock()
	expect(&provision.Gate{Without: "dev-master-2"}, "without dev-master-2 only 0 of 3")
}

func TestReportedQuorum(t *testing.T) {
	s := newStand(t)
	have := &provision.Inventory{}
	for _, n := range s.want.Nodes {
		have.Machines = append(have.Machines, provision.Machine{
			Name: n.Name, Power: provision.PoweredOn, Marks: provision.Marks{Node: n.Name}, Report: provision.Report{Phase: provision.PhaseReady},
		})
	}
	if err := reported(s.want, have, &provision.Gate{Without: "dev-master-0"}); err != nil {
		t.Error(err)
	}
	have.Machines[2].Power = provision.PoweredOff
	err := reported(s.want, have, &provision.Gate{Without: "dev-master-0"})
	if err == nil || !strings.Contains(err.Error(), "only 1 of 3 zookeeper nodes is ready") {
		t.Errorf("error %v", err)
	}
	if err := reported(s.want, have, &provision.Gate{Without: "dev-slave-0"}); err != nil {
		t.Errorf("a slave holds no quorum: %v", err)
	}
}

func TestDrains(t *testing.T) {
	for _, test := range []struct{ name, distro, there, back string }{
		{"drain-agent", "mesos-1.11", `/api/v1 {"drain_agent":{"agent_id":{"value":"S-dev-slave-2"}`, `/api/v1 {"reactivate_agent":{"agent_id":{"value":"S-dev-slave-2"}}`},
		{"maintenance", "mesos-1.5", `/maintenance/schedule {"windows":[{"machine_ids":[{"hostname":"127.77.0.25","ip":"127.77.0.25"}]`, `/maintenance/schedule {"windows":[]}`},
		{"kill-only", "mesos-0.22", "/v2/tasks/delete?scale=false", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStand(t, "distro: mesos-1.11", "distro: "+test.distro)
			s.startAll()
			s.tasks["dev-slave-2"] = []string{"a.1", "a.2"}
			s.tasks["dev-slave-3"] = []string{"b.1"}
			g := &Guests{Options: Options{Want: s.want}}
			node := s.find("dev-slave-2")
			for _, kind := range []provision.StepKind{provision.StepDrain, provision.StepUndrain} {
				stage := &provision.Stage{Steps: []provision.Step{{ID: string(kind), Kind: kind, Node: node.Name, Want: node}}}
				if err := g.Apply(t.Context(), stage, provision.Run{Report: func(provision.Event) {}, Gate: provision.GateDirect}); err != nil {
					t.Fatal(err)
				}
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.tasks["dev-slave-2"]) > 0 || len(s.tasks["dev-slave-3"]) != 1 {
				t.Errorf("tasks left: %v", s.tasks)
			}
			calls := strings.Join(s.calls, "\n")
			for _, want := range []string{test.there, test.back} {
				if !strings.Contains(calls, want) {
					t.Errorf("no call %s in:\n%s", want, calls)
				}
			}
		})
	}
}

func TestDrainWithoutMesos(t *testing.T) {
	for force, want := range map[string]string{"false": "no Mesos master leads", "true": ""} {
		s := newStand(t, "      size: medium\n", "      size: medium\n      strategy: {drain: {force: "+force+"}}\n")
		s.startAll()
		s.mesos = ""
		g := &Guests{Options: Options{Want: s.want}}
		node := s.find("dev-slave-2")
		stage := &provision.Stage{Steps: []provision.Step{{ID: "drain x", Kind: provision.StepDrain, Node: node.Name, Want: node}}}
		err := g.Apply(t.Context(), stage, provision.Run{Report: func(provision.Event) {}, Gate: provision.GateAuto})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--gate guestinfo")) {
			t.Errorf("force %s: error %v, want %q with a remedy", force, err, want)
		}
	}
}

func TestNoRouteIsNotAnErrorUnlessDirect(t *testing.T) {
	s := newStand(t)
	have := &provision.Inventory{}
	g := &Guests{Options: Options{Want: s.want}, Inventory: func(context.Context) (*provision.Inventory, error) { return have, nil }, silent: true}
	if _, err := g.holds(t.Context(), &provision.Gate{}, provision.GateAuto); err != nil {
		t.Error(err)
	}
}
