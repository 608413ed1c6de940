// Package ledger accounts for the wall time of a job: how much of it went into steps that
// were taken, and where the rest went. It is arithmetic on events and what workers have
// measured; times come in as arguments, Unix milliseconds by the clock of whoever leads.
//
// The coordinators keep a Ledger in the state that their log makes, so that every leader
// has the same one: what a generation came to is in the entry that ends it, and, as far as
// it is known by then, in the entries of its checkpoints.
package ledger

// Figures say where a job's time went, in milliseconds. Together they are its wall time.
type Figures struct {
	// Preparing is until the first step is begun, without the time in the queue.
	Preparing int64 `json:"preparing,omitempty"`
	// Productive is the time of steps that were taken, and not lost afterwards.
	Productive int64 `json:"productive,omitempty"`
	// Rework is the time of steps that were lost by a fall back to a checkpoint, and of
	// steps that were under way when a generation ended, as far as they have to be computed
	// again.
	Rework int64 `json:"rework,omitempty"`
	// Recovery is from the end of a generation to the first work of the next one on a new step.
	Recovery   int64 `json:"recovery,omitempty"`
	Checkpoint int64 `json:"checkpoint,omitempty"` // training stood still for one
	DataWait   int64 `json:"dataWait,omitempty"`   // steps waited for samples
	Evaluation int64 `json:"evaluation,omitempty"` // held-out loss, answers, the export
	Paused     int64 `json:"paused,omitempty"`     // by hand, preempted, or queued for workers
}

// Wall is all of it.
func (f Figures) Wall() int64 {
	return f.Preparing + f.Productive + f.Rework + f.Recovery + f.Checkpoint + f.DataWait + f.Evaluation + f.Paused
}

// Goodput is the productive share of the time since the job was prepared; ok is false
// before that.
func (f Figures) Goodput() (share float64, ok bool) {
	since := f.Wall() - f.Preparing
	if since <= 0 {
		return 0, false
	}
	return float64(f.Productive) / float64(since), true
}

// Spent is what a generation came to so far, as its workers measured it, in milliseconds
// since they got their orders.
type Spent struct {
	// Generation is whose it is; 0: of the one that runs when the entry is applied.
	Generation uint64 `json:"generation,omitempty"`
	Step       int64  `json:"step,omitempty"`     // the last that was decided
	Entering   int64  `json:"entering,omitempty"` // until they began a step
	Productive int64  `json:"productive,omitempty"`
	Rework     int64  `json:"rework,omitempty"` // of a step that was not decided
	Checkpoint int64  `json:"checkpoint,omitempty"`
	DataWait   int64  `json:"dataWait,omitempty"`
	Evaluation int64  `json:"evaluation,omitempty"`
	// Safe is the part of Productive that the generation's newest published checkpoint has.
	Safe int64 `json:"safe,omitempty"`
}

func (s Spent) total() int64 {
	return s.Entering + s.Productive + s.Rework + s.Checkpoint + s.DataWait + s.Evaluation
}

// sound makes every figure one that can be true: it came from another machine.
func (s Spent) sound() Spent {
	for _, x := range []*int64{&s.Step, &s.Entering, &s.Productive, &s.Rework, &s.Checkpoint, &s.DataWait, &s.Evaluation, &s.Safe} {
		*x = min(max(*x, 0), spentMax)
	}
	s.Safe = min(s.Safe, s.Productive)
	return s
}

const (
	// spentMax is a hundred years: nothing that is added up overflows.
	spentMax = 100 * 366 * 24 * 3600 * 1000
	// leadMax is more than clocks of leaders differ, in milliseconds. A clock that is further
	// behind than that was set, and what it shows from then on is all there is.
	leadMax = 10_000
)

// Doing is what a job's time is spent on.
type Doing string

// A job that is not begun does nothing.
const (
	Preparing Doing = "preparing"
	Waiting   Doing = "waiting" // paused or queued
	Training  Doing = "training"
	Over      Doing = "over"
)

// Ledger is a job's account. The zero Ledger is of a job that is not begun.
type Ledger struct {
	Figures `json:"figures,omitzero"` // up to Until; of the generation that runs, nothing yet
	Doing   Doing                     `json:"doing,omitempty"`
	Until   int64                     `json:"until,omitempty"` // moment up to which the figures go
	// Lead is how much more the figures have than the clock had shown by then: clocks of two
	// leaders differ, and entries do not come in the order of their moments. The next time
	// that nobody has measured is shorter by it.
	Lead int64 `json:"lead,omitempty"`
	// Risk is the part of Productive that is lost if the job falls back to its newest
	// published checkpoint.
	Risk int64 `json:"risk,omitempty"`
	// Trained says that a step was begun.
	Trained bool `json:"trained,omitempty"`
	// Known is what is known of the generation that runs.
	Known Spent `json:"known,omitzero"`

	// Workers that train, and as many as the job could use, since Counted; of the time
	// before, their sums in worker-milliseconds.
	Workers     int   `json:"workers,omitempty"`
	Wanted      int   `json:"wanted,omitempty"`
	Counted     int64 `json:"counted,omitempty"`
	WorkersTime int64 `json:"workersTime,omitempty"`
	WantedTime  int64 `json:"wantedTime,omitempty"`
}

// Begin opens the account of a job that is submitted.
func Begin(at int64) Ledger { return Ledger{Doing: Preparing, Until: at} }

// Wait says that the job waits from now on, for workers or for someone to resume it. Known
// is what is known of the generation that this ends, if it ends one.
func (l *Ledger) Wait(at int64, known Spent) {
	if l.close(at, known, false) {
		l.Doing = Waiting
	}
}

// Train says that a generation begins. It goes on from what the last one came to (live), or
// from the newest published checkpoint. Wanted is how many workers the job could use.
func (l *Ledger) Train(at int64, known Spent, live bool, workers, wanted int) {
	if !l.close(at, known, false) {
		return
	}
	if !live {
		l.fallBack()
	}
	l.Doing, l.Workers, l.Wanted, l.Counted = Training, workers, wanted, at
}

// Want says that the job could use another number of workers from now on.
func (l *Ledger) Want(at int64, wanted int) {
	l.count(at)
	l.Wanted = wanted
}

// Publish says that a checkpoint of the running generation exists. Known is what is known of
// the generation, with what that checkpoint has in Safe.
func (l *Ledger) Publish(known Spent) {
	l.learn(known)
	l.Risk = 0
}

// End closes the account. Done: the job has come to its end.
func (l *Ledger) End(at int64, known Spent, done bool) {
	l.close(at, known, done)
	l.Doing = Over
}

// Lose says that nothing is known of the time up to now, and that what no checkpoint has is
// lost: the coordinators begin anew from a backup.
func (l *Ledger) Lose(at int64) {
	if l.close(at, Spent{}, false) {
		l.fallBack()
	}
	if l.Doing == Training {
		l.Doing = Waiting
	}
}

// fallBack says that the steps since the newest checkpoint are lost.
func (l *Ledger) fallBack() {
	l.Productive -= l.Risk
	l.Rework += l.Risk
	l.Risk = 0
}

// learn keeps the newest that is known of the generation that runs. What a checkpoint has it
// keeps, whoever tells of it.
func (l *Ledger) learn(known Spent) {
	known = known.sound()
	safe := max(known.Safe, l.Known.Safe)
	if known.Step > l.Known.Step || known.Step == l.Known.Step && known.total() >= l.Known.total() {
		l.Known = known
	}
	l.Known.Safe = min(safe, l.Known.Productive)
}

// close accounts for the time up to a moment. It tells whether the account is open still.
func (l *Ledger) close(at int64, known Spent, done bool) bool {
	l.count(at)
	switch l.Doing {
	case Preparing:
		l.Figures.Preparing += l.pass(at, 0)
	case Waiting:
		l.Paused += l.pass(at, 0)
	case Training:
		l.learn(known)
		measured := l.Known.total()
		l.settle(l.pass(at, measured)-measured, done)
		l.Known, l.Workers, l.Wanted = Spent{}, 0, 0
	case Over:
		return false
	}
	l.Until = at
	return true
}

// shown is how much time the clock shows that is not in the figures yet. It is below zero
// where the clock is behind, and 0 in a ledger of an old version.
func (l *Ledger) shown(at int64) int64 {
	if l.Until == 0 {
		return 0
	}
	return min(max(at-l.Until, -spentMax), spentMax) - l.Lead
}

// pass is how much time is to be accounted for up to a moment, of which so much was
// measured. That is right, whatever a clock says that was set meanwhile.
func (l *Ledger) pass(at, measured int64) int64 {
	shown := l.shown(at)
	passed := max(shown, measured, 0)
	if l.Lead = passed - shown; l.Lead > leadMax || l.Until == 0 {
		l.Lead = 0
	}
	return passed
}

// settle divides the time of a generation. What nobody has measured, the rest, lies before
// its first step and after its last one.
func (l *Ledger) settle(rest int64, done bool) {
	s := l.Known
	began := s.total() > s.Entering || s.Entering > 0 && done
	switch {
	case l.Trained:
		l.Recovery += s.Entering + rest
	case began && !done:
		l.Figures.Preparing += s.Entering
		l.Recovery += rest
	default:
		l.Figures.Preparing += s.Entering + rest
	}
	l.Trained = l.Trained || began
	l.Productive += s.Productive
	l.Rework += s.Rework
	l.Checkpoint += s.Checkpoint
	l.DataWait += s.DataWait
	l.Evaluation += s.Evaluation
	l.Risk += s.Productive - s.Safe
}

// count adds up workers.
func (l *Ledger) count(at int64) {
	if l.Doing != Training {
		return
	}
	d := min(max(at-l.Counted, 0), spentMax)
	l.WorkersTime += int64(l.Workers) * d
	l.WantedTime += int64(l.Wanted) * d
	l.Counted = at
}

// Capacity is how many workers there were for each that the job could use, while it
// trained; ok is false before it does.
func (l Ledger) Capacity() (share float64, ok bool) {
	if l.WantedTime <= 0 {
		return 0, false
	}
	return float64(l.WorkersTime) / float64(l.WantedTime), true
}

// Now is the account as it stands at a moment. Known is what is known of the generation that
// runs, as it was heard (a moment; 0: nothing was heard in it). Of a generation that is not
// known to end, the time since then is that of a step under way, which counts as if it will
// be taken.
func (l Ledger) Now(at int64, known Spent, heard int64, ends bool) Ledger {
	switch l.Doing {
	case Over:
		return l
	case Training:
		if l.learn(known); heard > 0 && !ends {
			l.Known.Productive += min(max(at-heard, 0), max(l.shown(at)-l.Known.total(), 0))
		}
		workers, wanted := l.Workers, l.Wanted
		l.close(at, l.Known, !ends)
		l.Workers, l.Wanted, l.Counted = workers, wanted, at
	default:
		l.close(at, Spent{}, false)
	}
	return l
}
