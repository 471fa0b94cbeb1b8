// Package haproxy makes one HAProxy match a Config.
package haproxy
