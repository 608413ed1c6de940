package sim

import (
	"maps"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/membership"
	"github.com/skein-ml/skein/coordinator/recovery"
	"github.com/skein-ml/skein/coordinator/scheduler"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/worker/agent"
)

// hearing is what workers have told a leader. It dies with the reign.
type hearing struct {
	since, lastJoin time.Time
	contacts        map[string]*contact
	lost            map[string]string
	lostAt          map[string]time.Time
	accused         map[string]accusation
	broken          map[string]recovery.Broken
	tries           map[string]scheduler.Broken
	gaveUp          map[string]map[string]recovery.GaveUp
	sealed          map[string]map[string]recovery.Sealed
	ending          map[string]ending
	draining        map[string]time.Time
	protected       map[string]uint64 // by job: the generation that says so of itself
	want            recovery.Decision
	about           map[string]uint64 // by job: the generation that want is about
	queue           scheduler.Decision
}

type contact struct {
	incarnation  string
	connected    bool
	since        time.Time // of its session
	heard, broke time.Time
	pinged       time.Time
	job          string // that it works for, as it says itself
	generation   uint64
	preparation  uint64
	strayed      time.Time
	warm         string
}

type accusation struct {
	incarnation, job string
	generation       uint64
	at               time.Time
	membership.Accusation
}

type ending struct {
	generation uint64
	at         time.Time
}

// accusationAge is how long an accusation counts.
const accusationAge = 2 * time.Second

func newHearing(now time.Time) hearing {
	return hearing{
		since: now, lastJoin: now, contacts: map[string]*contact{}, lost: map[string]string{}, lostAt: map[string]time.Time{}, accused: map[string]accusation{},
		broken: map[string]recovery.Broken{}, tries: map[string]scheduler.Broken{}, gaveUp: map[string]map[string]recovery.GaveUp{},
		sealed: map[string]map[string]recovery.Sealed{}, ending: map[string]ending{}, draining: map[string]time.Time{}, protected: map[string]uint64{},
	}
}

// forget drops what is about jobs that are over and workers that are gone.
func (h *hearing) forget(now time.Time, s *fsm.State) {
	over := func(job string) bool { return s.Jobs[job] == nil || s.Jobs[job].Phase.Final() }
	maps.DeleteFunc(h.broken, func(job string, _ recovery.Broken) bool { return over(job) })
	maps.DeleteFunc(h.sealed, func(job string, _ map[string]recovery.Sealed) bool { return over(job) })
	maps.DeleteFunc(h.ending, func(job string, e ending) bool { return over(job) || s.Jobs[job].Ended().Generation != e.generation })
	maps.DeleteFunc(h.draining, func(w string, _ time.Time) bool { return s.Workers[w] == nil || !s.Workers[w].Draining })
	maps.DeleteFunc(h.lost, func(w, _ string) bool { return s.Workers[w] != nil })
	maps.DeleteFunc(h.lostAt, func(w string, _ time.Time) bool { return s.Workers[w] != nil })
	maps.DeleteFunc(h.accused, func(w string, a accusation) bool {
		j := s.Jobs[a.job]
		return !s.Is(w, a.incarnation) || j == nil || j.Generation != a.generation || now.Sub(a.at) > accusationAge
	})
	for job, gaveUp := range h.gaveUp {
		j := s.Jobs[job]
		maps.DeleteFunc(gaveUp, func(_ string, g recovery.GaveUp) bool {
			return j == nil || j.Setbacks == 0 && g.Generation < j.Generation
		})
	}
	for name, c := range h.contacts {
		if c.job == "" || c.ordered(s, name) {
			c.strayed = time.Time{}
		} else if c.strayed.IsZero() {
			c.strayed = now
		}
	}
	for _, w := range s.ByName() {
		if _, known := h.draining[w.Name]; w.Draining && !known {
			h.draining[w.Name] = now
		}
	}
}

// dropped notes that a worker keeps state of one job, or of none.
func (h *hearing) dropped(p *process, keeps string) {
	for job, reports := range h.sealed {
		if r, ok := reports[p.name]; ok && job != keeps && r.Incarnation == p.incarnation {
			r.Held, r.Summed = nil, nil
			reports[p.name] = r
		}
	}
}

// ordered tells whether the log orders what a worker does.
func (c *contact) ordered(s *fsm.State, worker string) bool {
	j := s.Jobs[c.job]
	if j == nil {
		return false
	}
	if c.generation > 0 {
		p := j.Place(worker)
		return j.Phase == fsm.Running && j.Generation == c.generation && p != nil && p.Incarnation == c.incarnation
	}
	return j.Phase == fsm.Preparing && j.Preparation.Number == c.preparation && j.Preparation.Worker == worker && j.Preparation.Incarnation == c.incarnation
}

func (c *contact) doing() string {
	return agent.Task{Job: c.job, Generation: c.generation, Preparation: c.preparation}.String()
}

func (h *hearing) alive(s *fsm.State) map[string]bool {
	alive := map[string]bool{}
	for name, c := range h.contacts {
		alive[name] = c.connected && s.Is(name, c.incarnation)
	}
	return alive
}

func (h *hearing) forMembership() membership.Seen {
	seen := membership.Seen{Since: h.since, Contacts: map[string]membership.Contact{}, Accused: map[string]membership.Accusation{}}
	for name, c := range h.contacts {
		seen.Contacts[name] = membership.Contact{Incarnation: c.incarnation, Connected: c.connected, Heard: c.heard, Pinged: c.pinged, Broke: c.broke}
	}
	for name, a := range h.accused {
		seen.Accused[name] = a.Accusation
	}
	return seen
}

func (h *hearing) forRecovery(s *fsm.State) recovery.Seen {
	seen := recovery.Seen{
		Alive: h.alive(s), Lost: h.lost, LostAt: h.lostAt, Broken: h.broken, Draining: h.draining, Reads: map[string]map[string]bool{}, GaveUp: h.gaveUp,
		Strays: map[string]recovery.Stray{}, LastJoin: h.lastJoin, Sealed: h.sealed, Ending: map[string]time.Time{},
		Protected: map[string]bool{}, Connected: map[string]time.Time{}, Warm: map[string]string{}, Promised: h.queue.Promised, Preempt: h.queue.Preempt,
	}
	for name, c := range h.contacts {
		if c.connected && !c.strayed.IsZero() && s.Is(name, c.incarnation) {
			seen.Strays[name] = recovery.Stray{Task: c.doing(), Since: c.strayed}
		}
		if c.connected {
			seen.Warm[name], seen.Connected[name] = c.warm, c.since
		}
	}
	for job, e := range h.ending {
		seen.Ending[job] = e.at
	}
	for job, g := range h.protected {
		seen.Protected[job] = s.Jobs[job] != nil && s.Jobs[job].Generation == g
	}
	return seen
}

func (h *hearing) forScheduler(now time.Time, s *fsm.State) scheduler.Seen {
	seen := scheduler.Seen{
		Alive: h.alive(s), LastJoin: h.lastJoin, Broken: h.tries, Reads: map[string]map[string]scheduler.Read{},
		Resting: map[string]map[string]string{}, Strays: map[string]scheduler.Stray{},
	}
	for name, stray := range h.forRecovery(s).Strays {
		seen.Strays[name] = scheduler.Stray(stray)
	}
	for job, gaveUp := range h.gaveUp {
		seen.Resting[job] = map[string]string{}
		for worker, g := range gaveUp {
			if recoveryConfig.Rests(now, g) {
				seen.Resting[job][worker] = "resting"
			}
		}
	}
	return seen
}

// follow keeps what recovery wants of workers.
func (h *hearing) follow(now time.Time, s *fsm.State, d recovery.Decision) {
	for _, j := range s.Jobs {
		if _, seals := d.Seal[j.ID]; !seals && !d.Hold[j.ID] {
			continue
		}
		if e, known := h.ending[j.ID]; !known || e.generation != j.Ended().Generation {
			h.ending[j.ID] = ending{j.Ended().Generation, now}
		}
	}
	h.want, h.about = d, map[string]uint64{}
	for _, j := range s.Jobs {
		h.about[j.ID] = j.Generation
	}
}

// ordered adds what recovery wants of a worker to its orders.
func (h *hearing) ordered(j *fsm.Job, a *skeinv1.Assignment) {
	if h.about[j.ID] != j.Generation {
		return // it has gone on since
	}
	_, a.Seal = h.want.Seal[j.ID]
	if y, ok := h.want.Yield[j.ID]; ok && !a.Seal {
		a.YieldRequest = 1
		if y.Save {
			a.CheckpointRequest = j.PublishedIndex + 1
		}
	}
}
