// Package zdd replaces the tasks of an app by those of its next version with no request
// lost: blue/green deployment with marathon-lb's labels, as its zdd.py has it.
//
// Both versions are apps of one deployment group (label HAPROXY_DEPLOYMENT_GROUP), which
// load balancers serve as one: for each healthy task of the new app they drain one of the
// old app. [Run] adds new instances step by step, waits until every load balancer routes
// to them, waits until the drained old tasks have no session left, kills those with scale,
// and deletes the old app at the end. Going back is the same walk with the apps' parts
// exchanged.
//
// # State
//
// There is none but what stands on Marathon: the two apps, their labels and how many
// instances each has. Every turn of the loop reads them anew and takes one step, chosen by
// [decide], which is pure. A run may therefore end at any point, and the next one goes on;
// two at once take the same steps, of which Marathon refuses the second (it locks an app
// for as long as a deployment of it runs).
//
// Labels of a running app cannot be changed without restarting its tasks, so the
// direction is read from versionInfo.lastScalingAt, which load balancers read too: while
// the old app has all its instances and was scaled after the new one, the group goes back.
//
// # Capacity
//
// A task is killed only when what stands without it, in both apps together, is at least
// the target, when each load balancer drains it, and when none counts a session at it.
// Where no load balancer is named, or one that does not tell its sessions, the task must
// have been drained for Options.Drain.
package zdd
