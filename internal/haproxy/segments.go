package haproxy

import (
	"fmt"
	"strings"
)

// split cuts text at marks and map tokens.
func split(text string) ([]segment, error) {
	var out []segment
	for {
		mark, token := strings.IndexByte(text, 0), strings.Index(text, mapToken)
		at := mark
		if mark < 0 || token >= 0 && token < mark {
			at = token
		}
		if at < 0 {
			return append(out, segment{text: text}), nil
		}
		if at > 0 {
			out = append(out, segment{text: text[:at]})
		}
		if at == mark {
			out = append(out, segment{mark: text[at+1]})
			text = text[at+2:]
			continue
		}
		name, rest, ok := strings.Cut(text[at+len(mapToken):], ")")
		if !ok || !isName(name) {
			return nil, fmt.Errorf("%.40q: want %sNAME)", text[at:], mapToken)
		}
		out = append(out, segment{mapName: name})
		text = rest
	}
}

// oneLine refuses values that would end their line, or stand for one of our marks.
func oneLine(value string) error {
	if i := strings.IndexAny(value, "\n\r\x00"); i >= 0 {
		return fmt.Errorf("%.60q: a line break or NUL byte inside a value", value)
	}
	return nil
}
