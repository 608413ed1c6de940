package coordinator

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/membership"
	"github.com/skein-ml/skein/coordinator/recovery"
	"github.com/skein-ml/skein/coordinator/scheduler"
)

// proposeTimeout bounds one turn's wait for the log.
const proposeTimeout = 5 * time.Second

// errRemoved is of one that was away when the others removed it.
var errRemoved = errors.New("this coordinator was removed; its folder is of no use any more: stop it, and start a new one under another id")

// loop takes turns until the coordinator ends: one for each tick, and one as soon as
// the state or what was heard has changed.
func (c *Coordinator) loop() {
	tick := time.NewTicker(c.config.Tick)
	defer tick.Stop()
	defer c.abdicate()
	last := time.Now()
	leader, removed := "", false
	for {
		if !removed && c.node.Removed() {
			removed = true
			c.config.Logger.Error(errRemoved.Error(), "id", c.config.ID)
		}
		if l := c.node.Leader().ID; l != "" && l != leader {
			leader = l
			c.metrics.leaderChanges.Inc()
		}
		changed := c.node.Changed()
		var heard <-chan struct{} // nil while somebody else leads
		if r := c.leading(); r != nil {
			heard = r.changed()
		}
		now := time.Now()
		c.turn(now, now.Sub(last))
		last = time.Now()
		select {
		case <-c.ctx.Done():
			return
		case <-c.node.Failed():
			c.config.Logger.Error("this coordinator cannot go on", "err", c.node.Err())
			c.end()
			return
		case <-tick.C:
		case <-changed:
		case <-heard:
		}
	}
}

// leading is the reign of this coordinator; nil if another one leads.
func (c *Coordinator) leading() *reign {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reign
}

// abdicate ends the reign, and with it all sessions of workers.
func (c *Coordinator) abdicate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reign != nil {
		c.reign.end()
		c.reign = nil
	}
}

// crown begins a reign once the state has everything that was acknowledged.
func (c *Coordinator) crown(now time.Time, term uint64) *reign {
	ctx, cancel := context.WithTimeout(c.ctx, proposeTimeout)
	defer cancel()
	if _, err := c.node.Read(ctx); err != nil {
		return nil
	}
	r := &reign{term: term, memory: newMemory(now)}
	r.ctx, r.end = context.WithCancel(c.ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reign = r
	c.config.Logger.Info("this coordinator leads", "id", c.config.ID, "term", term)
	return r
}

// turn is one round of state → decide → propose. away is how long ago the last one
// ended.
func (c *Coordinator) turn(now time.Time, away time.Duration) {
	term, leads := c.node.Leads()
	r := c.leading()
	if r != nil && (!leads || r.term != term) {
		c.abdicate()
		r = nil
	}
	if !leads {
		return
	}
	if r == nil {
		if r = c.crown(now, term); r == nil {
			return
		}
	}
	if away > c.config.Membership.Lease/2 { // this process was stopped or starved: it has heard nobody
		r.missed(now)
	}
	r.forget(now, c.node.State())

	lost, _ := membership.Decide(now, c.node.State(), r.forMembership(), c.config.Membership)
	for _, e := range lost {
		if d, ok := e.Decision.(*fsm.Remove); ok && c.decide(r, e) {
			r.givenUp(now, d.Worker, e.Reason)
		}
	}
	s := c.node.State()
	seen, free := r.forPlacement(now, s, c.config.StorePatience, c.config.Recovery)
	again := recovery.Decide(now, s, seen, c.config.Recovery)
	if !c.follow(r, now, s, again) {
		return
	}
	if c.decideAll(r, again.Entries) > 0 {
		return // recovery looks at the new state first; another turn follows at once
	}
	free.Hold, free.Joining, free.Keeps = again.Hold, again.Joining, again.Keeps
	work := scheduler.Decide(now, s, free, c.config.Scheduler)
	r.queued(work)
	c.decideAll(r, work.Entries)
	maps.Copy(work.Waiting, again.Notes)
	c.explain(r, work.Waiting)
}

// explain keeps what jobs wait for, and logs it when it changes.
func (c *Coordinator) explain(r *reign, waiting map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for job, why := range waiting {
		if r.waiting[job] != why {
			c.config.Logger.Info("waits", "job", job, "reason", why)
		}
	}
	if !maps.Equal(r.waiting, waiting) {
		r.wakeWatchers() // they show it
	}
	r.waiting = waiting
}

// decideAll proposes decisions, and tells how many hold.
func (c *Coordinator) decideAll(r *reign, entries []fsm.Entry) int {
	for i, e := range entries {
		if !c.decide(r, e) {
			return i // what follows was decided on the assumption that this holds
		}
	}
	return len(entries)
}

// decide proposes a decision, and tells whether it holds.
func (c *Coordinator) decide(r *reign, e fsm.Entry) bool {
	ctx, cancel := context.WithTimeout(r.ctx, proposeTimeout)
	defer cancel()
	result, err := c.propose(ctx, e)
	if err == nil {
		err = result.Err
	}
	if err != nil {
		c.config.Logger.Warn("a decision did not hold", "kind", e.Decision.Kind(), "reason", e.Reason, "err", err)
		return false
	}
	c.config.Logger.Info("decided", "kind", e.Decision.Kind(), "job", result.Job, "reason", e.Reason)
	return true
}

// propose stamps an entry and puts it into the log.
func (c *Coordinator) propose(ctx context.Context, e fsm.Entry) (fsm.Result, error) {
	began := time.Now()
	e.At, e.Spent = began.UnixMilli(), c.spent(e.Decision)
	result, err := c.node.Propose(ctx, e)
	c.metrics.proposed(began, e.Decision.Kind(), result, err)
	return result, err
}

// follow does what recovery decided. Who orders workers to stop must still lead, or a
// leader that was replaced could stop what the next one has begun.
func (c *Coordinator) follow(r *reign, now time.Time, s *fsm.State, d recovery.Decision) bool {
	if r.seals(d) {
		ctx, cancel := context.WithTimeout(r.ctx, proposeTimeout)
		defer cancel()
		if _, err := c.node.Read(ctx); err != nil {
			return false
		}
	}
	r.follow(now, s, d)
	return true
}
