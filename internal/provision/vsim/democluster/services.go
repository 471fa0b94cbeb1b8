package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"bridged/internal/provision"
	"bridged/internal/provision/vsim"
)

// Ports of the services, as the blueprint has them unless it says otherwise.
const (
	portZooKeeper = 2181
	portMaster    = 5050
	portSlave     = 5051
	portMarathon  = 8080
	portBridged   = 9377
)

// services stand in for what runs inside the nodes: they answer, on the nodes'
// own loopback addresses, what clusterctl asks ZooKeeper, Mesos, Marathon and
// bridged. The node with the lowest address leads; a drained slave is empty at once.
type services struct {
	mu      sync.Mutex // guards what follows
	nodes   map[string]*node
	drained map[string]bool // slaves by name
}

// node is one running node and its listeners.
type node struct {
	name    string
	address netip.Addr
	roles   []provision.Role
	closers []io.Closer
}

func (n *node) has(r provision.Role) bool { return slices.Contains(n.roles, r) }

func newServices() *services {
	return &services{nodes: map[string]*node{}, drained: map[string]bool{}}
}

func (s *services) start(g vsim.Guest) {
	if !g.Address.IsLoopback() {
		return // elsewhere nobody can be stood in for
	}
	var marks provision.Marks
	if json.Unmarshal([]byte(g.Extra[provision.MarkNode]), &marks) != nil {
		return
	}
	s.stop(g.Name)
	n := &node{name: g.Name, address: g.Address, roles: marks.Roles}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes[n.name] = n
	delete(s.drained, n.name)
	if n.has(provision.RoleZooKeeper) {
		n.listen(portZooKeeper, func(l net.Listener) { s.zookeeper(l, n) })
	}
	if n.has(provision.RoleMaster) {
		n.serve(portMaster, s.master(n))
	}
	if n.has(provision.RoleSlave) {
		n.serve(portSlave, http.HandlerFunc(healthy))
	}
	if n.has(provision.RoleMarathon) {
		n.serve(portMarathon, s.marathon())
	}
	n.serve(portBridged, http.HandlerFunc(healthy))
}

func (s *services) stop(name string) {
	s.mu.Lock()
	n := s.nodes[name]
	delete(s.nodes, name)
	s.mu.Unlock()
	if n == nil {
		return
	}
	for _, c := range n.closers {
		_ = c.Close()
	}
}

func (s *services) close() {
	s.mu.Lock()
	var names []string
	for name := range s.nodes {
		names = append(names, name)
	}
	s.mu.Unlock()
	for _, name := range names {
		s.stop(name)
	}
}

// listen serves on one of the node's ports; a port that is taken is left alone,
// and shows as a service that does not answer.
func (n *node) listen(port int, serve func(net.Listener)) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", netip.AddrPortFrom(n.address, uint16(port)).String())
	if err != nil {
		return
	}
	n.closers = append(n.closers, l)
	go serve(l) // ends with the listener
}

func (n *node) serve(port int, h http.Handler) {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	n.closers = append(n.closers, server)
	n.listen(port, func(l net.Listener) { _ = server.Serve(l) })
}

func healthy(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") }

// with lists the nodes of a role, the leader first.
func (s *services) with(r provision.Role) []*node {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*node
	for _, n := range s.nodes {
		if n.has(r) {
			list = append(list, n)
		}
	}
	slices.SortFunc(list, func(a, b *node) int { return a.address.Compare(b.address) })
	return list
}

// zookeeper answers mntr (ZooKeeper administrator's guide, "The Four Letter Words").
func (s *services) zookeeper(l net.Listener, n *node) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		word := make([]byte, 4)
		if _, err := io.ReadFull(conn, word); err == nil && string(word) == "mntr" {
			if list := s.with(provision.RoleZooKeeper); len(list) > 0 && list[0] == n {
				_, _ = fmt.Fprintf(conn, "zk_version\t3.8.0\nzk_server_state\tleader\nzk_synced_followers\t%d\n", len(list)-1)
			} else {
				_, _ = io.WriteString(conn, "zk_version\t3.8.0\nzk_server_state\tfollower\n")
			}
		}
		_ = conn.Close()
	}
}

// master answers what a Mesos master does (Mesos, HTTP endpoints and operator API).
func (s *services) master(self *node) http.Handler {
	pid := func(n *node) string { return "master@" + netip.AddrPortFrom(n.address, portMaster).String() }
	mux := http.NewServeMux()
	state := func(w http.ResponseWriter, _ *http.Request) {
		leader := self
		if list := s.with(provision.RoleMaster); len(list) > 0 {
			leader = list[0]
		}
		answer(w, map[string]any{"pid": pid(self), "leader": pid(leader), "activated_slaves": len(s.with(provision.RoleSlave))})
	}
	slaves := func(w http.ResponseWriter, _ *http.Request) {
		var list []map[string]any
		for _, n := range s.with(provision.RoleSlave) {
			slave := map[string]any{
				"id": n.name, "hostname": n.name, "active": true,
				"pid": "slave(1)@" + netip.AddrPortFrom(n.address, portSlave).String(),
			}
			s.mu.Lock()
			if s.drained[n.name] {
				slave["drain_info"] = map[string]string{"state": "DRAINED"}
			}
			s.mu.Unlock()
			list = append(list, slave)
		}
		answer(w, map[string]any{"slaves": list})
	}
	mux.HandleFunc("GET /health", healthy)
	mux.HandleFunc("GET /state", state)
	mux.HandleFunc("GET /master/state.json", state)
	mux.HandleFunc("GET /slaves", slaves)
	mux.HandleFunc("GET /master/slaves", slaves)
	mux.HandleFunc("/maintenance/schedule", func(w http.ResponseWriter, _ *http.Request) { answer(w, map[string]any{}) })
	mux.HandleFunc("/machine/", healthy)
	mux.HandleFunc("POST /api/v1", func(w http.ResponseWriter, r *http.Request) {
		type id struct {
			AgentID struct{ Value string } `json:"agent_id"`
		}
		var call struct {
			Type       string
			Drain      id `json:"drain_agent"`
			Reactivate id `json:"reactivate_agent"`
		}
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&call); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		switch call.Type {
		case "DRAIN_AGENT":
			s.drained[call.Drain.AgentID.Value] = true
		case "REACTIVATE_AGENT":
			delete(s.drained, call.Reactivate.AgentID.Value)
		}
	})
	return mux
}

// marathon answers what a Marathon without apps does.
func (s *services) marathon() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ping", healthy)
	mux.HandleFunc("GET /v2/leader", func(w http.ResponseWriter, _ *http.Request) {
		leader := ""
		if list := s.with(provision.RoleMarathon); len(list) > 0 {
			leader = net.JoinHostPort(list[0].address.String(), strconv.Itoa(portMarathon))
		}
		answer(w, map[string]string{"leader": leader})
	})
	mux.HandleFunc("GET /v2/tasks", func(w http.ResponseWriter, _ *http.Request) { answer(w, map[string]any{"tasks": []any{}}) })
	mux.HandleFunc("GET /v2/deployments", func(w http.ResponseWriter, _ *http.Request) { answer(w, []any{}) })
	return mux
}

func answer(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body)
}
