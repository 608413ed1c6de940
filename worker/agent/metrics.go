package agent

import (
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/internal/monitor"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/worker"
)

// metrics is what a worker counts. docs/METRICS.md says what each is for.
type metrics struct {
	registry *prometheus.Registry

	sessionUp         prometheus.Gauge
	sessions          prometheus.Counter
	generation        *prometheus.GaugeVec   // job
	tasks             *prometheus.CounterVec // kind, end
	steps             prometheus.Counter
	stepSeconds       *prometheus.HistogramVec // phase
	straggler         *prometheus.GaugeVec     // worker, rank
	tokensPerSecond   prometheus.Gauge
	loss              prometheus.Gauge
	ringBytes         prometheus.Counter
	dataWaitSeconds   prometheus.Counter
	checkpointSeconds prometheus.Histogram
	checkpointBlocked prometheus.Counter
	checkpointBytes   prometheus.Counter
	publishSeconds    prometheus.Histogram
}

// stepBuckets reach from a millisecond to a minute.
var stepBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}

func newMetrics(c Config) *metrics {
	const prefix = "skein_worker_"
	m := &metrics{registry: monitor.NewRegistry()}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + name, Help: help})
		m.registry.MustRegister(g)
		return g
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help})
		m.registry.MustRegister(c)
		return c
	}
	histogram := func(name, help string) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: prefix + name, Help: help, Buckets: stepBuckets})
		m.registry.MustRegister(h)
		return h
	}
	m.sessionUp = gauge("session_up", "1 while a session with the leading coordinator stands.")
	m.sessions = counter("sessions_total", "Sessions that were opened.")
	m.generation = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + "generation", Help: "Generation in which this worker hosts ranks of a job; gone when it hosts none."}, []string{"job"})
	m.tasks = prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "tasks_total", Help: "Preparations and generations that ended here, by how."}, []string{"kind", "end"})
	m.steps = counter("steps_total", "Steps that this worker took part in.")
	m.stepSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: prefix + "step_seconds", Help: "Time of a step by phase; together they are the step.", Buckets: stepBuckets}, []string{"phase"})
	m.straggler = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + "straggler_ratio", Help: "How many times as long as the median rank the straggler takes; on the worker that hosts rank 0."}, []string{"worker", "rank"})
	m.tokensPerSecond = gauge("tokens_per_second", "Tokens per second of the whole job, on the worker that hosts rank 0.")
	m.loss = gauge("loss", "Loss of the last step, mean over its target tokens, on the worker that hosts rank 0.")
	m.ringBytes = counter("ring_bytes_total", "Bytes sent to the next worker of the ring.")
	m.dataWaitSeconds = counter("data_wait_seconds_total", "Time in which steps waited for batches.")
	m.checkpointSeconds = histogram("checkpoint_seconds", "Time from a checkpoint's beginning to its being published.")
	m.checkpointBlocked = counter("checkpoint_blocked_seconds_total", "Time in which training stood still for checkpoints.")
	m.checkpointBytes = counter("checkpoint_bytes_total", "Bytes of published checkpoints.")
	m.publishSeconds = histogram("publish_seconds", "Time for the log to take a checkpoint.")
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + "info", Help: "Always 1; its labels say who this worker is."}, []string{"worker", "node", "build", "classes"})
	info.WithLabelValues(c.Name, c.Node, c.Build, strings.Join(c.Classes, ",")).Set(1)
	m.registry.MustRegister(m.generation, m.tasks, m.stepSeconds, m.straggler, info)
	if c.TLS != nil {
		gauge("certificate_expires_seconds", "Unix time at which the certificate expires.").Set(float64(c.TLS.Expires.Unix()))
	}
	return m
}

// begin notes that a task has started.
func (m *metrics) begin(t Task) {
	if t.Generation > 0 {
		m.generation.WithLabelValues(t.Job).Set(float64(t.Generation))
	}
}

// finish notes how a task ended.
func (m *metrics) finish(e Ended) {
	kind := "preparation"
	if e.Task.Generation > 0 {
		kind = "generation"
		m.generation.DeleteLabelValues(e.Task.Job)
		m.tokensPerSecond.Set(0)
		m.straggler.Reset()
	}
	m.tasks.WithLabelValues(kind, e.How.String()).Inc()
}

// step notes a step, with the bytes that it sent. p is nil on workers that do not host
// rank 0.
func (m *metrics) step(p *skeinv1.Progress, phases worker.Phases) {
	m.steps.Inc()
	for _, v := range []struct {
		phase string
		d     time.Duration
	}{{"data", phases.Data}, {"compute", phases.Compute}, {"reduce", phases.Reduce}, {"gather", phases.Gather}, {"hold", phases.Hold}, {"apply", phases.Apply}} {
		m.stepSeconds.WithLabelValues(v.phase).Observe(v.d.Seconds())
	}
	m.dataWaitSeconds.Add(max(phases.Data.Seconds(), 0))
	m.ringBytes.Add(float64(max(phases.RingBytes, 0)))
	m.straggler.Reset()
	if s := phases.Straggler; s != nil {
		m.straggler.WithLabelValues(phases.Straggles, strconv.Itoa(int(s.Rank))).Set(s.Times)
	}
	if p != nil {
		m.tokensPerSecond.Set(p.GetTokensPerSecond())
		m.loss.Set(p.GetLoss())
	}
}

// event notes what a task says of its checkpoints.
func (m *metrics) event(e console.Event) {
	if p, ok := e.(console.Published); ok {
		m.checkpointSeconds.Observe(p.Seconds)
		m.checkpointBlocked.Add(max(p.BlockedSeconds, 0))
		m.checkpointBytes.Add(float64(max(p.Bytes, 0)))
	}
}
