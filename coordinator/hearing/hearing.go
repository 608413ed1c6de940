// Package hearing is what workers have told a leader, and what it makes of it: what the
// deciders are told, and what each worker is ordered. It dies with the reign and is never
// in the log. It does no I/O, and time enters as an argument: coordinators and the
// simulation of a cluster run the same.
//
// Methods that return whether something has changed speak of what a decision, or the
// orders of a worker, could want to know.
package hearing

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/membership"
	"github.com/skein-ml/skein/coordinator/recovery"
	"github.com/skein-ml/skein/coordinator/scheduler"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Hearing is what was told in one reign. It is not safe for concurrent use.
type Hearing struct {
	since    time.Time
	lastJoin time.Time
	contacts map[string]*contact
	lost     map[string]string // why workers were given up
	lostAt   map[string]time.Time
	accused  map[string]accusation
	broken   map[string]broken                      // by job
	reads    map[string]map[string]*storeRead       // by job and worker
	progress map[string]*skeinv1.Progress           // by job; read only
	draining map[string]time.Time                   // by worker, since when it is known
	gaveUp   map[string]map[string]*recovery.GaveUp // by job and worker
	sealed   map[string]map[string]recovery.Sealed  // by job and worker
	ending   map[string]ending                      // by job
	want     recovery.Decision                      // as last decided
	wanted   map[string]uint64                      // by job: the generation that this was about
	queue    scheduler.Decision                     // as last decided
}

type contact struct {
	incarnation string
	connected   bool
	heard       time.Time
	began       time.Time // the session
	broke       time.Time
	session     uint64 // rises with each session of the name
	dataSets    []string
	runs        task      // as it says itself
	strayed     time.Time // since when that is not what the log orders; zero: it is
	warm        string    // job that it is ready to enter
	pings       uint64    // how often it was asked to say something
	pinged      time.Time // when it last was
}

// task is what a worker does: a generation or a preparation of a job. Zero: nothing.
type task struct {
	job                     string
	generation, preparation uint64
}

func (t task) String() string {
	if t.generation > 0 {
		return fmt.Sprintf("generation %d of %s", t.generation, t.job)
	}
	return fmt.Sprintf("preparation %d of %s", t.preparation, t.job)
}

// ordered tells whether the log orders a task of a worker process.
func (t task) ordered(s *fsm.State, worker, incarnation string) bool {
	j := s.Jobs[t.job]
	if j == nil {
		return false
	}
	if t.generation > 0 {
		p := j.Place(worker)
		return j.Phase == fsm.Running && j.Generation == t.generation && p != nil && p.Incarnation == incarnation
	}
	p := j.Preparation
	return j.Phase == fsm.Preparing && p.Number == t.preparation && p.Worker == worker && p.Incarnation == incarnation
}

type accusation struct {
	incarnation string // of the accused
	job         string
	generation  uint64 // that broke
	at          time.Time
	membership.Accusation
}

// accusationAge is how long an accusation counts: the session of a worker that died ends
// at about the time at which its links break.
const accusationAge = 2 * time.Second

type broken struct {
	preparation uint64 // or
	recovery.Broken
}

// storeRead is a probe of a job's store by a worker.
type storeRead struct {
	incarnation string // that was asked
	asked       time.Time
	answered    time.Time // zero: not yet
	err         string
}

// ReadAgain is how long a failed probe stands before it is asked anew.
const ReadAgain = 30 * time.Second

// ending is a generation that is known to end, or to have ended without a next one.
type ending struct {
	generation uint64
	at         time.Time // since when this leader knows it
}

// New begins to listen: nobody has been heard.
func New(now time.Time) *Hearing {
	return &Hearing{
		since: now, lastJoin: now, contacts: map[string]*contact{}, lost: map[string]string{}, lostAt: map[string]time.Time{},
		accused: map[string]accusation{}, broken: map[string]broken{}, reads: map[string]map[string]*storeRead{}, progress: map[string]*skeinv1.Progress{},
		draining: map[string]time.Time{}, gaveUp: map[string]map[string]*recovery.GaveUp{}, sealed: map[string]map[string]recovery.Sealed{}, ending: map[string]ending{},
	}
}

// Missed notes that this leader was stopped, or starved, until now: silence until then
// says nothing.
func (h *Hearing) Missed(now time.Time) { h.since = now }

// Contacts is of how many workers something is known.
func (h *Hearing) Contacts() int { return len(h.contacts) }

// Connect begins a session of a worker process. It refuses a second process under one
// name while the first is heard; the same process replaces its own session.
func (h *Hearing) Connect(now time.Time, lease time.Duration, worker, incarnation string) (session uint64, err error) {
	old := h.contacts[worker]
	if old != nil && old.connected && old.incarnation != incarnation && now.Sub(old.heard) < lease {
		return 0, fmt.Errorf("another process is connected as worker %q; give this one another name", worker)
	}
	c := &contact{incarnation: incarnation, connected: true, heard: now, began: now, session: 1}
	if old != nil {
		c.session = old.session + 1
	}
	h.contacts[worker] = c
	h.lastJoin = now
	delete(h.accused, worker)
	return c.session, nil
}

// session is a worker's contact if that is its session still.
func (h *Hearing) session(worker string, session uint64) *contact {
	if c := h.contacts[worker]; c != nil && c.session == session {
		return c
	}
	return nil
}

// Disconnect ends a session, unless a later one has taken its place.
func (h *Hearing) Disconnect(now time.Time, worker string, session uint64) (changed bool) {
	c := h.session(worker, session)
	if c == nil {
		return false
	}
	c.connected, c.broke = false, now
	return true
}

// Heartbeat notes that a worker is alive.
func (h *Hearing) Heartbeat(now time.Time, worker string, session uint64, beat *skeinv1.Heartbeat) (changed bool) {
	c := h.session(worker, session)
	if c == nil {
		return false
	}
	c.heard = now
	runs := task{job: beat.GetJob(), generation: beat.GetGeneration(), preparation: beat.GetPreparation()}
	if beat != nil && beat.Keeps != nil { // it says so, be it that it keeps nothing
		changed = h.dropped(worker, c.incarnation, beat.GetKeeps())
	}
	if dataSets := beat.GetDataSets(); !slices.Equal(c.dataSets, dataSets) || c.runs != runs || c.warm != beat.GetWarm() {
		if c.runs != runs {
			c.strayed = time.Time{}
		}
		c.dataSets, c.runs, c.warm = slices.Clone(dataSets), runs, beat.GetWarm()
		changed = true
	}
	return changed
}

// dropped notes that a worker keeps state of one job, or of none: it cannot give what it
// said before that it held of any other. What it said was decided stays true.
func (h *Hearing) dropped(worker, incarnation, keeps string) (changed bool) {
	for job, reports := range h.sealed {
		r, ok := reports[worker]
		if !ok || job == keeps || r.Incarnation != incarnation || len(r.Held) == 0 {
			continue
		}
		r.Held, r.Summed = nil, nil
		reports[worker] = r
		changed = true
	}
	return changed
}

// ping has a worker asked to say something.
func (h *Hearing) ping(now time.Time, worker string) {
	if c := h.contacts[worker]; c != nil && c.connected {
		c.pings++
		c.pinged = now
	}
}

// Pings is how often the worker of a session has been asked to say something.
func (h *Hearing) Pings(worker string, session uint64) uint64 {
	if c := h.session(worker, session); c != nil {
		return c.pings
	}
	return 0
}

// Pong notes that a worker has answered.
func (h *Hearing) Pong(now time.Time, worker string, session uint64) {
	if c := h.session(worker, session); c != nil {
		c.heard = now
	}
}

// Tell notes a job's progress.
func (h *Hearing) Tell(job string, p *skeinv1.Progress) (changed bool) {
	old := h.progress[job]
	h.progress[job] = p
	return old.GetProtected() != p.GetProtected() || old.GetGeneration() != p.GetGeneration()
}

// Progress is the newest of a job; nil if none was told.
func (h *Hearing) Progress(job string) *skeinv1.Progress { return h.progress[job] }

// Read notes what a worker got through a job's store.
func (h *Hearing) Read(now time.Time, worker string, job *fsm.Job, nonce, failure string) (changed bool) {
	r := h.reads[job.ID][worker]
	if r == nil || r.incarnation != h.incarnation(worker) {
		return false // it was not asked by this leader
	}
	r.answered, r.err = now, failure
	if failure == "" && nonce != job.Nonce.Value {
		r.err = "it holds something else under " + job.Nonce.Object + ": is it the same folder?"
	}
	return true
}

// probe tells whether a worker is to be asked to read a job's store, and notes that it
// is.
func (h *Hearing) probe(now time.Time, worker, job string) bool {
	if h.reads[job] == nil {
		h.reads[job] = map[string]*storeRead{}
	}
	r, incarnation := h.reads[job][worker], h.incarnation(worker)
	if r == nil || r.incarnation != incarnation || r.err != "" && !r.answered.IsZero() && now.Sub(r.answered) > ReadAgain {
		h.reads[job][worker] = &storeRead{incarnation: incarnation, asked: now}
		return true
	}
	return r.answered.IsZero()
}

// incarnation is the process that this leader knows under a name; empty if it knows
// none. Another one may run on another machine.
func (h *Hearing) incarnation(worker string) string {
	if c := h.contacts[worker]; c != nil {
		return c.incarnation
	}
	return ""
}

// GivenUp notes that a worker was given up, and why. What it said that it holds counts no
// more: should it come back, it says it again, if that is true still.
func (h *Hearing) GivenUp(now time.Time, worker, why string) {
	h.lost[worker], h.lostAt[worker] = why, now
	for _, reports := range h.sealed {
		delete(reports, worker)
	}
}

// Follow keeps what recovery wants of workers.
func (h *Hearing) Follow(now time.Time, s *fsm.State, d recovery.Decision) (changed bool) {
	h.wanted = map[string]uint64{}
	for _, j := range s.Jobs {
		h.wanted[j.ID] = j.Ended().Generation
		if _, seals := d.Seal[j.ID]; !seals && !d.Hold[j.ID] {
			continue
		}
		if e, known := h.ending[j.ID]; !known || e.generation != j.Ended().Generation {
			h.ending[j.ID] = ending{j.Ended().Generation, now}
		}
	}
	last := h.want
	h.want = d
	return !maps.Equal(last.Seal, d.Seal) || !maps.Equal(last.Yield, d.Yield) || !maps.Equal(last.Warm, d.Warm) || !maps.Equal(last.Stays, d.Stays)
}

// Wants is what recovery wanted last.
func (h *Hearing) Wants() recovery.Decision { return h.want }

// Seals tells whether jobs are to be sealed that were not when it was last decided.
func (h *Hearing) Seals(d recovery.Decision) bool {
	for job := range d.Seal {
		if _, known := h.want.Seal[job]; !known {
			return true
		}
	}
	return false
}

// Ends tells whether a running job's generation is known to end.
func (h *Hearing) Ends(j *fsm.Job) bool {
	e, ends := h.ending[j.ID]
	return ends && e.generation == j.Generation
}

// Queued keeps what the scheduler decided.
func (h *Hearing) Queued(d scheduler.Decision) (changed bool) {
	last := h.queue
	h.queue = d
	return !maps.Equal(last.Preempt, d.Preempt)
}

// Forget drops what is about jobs that are over and workers that are gone, and notes what
// the log says of workers.
func (h *Hearing) Forget(now time.Time, s *fsm.State) {
	over := func(job string) bool { return s.Jobs[job] == nil || s.Jobs[job].Phase.Final() }
	maps.DeleteFunc(h.broken, func(job string, _ broken) bool { return over(job) })
	maps.DeleteFunc(h.sealed, func(job string, _ map[string]recovery.Sealed) bool { return over(job) })
	maps.DeleteFunc(h.ending, func(job string, e ending) bool { return over(job) || s.Jobs[job].Ended().Generation != e.generation })
	maps.DeleteFunc(h.reads, func(job string, _ map[string]*storeRead) bool { return over(job) })
	maps.DeleteFunc(h.progress, func(job string, _ *skeinv1.Progress) bool { return s.Jobs[job] == nil })
	maps.DeleteFunc(h.draining, func(w string, _ time.Time) bool { return s.Workers[w] == nil || !s.Workers[w].Draining })
	maps.DeleteFunc(h.accused, func(w string, a accusation) bool {
		j := s.Jobs[a.job]
		return !s.Is(w, a.incarnation) || j == nil || j.Generation != a.generation || now.Sub(a.at) > accusationAge
	})
	h.forgetGaveUp(now, s)
	for name, c := range h.contacts {
		if c.runs == (task{}) || c.runs.ordered(s, name, c.incarnation) {
			c.strayed = time.Time{}
		} else if c.strayed.IsZero() {
			c.strayed = now
		}
	}
	maps.DeleteFunc(h.lost, func(w, _ string) bool { return s.Workers[w] != nil })
	maps.DeleteFunc(h.lostAt, func(w string, at time.Time) bool { return s.Workers[w] != nil || now.Sub(at) > time.Minute })
	maps.DeleteFunc(h.contacts, func(w string, c *contact) bool {
		return s.Workers[w] == nil && !c.connected && now.Sub(c.broke) > time.Minute
	})
	for _, w := range s.ByName() {
		if _, known := h.draining[w.Name]; w.Draining && !known {
			h.draining[w.Name] = now
		}
	}
}

// forgetGaveUp drops what was given up before the newest checkpoint, or long ago.
func (h *Hearing) forgetGaveUp(now time.Time, s *fsm.State) {
	for job, gaveUp := range h.gaveUp {
		j := s.Jobs[job]
		if j == nil || j.Phase.Final() {
			delete(h.gaveUp, job)
			continue
		}
		maps.DeleteFunc(gaveUp, func(_ string, g *recovery.GaveUp) bool {
			return j.Setbacks == 0 && g.Generation < j.Generation || now.Sub(g.At) > gaveUpAge
		})
	}
}

// gaveUpAge is how long it counts that a worker gave up a job.
const gaveUpAge = 10 * time.Minute
