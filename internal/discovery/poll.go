package discovery

import (
	"context"
	"time"
)

const (
	leaderEvery = 5 * time.Second
)

// poll keeps to the leader without hearing events: the Watcher's own readings are all
// there is.
func (l *listener) poll(ctx context.Context) {
	var pace retry
	attached := ""
	for ctx.Err() == nil {
		leader, err := l.client.findLeader(ctx)
		pause := jitter(leaderEvery)
		switch {
		case err != nil:
			lost := &loss{reason: classify(err), err: err, had: attached != ""}
			attached = ""
			if !l.send(ctx, input{lost: lost}) {
				return
			}
			pause = pace.pause(time.Now(), lost.reason)
		case leader.String() != attached:
			pace.reset()
			v, text, _ := l.client.version(ctx, leader)
			if !l.send(ctx, input{attached: &attachment{transport: TransportPoll, base: leader, version: v, text: text}}) {
				return
			}
			attached = leader.String()
		}
		if err == nil {
			l.heard(time.Now())
		}
		if !l.wait(ctx, pause) {
			return
		}
	}
}
