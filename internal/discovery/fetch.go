package discovery

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	maxFetches   = 4  // readings of apps under way at once
	maxJobs      = 50 // more than these are one reading of everything
	fetchTimeout = 15 * time.Second
	// absentFor is how long task events of an app that Marathon does not have (a pod,
	// or deleted a moment ago) cause no further reading.
	absentFor = 30 * time.Second
)

// job is the reading of one app, group or old version, waiting or under way. There is
// one at most for each of them: what comes while it is under way asks once more.
type job struct {
	key      string
	app      string
	group    string // all apps below
	version  string // of app
	due      time.Time
	running  bool
	again    bool
	received time.Time // of the oldest event that asked, zero for none
	events   int
	failures int
	answer   *answer
}

// collect turns what the state wants to know into jobs. received is when the event
// came that made it want, zero for none.
func (l *loop) collect(received time.Time) {
	if len(l.state.wants) == 0 {
		return
	}
	now := time.Now()
	for _, w := range l.state.wants {
		if !l.synced {
			continue // the first reading of everything tells
		}
		due := now.Add(w.after)
		if w.announced {
			delete(l.absent, w.app)
		} else if until := l.absent[w.app]; until.After(due) && !l.state.defined(w.app) {
			due = until
		}
		l.ask(job{app: w.app, version: w.version, due: due, received: received}, now)
	}
	l.state.wants = l.state.wants[:0]
}

// ask adds a job, or moves the one that is there forward.
func (l *loop) ask(j job, now time.Time) {
	j.key = j.app + "\n" + j.group + "\n" + j.version
	have := l.jobs[j.key]
	if have == nil {
		if len(l.jobs) >= maxJobs {
			l.postpone(resyncBurst)
			return
		}
		if !j.received.IsZero() {
			j.events = 1
		}
		l.jobs[j.key] = &j
		return
	}
	if !j.received.IsZero() {
		have.events++
		if have.received.IsZero() {
			have.received = j.received
		}
	}
	switch {
	case have.running:
		have.again = true
	case j.due.Before(have.due) && have.failures == 0:
		have.due = j.due
	}
}

// reload asks for what a change of definitions touched.
func (l *loop) reload(r reload, now time.Time) {
	switch {
	case len(r.apps) > maxJobs || r.group == "/":
		l.resync(resyncGroup)
	case r.group != "":
		l.ask(job{group: r.group, due: now}, now)
	default:
		for _, id := range r.apps {
			l.ask(job{app: id, due: now}, now)
		}
	}
}

// startJobs starts what is due, and returns when something else will be.
func (l *loop) startJobs(ctx context.Context, now time.Time) (next time.Time) {
	for _, j := range l.jobs {
		switch {
		case j.running:
		case j.due.After(now):
			next = sooner(next, j.due)
		case l.running < maxFetches && l.base != nil:
			l.start(ctx, j)
		}
	}
	return next
}

func (l *loop) start(ctx context.Context, j *job) {
	j.running = true
	l.running++
	j.answer = l.state.begin()
	base, path, query := l.base, "/v2/apps"+j.app, url.Values(nil)
	switch {
	case j.group != "":
		path = "/v2/apps" + j.group + "/*"
	case j.version != "":
		path += "/versions/" + j.version
	default:
		if a := l.state.apps[j.app]; a == nil || a.def == nil || a.def.Readiness {
			query = url.Values{"embed": {"app.readiness"}}
		}
	}
	bare := j.version != ""
	l.group.Go(func() {
		request, cancel := context.WithTimeout(ctx, fetchTimeout)
		defer cancel()
		p := piece{job: j, end: true}
		p.apps, p.leader, p.err = l.w.client.fetch(request, base, path, query, bare)
		l.hand(ctx, p)
	})
}

// hand gives p to the loop, and reports whether it still takes any.
func (l *loop) hand(ctx context.Context, p piece) bool {
	select {
	case l.answers <- p:
		return true
	case <-ctx.Done():
		return false
	}
}

// fetch reads one app, the apps below a group, or (bare) a definition.
func (c *client) fetch(ctx context.Context, base *url.URL, path string, query url.Values, bare bool) (apps []appData, leader string, err error) {
	res, err := c.get(ctx, false, base, path, query)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	leader = res.Header.Get("X-Marathon-Leader")
	if bare {
		var a appData
		if a, err = decodeBare(res.Body); err == nil {
			apps = []appData{a}
		}
	} else {
		err = decodeApps(res.Body, func(a appData) error {
			apps = append(apps, a)
			return nil
		})
	}
	if err != nil {
		return nil, leader, fmt.Errorf("%s%s: %w", base.Redacted(), path, err)
	}
	return apps, leader, nil
}

// fetched takes in the end of a job.
func (l *loop) fetched(j *job, p piece) {
	now := time.Now()
	l.running--
	j.running = false
	status, _ := errors.AsType[*statusError](p.err)
	gone := status != nil && status.code == http.StatusNotFound
	switch {
	case p.err != nil && !gone:
		l.w.metrics.fetches.WithLabelValues("error").Inc()
		l.w.log.Warn("app not read", "app", j.app+j.group, "err", p.err)
		j.failures++
		if j.failures > 5 {
			delete(l.jobs, j.key)
			l.resync(resyncDoubt)
			return
		}
		j.due = now.Add(jitter(100 * time.Millisecond << j.failures))
		return
	case gone:
		l.w.metrics.fetches.WithLabelValues("gone").Inc()
	default:
		l.w.metrics.fetches.WithLabelValues("ok").Inc()
	}
	switch {
	case j.version != "":
		if len(p.apps) == 1 && p.apps[0].def != nil {
			l.state.layout(j.app, j.version, p.apps[0].def)
		}
	case j.group != "":
		l.mergeGroup(j, p.apps, now)
	case gone:
		l.state.missingApp(j.answer, j.app)
	default:
		for i := range p.apps {
			l.merge(j.answer, &p.apps[i], now)
		}
		l.finishPart(j.answer, nil)
	}
	if len(l.state.touched) > 0 && l.synced {
		if j.events > 0 {
			l.pending.heard(j.received, 0)
		}
		l.state.take(l.pending)
	}
	l.checkLeader(p.leader)
	if gone && j.app != "" {
		l.absent[j.app] = now.Add(absentFor)
	}
	if j.again {
		*j = job{key: j.key, app: j.app, group: j.group, version: j.version, due: now.Add(debounce)}
	} else {
		delete(l.jobs, j.key)
	}
	l.collect(time.Time{})
}

func (l *loop) mergeGroup(j *job, apps []appData, now time.Time) {
	for i := range apps {
		l.merge(j.answer, &apps[i], now)
	}
	below := strings.TrimSuffix(j.group, "/") + "/"
	// That apps of this group are gone is what the event said that asked for it.
	unexplained := j.answer.unexplained
	gone := l.state.absentees(j.answer, func(id string) bool { return strings.HasPrefix(id, below) })
	j.answer.unexplained = unexplained
	l.finishPart(j.answer, gone)
}

// finishPart removes what an answer about a part of the cluster lacks, unless that is
// most of the part and nothing explains it: then the whole has to be looked at.
func (l *loop) finishPart(r *answer, gone []*app) {
	if r.unexplained >= fewTasks && 2*r.unexplained > r.routed {
		l.w.log.Warn("an answer lacks most tasks of its apps; reading everything", "missing", r.unexplained)
		l.resync(resyncDoubt)
		return
	}
	l.state.finish(r, gone)
}
