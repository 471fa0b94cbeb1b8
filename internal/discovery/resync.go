package discovery

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"time"
)

// resyncReason is what asked for the whole picture: the reason label of
// bridged_resyncs_total.
type resyncReason string

const (
	resyncConnect resyncReason = "connect" // a stream was attached
	resyncAudit   resyncReason = "audit"   // time to look for lost events
	resyncDoubt   resyncReason = "doubt"   // an event or an answer was not understood
	resyncBurst   resyncReason = "burst"   // more apps changed than are worth reading one by one
	resyncGroup   resyncReason = "group"   // a change whose apps were not named
	resyncHeld    resyncReason = "held"    // an implausible picture is to be confirmed
)

var resyncReasons = []resyncReason{resyncConnect, resyncAudit, resyncDoubt, resyncBurst, resyncGroup, resyncHeld}

// resyncResult: same, corrected (it differed from the picture), held, error, abandoned.
type resyncResult string

var resyncResults = []resyncResult{"same", "corrected", "held", "error", "abandoned"}

const (
	syncTimeout = 90 * time.Second // old Marathons need 30 s for 4 000 tasks
	piecesOf    = 32               // apps handed to the loop at once: others get their turn between

	// The search for lost events: as often as auditEvery while Marathon answers within
	// auditCheap, else at auditShare times what an answer costs, so that a bridge takes
	// a fixed small part of Marathon's time.
	auditEvery = 5 * time.Second
	auditCheap = 20 * time.Millisecond
	auditShare = 500

	burstPause = 500 * time.Millisecond // a burst is over by then

	holdLeast = 30 * time.Second // an implausible picture is believed when repeated after this
	holdRetry = 10 * time.Second

	// fewTasks may vanish without being found implausible.
	fewTasks = 3
)

// piece is a part of an answer, or its end.
type piece struct {
	run    *syncRun // one of these
	job    *job
	apps   []appData
	end    bool
	err    error // with end
	leader string
	took   time.Duration
}

// syncRun is a reading of everything that is under way.
type syncRun struct {
	reason  resyncReason
	answer  *answer
	base    *url.URL
	started time.Time
	cancel  context.CancelFunc
	broken  map[string]string
}

// resync asks for the whole picture as soon as may be. A reading under way may be too
// old to tell: it is followed by another.
func (l *loop) resync(reason resyncReason) {
	if l.wanted == "" || reason == resyncConnect {
		l.wanted = reason
	}
}

// postpone asks for the whole picture when a burst of events is over.
func (l *loop) postpone(reason resyncReason) {
	if l.wanted == "" {
		l.wanted = reason
		l.notBefore = time.Now().Add(burstPause)
	}
}

// startSync starts a reading that is due, and returns when one will be.
func (l *loop) startSync(ctx context.Context, now time.Time) (next time.Time) {
	switch {
	case l.sync != nil || l.base == nil:
		return time.Time{}
	case l.wanted != "":
		if l.notBefore.After(now) {
			return l.notBefore
		}
	case l.due.IsZero() || l.due.After(now):
		return l.due
	default:
		l.wanted = resyncAudit
		if l.shown.Held != "" {
			l.wanted = resyncHeld
		}
	}
	runCtx, cancel := context.WithTimeout(ctx, syncTimeout)
	run := &syncRun{reason: l.wanted, answer: l.state.begin(), base: l.base, started: now, cancel: cancel}
	l.sync, l.wanted, l.notBefore = run, "", time.Time{}
	if run.reason != resyncAudit {
		// What waits to be read is in it.
		maps.DeleteFunc(l.jobs, func(_ string, j *job) bool {
			return !j.running && j.version == "" && j.due.Before(now.Add(companionWait))
		})
	}
	l.group.Go(func() {
		defer cancel()
		l.read(ctx, runCtx, run)
	})
	return time.Time{}
}

// embed asks for apps with their tasks. Up to 0.10 the first value alone counts.
var embed = url.Values{"embed": {"apps.tasks", "apps.deployments", "apps.readiness"}}

// read asks for everything and hands it to the loop piece by piece. ctx is that of the
// loop, request that of the reading.
func (l *loop) read(ctx, request context.Context, run *syncRun) {
	end := piece{run: run, end: true}
	res, err := l.w.client.get(request, false, run.base, "/v2/apps", embed)
	if err == nil {
		end.leader = res.Header.Get("X-Marathon-Leader")
		var apps []appData
		err = decodeApps(res.Body, func(a appData) error {
			if apps = append(apps, a); len(apps) == piecesOf {
				if !l.hand(request, piece{run: run, apps: apps}) {
					return request.Err()
				}
				apps = nil
			}
			return nil
		})
		res.Body.Close()
		end.apps = apps
	}
	if err != nil {
		end.err = fmt.Errorf("read apps of %s: %w", run.base.Redacted(), err)
	}
	end.took = time.Since(run.started)
	l.hand(ctx, end)
}

// abandonSync gives up a reading from a Marathon that is no longer asked.
func (l *loop) abandonSync() {
	if l.sync != nil {
		l.sync.cancel()
		l.w.metrics.resyncs.WithLabelValues(string(l.sync.reason), "abandoned").Inc()
		l.sync = nil
	}
}

// answer takes in a piece.
func (l *loop) answer(p piece) {
	switch {
	case p.job != nil:
		l.fetched(p.job, p)
	case p.run == l.sync:
		now := time.Now()
		for i := range p.apps {
			l.merge(p.run.answer, &p.apps[i], now)
			if a := &p.apps[i]; a.broken != nil && len(p.run.broken) < 100 {
				if p.run.broken == nil {
					p.run.broken = map[string]string{}
				}
				p.run.broken[a.id] = a.broken.Error()
			}
		}
		if p.end {
			l.synchronised(p, now)
		}
		l.publish()
	}
}

func (l *loop) merge(r *answer, a *appData, now time.Time) {
	l.verdicts(a)
	l.state.merge(r, a, now)
}

// synchronised takes in the end of a reading.
func (l *loop) synchronised(p piece, now time.Time) {
	run := p.run
	l.sync = nil
	count := func(result resyncResult) {
		l.w.metrics.resyncs.WithLabelValues(string(run.reason), string(result)).Inc()
	}
	if p.err != nil {
		count("error")
		level := slog.LevelDebug // the same again
		if l.failed.since.IsZero() {
			level = slog.LevelWarn
		}
		pause := l.failed.pause(now, classify(p.err))
		if l.at == nil {
			pause = jitter(auditEvery) // attaching is tried more often, and asks for all this itself
		}
		l.w.log.Log(context.Background(), level, "whole picture not read", "reason", run.reason, "retry", pause, "err", p.err)
		l.due = now.Add(pause)
		if l.shown.Connected {
			l.shown.Err = p.err.Error()
		}
		l.show()
		return
	}
	l.failed.reset()
	l.w.metrics.resyncTook.Observe(p.took.Seconds())
	l.due = now.Add(jitter(l.auditInterval(p.took)))
	if l.early {
		l.early = false
		l.due = sooner(l.due, now.Add(secondLook))
	}
	if l.checkLeader(p.leader) {
		count("abandoned")
		return
	}
	gone := l.state.absentees(run.answer, func(string) bool { return true })
	if why := l.implausible(run); why != "" && !l.hold.confirmed(now) {
		if l.hold.since.IsZero() {
			l.hold.since = now
			l.w.log.Warn("implausible picture held back until it is confirmed", "why", why)
		}
		count("held")
		l.shown.Held, l.shown.HeldSince = why, l.hold.since
		l.due = now.Add(jitter(holdRetry))
		l.show()
		return
	}
	if !l.hold.since.IsZero() {
		l.w.log.Warn("picture believed", "held for", now.Sub(l.hold.since))
		l.hold = hold{}
	}
	l.state.finish(run.answer, gone)
	if run.answer.corrected > 0 {
		count("corrected")
		if run.reason == resyncAudit {
			l.w.log.Warn("events were lost", "apps", run.answer.corrected)
		}
	} else {
		count("same")
	}
	l.shown.Held, l.shown.HeldSince, l.shown.LastSync, l.shown.Err = "", time.Time{}, now, ""
	l.broken(run.broken)
	if !l.synced {
		l.synced, l.shown.Synced = true, true
		l.pending.open().Full = true
		l.w.log.Info("in sync", "apps", len(l.state.apps), "took", p.took)
	}
	l.collect(time.Time{})
	l.publish()
	l.show()
}

// implausible says what is wrong with a picture, "" for nothing. After a change of
// leader Marathon may answer before it knows its tasks, and a 0.8 that follows nobody
// answers for itself, with none.
func (l *loop) implausible(run *syncRun) string {
	r := run.answer
	if !l.synced {
		routed := 0
		for _, a := range l.state.apps {
			for _, t := range a.tasks {
				if t.sync == r.number && t.phase == phaseRunning {
					routed++
				}
			}
		}
		if l.known >= fewTasks && 2*routed < l.known {
			return fmt.Sprintf("%d tasks run, %d did when last seen", routed, l.known)
		}
		return ""
	}
	if run.reason == resyncGroup {
		return "" // asked for by a change of definitions that may be just that
	}
	switch {
	case r.apps == 0 && r.routed > 0:
		return fmt.Sprintf("no apps at all, there were tasks: %d", r.routed)
	case r.unexplained >= fewTasks && 2*r.unexplained > r.routed:
		return fmt.Sprintf("%d of %d tasks are gone without a reason", r.unexplained, r.routed)
	}
	return ""
}

// hold is an implausible picture that waits to be confirmed.
type hold struct{ since time.Time }

// confirmed: it was seen long enough ago, and now again.
func (h *hold) confirmed(now time.Time) bool {
	return !h.since.IsZero() && now.Sub(h.since) >= holdLeast
}

// broken notes which apps could not be understood.
func (l *loop) broken(apps map[string]string) {
	for id, why := range apps {
		if l.shown.Broken[id] != why {
			l.w.log.Warn("app not understood; it is left as it was", "app", id, "err", why)
		}
	}
	l.shown.Broken = apps
	l.w.metrics.broken.Set(float64(len(apps)))
}

// auditInterval is the time until the next search for lost events, where an answer took
// so long.
func (l *loop) auditInterval(took time.Duration) time.Duration {
	most := l.w.opts.Resync
	switch v := l.state.version; {
	case v.known() && v.before(0, 9, 0):
		most = min(most, 30*time.Second)
	case v.known() && v.losesBursts():
		most = min(most, time.Minute)
	}
	every := auditEvery
	if took > auditCheap {
		every = max(auditEvery, auditShare*took)
	}
	return min(every, most)
}

// checkLeader gives up the stream when an answer names another leader than before.
func (l *loop) checkLeader(leader string) (changed bool) {
	if leader == "" || l.at == nil {
		return false
	}
	u, err := parseURL(leader)
	if err != nil {
		return false
	}
	now := hostPort(u)
	if l.leader == "" {
		l.leader = now
	}
	if l.leader == now {
		return false
	}
	l.w.log.Warn("another leader", "was", l.leader, "is", now)
	l.leader = now
	if l.at.drop != nil {
		l.at.drop(failedLeader)
	}
	return true
}

// burst notices when more events come at once than an old Marathon queues for one
// subscriber: it drops the newest without a sign.
type burst struct {
	from time.Time
	n    int
}

const (
	burstSize   = 30
	burstWindow = 250 * time.Millisecond
)

func (b *burst) add(n int, now time.Time) bool {
	if now.Sub(b.from) > burstWindow {
		b.from, b.n = now, 0
	}
	b.n += n
	return b.n >= burstSize
}
