package bridge

import (
	"regexp"
	"strconv"
	"strings"
	"time"

	"bridged/internal/discovery"
	"bridged/internal/haproxy"
)

// healthCheck is the Marathon health check that HAProxy does in its place.
type healthCheck struct {
	discovery.HealthCheck
	borrowed bool // found by another service's port index
}

// pickCheck finds the check of service port n: the first that has a port of its own or
// is for port n; else the same for the port that a label names.
func pickCheck(checks []discovery.HealthCheck, n, borrow int) *healthCheck {
	for i, index := range []int{n, borrow} {
		if i == 1 && borrow < 0 {
			break
		}
		for _, c := range checks {
			if c.Port != 0 || c.PortIndex == index {
				return &healthCheck{withMarathonDefaults(c), i == 1}
			}
		}
	}
	return nil
}

// withMarathonDefaults fills what a definition may leave out, as Marathon does.
func withMarathonDefaults(c discovery.HealthCheck) discovery.HealthCheck {
	if c.Protocol == "" {
		c.Protocol = "HTTP"
	}
	if c.Timeout < time.Second {
		c.Timeout = 20 * time.Second
	}
	if c.Interval < time.Second {
		c.Interval = 60 * time.Second
	}
	return c
}

// http says whether the check is one of the four that speak HTTP.
func (c *healthCheck) http() bool {
	switch c.Protocol {
	case "HTTP", "HTTPS", "MESOS_HTTP", "MESOS_HTTPS":
		return true
	}
	return false
}

func (c *healthCheck) tls() bool { return strings.HasSuffix(c.Protocol, "HTTPS") }

// mode is the proxy mode that a service's labels and check amount to.
func (d *mlbDialect) mode(s *settings, c *healthCheck) haproxy.Mode {
	switch {
	case c != nil && c.borrowed && c.http():
		return haproxy.HTTP
	case s.mode != "":
		return s.mode
	case c != nil && c.Protocol == "HTTP", len(s.vhosts) > 0, s.proto == "h2",
		s.auth != nil && !d.opts.MarathonLB.OpenAuth:
		return haproxy.HTTP
	}
	return haproxy.TCP
}

// httpProbe says whether HAProxy probes with a request; else it connects. A COMMAND
// check says nothing about a path, so its place is taken by a connect.
func (c *healthCheck) httpProbe(mode haproxy.Mode) bool { return mode == haproxy.HTTP && c.http() }

var checkPathPattern = regexp.MustCompile(`^/(?:[A-Za-z0-9._~!&()*+,=:@?/-]|%[0-9A-Fa-f]{2})*$`)

// checkFields are the parameters of the health check templates. port is that of the
// server's own check, 0 for none.
func checkFields(c *healthCheck, port uint16) (params, error) {
	path := c.Path
	if path == "" {
		path = "/"
	}
	if c.http() && !checkPathLegal(path) {
		return nil, &fragmentError{ReasonBadApp, "the path of a health check has characters that a URL path has not"}
	}
	if !checkPathLegal(path) {
		path = "/"
	}
	seconds := func(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }
	p := params{
		"healthCheckPath":                   path,
		"healthCheckProtocol":               cleaned(c.Protocol),
		"healthCheckPortIndex":              strconv.Itoa(c.PortIndex),
		"healthCheckPort":                   "None",
		"healthCheckTimeoutSeconds":         seconds(c.Timeout),
		"healthCheckIntervalSeconds":        seconds(c.Interval),
		"healthCheckGracePeriodSeconds":     seconds(c.GracePeriod),
		"healthCheckMaxConsecutiveFailures": strconv.Itoa(c.MaxConsecutiveFailures),
		"healthCheckFalls":                  strconv.Itoa(c.MaxConsecutiveFailures + 1),
		"healthCheckPortOptions":            "",
	}
	if port != 0 {
		p["healthCheckPort"] = strconv.Itoa(int(port))
		p["healthCheckPortOptions"] = " port " + strconv.Itoa(int(port))
	}
	for key, field := range map[string]string{"path": "healthCheckPath", "protocol": "healthCheckProtocol",
		"portIndex": "healthCheckPortIndex", "timeoutSeconds": "healthCheckTimeoutSeconds",
		"intervalSeconds": "healthCheckIntervalSeconds", "gracePeriodSeconds": "healthCheckGracePeriodSeconds",
		"maxConsecutiveFailures": "healthCheckMaxConsecutiveFailures", "port": "healthCheckPort"} {
		p["healthCheck["+key+"]"] = p[field]
	}
	return p, nil
}

func checkPathLegal(path string) bool { return len(path) <= 1024 && checkPathPattern.MatchString(path) }
