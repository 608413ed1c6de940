package coordinator

import (
	"context"
	"strings"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// orders are all that a worker is to do, from what is decided.
func orders(now time.Time, s *fsm.State, h *hearing, w *fsm.Worker) *skeinv1.Orders {
	busy := s.BusyWith(w.Name)
	o := &skeinv1.Orders{Draining: w.Draining, Released: w.Draining && busy == "" && !h.stays(w.Name)}
	for _, j := range s.Parts(w.Name) {
		switch j.Phase {
		case fsm.Preparing:
			if p := j.Preparation; p.Worker == w.Name && p.Incarnation == w.Incarnation {
				o.Preparation = &skeinv1.Preparation{Job: j.ID, Number: p.Number, Spec: j.Spec}
			}
		case fsm.Running:
			if p := j.Place(w.Name); p != nil && p.Incarnation == w.Incarnation {
				o.Assignment = assignment(s, h, j, p, w)
				h.ordered(j, o.Assignment)
			}
		case fsm.Queued:
			// It keeps what it holds until somebody else needs it, and says what that is.
			if p := j.Holder(w.Name); p != nil && p.Incarnation == w.Incarnation && busy == "" && o.Assignment == nil && h.warms(w.Name) == "" {
				o.Assignment = assignment(s, h, j, p, w)
				o.Assignment.Seal = true
			}
		}
	}
	for _, j := range s.Waiting() {
		// Who is busy with another job is asked once it is free: each worker would have to
		// read the stores of all jobs otherwise, again for each leader.
		if busy != "" && busy != j.ID {
			continue
		}
		// Who gave the generation up by itself has to show again that it reads the store.
		if j.Phase == fsm.Queued || o.Assignment.GetJob() != j.ID || h.hasGivenUp(j.ID, w.Name, j.Generation) {
			o.Probes = appendProbe(now, o.Probes, h, j, w)
		}
	}
	if j := s.Jobs[h.warms(w.Name)]; j != nil && o.Assignment == nil && o.Preparation == nil && busy == "" {
		o.Warm = &skeinv1.Warm{Job: j.ID, Resolved: j.Resolved, SpecHash: j.SpecHash, DataServers: h.servers(s, j.DataHash, w)}
	}
	return o
}

// lookCost is about what it costs to look up a worker's orders.
const lookCost = 20 * time.Microsecond

// rest has a session wait before it looks at the next change. Every change wakes every
// session: without a pause, a thousand of them would look at a hundred changes one by one
// where one look at all of them is enough. A few never wait.
func (h *hearing) rest(ctx context.Context, looked time.Time) {
	h.mu.Lock()
	sessions := len(h.contacts)
	h.mu.Unlock()
	pause := time.Duration(sessions)*lookCost - time.Since(looked)
	if pause < time.Millisecond {
		return
	}
	select {
	case <-time.After(pause):
	case <-ctx.Done():
	}
}

func appendProbe(now time.Time, list []*skeinv1.StoreProbe, h *hearing, j *fsm.Job, w *fsm.Worker) []*skeinv1.StoreProbe {
	if j.Nonce.Object == "" || w.Draining || !w.Has(j.Class) || !h.probe(now, w.Name, j.ID) {
		return list
	}
	return append(list, &skeinv1.StoreProbe{Job: j.ID, Store: jobStore(j), NonceObject: j.Nonce.Object})
}

// jobStore is the job's own folder in its store: all that the job writes is below it.
func jobStore(j *fsm.Job) string { return strings.TrimRight(j.Store, "/") + "/" + j.ID }

// assignment is a worker's part in the generation that runs, or in the one that is parked.
func assignment(s *fsm.State, h *hearing, j *fsm.Job, own *fsm.Place, w *fsm.Worker) *skeinv1.Assignment {
	g := j.Ended()
	a := &skeinv1.Assignment{
		Job: j.ID, Generation: g.Generation, Resolved: j.Resolved, SpecHash: j.SpecHash, Ranks: ranks(own.Ranks),
		Members: members(s, g.Placement), Resume: checkpointOf(j.Resume), DataServers: h.servers(s, j.DataHash, w),
		Mirror: j.Mirror && len(g.Placement) > 1,
	}
	if l := g.Live; l != nil {
		a.Live, a.After, a.Target, a.Decision = true, l.After, l.Target, l.Decision
		for r, from := range l.Sources {
			a.Sources = append(a.Sources, &skeinv1.Source{Rank: int32(r), Worker: from})
		}
	}
	for i, p := range g.Placement {
		if p.Worker == w.Name {
			n := len(g.Placement)
			a.Previous, a.Next = g.Placement[(i+n-1)%n].Worker, g.Placement[(i+1)%n].Worker
		}
	}
	return a
}

func members(s *fsm.State, placement []fsm.Place) []*skeinv1.Member {
	var list []*skeinv1.Member
	for _, p := range placement {
		m := &skeinv1.Member{Worker: p.Worker, Incarnation: p.Incarnation, Ranks: ranks(p.Ranks)}
		if w := s.Workers[p.Worker]; w != nil && w.Incarnation == p.Incarnation {
			m.RingAddress, m.StreamAddress = w.Ring, w.Stream
		}
		list = append(list, m)
	}
	return list
}

func ranks(list []int) []int32 {
	var out []int32
	for _, r := range list {
		out = append(out, int32(r))
	}
	return out
}

func checkpointOf(c fsm.Checkpoint) *skeinv1.Checkpoint {
	return &skeinv1.Checkpoint{Generation: c.Generation, Step: c.Step, Manifest: c.Manifest, Weights: c.Weights, Bytes: c.Bytes, AtUnixMs: c.At}
}

var phases = map[fsm.Phase]skeinv1.Phase{
	fsm.Preparing: skeinv1.Phase_PHASE_PREPARING, fsm.Queued: skeinv1.Phase_PHASE_QUEUED, fsm.Running: skeinv1.Phase_PHASE_RUNNING,
	fsm.Done: skeinv1.Phase_PHASE_DONE, fsm.Failed: skeinv1.Phase_PHASE_FAILED, fsm.Canceled: skeinv1.Phase_PHASE_CANCELED,
}

// jobOf is a job as clients see it.
func jobOf(s *fsm.State, j *fsm.Job, h *hearing) *skeinv1.Job {
	out := &skeinv1.Job{
		Id: j.ID, Name: j.Name, Phase: phases[j.Phase], Reason: j.Reason, SubmittedUnixMs: j.Submitted, ChangedUnixMs: j.Changed,
		Priority: int32(j.Priority), Paused: j.Paused, Mirror: j.Mirror, Live: j.Live != nil, Began: j.Began(),
		Generation: j.Generation, Members: members(s, j.Placement), WorldSize: int32(j.WorldSize), WorkersMin: int32(j.WorkersMin), WorkersMax: int32(j.WorkersMax),
		Steps: j.Steps, SpecHash: j.SpecHash, Result: j.Result,
	}
	if j.Paused && j.Phase == fsm.Queued {
		out.Phase = skeinv1.Phase_PHASE_PAUSED
	}
	if len(j.Resolved) > 0 {
		out.NumericClass = j.Class
	}
	if c, ok := j.Newest(); ok {
		out.Published = checkpointOf(c)
	}
	if j.Phase == fsm.Preparing {
		out.Preparer = j.Preparation.Worker
	}
	if h != nil {
		out.WaitingFor, out.Progress = h.waitingOf(j.ID), h.progressOf(j.ID)
	}
	out.Ledger = ledgerMessage(ledgerOf(time.Now(), j, h))
	if j.Phase == fsm.Running {
		out.Domains = s.SharedDomains(j)
	}
	return out
}

func eventOf(e fsm.Event) *skeinv1.Event {
	return &skeinv1.Event{Index: e.Index, AtUnixMs: e.At, Kind: e.Kind, Text: e.Text}
}
