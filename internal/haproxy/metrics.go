package haproxy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of this room. Label sets are closed, so every series exists from the start.
type metrics struct {
	eventToLive    *prometheus.HistogramVec
	commands       [verbs][lost + 1]prometheus.Counter
	batch          prometheus.Histogram
	reloads        *prometheus.CounterVec
	reloadDuration prometheus.Histogram
	reloadHolds    *prometheus.CounterVec
	saves          *prometheus.CounterVec
	drift          *prometheus.CounterVec
	servers        [serverStates]prometheus.Gauge
	oldWorkers     prometheus.Gauge
	connected      prometheus.Gauge
	degraded       *prometheus.GaugeVec
	rejected       prometheus.Gauge
	unchecked      prometheus.Gauge
	certExpiry     *prometheus.GaugeVec
	certUpdates    *prometheus.CounterVec
	certRejected   prometheus.Gauge
}

// Buckets from 50 µs, below a socket's round trip, to 10 s, beyond any reload.
var liveBuckets = []float64{
	50e-6, 100e-6, 150e-6, 200e-6, 300e-6, 500e-6, 750e-6, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 7.5e-3, 10e-3,
	20e-3, 35e-3, 50e-3, 75e-3, 100e-3, 150e-3, 200e-3, 350e-3, 500e-3, 750e-3, 1, 1.5, 2, 3.5, 5, 10,
}

var reloadBuckets = []float64{
	.005, .01, .015, .02, .03, .04, .05, .06, .08, .1, .125, .15, .2, .25, .3, .4, .5, .6, .8, 1, 1.25, 1.5, 2, 3, 5, 8, 15, 30,
}

// serverState is how the servers metric and Status tell servers apart.
type serverState uint8

const (
	countReady serverState = iota
	countDrain
	countMaint
	countSpare   // a slot that nobody is in
	countRetired // a server that nobody wants and that is still there
	serverStates
)

var serverStateText = [serverStates]string{"ready", "drain", "maint", "spare", "retired"}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		eventToLive: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "bridged_event_to_live_seconds", Buckets: liveBuckets,
			Help: "Time from reading an event's bytes to HAProxy's acknowledgement of the change, by lane.",
		}, []string{"lane"}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "bridged_runtime_batch_seconds", Buckets: liveBuckets,
			Help: "Time that HAProxy took to answer one batch of runtime commands.",
		}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bridged_reloads_total", Help: "Reloads of HAProxy, by first reason and result.",
		}, []string{"reason", "result"}),
		reloadDuration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "bridged_reload_duration_seconds", Buckets: reloadBuckets,
			Help: "Time from the decision to reload to the new generation seen on the new worker.",
		}),
		reloadHolds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bridged_reload_holds_total", Help: "Reloads held because of too many old workers, by how the hold ended.",
		}, []string{"result"}),
		saves: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bridged_saves_total", Help: "Writes of haproxy.cfg after changes at run time, by result.",
		}, []string{"result"}),
		drift: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bridged_drift_total", Help: "Differences found between HAProxy and what it was believed to run, by kind.",
		}, []string{"kind"}),
		oldWorkers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "bridged_old_workers", Help: "HAProxy workers that finish their connections after a reload.",
		}),
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "bridged_haproxy_connected", Help: "Whether the stats socket of HAProxy is connected.",
		}),
		degraded: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "bridged_haproxy_degraded", Help: "Whether the running HAProxy version lacks something that costs speed, by what.",
		}, []string{"lacks"}),
		rejected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "bridged_rejected_sections", Help: "Sections that HAProxy refused and that run in their last good form or not at all.",
		}),
	}
	m.unchecked = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "bridged_unchecked_servers",
		Help: "Servers, spare slots included, whose health checks were dropped because HAProxy may not open enough files for them.",
	})
	m.certExpiry = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "bridged_certificate_expiry_timestamp_seconds",
		Help: "When certificates that HAProxy serves expire, in seconds since the epoch, by file. At most 1000 of them are told.",
	}, []string{"file"})
	m.certUpdates = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "bridged_certificate_updates_total", Help: "Changes of certificates in the running HAProxy, by action and result.",
	}, []string{"action", "result"})
	m.certRejected = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "bridged_rejected_certificate_files", Help: "Certificate files that are not used as they stand.",
	})
	for _, action := range certActions {
		m.certUpdates.WithLabelValues(string(action), "ok")
		m.certUpdates.WithLabelValues(string(action), "refused")
	}
	commands := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "bridged_runtime_commands_total", Help: "Runtime commands sent to HAProxy, by command and result.",
	}, []string{"command", "result"})
	for v := range verbs {
		for r := done; r <= lost; r++ {
			m.commands[v][r] = commands.WithLabelValues(v.String(), r.String())
		}
	}
	servers := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "bridged_servers", Help: "Servers that HAProxy runs for us, by state.",
	}, []string{"state"})
	for s := range serverStates {
		m.servers[s] = servers.WithLabelValues(serverStateText[s])
	}
	for _, lane := range []Lane{LaneFast, LaneSlow} {
		m.eventToLive.WithLabelValues(lane.String())
	}
	for _, result := range []string{"ok", "failed"} {
		m.saves.WithLabelValues(result)
		for _, reason := range allReasons {
			m.reloads.WithLabelValues(string(reason), result)
		}
	}
	for _, result := range []string{"released", "expired"} {
		m.reloadHolds.WithLabelValues(result)
	}
	for _, d := range driftKinds {
		m.drift.WithLabelValues(string(d))
	}
	for _, d := range (Capabilities{}).lacks() {
		m.degraded.WithLabelValues(d.name)
	}
	if reg != nil {
		reg.MustRegister(m.eventToLive, m.batch, m.reloads, m.reloadDuration, m.reloadHolds, m.saves, m.drift,
			m.oldWorkers, m.connected, m.degraded, m.rejected, m.unchecked, m.certExpiry, m.certUpdates, m.certRejected, commands, servers)
	}
	return m
}

// live records that a change whose event was read at received is live now. A zero time
// means that no event caused it.
func (m *metrics) live(lane Lane, received time.Time) {
	if !received.IsZero() {
		m.eventToLive.WithLabelValues(lane.String()).Observe(time.Since(received).Seconds())
	}
}
