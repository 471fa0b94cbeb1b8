package guest_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bridged/internal/provision"
)

// The ensemble's addresses are loopback ones, so that three servers run here on their real ports.
const loopbackEnsemble = `
apiVersion: bridged/v1
kind: Cluster
metadata: {name: zk}
spec:
  provider:
    vsphere: {cluster: C0, network: VM Network, datastores: [ds1]}
  image: {template: debian12, os: debian12}
  distro: mesos-1.11
  network: {cidr: 127.0.77.0/24, gateway: 127.0.77.254, dns: [127.0.77.254], ranges: [127.0.77.1-127.0.77.50]}
  access: {user: ops}
  groups:
    - {name: master, roles: [zookeeper, mesos-master, marathon], count: 3, size: small}
    - {name: slave, roles: [mesos-slave], count: 1, size: small}
`

// TestZooKeeperEnsemble starts a real ensemble from the rendered zoo.cfg and myid of three nodes.
func TestZooKeeperEnsemble(t *testing.T) {
	java := need(t, "java")
	const jar = "/usr/share/java/zookeeper.jar"
	if _, err := os.Stat(jar); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v; make deps brings it", err)
		}
		t.Skipf("%v; make deps brings it", err)
	}
	want := expand(t, "zk.yaml", []byte(loopbackEnsemble))
	ctx, cancel := context.WithCancel(t.Context())
	var servers []*exec.Cmd
	t.Cleanup(func() {
		cancel()
		for _, s := range servers {
			_ = s.Wait() // killed by cancel
		}
	})
	var addresses []string
	for _, n := range want.Nodes {
		if !n.Has(provision.RoleZooKeeper) {
			continue
		}
		dir := t.TempDir()
		var conf string
		for _, f := range files(t, want, n) {
			switch filepath.Base(f.Path) {
			case "zoo.cfg":
				conf = strings.Replace(f.Content, "dataDir=/var/lib/zookeeper\n", "dataDir="+dir+"\n", 1)
				if conf == f.Content {
					t.Fatalf("no dataDir in\n%s", conf)
				}
				// Every server binds its own address alone.
				conf += "clientPortAddress=" + n.Address().String() + "\n"
			case "myid":
				if err := os.WriteFile(filepath.Join(dir, "myid"), []byte(f.Content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		file := filepath.Join(dir, "zoo.cfg")
		if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
			t.Fatal(err)
		}
		server := exec.CommandContext(ctx, java, "-Xmx128m", "-Djava.net.preferIPv4Stack=true", "-cp", jar, "org.apache.zookeeper.server.quorum.QuorumPeerMain", file)
		log, err := os.Create(filepath.Join(dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			log.Close()
			if t.Failed() {
				text, _ := os.ReadFile(log.Name())
				t.Logf("%s:\n%s", n.Name, text[max(0, len(text)-3000):])
			}
		})
		server.Stdout, server.Stderr = log, log
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		servers = append(servers, server)
		addresses = append(addresses, net.JoinHostPort(n.Address().String(), "2181"))
	}
	if len(addresses) != 3 {
		t.Fatalf("want 3 servers, have %v", addresses)
	}

	// The gate that an upgrade uses: one leader, and it counts two synced followers.
	deadline, done := context.WithTimeout(ctx, 2*time.Minute)
	defer done()
	for {
		modes := map[string]int{}
		synced := ""
		for _, a := range addresses {
			answer := fourLetters(deadline, a, "mntr")
			for line := range strings.Lines(answer) {
				switch key, value, _ := strings.Cut(strings.TrimSpace(line), "\t"); key {
				case "zk_server_state":
					modes[value]++
				case "zk_synced_followers":
					synced = value
				}
			}
		}
		if modes["leader"] == 1 && modes["follower"] == 2 && strings.HasPrefix(synced, "2") {
			return
		}
		select {
		case <-deadline.Done():
			t.Fatalf("no quorum: modes %v, synced followers %q", modes, synced)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// fourLetters asks a ZooKeeper server; "" when it does not answer.
func fourLetters(ctx context.Context, address, word string) string {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return ""
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return ""
	}
	fmt.Fprint(conn, word)
	var b strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		b.Write(buf[:n])
		if err != nil {
			return b.String()
		}
	}
}
