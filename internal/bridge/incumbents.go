package bridge

import (
	"bufio"
	"os"
	"strconv"
	"strings"
)

// incumbents reads which proxy stands on which port in the haproxy.cfg that an earlier
// bridge has written, so that of two apps that want one port the one that has it keeps
// it over a restart. The file is the running state as far as that can be had: HAProxy does
// not tell the addresses of its listeners. A file of somebody else's, or none, has none.
func incumbents(path string) map[uint16]string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	ports := map[uint16]string{}
	ours, proxy := false, ""
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		words := strings.Fields(sc.Text())
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "description":
			ours = ours || strings.HasPrefix(words[1], "bridged-")
		case "listen", "frontend":
			proxy = words[1]
		case "global", "defaults", "backend", "userlist":
			proxy = ""
		case "bind":
			port, err := strconv.ParseUint(words[1][strings.LastIndexByte(words[1], ':')+1:], 10, 16)
			if err == nil && port > 0 && proxy != "" {
				ports[uint16(port)] = proxy
			}
		}
	}
	if !ours || sc.Err() != nil {
		return nil
	}
	return ports
}
