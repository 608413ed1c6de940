package fsm

import "github.com/skein-ml/skein/internal/invariant"

// check asserts what must hold after every entry.
func (s *State) check() {
	busy := map[string]string{}
	for id, j := range s.Jobs {
		invariant.Check(j.ID == id && s.requests[j.Request] == id, "job %s is filed as %s, its request as %s", j.ID, id, s.requests[j.Request])
		invariant.Check((j.Phase == Running) == (len(j.Placement) > 0), "%s is %s with %d workers", id, j.Phase, len(j.Placement))
		invariant.Check(j.Phase == Running || j.Live == nil, "%s is %s and live", id, j.Phase)
		invariant.Check(j.Phase == Queued || len(j.Parked.Placement) == 0, "%s is %s and parked", id, j.Phase)
		invariant.Check((len(j.Resolved) > 0) == (len(j.Published) > 0), "%s has a spec without step 0, or step 0 without a spec", id)
		invariant.Check(j.Phase != Preparing || len(j.Resolved) == 0, "%s is preparing, but resolved", id)
		invariant.Check(len(j.Events) <= eventsMax && len(j.Published) <= publishedMax, "%s has %d events, %d checkpoints", id, len(j.Events), len(j.Published))
		for i := 1; i < len(j.Published); i++ {
			invariant.Check(j.Published[i-1].Step < j.Published[i].Step, "%s published step %d after %d", id, j.Published[i].Step, j.Published[i-1].Step)
		}
		for _, w := range j.Uses() {
			// A worker that was started again, or has been removed, may be in an old
			// placement; two jobs on one process may not be.
			process := w + "/" + j.incarnationOf(w)
			invariant.Check(busy[process] == "", "worker %s works for %s and %s", w, busy[process], id)
			busy[process] = id
		}
	}
	invariant.Check(len(s.requests) == len(s.Jobs), "%d requests for %d jobs", len(s.requests), len(s.Jobs))
}

func (j *Job) incarnationOf(worker string) string {
	if p := j.Place(worker); p != nil {
		return p.Incarnation
	}
	return j.Preparation.Incarnation
}
