package haproxy

import (
	"errors"
	"regexp"
	"strconv"
	"strings"
	"text/template"

	"bridged/templates"
)

// parseTemplate reads an operator's template over the embedded one.
func parseTemplate(text string) (*template.Template, error) {
	funcs := template.FuncMap{
		"generation": func() string { return "\x00" + string(generationMark) },
		"sections":   func() string { return "\x00" + string(sectionsMark) },
	}
	t := template.New("haproxy.cfg").Funcs(funcs).Option("missingkey=error")
	if _, err := t.Parse(templates.HAProxy); err != nil {
		return nil, templateError(err)
	}
	if text == "" {
		return t, nil
	}
	if strings.IndexByte(text, 0) >= 0 {
		return nil, &TemplateError{Detail: "it holds a NUL byte"}
	}
	// Only text outside of blocks replaces the layout: text/template keeps the earlier one
	// where a later one is empty.
	if _, err := t.Parse(text); err != nil {
		return nil, templateError(err)
	}
	return t, nil
}

// try renders a sample, so that an operator's template fails when it is loaded and not
// when the first app needs it.
func (r *Renderer) try() error {
	sample := &Config{
		Global: &Global{Socket: "/sample/admin.sock"},
		Frontends: map[string]*Section{"f": {Kind: KindFrontend, Name: "f", Mode: HTTP, Binds: []Bind{{Port: 1}},
			Lines: []string{"default_backend b"}}},
		Backends: map[string]*Backend{"b": {Section: Section{Kind: KindBackend, Name: "b", Mode: HTTP},
			Balance: "roundrobin", ServerOptions: "check"}},
	}
	out, err := r.Render(sample)
	if err != nil {
		if render, ok := errors.AsType[*RenderError](err); ok {
			return &TemplateError{Detail: render.Detail}
		}
		return err
	}
	r.global, r.sections = nil, nil
	generations, sections := 0, 0
	for _, s := range out.layout.segments {
		switch s.mark {
		case generationMark:
			generations++
		case sectionsMark:
			sections++
		}
	}
	text := string(out.Bytes("sample-generation", func(string) string { return "" }))
	switch {
	case sections != 1:
		return &TemplateError{Detail: "want {{sections}} exactly once, have it " + strconv.Itoa(sections) + " times"}
	case generations == 0 || !regexp.MustCompile(`(?m)^\s*description sample-generation\s*$`).MatchString(text):
		return &TemplateError{Detail: "want the line `description {{generation}}` in global: it proves that a reload succeeded"}
	case !regexp.MustCompile(`(?m)^\s*stats socket /sample/admin.sock\s.*\blevel admin\b`).MatchString(text):
		return &TemplateError{Detail: "want `stats socket {{.Global.Socket}} … level admin` in global: bridged talks to it"}
	case !strings.Contains(text, "frontend f") || !strings.Contains(text, "backend b"):
		return &TemplateError{Detail: "want {{.Kind}} {{.Name}} at the start of the block \"section\""}
	}
	return nil
}

// templateLine finds "template: haproxy.cfg:12:3: …" and "template: haproxy.cfg:12: …".
var templateLine = regexp.MustCompile(`^template: haproxy\.cfg:(\d+):(?:\d+:)? (.*)$`)

func templateError(err error) error {
	if m := templateLine.FindStringSubmatch(err.Error()); m != nil {
		line, _ := strconv.Atoi(m[1])
		return &TemplateError{Line: line, Detail: m[2]}
	}
	return &TemplateError{Detail: err.Error()}
}
