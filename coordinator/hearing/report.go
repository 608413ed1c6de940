package hearing

import (
	"fmt"
	"slices"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/membership"
	"github.com/skein-ml/skein/coordinator/recovery"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/protocol"
	"github.com/skein-ml/skein/shard"
)

// Placed refuses the word of a worker process that has no part in what a job does now. A
// job that is over, or queued again, has no placement to check; whether a report repeats
// what ended it is for the log to say.
func Placed(j *fsm.Job, w *fsm.Worker) error {
	p := j.Place(w.Name)
	prepares := j.Preparation.Worker == w.Name && j.Preparation.Incarnation == w.Incarnation
	if j.Phase == fsm.Running && (p == nil || p.Incarnation != w.Incarnation) || j.Phase == fsm.Preparing && !prepares {
		return fmt.Errorf("%w: worker %s has no part in %s any more", fsm.ErrFenced, w.Name, j.ID)
	}
	return nil
}

// Current refuses a report, of a worker that is Placed, of what is over.
func Current(j *fsm.Job, w *fsm.Worker, r *skeinv1.BrokenRequest) error {
	g, n := r.GetGeneration(), r.GetPreparation()
	if n == 0 && g != j.Ended().Generation || n != 0 && (n != j.Preparation.Number || j.Phase != fsm.Preparing) {
		return fmt.Errorf("%w: generation %d, preparation %d of %s are over", fsm.ErrFenced, g, n, j.ID)
	}
	if p := j.Holder(w.Name); n == 0 && (p == nil || p.Incarnation != w.Incarnation) {
		return fmt.Errorf("%w: worker %s had no part in generation %d of %s", fsm.ErrFenced, w.Name, g, j.ID)
	}
	return nil
}

// Report is what a leader makes of a worker's word that it cannot go on.
type Report struct {
	Sealed *recovery.Sealed // what it holds; nil if it does not say so
	Sound  bool             // that can be true
	// Blames is set if something is wrong. A worker that was asked to stop, or says what is
	// in the log, blames nobody.
	Blames  bool
	Accused string // whom it accuses; empty: nobody, or somebody it cannot have met
}

// Broken notes a report that is Current: that a generation or a preparation cannot go on,
// and what the worker holds, if it has sealed.
func (h *Hearing) Broken(now time.Time, s *fsm.State, j *fsm.Job, w *fsm.Worker, r *skeinv1.BrokenRequest) (report Report) {
	n := r.GetPreparation()
	if n == 0 && !r.GetSealing() {
		sealed, sound := sealedOf(now, j, w, r.GetSealed())
		report.Sealed, report.Sound = &sealed, sound
		if h.sealed[j.ID] == nil {
			h.sealed[j.ID] = map[string]recovery.Sealed{}
		}
		h.sealed[j.ID][w.Name] = sealed
		if r.GetSealed().GetYielded() || r.GetSealed().GetTold() || r.GetDiverged() != nil || j.Phase != fsm.Running {
			return report
		}
	}
	incarnation := ""
	if n == 0 && j.Holder(r.GetAccused()) != nil { // nobody else can have been met in the ring
		report.Accused = r.GetAccused()
		if a := s.Workers[report.Accused]; a != nil {
			incarnation = a.Incarnation
		}
	}
	report.Blames = true
	h.blame(j.ID, broken{preparation: n, Broken: recovery.Broken{Generation: r.GetGeneration(), By: w.Name, Reason: r.GetReason(), At: now}}, report.Accused, incarnation)
	return report
}

// blame notes that a generation or a preparation cannot go on. The first report of a
// generation counts.
func (h *Hearing) blame(job string, b broken, accused, incarnation string) {
	if old, ok := h.broken[job]; !ok || old.Generation != b.Generation || old.preparation != b.preparation {
		h.broken[job] = b
	}
	switch {
	case accused != "":
		h.accused[accused] = accusation{incarnation, job, b.Generation, b.At, membership.Accusation{By: b.By, Reason: b.Reason}}
		h.ping(b.At, accused)
	case b.preparation == 0:
		h.gaveItUp(job, b.Broken)
	}
}

// gaveItUp notes that a worker cannot go on with a job by its own word. It is asked anew
// to read the job's store.
func (h *Hearing) gaveItUp(job string, b recovery.Broken) {
	if h.gaveUp[job] == nil {
		h.gaveUp[job] = map[string]*recovery.GaveUp{}
	}
	g := h.gaveUp[job][b.By]
	if g == nil {
		g = &recovery.GaveUp{}
		h.gaveUp[job][b.By] = g
	} else if g.Generation == b.Generation {
		return // it says it again, to a new leader perhaps
	}
	g.Generation, g.At, g.Reason = b.Generation, b.At, b.Reason
	g.Times++
	delete(h.reads[job], b.By)
}

// hasGivenUp tells whether a worker has given up a generation of a job.
func (h *Hearing) hasGivenUp(job, worker string, generation uint64) bool {
	g := h.gaveUp[job][worker]
	return g != nil && g.Generation == generation
}

const decisionBytesMax = 4 << 10 // of a decision record

// sealedOf is a worker's report of what it holds. What cannot be true is worth nothing.
func sealedOf(now time.Time, j *fsm.Job, w *fsm.Worker, said *skeinv1.Sealed) (r recovery.Sealed, sound bool) {
	r = recovery.Sealed{Generation: j.Ended().Generation, Incarnation: w.Incarnation, Yielded: said.GetYielded(), At: now, Report: protocol.Report{Worker: w.Name}}
	held, okHeld := ranksOf(j, said.GetHeld())
	summed, okSummed := ranksOf(j, said.GetSummed())
	if !okHeld || !okSummed || said.GetStep() < 0 || said.GetStep() > j.Steps || len(said.GetDecision()) > decisionBytesMax || len(said.GetReaches()) > j.WorldSize ||
		slices.ContainsFunc(summed, func(rank shard.Rank) bool { return !slices.Contains(held, rank) }) {
		return r, false
	}
	r.Step, r.Decision, r.Held, r.Summed, r.Reaches = said.GetStep(), said.GetDecision(), held, summed, said.GetReaches()
	if len(r.Reaches) > 0 || len(held) > 0 { // otherwise it may not have asked anybody
		r.Ring = j.Ended().Placement
	}
	return r, true
}

// ranksOf reads a list of a job's ranks, each at most once.
func ranksOf(j *fsm.Job, list []int32) (ranks []shard.Rank, ok bool) {
	seen := map[int32]bool{}
	for _, r := range list {
		if r < 0 || int(r) >= j.WorldSize || seen[r] {
			return nil, false
		}
		seen[r] = true
		ranks = append(ranks, shard.Rank(r))
	}
	return ranks, true
}
