// Package recovery decides how a job goes on when its generation does not: a worker is
// gone, a link broke, or the job stopped at a step boundary because workers come, leave or
// are needed elsewhere.
//
// It is one mechanism. A generation that ends is sealed: each of its workers stops, keeps
// what it holds in memory, and reports it. When all that are left have reported, the next
// generation goes on live from the newest step that any of them knows decided, if they
// hold all ranks together. Otherwise it begins from the last published checkpoint, and
// steps taken since are taken again, to the same bits.
package recovery

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/protocol"
	"github.com/skein-ml/skein/shard"
)

// Config is the policy. Zero means the default.
type Config struct {
	// SealPatience is how long a worker whose session stands may take to stop and report;
	// 10 s. The others go on without it then, if they can.
	SealPatience time.Duration
	// LostStateWait is how long a job waits for workers that have its only state and may
	// come back, before it goes back to a checkpoint; 2 s.
	LostStateWait time.Duration
	// Settle is how long after a worker has come others may follow, before a job stops to
	// take it in; 2 s.
	Settle time.Duration
	// DrainPatience is how long a worker that wants to leave waits for a step boundary, so
	// that no step runs again; 20 s. It must be well below what a worker waits for being
	// released.
	DrainPatience time.Duration
	// BackoffFrom is how many generations in a row may gain nothing before the next ones
	// wait, longer each time; 5.
	BackoffFrom int
	// BackoffMax is the longest such wait; 60 s.
	BackoffMax time.Duration
	// BackoffLost is the longest such wait if workers are gone, which is seldom the job's
	// own fault; 4 s.
	BackoffLost time.Duration
	// GiveUpsMax is how many generations without a checkpoint a worker may give up by
	// itself before it is left out for a while; 3.
	GiveUpsMax int
	// GiveUpRest is how long it is left out; 1 min.
	GiveUpRest time.Duration
	// StuckPatience is how long a worker may go on with what is over before its place
	// is given to another one; 30 s.
	StuckPatience time.Duration
	// DivergesMax is how often copies of a worker may differ from those of others before it
	// is left out of the job, while the others are enough for it; 2. DivergeRest is how long,
	// and for how long it counts; 10 min.
	DivergesMax int
	DivergeRest time.Duration
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	for _, d := range []struct {
		p   *time.Duration
		def time.Duration
	}{
		{&c.SealPatience, 10 * time.Second}, {&c.LostStateWait, 2 * time.Second}, {&c.Settle, 2 * time.Second},
		{&c.DrainPatience, 20 * time.Second}, {&c.BackoffMax, time.Minute}, {&c.BackoffLost, 4 * time.Second},
		{&c.GiveUpRest, time.Minute}, {&c.StuckPatience, 30 * time.Second}, {&c.DivergeRest, 10 * time.Minute},
	} {
		if *d.p == 0 {
			*d.p = d.def
		}
	}
	if c.BackoffFrom == 0 {
		c.BackoffFrom = 5
	}
	if c.GiveUpsMax == 0 {
		c.GiveUpsMax = 3
	}
	if c.DivergesMax == 0 {
		c.DivergesMax = 2
	}
}

// Broken is the first report that a generation cannot go on.
type Broken struct {
	Generation uint64
	By         string
	Reason     string
	At         time.Time
}

// GaveUp is what a worker said of a job that it could not go on with, and that was
// nobody else's fault: its disk or its mount, perhaps.
type GaveUp struct {
	Generation uint64 // that it gave up last
	Times      int    // generations that it gave up since the last checkpoint
	At         time.Time
	Reason     string
}

// Rests tells whether a worker is left out because it gave up so often.
func (c Config) Rests(now time.Time, g GaveUp) bool {
	return g.Times >= c.GiveUpsMax && now.Sub(g.At) < c.GiveUpRest
}

// Doubts is how often copies of a worker differed lately from those of others, if that is
// more often than a job bears; 0 if it is not. A moment that lies far ahead was told by a
// clock that has been set back since: it counts no more.
func (c Config) Doubts(now time.Time, j *fsm.Job, worker string) int {
	times, last := j.Doubted(worker, now.Add(-c.DivergeRest).UnixMilli())
	if ago := now.Sub(time.UnixMilli(last)); times < c.DivergesMax || ago.Abs() >= c.DivergeRest {
		return 0
	}
	return times
}

// LeftOut says why a worker is left out whose copies differed so often. The text follows
// the worker's name.
func (c Config) LeftOut(times int) string {
	return fmt.Sprintf("left out for %s, because its copies differed from another worker's %d times", c.DivergeRest, times)
}

// Stray is a task that a worker goes on with although the log does not order it any
// more. It stops soon, unless it hangs.
type Stray struct {
	Task  string // as people read it
	Since time.Time
}

// Sealed is the report of a worker that will not act in a generation again.
type Sealed struct {
	Generation  uint64
	Incarnation string
	Yielded     bool // it stopped at a step boundary, as was asked
	At          time.Time
	Ring        []fsm.Place // of that generation; empty: the report says of nobody whether it reaches it
	protocol.Report
}

// Seen is what the leader has heard and the log does not say.
type Seen struct {
	Alive    map[string]bool              // workers whose session stands
	Lost     map[string]string            // why workers were given up, by name
	Broken   map[string]Broken            // by job
	Draining map[string]time.Time         // since when workers have been known to want to leave
	Reads    map[string]map[string]bool   // free workers that reach a job's store
	GaveUp   map[string]map[string]GaveUp // by job and worker
	Strays   map[string]Stray             // by worker

	Connected map[string]time.Time         // by worker: since when its session stands
	LastJoin  time.Time                    // when the last worker came
	Sealed    map[string]map[string]Sealed // by job and worker: the newest reports
	Ending    map[string]time.Time         // by job: since when its generation has been known to end
	Protected map[string]bool              // running jobs that say so of themselves
	Warm      map[string]string            // by worker: the job that it is ready for
	Promised  map[string]string            // by worker: the queued job that waits for it
	Preempt   map[string]string            // by running job: the queued one that needs its workers more
	LostAt    map[string]time.Time         // when workers were given up, as far as this leader did it
	Apart     fsm.Apart                    // workers that did not reach each other lately
}

// Yield asks a running job to stop after the next step.
type Yield struct {
	Why  string
	Save bool // with a checkpoint of that step
}

// Decision is what is to be done about all running jobs, and those that wait with their
// state in memory.
type Decision struct {
	Entries []fsm.Entry
	Notes   map[string]string // by job that is left alone for now: why
	Seal    map[string]string // by job whose workers are to stop at once: why
	Yield   map[string]Yield  // by job
	Warm    map[string]string // by worker without work: the job that it is to make ready for
	Joining map[string]string // by worker without work: the job that stops to take it in
	Hold    map[string]bool   // queued jobs whose workers are about to report what they hold
	// Keeps names, by worker, the queued job that it has, or may have, steps of in its
	// memory that are in no checkpoint. It is not told to drop them for a job that comes
	// after that one.
	Keeps map[string]string
	// Stays are workers that want to leave and hold such steps of a rank that nobody else
	// does, and by job why: they are not released yet.
	Stays map[string]string
}

// Decide ends generations that cannot or should not go on, and begins the next ones.
func Decide(now time.Time, s *fsm.State, seen Seen, c Config) Decision {
	d := &decider{now: now, s: s, Seen: seen, c: c, busy: s.Busy(), leftOut: map[string]map[string]bool{}, Decision: Decision{
		Notes: map[string]string{}, Seal: map[string]string{}, Yield: map[string]Yield{}, Warm: map[string]string{},
		Joining: map[string]string{}, Hold: map[string]bool{},
	}}
	d.order = map[string]int{}
	for i, j := range s.Queue() {
		d.order[j.ID] = i
	}
	d.Keeps, d.Stays = map[string]string{}, map[string]string{}
	d.unsaved()
	for _, j := range s.Queue() {
		switch {
		case j.Phase == fsm.Running:
			d.running(j)
		case j.Phase == fsm.Queued && j.Parked.Generation > 0 && !j.Paused:
			d.parked(j)
		}
	}
	return d.Decision
}

// decider is one call of Decide.
type decider struct {
	Decision
	Seen
	now   time.Time
	s     *fsm.State
	c     Config
	busy  map[string]string // worker → job, with what has been decided so far
	order map[string]int    // job → its place in the queue
	// leftOut are the workers that a job does without because of copies that differed, by
	// job, as far as it was looked at.
	leftOut map[string]map[string]bool
}

// unsaved finds the workers that keep, for a job that waits, steps that no checkpoint has.
// Who has not said yet what it keeps may: this leader may be new.
func (d *decider) unsaved() {
	for _, j := range d.s.Queue() {
		if j.Phase != fsm.Queued || !j.Sound() {
			continue
		}
		var silent, holders []string
		held := map[shard.Rank][]string{}
		at := d.reached(j)
		newest, _ := j.Newest()
		for _, r := range d.reports(j) {
			gives := r.Held
			if r.Step < at {
				gives = r.Summed
			}
			if at <= newest.Step || len(gives) == 0 || d.busy[r.Worker] != "" {
				continue
			}
			holders = append(holders, r.Worker)
			for _, rank := range gives {
				held[rank] = append(held[rank], r.Worker)
			}
		}
		for _, p := range j.Parked.Placement {
			if d.busy[p.Worker] == "" && d.silent(j, p) {
				silent = append(silent, p.Worker)
			}
		}
		if len(held) < j.WorldSize && len(silent) == 0 && d.mayReturn(j) == "" {
			continue // it cannot go on from them
		}
		for _, w := range slices.Concat(holders, silent) {
			d.Keeps[w] = j.ID
		}
		d.stays(j, holders, silent, held)
	}
}

// stays finds those of a job's holders that want to leave and without which not all of it
// would be held. It is not for long: whoever does not wait for a step boundary any more
// does not wait for this either.
func (d *decider) stays(j *fsm.Job, holders, silent []string, held map[shard.Rank][]string) {
	leaves := func(w string) bool { return d.s.Workers[w].Draining }
	for _, w := range slices.Concat(holders, silent) {
		needed := slices.Contains(silent, w)
		for _, by := range held {
			if slices.Contains(by, w) && !slices.ContainsFunc(by, func(other string) bool { return !leaves(other) }) {
				needed = true
			}
		}
		if leaves(w) && needed && d.now.Sub(d.Draining[w]) <= d.c.DrainPatience {
			d.Stays[w] = j.ID
		}
	}
}

// silent tells whether a worker of the generation that has ended has still to say what it
// keeps of it.
func (d *decider) silent(j *fsm.Job, p fsm.Place) bool {
	ended := j.Ended()
	if r, reported := d.Sealed[j.ID][p.Worker]; reported && r.Generation == ended.Generation && r.Incarnation == p.Incarnation || !d.s.Is(p.Worker, p.Incarnation) {
		return false
	}
	since, known := d.Ending[j.ID]
	asked := known || j.Phase == fsm.Queued && !d.Connected[p.Worker].IsZero() // as soon as it was there
	return !d.stuck(p.Worker) && (!asked || d.now.Sub(later(since, d.Connected[p.Worker])) < d.c.SealPatience)
}

// reached is the newest step that a report tells of.
func (d *decider) reached(j *fsm.Job) (step int64) {
	for _, r := range d.reports(j) {
		step = max(step, r.Step)
	}
	return step
}

// kept tells whether a worker keeps steps of a job that comes before this one.
func (d *decider) kept(j *fsm.Job, worker string) bool {
	by := d.Keeps[worker]
	return by != "" && by != j.ID && d.order[by] < d.order[j.ID]
}

func (d *decider) note(j *fsm.Job, format string, args ...any) {
	d.Notes[j.ID] = fmt.Sprintf(format, args...)
}

// running looks at a job that runs.
func (d *decider) running(j *fsm.Job) {
	d.warm(j) // also while it stops: who is ready for it would not be any more
	why, backoffMax := d.cause(j)
	reports := d.reports(j)
	if why == "" && len(reports) == 0 {
		d.plan(j)
		return
	}
	// One decision record stops them all.
	planned := why == "" && slices.ContainsFunc(reports, func(r Sealed) bool { return r.Yielded })
	switch {
	case planned:
		if why = d.planned(j).Why; why == "" {
			why = "it stopped at a step boundary"
		}
	case why == "": // whoever was lost came back
		why = reports[0].Worker + " has stopped"
	}
	if !planned { // otherwise they stop by themselves, and publish what was asked for first
		d.Seal[j.ID] = why
	}
	if note := d.awaited(j); note != "" {
		d.note(j, "%s; %s", why, note)
		return
	}
	if note := d.backoff(j, backoffMax); note != "" && !planned {
		d.note(j, "%s; %s", why, note)
		return
	}
	if j.Paused {
		d.suspend(j, "paused", "")
		return
	}
	if by := d.Preempt[j.ID]; by != "" {
		d.suspend(j, "makes way for "+by, "")
		return
	}
	d.next(j, why, planned)
}

// cause says why a job's generation cannot go on, empty if it can, and how long the next
// one may have to wait. That it has stopped as asked is no cause.
func (d *decider) cause(j *fsm.Job) (reason string, backoffMax time.Duration) {
	var why []string
	if !j.Sound() {
		why = append(why, diverged(j))
	}
	for _, p := range j.Placement {
		w := d.s.Workers[p.Worker]
		switch {
		case w == nil:
			lost := d.Lost[p.Worker]
			if lost == "" {
				lost = p.Worker + " is gone"
			}
			why = append(why, lost)
		case w.Incarnation != p.Incarnation:
			why = append(why, p.Worker+" was started again")
		case w.Draining && d.now.Sub(d.Draining[p.Worker]) > d.c.DrainPatience:
			why = append(why, p.Worker+" leaves without waiting for a step boundary")
		case d.stuck(p.Worker):
			why = append(why, fmt.Sprintf("%s has not stopped %s for %s", p.Worker, d.Strays[p.Worker].Task, d.c.StuckPatience))
		}
	}
	if b, ok := d.Broken[j.ID]; ok && len(why) == 0 && b.Generation == j.Generation {
		return fmt.Sprintf("%s reports: %s", b.By, b.Reason), d.c.BackoffMax
	}
	if !j.Sound() { // the same machines may be wrong again at once
		return strings.Join(why, "; "), d.c.BackoffMax
	}
	return strings.Join(why, "; "), d.c.BackoffLost
}

// diverged says what the log does of copies that differed.
func diverged(j *fsm.Job) string {
	for _, e := range slices.Backward(j.Events) {
		if e.Kind == "diverged" {
			return e.Text
		}
	}
	return "copies of a rank differed"
}

// reports are those of the workers of the generation that has ended or ends, as far as
// they count still.
func (d *decider) reports(j *fsm.Job) []Sealed {
	ended := j.Ended()
	var list []Sealed
	for _, p := range ended.Placement {
		if r, ok := d.Sealed[j.ID][p.Worker]; ok && r.Generation == ended.Generation && r.Incarnation == p.Incarnation && d.s.Is(p.Worker, p.Incarnation) {
			list = append(list, r)
		}
	}
	return list
}

// awaited says which worker's report has to be waited for; empty if none's.
func (d *decider) awaited(j *fsm.Job) string {
	var list []string
	for _, p := range j.Ended().Placement {
		switch {
		case !d.s.Is(p.Worker, p.Incarnation):
		case !d.Alive[p.Worker]: // though it has reported: a report may come before the session
			return fmt.Sprintf("looks whether %s is alive", p.Worker)
		case d.busy[p.Worker] != "" && d.busy[p.Worker] != j.ID: // it has other work by now, and has dropped what it held
		case d.silent(j, p):
			list = append(list, p.Worker)
		}
	}
	if len(list) == 0 {
		return ""
	}
	return "waits for what is left on " + strings.Join(list, ", ")
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// backoff says why the next generation has to wait for a while; empty if it need not.
func (d *decider) backoff(j *fsm.Job, most time.Duration) string {
	over := j.Setbacks - d.c.BackoffFrom
	if over < 0 {
		return ""
	}
	wait := min(time.Second<<min(over, 16), most)
	if left := wait - d.now.Sub(time.UnixMilli(j.Changed)); left <= 0 || left > wait { // or the clock went back
		return ""
	}
	return fmt.Sprintf("waits %.0f s, because %d generations gained nothing", wait.Seconds(), j.Setbacks)
}

// stuck tells whether a worker hangs in something that is over.
func (d *decider) stuck(worker string) bool {
	stray, ok := d.Strays[worker]
	return ok && d.now.Sub(stray.Since) > d.c.StuckPatience
}

// suspend sends a job back to the queue. Its workers keep what they hold as long as nobody
// else needs them.
func (d *decider) suspend(j *fsm.Job, what, why string) {
	newest, _ := j.Newest()
	at := newest.Step
	if j.Sound() {
		at = max(at, d.reached(j))
	}
	text := fmt.Sprintf("%s at step %d as generation %d", what, at, j.Generation+1)
	if at > newest.Step {
		text += fmt.Sprintf(", step %d is published", newest.Step)
	}
	if why != "" {
		text += ": " + why
	}
	for _, p := range j.Placement {
		delete(d.busy, p.Worker)
		if at > newest.Step && d.s.Is(p.Worker, p.Incarnation) { // a job that comes after it does not get them in this turn
			d.Keeps[p.Worker] = j.ID
		}
	}
	d.Entries = append(d.Entries, fsm.Entry{Reason: text, Decision: &fsm.Suspend{Job: j.ID, Generation: j.Generation + 1}})
}
