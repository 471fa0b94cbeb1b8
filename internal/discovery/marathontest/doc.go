// Package marathontest is a Marathon that speaks the real protocol over real
// HTTP, for tests, benchmarks and the demo.
//
// A [Cluster] plays one version of Marathon, from 0.8.0 to 1.11, with one or
// more nodes that share the state and elect a leader:
//
//	c := marathontest.New(marathontest.Options{Version: "1.4.0", Nodes: 3})
//	if err := c.Start(); err != nil { … }
//	defer c.Close()
//	c.Deploy(marathontest.AppSpec{ID: "/web", Instances: 3, Ports: []marathontest.Port{{Service: 80}}})
//	c.Kill(c.Tasks("/web")[0].ID)
//	c.Inject(marathontest.Fault{Kind: marathontest.LoseEvent, Event: "status_update_event", Times: 1})
//
// It has a deployment engine (create, scale, rolling restart, delete), the life
// cycle of tasks with health and readiness, REST, the event stream, callbacks of
// the old versions, authentication, TLS, and faults that are scripted and
// counted. It knows nothing of the code it is used to test, and
// [Cluster.Expected] computes independently what routing should be.
//
// # Faithfulness
//
// What a version does differently stands in one place, profile.go. Members of
// JSON, their types, and null against absent follow Marathon's serializers at the
// release tags: api/v2/json/Formats.scala to 1.4, the RAML types from 1.5 on.
// The event stream is written as Jetty's EventSourceServlet does: CRLF lines, a
// heartbeat of CR and LF in two writes, no chunking, an end by end of file, and an
// Accept header that must be exactly right.
//
// State changes before its event is sent: who asks after having read an event
// gets that state or a newer one. The exceptions are Marathon's own:
// deployment_info, and api_post_event to 0.10.
//
// Where the real one has a choice of order, the order here is the kindest one
// (except that 0.9 and 0.10 shuffle what waits for a stream); faults make the others.
//
// # Time
//
// With the zero delays of [Options] a call returns when all it sets off has
// happened, down to the health of the last task, so tests need not wait. With
// delays things happen by timers, and [Cluster.WaitQuiet] waits for their end.
// With a [MemoryNetwork] all of it runs under testing/synctest.
//
// # Concurrency
//
// One lock guards the state. Events go to each stream's queue under it, and
// each stream has a goroutine that writes; a client that does not read delays
// nobody else, and overflows its queue as the version has it. Close ends every
// goroutine.
package marathontest
