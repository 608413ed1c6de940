package client

import (
	"encoding/json"
	"strings"
	"sync"
	"time"

	"github.com/skein-ml/skein/internal/console"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Said is something that a coordinator says of a job, as an event for people and
// machines. The lines of workers are events of their own.
type Said struct {
	Kind string    `json:"kind"` // submitted, preparing, resolved, generation, suspended, published, done, failed, canceled, waiting
	At   time.Time `json:"at,omitzero"`
	Text string    `json:"text"`
	Job  string    `json:"job"`
}

// Name implements console.Event.
func (s Said) Name() string {
	switch {
	case s.Kind == "generation" && strings.HasPrefix(s.Text, "generation "):
		return "running"
	case s.Kind == "generation":
		return "recovery"
	case s.Kind == "suspended":
		return "queued"
	}
	return s.Kind
}

// Line implements console.Event.
func (s Said) Line() string { return s.Text }

// coordinators is the name of all that coordinators say, for machines: names such as
// "done" are those of workers' events, which have other fields.
type coordinators struct{ Said }

func (coordinators) Name() string { return "coordinator" }

// Story tells a watched job's life in console events: for people without what is said
// twice, for machines all of it. Close it.
type Story struct {
	Emit    func(console.Event) // from any goroutine
	Machine bool
	Ends    bool   // tell people how a job failed or was canceled, too
	Job     string // id

	told bool // the worker's last words were among the lines

	mu      sync.Mutex
	waiting string // what the job waits for, told or about to be
	tell    *time.Timer
}

// Show takes what Watch shows.
func (s *Story) Show(m *skeinv1.WatchResponse) {
	switch {
	case m.GetLine() != nil:
		l := m.GetLine()
		e := console.Unmarshal(l.GetName(), l.GetJson())
		_, started := e.(console.Started)
		if _, done := e.(console.Done); done {
			s.told = true
		}
		if started && !s.Machine {
			return // the coordinators say it, with the names of all workers
		}
		s.Emit(e)
	case m.GetEvent() != nil:
		e := m.GetEvent()
		s.event(Said{Kind: e.GetKind(), At: time.UnixMilli(e.GetAtUnixMs()).UTC(), Text: e.GetText(), Job: s.Job})
	case m.GetJob() != nil:
		s.state(m.GetJob())
	}
}

func (s *Story) event(e Said) {
	if s.Machine {
		s.Emit(coordinators{e})
		return
	}
	switch e.Kind {
	case "preparing", "generation", "suspended":
		s.Emit(e)
	case "failed", "canceled":
		if s.Ends {
			s.Emit(e)
		}
	}
	// The rest is said better by the workers' lines, or is how the job ended.
}

// patience is how long a job waits before that is worth a line.
const patience = 1500 * time.Millisecond

// state tells what a job waits for, once for each reason.
func (s *Story) state(j *skeinv1.Job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	why := j.GetWaitingFor()
	if Over(j.GetPhase()) {
		why = ""
	}
	if why == s.waiting {
		return
	}
	if s.tell != nil {
		s.tell.Stop()
	}
	if s.waiting = why; why == "" {
		return
	}
	e := Said{Kind: "waiting", Text: why, Job: s.Job}
	s.tell = time.AfterFunc(patience, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		switch {
		case s.waiting != why:
		case s.Machine:
			s.Emit(coordinators{e})
		default:
			s.Emit(e)
		}
	})
}

// Close ends the story: nothing is told after it.
func (s *Story) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = ""
	if s.tell != nil {
		s.tell.Stop()
	}
}

// End tells how the job ended, unless its workers have.
func (s *Story) End(j *skeinv1.Job) {
	if j.GetPhase() != skeinv1.Phase_PHASE_DONE || s.told {
		return
	}
	if done, ok := Result(j); ok {
		s.Emit(done)
	}
}

// Result is what a job that is done has to show.
func Result(j *skeinv1.Job) (done console.Done, ok bool) {
	ok = len(j.GetResult()) > 0 && json.Unmarshal(j.GetResult(), &done) == nil
	return done, ok
}
