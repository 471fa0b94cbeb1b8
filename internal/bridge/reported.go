package bridge

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"bridged/internal/haproxy"
)

// report is one thing that is not served as asked: by app, port index and reason, or by
// app and section where HAProxy refused it.
type report struct {
	app     string
	index   int
	reason  string
	section string // "" for what the translation rejected
}

// reportRejected logs what is not served as asked: once when that starts, when its reason
// is another, and when it ends. An app that wants a port that somebody has looks alive
// everywhere else.
func (b *Bridge) reportRejected(rejected []Rejection, refused []haproxy.Rejected) {
	if len(rejected)+len(refused)+len(b.reported) == 0 {
		return
	}
	now := make(map[report]string, len(rejected)+len(refused))
	for _, r := range rejected {
		now[report{app: r.App, index: r.Index, reason: string(r.Reason)}] = r.Detail
	}
	for _, r := range refused {
		now[report{app: r.Owner, reason: string(r.Reason), section: r.Section}] = r.Detail
	}
	for _, r := range inOrder(now) {
		if before, ok := b.reported[r]; !ok || before != now[r] {
			b.log.Warn("app rejected", append(r.attrs(), "detail", now[r])...)
		}
	}
	for _, r := range inOrder(b.reported) {
		if _, ok := now[r]; !ok {
			b.log.Info("app no longer rejected", r.attrs()...)
		}
	}
	b.reported = now
}

func (r report) attrs() []any {
	if r.section != "" {
		return []any{"app", r.app, "section", r.section, "reason", r.reason}
	}
	return []any{"app", r.app, "index", r.index, "reason", r.reason}
}

func inOrder(reports map[report]string) []report {
	return slices.SortedFunc(maps.Keys(reports), func(a, b report) int {
		return cmp.Or(strings.Compare(a.app, b.app), cmp.Compare(a.index, b.index),
			strings.Compare(a.reason, b.reason), strings.Compare(a.section, b.section))
	})
}
