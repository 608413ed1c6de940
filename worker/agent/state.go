package agent

import (
	"google.golang.org/protobuf/proto"

	"github.com/skein-ml/skein/internal/invariant"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// State is what a worker knows and does, without a clock, a goroutine or I/O: events
// go in, actions come out. The zero value is a worker that has just started.
//
// Its rules:
//   - Orders are the whole of what to do. What runs and is not in them is stopped.
//   - One task runs at a time. The next one starts when the one before has ended.
//   - A task starts at most once, and never after a younger one of its job: who has
//     stopped in a generation is sealed in it.
//   - Coordinators that were restored from a backup do not know what was done since, and
//     may order what looks older. What was begun for those before them is stopped and
//     forgotten.
//   - Who is ordered again to do what it gave up says again that it gave it up, once in
//     each session, because only the leader's memory has it.
//   - Losing the leader stops nothing. Being given up stops the task at once.
//   - What is kept of a job outlives its task, until the leader's orders name the job no
//     more. To say what is kept for a generation is a promise not to enter it.
//   - A worker without a task makes ready for the job that its orders say. Neither a task
//     nor a drop begins before that has ended.
type State struct {
	open    bool   // a session stands
	session uint64 // sessions that were opened so far
	epoch   uint64 // of the coordinators, in the last of them

	orders *skeinv1.Orders // in force; those of the last session until new ones come
	fresh  bool            // they are of this session

	running    Task   // zero: none
	stopping   bool   // it was told to stop
	checkpoint uint64 // highest request for a checkpoint that it was told of
	yield      uint64 // highest request to stop after a step that it was told of
	sealing    bool   // it was told to stop and say what it keeps

	kept    string // job that something may be kept of
	warming string // job that is made ready for
	cooling bool   // that was told to stop
	ready   string // job that is entered without delay
	unready string // job that could not be made ready for, in this session

	begun map[string]Task // by job: the youngest task that was started
	given map[string]*end // by job: how that task ended, unless it runs

	probes map[string]string // nonce objects, by job, that this session's orders ask for

	leaving bool   // it was asked to drain
	told    uint64 // session in which the leader was told so
	quit    bool   // it goes as soon as nothing runs
	over    bool   // it has gone
}

// end is how a task ended.
type end struct {
	report Report
	quiet  bool   // there is nothing to tell
	told   uint64 // session in which it was last told; 0: never
}

// Running is the task that runs; the zero Task if none does.
func (s *State) Running() Task { return s.running }

// Ready is the job that this worker enters without delay; empty: none.
func (s *State) Ready() string { return s.ready }

// Keeps is the job that something may be kept of; empty: none.
func (s *State) Keeps() string { return s.kept }

// Open tells whether a session stands.
func (s *State) Open() bool { return s.open }

// Step takes an event in and says what to do.
func (s *State) Step(e Event) []Action {
	if s.over {
		return nil
	}
	var actions []Action
	switch e := e.(type) {
	case Opened:
		s.open, s.fresh, s.probes, s.unready = true, false, nil, ""
		s.session++
		if s.session > 1 && e.Epoch != s.epoch {
			s.orders, s.begun, s.given = nil, nil, nil
		}
		s.epoch = e.Epoch
	case Lost:
		s.open = false
		if e.Fenced {
			s.orders = nil
		}
	case Ordered:
		s.orders, s.fresh = e.Orders, true
		actions = s.probe()
	case Ended:
		actions = s.ended(e)
	case Answered:
		actions = s.answered(e)
	case Drain:
		s.leaving = true
	case Warmed:
		switch {
		case e.Err == "":
			s.ready = e.Job
		case !s.cooling: // what was told to stop has not failed
			s.unready = e.Job
		}
		s.warming, s.cooling = "", false
	case Orphaned:
		s.orders = nil
	case Quit:
		s.quit = true
	}
	return append(actions, s.settle()...)
}

// settle does what brings what runs nearer to what is ordered.
func (s *State) settle() []Action {
	var actions []Action
	if s.leaving && s.open && s.told != s.session {
		s.told = s.session
		actions = append(actions, TellDrain{})
	}
	want := s.want()
	switch {
	case s.running == want && want != (Task{}) || s.stopping || want.before(s.running):
	case s.running == (Task{}):
		var idle bool
		if actions, idle = s.idle(actions, want); idle && want != (Task{}) {
			actions = append(actions, s.begin(want)...)
		}
	default:
		s.stopping = true
		actions = append(actions, Stop{s.running})
	}
	if s.running == (Task{}) && s.warming == "" && s.free() {
		s.over = true
		return append(actions, Exit{})
	}
	if want.Generation > 0 && s.running == want && !s.stopping {
		actions = append(actions, s.ask(s.orders.GetAssignment())...)
	}
	return actions
}

// ask passes on what orders ask of the task that runs. A checkpoint comes before a yield,
// so that both can be of one step.
func (s *State) ask(a *skeinv1.Assignment) []Action {
	var actions []Action
	if a.GetCheckpointRequest() > s.checkpoint {
		s.checkpoint = a.GetCheckpointRequest()
		actions = append(actions, Checkpoint{s.running})
	}
	if a.GetYieldRequest() > s.yield {
		s.yield = a.GetYieldRequest()
		actions = append(actions, Yield{s.running})
	}
	if a.GetSeal() && !s.sealing {
		s.sealing = true
		actions = append(actions, Seal{s.running})
	}
	return actions
}

// idle looks after what a worker without a task keeps and makes ready. It tells whether a
// task may begin.
func (s *State) idle(actions []Action, want Task) ([]Action, bool) {
	warm := s.orders.GetWarm().GetJob()
	if want != (Task{}) || s.quit || s.leaving || s.orders.GetReleased() {
		warm = ""
	}
	if s.warming != "" {
		if s.warming != warm && !s.cooling {
			s.cooling = true
			actions = append(actions, Cool{})
		}
		return actions, false
	}
	if s.kept != "" && !s.names(s.kept, want, warm) && (want != (Task{}) || !s.free()) {
		s.kept, s.ready = "", ""
		actions = append(actions, Drop{})
	}
	if warm != "" && s.fresh && s.ready != warm && s.unready != warm {
		s.warming, s.kept = warm, warm
		actions = append(actions, Warm{s.orders.GetWarm()})
		return actions, false
	}
	return actions, true
}

// names tells whether orders name a job still of which something is kept. Being given up,
// or having no leader, is no order; nor is what a leader says that was replaced.
func (s *State) names(job string, want Task, warm string) bool {
	last, known := s.begun[want.Job]
	switch {
	case want.Generation > 0 && want.Job == job, warm == job:
		return true
	case want == (Task{}):
		return !s.fresh || s.orders == nil
	}
	return known && want.before(last)
}

// want is the task that is to run; zero if none is.
func (s *State) want() Task {
	if s.quit || s.orders.GetReleased() {
		return Task{}
	}
	if a := s.orders.GetAssignment(); a != nil {
		return Task{Job: a.GetJob(), Generation: a.GetGeneration()}
	}
	if p := s.orders.GetPreparation(); p != nil {
		return Task{Job: p.GetJob(), Preparation: p.GetNumber()}
	}
	return Task{}
}

// free tells whether a worker that does nothing may go. One that wants to leave and has
// no session waits for nobody: nothing depends on it.
func (s *State) free() bool {
	return s.quit || s.orders.GetReleased() || s.leaving && !s.open
}

// begin starts a task, unless it was started before or a younger one was.
func (s *State) begin(t Task) []Action {
	last, known := s.begun[t.Job]
	if known && last == t {
		return s.repeat(t)
	}
	if known && t.before(last) {
		return nil // orders of a leader that has been replaced and does not know it yet
	}
	if s.begun == nil {
		s.begun = map[string]Task{}
	}
	s.begun[t.Job] = t
	delete(s.given, t.Job)
	a := s.orders.GetAssignment()
	if t.Generation > 0 && a.GetSeal() && s.kept != t.Job {
		s.give(&end{report: Report{Task: t, How: Broken, Reason: "it keeps nothing of it", Sealed: &skeinv1.Sealed{Told: true}}})
		return s.repeat(t)
	}
	s.running, s.stopping, s.checkpoint, s.yield, s.sealing = t, false, 0, 0, a.GetSeal()
	if t.Generation > 0 {
		s.kept, s.ready = t.Job, ""
		return []Action{Host{a}}
	}
	return []Action{Prepare{s.orders.GetPreparation()}}
}

// repeat tells the leader of this session how a task ended that it still orders.
func (s *State) repeat(t Task) []Action {
	e := s.given[t.Job]
	invariant.Check(e != nil, "%v was started, does not run and has not ended", t)
	if e.quiet || !s.open || !s.fresh || e.told == s.session {
		return nil
	}
	e.told = s.session
	return []Action{Tell{e.report}}
}

// ended notes how a task ended. What was not stopped by orders is told at once; settle
// tells the rest, should it be ordered again.
func (s *State) ended(e Ended) []Action {
	invariant.Check(e.Task == s.running, "%v ended while %v runs", e.Task, s.running)
	stopped := s.stopping
	s.running, s.stopping = Task{}, false
	n := &end{report: Report(e)}
	if s.sealing && e.Task.Generation > 0 {
		n.report.Sealed = told(e.Sealed)
	}
	s.give(n)
	switch {
	case e.How == Done && e.Task.Generation > 0:
		n.quiet = true // whoever hosts rank 0 has completed the job, in the log
		return nil
	case e.How == Canceled && !stopped:
		n.report.How, n.report.Reason = Broken, "it stopped without an order"
	case e.How == Canceled:
		n.report.How, n.report.Reason = Broken, "it was stopped here, and a generation is not entered twice"
	case e.How == Fenced:
		// The leader knows better. Only if the next one orders it again, it does not.
		n.report.How, n.report.Reason = Broken, "a leader said that it is over"
		n.told = s.session
		if e.Sealed == nil {
			return nil
		}
		// It may wait for what is kept of what it ended.
		n.report.Sealed = told(e.Sealed)
		return []Action{Tell{n.report}}
	}
	if stopped {
		return nil
	}
	n.told = s.session
	return []Action{Tell{n.report}}
}

func (s *State) give(e *end) {
	if s.given == nil {
		s.given = map[string]*end{}
	}
	s.given[e.report.Task.Job] = e
}

// told marks what is kept by a worker that was told to stop.
func told(s *skeinv1.Sealed) *skeinv1.Sealed {
	t := &skeinv1.Sealed{Told: true}
	if s != nil {
		t = proto.CloneOf(s)
		t.Told = true
	}
	return t
}

// answered hears what became of a report. A preparation whose result is refused may
// still succeed elsewhere.
func (s *State) answered(a Answered) []Action {
	e := s.given[a.Report.Task.Job]
	if a.Refused == "" || a.Fenced || a.Report.How != Done || e == nil || e.report.Task != a.Report.Task {
		return nil
	}
	e.report = Report{Task: a.Report.Task, How: Broken, Reason: "the coordinator refused the result: " + a.Refused}
	e.told = s.session
	return []Action{Tell{e.report}}
}

// probe starts the reads that orders ask for and that were not in the orders before: a
// probe stands in them until it is answered.
func (s *State) probe() []Action {
	var actions []Action
	asked := map[string]string{}
	for _, p := range s.orders.GetProbes() {
		if s.probes[p.GetJob()] != p.GetNonceObject() {
			actions = append(actions, ReadStore{p})
		}
		asked[p.GetJob()] = p.GetNonceObject()
	}
	s.probes = asked
	return actions
}
