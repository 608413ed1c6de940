package sim

import (
	"fmt"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
)

// faults are what is still to go wrong.
type faults struct {
	waiting    []*fault
	dieWriting bool // the leader dies as it writes to the log
	names      int
}

// fault is one thing that goes wrong: at a time, or when something has happened so often.
type fault struct {
	what func(w *world, at *process)
	name string
	when string // milestone
	nth  int
}

// The milestones at which faults strike.
var milestones = []string{"computes", "voted", "decided", "sealed", "entered", "filled", "generated"}

// trouble is everything that can go wrong, or be asked for at a bad time.
var trouble = []struct {
	name   string
	weight int
	do     func(w *world, at *process)
}{
	{"kill", 10, (*world).kill},
	{"freeze", 5, (*world).freeze},
	{"cut", 4, (*world).cutRing},
	{"cut off", 3, (*world).cutOff},
	{"flap", 3, (*world).flap},
	{"leader killed", 3, (*world).killLeader},
	{"leader deposed", 2, (*world).deposeLeader},
	{"leader dies writing", 2, func(w *world, _ *process) { w.faults.dieWriting = true }},
	{"slow", 1, (*world).slow},
	{"disk full", 2, (*world).diskFull},
	{"drain", 2, (*world).drain},
	{"join", 3, (*world).join},
	{"scale", 2, (*world).scale},
	{"pause", 1, (*world).pause},
	{"clock", 1, (*world).clockJump},
}

// realFaults are those of trouble that nobody asks for.
const realFaults = 8

// strike draws what goes wrong. The first strikes the job in its stride.
func (w *world) strike() {
	n := 1 + w.rng.IntN(4)
	for i := range n {
		k, total := 0, 0
		for k, t := range trouble {
			if i > 0 || k < realFaults {
				total += t.weight
			}
		}
		at := w.rng.IntN(total)
		for at >= trouble[k].weight {
			at -= trouble[k].weight
			k++
		}
		f := &fault{what: trouble[k].do, name: trouble[k].name, when: milestones[w.rng.IntN(len(milestones))], nth: 1 + w.rng.IntN(8)}
		if i == 0 {
			f.when, f.nth = milestones[w.rng.IntN(3)], 1+w.rng.IntN(5)
		}
		if i > 0 && w.one(3) {
			w.after(w.between(200*time.Millisecond, 4*time.Second), func() { w.hit(f, nil) })
			continue
		}
		w.faults.waiting = append(w.faults.waiting, f)
	}
}

// milestone lets the faults strike that wait for it.
func (w *world) milestone(what string, p *process) {
	for i := 0; i < len(w.faults.waiting); i++ {
		f := w.faults.waiting[i]
		if f.when != what {
			continue
		}
		if f.nth--; f.nth > 0 {
			continue
		}
		w.faults.waiting = append(w.faults.waiting[:i], w.faults.waiting[i+1:]...)
		i--
		if w.one(2) {
			w.hit(f, p)
		} else {
			w.after(w.between(0, 20*time.Millisecond), func() { w.hit(f, nil) })
		}
	}
}

func (w *world) hit(f *fault, p *process) {
	if w.job.done {
		return
	}
	if p == nil || w.one(3) {
		p = w.victim()
	}
	w.say("FAULT %s at %v", f.name, p)
	w.count("faults")
	w.count("fault: " + f.name)
	f.what(w, p)
}

// victim is a worker, one that hosts ranks if there is one.
func (w *world) victim() *process {
	if list := w.running(); len(list) > 0 {
		return list[w.rng.IntN(len(list))]
	}
	if list := w.living(); len(list) > 0 {
		return list[w.rng.IntN(len(list))]
	}
	return nil
}

// kill ends a worker process. Another one comes in its place, under the same name or not.
func (w *world) kill(p *process) {
	if p == nil || !p.up {
		return
	}
	p.die("is killed")
	name := p.name
	if w.one(3) {
		w.faults.names++
		name = fmt.Sprintf("x%d", w.faults.names)
	}
	w.after(w.between(50*time.Millisecond, 4*time.Second), func() { w.start(name, p.node) })
}

// freeze stops a worker process for a while.
func (w *world) freeze(p *process) {
	if p == nil || !p.up || p.frozen {
		return
	}
	p.frozen = true
	w.links.watch()
	w.after(w.between(100*time.Millisecond, 8*time.Second), func() { w.thaw(p) })
}

// thaw wakes it: an old generation, perhaps, and all that has come meanwhile at once.
func (w *world) thaw(p *process) {
	if !p.up {
		return
	}
	w.say("%v wakes", p)
	p.frozen = false
	if j := w.newest(); p.host != nil && !p.host.over && j != nil && p.host.gen < j.Generation {
		w.count(RowZombie)
	}
	backlog := p.backlog
	p.backlog = nil
	for _, do := range backlog {
		p.do(do)
	}
	w.links.flow()
}

// cutRing cuts the way from a worker to others, or to it, or both, for a while.
func (w *world) cutRing(p *process) {
	if p == nil {
		return
	}
	from, to := !w.one(3), w.one(2)
	one := w.victim() // the other end, or all
	all := w.one(2)
	var cut [][2]*process
	for _, q := range w.workers {
		if q == p || !all && q != one {
			continue
		}
		if from {
			cut = append(cut, [2]*process{p, q})
		}
		if to || !from {
			cut = append(cut, [2]*process{q, p})
		}
	}
	for _, c := range cut {
		w.links.cut[c] = true
	}
	w.links.watch()
	w.after(w.between(100*time.Millisecond, 6*time.Second), func() {
		for _, c := range cut {
			delete(w.links.cut, c)
		}
		w.say("the ways of %v are free again", p)
		w.links.flow()
	})
}

// cutOff keeps a worker from the coordinators for a while.
func (w *world) cutOff(p *process) {
	if p == nil || !p.up || p.cutOff {
		return
	}
	p.cutOff = true
	w.after(w.between(time.Second, 2*time.Second), func() { // both ends notice
		if s := p.session; s != nil && (p.cutOff || s.doomed) {
			p.do(func() { p.loseSession(s, false) })
		}
	})
	w.after(w.between(100*time.Millisecond, 6*time.Second), func() { p.cutOff = false })
}

// flap breaks a link between two that live.
func (w *world) flap(p *process) {
	if p == nil || p.host == nil || p.host.over || p.host.out == nil {
		return
	}
	x := p.host.out
	x.broken = true
	for _, h := range []*host{x.from, x.to} {
		other := x.from
		if h == x.from {
			other = x.to
		}
		w.after(w.between(0, 20*time.Millisecond), func() { h.p.do(func() { h.linkBroke(other, "reset") }) })
	}
}

func (w *world) killLeader(*process) {
	if w.log.leader >= 0 && w.upCoordinators() > 2 {
		w.killCoordinator(w.coordinators[w.log.leader])
	}
}

func (w *world) upCoordinators() int {
	n := 0
	for _, c := range w.coordinators {
		if c.up {
			n++
		}
	}
	return n
}

func (w *world) deposeLeader(*process) {
	if w.log.leader >= 0 {
		w.say("coordinator %d is deposed", w.log.leader)
		w.depose(w.coordinators[w.log.leader])
	}
}

func (w *world) slow(p *process) {
	if p != nil {
		p.slow = 2 + w.rng.IntN(20)
	}
}

func (w *world) diskFull(p *process) {
	if p != nil {
		p.diskFull = true
		w.after(w.between(100*time.Millisecond, 3*time.Second), func() { p.diskFull = false })
	}
}

// drain asks a worker to leave; another one comes.
func (w *world) drain(p *process) {
	if p == nil || !p.up {
		return
	}
	p.do(p.leave)
	w.after(w.between(0, 3*time.Second), func() { w.join(nil) })
}

func (w *world) join(*process) {
	w.faults.names++
	w.start(fmt.Sprintf("x%d", w.faults.names), fmt.Sprintf("n%d", w.rng.IntN(3)))
}

func (w *world) scale(*process) {
	n := w.job.min + w.rng.IntN(w.job.worldSize-w.job.min+1)
	w.client(func(c *coordinator) bool {
		_, err := w.propose(c, fsm.Entry{Reason: "scaled", Decision: &fsm.Scale{Job: w.job.id, Workers: n}})
		return err == nil
	})
}

func (w *world) pause(*process) {
	ask := func(d fsm.Decision) func(c *coordinator) bool {
		return func(c *coordinator) bool {
			_, err := w.propose(c, fsm.Entry{Reason: d.Kind(), Decision: d})
			return err == nil
		}
	}
	paused := ask(&fsm.Pause{Job: w.job.id})
	w.client(func(c *coordinator) bool {
		if !paused(c) {
			return false
		}
		w.after(w.between(100*time.Millisecond, 3*time.Second), func() { w.client(ask(&fsm.Resume{Job: w.job.id})) })
		return true
	})
}

// clockJump sets the clock of a coordinator forwards or back.
func (w *world) clockJump(*process) {
	c := w.coordinators[w.rng.IntN(len(w.coordinators))]
	if w.log.leader >= 0 && w.one(2) {
		c = w.coordinators[w.log.leader]
	}
	c.skew = w.between(-time.Hour, time.Hour)
}
