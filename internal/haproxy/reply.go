package haproxy

import (
	"bytes"
	"fmt"
)

// verdict is what HAProxy's answer to a command means for what it runs now. Its text is a
// metric's label.
type verdict uint8

const (
	done    verdict = iota // it did what was asked
	already                // it was so before: what we believed was stale, the effect holds
	refused                // it did not; what runs is as before
	lost                   // no answer came: nothing is known
)

func (v verdict) String() string { return [...]string{"ok", "already", "refused", "lost"}[v] }

// CommandError is a runtime command that HAProxy refused.
type CommandError struct {
	Command string // the line
	Reply   string // HAProxy's answer, shortened
}

func (e *CommandError) Error() string {
	return fmt.Sprintf("HAProxy refused %q: %s", e.Command, e.Reply)
}

// judge says what reply means as the answer to a command. Each verb has its own expected
// answer, as severities do not help: "Unknown command" is a mere notice and "Invalid addr
// format" a success for whoever trusts them (server.c, map.c, cli.c of 2.2 to 3.4).
// Anything unexpected counts as refused.
func (v Verb) judge(reply []byte) verdict {
	reply = bytes.TrimSpace(reply)
	switch v {
	case AddServer:
		// Warnings about options may stand before it.
		if bytes.HasSuffix(reply, []byte("New server registered.")) {
			return done
		}
	case DelServer:
		if bytes.HasSuffix(reply, []byte("Server deleted.")) {
			return done
		}
		if bytes.Equal(reply, []byte("No such server.")) {
			return already
		}
	case SetAddr:
		// "IP changed from … to …, port changed …", "no need to change the addr, no need to
		// change the port", "nothing changed" (2.9). A refusal may follow the first half
		// ("no need to change the addr, invalid port"), so the known refusals go first.
		lower := bytes.ToLower(reply)
		for _, word := range []string{"invalid", "can't", "cannot", "missing", "problem"} {
			if bytes.Contains(lower, []byte(word)) {
				return refused
			}
		}
		if bytes.Contains(reply, []byte(" changed from ")) {
			return done
		}
		if bytes.HasPrefix(reply, []byte("no need to change")) || bytes.HasPrefix(reply, []byte("nothing changed")) {
			return already
		}
	case DelMap:
		if len(reply) == 0 {
			return done
		}
		if bytes.EqualFold(reply, []byte("Key not found.")) {
			return already
		}
	default: // SetState, SetWeight, EnableHealth, EnableAgent, ShutdownSessions, AddMap, SetMap
		if len(reply) == 0 {
			return done
		}
	}
	return refused
}

// shorten makes a reply fit for a log line: one line, at most 200 bytes. Help texts that
// follow an unknown command are of no use to anybody.
func shorten(reply []byte) string {
	reply = bytes.TrimSpace(reply)
	line, _, _ := bytes.Cut(reply, []byte("\n"))
	if len(line) > 200 {
		line = line[:200]
	}
	if len(line) == 0 {
		return "(empty answer)"
	}
	return string(bytes.ToValidUTF8(line, []byte("?")))
}
