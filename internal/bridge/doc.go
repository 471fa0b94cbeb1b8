// Package bridge is the loop between Marathon and HAProxy, and the translation of
// one side's words into the other's. It alone knows both.
package bridge
