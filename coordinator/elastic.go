package coordinator

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/recovery"
	"github.com/skein-ml/skein/coordinator/scheduler"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/protocol"
	"github.com/skein-ml/skein/shard"
)

// ending is a generation that is known to end, or to have ended without a next one.
type ending struct {
	generation uint64
	at         time.Time // since when this leader knows it
}

// elastic is what recovery is told of sealed workers, and of those that come. h.mu is held.
func (h *hearing) elastic(s *fsm.State, seen *recovery.Seen) {
	seen.LastJoin, seen.Connected = h.lastJoin, map[string]time.Time{}
	seen.Sealed, seen.Ending, seen.Protected, seen.Warm = map[string]map[string]recovery.Sealed{}, map[string]time.Time{}, map[string]bool{}, map[string]string{}
	seen.Promised, seen.Preempt, seen.LostAt = h.queue.Promised, h.queue.Preempt, maps.Clone(h.lostAt)
	for job, reports := range h.sealed {
		seen.Sealed[job] = maps.Clone(reports)
	}
	for job, e := range h.ending {
		seen.Ending[job] = e.at
	}
	for job, p := range h.progress {
		if j := s.Jobs[job]; j != nil && j.Generation == p.GetGeneration() {
			seen.Protected[job] = p.GetProtected()
		}
	}
	for name, c := range h.contacts {
		if c.connected {
			seen.Warm[name], seen.Connected[name] = c.warm, c.began
		}
	}
}

// follow keeps what recovery wants of workers, and lets them hear it.
func (h *hearing) follow(now time.Time, s *fsm.State, d recovery.Decision) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wanted = map[string]uint64{}
	for _, j := range s.Jobs {
		h.wanted[j.ID] = j.Ended().Generation
		if _, seals := d.Seal[j.ID]; !seals && !d.Hold[j.ID] {
			continue
		}
		if e, known := h.ending[j.ID]; !known || e.generation != j.Ended().Generation {
			h.ending[j.ID] = ending{j.Ended().Generation, now}
		}
	}
	last := h.want
	h.want = d
	if !maps.Equal(last.Seal, d.Seal) || !maps.Equal(last.Yield, d.Yield) || !maps.Equal(last.Warm, d.Warm) || !maps.Equal(last.Stays, d.Stays) {
		h.wake()
	}
}

// queued keeps what the scheduler decided.
func (h *hearing) queued(d scheduler.Decision) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !maps.Equal(h.queue.Preempt, d.Preempt) {
		h.wake()
	}
	h.queue = d
}

// ordered adds what recovery wants of a worker to its orders to host ranks.
func (h *hearing) ordered(j *fsm.Job, a *skeinv1.Assignment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.wanted[j.ID] != j.Generation {
		return // it was wanted of the generation before: the next turn decides about this one
	}
	_, a.Seal = h.want.Seal[j.ID]
	if y, ok := h.want.Yield[j.ID]; ok && !a.Seal {
		a.YieldRequest = 1 // a generation stops but once
		if y.Save {
			a.CheckpointRequest = j.PublishedIndex + 1 // higher than what an older one asked for
		}
	}
}

// warms is the job that a worker without work is to make ready for; empty if none.
func (h *hearing) warms(worker string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.want.Warm[worker]
}

// newSeals tells whether jobs are to be sealed that were not when it was last decided.
func (h *hearing) newSeals(seal map[string]string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for job := range seal {
		if _, known := h.want.Seal[job]; !known {
			return true
		}
	}
	return false
}

// ping has a worker asked to say something. h.mu is held.
func (h *hearing) ping(now time.Time, worker string) {
	if c := h.contacts[worker]; c != nil && c.connected {
		c.pings++
		c.pinged = now
	}
}

// pingOf is the number of the last ping of a worker's session; 0: none.
func (h *hearing) pingOf(worker string, session uint64) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.contacts[worker]; c != nil && c.session == session {
		return c.pings
	}
	return 0
}

// pong notes that a worker has answered.
func (h *hearing) pong(now time.Time, worker string, session uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.contacts[worker]; c != nil && c.session == session {
		c.heard = now
	}
}

// seal keeps what a worker holds that will not act in a generation again.
func (h *hearing) seal(job string, r recovery.Sealed) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sealed[job] == nil {
		h.sealed[job] = map[string]recovery.Sealed{}
	}
	h.sealed[job][r.Worker] = r
	h.wake()
}

// dropped notes that a worker keeps state of one job, or of none: it cannot give what it
// said before that it held of any other. What it said was decided stays true. h.mu is held.
func (h *hearing) dropped(worker, incarnation, keeps string) {
	for job, reports := range h.sealed {
		r, ok := reports[worker]
		if !ok || job == keeps || r.Incarnation != incarnation || len(r.Held) == 0 {
			continue
		}
		r.Held, r.Summed = nil, nil
		reports[worker] = r
		h.wake()
	}
}

// stays tells whether a worker that wants to leave has to wait, because it holds what
// nobody else does.
func (h *hearing) stays(worker string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.want.Stays[worker] != ""
}

// giveUpOn notes that a worker was given up, and why. What it said that it holds counts no
// more: should it come back, it says it again, if that is true still.
func (h *hearing) giveUpOn(now time.Time, worker, why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lost[worker], h.lostAt[worker] = why, now
	for _, reports := range h.sealed {
		delete(reports, worker)
	}
}

// follow does what recovery decided. Who orders workers to stop must still lead, or a
// leader that was replaced could stop what the next one has begun.
func (c *Coordinator) follow(r *reign, now time.Time, s *fsm.State, d recovery.Decision) bool {
	if r.newSeals(d.Seal) {
		ctx, cancel := context.WithTimeout(r.ctx, proposeTimeout)
		defer cancel()
		if _, err := c.node.Read(ctx); err != nil {
			return false
		}
	}
	r.follow(now, s, d)
	return true
}

const decisionBytesMax = 4 << 10 // of a decision record

// sealedOf is a worker's report of what it holds. What cannot be true is worth nothing.
func sealedOf(j *fsm.Job, w *fsm.Worker, said *skeinv1.Sealed) (r recovery.Sealed, ok bool) {
	r = recovery.Sealed{Generation: j.Ended().Generation, Incarnation: w.Incarnation, Yielded: said.GetYielded(), At: time.Now(), Report: protocol.Report{Worker: w.Name}}
	held, okHeld := ranksOf(j, said.GetHeld())
	summed, okSummed := ranksOf(j, said.GetSummed())
	if !okHeld || !okSummed || said.GetStep() < 0 || said.GetStep() > j.Steps || len(said.GetDecision()) > decisionBytesMax || len(said.GetReaches()) > j.WorldSize ||
		slices.ContainsFunc(summed, func(rank shard.Rank) bool { return !slices.Contains(held, rank) }) {
		return r, false
	}
	r.Step, r.Decision, r.Held, r.Summed, r.Reaches = said.GetStep(), said.GetDecision(), held, summed, said.GetReaches()
	r.Missed = recovery.Missed(j.Ended().Placement, w.Name, r.Reaches)
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
