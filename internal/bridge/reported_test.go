package bridge

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bridged/internal/haproxy"
)

// What is not served as asked is logged when it starts, changes and ends, and not in
// between.
func TestRejectionsAreLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	b := &Bridge{log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))}
	clash := func(detail string) []Rejection {
		return []Rejection{{App: "/a", Index: 1, Reason: ReasonPortClash, Detail: detail}}
	}
	refused := []haproxy.Rejected{{Owner: "/b", Section: "b-80", Reason: haproxy.Refused, Detail: "unknown keyword"}}
	for _, step := range []struct {
		name     string
		rejected []Rejection
		refused  []haproxy.Rejected
		want     []string
	}{
		{"nothing", nil, nil, nil},
		{"starts", clash("/c has it"), nil, []string{`level=WARN msg="app rejected" app=/a index=1 reason=port_clash detail="/c has it"`}},
		{"goes on", clash("/c has it"), nil, nil},
		{"another detail, and HAProxy refuses", clash("/d has it"), refused, []string{
			`level=WARN msg="app rejected" app=/a index=1 reason=port_clash detail="/d has it"`,
			`level=WARN msg="app rejected" app=/b section=b-80 reason=refused detail="unknown keyword"`}},
		{"one ends", nil, refused, []string{`level=INFO msg="app no longer rejected" app=/a index=1 reason=port_clash`}},
		{"both ended", nil, nil, []string{`level=INFO msg="app no longer rejected" app=/b section=b-80 reason=refused`}},
		{"starts again", clash("/c has it"), nil, []string{`level=WARN msg="app rejected" app=/a index=1 reason=port_clash detail="/c has it"`}},
	} {
		log.Reset()
		b.reportRejected(step.rejected, step.refused)
		var got []string
		for line := range strings.Lines(log.String()) {
			got = append(got, strings.TrimSpace(line))
		}
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("%s: log (-want +got):\n%s", step.name, diff)
		}
	}
}
