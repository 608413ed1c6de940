package sim

import (
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/hearing"
	"github.com/skein-ml/skein/coordinator/membership"
	"github.com/skein-ml/skein/coordinator/recovery"
	"github.com/skein-ml/skein/coordinator/scheduler"
)

// coordinator is one of those that keep the log.
type coordinator struct {
	w     *world
	id    int
	up    bool
	state *fsm.State
	reign *reign        // while it leads
	skew  time.Duration // of its wall clock
}

// reign is one stretch of leadership, with what workers have told in it.
type reign struct {
	c *coordinator
	*hearing.Hearing
	turns   bool // a turn is about to be taken
	waiting map[string]string
	last    time.Duration
}

// policies of the deciders, fixed for all runs. Their waits are a little shorter than the
// defaults, so that runs are short.
var (
	membershipConfig = membership.Config{Lease: 3 * time.Second}
	recoveryConfig   = recovery.Config{Settle: 500 * time.Millisecond, SealPatience: 4 * time.Second, DrainPatience: 5 * time.Second, StuckPatience: 8 * time.Second}
	schedulerConfig  = scheduler.Config{Settle: 300 * time.Millisecond, StuckPatience: 8 * time.Second}
)

func init() {
	membershipConfig.EnsureDefaults()
	recoveryConfig.EnsureDefaults()
	schedulerConfig.EnsureDefaults()
}

const (
	tick      = 200 * time.Millisecond
	heartbeat = 500 * time.Millisecond

	storePatience = 5 * time.Second // for a job's store to be read
)

// wall is the time by the clock of this machine, which may jump. What is compared with
// other moments of the same process does not jump with it.
func (c *coordinator) wall() time.Time { return epoch.Add(c.w.now + c.skew) }

func (c *coordinator) clock() time.Time { return epoch.Add(c.w.now) }

// crown begins a reign.
func (c *coordinator) crown() {
	c.follow()
	r := &reign{c: c, Hearing: hearing.New(c.clock()), last: c.w.now}
	c.reign = r
	c.w.say("coordinator %d leads in term %d", c.id, c.w.log.term)
	if j := c.state.Jobs[c.w.job.id]; c.w.job.id != "" && j == nil {
		_ = c.w.wrong("coordinator %d leads and does not know %s, which was acknowledged", c.id, c.w.job.id)
	} else if j != nil && j.Phase == fsm.Done {
		c.w.job.done = true // the last leader died before it could say so
	}
	r.tick()
}

func (r *reign) tick() {
	r.c.w.after(tick, func() {
		if r.c.reign == r {
			r.turn()
			r.tick()
		}
	})
	r.wake()
}

// wake has a turn taken soon.
func (r *reign) wake() {
	if r.turns {
		return
	}
	r.turns = true
	r.c.w.after(r.c.w.between(0, 2*time.Millisecond), func() {
		r.turns = false
		r.turn()
	})
}

// turn is one round of state → decide → propose, as a coordinator takes it.
func (r *reign) turn() {
	c := r.c
	if c.reign != r || !c.up {
		return
	}
	now := c.clock()
	if c.w.now-r.last > membershipConfig.Lease/2 {
		r.Missed(now)
	}
	r.last = c.w.now
	r.Forget(now, c.state)
	lost, _ := membership.Decide(now, c.state, r.ForMembership(), membershipConfig)
	for _, e := range lost {
		if d, ok := e.Decision.(*fsm.Remove); ok && r.decide(e) {
			r.GivenUp(now, d.Worker, e.Reason)
		}
	}
	if c.reign != r {
		return
	}
	seen, free := r.ForPlacement(now, c.state, storePatience, recoveryConfig)
	again := recovery.Decide(now, c.state, seen, recoveryConfig)
	if c.w.log.leader != c.id { // as VerifyLeader tells
		return
	}
	r.Follow(now, c.state, again)
	if r.decideAll(again.Entries) == 0 && c.reign == r { // otherwise another turn follows
		free.Hold, free.Joining, free.Keeps = again.Hold, again.Joining, again.Keeps
		work := scheduler.Decide(now, c.state, free, schedulerConfig)
		r.Queued(work)
		r.waiting = work.Waiting
		r.decideAll(work.Entries)
	}
	if c.reign == r {
		r.command()
	}
}

// decideAll proposes decisions, and tells how many hold.
func (r *reign) decideAll(entries []fsm.Entry) int {
	for i, e := range entries {
		if !r.decide(e) {
			return i
		}
	}
	return len(entries)
}

// decide proposes a decision, and tells whether it holds.
func (r *reign) decide(e fsm.Entry) bool {
	result, err := r.c.w.propose(r.c, e)
	if err == nil && result.Err == nil {
		r.wake()
		return true
	}
	r.c.w.count("decision refused")
	return false
}

// command sends workers their orders where they changed.
func (r *reign) command() {
	for _, p := range r.c.w.workers {
		s := p.session
		if s == nil || s.reign != r || !s.registered {
			continue
		}
		if !r.c.state.Is(p.name, p.incarnation) {
			s.deliver(func() { p.loseSession(s, true) })
			continue
		}
		if n := r.Pings(p.name, s.number); n > s.pings {
			s.pings = n
			s.deliver(func() { p.pong(s) })
		}
		o := r.Orders(r.c.clock(), r.c.state, r.c.state.Workers[p.name])
		if s.orders != nil && proto.Equal(s.orders, o) {
			continue
		}
		s.orders = o
		o = proto.CloneOf(o)
		s.deliver(func() { p.ordered(s, o) })
	}
}
