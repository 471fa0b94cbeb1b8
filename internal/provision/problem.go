package provision

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Position is a place in a blueprint, both from 1; zero: nowhere in particular.
type Position struct {
	Line   int `json:"line"`
	Column int `json:"column"`
}

// Problem is one thing that is wrong with a blueprint.
type Problem struct {
	Code    string   `json:"code"` // E…: refused, V…: refused by the provider's facts, W…: allowed
	Path    string   `json:"path"` // spec.groups[0].count
	Pos     Position `json:"position,omitzero"`
	What    string   `json:"what"`   // what is wanted and what is there
	Remedy  string   `json:"remedy"` // what to write instead
	file    string
	ordinal int
}

// Warning reports whether the blueprint can be used all the same.
func (p *Problem) Warning() bool { return strings.HasPrefix(p.Code, "W") }

// String is one line: file:line:column: code path: what; remedy.
func (p *Problem) String() string {
	var b strings.Builder
	if p.file != "" {
		b.WriteString(p.file)
		b.WriteByte(':')
	}
	if p.Pos.Line > 0 {
		fmt.Fprintf(&b, "%d:%d:", p.Pos.Line, p.Pos.Column)
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	b.WriteString(p.Code)
	if p.Path != "" {
		b.WriteByte(' ')
		b.WriteString(p.Path)
	}
	b.WriteString(": ")
	b.WriteString(p.What)
	if p.Remedy != "" {
		b.WriteString("; ")
		b.WriteString(p.Remedy)
	}
	return b.String()
}

// Problems are all that is wrong, in the order of the file.
type Problems []Problem

// Err is nil when there are only warnings.
func (ps Problems) Err() error {
	var bad Problems
	for i := range ps {
		if !ps[i].Warning() {
			bad = append(bad, ps[i])
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return bad
}

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i := range ps {
		lines[i] = ps[i].String()
	}
	return strings.Join(lines, "\n")
}

// Warnings are the problems that do not stop anything.
func (ps Problems) Warnings() Problems {
	var w Problems
	for i := range ps {
		if ps[i].Warning() {
			w = append(w, ps[i])
		}
	}
	return w
}

// sorted puts problems in the order of the file; those at one place keep the
// order in which they were found.
func (ps Problems) sorted() Problems {
	for i := range ps {
		ps[i].ordinal = i
	}
	slices.SortFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Pos.Line, b.Pos.Line), cmp.Compare(a.Pos.Column, b.Pos.Column), cmp.Compare(a.ordinal, b.ordinal))
	})
	return ps
}

// nearest gives the candidate that s was probably meant to be, "" for none: at
// most a third of its letters differ, a swap of neighbours counting once.
func nearest(s string, candidates []string) string {
	best, bestDistance := "", len(s)/3+1
	for _, c := range candidates {
		if strings.EqualFold(s, c) {
			return c
		}
		if d := distance(s, c); d < bestDistance || d == bestDistance && best == "" {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance is the optimal string alignment distance of two short texts.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}

// didYouMean is the remedy for an unknown name.
func didYouMean(s string, known []string) string {
	if n := nearest(s, known); n != "" {
		return "did you mean " + n + "?"
	}
	if len(known) > 24 {
		known = append(slices.Clone(known[:24]), "…")
	}
	return "known here: " + strings.Join(known, ", ")
}

// Unique drops problems that are reported twice, by two ways of looking.
func (ps Problems) Unique() Problems {
	seen := map[string]bool{}
	return slices.DeleteFunc(slices.Clone(ps), func(p Problem) bool {
		line := p.String()
		twice := seen[line]
		seen[line] = true
		return twice
	})
}
