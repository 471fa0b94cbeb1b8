package haproxy

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	parser "github.com/haproxytech/client-native/v5/config-parser"
	parsererrors "github.com/haproxytech/client-native/v5/config-parser/errors"
	"github.com/haproxytech/client-native/v5/config-parser/options"
	"github.com/haproxytech/client-native/v5/config-parser/types"
)

// Shape is what a configuration file consists of, read by config-parser: a second opinion
// beside our own reading and writing.
type Shape struct {
	Sockets  []types.Socket // stats sockets of global
	Sections []SectionShape // proxies, by kind and then by name
}

// SectionShape is one proxy of a Shape.
type SectionShape struct {
	Kind    Kind
	Name    string
	Binds   []Bind   // without options
	Servers []string // "name address"
}

// KindListen opens a section that is frontend and backend.
const KindListen Kind = "listen"

// parserMu: config-parser keeps the name of the latest defaults section in a variable of
// its package.
var parserMu sync.Mutex

// maxConfigLine is below what config-parser's line scanner takes: it ends without an error
// at a longer line, and everything behind it would be lost.
const maxConfigLine = 60 << 10

// ReadShape takes text apart. Only what cannot be read at all is an error: config-parser
// passes over lines that it does not know.
func ReadShape(text string) (Shape, error) {
	for line := range strings.Lines(text) {
		if len(line) > maxConfigLine {
			return Shape{}, fmt.Errorf("line of %d bytes: want at most %d", len(line), maxConfigLine)
		}
	}
	parserMu.Lock()
	defer parserMu.Unlock()
	p, err := parser.New(options.UseListenSectionParsers)
	if err != nil {
		return Shape{}, err
	}
	if err := p.Process(strings.NewReader(text)); err != nil {
		return Shape{}, err
	}
	var shape Shape
	if data, err := get(p, parser.Global, parser.GlobalSectionName, "stats socket"); err != nil {
		return Shape{}, err
	} else if sockets, ok := data.([]types.Socket); ok {
		shape.Sockets = sockets
	}
	for _, kind := range []parser.Section{parser.Frontends, parser.Backends, parser.Listen} {
		names, err := p.SectionsGet(kind)
		if err != nil {
			return Shape{}, err
		}
		for _, name := range names {
			s := SectionShape{Kind: Kind(kind), Name: name}
			if kind != parser.Backends {
				data, err := get(p, kind, name, "bind")
				if err != nil {
					return Shape{}, err
				}
				binds, _ := data.([]types.Bind)
				for _, b := range binds {
					s.Binds = append(s.Binds, parseBinds(b.Path)...)
				}
			}
			if kind != parser.Frontends {
				data, err := get(p, kind, name, "server")
				if err != nil {
					return Shape{}, err
				}
				servers, _ := data.([]types.Server)
				for _, server := range servers {
					s.Servers = append(s.Servers, server.Name+" "+server.Address)
				}
			}
			shape.Sections = append(shape.Sections, s)
		}
	}
	return shape, nil
}

// get is p.Get with nothing for what is not in the file.
func get(p parser.Parser, kind parser.Section, section, attribute string) (any, error) {
	data, err := p.Get(kind, section, attribute)
	if errors.Is(err, parsererrors.ErrFetch) {
		return nil, nil
	}
	return data, err
}

// parseBinds reads the addresses of a bind line: several separated by commas, each with a
// port, a range or neither. What is not understood is left out.
func parseBinds(path string) []Bind {
	var out []Bind
	for one := range strings.SplitSeq(path, ",") {
		b := Bind{Addr: one}
		if b.local() {
			out = append(out, b)
			continue
		}
		at := strings.LastIndexByte(one, ':')
		if at < 0 {
			continue
		}
		first, last, _ := strings.Cut(one[at+1:], "-")
		from, err := strconv.ParseUint(first, 10, 16)
		if err != nil || from == 0 {
			continue
		}
		b.Port = uint16(from)
		if to, err := strconv.ParseUint(last, 10, 16); err == nil && to > from {
			b.PortEnd = uint16(to)
		}
		// A family may be written before the address: ipv4@, ipv6@, quic4@ …
		addr := one[:at]
		if _, rest, ok := strings.Cut(addr, "@"); ok {
			addr = rest
		}
		b.Addr = cmp.Or(strings.Trim(addr, "[]"), "*")
		out = append(out, b)
	}
	return out
}
