package coordinator

import (
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/hearing"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

var phases = map[fsm.Phase]skeinv1.Phase{
	fsm.Preparing: skeinv1.Phase_PHASE_PREPARING, fsm.Queued: skeinv1.Phase_PHASE_QUEUED, fsm.Running: skeinv1.Phase_PHASE_RUNNING,
	fsm.Done: skeinv1.Phase_PHASE_DONE, fsm.Failed: skeinv1.Phase_PHASE_FAILED, fsm.Canceled: skeinv1.Phase_PHASE_CANCELED,
}

// jobOf is a job as clients see it.
func jobOf(s *fsm.State, j *fsm.Job, m *memory) *skeinv1.Job {
	out := &skeinv1.Job{
		Id: j.ID, Name: j.Name, Phase: phases[j.Phase], Reason: j.Reason, SubmittedUnixMs: j.Submitted, ChangedUnixMs: j.Changed,
		Priority: int32(j.Priority), Paused: j.Paused, Mirror: j.Mirror, Live: j.Live != nil, Began: j.Began(),
		Generation: j.Generation, Members: hearing.Members(s, j.Placement), WorldSize: int32(j.WorldSize), WorkersMin: int32(j.WorkersMin), WorkersMax: int32(j.WorkersMax),
		Steps: j.Steps, SpecHash: j.SpecHash, Result: j.Result,
	}
	if j.Paused && j.Phase == fsm.Queued {
		out.Phase = skeinv1.Phase_PHASE_PAUSED
	}
	if len(j.Resolved) > 0 {
		out.NumericClass = j.Class
	}
	if c, ok := j.Newest(); ok {
		out.Published = hearing.Checkpoint(c)
	}
	if j.Phase == fsm.Preparing {
		out.Preparer = j.Preparation.Worker
	}
	if m != nil {
		out.WaitingFor, out.Progress = m.waitingOf(j.ID), m.progressOf(j.ID)
	}
	out.Ledger = ledgerMessage(ledgerOf(time.Now(), j, m))
	if j.Phase == fsm.Running {
		out.Domains = s.SharedDomains(j)
	}
	return out
}

func eventOf(e fsm.Event) *skeinv1.Event {
	return &skeinv1.Event{Index: e.Index, AtUnixMs: e.At, Kind: e.Kind, Text: e.Text}
}
