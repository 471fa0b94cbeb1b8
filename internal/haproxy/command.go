package haproxy

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Verb is a runtime command, as far as we use them. Its text is a metric's label.
type Verb uint8

const (
	AddServer Verb = iota
	DelServer
	SetState
	SetWeight
	SetAddr
	EnableHealth
	EnableAgent
	ShutdownSessions
	AddMap
	SetMap
	DelMap
	verbs // how many there are
)

var verbText = [verbs]string{
	AddServer:        "add server",
	DelServer:        "del server",
	SetState:         "set server state",
	SetWeight:        "set server weight",
	SetAddr:          "set server addr",
	EnableHealth:     "enable health",
	EnableAgent:      "enable agent",
	ShutdownSessions: "shutdown sessions server",
	AddMap:           "add map",
	SetMap:           "set map",
	DelMap:           "del map",
}

func (v Verb) String() string { return verbText[v] }

// Command is one line for the stats socket. Which fields count depends on the verb.
type Command struct {
	Verb    Verb
	Backend string
	Server  string
	Addr    netip.AddrPort // AddServer, SetAddr
	State   State          // SetState
	Weight  int            // SetWeight; AddServer: -1 for HAProxy's default
	ID      int            // AddServer: explicit id, 0 for none
	Cookie  string         // AddServer: "" for none

	// AddServer: the words of the backend's default-server, which HAProxy does not apply to
	// servers added at run time, and those of the server itself.
	Defaults, Options string

	Map        string // path by which the worker knows the map
	Key, Value string // of the map

	at int // where Server stood in running.servers when the command was made: a hint
}

// errText: a value that cannot stand on a command line. What asks for it has to be told
// to HAProxy through its file.
var errText = errors.New("cannot stand in a runtime command")

// maxLine keeps a line below tune.bufsize (16 384): HAProxy 3.x runs nothing of a longer
// one and closes the connection.
const maxLine = 8 << 10

var stateText = [...]string{Ready: "ready", Drain: "drain", Maint: "maint"}

func (s State) String() string { return stateText[s] }

// appendTo appends c as one line, with its line break. On error nothing is appended. The
// line holds exactly one command whatever the values are (management.txt, "Unix Socket
// commands": blanks separate words, ";" commands, "\" escapes, "<<" opens a payload):
// values with a meaning there are refused and never quoted, since the same text has to
// mean the same in haproxy.cfg, whose quoting differs.
func (c *Command) appendTo(buf []byte) ([]byte, error) {
	out := buf
	switch c.Verb {
	case AddServer:
		out = append(out, "add server "...)
		out = c.appendServer(out)
		out = append(out, ' ')
		out = c.Addr.AppendTo(out)
		for _, words := range [...]string{c.Defaults, c.Options} {
			if words != "" {
				out = append(out, ' ')
				out = append(out, words...)
			}
		}
		if c.Weight >= 0 {
			out = append(out, " weight "...)
			out = strconv.AppendInt(out, int64(c.Weight), 10)
		}
		if c.ID > 0 {
			out = append(out, " id "...)
			out = strconv.AppendInt(out, int64(c.ID), 10)
		}
		if c.Cookie != "" {
			out = append(out, " cookie "...)
			out = append(out, c.Cookie...)
		}
	case DelServer:
		out = append(out, "del server "...)
		out = c.appendServer(out)
	case SetState:
		out = append(out, "set server "...)
		out = c.appendServer(out)
		out = append(out, " state "...)
		out = append(out, stateText[c.State]...)
	case SetWeight:
		out = append(out, "set server "...)
		out = c.appendServer(out)
		out = append(out, " weight "...)
		out = strconv.AppendInt(out, int64(c.Weight), 10)
	case SetAddr:
		out = append(out, "set server "...)
		out = c.appendServer(out)
		out = append(out, " addr "...)
		out = c.Addr.Addr().AppendTo(out)
		out = append(out, " port "...)
		out = strconv.AppendUint(out, uint64(c.Addr.Port()), 10)
	case EnableHealth:
		out = append(out, "enable health "...)
		out = c.appendServer(out)
	case EnableAgent:
		out = append(out, "enable agent "...)
		out = c.appendServer(out)
	case ShutdownSessions:
		out = append(out, "shutdown sessions server "...)
		out = c.appendServer(out)
	case AddMap, SetMap, DelMap:
		out = append(out, verbText[c.Verb]...)
		out = append(out, ' ')
		out = append(out, c.Map...)
		out = append(out, ' ')
		out = append(out, c.Key...)
		if c.Verb != DelMap {
			out = append(out, ' ')
			out = append(out, c.Value...)
		}
	}
	out = append(out, '\n')
	if err := c.check(len(out) - len(buf)); err != nil {
		return buf, err
	}
	return out, nil
}

func (c *Command) appendServer(out []byte) []byte {
	out = append(out, c.Backend...)
	out = append(out, '/')
	return append(out, c.Server...)
}

// check refuses what would make another command of c, or several.
func (c *Command) check(length int) error {
	if length > maxLine {
		return fmt.Errorf("%s: line of %d bytes: %w", c.Verb, length, errText)
	}
	switch c.Verb {
	case AddMap, SetMap, DelMap:
		if !isWord(c.Map) || !isWord(c.Key) || c.Verb != DelMap && !isWord(c.Value) {
			return fmt.Errorf("%s %q: key %.60q, value %.60q: %w", c.Verb, c.Map, c.Key, c.Value, errText)
		}
		return nil
	}
	switch {
	case !isName(c.Backend) || !isName(c.Server):
		return fmt.Errorf("%s: server %.60q of backend %.60q: %w", c.Verb, c.Server, c.Backend, errText)
	case (c.Verb == AddServer || c.Verb == SetAddr) && (!c.Addr.IsValid() || c.Addr.Addr().Zone() != ""):
		return fmt.Errorf("%s %s/%s: address %s: %w", c.Verb, c.Backend, c.Server, c.Addr, errText)
	case (c.Verb == AddServer && c.Weight < -1 || c.Verb == SetWeight && c.Weight < 0) || c.Weight > 256:
		return fmt.Errorf("%s %s/%s: weight %d: want 0 to 256: %w", c.Verb, c.Backend, c.Server, c.Weight, errText)
	case c.Cookie != "" && !isWord(c.Cookie):
		return fmt.Errorf("%s %s/%s: cookie %.60q: %w", c.Verb, c.Backend, c.Server, c.Cookie, errText)
	}
	if c.Verb == AddServer {
		return errors.Join(checkOptions(c.Defaults), checkOptions(c.Options))
	}
	return nil
}

// isName reports whether s may name a proxy or a server (configuration.txt, 2.2: letters,
// digits, "-", "_", "." and ":").
func isName(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9',
			c == '-', c == '_', c == '.', c == ':':
		default:
			return false
		}
	}
	return true
}

// isWord reports whether s reaches HAProxy as one word, equal on a command line and in
// the configuration file, and as a key or value in a map file. Comments, variables, quotes
// and escapes of the file are out for the same reason as separators of the command line;
// "#" would besides make a reference of a map's key ("del map <map> #<ref>").
func isWord(s string) bool {
	if s == "" || strings.HasPrefix(s, "<<") {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c <= ' ' || c > '~':
			return false
		case c == ';', c == '\\', c == '"', c == '\'', c == '#', c == '$':
			return false
		}
	}
	return true
}

// runtimeless are the server options that no HAProxy takes from `add server`
// (management.txt, "add server", and server.c up to 3.4).
var runtimeless = map[string]bool{
	"enabled": true, "disabled": true, "resolvers": true, "init-addr": true, "resolve-prefer": true,
	"resolve-net": true, "resolve-opts": true, "redir": true, "namespace": true, "stick": true,
	"non-stick": true, "socks4": true, "max-reuse": true, "tcp-ut": true, "cc": true,
	"tcp-md5sig": true, "log-bufsize": true, "log-proto": true,
}

// checkOptions refuses options that `add server` does not take. Words that are the value
// of another option ("sni enabled") are refused too: nobody needs them.
func checkOptions(options string) error {
	for i := range len(options) {
		// Before any splitting: what else may be white space to one side is a word to the other.
		if options[i] < ' ' || options[i] > '~' {
			return fmt.Errorf("server options %.60q: %w", options, errText)
		}
	}
	for word := range strings.SplitSeq(options, " ") {
		if word != "" && (!isWord(word) || runtimeless[word]) {
			return fmt.Errorf("server option %.60q: %w", word, errText)
		}
	}
	return nil
}

// hasOption reports whether options, words separated by blanks, hold word.
func hasOption(options, word string) bool {
	for w := range strings.FieldsSeq(options) {
		if w == word {
			return true
		}
	}
	return false
}
