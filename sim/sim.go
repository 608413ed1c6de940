// Package sim runs a whole cluster in one goroutine: coordinators, workers, jobs, and
// everything that can go wrong with them. What decides is the product's own: the state of
// the log, the deciders, a worker's state, the ring, the votes and the decision, and where
// a job goes on after a failure. What they stand on is a model: a clock that jumps from
// one event to the next, a log with a leader, sessions and links with delays, a store.
//
// A schedule is drawn from a seed: how large the cluster and the job are, how long
// everything takes, what fails and when. The same seed is the same run, event by event.
// After every event must hold:
//
//   - The state of a rank after a step is the one that an undisturbed run gives.
//   - What a worker holds rises by one step at a time, unless a new generation resets it.
//   - Nobody acts in a generation that others have been told to go on from.
//   - All coordinators make the same of the same log, and no acknowledged job is missing.
//   - No job goes back to a checkpoint while workers that are left hold all of its state.
//
// And in the end the job is done.
package sim

import (
	"fmt"
	"io"
	"math/rand/v2"

	"github.com/skein-ml/skein/shard"
)

// Config is one run.
type Config struct {
	Seed  uint64
	Trace io.Writer // gets a line for each event; nil: nobody looks
}

// Counts are how often things happened that a set of runs must have seen.
type Counts map[string]int

// Result is what became of a run.
type Result struct {
	Counts Counts
	Events int
	Steps  int64 // that the job had
}

// Run plays the schedule of a seed. The error names what did not hold.
func Run(c Config) (r Result, err error) {
	w := newWorld(c)
	defer func() {
		if c.Trace == nil { // whoever looks wants to see where it was
			if p := recover(); p != nil { // an invariant of the product
				err = w.wrong("%v", p)
			}
		}
		r = Result{Counts: w.counts, Events: w.events, Steps: w.job.steps}
	}()
	w.build()
	w.strike()
	for w.bad == nil && !w.job.done {
		if w.events++; w.events > eventsMax {
			return r, w.wrong("the job is not done after %d events: %s", w.events, w.describe())
		}
		if !w.next() {
			return r, w.wrong("nothing happens any more: %s", w.describe())
		}
	}
	w.agree()
	return r, w.bad
}

const eventsMax = 20_000

// world is all there is.
type world struct {
	clock
	rng    *rand.Rand
	trace  io.Writer
	counts Counts
	events int
	bad    error

	seed         uint64
	job          job
	truth        *truth
	table        shard.Table
	log          journal
	coordinators []*coordinator
	workers      []*process // all processes that there ever were
	links        links
	faults       faults

	entered     map[uint64]int // by generation: workers that had all their ranks
	decidedMost int64          // highest step that anybody decided since the last recovery
	leaderWas   int            // term of the last recovery
	protected   uint64         // newest generation whose mirrors were all filled
}

// job is what is trained.
type job struct {
	id        string
	worldSize int
	steps     int64
	every     int64 // steps between checkpoints
	min, max  int   // workers
	mirror    bool
	done      bool // a client has heard that it is done
}

func newWorld(c Config) *world {
	return &world{
		rng: rand.New(rand.NewPCG(c.Seed, 0x736b65696e)), trace: c.Trace, counts: Counts{}, seed: c.Seed,
		log: journal{leader: -1}, entered: map[uint64]int{},
	}
}

// wrong notes the first thing that does not hold.
func (w *world) wrong(format string, args ...any) error {
	if w.bad == nil {
		w.bad = fmt.Errorf("seed %d, %v: %s", w.seed, w.now, fmt.Sprintf(format, args...))
		w.say("WRONG: %v", w.bad)
	}
	return w.bad
}

// say writes a line of the trace.
func (w *world) say(format string, args ...any) {
	if w.trace != nil {
		fmt.Fprintf(w.trace, "%9.3f  %s\n", w.now.Seconds(), fmt.Sprintf(format, args...))
	}
}

// count notes that something happened.
func (w *world) count(what string) { w.counts[what]++ }

// one tells whether something that happens once in n times happens now.
func (w *world) one(n int) bool { return w.rng.IntN(n) == 0 }
