// Package discovery keeps what Marathon says is running.
package discovery
