// Package recovery decides how a running job goes on when its generation cannot: a
// worker is gone, wants to leave, or a link broke. The next generation begins from the
// last published checkpoint, with the workers that are left and those that are free.
// Steps that were taken since are taken again, to the same bits.
package recovery

import (
	"fmt"
	"strings"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
)

// Config is the policy. Zero means the default.
type Config struct {
	// Grace is how long after the report of a broken link the workers at its ends may
	// turn out to be gone, before all of them are placed again; 1.5 s.
	Grace time.Duration
	// DrainPatience is how long a worker that wants to leave waits for a checkpoint, so
	// that no step runs again; 20 s. It must be well below what a worker waits for being
	// released.
	DrainPatience time.Duration
	// BackoffFrom is how many generations in a row may bring no checkpoint before the
	// next ones wait, longer each time; 5.
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
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if c.Grace == 0 {
		c.Grace = 1500 * time.Millisecond
	}
	if c.DrainPatience == 0 {
		c.DrainPatience = 20 * time.Second
	}
	if c.BackoffFrom == 0 {
		c.BackoffFrom = 5
	}
	if c.BackoffMax == 0 {
		c.BackoffMax = time.Minute
	}
	if c.BackoffLost == 0 {
		c.BackoffLost = 4 * time.Second
	}
	if c.GiveUpsMax == 0 {
		c.GiveUpsMax = 3
	}
	if c.GiveUpRest == 0 {
		c.GiveUpRest = time.Minute
	}
	if c.StuckPatience == 0 {
		c.StuckPatience = 30 * time.Second
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

// Stray is a task that a worker goes on with although the log does not order it any
// more. It stops soon, unless it hangs.
type Stray struct {
	Task  string // as people read it
	Since time.Time
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
}

// Decide ends generations that cannot go on and begins the next ones. notes has a line
// for each job that it looked at and left alone for now.
func Decide(now time.Time, s *fsm.State, seen Seen, c Config) (entries []fsm.Entry, notes map[string]string) {
	busy, notes := s.Busy(), map[string]string{}
	for _, j := range s.InOrder() {
		if j.Phase != fsm.Running {
			continue
		}
		why, backoffMax := cause(now, s, j, seen, c)
		if why == "" {
			continue
		}
		if note := notYet(now, s, j, seen, c.BackoffFrom, backoffMax); note != "" {
			notes[j.ID] = why + "; " + note
			continue
		}
		e, taken := next(now, s, j, seen, c, busy, why)
		for _, w := range taken {
			busy[w] = j.ID
		}
		entries = append(entries, e)
	}
	return entries, notes
}

// cause says why a job's generation cannot go on, empty if it can, and how long the next
// one may have to wait.
func cause(now time.Time, s *fsm.State, j *fsm.Job, seen Seen, c Config) (reason string, backoffMax time.Duration) {
	var why []string
	for _, p := range j.Placement {
		w := s.Workers[p.Worker]
		switch {
		case w == nil:
			lost := seen.Lost[p.Worker]
			if lost == "" {
				lost = p.Worker + " is gone"
			}
			why = append(why, lost)
		case w.Incarnation != p.Incarnation:
			why = append(why, p.Worker+" was started again")
		case w.Draining && j.PublishedIndex > w.DrainIndex:
			why = append(why, p.Worker+" leaves")
		case w.Draining && now.Sub(seen.Draining[p.Worker]) > c.DrainPatience:
			why = append(why, p.Worker+" leaves without a checkpoint")
		case seen.stuck(now, p.Worker, c):
			why = append(why, fmt.Sprintf("%s has not stopped %s for %s", p.Worker, seen.Strays[p.Worker].Task, c.StuckPatience))
		}
	}
	if b, ok := seen.Broken[j.ID]; ok && len(why) == 0 && b.Generation == j.Generation && now.Sub(b.At) > c.Grace {
		return fmt.Sprintf("%s reports: %s", b.By, b.Reason), c.BackoffMax
	}
	return strings.Join(why, "; "), c.BackoffLost
}

// notYet says why the next generation has to wait; empty if it need not.
func notYet(now time.Time, s *fsm.State, j *fsm.Job, seen Seen, backoffFrom int, backoffMax time.Duration) string {
	for _, p := range j.Placement {
		if s.Is(p.Worker, p.Incarnation) && !seen.Alive[p.Worker] {
			return fmt.Sprintf("looks whether %s is alive", p.Worker)
		}
	}
	if over := j.Setbacks - backoffFrom; over >= 0 {
		wait := min(time.Second<<min(over, 16), backoffMax)
		if left := wait - now.Sub(time.UnixMilli(j.Changed)); left > 0 && left <= wait {
			return fmt.Sprintf("waits %.0f s, because %d generations brought no checkpoint", wait.Seconds(), j.Setbacks)
		}
	}
	return ""
}

// stuck tells whether a worker hangs in something that is over.
func (seen Seen) stuck(now time.Time, worker string, c Config) bool {
	stray, ok := seen.Strays[worker]
	return ok && now.Sub(stray.Since) > c.StuckPatience
}

// next is the decision itself: a generation, or back to the queue.
func next(now time.Time, s *fsm.State, j *fsm.Job, seen Seen, c Config, busy map[string]string, why string) (fsm.Entry, []string) {
	var left, spare []*fsm.Worker
	for _, w := range s.ByName() {
		gaveUp, stray := seen.GaveUp[j.ID][w.Name], seen.Strays[w.Name]
		if !seen.Alive[w.Name] || w.Draining || !w.Has(j.Class) || !w.Fits(j) || c.Rests(now, gaveUp) || seen.stuck(now, w.Name, c) {
			continue
		}
		// A worker that was started again, or that gave this generation up by itself, is as
		// good as a free one: it must show that it reaches the store.
		switch p := j.Place(w.Name); {
		case p != nil && p.Incarnation == w.Incarnation && (gaveUp.Times == 0 || gaveUp.Generation != j.Generation):
			left = append(left, w)
		case (p != nil || busy[w.Name] == "" && stray.Task == "") && (j.Nonce.Object == "" || seen.Reads[j.ID][w.Name]):
			spare = append(spare, w)
		}
	}
	all := append(fsm.Spread(left), fsm.Spread(spare)...)
	newest, _ := j.Newest()
	use := j.Use(len(all))
	if use == 0 {
		return fsm.Entry{
			Reason:   fmt.Sprintf("back in the queue as generation %d from step %d, because %d of at least %d workers are left: %s", j.Generation+1, newest.Step, len(all), j.WorkersMin, why),
			Decision: &fsm.Suspend{Job: j.ID, Generation: j.Generation + 1},
		}, nil
	}
	placement, err := j.Cut(all[:use])
	if err != nil { // the bounds of a job are within its world size
		panic("recovery: " + err.Error())
	}
	var names []string
	for _, p := range placement {
		names = append(names, p.Worker)
	}
	return fsm.Entry{
		Reason:   fmt.Sprintf("goes on as generation %d from step %d on %s: %s", j.Generation+1, newest.Step, fsm.Describe(placement), why),
		Decision: &fsm.Generate{Job: j.ID, Generation: j.Generation + 1, From: newest.Step, Placement: placement},
	}, names
}
