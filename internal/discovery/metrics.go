package discovery

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of this room. Label values are closed sets; all series exist from the start,
// so that a rate over one that never happened is zero and not missing.
type metrics struct {
	events     [numEventTypes]prometheus.Counter
	undecoded  prometheus.Counter
	connected  prometheus.Gauge
	lastByte   prometheus.Gauge
	reconnects *prometheus.CounterVec // reason
	resyncs    *prometheus.CounterVec // reason, result
	resyncTook prometheus.Histogram
	fetches    *prometheus.CounterVec // result
	apps       prometheus.Gauge
	services   prometheus.Gauge
	tasks      [5]prometheus.Gauge
	broken     prometheus.Gauge
	held       prometheus.Gauge
}

var taskStates = [5]string{"staging", "running", "killing", "unreachable", "unresolved"}

func newMetrics(r prometheus.Registerer) *metrics {
	if r == nil {
		r = prometheus.NewRegistry()
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "bridged", Name: name, Help: help})
		r.MustRegister(g)
		return g
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "bridged", Name: name, Help: help}, labels)
		r.MustRegister(v)
		return v
	}
	m := &metrics{
		connected:  gauge("stream_connected", "Whether events of Marathon are being received (1) or not (0)."),
		lastByte:   gauge("stream_last_byte_timestamp_seconds", "When Marathon's event stream last brought anything, its keep-alives every 10 seconds included."),
		reconnects: vec("stream_reconnects_total", "Event streams that ended and attempts to attach that failed, by reason.", "reason"),
		resyncs:    vec("resyncs_total", "Readings of the whole picture, by what asked for it and how it ended.", "reason", "result"),
		fetches:    vec("fetches_total", "Readings of one app, group or old version, by how they ended.", "result"),
		apps:       gauge("apps", "Apps that Marathon has."),
		services:   gauge("services", "Service ports of these apps."),
		broken:     gauge("broken_apps", "Apps that Marathon describes in a way that is not understood; they are left as they were."),
		held:       gauge("picture_held", "Whether an implausible picture is held back until it is confirmed (1) or not (0)."),
	}
	events := vec("events_total", "Events received from Marathon, by type; other is all that says nothing about routing.", "type")
	for t, name := range eventNames {
		m.events[t] = events.WithLabelValues(name)
	}
	m.undecoded = events.WithLabelValues("undecodable")
	for _, f := range failures {
		m.reconnects.WithLabelValues(string(f))
	}
	for _, reason := range resyncReasons {
		for _, result := range resyncResults {
			m.resyncs.WithLabelValues(string(reason), string(result))
		}
	}
	for _, result := range []string{"ok", "gone", "error"} {
		m.fetches.WithLabelValues(result)
	}
	m.resyncTook = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "bridged", Name: "resync_duration_seconds",
		Help:    "From the request for the whole picture to its last app being merged.",
		Buckets: prometheus.ExponentialBuckets(0.002, 2, 15), // 2 ms to 33 s
	})
	r.MustRegister(m.resyncTook)
	tasks := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: "bridged", Name: "tasks",
		Help: "Tasks by state; unresolved ones wait for the address of their agent and are counted in their state too.",
	}, []string{"state"})
	r.MustRegister(tasks)
	for i, state := range taskStates {
		m.tasks[i] = tasks.WithLabelValues(state)
	}
	return m
}

func (m *metrics) heard(at time.Time) {
	m.lastByte.Set(float64(at.UnixMilli()) / 1000)
}

// picture sets what s counts. Gauges that did not change are not touched.
func (m *metrics) picture(apps int, c, old counts) {
	m.apps.Set(float64(apps))
	if c == old {
		return
	}
	m.services.Set(float64(c.services))
	for i, n := range [5]int{c.staging, c.running, c.killing, c.unreachable, c.unresolved} {
		m.tasks[i].Set(float64(n))
	}
}

func oneIf(on bool) float64 {
	if on {
		return 1
	}
	return 0
}
