package sim

import (
	"errors"
	"fmt"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/recovery"
	"github.com/skein-ml/skein/coordinator/scheduler"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/protocol"
	"github.com/skein-ml/skein/shard"
	"github.com/skein-ml/skein/worker/agent"
)

// process is one worker process: the product's state of a worker, and around it what is
// the agent's: a session, the task that runs, what is kept between generations.
type process struct {
	w                       *world
	name, incarnation, node string
	up                      bool
	frozen                  bool
	backlog                 []func() // what happens once it is not frozen any more
	cutOff                  bool     // coordinators do not reach it, nor it them
	diskFull                bool
	slow                    int // how many times longer it computes

	state   agent.State
	session *session
	host    *host
	keep    keep
	warms   int                 // how often it was told to stop making ready
	reports map[agent.Task]bool // that are being told
}

// session is a worker's connection to a leader.
type session struct {
	p          *process
	reign      *reign
	registered bool
	doomed     bool // something on it was lost: nothing more comes through
	at         time.Duration
	orders     *skeinv1.Orders // last sent
}

// deliver has something happen at the worker, in order.
func (s *session) deliver(do func()) {
	p := s.p
	s.at = max(s.at, p.w.now+p.w.latency())
	p.w.after(s.at-p.w.now, func() {
		if p.cutOff {
			s.doomed = true
		}
		if p.session == s && !s.doomed {
			p.do(do)
		}
	})
}

// do lets something happen in the process: now, when it wakes, or never.
func (p *process) do(do func()) {
	switch {
	case !p.up:
	case p.frozen:
		p.backlog = append(p.backlog, do)
	default:
		do()
	}
}

func (p *process) later(d time.Duration, do func()) { p.w.after(d, func() { p.do(do) }) }

func (p *process) String() string { return p.name + "/" + p.incarnation }

// start makes a worker process.
func (w *world) start(name, node string) *process {
	p := &process{w: w, name: name, node: node, incarnation: fmt.Sprintf("p%d", len(w.workers)), up: true, slow: 1, reports: map[agent.Task]bool{}}
	w.workers = append(w.workers, p)
	w.say("%v starts on %s", p, node)
	p.later(w.between(0, 50*time.Millisecond), p.connect)
	return p
}

// connect opens a session with the leader, as soon as there is one.
func (p *process) connect() {
	w := p.w
	if p.session != nil {
		return
	}
	retry := func() { p.later(w.between(40*time.Millisecond, 250*time.Millisecond), p.connect) }
	if p.cutOff || w.log.leader < 0 {
		retry()
		return
	}
	c := w.coordinators[w.log.leader]
	r := c.reign
	if r == nil {
		retry()
		return
	}
	now := c.clock()
	if old := r.contacts[p.name]; old != nil && old.connected && old.incarnation != p.incarnation && now.Sub(old.heard) < membershipConfig.Lease {
		retry() // another process of that name
		return
	}
	s := &session{p: p, reign: r, at: w.now}
	p.session = s
	r.contacts[p.name] = &contact{incarnation: p.incarnation, connected: true, since: now, heard: now}
	r.lastJoin = now
	delete(r.accused, p.name)
	if !c.state.Is(p.name, p.incarnation) {
		_, err := w.propose(c, fsm.Entry{Reason: p.name + " takes part", Decision: &fsm.Register{Worker: fsm.Worker{
			Name: p.name, Incarnation: p.incarnation, Node: p.node, Ring: p.name, Stream: p.name, Classes: []string{"generic r1"},
		}}})
		if err != nil {
			return // the session ends with the reign
		}
	}
	s.registered = true
	s.deliver(func() { p.step(agent.Opened{Epoch: 1}) })
	p.beat(s)
	r.wake()
}

// beat sends heartbeats as long as the session stands.
func (p *process) beat(s *session) {
	if p.session != s {
		return
	}
	p.tell(s)
	p.w.after(heartbeat, func() { p.do(func() { p.beat(s) }) })
}

// tell says what the worker does.
func (p *process) tell(s *session) {
	t, warm, keeps := p.state.Running(), p.state.Ready(), p.state.Keeps()
	p.w.after(p.w.latency(), func() {
		r := s.reign
		c := r.contacts[p.name]
		if p.cutOff || p.session != s || r.c.reign != r || c == nil || c.incarnation != p.incarnation {
			return
		}
		c.heard = r.c.clock()
		r.dropped(p, keeps)
		if c.job != t.Job || c.generation != t.Generation || c.preparation != t.Preparation || c.warm != warm {
			c.job, c.generation, c.preparation, c.warm = t.Job, t.Generation, t.Preparation, warm
			r.wake()
		}
	})
}

// loseSession ends a session.
func (p *process) loseSession(s *session, fenced bool) {
	if p.session != s {
		return
	}
	p.session = nil
	p.disconnected(s)
	p.step(agent.Lost{Fenced: fenced})
	if fenced {
		p.w.count("fenced")
	}
	p.later(p.w.between(20*time.Millisecond, 100*time.Millisecond), p.connect)
}

// disconnected lets the leader know that a session has ended.
func (p *process) disconnected(s *session) {
	r := s.reign
	p.w.after(p.w.latency(), func() {
		if c := r.contacts[p.name]; c != nil && c.incarnation == p.incarnation && c.connected && p.session == nil {
			c.connected, c.broke = false, r.c.clock()
			r.wake()
		}
	})
}

// ordered takes orders in.
func (p *process) ordered(s *session, o *skeinv1.Orders) {
	if p.session == s {
		p.step(agent.Ordered{Orders: o})
	}
}

func (p *process) turned() {
	if s := p.session; s != nil {
		p.tell(s)
	}
}

// step is one turn of the worker's state.
func (p *process) step(e agent.Event) {
	running, ready, keeps := p.state.Running(), p.state.Ready(), p.state.Keeps()
	for _, a := range p.state.Step(e) {
		p.act(a)
	}
	if p.state.Running() != running || p.state.Ready() != ready || p.state.Keeps() != keeps {
		p.turned()
	}
}

func (p *process) act(a agent.Action) {
	switch a := a.(type) {
	case agent.Prepare:
		p.prepare(a.Order)
	case agent.Host:
		p.begin(a.Order)
	case agent.Stop:
		if h := p.host; h != nil {
			h.seal(finish{how: agent.Canceled, reason: "told to stop"})
		}
	case agent.Seal:
		if h := p.host; h != nil {
			h.seal(finish{how: agent.Broken, reason: "told to seal"})
		}
	case agent.Yield:
		if h := p.host; h != nil {
			h.yield = true
		}
	case agent.Checkpoint:
		if h := p.host; h != nil {
			h.save = true
		}
	case agent.Warm:
		p.warmUp(a.Order.GetJob())
	case agent.Cool:
		p.warms++
	case agent.Drop:
		p.keep = keep{}
	case agent.Tell:
		p.report(a.Report)
	case agent.TellDrain:
		p.call(func(c *coordinator) (bool, error) {
			r, err := p.w.propose(c, fsm.Entry{Reason: p.name + " wants to leave", Decision: &fsm.Drain{Worker: p.name, Incarnation: p.incarnation}})
			return err == nil, r.Err
		}, func(error) {})
	case agent.Exit:
		p.die("has left")
	}
}

// warmUp makes ready for a job, until it is told to stop.
func (p *process) warmUp(job string) {
	n := p.warms
	p.later(p.w.between(20*time.Millisecond, 300*time.Millisecond), func() {
		w := agent.Warmed{Job: job}
		if n != p.warms {
			w.Err = "told to stop"
		}
		p.step(w)
	})
}

// leave asks the process to leave politely.
func (p *process) leave() { p.step(agent.Drain{}) }

// prepare imports the model and prepares the data.
func (p *process) prepare(o *skeinv1.Preparation) {
	t := agent.Task{Job: o.GetJob(), Preparation: o.GetNumber()}
	p.later(p.w.between(20*time.Millisecond, 200*time.Millisecond), func() {
		if p.state.Running() == t {
			p.step(agent.Ended{Task: t, How: agent.Done, Prepared: &skeinv1.PreparedRequest{Job: t.Job, Number: t.Preparation}})
		}
	})
}

// call asks the leader until it answers. do tells whether there is an answer, and what it
// is.
func (p *process) call(do func(c *coordinator) (ok bool, answer error), then func(answer error)) {
	w := p.w
	w.after(w.latency(), func() {
		if !p.up {
			return
		}
		again := func() {
			p.later(w.between(50*time.Millisecond, 200*time.Millisecond), func() { p.call(do, then) })
		}
		if p.cutOff || w.log.leader < 0 || w.coordinators[w.log.leader].reign == nil {
			again()
			return
		}
		c := w.coordinators[w.log.leader]
		ok, answer := do(c)
		if !ok || c.reign == nil { // the answer is lost with the leader
			again()
			return
		}
		c.reign.wake()
		p.later(w.latency(), func() { then(answer) })
	})
}

// report tells the leader how a task ended.
func (p *process) report(r agent.Report) {
	if p.reports[r.Task] {
		return
	}
	p.reports[r.Task] = true
	p.call(func(c *coordinator) (bool, error) { return c.reported(p, r) }, func(answer error) {
		delete(p.reports, r.Task)
		a := agent.Answered{Report: r}
		if answer != nil {
			a.Refused, a.Fenced = answer.Error(), errors.Is(answer, fsm.ErrFenced) || errors.Is(answer, fsm.ErrUnknown)
		}
		p.step(a)
	})
}

// reported is what the leader makes of a report.
func (c *coordinator) reported(p *process, r agent.Report) (bool, error) {
	if !c.state.Is(p.name, p.incarnation) {
		return true, fsm.ErrFenced
	}
	j := c.state.Jobs[r.Task.Job]
	if j == nil {
		return true, fsm.ErrUnknown
	}
	if r.How == agent.Done {
		return c.resolve(p, j, r)
	}
	if r.How == agent.Failed {
		_ = c.w.wrong("%v says that the job cannot succeed: %s", p, r.Reason)
		return true, nil
	}
	now := c.clock()
	if r.Task.Preparation > 0 {
		c.reign.tries[j.ID] = scheduler.Broken{Number: r.Task.Preparation, Reason: r.Reason}
		return true, nil
	}
	if r.Task.Generation != j.Ended().Generation {
		return true, fsm.ErrFenced
	}
	sealed := sealedOf(p, r, now)
	sealed.Missed = recovery.Missed(j.Ended().Placement, p.name, sealed.Reaches)
	if c.reign.sealed[j.ID] == nil {
		c.reign.sealed[j.ID] = map[string]recovery.Sealed{}
	}
	c.reign.sealed[j.ID][p.name] = sealed
	c.w.say("coordinator %d hears %v: generation %d sealed at step %d, held %v, sums %v, reaches %v", c.id, p, sealed.Generation, sealed.Step, sealed.Held, sealed.Summed, sealed.Reaches)
	if sealed.Yielded || r.Sealed.GetTold() || j.Phase != fsm.Running {
		return true, nil
	}
	b := recovery.Broken{Generation: r.Task.Generation, By: p.name, Reason: r.Reason, At: now}
	if old, known := c.reign.broken[j.ID]; !known || old.Generation != b.Generation {
		c.reign.broken[j.ID] = b
	}
	if r.Accused != "" {
		c.reign.accuse(p, j, r)
	} else {
		c.reign.givesUp(j.ID, b)
	}
	return true, nil
}

// accuse notes that a worker is said to be silent, and asks it to say something.
func (r *reign) accuse(p *process, j *fsm.Job, report agent.Report) {
	a := accusation{job: j.ID, generation: report.Task.Generation, at: r.c.clock()}
	if w := r.c.state.Workers[report.Accused]; w != nil {
		a.incarnation = w.Incarnation
	}
	a.By, a.Reason = p.name, report.Reason
	r.accused[report.Accused] = a
	if c := r.contacts[report.Accused]; c != nil && c.connected {
		c.pinged = r.c.clock()
		for _, q := range r.c.w.workers {
			if q.name == report.Accused && q.incarnation == c.incarnation && q.session != nil {
				s := q.session
				s.deliver(func() { q.tell(s) })
			}
		}
	}
}

func (r *reign) givesUp(job string, b recovery.Broken) {
	if r.gaveUp[job] == nil {
		r.gaveUp[job] = map[string]recovery.GaveUp{}
	}
	g := r.gaveUp[job][b.By]
	if g.Generation != b.Generation {
		g.Generation, g.At, g.Reason = b.Generation, b.At, b.Reason
		g.Times++
	}
	r.gaveUp[job][b.By] = g
}

// resolve ends a preparation.
func (c *coordinator) resolve(p *process, j *fsm.Job, r agent.Report) (bool, error) {
	if j.Preparation.Number != r.Task.Preparation || j.Preparation.Worker != p.name || j.Preparation.Incarnation != p.incarnation {
		return true, fsm.ErrFenced
	}
	w := c.w
	result, err := w.propose(c, fsm.Entry{Reason: "resolved", Decision: &fsm.Resolve{
		Job: j.ID, Number: r.Task.Preparation, Resolved: []byte(`{}`), SpecHash: "s", DataHash: "d", Class: "generic r1", Steps: w.job.steps,
		Step0: fsm.Checkpoint{Manifest: "step0", Weights: w.truth.weights(0)},
	}})
	return err == nil, result.Err
}

// keep is what a worker has in memory between generations.
type keep struct {
	job   string
	gen   uint64 // newest generation that it was called for
	holds bool
	segments
	voted bool
}

// segments are the masters and moments of ranks, all after one step, and of some the sum
// of the next step.
type segments struct {
	step     int64
	decision []byte
	have     [shard.WorldSizeMax]bool
	state    [shard.WorldSizeMax]value
	summed   [shard.WorldSizeMax]bool
	sum      [shard.WorldSizeMax]value
}

// sealed is what a worker says that it keeps.
func (h *host) sealed(yielded bool) *skeinv1.Sealed {
	k := &h.p.keep
	s := &skeinv1.Sealed{Yielded: yielded}
	for _, q := range h.members {
		if q != h.p && h.w.reachable(h.p, q) {
			s.Reaches = append(s.Reaches, q.name)
		}
	}
	if k.job != h.job || k.gen != h.gen || !k.holds {
		return s
	}
	s.Step, s.Decision = k.step, k.decision
	for rank := range h.w.job.worldSize {
		if k.have[rank] {
			s.Held = append(s.Held, int32(rank))
			if k.voted && k.summed[rank] {
				s.Summed = append(s.Summed, int32(rank))
			}
		}
	}
	return s
}

// sealedOf is how a leader keeps it.
func sealedOf(p *process, report agent.Report, at time.Time) recovery.Sealed {
	s := report.Sealed
	r := recovery.Sealed{Generation: report.Task.Generation, Incarnation: p.incarnation, Yielded: s.GetYielded(), At: at, Report: protocol.Report{
		Worker: p.name, Step: s.GetStep(), Decision: s.GetDecision(), Reaches: s.GetReaches(),
	}}
	for _, rank := range s.GetHeld() {
		r.Held = append(r.Held, shard.Rank(rank))
	}
	for _, rank := range s.GetSummed() {
		r.Summed = append(r.Summed, shard.Rank(rank))
	}
	return r
}

// process finds one by name and incarnation.
func (w *world) process(name, incarnation string) *process {
	for _, p := range w.workers {
		if p.name == name && p.incarnation == incarnation {
			return p
		}
	}
	return nil
}

// die ends a process.
func (p *process) die(why string) {
	if !p.up {
		return
	}
	p.w.say("%v %s", p, why)
	p.up = false
	if s := p.session; s != nil {
		p.session = nil
		p.disconnected(s)
	}
	if h := p.host; h != nil {
		p.host = nil
		h.over = true
		p.w.links.reset(h)
	}
	p.w.links.watch() // its neighbours hear it, or find out by its silence
}
