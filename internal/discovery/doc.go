// Package discovery keeps what Marathon says is running.
//
// A [Watcher] reads one Marathon cluster, of any version from 0.8 to 1.11, and sends
// an [Update] when something changes that routing needs: services (one for each
// service port of each app) with the addresses, states and health of their tasks.
//
//	w, err := discovery.NewWatcher(discovery.Options{URLs: []string{"http://m1:8080", "http://m2:8080"}})
//	if err != nil { … }
//	go w.Run(ctx)
//	for u := range updates(w.Updates()) { … }
//
// The first Update is Full: the whole picture, once it was read and found plausible.
// After that each holds what was touched. A service is sent as soon as its app is
// known, before its first task; an app that goes sends its keys as Gone.
//
// # One event, downwards
//
//	transport.go  finds the leader, attaches to its stream, attaches again
//	stream.go     bytes → frame
//	event.go      frame → event, by name before any JSON is looked at
//	state.go      event → picture; instance.go for what is remembered of ids
//	build.go      picture → Services of the touched apps → pending Update
//	watcher.go    the loop that owns the picture
//
// Beside it: resync.go reads everything, fetch.go one app, sync.go merges either into
// the picture; changes.go finds out which apps a change of definitions is about.
//
// # What can be relied on
//
// A task event costs what its app costs, whatever the size of the cluster. The loop
// never waits for a receiver: a pending Update is merged with what comes, Received
// stays that of its oldest event. It never waits for a network or a resolver either.
//
// Marathon replays nothing and orders nothing, so that events are only ever applied
// with their own timestamps, and a picture is asked for behind each attach: the stream
// first, then its first event, which proves the subscription, then GET /v2/apps.
// Marathon changes its state before it publishes the event. An answer therefore holds
// all that was heard before its request, and yields to what was heard after it: that
// rule, in merge, is all there is to know about the races between the two.
//
// Older Marathons drop events of slow subscribers without a sign, while keep-alives go
// on. So the picture is compared every few seconds while that is cheap for Marathon,
// and always within [Options.Resync].
//
// # Failure
//
// The old picture is served while Marathon is away, slow, or talks nonsense. Health
// that Marathon forgot (each change of leader) is kept. A picture that lacks most of
// the tasks is held back until the leader repeats it 30 seconds later; Status says so.
// An app that can't be understood stays as it was, and is named in Status.
// A host name that stops resolving keeps its last address.
// [Options.StateDir] carries health, addresses and the size of the picture over a restart.
//
// Credentials go to the configured members and to the leader that they announce, never
// elsewhere, and never from https to http.
//
// # Concurrency
//
// Run owns the picture and starts what it needs: one goroutine for the transport, one
// for each request and each lookup under way (bounded), all of which send to its loop.
// Status and SetURLs may be called from anywhere. What was sent is never modified.
//
// # Protocol
//
// Marathon's manual (docs/event-bus.md, docs/rest-api) is wrong in places; what counts
// are its serializers: api/v2/json/Formats.scala up to 1.4 and the RAML types from 1.5
// on, core/event for events, api/v2/AppsResource.scala for queries. The framing of the
// stream is WHATWG HTML, "Server-sent events", as Jetty's EventSourceServlet writes it.
package discovery
