package marathontest

import (
	"net"
	"strconv"
)

// infoJSON is GET /v2/info. Members are those of InfoResource.scala at each
// version; the values of those that no client routes by are plausible constants.
func (n *node) infoJSON() []byte {
	c, p := n.c, n.profile
	host, port, _ := net.SplitHostPort(n.addr)
	number, _ := strconv.Atoi(port) // 0 on in-memory listeners
	o := newObject(2048)
	o.str("name", "marathon")
	o.str("version", p.version)
	if p.since(1, 4, 0) {
		o.str("buildref", "unknown")
	}
	o.bool("elected", c.leader == n.index)
	if c.leader >= 0 {
		o.str("leader", c.nodes[c.leader].addr)
	} else {
		o.null("leader")
	}
	o.str("frameworkId", c.frameworkID)
	o.raw("marathon_config", n.configJSON(host))
	o.raw("zookeeper_config", p.zookeeperJSON())
	if p.callbacks {
		if c.opts.NoCallbacks {
			o.null("event_subscriber")
		} else {
			o.raw("event_subscriber", []byte(`{"type":"http_callback","http_endpoints":null}`))
		}
	}
	web := newObject(128)
	if !p.since(1, 4, 0) {
		web.null("assets_path")
	}
	web.int("http_port", number)
	web.int("https_port", 8443)
	o.raw("http_config", web.end())
	return o.end()
}

func (n *node) configJSON(host string) []byte {
	c, p := n.c, n.profile
	o := newObject(1024)
	o.str("master", "zk://zk1:2181/mesos")
	o.int("failover_timeout", 604800)
	if p.since(0, 9, 0) {
		o.str("framework_name", "marathon")
	}
	o.bool("ha", true)
	o.bool("checkpoint", true)
	o.int("local_port_min", c.opts.FirstServicePort)
	o.int("local_port_max", c.opts.LastServicePort)
	o.str("executor", "//cmd")
	o.str("hostname", host)
	if p.since(0, 9, 0) {
		o.null("webui_url")
	}
	o.null("mesos_role")
	o.int("task_launch_timeout", 300000)
	if p.since(1, 1, 0) {
		o.int("task_reservation_timeout", 20000)
	}
	o.int("reconciliation_initial_delay", 15000)
	o.int("reconciliation_interval", 300000)
	if !p.since(1, 4, 0) {
		o.int("marathon_store_timeout", 2000)
	}
	o.str("mesos_user", "root")
	if p.since(0, 9, 0) {
		o.int("leader_proxy_connection_timeout_ms", 5000)
		o.int("leader_proxy_read_timeout_ms", int(c.opts.ProxyTimeout.Milliseconds()))
		o.null("mesos_leader_ui_url")
	}
	if p.since(1, 4, 0) {
		o.raw("features", []byte("[]"))
	}
	if p.since(1, 6, 0) {
		for _, m := range [...]struct{ name, value string }{
			{"access_control_allow_origin", `["*"]`}, {"decline_offer_duration", "120000"},
			{"default_network_name", `"container-network"`}, {"env_vars_prefix", `"APP"`},
			{"launch_token", "100"}, {"launch_token_refresh_interval", "30000"}, {"max_instances_per_offer", "5"},
			{"mesos_bridge_name", `"mesos-bridge"`}, {"mesos_heartbeat_failure_threshold", "5"},
			{"mesos_heartbeat_interval", "15000"}, {"min_revive_offers_interval", "5000"},
			{"offer_matching_timeout", "3000"}, {"on_elected_prepare_timeout", "180000"},
			{"scale_apps_initial_delay", "15000"}, {"scale_apps_interval", "300000"}, {"store_cache", "true"},
			{"task_launch_confirm_timeout", "300000"}, {"task_lost_expunge_initial_delay", "300000"},
			{"task_lost_expunge_interval", "30000"},
		} {
			o.raw(m.name, []byte(m.value))
		}
	}
	return o.end()
}

func (p *profile) zookeeperJSON() []byte {
	o := newObject(512)
	o.str("zk", "zk://zk1:2181/marathon")
	if !p.since(0, 9, 0) {
		o.raw("zk_future_timeout", []byte(`{"duration":10}`))
		o.str("zk_hosts", "zk1:2181")
		o.str("zk_path", "/marathon")
		o.int("zk_timeout", 10)
		return o.end()
	}
	o.int("zk_timeout", 10000)
	if p.since(1, 5, 0) {
		o.int("zk_connection_timeout", 10000)
	}
	o.int("zk_session_timeout", 10000)
	o.int("zk_max_versions", 25)
	if p.since(1, 6, 0) {
		o.bool("zk_compression", true)
		o.int("zk_compression_threshold", 65536)
		o.int("zk_max_node_size", 1024000)
	}
	return o.end()
}
