// Package scheduler decides which workers prepare and which run jobs: all that a job
// needs at once or none of it, by priority and then in order of submission. A job that
// lacks workers gets them from running jobs of lower priority, which stop at a step
// boundary.
//
// A job that waits for workers that others have is promised every worker that could
// work for it, or small jobs behind it would keep it waiting for ever; one that is being
// prepared, as many as it needs to start. A job that asks for more than the cluster has
// holds up nobody: it says what is missing, and is looked at again whenever a worker
// comes.
package scheduler

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/internal/console"
)

// Config is the scheduler's policy. Zero means the default.
type Config struct {
	// Settle is how long after a worker has come a job waits for more of them, if it
	// could use more; 2 s. Workers of a cluster start at about the same time, and a
	// job that began on the first would stay there.
	Settle time.Duration
	// TriesMax is how often a preparation is given up by its worker before the job
	// fails; 5. One whose worker is lost is tried again as often as it takes.
	TriesMax int
	// BackoffMax is the longest wait for the next try if workers are lost; 30 s.
	BackoffMax time.Duration
	// StuckPatience is how long a worker may go on with what is over before its
	// preparation is given to another one; 30 s.
	StuckPatience time.Duration
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if c.Settle == 0 {
		c.Settle = 2 * time.Second
	}
	if c.TriesMax == 0 {
		c.TriesMax = 5
	}
	if c.BackoffMax == 0 {
		c.BackoffMax = 30 * time.Second
	}
	if c.StuckPatience == 0 {
		c.StuckPatience = 30 * time.Second
	}
}

// Read is what a worker read through a job's store.
type Read struct {
	Err string // why it could not read what it should; empty: it could
}

// Broken is a preparation that its worker gave up.
type Broken struct {
	Number uint64
	Reason string
}

// Stray is a task that a worker goes on with although the log does not order it any
// more. It stops soon, unless it hangs.
type Stray struct {
	Task  string // as people read it
	Since time.Time
}

// Doubted is a worker whose copies differed from those of others too often.
type Doubted struct {
	Times int
	Why   string // it is left out; the text follows its name
}

// Seen is what the leader has heard and the log does not say.
type Seen struct {
	Alive    map[string]bool               // workers whose session stands
	LastJoin time.Time                     // when the last of them came
	Reads    map[string]map[string]Read    // by job and worker; none yet: the answer is awaited
	Broken   map[string]Broken             // by job
	Resting  map[string]map[string]string  // by job and worker: why one that gave up again and again is left out for a while
	Doubted  map[string]map[string]Doubted // by job and worker
	Strays   map[string]Stray              // by worker
	Hold     map[string]bool               // queued jobs that may go on live in a moment
	Joining  map[string]string             // by worker: the running job that stops to take it in
	Apart    fsm.Apart                     // workers that did not reach each other lately
	Keeps    map[string]string             // by worker: the queued job that it has steps of in its memory that no checkpoint has
}

// Decision is who gets work, and why the others get none.
type Decision struct {
	Entries []fsm.Entry
	// Waiting says, for each job that is preparing or queued, what it waits for; a job
	// that gets what it needs has no line.
	Waiting  map[string]string
	Promised map[string]string // by worker: the first queued job that waits for it
	Preempt  map[string]string // by running job: the queued one that gets its workers
}

// Decide gives work to workers that have none.
func Decide(now time.Time, s *fsm.State, seen Seen, c Config) Decision {
	d := &decision{now: now, s: s, seen: seen, c: c, busy: s.Busy(), order: map[string]int{}, promised: map[string]string{}, preempt: map[string]string{}, waiting: map[string]string{}, spared: map[string][]string{}}
	for i, j := range s.Queue() {
		d.order[j.ID] = i
	}
	for _, j := range s.Queue() {
		switch {
		case j.Phase == fsm.Preparing:
			d.prepare(j)
		case j.Phase != fsm.Queued:
		case j.Paused:
			d.wait(j, "is paused; `skein resume %s` lets it go on", j.ID)
		case seen.Hold[j.ID]:
			d.wait(j, "goes on with what its workers hold in memory, if they hold all of it")
			d.promise(j)
		default:
			d.run(j)
		}
	}
	return Decision{Entries: d.entries, Waiting: d.waiting, Promised: d.promised, Preempt: d.preempt}
}

// decision is one call of Decide.
type decision struct {
	now      time.Time
	s        *fsm.State
	seen     Seen
	c        Config
	busy     map[string]string // worker → job, with what has been decided so far
	order    map[string]int    // job → its place in the queue
	promised map[string]string // worker → the first job that waits for it
	preempt  map[string]string // running job → the queued one that needs its workers
	entries  []fsm.Entry
	waiting  map[string]string
	spared   map[string][]string // by job that was looked at: doubted workers that it takes all the same
}

func (d *decision) wait(j *fsm.Job, format string, args ...any) {
	d.waiting[j.ID] = fmt.Sprintf(format, args...)
}

// prepare finds a worker for a job that has none, or none any more.
func (d *decision) prepare(j *fsm.Job) {
	p := j.Preparation
	var why string
	broken, stray := d.seen.Broken[j.ID], d.seen.Strays[p.Worker]
	gaveUp := p.Worker != "" && broken.Number == p.Number
	switch {
	case p.Number == 0, p.Worker == "": // nobody yet, or it was restored from a backup
	case gaveUp:
		why = fmt.Sprintf("%s gave up: %s; ", p.Worker, broken.Reason)
	case !d.s.Is(p.Worker, p.Incarnation):
		why = p.Worker + " is gone; "
		if pause := d.pause(j); pause > 0 {
			d.wait(j, "%swaits %.0f s, because %d workers that prepared it were lost", why, pause.Seconds(), lostTries(p))
			d.reserve(j)
			return
		}
	case stray.Task != "" && d.now.Sub(stray.Since) > d.c.StuckPatience:
		why = fmt.Sprintf("%s has not stopped %s for %s; ", p.Worker, stray.Task, d.c.StuckPatience)
	default: // it is being prepared
		d.reserve(j)
		return
	}
	if tries := p.GaveUp + 1; gaveUp && tries >= d.c.TriesMax {
		d.entries = append(d.entries, fsm.Entry{
			Reason:   fmt.Sprintf("the preparation failed %d times; at last: %s", tries, strings.TrimSuffix(why, "; ")),
			Decision: &fsm.Fail{Job: j.ID, Preparation: p.Number},
		})
		return
	}
	w := d.preparer(j)
	if w == nil {
		d.short(j, 1, why+d.preempts(j, 0, 1))
		return
	}
	d.busy[w.Name] = j.ID
	d.reserve(j)
	d.entries = append(d.entries, fsm.Entry{
		Reason:   fmt.Sprintf("%s%s imports the model and prepares the data", why, w.Name),
		Decision: &fsm.Prepare{Job: j.ID, Number: p.Number + 1, Worker: w.Name, Incarnation: w.Incarnation, GaveUp: gaveUp},
	})
}

// lostTries is how many workers were lost while they prepared a job, the last one of
// which is gone.
func lostTries(p fsm.Preparation) int { return int(p.Number) - p.GaveUp }

// pause is how long the next try waits in all because workers were lost; 0 if it need
// not, or has waited. The first of them costs no wait.
func (d *decision) pause(j *fsm.Job) time.Duration {
	over := lostTries(j.Preparation) - 2
	if over < 0 {
		return 0
	}
	pause := min(time.Second<<min(over, 16), d.c.BackoffMax)
	if left := pause - d.now.Sub(time.UnixMilli(j.Changed)); left <= 0 || left > pause { // or the clock went back
		return 0
	}
	return pause
}

// preparer picks a free worker. A job that leaves its class open gets the best one of its
// preparer, so that has to be a class in which the job's least number of workers can
// compute, if there is one: what a worker lists first need not be what the others have
// at all. Of such classes it is the one that is best for most, then the one that most have.
// Who tried last comes last.
func (d *decision) preparer(j *fsm.Job) *fsm.Worker {
	var best *fsm.Worker
	var bestScore [4]int
	classes := d.suited(j)
	for _, w := range d.free(j) {
		score := [4]int{}
		if len(w.Classes) > 0 {
			score = classes[w.Classes[0]]
		}
		if w.Name != j.Preparation.Worker {
			score[0] = 1
		}
		if best == nil || slices.Compare(score[:], bestScore[:]) > 0 {
			best, bestScore = w, score
		}
	}
	return best
}

// suited weighs the classes that workers list first; the first difference decides.
func (d *decision) suited(j *fsm.Job) map[string][4]int {
	scores := map[string][4]int{}
	for name := range d.seen.Alive {
		if w := d.s.Workers[name]; w != nil && len(w.Classes) > 0 {
			score := scores[w.Classes[0]]
			score[2]++
			scores[w.Classes[0]] = score
		}
	}
	fit := d.fit(j)
	for class, score := range scores {
		for _, w := range fit {
			if w.Has(class) {
				score[3]++
			}
		}
		score[1] = min(score[3], j.WorkersMin)
		scores[class] = score
	}
	return scores
}

// free lists the workers that could get work of the job now, by name.
func (d *decision) free(j *fsm.Job) []*fsm.Worker {
	var free []*fsm.Worker
	for _, w := range d.fit(j) {
		if d.taken(j, w) == "" {
			free = append(free, w)
		}
	}
	return free
}

// taken says why a worker that could work for the job may not: another job has it, or
// comes first. The text follows the worker's name, or names.
func (d *decision) taken(j *fsm.Job, w *fsm.Worker) string {
	if other := d.busy[w.Name]; other != "" && other != j.ID {
		return "at work for " + other
	}
	if stray := d.seen.Strays[w.Name]; stray.Task != "" {
		return "busy with " + stray.Task + ", which is over, and has not stopped yet"
	}
	if other := d.seen.Joining[w.Name]; other != "" && other != j.ID {
		return "about to join " + other
	}
	if other := d.promised[w.Name]; other != "" && other != j.ID {
		return promisedTo(other)
	}
	if other := d.seen.Keeps[w.Name]; other != "" && other != j.ID && d.order[other] < d.order[j.ID] {
		return "keeping steps of " + other + " that are in no checkpoint, until it goes on or is canceled"
	}
	return ""
}

func promisedTo(job string) string { return "promised to " + job }

// promise keeps the workers that a job could use from those behind it.
func (d *decision) promise(j *fsm.Job) {
	for _, w := range d.fit(j) {
		if d.promised[w.Name] == "" {
			d.promised[w.Name] = j.ID
		}
	}
}

// reserve promises a job that is not prepared yet the workers that it needs to start,
// its preparer among them, as far as they are free. The rest may go to jobs behind it.
func (d *decision) reserve(j *fsm.Job) {
	if !d.enough(j) {
		return
	}
	free := fsm.Spread(d.free(j))
	slices.SortStableFunc(free, func(a, b *fsm.Worker) int {
		switch mineA, mineB := d.busy[a.Name] == j.ID, d.busy[b.Name] == j.ID; {
		case mineA && !mineB:
			return -1
		case mineB && !mineA:
			return 1
		}
		return 0
	})
	for _, w := range free[:min(len(free), j.WorkersMin)] {
		d.promised[w.Name] = j.ID
	}
}

// enough tells whether the job could start if it had the whole cluster. A worker that is
// out of touch counts until it is given up: under a new leader all of them are, for a
// moment.
func (d *decision) enough(j *fsm.Job) bool {
	n := 0
	for _, w := range d.s.ByName() {
		if why := d.unfit(j, w); why == "" || why == outOfTouch {
			n++
		}
	}
	return n >= j.WorkersMin
}

// fit lists the workers that could work for the job if they had nothing else to do.
func (d *decision) fit(j *fsm.Job) []*fsm.Worker {
	var fit []*fsm.Worker
	for _, w := range d.s.ByName() {
		if d.unfit(j, w) == "" {
			fit = append(fit, w)
		}
	}
	return fit
}

// outOfTouch is what a worker is whose session does not stand.
const outOfTouch = "not in touch"

// unfit says why a worker cannot work for the job; empty if it can. The text follows
// the worker's name, or names.
func (d *decision) unfit(j *fsm.Job, w *fsm.Worker) string {
	if why := d.unable(j, w); why != "" {
		return why
	}
	if doubted := d.seen.Doubted[j.ID][w.Name]; j.Phase == fsm.Queued && !slices.Contains(d.spares(j), w.Name) {
		return doubted.Why
	}
	return ""
}

// spares are the workers that the job takes although their copies differed too often.
func (d *decision) spares(j *fsm.Job) []string {
	if len(d.seen.Doubted[j.ID]) == 0 {
		return nil
	}
	names, known := d.spared[j.ID]
	if known {
		return names
	}
	here, others := map[string]int{}, 0
	for _, w := range d.s.ByName() {
		if d.unable(j, w) != "" || d.taken(j, w) != "" {
			continue
		}
		if doubted := d.seen.Doubted[j.ID][w.Name]; doubted.Times > 0 {
			here[w.Name] = doubted.Times
		} else {
			others++
		}
	}
	names = j.Spared(here, others)
	d.spared[j.ID] = names
	return names
}

// unable says why a worker cannot work for the job, whatever its copies came to.
func (d *decision) unable(j *fsm.Job, w *fsm.Worker) string {
	switch {
	case w.Draining:
		return "draining"
	case !w.Has(j.Class):
		return "of class " + strings.Join(w.Classes, " or ")
	case !w.Fits(j):
		return "limited to " + console.Bytes(w.Memory)
	}
	if why := d.seen.Resting[j.ID][w.Name]; why != "" && j.Phase == fsm.Queued {
		return why
	}
	if j.Phase == fsm.Queued && j.Nonce.Object != "" {
		if read, ok := d.seen.Reads[j.ID][w.Name]; ok && read.Err != "" {
			return fmt.Sprintf("unable to read %s: %s", j.Store, read.Err)
		}
	}
	if !d.seen.Alive[w.Name] {
		return outOfTouch
	}
	return ""
}

// run places a queued job if there is enough for it.
func (d *decision) run(j *fsm.Job) {
	var free []*fsm.Worker
	var asked []string
	for _, w := range d.free(j) {
		if _, answered := d.seen.Reads[j.ID][w.Name]; j.Nonce.Object != "" && !answered {
			asked = append(asked, w.Name)
			continue
		}
		free = append(free, w)
	}
	if len(asked) > 0 {
		d.wait(j, "asks %s to read %s", strings.Join(asked, ", "), j.Store)
		d.promise(j)
		return
	}
	could := free
	free = d.seen.Apart.Together(nil, could, j.WorkersMin)
	use := j.Use(len(free))
	if use == 0 {
		d.short(j, j.WorkersMin, d.preempts(j, len(free), j.WorkersMin))
		return
	}
	if settled := d.seen.LastJoin.Add(d.c.Settle); len(free) < j.WorkersMax && d.now.Before(settled) {
		d.wait(j, "waits a moment for more workers: %d of up to %d are here", len(free), j.WorkersMax)
		d.promise(j)
		return
	}
	free = fsm.Spread(free)
	placement, err := j.Cut(free[:use])
	if err != nil {
		d.wait(j, "cannot be placed: %v", err)
		return
	}
	var spared []string
	for _, p := range placement {
		d.busy[p.Worker] = j.ID
		if d.seen.Doubted[j.ID][p.Worker].Times > 0 {
			spared = append(spared, p.Worker)
		}
	}
	newest, _ := j.Newest()
	d.entries = append(d.entries, fsm.Entry{
		Reason:   fmt.Sprintf("generation %d from step %d: %s", j.Generation+1, newest.Step, fsm.Describe(placement)) + fsm.Though(spared) + d.seen.Apart.Without(could, free),
		Decision: &fsm.Generate{Job: j.ID, Generation: j.Generation + 1, From: newest.Step, Placement: placement},
	})
}
