package coordinator

import (
	"maps"
	"slices"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/ledger"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// account is what workers have told this leader of where a generation's time went.
type account struct {
	generation uint64
	told       *skeinv1.Spent // by rank 0's worker while it trains
	heard      time.Time      // when; zero: it has not
	sealed     map[string]*skeinv1.Sealed
}

// accountOf is the account of a job's generation. m.mu is held.
func (m *memory) accountOf(job string, generation uint64) *account {
	a := m.accounts[job]
	if a == nil || a.generation < generation {
		a = &account{generation: generation, sealed: map[string]*skeinv1.Sealed{}}
		m.accounts[job] = a
	}
	return a
}

// spends notes where a generation's time went so far.
func (m *memory) spends(now time.Time, job string, generation uint64, s *skeinv1.Spent) {
	if s == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if a := m.accountOf(job, generation); a.generation == generation {
		a.told, a.heard = s, now
	}
}

// spent notes what a sealed worker says of its generation.
func (m *memory) spent(job string, generation uint64, worker string, s *skeinv1.Sealed) {
	if s.GetSpent() == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if a := m.accountOf(job, generation); a.generation == generation {
		a.sealed[worker] = s
	}
}

// spentOf adds up what is known of a running job's generation. Safe is about saved, the
// newest checkpoint. Next is what follows; nil if nothing does that keeps gradients.
func (m *memory) spentOf(j *fsm.Job, saved fsm.Checkpoint, next *fsm.Generate) ledger.Spent {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.accounts[j.ID]
	if a == nil || a.generation != j.Generation {
		return ledger.Spent{}
	}
	s := a.best(next)
	out := ledger.Spent{
		Generation: j.Generation, Step: s.GetStep(), Entering: s.GetEnteringMs(), Productive: s.GetProductiveMs(), Rework: s.GetUnfinishedMs(), Checkpoint: s.GetCheckpointMs(),
		DataWait: s.GetDataWaitMs(), Evaluation: s.GetEvaluationMs(),
	}
	// The others wait, in the middle of a step, while rank 0's worker evaluates.
	if more := min(a.told.GetEvaluationMs()-out.Evaluation, out.Productive); more > 0 {
		out.Evaluation, out.Productive = out.Evaluation+more, out.Productive-more
	}
	if saved.Generation == j.Generation {
		for _, m := range s.GetMarks() {
			if m.GetStep() == saved.Step {
				out.Safe = m.GetProductiveMs()
			}
		}
	}
	if next != nil {
		kept := min(a.kept(j, next, out.Step), out.Rework)
		out.Productive, out.Rework = out.Productive+kept, out.Rework-kept
	}
	return out
}

// best is the report that reaches furthest, but not beyond the step that what follows goes on
// from live: a step that only the dead knew decided is taken again. m.mu is held.
func (a *account) best(next *fsm.Generate) *skeinv1.Spent {
	var best, further *skeinv1.Spent
	for _, s := range a.reports() {
		if next != nil && next.Live != nil && s.GetStep() > next.Live.Target {
			further = s
			continue
		}
		if best == nil || s.GetStep() > best.GetStep() || s.GetStep() == best.GetStep() && total(s) > total(best) {
			best = s
		}
	}
	if best == nil {
		return further
	}
	return best
}

// reports are all that were heard. m.mu is held.
func (a *account) reports() []*skeinv1.Spent {
	var list []*skeinv1.Spent
	if a.told != nil {
		list = append(list, a.told)
	}
	for _, w := range slices.Sorted(maps.Keys(a.sealed)) {
		list = append(list, a.sealed[w].GetSpent())
	}
	return list
}

func total(s *skeinv1.Spent) int64 {
	return s.GetEnteringMs() + s.GetProductiveMs() + s.GetDataWaitMs() + s.GetCheckpointMs() + s.GetEvaluationMs() + s.GetUnfinishedMs()
}

// kept is the part of an unfinished step that need not be computed again, in milliseconds of
// all workers together: the gradients of ranks that stay on the worker which has them.
func (a *account) kept(j *fsm.Job, next *fsm.Generate, step int64) int64 {
	if next.Live == nil || next.Live.Target != step {
		return 0
	}
	sum := int64(0)
	for w, s := range a.sealed {
		was, is := j.Place(w), (&fsm.Job{Placement: next.Placement}).Place(w)
		if was == nil || is == nil || was.Incarnation != is.Incarnation || s.GetStep() != step || len(s.GetComputed()) == 0 {
			continue
		}
		stay := int64(0)
		for _, r := range s.GetComputed() {
			if slices.Contains(is.Ranks, int(r)) {
				stay++
			}
		}
		sum += max(s.GetComputedMs(), 0) * stay / int64(len(s.GetComputed()))
	}
	return sum / int64(len(j.Placement))
}

// spent is what is known of the generation that a decision is about.
func (c *Coordinator) spent(d fsm.Decision) ledger.Spent {
	var id string
	var saved *fsm.Checkpoint
	var next *fsm.Generate
	switch d := d.(type) {
	case *fsm.Generate:
		id, next = d.Job, d
	case *fsm.Publish:
		id, saved = d.Job, &d.Checkpoint
	case *fsm.Suspend:
		id = d.Job
	case *fsm.Complete:
		id = d.Job
	case *fsm.Fail:
		id = d.Job
	case *fsm.Cancel:
		id = d.Job
	}
	j, r := c.node.State().Jobs[id], c.leading()
	if j == nil || r == nil || j.Phase != fsm.Running {
		return ledger.Spent{}
	}
	if saved == nil {
		newest, _ := j.Newest()
		saved = &newest
	}
	return r.spentOf(j, *saved, next)
}

// ledgerOf is where a job's time went until now; m is nil where this coordinator does not lead.
func ledgerOf(now time.Time, j *fsm.Job, m *memory) ledger.Ledger {
	var known ledger.Spent
	var heard int64
	ends := false
	if m != nil && j.Phase == fsm.Running {
		newest, _ := j.Newest()
		known = m.spentOf(j, newest, nil)
		heard, ends = m.heardOf(j)
	}
	return j.Ledger.Now(now.UnixMilli(), known, heard, ends)
}

// heardOf is when rank 0's worker was last heard of a generation, 0 if it was not, and
// whether that is known to end.
func (m *memory) heardOf(j *fsm.Job) (heard int64, ends bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a := m.accounts[j.ID]; a != nil && a.generation == j.Generation && !a.heard.IsZero() {
		heard = a.heard.UnixMilli()
	}
	return heard, m.heard.Ends(j)
}

// ledgerMessage is a ledger as clients get it.
func ledgerMessage(l ledger.Ledger) *skeinv1.Ledger {
	capacity, _ := l.Capacity()
	return &skeinv1.Ledger{
		PreparingMs: l.Preparing, ProductiveMs: l.Productive, ReworkMs: l.Rework, RecoveryMs: l.Recovery, CheckpointMs: l.Checkpoint,
		DataWaitMs: l.DataWait, EvaluationMs: l.Evaluation, PausedMs: l.Paused, Capacity: capacity,
	}
}
