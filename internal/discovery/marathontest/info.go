package marathontest

import (
	"net"
	"strconv"
)

// infoJSON is GET /v2/info. Members differ by version; those that no client
// routes by have plausible constants.
func (n *node) infoJSON() []byte {
	c, p := n.c, n.profile
	host, port, _ := net.SplitHostPort(n.addr)
	number, _ := strconv.Atoi(port) // 0 on in-memory listeners
	o := newObject(2048)
	o.str("name", "marathon")
	o.str("version", p.version)
	if p.since(1, 5, 0) {
		o.str("buildref", "unknown")
	}
	if p.since(0, 9, 0) {
		o.bool("elected", c.leader == n.index)
	}
	if c.leader >= 0 {
		o.str("leader", c.nodes[c.leader].addr)
	} else {
		o.null("leader")
	}
	o.str("frameworkId", c.frameworkID)

	conf := newObject(1024)
	conf.str("master", "zk://zk1:2181/mesos")
	conf.int("failover_timeout", 604800)
	if p.since(0, 9, 0) {
		conf.str("framework_name", "marathon")
	}
	conf.bool("ha", true)
	conf.bool("checkpoint", true)
	conf.int("local_port_min", c.opts.FirstServicePort)
	conf.int("local_port_max", c.opts.LastServicePort)
	conf.str("executor", "//cmd")
	conf.str("hostname", host)
	if p.since(0, 9, 0) {
		conf.null("webui_url")
	}
	conf.null("mesos_role")
	conf.int("task_launch_timeout", 300000)
	if p.since(1, 4, 0) {
		conf.int("task_reservation_timeout", 20000)
	}
	conf.int("reconciliation_initial_delay", 15000)
	conf.int("reconciliation_interval", 300000)
	if p.since(0, 9, 0) && !p.since(1, 4, 0) {
		conf.int("marathon_store_timeout", 2000)
	}
	conf.str("mesos_user", "root")
	if p.since(0, 9, 0) {
		conf.int("leader_proxy_connection_timeout_ms", 5000)
		conf.int("leader_proxy_read_timeout_ms", int(c.opts.ProxyTimeout.Milliseconds()))
		conf.null("mesos_leader_ui_url")
	}
	if p.since(1, 5, 0) {
		conf.raw("features", []byte(`["task_killing"]`))
	}
	o.raw("marathon_config", conf.end())

	zk := newObject(512)
	zk.str("zk", "zk://zk1:2181/marathon")
	if !p.since(0, 9, 0) {
		zk.raw("zk_future_timeout", []byte(`{"duration":10}`))
		zk.str("zk_hosts", "zk1:2181")
		zk.str("zk_path", "/marathon")
		zk.str("zk_state", "/marathon")
		zk.int("zk_timeout", 10)
	} else {
		zk.int("zk_timeout", 10000)
		if p.since(1, 4, 0) {
			zk.int("zk_connection_timeout", 10000)
		}
		zk.int("zk_session_timeout", 10000)
		zk.int("zk_max_versions", 25)
	}
	o.raw("zookeeper_config", zk.end())
	if p.callbacks {
		if c.opts.NoCallbacks {
			o.null("event_subscriber")
		} else {
			sub := newObject(64)
			sub.str("type", "http_callback")
			sub.raw("http_endpoints", []byte("null"))
			o.raw("event_subscriber", sub.end())
		}
	}
	web := newObject(128)
	if !p.since(1, 6, 0) {
		web.null("assets_path")
	}
	web.int("http_port", number)
	web.int("https_port", 8443)
	o.raw("http_config", web.end())
	return o.end()
}
