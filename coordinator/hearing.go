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
	accused  map[string]accusation
	broken   map[string]broken                // by job
	reads    map[string]map[string]*storeRead // by job and worker
	progress map[string]*skeinv1.Progress     // by job; read only
	lines    map[string]*lines                // by job
	waiting  map[string]string                // by job, as last decided
	draining map[string]time.Time             // by worker, since when it is known
}

type contact struct {
	incarnation string
	connected   bool
	heard       time.Time
	broke       time.Time
	session     uint64 // rises with each session of the name
	cancel      context.CancelFunc
	dataSets    []string
}

type accusation struct {
	incarnation string // of the accused
	membership.Accusation
}

type broken struct {
	preparation uint64 // or
	recovery.Broken
}

// storeRead is a probe of a job's store by a worker.
type storeRead struct {
	asked    time.Time
	answered time.Time // zero: not yet
	err      string
}

// readAgain is how long a failed probe stands before it is asked anew.
const readAgain = 30 * time.Second

func newHearing(now time.Time) *hearing {
	return &hearing{
		wakeup: make(chan struct{}), watchers: make(chan struct{}), since: now, lastJoin: now, lines: map[string]*lines{},
		contacts: map[string]*contact{}, lost: map[string]string{}, accused: map[string]accusation{}, broken: map[string]broken{},
		reads: map[string]map[string]*storeRead{}, progress: map[string]*skeinv1.Progress{}, waiting: map[string]string{}, draining: map[string]time.Time{},
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
	c := &contact{incarnation: incarnation, connected: true, heard: now, session: 1, cancel: cancel}
	if old != nil {
		c.session = old.session + 1
		if old.connected {
			old.cancel()
		}
		if old.incarnation != incarnation { // it may run on another machine by now
			for _, reads := range h.reads {
				delete(reads, worker)
			}
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
func (h *hearing) heartbeat(now time.Time, worker string, session uint64, dataSets []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.contacts[worker]
	if c == nil || c.session != session {
		return
	}
	c.heard = now
	if !slices.Equal(c.dataSets, dataSets) {
		c.dataSets = slices.Clone(dataSets)
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
	if accused != "" {
		h.accused[accused] = accusation{incarnation, membership.Accusation{By: b.By, Reason: b.Reason}}
	}
	h.wake()
}

// read notes what a worker got through a job's store.
func (h *hearing) read(now time.Time, worker string, job *fsm.Job, nonce, failure string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.reads[job.ID][worker]
	if r == nil {
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
	r := h.reads[job][worker]
	if r == nil || r.err != "" && !r.answered.IsZero() && now.Sub(r.answered) > readAgain {
		h.reads[job][worker] = &storeRead{asked: now}
		return true
	}
	return r.answered.IsZero()
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
	maps.DeleteFunc(h.reads, func(job string, _ map[string]*storeRead) bool { return over(job) })
	maps.DeleteFunc(h.waiting, func(job, _ string) bool { return over(job) })
	maps.DeleteFunc(h.progress, func(job string, _ *skeinv1.Progress) bool { return s.Jobs[job] == nil })
	h.forgetLines(s)
	maps.DeleteFunc(h.draining, func(w string, _ time.Time) bool { return s.Workers[w] == nil || !s.Workers[w].Draining })
	maps.DeleteFunc(h.accused, func(w string, a accusation) bool { return !s.Is(w, a.incarnation) })
	maps.DeleteFunc(h.lost, func(w, _ string) bool { return s.Workers[w] != nil })
	maps.DeleteFunc(h.contacts, func(w string, c *contact) bool {
		return s.Workers[w] == nil && !c.connected && now.Sub(c.broke) > time.Minute
	})
	for _, w := range s.ByName() {
		if _, known := h.draining[w.Name]; w.Draining && !known {
			h.draining[w.Name] = now
		}
	}
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
		seen.Contacts[name] = membership.Contact{Incarnation: c.incarnation, Connected: c.connected, Heard: c.heard, Broke: c.broke}
	}
	for name, a := range h.accused {
		seen.Accused[name] = a.Accusation
	}
	return seen
}

func (h *hearing) forRecovery(s *fsm.State) recovery.Seen {
	h.mu.Lock()
	defer h.mu.Unlock()
	seen := recovery.Seen{Alive: h.alive(s), Lost: maps.Clone(h.lost), Broken: map[string]recovery.Broken{},
		Draining: maps.Clone(h.draining), Reads: map[string]map[string]bool{}}
	for job, b := range h.broken {
		if b.preparation == 0 {
			seen.Broken[job] = b.Broken
		}
	}
	for job, reads := range h.reads {
		seen.Reads[job] = map[string]bool{}
		for worker, r := range reads {
			seen.Reads[job][worker] = !r.answered.IsZero() && r.err == ""
		}
	}
	return seen
}

func (h *hearing) forScheduler(now time.Time, s *fsm.State, patience time.Duration) scheduler.Seen {
	h.mu.Lock()
	defer h.mu.Unlock()
	seen := scheduler.Seen{Alive: h.alive(s), LastJoin: h.lastJoin, Broken: map[string]scheduler.Broken{}, Reads: map[string]map[string]scheduler.Read{}}
	for job, b := range h.broken {
		if b.preparation != 0 {
			seen.Broken[job] = scheduler.Broken{Number: b.preparation, Reason: b.Reason}
		}
	}
	for job, reads := range h.reads {
		seen.Reads[job] = map[string]scheduler.Read{}
		for worker, r := range reads {
			switch {
			case !r.answered.IsZero():
				seen.Reads[job][worker] = scheduler.Read{Err: r.err}
			case now.Sub(r.asked) > patience:
				seen.Reads[job][worker] = scheduler.Read{Err: fmt.Sprintf("no answer for %s", patience)}
			}
		}
	}
	return seen
}
