package hearing

import (
	"fmt"
	"maps"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/membership"
	"github.com/skein-ml/skein/coordinator/recovery"
	"github.com/skein-ml/skein/coordinator/scheduler"
)

// strays lists the tasks that the log does not order any more, by worker.
func (h *Hearing) strays(s *fsm.State) map[string]recovery.Stray {
	strays := map[string]recovery.Stray{}
	for name, c := range h.contacts {
		if c.connected && !c.strayed.IsZero() && s.Is(name, c.incarnation) {
			strays[name] = recovery.Stray{Task: c.runs.String(), Since: c.strayed}
		}
	}
	return strays
}

// alive lists the workers whose session stands.
func (h *Hearing) alive(s *fsm.State) map[string]bool {
	alive := map[string]bool{}
	for name, c := range h.contacts {
		alive[name] = c.connected && s.Is(name, c.incarnation)
	}
	return alive
}

// ForMembership is what membership is told.
func (h *Hearing) ForMembership() membership.Seen {
	seen := membership.Seen{Since: h.since, Contacts: map[string]membership.Contact{}, Accused: map[string]membership.Accusation{}}
	for name, c := range h.contacts {
		seen.Contacts[name] = membership.Contact{Incarnation: c.incarnation, Connected: c.connected, Heard: c.heard, Pinged: c.pinged, Broke: c.broke}
	}
	for name, a := range h.accused {
		seen.Accused[name] = a.Accusation
	}
	return seen
}

// ForPlacement is what recovery and the scheduler are told of one state and one moment: a
// worker that one of them knew of and the other did not could be given away with steps in
// its memory that are nowhere else. What recovery decides of that moment is not in what the
// scheduler is told yet. patience is how long a worker may take to read a job's store.
func (h *Hearing) ForPlacement(now time.Time, s *fsm.State, patience time.Duration, c recovery.Config) (recovery.Seen, scheduler.Seen) {
	again, work := h.forRecovery(s), h.forScheduler(now, s, patience, c)
	again.Apart = c.Apart(now, s, again)
	work.Apart = again.Apart
	return again, work
}

func (h *Hearing) forRecovery(s *fsm.State) recovery.Seen {
	seen := recovery.Seen{
		Alive: h.alive(s), Lost: maps.Clone(h.lost), LostAt: maps.Clone(h.lostAt), Broken: map[string]recovery.Broken{}, Draining: maps.Clone(h.draining),
		Reads: map[string]map[string]bool{}, GaveUp: map[string]map[string]recovery.GaveUp{}, Strays: h.strays(s), Connected: map[string]time.Time{},
		LastJoin: h.lastJoin, Sealed: map[string]map[string]recovery.Sealed{}, Ending: map[string]time.Time{}, Protected: map[string]bool{},
		Warm: map[string]string{}, Promised: h.queue.Promised, Preempt: h.queue.Preempt,
	}
	for job, b := range h.broken {
		if b.preparation == 0 {
			seen.Broken[job] = b.Broken
		}
	}
	for job, reads := range h.reads {
		seen.Reads[job] = map[string]bool{}
		for worker, r := range reads {
			seen.Reads[job][worker] = !r.answered.IsZero() && r.err == "" && s.Is(worker, r.incarnation)
		}
	}
	for job, gaveUp := range h.gaveUp {
		seen.GaveUp[job] = map[string]recovery.GaveUp{}
		for worker, g := range gaveUp {
			seen.GaveUp[job][worker] = *g
		}
	}
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
	return seen
}

func (h *Hearing) forScheduler(now time.Time, s *fsm.State, patience time.Duration, c recovery.Config) scheduler.Seen {
	seen := scheduler.Seen{Alive: h.alive(s), LastJoin: h.lastJoin, Broken: map[string]scheduler.Broken{}, Reads: map[string]map[string]scheduler.Read{},
		Resting: map[string]map[string]string{}, Doubted: map[string]map[string]scheduler.Doubted{}, Strays: map[string]scheduler.Stray{}}
	for worker, stray := range h.strays(s) {
		seen.Strays[worker] = scheduler.Stray(stray)
	}
	for job, gaveUp := range h.gaveUp {
		seen.Resting[job] = map[string]string{}
		for worker, g := range gaveUp {
			if c.Rests(now, *g) {
				seen.Resting[job][worker] = fmt.Sprintf("left out for %s, because it gave up %d times: %s", c.GiveUpRest, g.Times, g.Reason)
			}
		}
	}
	for _, j := range s.Waiting() {
		doubted := map[string]scheduler.Doubted{}
		for _, d := range j.Doubts {
			if times := c.Doubts(now, j, d.Worker); times > 0 {
				doubted[d.Worker] = scheduler.Doubted{Times: times, Why: c.LeftOut(times)}
			}
		}
		seen.Doubted[j.ID] = doubted
	}
	for job, b := range h.broken {
		if b.preparation != 0 {
			seen.Broken[job] = scheduler.Broken{Number: b.preparation, Reason: b.Reason}
		}
	}
	for job, reads := range h.reads {
		seen.Reads[job] = map[string]scheduler.Read{}
		for worker, r := range reads {
			switch {
			case !s.Is(worker, r.incarnation): // another process is to be asked
			case !r.answered.IsZero():
				seen.Reads[job][worker] = scheduler.Read{Err: r.err}
			case now.Sub(r.asked) > patience:
				seen.Reads[job][worker] = scheduler.Read{Err: fmt.Sprintf("no answer for %s", patience)}
			}
		}
	}
	return seen
}
