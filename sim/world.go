package sim

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/protocol"
	"github.com/skein-ml/skein/shard"
)

// The rows of what a failure may strike, by what was recovered from. Every set of runs
// must have hit each of them.
const (
	RowBeforeDecision = "struck before anybody decided, in the first step of a generation"
	RowDeadKnow       = "decided, and only the dead know"
	RowPartly         = "a survivor knows the decision, others have the sums"
	RowNextStep       = "struck in the step after a decided one"
	RowAgain          = "struck again during a recovery"
	RowLeaderToo      = "the leader was lost during a recovery"
	RowZombie         = "a zombie woke in an old generation"
	RowCheckpoint     = "back to the checkpoint, all holders of a rank were lost"
)

// Rows lists them.
var Rows = []string{RowBeforeDecision, RowDeadKnow, RowPartly, RowNextStep, RowAgain, RowLeaderToo, RowZombie, RowCheckpoint}

// build sets up a cluster and submits a job.
func (w *world) build() {
	j := &w.job
	j.worldSize = []int{2, 3, 4, 4, 5, 6}[w.rng.IntN(6)]
	j.steps, j.every = 3+w.rng.Int64N(3), 1+w.rng.Int64N(6)
	j.mirror = !w.one(5)
	n := 2 + w.rng.IntN(3)
	j.min, j.max = 1+w.rng.IntN(min(2, j.worldSize)), j.worldSize
	var err error
	group := []shard.Group{{Name: "a", Tensors: []shard.Tensor{{Name: "x", Elems: int64(j.worldSize) * shard.Align}}}}
	if w.table, err = shard.NewTable(group, j.worldSize); err != nil {
		panic(err)
	}
	w.truth = newTruth(j.worldSize, j.steps)
	w.links = links{w: w, cut: map[[2]*process]bool{}}
	for i := range 3 {
		w.coordinators = append(w.coordinators, &coordinator{w: w, id: i, up: true, state: fsm.New()})
	}
	w.say("world size %d, %d to %d workers, %d steps, a checkpoint every %d, mirrors: %t; %d workers", j.worldSize, j.min, j.max, j.steps, j.every, j.mirror, n)
	w.elect()
	for i := range n {
		w.start(fmt.Sprintf("w%d", i), fmt.Sprintf("n%d", i%2))
	}
	w.submit()
}

// submit asks for the job until somebody says that it is admitted.
func (w *world) submit() {
	w.client(func(c *coordinator) bool {
		r, err := w.propose(c, fsm.Entry{Reason: "submitted", Decision: &fsm.Submit{
			Request: "request", Name: "job", Spec: []byte(`{}`), WorldSize: w.job.worldSize, WorkersMin: w.job.min, WorkersMax: w.job.max,
			Class: "auto", Store: "store", Mirror: w.job.mirror,
		}})
		if err != nil || c.reign == nil {
			return false
		}
		if r.Err != nil {
			_ = w.wrong("the job was refused: %v", r.Err)
		}
		w.job.id = r.Job
		return true
	})
}

// client asks the leader for something until it answers.
func (w *world) client(ask func(c *coordinator) bool) {
	w.after(w.between(10*time.Millisecond, 100*time.Millisecond), func() {
		if w.log.leader >= 0 {
			if c := w.coordinators[w.log.leader]; c.reign != nil && ask(c) {
				if c.reign != nil {
					c.reign.wake()
				}
				return
			}
		}
		w.client(ask)
	})
}

// logged looks at what has been decided.
func (w *world) logged(c *coordinator, before *fsm.Job, e fsm.Entry) {
	switch d := e.Decision.(type) {
	case *fsm.Complete:
		w.job.done = true
	case *fsm.Remove:
		for _, p := range w.workers {
			if p.name == d.Worker && p.incarnation == d.Incarnation && p.up {
				w.count("given up and lives")
			}
		}
	case *fsm.Generate:
		if before != nil && before.Ended().Generation > 0 {
			w.recovered(c, before, d)
		}
		w.milestone("generated", nil)
	}
}

// recovered notes what a generation was recovered from, and whether as much was kept as
// could be.
func (w *world) recovered(c *coordinator, before *fsm.Job, d *fsm.Generate) {
	ended := before.Ended()
	seen, _ := c.reign.ForPlacement(c.clock(), c.state, storePatience, recoveryConfig)
	heard := seen.Sealed[before.ID]
	reports := []protocol.Report{{Step: ended.From}}
	if ended.Live != nil {
		reports[0].Decision = ended.Live.Decision
	}
	high, low, lost, missing := int64(-1), int64(1)<<62, 0, false
	for _, place := range ended.Placement {
		p := w.process(place.Worker, place.Incarnation)
		if !p.up || !c.state.Is(p.name, p.incarnation) {
			lost++
			continue
		}
		h, ok := heard[p.name]
		// Who may leave before long, or gave up so often that nobody relies on it, may be
		// left behind with what it holds.
		missing = missing || c.state.Workers[p.name].Draining || recoveryConfig.Rests(c.clock(), seen.GaveUp[before.ID][p.name])
		if !ok || h.Generation != ended.Generation || h.Incarnation != p.incarnation || p.frozen || p.cutOff {
			missing = true // it was waited for long enough
			continue
		}
		h.Order = int(h.At.Sub(epoch))
		reports = append(reports, h.Report)
		high, low = max(high, h.Step), min(low, h.Step)
	}
	if d.Live == nil {
		w.count("from a checkpoint")
		w.setBack(c, before, d, reports, missing, lost)
		return
	}
	w.count("live")
	if d.Live.Target > d.From {
		w.count("live with steps that no checkpoint has")
	}
	switch {
	case w.decidedMost > d.Live.Target:
		w.count(RowDeadKnow)
	case low < high && d.Live.Target == high:
		w.count(RowPartly)
	case lost > 0 && d.Live.Target > ended.From:
		w.count(RowNextStep)
	case lost > 0:
		w.count(RowBeforeDecision)
	}
	w.decidedMost = d.Live.Target
	if lost > 0 && w.entered[ended.Generation] < len(ended.Placement) {
		w.count(RowAgain)
	}
	if w.leaderWas != w.log.term {
		w.count(RowLeaderToo)
	}
	w.leaderWas = w.log.term
}

// setBack checks that a job which begins from a checkpoint could not have gone on live.
func (w *world) setBack(c *coordinator, before *fsm.Job, d *fsm.Generate, reports []protocol.Report, missing bool, lost int) {
	w.leaderWas, w.decidedMost = w.log.term, d.From
	owners := make([]string, before.WorldSize)
	for _, p := range before.Ended().Placement {
		for _, r := range p.Ranks {
			owners[r] = p.Worker
		}
	}
	plan, err := protocol.Recover(before.WorldSize, owners, reports)
	if uncovered := (*protocol.Uncovered)(nil); errors.As(err, &uncovered) {
		switch {
		case uncovered.Apart:
			w.count("held, but apart")
		case lost > 0:
			w.count(RowCheckpoint)
		}
		if lost == 1 && !missing && !uncovered.Apart && w.protected == before.Ended().Generation {
			_ = w.wrong("generation %d was protected and lost one worker, and ranks %v are gone", w.protected, uncovered.Ranks)
		}
		return
	}
	if err != nil {
		_ = w.wrong("the reports of generation %d contradict each other: %v", before.Ended().Generation, err)
		return
	}
	if plan.Target > d.From && !missing {
		_ = w.wrong("generation %d begins from the checkpoint of step %d, and %v hold all of step %d", d.Generation, d.From, plan.Members, plan.Target)
	}
}

// begins notes that a worker begins a generation.
func (w *world) begins(h *host) {
	if newest := w.newest(); newest != nil && h.gen < newest.Generation {
		w.count("ordered into an old generation")
	}
}

// newest is the job as the log has it.
func (w *world) newest() *fsm.Job {
	var best *coordinator
	for _, c := range w.coordinators {
		if best == nil || c.state.Index > best.state.Index {
			best = c
		}
	}
	return best.state.Jobs[w.job.id]
}

// decides notes a decision, and that nobody has been told to go on without it.
func (w *world) decides(h *host, step int64) {
	w.decidedMost = max(w.decidedMost, step)
	if j := w.newest(); j != nil && j.Generation > h.gen && j.Live != nil && step > j.Live.Target+1 {
		_ = w.wrong("%v decides step %d in generation %d, while generation %d went on from step %d", h.p, step, h.gen, j.Generation, j.Live.Target)
	}
}

// describe says how things stand, for one who looks for what went wrong.
func (w *world) describe() string {
	var text strings.Builder
	fmt.Fprintf(&text, "leader %d", w.log.leader)
	if j := w.newest(); j != nil {
		fmt.Fprintf(&text, ", %s %s generation %d (%s)", j.ID, j.Phase, j.Generation, j.Reason)
	}
	for _, p := range w.workers {
		if p.up {
			fmt.Fprintf(&text, ", %v runs %v", p, p.state.Running())
		}
	}
	if w.log.leader >= 0 {
		if r := w.coordinators[w.log.leader].reign; r != nil {
			fmt.Fprintf(&text, ", waits: %v %v", r.Wants().Notes, r.waiting)
		}
	}
	return text.String()
}

// running lists the processes that host ranks now.
func (w *world) running() []*process {
	return slices.DeleteFunc(w.living(), func(p *process) bool { return p.host == nil || p.host.over })
}

// living lists the processes that live and are not frozen.
func (w *world) living() []*process {
	return slices.DeleteFunc(slices.Clone(w.workers), func(p *process) bool { return !p.up || p.frozen })
}
