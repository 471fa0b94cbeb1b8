package haproxy

import "time"

const (
	// maxPace caps how long a storm may stretch the pause between reloads. An app that is
	// new waits that long at worst.
	maxPace = 5 * time.Second

	// A storm is over when nothing was reloaded for this long.
	calmAfter = 10 * time.Second

	// A refused configuration that nobody changes is tried again after firstRetry, then at
	// doubled pauses up to maxRetry: what was in the way may be a port, or a full disk.
	firstRetry = 2 * time.Second
	maxRetry   = 2 * time.Minute
)

// pace says when the next reload may begin. The first after a calm goes at once. In a storm
// each pause is one duration of a reload longer than the one before, so that HAProxy
// spends less and less of its time loading, and old workers get time to end. Pure.
type pace struct {
	least    time.Duration // Options.MinReloadInterval
	ended    time.Time     // the last one, zero before the first
	pause    time.Duration // after ended
	retry    time.Duration // after ended, when nothing has changed since
	streak   int           // reloads in this storm
	failures int           // in a row
}

// finished notes a reload, or a try.
func (p *pace) finished(began, ended time.Time, ok bool) {
	if p.ended.IsZero() || began.Sub(p.ended) > calmAfter {
		p.streak = 0
	}
	p.streak++
	p.pause = max(p.least, min(time.Duration(p.streak)*ended.Sub(began), maxPace))
	p.ended = ended
	if ok {
		p.failures = 0
		return
	}
	p.failures++
	p.retry = max(p.pause, min(firstRetry<<min(p.failures-1, 10), maxRetry))
}

// next returns when a reload may begin; fresh: it carries something that the last did not.
func (p *pace) next(fresh bool) time.Time {
	if p.ended.IsZero() {
		return time.Time{}
	}
	if p.failures > 0 && !fresh {
		return p.ended.Add(p.retry)
	}
	return p.ended.Add(p.pause)
}
