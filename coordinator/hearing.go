package coordinator

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/membership"
	"github.com/skein-ml/skein/coordinator/recovery"
	"github.com/skein-ml/skein/coordinator/scheduler"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// reign is one stretch of leadership.
type reign struct {
	term uint64
	ctx  context.Context // ends with it
	end  context.CancelFunc
	*hearing
}

// hearing is what workers have told this leader. It is input to decisions and never
// in the log.
type hearing struct {
	mu       sync.Mutex
	wakeup   chan struct{} // closed at the next change that a decision could want
	watchers chan struct{} // closed at the next change that only watchers want
	since    time.Time
	lastJoin time.Time
	contacts map[string]*contact
	lost     map[string]string // why workers were given up
	lostAt   map[string]time.Time
	accused  map[string]accusation
	broken   map[string]broken                      // by job
	reads    map[string]map[string]*storeRead       // by job and worker
	progress map[string]*skeinv1.Progress           // by job; read only
	accounts map[string]*account                    // by job
	lines    map[string]*lines                      // by job
	waiting  map[string]string                      // by job, as last decided
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
	cancel      context.CancelFunc
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

// readAgain is how long a failed probe stands before it is asked anew.
const readAgain = 30 * time.Second

func newHearing(now time.Time) *hearing {
	return &hearing{
		wakeup: make(chan struct{}), watchers: make(chan struct{}), since: now, lastJoin: now, lines: map[string]*lines{},
		contacts: map[string]*contact{}, lost: map[string]string{}, lostAt: map[string]time.Time{}, accused: map[string]accusation{}, broken: map[string]broken{},
		reads: map[string]map[string]*storeRead{}, progress: map[string]*skeinv1.Progress{}, accounts: map[string]*account{}, waiting: map[string]string{}, draining: map[string]time.Time{},
		gaveUp: map[string]map[string]*recovery.GaveUp{}, sealed: map[string]map[string]recovery.Sealed{}, ending: map[string]ending{},
	}
}

// changed is closed at the next change that a decision could want.
func (h *hearing) changed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.wakeup
}

// told is closed at the next line or progress.
func (h *hearing) told() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.watchers
}

// wake is called with h.mu held.
func (h *hearing) wake() {
	close(h.wakeup)
	h.wakeup = make(chan struct{})
}

// wakeWatchers is called with h.mu held.
func (h *hearing) wakeWatchers() {
	close(h.watchers)
	h.watchers = make(chan struct{})
}

// connect begins a session of a worker process. It refuses a second process under one
// name while the first is heard; the same process replaces its own session.
func (h *hearing) connect(now time.Time, lease time.Duration, worker, incarnation string, cancel context.CancelFunc) (session uint64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.contacts[worker]
	if old != nil && old.connected && old.incarnation != incarnation && now.Sub(old.heard) < lease {
		return 0, fmt.Errorf("another process is connected as worker %q; give this one another name", worker)
	}
	c := &contact{incarnation: incarnation, connected: true, heard: now, began: now, session: 1, cancel: cancel}
	if old != nil {
		c.session = old.session + 1
		if old.connected {
			old.cancel()
		}
	}
	h.contacts[worker] = c
	h.lastJoin = now
	delete(h.accused, worker)
	h.wake()
	return c.session, nil
}

// disconnect ends a session, unless a later one has taken its place.
func (h *hearing) disconnect(now time.Time, worker string, session uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.contacts[worker]; c != nil && c.session == session {
		c.connected, c.broke = false, now
		h.wake()
	}
}

// heartbeat notes that a worker is alive.
func (h *hearing) heartbeat(now time.Time, worker string, session uint64, beat *skeinv1.Heartbeat) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.contacts[worker]
	if c == nil || c.session != session {
		return
	}
	c.heard = now
	runs := task{job: beat.GetJob(), generation: beat.GetGeneration(), preparation: beat.GetPreparation()}
	if beat != nil && beat.Keeps != nil { // it says so, be it that it keeps nothing
		h.dropped(worker, c.incarnation, beat.GetKeeps())
	}
	if dataSets := beat.GetDataSets(); !slices.Equal(c.dataSets, dataSets) || c.runs != runs || c.warm != beat.GetWarm() {
		if c.runs != runs {
			c.strayed = time.Time{}
		}
		c.dataSets, c.runs, c.warm = slices.Clone(dataSets), runs, beat.GetWarm()
		h.wake()
	}
}

// tell notes a job's progress.
func (h *hearing) tell(job string, p *skeinv1.Progress) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.progress[job] = p
	h.wakeWatchers()
}

func (h *hearing) progressOf(job string) *skeinv1.Progress {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.progress[job]
}

func (h *hearing) waitingOf(job string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waiting[job]
}

// report notes that a generation or a preparation cannot go on. The first report of a
// generation counts.
func (h *hearing) report(job string, b broken, accused, incarnation string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if old, ok := h.broken[job]; !ok || old.Generation != b.Generation || old.preparation != b.preparation {
		h.broken[job] = b
	}
	switch {
	case accused != "":
		h.accused[accused] = accusation{incarnation, job, b.Generation, b.At, membership.Accusation{By: b.By, Reason: b.Reason}}
		h.ping(b.At, accused)
	case b.preparation == 0:
		h.giveUp(job, b.Broken)
	}
	h.wake()
}

// giveUp notes that a worker cannot go on with a job by its own word. It is asked anew
// to read the job's store. h.mu is held.
func (h *hearing) giveUp(job string, b recovery.Broken) {
	if h.gaveUp[job] == nil {
		h.gaveUp[job] = map[string]*recovery.GaveUp{}
	}
	g := h.gaveUp[job][b.By]
	if g == nil {
		g = &recovery.GaveUp{}
		h.gaveUp[job][b.By] = g
	} else if g.Generation == b.Generation {
		return // it says it again, to a new leader perhaps
	}
	g.Generation, g.At, g.Reason = b.Generation, b.At, b.Reason
	g.Times++
	delete(h.reads[job], b.By)
}

// hasGivenUp tells whether a worker has given up a generation of a job.
func (h *hearing) hasGivenUp(job, worker string, generation uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.gaveUp[job][worker]
	return g != nil && g.Generation == generation
}

// read notes what a worker got through a job's store.
func (h *hearing) read(now time.Time, worker string, job *fsm.Job, nonce, failure string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.reads[job.ID][worker]
	if r == nil || r.incarnation != h.incarnation(worker) {
		return // it was not asked by this leader
	}
	r.answered, r.err = now, failure
	if failure == "" && nonce != job.Nonce.Value {
		r.err = "it holds something else under " + job.Nonce.Object + ": is it the same folder?"
	}
	h.wake()
}

// probe tells whether a worker is to be asked to read a job's store, and notes that it
// is.
func (h *hearing) probe(now time.Time, worker, job string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reads[job] == nil {
		h.reads[job] = map[string]*storeRead{}
	}
	r, incarnation := h.reads[job][worker], h.incarnation(worker)
	if r == nil || r.incarnation != incarnation || r.err != "" && !r.answered.IsZero() && now.Sub(r.answered) > readAgain {
		h.reads[job][worker] = &storeRead{incarnation: incarnation, asked: now}
		return true
	}
	return r.answered.IsZero()
}

// incarnation is the process that this leader knows under a name; empty if it knows
// none. Another one may run on another machine. h.mu is held.
func (h *hearing) incarnation(worker string) string {
	if c := h.contacts[worker]; c != nil {
		return c.incarnation
	}
	return ""
}

// servers lists the stream addresses of connected workers that have a data set, the
// nearest to a worker first: itself, those on its node, the others. Each begins with the
// next one after it by name, so that not all read from the same one.
func (h *hearing) servers(s *fsm.State, dataHash string, of *fsm.Worker) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var after, before []*fsm.Worker
	for _, w := range s.ByName() {
		c := h.contacts[w.Name]
		switch {
		case c == nil || !c.connected || c.incarnation != w.Incarnation || !slices.Contains(c.dataSets, dataHash):
		case w.Name < of.Name:
			before = append(before, w)
		default:
			after = append(after, w)
		}
	}
	var near, far []string
	for _, w := range append(after, before...) {
		if w.Node == of.Node {
			near = append(near, w.Stream)
		} else {
			far = append(far, w.Stream)
		}
	}
	return append(near, far...)
}

// forget drops what is about jobs that are over and workers that are gone.
func (h *hearing) forget(now time.Time, s *fsm.State) {
	h.mu.Lock()
	defer h.mu.Unlock()
	over := func(job string) bool { return s.Jobs[job] == nil || s.Jobs[job].Phase.Final() }
	maps.DeleteFunc(h.broken, func(job string, _ broken) bool { return over(job) })
	maps.DeleteFunc(h.sealed, func(job string, _ map[string]recovery.Sealed) bool { return over(job) })
	maps.DeleteFunc(h.ending, func(job string, e ending) bool { return over(job) || s.Jobs[job].Ended().Generation != e.generation })
	maps.DeleteFunc(h.reads, func(job string, _ map[string]*storeRead) bool { return over(job) })
	maps.DeleteFunc(h.waiting, func(job, _ string) bool { return over(job) })
	maps.DeleteFunc(h.progress, func(job string, _ *skeinv1.Progress) bool { return s.Jobs[job] == nil })
	maps.DeleteFunc(h.accounts, func(job string, _ *account) bool { return over(job) })
	h.forgetLines(s)
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

// forgetGaveUp drops what was given up before the newest checkpoint, or long ago. h.mu is
// held.
func (h *hearing) forgetGaveUp(now time.Time, s *fsm.State) {
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

// strays lists the tasks that the log does not order any more, by worker. h.mu is held.
func (h *hearing) strays(s *fsm.State) map[string]recovery.Stray {
	strays := map[string]recovery.Stray{}
	for name, c := range h.contacts {
		if c.connected && !c.strayed.IsZero() && s.Is(name, c.incarnation) {
			strays[name] = recovery.Stray{Task: c.runs.String(), Since: c.strayed}
		}
	}
	return strays
}

// alive lists the workers whose session stands. h.mu is held.
func (h *hearing) alive(s *fsm.State) map[string]bool {
	alive := map[string]bool{}
	for name, c := range h.contacts {
		alive[name] = c.connected && s.Is(name, c.incarnation)
	}
	return alive
}

// forMembership, forRecovery and forScheduler are what each decider is told.

func (h *hearing) forMembership() membership.Seen {
	h.mu.Lock()
	defer h.mu.Unlock()
	seen := membership.Seen{Since: h.since, Contacts: map[string]membership.Contact{}, Accused: map[string]membership.Accusation{}}
	for name, c := range h.contacts {
		seen.Contacts[name] = membership.Contact{Incarnation: c.incarnation, Connected: c.connected, Heard: c.heard, Pinged: c.pinged, Broke: c.broke}
	}
	for name, a := range h.accused {
		seen.Accused[name] = a.Accusation
	}
	return seen
}

// forPlacement is what recovery and the scheduler are told of one state and one moment: a
// worker that one of them knew of and the other did not could be given away with steps in
// its memory that are nowhere else.
func (h *hearing) forPlacement(now time.Time, s *fsm.State, patience time.Duration, c recovery.Config) (recovery.Seen, scheduler.Seen) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.forRecovery(s), h.forScheduler(now, s, patience, c)
}

// forRecovery is called with h.mu held.
func (h *hearing) forRecovery(s *fsm.State) recovery.Seen {
	seen := recovery.Seen{Alive: h.alive(s), Lost: maps.Clone(h.lost), Broken: map[string]recovery.Broken{},
		Draining: maps.Clone(h.draining), Reads: map[string]map[string]bool{},
		GaveUp: map[string]map[string]recovery.GaveUp{}, Strays: h.strays(s)}
	h.elastic(s, &seen)
	for job, b := range h.broken {
		if b.preparation == 0 {
			seen.Broken[job] = b.Broken
		}
	}
	for job, reads := range h.reads {
		seen.Reads[job] = map[string]bool{}
		for worker, r := range reads {
			seen.Reads[job][worker] = !r.answered.IsZero() && r.err == "" && s.Is(worker, r.incarnation)
		}
	}
	for job, gaveUp := range h.gaveUp {
		seen.GaveUp[job] = map[string]recovery.GaveUp{}
		for worker, g := range gaveUp {
			seen.GaveUp[job][worker] = *g
		}
	}
	return seen
}

// forScheduler is called with h.mu held. What recovery decides of the same moment is not in
// it yet.
func (h *hearing) forScheduler(now time.Time, s *fsm.State, patience time.Duration, c recovery.Config) scheduler.Seen {
	seen := scheduler.Seen{Alive: h.alive(s), LastJoin: h.lastJoin, Broken: map[string]scheduler.Broken{}, Reads: map[string]map[string]scheduler.Read{},
		Resting: map[string]map[string]string{}, Doubted: map[string]map[string]scheduler.Doubted{}, Strays: map[string]scheduler.Stray{}}
	for worker, stray := range h.strays(s) {
		seen.Strays[worker] = scheduler.Stray(stray)
	}
	for job, gaveUp := range h.gaveUp {
		seen.Resting[job] = map[string]string{}
		for worker, g := range gaveUp {
			if c.Rests(now, *g) {
				seen.Resting[job][worker] = fmt.Sprintf("left out for %s, because it gave up %d times: %s", c.GiveUpRest, g.Times, g.Reason)
			}
		}
	}
	for _, j := range s.Waiting() {
		doubted := map[string]scheduler.Doubted{}
		for _, d := range j.Doubts {
			if times := c.Doubts(now, j, d.Worker); times > 0 {
				doubted[d.Worker] = scheduler.Doubted{Times: times, Why: c.LeftOut(times)}
			}
		}
		seen.Doubted[j.ID] = doubted
	}
	for job, b := range h.broken {
		if b.preparation != 0 {
			seen.Broken[job] = scheduler.Broken{Number: b.preparation, Reason: b.Reason}
		}
	}
	for job, reads := range h.reads {
		seen.Reads[job] = map[string]scheduler.Read{}
		for worker, r := range reads {
			switch {
			case !s.Is(worker, r.incarnation): // another process is to be asked
			case !r.answered.IsZero():
				seen.Reads[job][worker] = scheduler.Read{Err: r.err}
			case now.Sub(r.asked) > patience:
				seen.Reads[job][worker] = scheduler.Read{Err: fmt.Sprintf("no answer for %s", patience)}
			}
		}
	}
	return seen
}
