package coordinator

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/hearing"
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
	*memory
}

// memory is all that a leader has heard, for deciders and for people, and those who wait
// for news of it. It is never in the log.
type memory struct {
	mu       sync.Mutex
	wakeup   chan struct{} // closed at the next change that a decision could want
	watchers chan struct{} // closed at the next change that only watchers want
	heard    *hearing.Hearing
	sessions map[string]context.CancelFunc // by worker
	accounts map[string]*account           // by job
	lines    map[string]*lines             // by job
	waiting  map[string]string             // by job, as last decided
}

func newMemory(now time.Time) *memory {
	return &memory{
		wakeup: make(chan struct{}), watchers: make(chan struct{}), heard: hearing.New(now), sessions: map[string]context.CancelFunc{},
		accounts: map[string]*account{}, lines: map[string]*lines{}, waiting: map[string]string{},
	}
}

// changed is closed at the next change that a decision could want.
func (m *memory) changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wakeup
}

// told is closed at the next line or progress.
func (m *memory) told() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.watchers
}

// wake lets those who wait know of a change, if there is one. m.mu is held.
func (m *memory) wake(changed bool) {
	if changed {
		close(m.wakeup)
		m.wakeup = make(chan struct{})
	}
}

// wakeWatchers is called with m.mu held.
func (m *memory) wakeWatchers() {
	close(m.watchers)
	m.watchers = make(chan struct{})
}

// connect begins a session of a worker process. One of the same process ends with it.
func (m *memory) connect(now time.Time, lease time.Duration, worker, incarnation string, cancel context.CancelFunc) (session uint64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if session, err = m.heard.Connect(now, lease, worker, incarnation); err != nil {
		return 0, err
	}
	if end := m.sessions[worker]; end != nil {
		end()
	}
	m.sessions[worker] = cancel
	m.wake(true)
	return session, nil
}

// disconnect ends a session, unless a later one has taken its place.
func (m *memory) disconnect(now time.Time, worker string, session uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.heard.Disconnect(now, worker, session) {
		delete(m.sessions, worker)
		m.wake(true)
	}
}

func (m *memory) heartbeat(now time.Time, worker string, session uint64, beat *skeinv1.Heartbeat) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wake(m.heard.Heartbeat(now, worker, session, beat))
}

func (m *memory) pings(worker string, session uint64) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.heard.Pings(worker, session)
}

func (m *memory) pong(now time.Time, worker string, session uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.heard.Pong(now, worker, session)
}

// tell notes a job's progress.
func (m *memory) tell(job string, p *skeinv1.Progress) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wake(m.heard.Tell(job, p))
	m.wakeWatchers()
}

func (m *memory) progressOf(job string) *skeinv1.Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.heard.Progress(job)
}

func (m *memory) waitingOf(job string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.waiting[job]
}

func (m *memory) read(now time.Time, worker string, job *fsm.Job, nonce, failure string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wake(m.heard.Read(now, worker, job, nonce, failure))
}

func (m *memory) broken(now time.Time, s *fsm.State, j *fsm.Job, w *fsm.Worker, r *skeinv1.BrokenRequest) hearing.Report {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.wake(true)
	return m.heard.Broken(now, s, j, w, r)
}

func (m *memory) orders(now time.Time, s *fsm.State, w *fsm.Worker) *skeinv1.Orders {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.heard.Orders(now, s, w)
}

// missed notes that this process was stopped, or starved, until now.
func (m *memory) missed(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.heard.Missed(now)
}

func (m *memory) forMembership() membership.Seen {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.heard.ForMembership()
}

func (m *memory) forPlacement(now time.Time, s *fsm.State, patience time.Duration, c recovery.Config) (recovery.Seen, scheduler.Seen) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.heard.ForPlacement(now, s, patience, c)
}

// seals tells whether jobs are to be sealed that were not when it was last decided.
func (m *memory) seals(d recovery.Decision) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.heard.Seals(d)
}

func (m *memory) follow(now time.Time, s *fsm.State, d recovery.Decision) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wake(m.heard.Follow(now, s, d))
}

func (m *memory) queued(d scheduler.Decision) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wake(m.heard.Queued(d))
}

func (m *memory) givenUp(now time.Time, worker, why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.heard.GivenUp(now, worker, why)
}

// forget drops what is about jobs that are over and workers that are gone.
func (m *memory) forget(now time.Time, s *fsm.State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.heard.Forget(now, s)
	over := func(job string) bool { return s.Jobs[job] == nil || s.Jobs[job].Phase.Final() }
	maps.DeleteFunc(m.waiting, func(job, _ string) bool { return over(job) })
	maps.DeleteFunc(m.accounts, func(job string, _ *account) bool { return over(job) })
	m.forgetLines(s)
}

// lookCost is about what it costs to look up a worker's orders.
const lookCost = 20 * time.Microsecond

// rest has a session wait before it looks at the next change. Every change wakes every
// session: without a pause, a thousand of them would look at a hundred changes one by one
// where one look at all of them is enough. A few never wait.
func (m *memory) rest(ctx context.Context, looked time.Time) {
	m.mu.Lock()
	sessions := m.heard.Contacts()
	m.mu.Unlock()
	pause := time.Duration(sessions)*lookCost - time.Since(looked)
	if pause < time.Millisecond {
		return
	}
	select {
	case <-time.After(pause):
	case <-ctx.Done():
	}
}
