package bridge

import (
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"bridged/internal/haproxy"
)

// metrics are the bridge's own; discovery and haproxy count what is theirs.
type metrics struct {
	rejected   *prometheus.GaugeVec
	reloadOK   prometheus.Gauge
	reloadTime prometheus.Gauge
	ready      prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, version string) *metrics {
	m := &metrics{
		rejected: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "bridged_rejected_apps",
			Help: "Service ports that are not served as their app asks, by reason.",
		}, []string{"reason"}),
		reloadOK: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "bridged_config_last_reload_successful",
			Help: "Whether the last attempt to read the configuration again was successful.",
		}),
		reloadTime: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "bridged_config_last_reload_success_timestamp_seconds",
			Help: "When the running configuration was read.",
		}),
		ready: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "bridged_ready",
			Help: "Whether Marathon was read and HAProxy runs what follows from it.",
		}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "bridged_build_info",
		Help:        "Always 1; the labels say which program this is.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	info.Set(1)
	m.setRejected(nil, nil)
	m.configLoaded(time.Now())
	if reg != nil {
		reg.MustRegister(m.rejected, m.reloadOK, m.reloadTime, m.ready, info)
	}
	return m
}

// setRejected counts what the translator rejected and what HAProxy could not take. Reasons
// without any are at zero, so that a rule can tell "none" from "not measured".
func (m *metrics) setRejected(list []Rejection, refused []haproxy.Rejected) {
	count := make(map[Reason]int)
	for _, r := range list {
		count[r.Reason]++
	}
	for _, reason := range Reasons() {
		m.rejected.WithLabelValues(string(reason)).Set(float64(count[reason]))
	}
	byHAProxy := map[haproxy.RejectedReason]int{haproxy.Refused: 0, haproxy.PortBusy: 0}
	for _, r := range refused {
		byHAProxy[r.Reason]++
	}
	for reason, n := range byHAProxy {
		m.rejected.WithLabelValues(string(reason)).Set(float64(n))
	}
}

func (m *metrics) configLoaded(now time.Time) {
	m.reloadOK.Set(1)
	m.reloadTime.Set(float64(now.UnixNano()) / 1e9)
}

func (m *metrics) configRefused() { m.reloadOK.Set(0) }

func (m *metrics) setReady(ok bool) {
	m.ready.Set(0)
	if ok {
		m.ready.Set(1)
	}
}
