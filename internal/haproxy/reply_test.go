package haproxy

import "testing"

// The answers were captured from HAProxy 2.2, 2.6, 3.0 and 3.2.
func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		verb  Verb
		reply string
		want  verdict
	}{
		{AddServer, "New server registered.\n", done},
		{AddServer, "Ignoring cookie as HTTP mode is disabled.\nNew server registered.\n", done},
		{AddServer, "Already exists a server with the same name in backend.\n", refused},
		{AddServer, "'cookie' option is not accepted for dynamic server\n", refused},
		{AddServer, "unknown keyword 'foo'; did you mean 'tfo' maybe ?\n", refused},
		{AddServer, "No such backend.", refused},
		{AddServer, "", refused},
		{DelServer, "Server deleted.", done},
		{DelServer, "No such server.", already},
		{DelServer, "Only servers in maintenance mode can be deleted.", refused},
		{DelServer, "Server still has connections attached to it, cannot remove it.", refused},
		{SetAddr, "IP changed from '127.0.0.1' to '127.0.0.2', port changed from '1' to '29883' by 'stats socket command'\n", done},
		{SetAddr, "no need to change the addr, port changed from '1' to '2' by 'stats socket command'\n", done},
		{SetAddr, "no need to change the addr, no need to change the port by 'stats socket command'\n", already},
		{SetAddr, "nothing changed\n", already},
		{SetAddr, "Invalid addr 'nope' by 'stats socket command'\n", refused},
		{SetAddr, "", refused},
		{SetState, "", done},
		{SetState, "No such server.\n", refused},
		{SetState, "Permission denied\n", refused},
		{SetState, "Unknown command. Please enter one of the following commands only :\n  help\n", refused},
		{SetWeight, "", done},
		{SetWeight, "Absolute weight can only be between 0 and 256 inclusive.\n", refused},
		{SetWeight, "Backend is using a static LB algorithm and only accepts weights '0%' and '100%'.\n", refused},
		{EnableHealth, "Health check was not configured on this server, cannot enable.\n", refused},
		{AddMap, "", done},
		{AddMap, "Unknown map identifier. Please use #<id> or <file>.\n", refused},
		{SetMap, "entry not found.\n", refused},
		{DelMap, "", done},
		{DelMap, "Key not found.\n", already},
	} {
		if got := tt.verb.judge([]byte(tt.reply)); got != tt.want {
			t.Errorf("%s answered %q is %s, want %s", tt.verb, tt.reply, got, tt.want)
		}
	}
}

// Whatever HAProxy says, only the known answers count as success.
func FuzzJudge(f *testing.F) {
	f.Add(uint8(SetAddr), []byte("IP changed from 'a' to 'b'"))
	f.Add(uint8(AddServer), []byte("New server registered."))
	f.Fuzz(func(t *testing.T, verb uint8, reply []byte) {
		v := Verb(verb % uint8(verbs))
		got := v.judge(reply)
		if got == lost {
			t.Fatal("an answer is not lost")
		}
		if len(shorten(reply)) > 600 || shorten(reply) == "" {
			t.Fatalf("shortened to %q", shorten(reply))
		}
	})
}
