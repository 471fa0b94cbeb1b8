package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// The test binary plays bridged when a test starts it as a process of its own.
	if args, ok := os.LookupEnv("BRIDGED_TEST_ARGS"); ok {
		os.Args = append(os.Args[:1], strings.Split(args, "\n")...)
		os.Unsetenv("BRIDGED_TEST_ARGS")
		main()
	}
	goleak.VerifyTestMain(m)
}

// result of one command.
type outcome struct {
	code           int
	stdout, stderr string
}

func command(t *testing.T, environ []string, args ...string) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), args, environ, &stdout, &stderr)
	return outcome{code, stdout.String(), stderr.String()}
}

func writeFile(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What an operator can get wrong ends the start with one line that names the place,
// the key and the remedy, and with exit code 2.
func TestBadInputAtStart(t *testing.T) {
	dir := t.TempDir()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	// A unix socket of a program that is not HAProxy.
	other := filepath.Join(dir, "other.sock")
	ln, err := net.Listen("unix", other)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "220 mail.example.com ESMTP\r\n")
			bufio.NewReader(conn).ReadString('\n')
			io.WriteString(conn, "500 command not recognised\r\n")
			conn.Close()
		}
	}()

	base := fmt.Sprintf("haproxy: {config: %s/haproxy.cfg, socket: %s/admin.sock, master_socket: %s/master.sock%%s}\nlisten: 127.0.0.1:0\nstate_dir: %s/state\n", dir, dir, dir, dir)
	file := func(name, text string) string { return writeFile(t, dir, name+".yaml", text) }
	ok := file("ok", fmt.Sprintf(base, ""))
	template := writeFile(t, dir, "bad.tmpl", "global\n{{.Nonsense\n")

	for _, tc := range []struct {
		name string
		args []string
		want string // the whole of stderr, but for the log
	}{
		{"unknown-config-key", []string{"--config", file("unknown", "marathon: {url: x}\n")},
			"bridged: " + dir + "/unknown.yaml:1: marathon.url: unknown key; did you mean marathon.urls?\n"},
		{"bad-url", []string{"--config", ok, "--marathon", "http://m1:http"},
			"bridged: --marathon: marathon.urls: want a URL such as http://m1:8080, have one that cannot be parsed\n"},
		{"unreadable-config-file", []string{"--config", dir + "/none.yaml"},
			"bridged: " + dir + "/none.yaml: cannot read the configuration file (--config): create it or correct the path: no such file or directory\n"},
		{"unreadable-marathons-file", []string{"--config", ok, "--marathons-file", dir + "/none"},
			"bridged: " + dir + "/none: marathon.urls_file: cannot read the list of Marathons: create it or correct the path: no such file or directory\n"},
		{"unreadable-template", []string{"--config", ok, "--marathon", "m1:8080", "--haproxy-template", dir + "/none"},
			"bridged: --haproxy-template: haproxy.template: cannot read " + dir + "/none: create it or correct the path: no such file or directory\n"},
		{"template-that-does-not-parse", []string{"--config", ok, "--marathon", "m1:8080", "--haproxy-template", template},
			"bridged: --haproxy-template: haproxy.template: cannot be used; correct it, or remove the key for the built-in one: template line 3: unclosed action started at haproxy.cfg:2\n"},
		{"listen-taken", []string{"--config", ok, "--marathon", "m1:8080", "--listen", taken.Addr().String()},
			"bridged: --listen: listen: cannot listen on " + taken.Addr().String() + "; stop what holds it or choose another address: bind: address already in use\n"},
		{"metrics-listen-taken", []string{"--config", ok, "--marathon", "m1:8080", "--metrics-listen", taken.Addr().String()},
			"bridged: --metrics-listen: metrics_listen: cannot listen on " + taken.Addr().String() + "; stop what holds it or choose another address: bind: address already in use\n"},
		{"socket-is-not-haproxys", []string{"--config", ok, "--marathon", "m1:8080", "--haproxy-socket", other},
			"bridged: --haproxy-socket: haproxy.socket: " + other + " does not answer as HAProxy does; name its stats socket: "},
		{"unknown-flag", []string{"--nonsense"}, "bridged: unknown flag: --nonsense; see bridged run --help\n"},
		{"argument", []string{"now"}, "bridged: bridged run takes no argument, have \"now\"; see bridged run --help\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := command(t, nil, append([]string{"run"}, tc.args...)...)
			if got.code != exitUsage {
				t.Errorf("exit code %d, want %d", got.code, exitUsage)
			}
			// Lines of the log are not what an operator is told to act on.
			var said []string
			for line := range strings.Lines(got.stderr) {
				if !strings.HasPrefix(line, "time=") {
					said = append(said, line)
				}
			}
			if len(said) != 1 || !strings.HasPrefix(said[0], tc.want) || strings.HasSuffix(tc.want, "\n") && said[0] != tc.want {
				t.Errorf("stderr:\n%swant:\n%s", strings.Join(said, ""), tc.want)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	for _, tc := range []struct {
		args []string
		code int
		err  string
	}{
		{nil, exitUsage, "bridged: name a command, such as: bridged run\n"},
		{[]string{"start"}, exitUsage, "bridged: unknown command \"start\"; see bridged --help\n"},
		{[]string{"--help"}, exitOK, ""},
		{[]string{"run", "--help"}, exitOK, ""},
		{[]string{"version"}, exitOK, ""},
		{[]string{"version", "x"}, exitUsage, "bridged: bridged version takes no argument, have \"x\"; see bridged version --help\n"},
	} {
		got := command(t, nil, tc.args...)
		if got.code != tc.code || got.stderr != tc.err {
			t.Errorf("bridged %s: exit code %d, want %d; stderr %q, want %q", strings.Join(tc.args, " "), got.code, tc.code, got.stderr, tc.err)
		}
	}
	if got := command(t, nil, "version"); !strings.HasPrefix(got.stdout, "bridged dev (go") {
		t.Errorf("version prints %q", got.stdout)
	}
}

// The service manager is told in the words of sd_notify(3).
func TestNotifier(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	ln, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, tc := range []struct {
		name    string
		environ []string
		want    string // watchdog
	}{
		{"no-manager", nil, "0s"},
		{"no-watchdog", []string{"NOTIFY_SOCKET=" + path}, "0s"},
		{"watchdog", []string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=3000000", "WATCHDOG_PID=7"}, "3s"},
		{"watchdog-of-another-process", []string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=3000000", "WATCHDOG_PID=8"}, "0s"},
		{"watchdog-that-is-no-number", []string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=often"}, "0s"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, err := newNotifier(tc.environ, 7)
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			if got := n.Watchdog().String(); got != tc.want {
				t.Errorf("watchdog %s, want %s", got, tc.want)
			}
			n.Notify("READY=1")
			if n == nil {
				return
			}
			buf := make([]byte, 64)
			k, err := ln.Read(buf)
			if err != nil || string(buf[:k]) != "READY=1" {
				t.Errorf("the manager heard %q, %v", buf[:k], err)
			}
		})
	}
	if _, err := newNotifier([]string{"NOTIFY_SOCKET=/nonexistent/notify"}, 7); err == nil {
		t.Error("a socket that is not there is no error")
	}
}

func TestFlagsSetKeys(t *testing.T) {
	cmd := &cobra.Command{Use: "run"}
	flags := addConfigFlags(cmd, []string{"BRIDGED_CONFIG=/etc/x"}, nil)
	args := "--marathon http://m1:8080,http://m2:8080 --haproxy-config /a --haproxy-socket /b --haproxy-master-socket /c --haproxy-binary /d --supervise --dialect marathon-lb --group x --group y --listen :1 --log-level debug"
	if err := cmd.ParseFlags(strings.Fields(args)); err != nil {
		t.Fatal(err)
	}
	got := flags.sources()
	want := map[string]string{
		"marathon.urls": "http://m1:8080,http://m2:8080", "haproxy.config": "/a", "haproxy.socket": "/b", "haproxy.master_socket": "/c",
		"haproxy.binary": "/d", "haproxy.supervise": "true", "dialect": "marathon-lb", "groups": "x,y", "listen": ":1", "log.level": "debug",
	}
	if diff := cmp.Diff(want, got.Flags); diff != "" {
		t.Errorf("keys set by flags (-want +got):\n%s", diff)
	}
	if got.File != "/etc/x" {
		t.Errorf("file %q, want that of BRIDGED_CONFIG", got.File)
	}
}
