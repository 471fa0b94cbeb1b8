// Package haproxy makes one running HAProxy match a Config.
//
// # Two lanes
//
// A Change names the parts of a Config that are new. Proxy.Apply merges it into what is
// wanted and compares the touched parts with what HAProxy is believed to run. What a
// runtime command can say (a server comes, goes, drains, changes weight; an entry of a map)
// is sent at once, in one batch on one kept-open connection, additions before removals:
// the fast lane, some 50 µs however many servers there are. All else is structure and takes
// the slow lane: render, preflight, write, reload, confirm. Meanwhile the fast lane goes
// on to the worker that is there, and what changed since the file was written is sent
// again to the new one. Every reload has a Reason from a closed set.
//
// Reading order of the fast lane: proxy.go (the type and its options), apply.go, wanted.go
// (what is wanted beside what was loaded), diff.go and slots.go (pure), command.go (wire text),
// runtime.go (the connection), reply.go (what answers mean). Of the slow lane: pace.go
// (when), slow.go, save.go, render.go, reload.go, files.go. Beside both: worker.go (who answers on the
// socket), read.go (what it says), audit.go, reaper.go.
//
// # How servers come and go
//
// capabilities.go turns the version of the running HAProxy into what it can do; slots.go
// turns that into a strategy per backend. From 2.9 on servers are made and deleted at run
// time, named by their address, and `set server addr` is never used: it is queued there, and
// a change that returns to the address in force is lost. Before 2.9 each backend has spare
// slots in the file, which are given an address in maintenance and then made ready, and
// `del server` is never used: it frees servers that streams still use. Where neither
// serves, servers are added and stay in maintenance until a reload, or take the slow lane.
//
// # Who owns what
//
// All methods of Proxy but Done belong to one goroutine, and there are no locks. Background
// work (reload, save, reconnection, audit, timers) gets values that nobody modifies, and
// sends a Job, which that goroutine hands to Proxy.Finish. At most one of reload and save
// runs. Backends and sections are never modified once they are in a Change, so a snapshot
// copies pointers, and an unchanged pointer is an unchanged section.
//
// # What is believed, and what if it is wrong
//
// What HAProxy runs is changed only by answers: a command without an answer has unknown
// effect, the connection is dropped, and the next one begins with reading everything. A
// refused command is followed by reading its backend, one more try, and then the slow lane. A
// connection stays with its worker when somebody reloads HAProxy and goes on answering;
// so each second a new connection is asked who it is, and a worker that is not the one we
// know is read in full. Audit compares on a slow tick and counts drift by kind. Nothing is
// sent before the first Apply: an operator's HAProxy keeps what it has until it is known
// what is wanted.
//
// A worker says in `global description` which structure it has loaded (generation.go). A bridge
// that starts compares that with its own rendering, and only when they differ it reloads.
// haproxy.cfg follows every change at run time within Options.SaveDelay, under the same
// generation: a crash, a restart or anybody's reload gives the same servers, except that
// states which the file cannot say are set again by command. HAProxy's own state file is
// not used: it restores the ports of servers but not literal addresses.
//
// # Where the protocol is written down
//
// HAProxy's management guide, section "Unix Socket commands", and its configuration guide;
// where these are silent, server.c, map.c and cli.c of each branch. Comments name them.
// Text from outside is validated where it becomes a command (command.go) or a line of the
// file (render.go), and fuzz tests hold that no value adds a command or a line.
package haproxy
