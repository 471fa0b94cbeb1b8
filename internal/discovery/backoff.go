package discovery

import (
	"math/rand/v2"
	"time"
)

// jitter spreads d by a quarter to both sides, so that hundreds of bridges that lost
// one Marathon at one moment don't come back in step.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d - d/4 + rand.N(d/2+1)
}

// retry paces attempts to reach Marathon.
type retry struct {
	since time.Time // of the first failure in a row
	n     int       // failures in a row that cost Marathon work
}

const (
	// A refused connection costs Marathon nothing: nobody listens. It is tried again so
	// often that the first moment of a new leader is not missed, for as long as a
	// restart may take, and then more slowly.
	refusedPause = 40 * time.Millisecond
	refusedQuick = 2 * time.Minute
	refusedMost  = time.Second

	// What costs Marathon work is tried again less and less often; while a leader is
	// being elected (answers 5xx) often enough to be back within a second.
	firstPause    = 50 * time.Millisecond
	mostPause     = 5 * time.Second
	electionPause = 250 * time.Millisecond
	electionTime  = time.Minute
)

// pause is how long to wait after one more failure.
func (r *retry) pause(now time.Time, f failure) time.Duration {
	if r.since.IsZero() {
		r.since = now
	}
	for0 := now.Sub(r.since)
	switch {
	case f == failedRefused && for0 < refusedQuick:
		return jitter(refusedPause)
	case f == failedRefused:
		return jitter(min(refusedPause+(for0-refusedQuick)/100, refusedMost))
	}
	d := min(firstPause<<min(r.n, 10), mostPause)
	r.n++
	if f == failedElection && for0 < electionTime {
		d = min(d, electionPause)
	}
	return jitter(d)
}

// reset forgets the failures: a stream lived.
func (r *retry) reset() { *r = retry{} }

// failure is a kind of failed attempt or lost stream. It is the reason label of
// bridged_stream_reconnects_total.
type failure string

const (
	failedEOF      failure = "eof"      // ended by Marathon, cleanly or not
	failedSilence  failure = "silence"  // no keep-alive
	failedRefused  failure = "refused"  // nobody listens
	failedNetwork  failure = "network"  // any other trouble on the way
	failedElection failure = "election" // 5xx: no leader, or overloaded
	failedAuth     failure = "auth"     // 401, 403
	failedProtocol failure = "protocol" // an answer that is not Marathon's
	failedLeader   failure = "leader"   // another leader was seen
	failedURLs     failure = "urls"     // the configuration dropped this Marathon
)

var failures = []failure{failedEOF, failedSilence, failedRefused, failedNetwork, failedElection, failedAuth, failedProtocol, failedLeader, failedURLs}
