package sim

import (
	"errors"
	"fmt"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/hearing"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
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
	number     uint64 // as the leader counts
	pings      uint64 // that were delivered
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
	number, err := r.Connect(c.clock(), membershipConfig.Lease, p.name, p.incarnation)
	if err != nil {
		retry() // another process of that name
		return
	}
	s := &session{p: p, reign: r, number: number, at: w.now}
	p.session = s
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
		if p.cutOff || p.session != s || r.c.reign != r {
			return
		}
		beat := &skeinv1.Heartbeat{Job: t.Job, Generation: t.Generation, Preparation: t.Preparation, Warm: warm, Keeps: &keeps, DataSets: []string{dataHash}}
		if r.Heartbeat(r.c.clock(), p.name, s.number, beat) {
			r.wake()
		}
	})
}

// pong answers a leader that asks for a sign of life.
func (p *process) pong(s *session) {
	p.w.after(p.w.latency(), func() {
		if r := s.reign; !p.cutOff && p.session == s && r.c.reign == r {
			r.Pong(r.c.clock(), p.name, s.number)
		}
	})
}

// dataHash is of the data set that every worker has, and the nonce is what the job's store
// holds for workers to show that they read it.
const (
	dataHash = "d"
	nonce    = "n"
)

// read reads the job's store, as the leader asks.
func (p *process) read(probe *skeinv1.StoreProbe) {
	p.later(p.w.between(0, 20*time.Millisecond), func() {
		s := p.session
		if s == nil {
			return // the next leader asks again
		}
		p.w.after(p.w.latency(), func() {
			r := s.reign
			if p.cutOff {
				s.doomed = true // nobody says it again in this session
			} else if j := r.c.state.Jobs[probe.GetJob()]; p.session == s && r.c.reign == r && j != nil && r.Read(r.c.clock(), p.name, j, nonce, "") {
				r.wake()
			}
		})
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
		if r.Disconnect(r.c.clock(), p.name, s.number) {
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
	case agent.ReadStore:
		p.read(a.Probe)
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
	w := c.state.Workers[p.name]
	said := &skeinv1.BrokenRequest{
		Job: j.ID, Generation: r.Task.Generation, Preparation: r.Task.Preparation, Accused: r.Accused, Reason: r.Reason, Sealed: r.Sealed,
	}
	if err := errors.Join(hearing.Placed(j, w), hearing.Current(j, w, said)); err != nil {
		return true, err
	}
	if sealed := c.reign.Broken(c.clock(), c.state, j, w, said).Sealed; sealed != nil {
		c.w.say("coordinator %d hears %v: generation %d sealed at step %d, held %v, sums %v, reaches %v", c.id, p, sealed.Generation, sealed.Step, sealed.Held, sealed.Summed, sealed.Reaches)
	}
	return true, nil
}

// resolve ends a preparation.
func (c *coordinator) resolve(p *process, j *fsm.Job, r agent.Report) (bool, error) {
	if j.Preparation.Number != r.Task.Preparation || j.Preparation.Worker != p.name || j.Preparation.Incarnation != p.incarnation {
		return true, fsm.ErrFenced
	}
	w := c.w
	result, err := w.propose(c, fsm.Entry{Reason: "resolved", Decision: &fsm.Resolve{
		Job: j.ID, Number: r.Task.Preparation, Resolved: []byte(`{}`), SpecHash: "s", DataHash: dataHash, Nonce: fsm.Nonce{Object: "nonce", Value: nonce}, Class: "generic r1", Steps: w.job.steps,
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
