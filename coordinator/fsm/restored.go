package fsm

import "fmt"

// restoreGap is how far generations jump when a backup is restored: those that were
// decided since the backup are forgotten, and must not be decided again under the same
// number. It is more than a cluster decides between two backups. Preparations need no
// gap: whoever prepares the same job under the same number does the same, and workers
// forget what they did in another epoch.
const restoreGap = 1_000_000

// Restored makes a backup fit to go on from in a new cluster, at a moment for people.
// Which workers there are is not taken over: they come by themselves. A running job is
// queued and goes on from its newest checkpoint that the backup knows; a job that was
// being prepared is prepared anew.
func (s *State) Restored(at int64) *State {
	out := New()
	out.Epoch = uint64(max(at, int64(s.Epoch)+1, 1))
	out.Index = s.Index + 1 // the events below are newer than any that somebody has seen
	e := Entry{At: at, Reason: "the coordinators were restored from a backup"}
	for id, old := range s.Jobs {
		j := *old
		switch j.Phase {
		case Preparing:
			j.Preparation = Preparation{Number: j.Preparation.Number}
			j.tell(out.Index, e, "restored")
		case Queued:
			j.Generation += restoreGap
			j.Parked = Parked{}
			j.tell(out.Index, e, "restored")
		case Running:
			j.Phase, j.Changed, j.Placement, j.Live = Queued, at, nil, nil
			newest, _ := j.Newest()
			j.Reason = fmt.Sprintf("%s; goes on from step %d", e.Reason, newest.Step)
			j.Generation += restoreGap
			j.tell(out.Index, Entry{At: at, Reason: j.Reason}, "restored")
		case Done, Failed, Canceled: // nothing acts on them
		}
		if !j.Phase.Final() {
			j.Ledger.Lose(at)
		}
		out.Jobs[id] = &j
		out.requests[j.Request] = id
	}
	return out
}
