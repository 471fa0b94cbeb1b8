package haproxy

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const stateHeader = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port\n"

func FuzzReplies(f *testing.F) {
	f.Add([]byte(stateHeader + "2 a 1 s1 127.0.0.1 0 5 1 1 0 8 2 0 6 0 0 0 - 29881 - 0 0 - - 0\n"))
	f.Add([]byte("# be_name srv_name srv_addr srv_port srv_admin_state srv_uweight\na b :: 1 0x08 256\n"))
	f.Add([]byte("Name: HAProxy\nVersion: 2.6.12-1+deb12u4\nPid: 8617\ndescription: bridged-0123456789ab-7\nStopping: 1\n"))
	f.Add([]byte("# id (file) description\n2 (/tmp/h.7.map) pattern loaded from file '/tmp/h.map' used by map at file '/tmp/h.cfg' line 20.\n"))
	f.Add([]byte("0x55cd6922c810 80 c\n0x55cd6922c8c0 80 d\n"))
	f.Add([]byte("#<PID> <type> <reloads>\n1 master 3 [failed: 1] 0d\n# workers\n2 worker 0\n# old workers\n3 worker 1\n"))
	f.Fuzz(func(t *testing.T, reply []byte) {
		for name, have := range parseServersState(reply) {
			for _, s := range have.servers {
				if s.Name == "" || s.Weight < 0 || s.Weight > 256 || s.State > Maint {
					t.Errorf("backend %q has %+v", name, s)
				}
			}
		}
		for _, path := range parseMapList(reply) {
			if !isWord(path) {
				t.Errorf("map path %q would not be one word", path)
			}
			mapName(path)
		}
		parseMap(reply)
		parseInfo(reply)
		p := parseProcs(reply)
		if slices.ContainsFunc(append(p.Workers, p.Old...), func(pid int) bool { return pid <= 0 }) {
			t.Errorf("procs %+v", p)
		}
	})
}

func TestParseServersState(t *testing.T) {
	got := parseServersState([]byte(stateHeader +
		"2 a 1 s1 127.0.0.1 2 0 3 1 0 8 2 0 6 0 0 0 - 29881 - 0 0 - - 0\n" +
		"2 a 2 s2 - 0 8 0 1 0 1 0 0 8 0 0 0 name.example 80 - 0 0 - - 0\n" +
		"nonsense\n" +
		"3 b 1 v6 2001:db8::1 0 4 1 20 0 1 0 0 8 0 0 0 - 1 - 0 0 - - 0\n" +
		"2 a 3 s3 127.0.0.3 0 5 1 1 0 1 0 0 8 0 0 0 - 1 - 0 0 - - 0\n" +
		"3 b 2 by-dns 127.0.0.3 0 32 1 1 0 1 0 0 8 0 0 0 - 1 - 0 0 - - 0\n"))
	want := map[string]*running{
		"a": {servers: []runningServer{
			{Name: "s1", Addr: netip.MustParseAddrPort("127.0.0.1:29881"), Weight: 3},
			{Name: "s2", State: Drain},
			{Name: "s3", Addr: netip.MustParseAddrPort("127.0.0.3:1"), State: Maint, Weight: 1},
		}},
		"b": {servers: []runningServer{
			// 4: in maintenance in the configuration, made ready since.
			{Name: "v6", Addr: netip.MustParseAddrPort("[2001:db8::1]:1"), Weight: 1},
			{Name: "by-dns", Addr: netip.MustParseAddrPort("127.0.0.3:1"), State: Maint, Weight: 1},
		}},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(running{}, runningServer{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestParseProcs(t *testing.T) {
	for name, tt := range map[string]struct {
		reply string
		want  Procs
	}{
		"2.2": {"#<PID>          <type>          <relative PID>  <reloads>       <uptime>        <version>      \n23487           master          0               0               0d00h00m01s     2.2.9-2+deb11u6\n# workers\n23490           worker          1               0               0d00h00m01s     2.2.9-2+deb11u6\n# programs\n\n",
			Procs{Master: 23487, Workers: []int{23490}}},
		"2.6-after-a-failed-reload": {"#<PID> <type> <reloads> <uptime> <version>\n10 master 2 [failed: 1] 0d00h00m01s 2.6.12\n# workers\n12 worker 0 0d00h00m01s 2.6.12\n# old workers\n11 worker 1 0d00h00m09s 2.6.12\n# programs\n\n",
			Procs{Master: 10, Workers: []int{12}, Old: []int{11}, Failed: 1}},
		"3.4": {"#<PID> <type> <reloads> <uptime> <version>\n10 master 2 [failed: 0] 0d00h00m01s 3.4.0\n# workers\n\n# old workers\n12 worker 0 0d00h00m01s 3.4.0\n\n",
			Procs{Master: 10, Old: []int{12}}},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(tt.want, parseProcs([]byte(tt.reply))); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestMapName(t *testing.T) {
	for path, want := range map[string]string{
		"/etc/haproxy/ports.7.map":           "ports",
		"/etc/haproxy/http.routes.12.map":    "http.routes",
		"/etc/haproxy/ports.map":             "",
		"/etc/haproxy/ports.x.map":           "",
		"/etc/haproxy/ports..map":            "",
		"/etc/haproxy/.7.map":                "",
		"/etc/haproxy/blocked-addresses.txt": "",
	} {
		if got := mapName(path); got != want {
			t.Errorf("mapName(%q) = %q, want %q", path, got, want)
		}
	}
}

func TestParseMap(t *testing.T) {
	got := parseMap([]byte("0x55cd6922c810 www.example.com be web\n0x55cd6922c8c0 80 c\n0x1 80 d\nno-pointer x y\n0x2 alone\n\n"))
	if d := cmp.Diff(map[string]string{"www.example.com": "be web", "80": "c"}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func FuzzGeneration(f *testing.F) {
	f.Add("bridged-0123456789ab-7")
	f.Add("bridged-0123456789ab-007")
	f.Add("bridged-gen-7")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		structure, seq, ok := ParseGeneration(text)
		if ok && FormatGeneration(structure, seq) != text {
			t.Errorf("%q is read as %q, %d", text, structure, seq)
		}
		if !ok && (structure != "" || seq != 0) {
			t.Errorf("%q is not ours but gives %q, %d", text, structure, seq)
		}
	})
}

func TestGeneration(t *testing.T) {
	text := FormatGeneration("0123456789abcdef0123456789abcdef", 42)
	if text != "bridged-0123456789ab-42" {
		t.Errorf("formatted as %q", text)
	}
	if structure, seq, ok := ParseGeneration(text); structure != "0123456789ab" || seq != 42 || !ok {
		t.Errorf("parsed as %q, %d, %t", structure, seq, ok)
	}
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]Version{
		"2.6.12-1+deb12u4": {2, 6}, "3.4.0": {3, 4}, "2.9-dev3-abc": {2, 9}, "3.2.5-ad1c": {3, 2}, " 2.2.9\n": {2, 2}, "10.11": {10, 11},
	} {
		if got, err := ParseVersion(text); err != nil || got != want {
			t.Errorf("ParseVersion(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "2", "x.y", "2.", ".6", "-1.5", "0.9"} {
		if got, err := ParseVersion(text); err == nil {
			t.Errorf("ParseVersion(%q) = %v, want an error", text, got)
		}
	}
}
