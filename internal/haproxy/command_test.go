package haproxy

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

// readCommands splits wire text as HAProxy does (cli.c, cli_parse_request): lines, commands at
// ";", words at blanks, a backslash takes the next character as it is, and a last word that
// opens with "<<" makes the following lines a payload.
func readCommands(text []byte) (commands [][]string, payload bool) {
	for line := range bytes.Lines(text) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		var words []string
		var word []byte
		inWord := false
		flush := func() {
			if inWord {
				words = append(words, string(word))
			}
			word, inWord = nil, false
		}
		for i := 0; i < len(line); i++ {
			switch c := line[i]; {
			case c == '\\' && i+1 < len(line):
				i++
				word, inWord = append(word, line[i]), true
			case c == ' ' || c == '\t' || c == '\r' || c == '\v' || c == '\f':
				flush()
			case c == ';':
				flush()
				commands, words = append(commands, words), nil
			default:
				word, inWord = append(word, c), true
			}
		}
		flush()
		commands = append(commands, words)
		if len(words) > 0 && strings.HasPrefix(words[len(words)-1], "<<") {
			payload = true
		}
	}
	return commands, payload
}

// No value can add a command, a word or a line, and no name can reach another server.
func FuzzCommand(f *testing.F) {
	f.Add(uint8(AddServer), "be", "s1", "check inter 10s", "cookie", "/m.map", "key", "value", 5)
	f.Add(uint8(AddMap), "", "", "", "", "/etc/haproxy/hosts.1.map", "www.example.com", "be_web", 0)
	f.Add(uint8(SetState), "be;disable server x", "s1/../s2", "", "", "", "", "", 0)
	f.Add(uint8(AddServer), "be", "s", "check <<\nshutdown sessions", "a b", "", "", "", -1)
	f.Add(uint8(DelMap), "", "", "", "", "/m", "#0x1", "", 0)
	f.Add(uint8(AddMap), "", "", "", "", "/m", "<<", "\\;", 0)
	f.Add(uint8(AddServer), "be", "s", "sni\u00a0str(x)", "\x00", "", "", "", 256)
	f.Fuzz(func(t *testing.T, verb uint8, backend, server, options, cookie, path, key, value string, weight int) {
		c := Command{
			Verb: Verb(verb % uint8(verbs)), Backend: backend, Server: server, Options: options, Cookie: cookie,
			Map: path, Key: key, Value: value, Weight: weight, Addr: netip.MustParseAddrPort("192.0.2.1:80"),
		}
		text, err := c.appendTo([]byte("before\n"))
		if err != nil {
			if !errors.Is(err, errText) {
				t.Fatalf("unexpected error %v", err)
			}
			if string(text) != "before\n" {
				t.Fatalf("appended %q beside the error %v", text, err)
			}
			return
		}
		commands, payload := readCommands(text[len("before\n"):])
		if len(commands) != 1 || payload || len(text) > maxLine+len("before\n") {
			t.Fatalf("%q is %d commands, payload %t", text, len(commands), payload)
		}
		words := commands[0]
		if !strings.HasPrefix(strings.Join(words, " ")+" ", strings.Join(strings.Fields(c.Verb.String())[:2], " ")+" ") {
			t.Fatalf("%q is not %s", text, c.Verb)
		}
		switch c.Verb {
		case AddMap, SetMap:
			if len(words) != 5 || words[2] != path || words[3] != key || words[4] != value {
				t.Fatalf("%q has other words than %q %q %q", text, path, key, value)
			}
		case DelMap:
			if len(words) != 4 || words[2] != path || words[3] != key || strings.HasPrefix(words[3], "#") {
				t.Fatalf("%q has other words than %q %q", text, path, key)
			}
		default:
			target := words[2]
			if c.Verb == ShutdownSessions {
				target = words[3]
			}
			if target != backend+"/"+server || strings.Count(target, "/") != 1 {
				t.Fatalf("%q aims at %q, not at %q/%q", text, target, backend, server)
			}
		}
	})
}

func TestCommandRefuses(t *testing.T) {
	addr := netip.MustParseAddrPort("192.0.2.1:80")
	for name, c := range map[string]Command{
		"no-address":       {Verb: AddServer, Backend: "be", Server: "s"},
		"zone":             {Verb: SetAddr, Backend: "be", Server: "s", Addr: netip.MustParseAddrPort("[fe80::1%eth0]:80")},
		"weight-too-large": {Verb: SetWeight, Backend: "be", Server: "s", Weight: 257},
		"weight-negative":  {Verb: SetWeight, Backend: "be", Server: "s", Weight: -1},
		"no-backend":       {Verb: SetState, Server: "s"},
		"slash":            {Verb: SetState, Backend: "be", Server: "s/t"},
		"blank-in-cookie":  {Verb: AddServer, Backend: "be", Server: "s", Addr: addr, Cookie: "a b"},
		"resolvers":        {Verb: AddServer, Backend: "be", Server: "s", Addr: addr, Defaults: "check resolvers dns"},
		"tab-in-options":   {Verb: AddServer, Backend: "be", Server: "s", Addr: addr, Options: "check\tinter 1s"},
		"long-line":        {Verb: AddServer, Backend: "be", Server: "s", Addr: addr, Options: strings.Repeat("check ", 2000)},
		"reference":        {Verb: DelMap, Map: "/m", Key: "#0x7f00"},
		"empty-key":        {Verb: AddMap, Map: "/m", Value: "v"},
		"empty-value":      {Verb: AddMap, Map: "/m", Key: "k"},
	} {
		t.Run(name, func(t *testing.T) {
			if text, err := c.appendTo(nil); !errors.Is(err, errText) || len(text) > 0 {
				t.Errorf("text %q, error %v; want none and errText", text, err)
			}
		})
	}
}
