package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"cardea/api"
	"cardea/ingress"
	"cardea/proxy"
)

// metricsHandler serves what there is to measure in the Prometheus text format.
func (h *house) metricsHandler() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(&figures{h}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(h.cfg.Log.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError})
}

// serveMetrics serves metrics and probes by plain HTTP until ctx is done, if that
// was asked for.
func (h *house) serveMetrics(ctx context.Context) error {
	if h.metrics == nil {
		<-ctx.Done()
		return nil
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", h.control.Metrics)
	probes := h.control.Handler()
	mux.Handle("GET /livez", probes)
	mux.Handle("GET /readyz", probes)
	return servePlain(ctx, h.metrics, h.left, mux, h.cfg.Log)
}

// metricsMost is how many connections may be open at once where metrics are served
// by plain HTTP: those who probe and collect are few.
const metricsMost = 64

// metricsGrace is how long answers that are under way may take when a process ends.
const metricsGrace = time.Second

// servePlain serves plain HTTP until ctx is done; from left on each connection carries
// no further call.
func servePlain(ctx context.Context, l net.Listener, left <-chan struct{}, h http.Handler, log *slog.Logger) error {
	srv, guests := newHTTP(h, log), newGuests(metricsMost)
	srv.ConnState = guests.follow
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-left:
			srv.SetKeepAlivesEnabled(false)
		case <-ctx.Done():
		}
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), metricsGrace)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	}()
	err := srv.Serve(bounded{l, guests})
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		<-stopped
		return nil
	}
	return err
}

// figures reads the figures of all rooms when they are asked for.
type figures struct{ *house }

// Describe implements prometheus.Collector: what there is follows from what
// happens.
func (f *figures) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (f *figures) Collect(out chan<- prometheus.Metric) {
	emit := func(kind prometheus.ValueType, name, help string, v float64, labels ...string) {
		var names, values []string
		for i := 0; i+1 < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc("cardea_"+name, help, names, nil), kind, v, values...)
	}
	gauge := func(name, help string, v float64, labels ...string) {
		emit(prometheus.GaugeValue, name, help, v, labels...)
	}
	counter := func(name, help string, v int64, labels ...string) {
		emit(prometheus.CounterValue, name, help, float64(v), labels...)
	}

	gauge("build_info", "What runs: its version, and what carries bytes.", 1, "version", f.cfg.Version, "engine", engineName(f.engine))
	g := f.gate.Stats()
	gauge("connections", "Live connections.", float64(g.Live))
	gauge("connections_waiting", "Connections that wait for others to end.", float64(g.Waiting))
	processes, connections := f.kin.older()
	gauge("older_processes", "Processes that an upgrade has replaced, and that keep their connections.", float64(processes))
	gauge("older_connections", "Live connections of those.", float64(connections))
	for of, x := range g.Objects {
		labels := []string{"kind", of.Kind, "name", of.Name}
		gauge("object_connections", "Live connections of a Service or mapping.", float64(x.Live), labels...)
		counter("object_received_bytes_total", "Bytes from clients, of connections that ended.", x.Received, labels...)
		counter("object_sent_bytes_total", "Bytes to clients, of connections that ended.", x.Sent, labels...)
		for reason, n := range x.Ends {
			counter("object_ends_total", "Connections that ended.", n, append(labels, "reason", string(reason))...)
		}
	}
	gauge("decisions_held", "Decisions that live connections hang on.", float64(g.Held))
	gauge("records_owed", "Records of ended connections that the log has not taken yet.", float64(g.Owed))
	counter("arrivals_total", "Connections that arrived at the gate.", g.Arrivals)
	for d, n := range g.Decisions {
		counter("decisions_total", "Decisions about new connections.", n, "effect", string(d.Effect), "reason", string(d.Reason))
	}
	counter("decisions_repeated_total", "Decisions that were made again for live connections.", g.Renewals)
	counter("decisions_unanswered_total", "Repeated decisions that got no answer.", g.Unanswered)
	for reason, n := range g.Cuts {
		counter("cuts_total", "Live connections that lost their right.", n, "reason", string(reason))
	}
	for reason, n := range g.Ends {
		counter("ends_total", "Connections that ended.", n, "reason", string(reason))
	}
	counter("received_bytes_total", "Bytes from clients, of connections that ended.", g.Received)
	counter("sent_bytes_total", "Bytes to clients, of connections that ended.", g.Sent)

	for port, admission := range map[string]*ingress.Admission{"cluster": f.admission, "public": f.crowd} {
		a := admission.Stats()
		gauge("handshakes_pending", "TLS handshakes under way.", float64(a.Pending), "port", port)
		gauge("handshakes_waiting", "Connections that wait for their handshake.", float64(a.Waiting), "port", port)
		counter("handshakes_total", "TLS handshakes that were begun.", a.Handshakes, "port", port)
		for _, x := range []struct {
			why string
			n   int64
		}{{"too_many", a.TooMany}, {"displaced", a.Displaced}, {"too_fast", a.TooFast}, {"descriptors", a.Crowded}} {
			counter("handshakes_refused_total", "Connections that were refused before their TLS handshake was over, or for want of descriptors.", x.n, "port", port, "why", x.why)
		}
	}
	for reason, n := range f.doors.refused() {
		counter("doors_refused_total", "Connections that were refused before anything was decided: in their handshake, most of them.", n, "reason", string(reason))
	}
	t := f.tunnels.Stats()
	gauge("tunnels", "Connections that speak cardea/1.", float64(t.Framed))
	gauge("tunnels_idle", "Those of them without a stream.", float64(t.Idle))
	counter("streams_total", "Streams that were opened.", t.Streams)

	p := f.router.Stats()
	gauge("public_ports", "Public ports.", float64(p.Open), "state", "open")
	gauge("public_ports", "Public ports.", float64(p.Closed), "state", "closed")
	for _, l := range p.Listeners {
		counter("listener_accepted_total", "Connections to a public port.", l.Accepted, "listener", l.Listener)
		counter("listener_accept_failures_total", "Failures of accepting at a public port.", l.Failures, "listener", l.Listener)
		for reason, n := range l.Refused {
			counter("listener_refused_total", "Connections to a public port that were refused before anything was decided.", n, "listener", l.Listener, "reason", string(reason))
		}
	}
	for _, key := range f.router.Objects() {
		kind, name := objectLabels(key)
		for _, c := range f.status(key).Conditions {
			v, known := map[string]float64{"True": 1, "False": 0}[c.Status]
			if known {
				gauge("object_condition", "Whether a condition of a Service or of a foreign object is true.", v, "kind", kind, "name", name, "type", c.Type)
			}
		}
	}
	for _, e := range f.upstreams.Stats() {
		kind, name := objectLabels(e.Object)
		labels := []string{"kind", kind, "name", name, "endpoint", e.Endpoint}
		counter("endpoint_connections_total", "Connections that were made to an endpoint.", e.Dialled, labels...)
		counter("endpoint_retries_total", "Attempts to reach an endpoint because another one had failed.", e.Retries, labels...)
		for reason, n := range e.Failed {
			counter("endpoint_failures_total", "Attempts to reach an endpoint that failed.", n, append(labels, "reason", reason)...)
		}
	}

	for _, t := range f.upstreams.Targets() {
		kind, name := objectLabels(t.Object)
		labels := []string{"kind", kind, "name", name, "config", t.Config, "endpoint", t.Endpoint, "address", t.Address}
		serves := 0.0
		if t.State.Serves() {
			serves = 1
		}
		gauge("endpoint_serves", "Whether an address of an endpoint gets connections: it is neither unhealthy nor ejected.", serves, labels...)
		gauge("endpoint_connections", "Live connections to an address of an endpoint.", float64(t.Connections), labels...)
	}

	j, s := f.journal.Stats(), f.sink.Stats()
	counter("log_records_total", "Records that the access log ever took.", j.Records)
	gauge("log_bytes", "Size of the access log.", float64(j.Bytes))
	gauge("log_lag_seconds", "How long the oldest record waits for the disk.", j.Lag.Seconds())
	if s.Configured {
		counter("collector_sent_total", "Records that the collector has.", s.Sent)
		counter("collector_lost_total", "Records that the collector will never have.", s.Lost+s.Refused)
		counter("collector_failures_total", "Calls of the collector that failed.", s.Failed)
		gauge("collector_lag_records", "Records that the collector does not have yet.", float64(s.Lag))
		gauge("collector_lag_seconds", "How long the oldest of them waits.", s.LagTime.Seconds())
	}

	rev := f.settings.revision()
	gauge("revision", "Revision of the store that is in force.", float64(rev.Number), "epoch", strconv.FormatUint(rev.Epoch, 10))
	used, limit := f.descriptors()
	if g := f.network.current(); g != nil {
		t := trafficOf(g)
		gauge("gateway_sessions", "Sessions whose tunnel is alive.", float64(t.alive))
		gauge("gateway_peers", "Sessions that have a tunnel.", float64(t.peers))
		counter("gateway_received_bytes_total", "Bytes that came through the tunnels that there are.", t.received)
		counter("gateway_sent_bytes_total", "Bytes that went through the tunnels that there are.", t.sent)
		for reason, n := range g.Dropped() {
			counter("gateway_dropped_packets_total", "Packets of tunnels that were dropped.", int64(n), "reason", reason)
		}
	}
	gauge("descriptors", "Descriptors that are open.", float64(used))
	gauge("descriptors_limit", "Descriptors that may be open.", float64(limit))
}

// objectLabels is what figures call an Object: its kind, and NAME of a Service or
// NAMESPACE/NAME of others.
func objectLabels(k api.Key) (kind, name string) {
	switch {
	case k.Name == "":
		other := proxy.Other()
		return other.Kind, other.Name
	case k.Namespace == "":
		return k.Kind, k.Name
	}
	return k.Kind, k.Namespace + "/" + k.Name
}
