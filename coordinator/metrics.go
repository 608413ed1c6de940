package coordinator

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/ledger"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// metrics are what a coordinator shows to Prometheus. docs/METRICS.md explains them.
// What can be read off when somebody asks is; only events are counted here.
type metrics struct {
	of            *Coordinator
	decisions     *prometheus.CounterVec // by kind and outcome
	propose       prometheus.Histogram
	leaderChanges prometheus.Counter
}

func newMetrics(of *Coordinator) *metrics {
	return &metrics{
		of: of,
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skein_coordinator_decisions_total", Help: "Decisions that this coordinator put into the log.",
		}, []string{"kind", "outcome"}),
		propose: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "skein_coordinator_propose_seconds", Help: "From a proposal to its acknowledgement by a majority.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5},
		}),
		leaderChanges: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "skein_coordinator_leader_changes_total", Help: "How often this coordinator has learned of another leader.",
		}),
	}
}

// register adds everything to a registry; nil: to none.
func (m *metrics) register(to *prometheus.Registry) error {
	if to == nil {
		return nil
	}
	for _, c := range m.collectors() {
		if err := to.Register(c); err != nil {
			return fmt.Errorf("metrics: %w", err)
		}
	}
	return nil
}

func (m *metrics) unregister(from *prometheus.Registry) {
	for _, c := range m.collectors() {
		if from != nil {
			from.Unregister(c)
		}
	}
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.decisions, m.propose, m.leaderChanges, m}
}

// proposed counts a proposal.
func (m *metrics) proposed(began time.Time, kind string, result fsm.Result, err error) {
	outcome := "held"
	switch {
	case err != nil:
		outcome = "lost"
	case result.Err != nil:
		outcome = "refused"
	}
	m.decisions.WithLabelValues(kind, outcome).Inc()
	if err == nil {
		m.propose.Observe(time.Since(began).Seconds())
	}
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Of every coordinator.
var (
	descState       = describe("skein_coordinator_raft_state", "1 for the state that this coordinator is in.", "state")
	descTerm        = describe("skein_coordinator_raft_term", "The term of the log.")
	descCommit      = describe("skein_coordinator_raft_commit_index", "The newest entry that a majority has.")
	descApplied     = describe("skein_coordinator_raft_applied_index", "The newest entry that this coordinator's state has.")
	descLastContact = describe("skein_coordinator_raft_last_contact_seconds", "Since this follower has heard from the leader; 0 on the leader.")
	descLogBytes    = describe("skein_coordinator_raft_log_bytes", "Size of the file of the log.")
	descSnapshot    = describe("skein_coordinator_raft_snapshot_bytes", "Size of the newest snapshot.")
	descExpires     = describe("skein_coordinator_certificate_expires_seconds", "Unix time at which this coordinator's certificate expires.")
)

// Of the one that leads.
var (
	descSessions  = describe("skein_coordinator_sessions", "Sessions of workers.")
	descJobs      = describe("skein_coordinator_jobs", "Jobs by phase.", "phase")
	descWorkers   = describe("skein_coordinator_workers", "Workers by what they do.", "state")
	descStep      = describe("skein_job_step", "The last decided step of a running job.", "job")
	descSpeed     = describe("skein_job_tokens_per_second", "Tokens that a running job trains on a second.", "job")
	descSetbacks  = describe("skein_job_setbacks", "Generations of a running job that gained nothing, in a row.", "job")
	descProtected = describe("skein_job_protected", "1 if the loss of any one worker costs a running job no step.", "job")
	descExposed   = describe("skein_job_exposed", "1 for why the loss of a worker sets a running job back to its newest checkpoint, and until when.", "job", "because")
	descPublished = describe("skein_job_published_step", "The step of the newest checkpoint of a job that is not over.", "job")
	descTime      = describe("skein_job_time_seconds", "Where the time of a job went that is not over, by category; their sum is its wall time.", "job", "category")
	descGoodput   = describe("skein_job_goodput", "Productive share of a job's time since it was prepared.", "job")
	descCapacity  = describe("skein_job_capacity", "Workers for each that a job could use, in the mean while it trained.", "job")
)

// Describe implements prometheus.Collector.
func (m *metrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descState, descTerm, descCommit, descApplied, descLastContact, descLogBytes, descSnapshot, descExpires,
		descSessions, descJobs, descWorkers, descStep, descSpeed, descSetbacks, descProtected, descExposed, descPublished, descTime, descGoodput, descCapacity,
	} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	s := m.of.node.Stats()
	for _, state := range []string{"leader", "candidate", "follower"} {
		gauge(descState, one(s.State == state), state)
	}
	gauge(descTerm, float64(s.Term))
	gauge(descCommit, float64(s.Commit))
	gauge(descApplied, float64(s.Applied))
	if s.State == "leader" {
		gauge(descLastContact, 0)
	} else if !s.LastContact.IsZero() {
		gauge(descLastContact, time.Since(s.LastContact).Seconds())
	}
	log, snapshot := m.of.node.Sizes()
	gauge(descLogBytes, float64(log))
	gauge(descSnapshot, float64(snapshot))
	if f := m.of.config.TLS; f != nil {
		gauge(descExpires, float64(f.Expires.Unix()))
	}
	if r := m.of.leading(); r != nil {
		collectState(gauge, time.Now(), m.of.node.State(), r.memory)
	}
}

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// collectState shows jobs and workers as the leader sees them.
func collectState(gauge func(d *prometheus.Desc, v float64, labels ...string), now time.Time, s *fsm.State, m *memory) {
	jobs := map[fsm.Phase]int{}
	for _, j := range s.InOrder() {
		jobs[j.Phase]++
		if !j.Phase.Final() {
			collectLedger(gauge, j.ID, ledgerOf(now, j, m))
			if c, ok := j.Newest(); ok {
				gauge(descPublished, float64(c.Step), j.ID)
			}
		}
		if j.Phase != fsm.Running {
			continue
		}
		gauge(descSetbacks, float64(max(j.Setbacks-1, 0)), j.ID) // the running one is none yet
		if p := m.progressOf(j.ID); p != nil {
			gauge(descStep, float64(p.GetStep()), j.ID)
			gauge(descSpeed, p.GetTokensPerSecond(), j.ID)
			because := exposed(p, j)
			gauge(descProtected, one(because == ""), j.ID)
			if because != "" {
				gauge(descExposed, 1, j.ID, because)
			}
		}
	}
	for _, p := range fsm.Phases {
		gauge(descJobs, float64(jobs[p]), string(p))
	}
	busy, seen := s.Busy(), m.forMembership()
	workers := map[string]int{"free": 0, "busy": 0, "draining": 0, "away": 0}
	sessions := 0
	for _, w := range s.ByName() {
		c := seen.Contacts[w.Name]
		here := c.Connected && c.Incarnation == w.Incarnation
		switch {
		case !here:
			workers["away"]++
		case w.Draining:
			workers["draining"]++
		case busy[w.Name] != "":
			workers["busy"]++
		default:
			workers["free"]++
		}
		if here {
			sessions++
		}
	}
	for state, n := range workers {
		gauge(descWorkers, float64(n), state)
	}
	gauge(descSessions, float64(sessions))
}

// exposed says why the loss of a worker costs a running job steps, and until when; "" if it costs none.
func exposed(p *skeinv1.Progress, j *fsm.Job) string {
	switch {
	case p.GetGeneration() != j.Generation:
		return fmt.Sprintf("generation %d has told nothing yet; until it does", j.Generation)
	case p.GetProtected():
		return ""
	case p.GetExposed() != "":
		return p.GetExposed()
	}
	return "its workers do not say why"
}

// collectLedger shows where a job's time went.
func collectLedger(gauge func(d *prometheus.Desc, v float64, labels ...string), job string, l ledger.Ledger) {
	for category, ms := range map[string]int64{
		"preparing": l.Preparing, "productive": l.Productive, "rework": l.Rework, "recovery": l.Recovery, "checkpoint": l.Checkpoint,
		"data_wait": l.DataWait, "evaluation": l.Evaluation, "paused": l.Paused,
	} {
		gauge(descTime, float64(ms)/1000, job, category)
	}
	if share, ok := l.Goodput(); ok {
		gauge(descGoodput, share, job)
	}
	if share, ok := l.Capacity(); ok {
		gauge(descCapacity, share, job)
	}
}
