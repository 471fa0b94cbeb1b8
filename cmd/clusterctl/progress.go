package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"bridged/internal/provision"
)

// progress shows a run. event is called from several goroutines.
type progress interface {
	event(provision.Event)
	end(error)
}

// progress chooses by where the output goes: JSON lines on request, a redrawn
// picture on a terminal, plain lines in a pipe.
func (a *app) progress(cmd *cobra.Command, plan *provision.Plan) progress {
	out := cmd.OutOrStdout()
	if a.output == "json" {
		return &jsonProgress{out: out}
	}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return newLive(f, plan, time.Now)
	}
	return &lineProgress{out: out, started: map[string]time.Time{}}
}

func writeLine(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// jsonProgress writes one event a line, and a last line with the outcome.
type jsonProgress struct {
	mu  sync.Mutex
	out io.Writer // guarded by mu, so that lines stay whole
}

func (p *jsonProgress) event(e provision.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// A reader that went away does not stop the run: what is made is made.
	_ = writeLine(p.out, map[string]any{"event": e})
}

func (p *jsonProgress) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	result := map[string]any{"ok": err == nil}
	if err != nil {
		result["error"] = err.Error()
	}
	_ = writeLine(p.out, map[string]any{"result": result})
}

// lineProgress writes a line when a stage begins and when a step ends, and for
// what a node says in between when it changes.
type lineProgress struct {
	mu      sync.Mutex
	out     io.Writer            // guarded by mu, as all below
	started map[string]time.Time // by step
	detail  string
}

func (p *lineProgress) event(e provision.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	stamp := e.Time.UTC().Format("15:04:05")
	switch {
	case e.Step == "" && e.State == provision.StateRunning:
		fmt.Fprintf(p.out, "%s %s (%s)\n", stamp, e.Stage, e.Detail)
	case e.Step == "":
	case e.State == provision.StateRunning:
		if _, again := p.started[e.Step]; !again {
			p.started[e.Step] = e.Time
		}
		if line := e.Step + ": " + e.Detail; e.Detail != "" && line != p.detail {
			p.detail = line
			fmt.Fprintf(p.out, "%s   … %s\n", stamp, line)
		}
	case e.State == provision.StateFailed:
		fmt.Fprintf(p.out, "%s   ✗ %s: %s%s\n", stamp, e.Step, e.Err, p.took(e))
	case e.State == provision.StateSkipped:
		fmt.Fprintf(p.out, "%s   - %s: left out%s\n", stamp, e.Step, prefixed(" (", e.Detail, ")"))
	default:
		fmt.Fprintf(p.out, "%s   ✓ %s%s\n", stamp, e.Step, p.took(e))
	}
}

func (p *lineProgress) took(e provision.Event) string {
	since, ok := p.started[e.Step]
	if !ok {
		return ""
	}
	delete(p.started, e.Step)
	return " (" + e.Time.Sub(since).Round(100*time.Millisecond).String() + ")"
}

func prefixed(before, s, after string) string {
	if s == "" {
		return ""
	}
	return before + s + after
}

func (p *lineProgress) end(error) {}

// live redraws a line per node: sign, name, step, elapsed, what it says.
type live struct {
	mu      sync.Mutex
	out     *os.File
	now     func() time.Time
	begun   time.Time
	stages  int // in the plan
	drawn   int // lines on the screen that are ours
	last    time.Time
	stage   string
	number  int
	total   int // nodes of the stage
	lines   map[string]*liveLine
	over    int // nodes of the stage that are done
	stageAt time.Time
	size    map[string]int // steps left of a node in this stage
	plan    *provision.Plan
}

type liveLine struct {
	name, step, detail string
	state              provision.EventState
	since              time.Time
	took               time.Duration
}

// redraw is the least time between two pictures.
const redraw = 100 * time.Millisecond

func newLive(out *os.File, plan *provision.Plan, now func() time.Time) *live {
	return &live{out: out, now: now, begun: now(), stages: len(plan.Stages), plan: plan, lines: map[string]*liveLine{}}
}

func (l *live) event(e provision.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.Step == "" {
		if e.State == provision.StateRunning {
			l.draw()
			l.drawn = 0 // the finished stage stays on the screen
			l.begin(e)
		}
		return
	}
	name := cmp.Or(e.Node, e.Step)
	line := l.lines[name]
	if line == nil {
		line = &liveLine{name: name, since: e.Time}
		l.lines[name] = line
	}
	line.step, line.state = strings.TrimSuffix(e.Step, " "+name), e.State
	line.detail = cmp.Or(e.Err, e.Detail)
	if e.State != provision.StateRunning {
		line.took = e.Time.Sub(line.since)
		if l.size[name]--; l.size[name] == 0 || e.State == provision.StateFailed {
			l.over++
		}
	}
	if t := l.now(); t.Sub(l.last) >= redraw || e.State != provision.StateRunning && l.over == l.total {
		l.draw()
		l.last = t
	}
}

func (l *live) begin(e provision.Event) {
	l.stage, l.number, l.over, l.stageAt = e.Stage, l.number+1, 0, e.Time
	l.lines, l.size = map[string]*liveLine{}, map[string]int{}
	if l.number <= len(l.plan.Stages) {
		for _, s := range l.plan.Stages[l.number-1].Steps {
			l.size[cmp.Or(s.Node, s.ID)]++
		}
	}
	l.total = len(l.size)
	l.draw()
}

// draw replaces our lines with the current ones. A tall stage shows who runs or
// failed, as many as fit.
func (l *live) draw() {
	if l.stage == "" {
		return
	}
	width, height, err := term.GetSize(int(l.out.Fd()))
	if err != nil || width < 20 {
		width, height = 80, 24
	}
	var b strings.Builder
	if l.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", l.drawn)
	}
	text := l.picture(max(3, height-3))
	for _, line := range text {
		b.WriteString(cut(line, width-1))
		b.WriteByte('\n')
	}
	l.drawn = len(text)
	_, _ = l.out.WriteString(b.String())
}

// picture is the current stage as at most room lines.
func (l *live) picture(room int) []string {
	now := l.now()
	room-- // for the head
	head := fmt.Sprintf("[%d/%d] %s  %d/%d  elapsed %s", l.number, l.stages, l.stage, l.over, l.total, now.Sub(l.begun).Round(time.Second))
	if eta, ok := l.eta(now); ok {
		head += fmt.Sprintf("  eta %s", eta.Round(time.Second))
	}
	lines := make([]*liveLine, 0, len(l.lines))
	for _, line := range l.lines {
		lines = append(lines, line)
	}
	weight := func(s provision.EventState) int {
		return slices.Index([]provision.EventState{provision.StateFailed, provision.StateRunning, provision.StateSkipped, provision.StateDone}, s)
	}
	slices.SortFunc(lines, func(a, b *liveLine) int {
		if len(lines) > room {
			if c := cmp.Compare(weight(a.state), weight(b.state)); c != 0 {
				return c
			}
		}
		return cmp.Compare(a.name, b.name)
	})
	out := []string{head}
	for i, line := range lines {
		if i == room-1 && len(lines) > room {
			out = append(out, fmt.Sprintf("    … %d more", len(lines)-i))
			break
		}
		took := line.took
		if line.state == provision.StateRunning {
			took = now.Sub(line.since)
		}
		sign := map[provision.EventState]string{provision.StateDone: "✓", provision.StateFailed: "✗", provision.StateSkipped: "-", provision.StateRunning: "…"}[line.state]
		out = append(out, fmt.Sprintf("  %s %-24s %-12s %7s  %s", sign, line.name, line.step, took.Round(time.Second), line.detail))
	}
	return out
}

// eta extrapolates from the nodes of this stage that are done.
func (l *live) eta(now time.Time) (time.Duration, bool) {
	if l.over == 0 || l.over >= l.total {
		return 0, false
	}
	return now.Sub(l.stageAt) / time.Duration(l.over) * time.Duration(l.total-l.over), true
}

func cut(s string, width int) string {
	runes := []rune(s)
	if len(runes) > width {
		return string(runes[:width-1]) + "…"
	}
	return s
}

func (l *live) end(error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.draw()
	l.drawn = 0
}
