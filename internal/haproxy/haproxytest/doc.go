// Package haproxytest runs a real HAProxy for tests: master and worker, stats socket
// and master socket in a directory of the test's own, and in front of the stats
// socket a proxy that breaks the connection on request.
//
// Counts come from HAProxy itself (`show proc`, `show info`), so that a test that says
// "no reload happened" does not depend on the code under test. Everything that Start
// starts is gone when the test ends, also when the test process is killed.
//
// Binaries are the haproxy on PATH and those that `make deps` unpacked below
// .deps/haproxy/<version>/. A test runs on all of them with ForEach. Where the
// environment has CI=true or BRIDGED_REQUIRE_HAPROXY=1, a missing HAProxy 3.x fails the
// test that asks for versions instead of skipping it.
package haproxytest
