package haproxy

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const took = 300 * time.Millisecond

	t.Run("first-goes-at-once", func(t *testing.T) {
		var p pace
		if at := p.next(true); at.After(start) {
			t.Errorf("next at %s", at)
		}
	})
	t.Run("after-a-calm-too", func(t *testing.T) {
		var p pace
		p.finished(start, start.Add(took), true)
		now := start.Add(time.Second)
		if at := p.next(true); at.After(now) {
			t.Errorf("next in %s", at.Sub(now))
		}
	})
	t.Run("storm-slows-down-to-a-limit", func(t *testing.T) {
		var p pace
		now, last := start, time.Duration(0)
		for range 60 {
			end := now.Add(took)
			p.finished(now, end, true)
			pause := p.next(true).Sub(end)
			if pause < last || pause > maxPace {
				t.Fatalf("pause %s after %s", pause, last)
			}
			last, now = pause, p.next(true)
		}
		if last != maxPace {
			t.Errorf("pauses end at %s, want %s", last, maxPace)
		}
		now = now.Add(2*calmAfter + time.Second)
		p.finished(now, now.Add(took), true)
		if pause := p.next(true).Sub(now.Add(took)); pause != took {
			t.Errorf("pause %s in the next storm, want %s", pause, took)
		}
	})
	t.Run("least-interval", func(t *testing.T) {
		p := pace{least: 3 * time.Second}
		p.finished(start, start.Add(took), true)
		if pause := p.next(true).Sub(start.Add(took)); pause != 3*time.Second {
			t.Errorf("pause %s, want 3s", pause)
		}
	})
	t.Run("refused-waits-unless-something-changes", func(t *testing.T) {
		var p pace
		now, last := start, time.Duration(0)
		for range 12 {
			end := now.Add(took)
			p.finished(now, end, false)
			retry := p.next(false).Sub(end)
			if retry < last || retry > maxRetry {
				t.Fatalf("retry after %s, before after %s", retry, last)
			}
			if fresh := p.next(true).Sub(end); fresh > maxPace {
				t.Fatalf("a change waits %s", fresh)
			}
			last, now = retry, p.next(false)
		}
		if last != maxRetry {
			t.Errorf("retries end at %s, want %s", last, maxRetry)
		}
		p.finished(now, now.Add(took), true)
		if at, fresh := p.next(false), p.next(true); !at.Equal(fresh) {
			t.Errorf("after a success: %s and %s", at, fresh)
		}
	})
}
