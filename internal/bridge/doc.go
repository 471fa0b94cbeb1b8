// Package bridge joins Marathon to HAProxy: the loop between them, and the
// translation of one side's words into the other's. It alone knows both.
//
// # The loop
//
// [Bridge.Run] is one select. An update of services from discovery is translated
// (translate.go) and handed to the Proxy of package haproxy, in one call and on one
// goroutine; completions of HAProxy's background work, changed files, audits and
// questions from the HTTP side are the other cases. The loop's goroutine owns the
// translator and the Proxy, so there is no lock on the way of an event, and nothing on
// it that costs more than the services that the event touches.
//
// # The translation
//
// [Translator] is pure: services in, a [haproxy.Change] out, no I/O and no clock. Two
// dialects choose names and defaults (dialect_bridge.go, dialect_mlb.go); HAPROXY_
// labels work in both. A service that cannot be served as its app asks is rejected
// with a [Reason] and the others go on.
//
// # Configuration
//
// [Load] reads it from defaults, a file, BRIDGED_ variables and flags, in that order;
// settings.go is the only place that knows the keys. A file that changes is read again
// as a whole: it is taken over or refused, and then the old configuration stays and
// bridged_config_last_reload_successful is 0.
//
// # Failure
//
// Whatever happens to Marathon or to the bridge, HAProxy goes on with what it runs.
// A Marathon or a HAProxy that cannot be reached is waited for, and /readyz says why.
// What only an operator can correct (a wrong key, a socket that is not HAProxy's, a
// taken port) is a [*ConfigError] at start: one line each with place, key and remedy.
package bridge
