package haproxy

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/haproxytech/client-native/v5/config-parser/params"
)

// OperatorFile is what stands in haproxy.cfg before we write it, as far as it is kept. The
// kept parts stand between marks in the file that we render, so that reading our own file
// gives them again, with what an operator has changed between the marks.
type OperatorFile struct {
	Ours       bool   // it was rendered by a bridged
	Generation string // then: its generation

	KeptGlobal   []string // see Global
	KeptDefaults []string
	KeptSections string
	SocketMode   string // options of the stats socket that is ours now, such as "mode 660 group bridged"

	// MapPaths are the map files that the file names, by map name.
	MapPaths map[string]string

	// Dropped are lines of global and defaults that we own and that said something else, for
	// the log of the takeover.
	Dropped []string
}

// OperatorFileError is a haproxy.cfg that cannot be taken over without losing something.
// It has not been touched.
type OperatorFileError struct {
	Path   string
	Line   int // 0: the file as a whole
	Detail string
}

func (e *OperatorFileError) Error() string {
	where := e.Path
	if e.Line > 0 {
		where = fmt.Sprintf("%s:%d", e.Path, e.Line)
	}
	return fmt.Sprintf("%s cannot be taken over: %s; move it away or change it (it was not touched)", where, e.Detail)
}

// maxConfig bounds what is read: 100 000 servers are 10 MB.
const maxConfig = 64 << 20

// sectionKeywords open a section when they are the first word of a line, indented or not
// (configuration.txt, 2.1).
var sectionKeywords = map[string]bool{
	"global": true, "defaults": true, "frontend": true, "backend": true, "listen": true, "userlist": true,
	"peers": true, "mailers": true, "resolvers": true, "cache": true, "program": true, "http-errors": true,
	"ring": true, "log-forward": true, "fcgi-app": true, "crt-store": true, "log-profile": true,
	"traces": true, "acme": true,
}

// ownedGlobal are the keywords of global that are ours, whatever the operator wrote.
// nbproc is among them because several processes cannot be driven through one socket, and
// the kept server state because it misroutes (it restores ports without addresses).
var ownedGlobal = []string{
	"description", "stats timeout", "hard-stop-after", "mworker-max-reloads", "spread-checks",
	"httpclient.ssl.verify", "nbproc", "server-state-file", "server-state-base",
}

// ownedDefaults are those of defaults.
var ownedDefaults = []string{"mode", "option redispatch", "load-server-state-from-file"}

// httpKeywords are those of defaults that TCP proxies do not understand.
var httpKeywords = []string{
	"option http", "option forwardfor", "option originalto", "option idle-close-on-response", "option h1-",
	"option accept-invalid-http", "option checkcache", "errorfile", "errorloc", "http-", "compression", "cookie",
	"capture", "monitor-uri", "stats ", "log-format", "unique-id-", "redirect", "timeout http-",
	"dynamic-cookie-key", "retry-on",
}

// frontendKeywords are those of httpKeywords that HAProxy warns about in a backend.
var frontendKeywords = []string{"option httplog", "log-format", "capture", "monitor-uri", "unique-id-"}

func httpOnly(line string) bool {
	return hasPrefix(strings.TrimPrefix(words(line), "no "), httpKeywords)
}

func hasPrefix(line string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(line, p) })
}

// owned reports whether line, in the form that words gives, is of one of keywords.
func owned(line string, keywords []string) bool {
	line = strings.TrimPrefix(line, "no ")
	for _, keyword := range keywords {
		if line == keyword || strings.HasPrefix(line, keyword+" ") {
			return true
		}
	}
	return false
}

// words is line with single blanks and without what surrounds it.
func words(line string) string { return strings.Join(strings.Fields(line), " ") }

// ReadOperatorFile reads the haproxy.cfg at path for a takeover; socket is the path of the
// stats socket that we will own. A file that cannot be kept is an *OperatorFileError; a
// missing one is fs.ErrNotExist.
func ReadOperatorFile(path, socket string) (OperatorFile, error) {
	info, err := os.Stat(path)
	if err != nil {
		return OperatorFile{}, fmt.Errorf("read the present configuration: %w", err)
	}
	switch {
	case info.IsDir():
		return OperatorFile{}, &OperatorFileError{Path: path, Detail: "it is a directory; one file can be kept, a folder of them cannot"}
	case info.Size() > maxConfig:
		return OperatorFile{}, &OperatorFileError{Path: path, Detail: fmt.Sprintf("it has %d bytes", info.Size())}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return OperatorFile{}, fmt.Errorf("read the present configuration: %w", err)
	}
	f, err := parseOperatorFile(string(data), socket)
	if e, ok := errors.AsType[*OperatorFileError](err); ok {
		e.Path = path
	}
	return f, err
}

// chunk is one section of a file with the comments before it, verbatim.
type chunk struct {
	kind Kind // "" for what stands before the first section
	name string
	line int // of its first line, from 1
	body []string
}

func parseOperatorFile(text, socket string) (OperatorFile, error) {
	if i := strings.IndexByte(text, 0); i >= 0 {
		return OperatorFile{}, &OperatorFileError{Line: 1 + strings.Count(text[:i], "\n"), Detail: "it holds a NUL byte"}
	}
	chunks, err := splitSections(text)
	if err != nil {
		return OperatorFile{}, err
	}
	shape, err := ReadShape(text)
	if err != nil {
		return OperatorFile{}, &OperatorFileError{Detail: err.Error()}
	}
	f := OperatorFile{MapPaths: mapPaths(text)}
	for _, s := range shape.Sockets {
		if s.Path == socket {
			f.SocketMode = socketMode(s.Params)
		}
	}
	for _, c := range chunks {
		for _, line := range c.body {
			if generation, ok := strings.CutPrefix(words(line), "description "); ok && c.kind == "global" {
				if _, _, ok := ParseGeneration(generation); ok {
					f.Ours, f.Generation = true, generation
				}
			}
		}
	}
	if f.Ours {
		f.readMarked(text)
		return f, nil
	}
	return f, f.readForeign(chunks, socket)
}

// splitSections cuts text at the lines that open sections.
func splitSections(text string) ([]chunk, error) {
	chunks := []chunk{{line: 1}}
	depth, comments := 0, 0 // comments directly before the present line
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimRight(line, "\r\n")
		last := &chunks[len(chunks)-1]
		word, rest, _ := strings.Cut(words(line), " ")
		switch {
		case word == ".if":
			depth++
		case word == ".endif":
			depth--
		case word != "" && !strings.HasPrefix(word, "#") && !strings.HasPrefix(word, ".") && last.kind == "" && !sectionKeywords[word]:
			return nil, &OperatorFileError{Line: number, Detail: fmt.Sprintf("%.40q stands in no section", word)}
		}
		if sectionKeywords[word] {
			if depth != 0 {
				return nil, &OperatorFileError{Line: number, Detail: "a section opens inside .if"}
			}
			name, _, _ := strings.Cut(rest, " ")
			// Comments right above a section are about it.
			at := len(last.body) - comments
			lead := append([]string(nil), last.body[at:]...)
			last.body = last.body[:at]
			chunks = append(chunks, chunk{kind: Kind(word), name: name, line: number - comments, body: append(lead, line)})
			comments = 0
			continue
		}
		if comments++; !strings.HasPrefix(word, "#") {
			comments = 0
		}
		last.body = append(last.body, line)
	}
	if depth != 0 {
		return nil, &OperatorFileError{Line: number, Detail: ".if without .endif, or the other way round"}
	}
	return chunks, nil
}

// readForeign keeps what is not ours of a file that somebody else wrote.
func (f *OperatorFile) readForeign(chunks []chunk, socket string) error {
	var defaults *chunk // that a section of ours would have got
	var sections []string
	proxies := false
	for i := range chunks {
		c := &chunks[i]
		switch c.kind {
		case "":
		case "global":
			for _, line := range c.lines() {
				plain := words(line)
				switch {
				case owned(plain, []string{"stats socket " + socket}):
				case owned(plain, ownedGlobal):
					f.Dropped = append(f.Dropped, plain)
				default:
					f.KeptGlobal = append(f.KeptGlobal, line)
				}
			}
		case "defaults":
			if c.name == "" || defaults == nil {
				defaults = c
			}
			sections = append(sections, c.text())
		default:
			if c.byOldBridge() {
				continue
			}
			proxies = true
			sections = append(sections, c.text())
		}
	}
	// The operator's sections go on with the defaults that stood before them, each as it
	// was; without such sections nobody needs those defaults.
	if proxies {
		f.KeptSections = strings.Join(sections, "\n\n")
	}
	if defaults == nil {
		return nil
	}
	for _, line := range defaults.lines() {
		plain := words(line)
		if strings.HasPrefix(plain, ".") {
			return &OperatorFileError{Line: defaults.line, Detail: "conditional lines in the defaults section"}
		}
		if owned(plain, ownedDefaults) {
			if !strings.HasPrefix(plain, "mode ") && plain != "option redispatch" {
				f.Dropped = append(f.Dropped, plain)
			}
			continue
		}
		f.KeptDefaults = append(f.KeptDefaults, line)
	}
	return nil
}

// lines are the section's directives without the line that opens it, comments and blanks.
func (c *chunk) lines() []string {
	var out []string
	opened := false
	for _, line := range c.body {
		line = strings.TrimSpace(line)
		word, _, _ := strings.Cut(line, " ")
		switch {
		case !opened && sectionKeywords[strings.TrimSpace(word)]:
			opened = true
		case line != "" && line[0] != '#':
			out = append(out, line)
		}
	}
	return out
}

func (c *chunk) text() string { return strings.Trim(strings.Join(c.body, "\n"), "\n") }

// oldServer is a server line as haproxy-marathon-bridge wrote it.
var oldServer = regexp.MustCompile(`^server (\S+)-\d+ \S+:\d+ check$`)

// byOldBridge reports whether the section was written by haproxy-marathon-bridge for an
// app's port: `listen nginx-80` on port 80 with servers nginx-1, nginx-2, … It is not kept,
// since the app comes from Marathon now.
func (c *chunk) byOldBridge() bool {
	dash := strings.LastIndexByte(c.name, '-')
	if c.kind != KindListen || dash <= 0 {
		return false
	}
	app, port := c.name[:dash], c.name[dash+1:]
	bound := false
	for _, line := range c.lines() {
		line = words(line)
		switch {
		case line == "bind 0.0.0.0:"+port:
			bound = true
		case line == "mode tcp", line == "option tcplog", line == "balance leastconn":
		default:
			m := oldServer.FindStringSubmatch(line)
			if m == nil || m[1] != app {
				return false
			}
		}
	}
	return bound
}

// readMarked reads the kept parts between the marks of a file that we rendered.
func (f *OperatorFile) readMarked(text string) {
	part := ""
	var sections []string
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		plain := strings.TrimSpace(line)
		if open, ok := strings.CutPrefix(plain, "# >>> "); ok && part == "" {
			part, _, _ = strings.Cut(open, ",")
			continue
		}
		if plain == "# <<<" {
			part = ""
			continue
		}
		switch {
		case part == "sections":
			sections = append(sections, line)
		case plain == "":
		case part == "global":
			f.KeptGlobal = append(f.KeptGlobal, plain)
		case part == "defaults":
			f.KeptDefaults = append(f.KeptDefaults, plain)
		case part == "http":
			f.KeptDefaults = append(f.KeptDefaults, strings.TrimPrefix(plain, "#| "))
		}
	}
	f.KeptSections = strings.Trim(strings.Join(sections, "\n"), "\n")
}

// socketMode gives the options of a stats socket but those that are ours.
func socketMode(options []params.BindOption) string {
	var out []string
	for _, p := range options {
		if word, _, _ := strings.Cut(p.String(), " "); word != "level" && word != "expose-fd" {
			out = append(out, p.String())
		}
	}
	return strings.Join(out, " ")
}

// mapFile finds paths of map files as Files names them.
var mapFile = regexp.MustCompile(`/[^\s"'(),]*\.\d+\.map\b`)

func mapPaths(text string) map[string]string {
	paths := make(map[string]string)
	for line := range strings.Lines(text) {
		if !strings.Contains(line, ".map") || strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		for _, path := range mapFile.FindAllString(line, -1) {
			if name := mapName(path); name != "" {
				paths[name] = path
			}
		}
	}
	return paths
}

// foreign are the names and listeners of the operator's own sections: they were there
// before our apps, and keep what they have.
type foreign struct {
	names map[string]bool
	binds []Bind
}

func parseForeign(text string) (foreign, error) {
	f := foreign{names: make(map[string]bool)}
	if text == "" {
		return f, nil
	}
	shape, err := ReadShape(text)
	if err != nil {
		return f, &RenderError{Section: "kept sections", Detail: err.Error()}
	}
	for _, s := range shape.Sections {
		f.names[s.Name] = true
		f.binds = append(f.binds, s.Binds...)
	}
	return f, nil
}
