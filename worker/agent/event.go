package agent

import (
	"fmt"

	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Task is what a worker does for a job: one try to prepare it, or one generation of
// hosting some of its ranks. Exactly one of the numbers is set.
type Task struct {
	Job         string
	Preparation uint64
	Generation  uint64
}

// before tells whether t is an older task of the same job than u. A job is prepared
// before its first generation.
func (t Task) before(u Task) bool {
	return t.Job == u.Job && (t.Generation < u.Generation || t.Generation == u.Generation && t.Preparation < u.Preparation)
}

func (t Task) String() string {
	if t.Generation > 0 {
		return fmt.Sprintf("generation %d of %s", t.Generation, t.Job)
	}
	return fmt.Sprintf("preparation %d of %s", t.Preparation, t.Job)
}

// Event is something that a worker's state has to hear of.
type Event interface{ event() }

// Opened says that a session stands: the leader has sent its welcome. Epoch changes when
// the coordinators are restored from a backup.
type Opened struct{ Epoch uint64 }

// Lost says that the session has ended. Fenced: because the worker was given up.
type Lost struct{ Fenced bool }

// Ordered says that orders have come.
type Ordered struct{ Orders *skeinv1.Orders }

// Ended says that a task is over and nothing of it runs any more.
type Ended struct {
	Task     Task
	How      How
	Prepared *skeinv1.PreparedRequest // of a preparation that is done
	Accused  string                   // worker at the other end of what broke
	Reason   string
	Sealed   *skeinv1.Sealed     // what is kept of a generation that broke; nil: nothing
	Diverged *skeinv1.Divergence // why nothing is kept by anybody; nil: that is not so
}

// How a task ended.
type How int

// Every task ends in one of these ways.
const (
	Done     How = iota + 1 // what was to do is done
	Broken                  // it can't go on here; the job can, elsewhere or later
	Failed                  // the job can't succeed anywhere
	Fenced                  // the leader says that it is over
	Canceled                // it was told to stop
)

func (h How) String() string {
	return [...]string{"unknown", "done", "broken", "failed", "fenced", "canceled"}[h]
}

// Answered says what the leader made of a report: nil, or why it was not taken.
type Answered struct {
	Report  Report
	Fenced  bool   // what it is about is over
	Refused string // why it won't be taken, however often it comes; empty: it was taken
}

// Drain says that the process is asked to leave politely.
type Drain struct{}

// Orphaned says that no coordinator has been found for so long that the task must stop.
type Orphaned struct{ Reason string }

// Warmed says that making ready for a job has ended and nothing of it runs any more.
type Warmed struct {
	Job string
	Err string // empty: this worker is ready
}

// Quit says that the process is to leave as soon as its task has stopped.
type Quit struct{}

func (Opened) event()   {}
func (Lost) event()     {}
func (Ordered) event()  {}
func (Ended) event()    {}
func (Answered) event() {}
func (Drain) event()    {}
func (Orphaned) event() {}
func (Quit) event()     {}
func (Warmed) event()   {}

// Action is something that the shell around the state has to do, in the order in which
// actions are returned. None of them is waited for.
type Action interface{ action() }

// Prepare starts a preparation. No other task runs.
type Prepare struct{ Order *skeinv1.Preparation }

// Host starts hosting ranks. No other task runs.
type Host struct{ Order *skeinv1.Assignment }

// Stop stops the task that runs. Ended follows.
type Stop struct{ Task Task }

// Checkpoint asks the task that runs for a checkpoint at its next step boundary.
type Checkpoint struct{ Task Task }

// Yield asks the task that runs to stop after the next step.
type Yield struct{ Task Task }

// Seal has the task that runs stop at once and say what it keeps. Ended follows.
type Seal struct{ Task Task }

// Warm makes ready to enter a job. No task runs. Warmed follows.
type Warm struct{ Order *skeinv1.Warm }

// Cool stops making ready. Warmed follows.
type Cool struct{}

// Drop forgets what is kept of a job. No task runs, and none is made ready for.
type Drop struct{}

// ReadStore reads a nonce through a store and tells the leader of this session.
type ReadStore struct{ Probe *skeinv1.StoreProbe }

// Tell reports how a task ended, until the leader answers. Answered follows.
type Tell struct{ Report Report }

// TellDrain tells the leader that this worker wants to leave.
type TellDrain struct{}

// Exit ends the process. It is the last action.
type Exit struct{}

func (Prepare) action()    {}
func (Host) action()       {}
func (Stop) action()       {}
func (Checkpoint) action() {}
func (Yield) action()      {}
func (Seal) action()       {}
func (Warm) action()       {}
func (Cool) action()       {}
func (Drop) action()       {}
func (ReadStore) action()  {}
func (Tell) action()       {}
func (TellDrain) action()  {}
func (Exit) action()       {}

// Report is what the leader has to know about the end of a task.
type Report struct {
	Task     Task
	How      How                      // Done of a preparation, Broken or Failed
	Prepared *skeinv1.PreparedRequest // if Done
	Accused  string
	Reason   string
	Sealed   *skeinv1.Sealed // of a generation; nil: nothing is kept
	Diverged *skeinv1.Divergence
}
