package haproxy

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/template"
)

// Renderer turns a Config into the text of haproxy.cfg. What it rendered of a section it
// keeps by the section's pointer, so that a change of one app renders one section. Equal
// input gives equal bytes. Not for concurrent use.
//
// # The template's data
//
// The layout is executed with {{.Global}} (the type Global), {{.Caps}} (Capabilities),
// {{.SocketMode}}, {{.MaxConn}}, {{.Threads}}, {{.HardStopAfter}}, {{.MaxReloads}} (numbers
// and times with defaults filled in; 0 for lines to leave out), {{.TLS}} (a listener speaks
// TLS), {{.KeptGlobal}},
// {{.KeptTCP}}, {{.KeptHTTP}} (the operator's lines that stay) and {{.HTTPDefaults}}. It
// must hold {{generation}} in a `description` of global, {{.Global.Socket}} in a `stats
// socket`, and {{sections}} once.
//
// The block "section" is executed per section with {{.Kind}}, {{.Name}}, {{.Defaults}} (the
// named defaults section, "" before HAProxy 2.4), {{.Mode}}, {{.Binds}}, {{.Balance}},
// {{.HTTPDefaults}} (only where there are no named defaults), {{.Lines}} and
// {{.ServerOptions}}. Server lines follow what it prints.
type Renderer struct {
	layout  *template.Template
	section *template.Template
	caps    Capabilities
	own     bool // an operator's template, which HAProxy has to judge
	cpus    int
	certs   *certStore // names copies of certificates in place of the operator's files; nil: does not

	tls      bool    // of text: there is a TLS listener
	global   *Global // that text was rendered from
	text     piece
	foreign  foreign
	sections map[any]*piece // by *Section or *Backend
}

// Rendered is a Config as text, but for the generation and the paths of map files.
type Rendered struct {
	// Structure is a hash of everything but server lines, contents of maps and the
	// generation: two Rendered of one Structure differ in nothing that needs a reload.
	Structure string

	Unproven bool              // HAProxy should check it before a reload
	Binds    []Bind            // of our sections, sorted
	Checked  int               // servers with health checks: one file descriptor each
	Maps     map[string][]byte // contents of map files by map name

	layout  *piece
	pieces  []*piece // in the file's order
	foreign *foreign // the operator's own sections
}

// piece is a rendered part of the file.
type piece struct {
	segments []segment
	servers  []byte
	hash     [sha256.Size]byte // of the segments
	maps     []string          // names that the segments use
	binds    []Bind
	checked  int
	unproven bool
}

// segment is text, or stands for something that is filled in late.
type segment struct {
	text    string
	mapName string
	mark    byte // generationMark, sectionsMark or 0
}

// Marks cannot be part of any value: a NUL in one is refused.
const (
	generationMark = 'G'
	sectionsMark   = 'S'
	mapToken       = "%map("
)

// RenderError is a value that cannot be written to haproxy.cfg.
type RenderError struct {
	Section string // such as "backend nginx-80"; "global" and "defaults" too
	Owner   string // app, "" for the bridge's own
	Detail  string
}

func (e *RenderError) Error() string {
	if e.Owner != "" {
		return fmt.Sprintf("render %s of app %s: %s", e.Section, e.Owner, e.Detail)
	}
	return fmt.Sprintf("render %s: %s", e.Section, e.Detail)
}

// TemplateError is a template that cannot be used.
type TemplateError struct {
	Line   int // in the template; 0 when it is the whole that lacks something
	Detail string
}

func (e *TemplateError) Error() string {
	if e.Line > 0 {
		return fmt.Sprintf("template line %d: %s", e.Line, e.Detail)
	}
	return "template: " + e.Detail
}

// NewRenderer makes a Renderer for a HAProxy that can caps. text is an operator's template,
// "" for the embedded one: a whole layout, or only blocks that replace embedded ones. It is
// tried with sample data; what is wrong with it is a *TemplateError.
func NewRenderer(text string, caps Capabilities) (*Renderer, error) {
	r := &Renderer{caps: caps, own: text != "", cpus: runtime.NumCPU()}
	t, err := parseTemplate(text)
	if err != nil {
		return nil, err
	}
	r.layout, r.section = t, t.Lookup("section")
	if r.own {
		if err := r.try(); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// layoutData is what a layout is executed with; see Renderer.
type layoutData struct {
	Global        *Global
	Caps          Capabilities
	SocketMode    string
	MaxConn       int
	Threads       int
	HardStopAfter string
	MaxReloads    int
	TLS           bool
	KeptGlobal    []string
	KeptTCP       []string
	KeptHTTP      []string
	HTTPDefaults  []string
}

// sectionData is what the block "section" is executed with; see Renderer.
type sectionData struct {
	Kind          Kind
	Name          string
	Defaults      string
	Mode          Mode
	Binds         []string
	Balance       string
	HTTPDefaults  []string
	Lines         []string
	ServerOptions string
}

// Render renders cfg. The servers of its backends are written as they stand. An error is
// a *RenderError; several are joined.
func (r *Renderer) Render(cfg *Config) (*Rendered, error) {
	if cfg.Global == nil {
		return nil, &RenderError{Section: "global", Detail: "no global values yet"}
	}
	if tls := bindsTLS(cfg); r.global != cfg.Global || r.tls != tls {
		r.tls = tls
		if err := r.renderLayout(cfg.Global); err != nil {
			return nil, err
		}
	}
	used := make(map[any]*piece, len(cfg.Userlists)+len(cfg.Frontends)+len(cfg.Backends))
	layout, theirs := r.text, r.foreign
	out := &Rendered{layout: &layout, foreign: &theirs, Unproven: r.text.unproven}
	var failures []error
	for _, group := range []map[string]*Section{cfg.Userlists, cfg.Frontends} {
		for _, s := range sortedSections(group, func(s *Section) *Section { return s }) {
			if s.Kind != KindFrontend || !r.joins(cfg, s.Name) {
				failures = append(failures, r.renderPiece(out, used, s, s, nil))
			}
		}
	}
	for _, b := range sortedSections(cfg.Backends, func(b *Backend) *Section { return &b.Section }) {
		key := any(b)
		if r.joins(cfg, b.Name) {
			front := cfg.Frontends[b.Name]
			key = pair{front, b}
			if r.sections[key] == nil {
				b = join(front, b)
			}
		}
		failures = append(failures, r.renderPiece(out, used, key, &b.Section, b))
	}
	failures = append(failures, out.renderMaps(cfg))
	r.sections = used
	if err := errors.Join(failures...); err != nil {
		return nil, err
	}
	out.finish()
	return out, nil
}

// sortedSections gives the sections of one kind in the file's order: Order, then name.
func sortedSections[T any](group map[string]T, section func(T) *Section) []T {
	list := slices.Collect(maps.Values(group))
	slices.SortFunc(list, func(a, b T) int {
		x, y := section(a), section(b)
		return cmp.Or(cmp.Compare(x.Order, y.Order), strings.Compare(x.Name, y.Name))
	})
	return list
}

// pair is the key of a frontend and a backend that are rendered as one.
type pair struct {
	front *Section
	back  *Backend
}

// joins reports whether frontend and backend name are written as one listen section: from
// 3.3 on HAProxy refuses two proxies of one name, and 3.2 warns.
func (r *Renderer) joins(cfg *Config, name string) bool {
	return r.caps.Version.AtLeast(3, 3) && cfg.Frontends[name] != nil && cfg.Backends[name] != nil
}

// join makes one section of both. Rules that send traffic to the backend of the same name
// are what the section does anyway.
func join(front *Section, back *Backend) *Backend {
	out := *back
	out.Kind, out.Binds = KindListen, front.Binds
	out.Unproven = front.Unproven || back.Unproven
	out.Lines = slices.DeleteFunc(slices.Clone(front.Lines), func(line string) bool {
		plain := words(line)
		return plain == "use_backend "+back.Name || plain == "default_backend "+back.Name
	})
	out.Lines = append(out.Lines, back.Lines...)
	return &out
}

// renderPiece adds one section to out, from the cache when key is in it.
func (r *Renderer) renderPiece(out *Rendered, used map[any]*piece, key any, s *Section, b *Backend) error {
	p := r.sections[key]
	if p == nil {
		var err error
		if p, err = r.renderSection(s, b); err != nil {
			return err
		}
	}
	used[key] = p
	out.pieces = append(out.pieces, p)
	out.Unproven = out.Unproven || p.unproven
	out.Checked += p.checked
	out.Binds = append(out.Binds, p.binds...)
	return nil
}

// finish computes what depends on all pieces.
func (out *Rendered) finish() {
	slices.SortFunc(out.Binds, compareBinds)
	h := sha256.New()
	h.Write(out.layout.hash[:])
	for _, p := range out.pieces {
		h.Write(p.hash[:])
	}
	out.Structure = hex.EncodeToString(h.Sum(nil))
}

// renderMaps writes the maps, and makes sure that each map that is named exists.
func (out *Rendered) renderMaps(cfg *Config) error {
	out.Maps = make(map[string][]byte, len(cfg.Maps))
	for name, m := range cfg.Maps {
		text, err := renderMap(name, m)
		if err != nil {
			return err
		}
		out.Maps[name] = text
	}
	for _, p := range append([]*piece{out.layout}, out.pieces...) {
		for _, name := range p.maps {
			if cfg.Maps[name] == nil {
				return &RenderError{Section: "map " + name, Detail: "it is used, but there is no such map"}
			}
		}
	}
	return nil
}

func renderMap(name string, m *Map) ([]byte, error) {
	if !isName(name) {
		return nil, &RenderError{Section: fmt.Sprintf("map %.60q", name), Detail: "want letters, digits and -_.: in its name"}
	}
	var out []byte
	for _, key := range slices.Sorted(maps.Keys(m.Entries)) {
		value := m.Entries[key]
		if !isWord(key) || !isWord(value) {
			return nil, &RenderError{Section: "map " + name, Detail: fmt.Sprintf("key %.60q, value %.60q: want single words", key, value)}
		}
		out = append(out, key...)
		out = append(out, ' ')
		out = append(out, value...)
		out = append(out, '\n')
	}
	return out, nil
}

// Bytes is the file with generation in its global description and mapPath's answer in
// place of each map's name.
func (out *Rendered) Bytes(generation string, mapPath func(name string) string) []byte {
	size := 0
	for _, p := range out.pieces {
		size += len(p.servers) + 512
	}
	buf := make([]byte, 0, size+4096)
	return out.appendPiece(buf, out.layout, generation, mapPath)
}

func (out *Rendered) appendPiece(buf []byte, p *piece, generation string, mapPath func(string) string) []byte {
	for i := range p.segments {
		switch s := &p.segments[i]; {
		case s.mapName != "":
			buf = append(buf, mapPath(s.mapName)...)
		case s.mark == generationMark:
			buf = append(buf, generation...)
		case s.mark == sectionsMark:
			for _, section := range out.pieces {
				buf = append(buf, '\n')
				buf = out.appendPiece(buf, section, generation, mapPath)
			}
		default:
			buf = append(buf, s.text...)
		}
	}
	return append(buf, p.servers...)
}

// renderLayout renders everything around the sections.
func (r *Renderer) renderLayout(g *Global) error {
	data, err := r.layoutData(g)
	if err != nil {
		return err
	}
	var text strings.Builder
	if err := r.layout.Execute(&text, data); err != nil {
		return templateError(err)
	}
	segments, err := split(text.String())
	if err != nil {
		return &RenderError{Section: "global", Detail: err.Error()}
	}
	foreign, err := parseForeign(g.KeptSections)
	if err != nil {
		return err
	}
	r.text = newPiece(segments)
	r.text.unproven = r.own || len(g.KeptGlobal)+len(g.KeptDefaults)+len(g.KeptSections) > 0
	r.foreign, r.global = foreign, g
	return nil
}

func (r *Renderer) layoutData(g *Global) (*layoutData, error) {
	for _, value := range slices.Concat([]string{g.Socket, g.SocketMode, g.CheckInterval, g.HardStopAfter}, g.KeptGlobal, g.KeptDefaults) {
		if err := oneLine(value); err != nil {
			return nil, &RenderError{Section: "global", Detail: err.Error()}
		}
	}
	if strings.IndexByte(g.KeptSections, 0) >= 0 {
		return nil, &RenderError{Section: "kept sections", Detail: "they hold a NUL byte"}
	}
	if g.Socket == "" || strings.ContainsAny(g.Socket, " \t\"'\\#$") {
		return nil, &RenderError{Section: "global", Detail: fmt.Sprintf("stats socket %q: want a path without blanks and quotes", g.Socket)}
	}
	d := &layoutData{
		Global:        g,
		Caps:          r.caps,
		SocketMode:    cmp.Or(g.SocketMode, "mode 600"),
		TLS:           r.tls,
		MaxConn:       g.MaxConn,
		Threads:       g.Threads,
		HardStopAfter: cmp.Or(g.HardStopAfter, "10m"),
		// A worker is killed once that many reloads came after it. Five times what may pile up
		// before reloads are held: it is the last bound, not the usual one.
		MaxReloads:   5 * cmp.Or(g.OldWorkers, 4),
		HTTPDefaults: r.httpDefaults(),
	}
	keptThreads := false
	for _, line := range g.KeptGlobal {
		switch word, _, _ := strings.Cut(strings.TrimSpace(line), " "); {
		case word == "maxconn" && g.MaxConn > 0, word == "nbthread" && g.Threads > 0:
			continue
		case word == "nbthread":
			keptThreads = true
		}
		d.KeptGlobal = append(d.KeptGlobal, line)
	}
	// From 2.8 on HAProxy's own choice is right. Before, each thread costs start-up time (Lua
	// is set up once per thread) and more than a few bring nothing.
	if d.Threads == 0 && !keptThreads && !r.caps.Version.AtLeast(2, 8) {
		d.Threads = min(r.cpus, 4)
	}
	for _, line := range g.KeptDefaults {
		if httpOnly(line) {
			d.KeptHTTP = append(d.KeptHTTP, line)
		} else {
			d.KeptTCP = append(d.KeptTCP, line)
		}
	}
	return d, nil
}

// httpDefaults are the lines of every HTTP proxy.
func (r *Renderer) httpDefaults() []string {
	lines := []string{"timeout http-request 15s", "timeout http-keep-alive 10s"}
	if r.caps.IdleCloseOnResponse {
		// Without it a reload cuts idle keep-alive connections in the moment in which a
		// request may be under way on them.
		lines = append(lines, "option idle-close-on-response")
	}
	return lines
}

// renderSection renders one section; b is nil where there are no servers.
func (r *Renderer) renderSection(s *Section, b *Backend) (*piece, error) {
	fail := func(format string, args ...any) error {
		return &RenderError{Section: fmt.Sprintf("%s %.60q", s.Kind, s.Name), Owner: s.Owner, Detail: fmt.Sprintf(format, args...)}
	}
	if !isName(s.Name) {
		return nil, fail("want letters, digits and -_.: in its name")
	}
	d := sectionData{Kind: s.Kind, Name: s.Name, Mode: s.Mode, Lines: s.Lines}
	if b != nil {
		d.Balance, d.ServerOptions = b.Balance, b.ServerOptions
		if len(s.Binds) > 0 {
			d.Kind = KindListen
		}
	}
	switch {
	case s.Mode == "":
	case r.caps.NamedDefaults:
		d.Defaults = "bridged-" + string(s.Mode)
	case s.Mode == HTTP:
		d.HTTPDefaults = slices.Concat(r.httpDefaults(), r.keptHTTP(d.Kind == KindBackend))
	}
	for _, bind := range s.Binds {
		if r.certs != nil {
			bind.Options = r.certs.rewrite(bind.Options)
		}
		text, err := bind.text()
		if err != nil {
			return nil, fail("%v", err)
		}
		d.Binds = append(d.Binds, text)
	}
	for _, line := range slices.Concat(s.Lines, []string{d.Balance, d.ServerOptions, string(d.Mode), string(d.Kind)}) {
		if err := oneLine(line); err != nil {
			return nil, fail("%v", err)
		}
		if word, _, _ := strings.Cut(strings.TrimLeft(line, " \t"), " "); sectionKeywords[word] && line != string(d.Kind) {
			return nil, fail("line %.60q would open another section", line)
		}
	}
	var text strings.Builder
	if err := r.section.Execute(&text, &d); err != nil {
		return nil, templateError(err)
	}
	segments, err := split(text.String())
	if err != nil {
		return nil, fail("%v", err)
	}
	p := newPiece(segments)
	p.unproven, p.binds = s.Unproven || r.own, s.Binds
	if b != nil {
		if err := p.renderServers(b); err != nil {
			return nil, fail("%v", err)
		}
	}
	return &p, nil
}

// keptHTTP are the operator's lines for HTTP proxies where these have no defaults section
// of their own.
func (r *Renderer) keptHTTP(backend bool) []string {
	var lines []string
	for _, line := range r.global.KeptDefaults {
		if httpOnly(line) && !(backend && hasPrefix(words(line), frontendKeywords)) {
			lines = append(lines, line)
		}
	}
	return lines
}

// renderServers writes the server lines.
func (p *piece) renderServers(b *Backend) error {
	checkAll := hasOption(b.ServerOptions, "check")
	buf := make([]byte, 0, 64*len(b.Servers))
	for i := range b.Servers {
		s := &b.Servers[i]
		if !isName(s.Name) || s.Cookie != "" && !isWord(s.Cookie) || !s.Addr.IsValid() || s.Addr.Addr().Zone() != "" || s.Weight < -1 || s.Weight > 256 {
			return fmt.Errorf("server %.60q at %s, cookie %.60q, weight %d: not a valid server line", s.Name, s.Addr, s.Cookie, s.Weight)
		}
		if err := oneLine(s.Options); err != nil {
			return fmt.Errorf("server %s: %w", s.Name, err)
		}
		buf = append(buf, "    server "...)
		buf = append(buf, s.Name...)
		buf = append(buf, ' ')
		buf = s.Addr.AppendTo(buf)
		// In the order of marathon-lb, whose users' tools search for "id N check cookie C".
		if s.ID > 0 {
			buf = append(buf, " id "...)
			buf = strconv.AppendInt(buf, int64(s.ID), 10)
		}
		options := s.Options
		if s.Cookie != "" {
			if rest, ok := strings.CutPrefix(options+" ", "check "); ok {
				buf = append(buf, " check"...)
				options = strings.TrimRight(rest, " ")
			}
			buf = append(buf, " cookie "...)
			buf = append(buf, s.Cookie...)
		}
		if options != "" {
			buf = append(buf, ' ')
			buf = append(buf, options...)
		}
		switch {
		case s.State == Drain:
			buf = append(buf, " weight 0"...)
		case s.Weight >= 0:
			buf = append(buf, " weight "...)
			buf = strconv.AppendInt(buf, int64(s.Weight), 10)
		}
		if s.State == Maint {
			buf = append(buf, " disabled"...)
		}
		buf = append(buf, '\n')
		if (checkAll || hasOption(s.Options, "check")) && !hasOption(s.Options, "no-check") {
			p.checked++
		}
	}
	p.servers = buf
	return nil
}

// newPiece hashes segments. Lengths are hashed too, so that no two lists of segments give
// the same input.
func newPiece(segments []segment) piece {
	p := piece{segments: segments}
	h := sha256.New()
	var buf bytes.Buffer
	for _, s := range segments {
		buf.Reset()
		fmt.Fprintf(&buf, "%d %d %d\n", len(s.text), len(s.mapName), s.mark)
		h.Write(buf.Bytes())
		h.Write([]byte(s.text))
		h.Write([]byte(s.mapName))
		if s.mapName != "" {
			p.maps = append(p.maps, s.mapName)
		}
	}
	h.Sum(p.hash[:0])
	return p
}
