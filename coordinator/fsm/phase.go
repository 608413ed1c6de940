package fsm

import (
	"fmt"
	"slices"
)

// Phase is where a job is in its life.
type Phase string

// The phases. The last three are final.
const (
	Preparing Phase = "preparing" // admitted; a worker imports the model and prepares the data
	Queued    Phase = "queued"    // resolved; waits for workers
	Running   Phase = "running"   // a generation has its ranks on workers
	Done      Phase = "done"
	Failed    Phase = "failed"
	Canceled  Phase = "canceled"
)

// Phases lists all phases in the order of a life.
var Phases = []Phase{Preparing, Queued, Running, Done, Failed, Canceled}

// Final tells whether a job stays in this phase for ever.
func (p Phase) Final() bool { return p == Done || p == Failed || p == Canceled }

// next lists where a job may go from each phase. A phase that lists itself may be
// renewed: another worker prepares, another generation runs.
//
//	            resolve           generation          complete
//	Preparing ───────────► Queued ──────────► Running ────────► Done
//	   ↺ prepare              ▲    suspend     │ ↺ generation
//	                          └────────────────┘
//	Preparing, Queued, Running ──► Failed, Canceled
var next = map[Phase][]Phase{
	Preparing: {Preparing, Queued, Failed, Canceled},
	Queued:    {Running, Failed, Canceled},
	Running:   {Running, Queued, Done, Failed, Canceled},
	Done:      {},
	Failed:    {},
	Canceled:  {},
}

// mayBecome tells whether the transition is legal.
func (p Phase) mayBecome(to Phase) error {
	if slices.Contains(next[p], to) {
		return nil
	}
	return fmt.Errorf("%w: the job is %s and cannot become %s", ErrIllegal, p, to)
}
