package recovery

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/protocol"
	"github.com/skein-ml/skein/shard"
)

// next begins the next generation of a running job, or sends the job back to the queue.
func (d *decider) next(j *fsm.Job, why string, planned bool) {
	newest, _ := j.Newest()
	live, lack := d.live(j, planned)
	if live == nil && lack.wait != "" {
		d.note(j, "%s; %s", why, lack.wait)
		return
	}
	// State that only leavers hold is worth nothing once its step is published.
	if live != nil && (!live.unwanted || newest.Step < live.plan.Target) {
		d.generate(j, live, why)
		return
	}
	if lack.why != "" {
		why += "; " + lack.why
	}
	d.again(j, newest, why)
}

// again begins from the newest checkpoint, with those who are left first.
func (d *decider) again(j *fsm.Job, newest fsm.Checkpoint, why string) {
	var left []*fsm.Worker
	for _, w := range d.s.ByName() {
		if d.left(j, w) && d.usable(j, w) {
			left = append(left, w)
		}
	}
	could := append(fsm.Spread(left), fsm.Spread(d.joiners(j, left))...)
	all := d.Apart.Together(nil, could, j.WorkersMin)
	use := j.Use(len(all))
	if use == 0 {
		d.suspend(j, "back in the queue", fmt.Sprintf("%d of at least %d workers are left: %s", len(all), j.WorkersMin, why))
		return
	}
	placement, err := j.Cut(all[:use])
	if err != nil { // the bounds of a job are within its world size
		panic("recovery: " + err.Error())
	}
	for _, p := range placement {
		d.takes(j, p.Worker)
	}
	d.Entries = append(d.Entries, fsm.Entry{
		Reason:   fmt.Sprintf("goes on as generation %d from the checkpoint of step %d on %s: %s", j.Generation+1, newest.Step, fsm.Describe(placement), why) + d.though(j, placement) + d.Apart.Without(could, all),
		Decision: &fsm.Generate{Job: j.ID, Generation: j.Generation + 1, From: newest.Step, Placement: placement},
	})
}

// takes gives a worker to a job.
func (d *decider) takes(j *fsm.Job, worker string) {
	d.busy[worker] = j.ID
	delete(d.Decision.Warm, worker)
}

// future is how a job goes on live.
type future struct {
	plan     protocol.Plan
	ring     []holder
	even     bool
	unwanted bool // somebody goes on only because nobody else holds its state
}

// lack is why a job does not go on live.
type lack struct {
	wait string // for now: this is waited for
	why  string // for good
}

// live finds out whether and how the job goes on from what its workers hold.
func (d *decider) live(j *fsm.Job, planned bool) (*future, lack) {
	reports := d.reports(j)
	if len(reports) == 0 || !j.Sound() {
		return nil, lack{}
	}
	plan, err := d.recover(j, reports)
	newest, _ := j.Newest()
	if uncovered, ok := errors.AsType[*protocol.Uncovered](err); ok {
		if who := d.mayReturn(j); who != "" {
			return nil, lack{wait: fmt.Sprintf("%v; waits a moment for %s", uncovered, who), why: uncovered.Error()}
		}
		if !anything(reports) { // it had not begun; that is no news
			return nil, lack{}
		}
		return nil, lack{why: uncovered.Error()}
	}
	switch {
	case err != nil:
		return nil, lack{why: err.Error()}
	case plan.Target < newest.Step:
		return nil, lack{why: fmt.Sprintf("what is left is of step %d", plan.Target)}
	}
	f := &future{plan: plan, even: planned}
	all := d.holders(j, reports, plan)
	f.ring = stay(j.WorldSize, all, max(j.WorkersMax, 1))
	if f.ring == nil {
		return nil, lack{why: "what is left is on workers that cannot go on"}
	}
	if n := len(f.ring); n < j.WorkersMin && plan.Target > newest.Step && len(all) > n && len(all) >= j.WorkersMin && n+len(d.joiners(j, workersOf(f.ring))) < j.WorkersMin {
		// Without those who want to leave it cannot run, and it has steps that are in no
		// checkpoint: they stay until there is one.
		f.ring = all
	}
	n := len(f.ring)
	for _, h := range f.ring {
		f.unwanted = f.unwanted || h.unwanted
	}
	f.unwanted = f.unwanted || n > j.WorkersMax
	// A cold joiner makes the others wait, so it comes in only where it is needed to go on
	// at all.
	joiners := fsm.Spread(d.joiners(j, workersOf(f.ring)))
	if n >= j.WorkersMin {
		joiners = d.ready(j, joiners)
	}
	joiners = d.Apart.Together(workersOf(f.ring), joiners, j.WorkersMin)
	use := j.Use(n + len(joiners))
	if use == 0 {
		return nil, lack{}
	}
	if (planned || n < j.WorkersMin) && use > n {
		var more []holder
		for _, w := range joiners[:use-n] {
			more = append(more, holder{Worker: w})
		}
		f.ring = ringOf(j.WorldSize, f.ring, more, true)
	}
	return f, lack{}
}

// generate decides a live generation.
func (d *decider) generate(j *fsm.Job, f *future, why string) {
	newest, _ := j.Newest()
	sizes, moved := blocks(j.WorldSize, f.ring, f.even)
	placement, sources := places(f.ring, sizes, f.plan.Sources)
	for _, p := range j.Placement {
		delete(d.busy, p.Worker)
	}
	for _, p := range placement {
		d.takes(j, p.Worker)
	}
	text := fmt.Sprintf("goes on live as generation %d from step %d on %s", j.Generation+1, f.plan.Target, fsm.Describe(placement))
	switch {
	case moved == 1:
		text += ", the state of 1 rank moves"
	case moved > 1:
		text += fmt.Sprintf(", the state of %d ranks moves", moved)
	}
	d.Entries = append(d.Entries, fsm.Entry{
		Reason: text + ": " + why + d.though(j, placement),
		Decision: &fsm.Generate{Job: j.ID, Generation: j.Generation + 1, From: newest.Step, Placement: placement, Live: &fsm.Live{
			After: j.Ended().Generation, Target: f.plan.Target, Decision: f.plan.Decision, Sources: sources,
		}},
	})
}

// recover asks the protocol for the step to go on from. What the log knows of it counts as
// a report: all that had heard of it may be gone.
func (d *decider) recover(j *fsm.Job, reports []Sealed) (protocol.Plan, error) {
	ended := j.Ended()
	owners := make([]string, j.WorldSize)
	for _, p := range ended.Placement {
		for _, r := range p.Ranks {
			owners[r] = p.Worker
		}
	}
	known := protocol.Report{Step: ended.From}
	if ended.Live != nil {
		known.Decision = ended.Live.Decision
	}
	all := []protocol.Report{known}
	inTime := slices.Clone(reports)
	slices.SortStableFunc(inTime, func(a, b Sealed) int { return a.At.Compare(b.At) })
	for i, r := range inTime {
		r.Order = i + 1
		all = append(all, r.Report)
	}
	return protocol.Recover(j.WorldSize, owners, all)
}

// holders are the members of a plan with what each holds, in the order of the ring. Who
// leaves, or cannot be relied on, is unwanted.
func (d *decider) holders(j *fsm.Job, reports []Sealed, plan protocol.Plan) []holder {
	var list []holder
	for _, name := range plan.Members {
		i := slices.IndexFunc(reports, func(r Sealed) bool { return r.Worker == name })
		w := d.s.Workers[name]
		if i < 0 || w == nil || !d.Alive[name] || d.busy[name] != "" && d.busy[name] != j.ID || d.stuck(name) {
			continue
		}
		if w.Draining && d.now.Sub(d.Draining[name]) > d.c.DrainPatience { // it goes, whatever it holds
			continue
		}
		h := holder{Worker: w, unwanted: !d.usable(j, w) || d.gaveUp(j, name) && j.Nonce.Object != "" && !d.Reads[j.ID][name]}
		held := reports[i].Held
		if reports[i].Step < plan.Target {
			held = reports[i].Summed
		}
		for _, r := range held {
			h.gives |= 1 << r
		}
		list = append(list, h)
	}
	return list
}

// anything tells whether any worker holds anything.
func anything(reports []Sealed) bool {
	return slices.ContainsFunc(reports, func(r Sealed) bool { return len(r.Held) > 0 })
}

// mayReturn names workers of the generation that have been given up, and could come back
// with what they hold; empty if there are none, or enough was waited for them.
func (d *decider) mayReturn(j *fsm.Job) string {
	at, known := d.Ending[j.ID]
	var list []string
	for _, p := range j.Ended().Placement {
		since := later(at, d.LostAt[p.Worker])
		if d.s.Workers[p.Worker] == nil && (!known || d.now.Sub(since) < d.c.LostStateWait) { // not started again, as far as anybody knows
			list = append(list, p.Worker)
		}
	}
	return strings.Join(list, ", ")
}

// usable tells whether a worker may go on with the job.
func (d *decider) usable(j *fsm.Job, w *fsm.Worker) bool {
	return d.able(j, w) && !d.without(j)[w.Name]
}

// able tells whether a worker could go on with the job, whatever its copies came to.
func (d *decider) able(j *fsm.Job, w *fsm.Worker) bool {
	return d.Alive[w.Name] && !w.Draining && w.Has(j.Class) && w.Fits(j) && !d.c.Rests(d.now, d.GaveUp[j.ID][w.Name]) && !d.stuck(w.Name)
}

// left tells whether a worker has ranks in the generation that ends, and has not given up.
func (d *decider) left(j *fsm.Job, w *fsm.Worker) bool {
	p := j.Place(w.Name)
	return p != nil && p.Incarnation == w.Incarnation && !d.gaveUp(j, w.Name)
}

// without are the workers that the job does without, because their copies differed from
// those of others again and again.
func (d *decider) without(j *fsm.Job) map[string]bool {
	if len(j.Doubts) == 0 {
		return nil
	}
	out, known := d.leftOut[j.ID]
	if known {
		return out
	}
	out = map[string]bool{}
	here, others := map[string]int{}, 0
	for _, w := range d.s.ByName() {
		times := d.c.Doubts(d.now, j, w.Name)
		if out[w.Name] = times > 0; !d.able(j, w) || !d.left(j, w) && !d.open(j, w) {
			continue
		}
		if times > 0 {
			here[w.Name] = times
		} else {
			others++
		}
	}
	for _, w := range j.Spared(here, others) {
		delete(out, w)
	}
	d.leftOut[j.ID] = out
	return out
}

// though says which workers of a placement are spared; empty if none is.
func (d *decider) though(j *fsm.Job, placement []fsm.Place) string {
	var spared []string
	for _, p := range placement {
		if d.c.Doubts(d.now, j, p.Worker) > 0 && !d.without(j)[p.Worker] {
			spared = append(spared, p.Worker)
		}
	}
	return fsm.Though(spared)
}

// gaveUp tells whether a worker gave up the generation by itself.
func (d *decider) gaveUp(j *fsm.Job, worker string) bool {
	g := d.GaveUp[j.ID][worker]
	return g.Times > 0 && g.Generation == j.Ended().Generation
}

// joiners are the workers without work that could enter the job beside some others, by
// name. A worker of the job that has lost what it held is as good as another one. One that
// keeps steps for another job enters only where that comes later in the queue, and this one
// has too few workers without it.
func (d *decider) joiners(j *fsm.Job, except []*fsm.Worker) []*fsm.Worker {
	var list, keepers []*fsm.Worker
	for _, w := range d.s.ByName() {
		switch {
		case slices.Contains(except, w), !d.usable(j, w), !d.open(j, w):
		case d.Keeps[w.Name] != "" && d.Keeps[w.Name] != j.ID:
			keepers = append(keepers, w)
		default:
			list = append(list, w)
		}
	}
	if len(except)+len(list) < j.WorkersMin {
		list = append(list, keepers...)
	}
	return list
}

// open tells whether a worker has nothing that keeps it from the job: it has read its store,
// now or, if it has ranks of the job, for the leader that gave it those; and nobody who comes
// first has it.
func (d *decider) open(j *fsm.Job, w *fsm.Worker) bool {
	busy, promised := d.busy[w.Name], d.Promised[w.Name]
	switch {
	case j.Nonce.Object != "" && !d.Reads[j.ID][w.Name] && !d.left(j, w):
	case busy != "" && busy != j.ID, busy == "" && d.Strays[w.Name].Task != "", promised != "" && promised != j.ID:
	default:
		return !d.kept(j, w.Name)
	}
	return false
}

// ready are those of the workers that enter the job without delay.
func (d *decider) ready(j *fsm.Job, list []*fsm.Worker) []*fsm.Worker {
	return slices.DeleteFunc(list, func(w *fsm.Worker) bool { return d.Seen.Warm[w.Name] != j.ID })
}

func workersOf(ring []holder) []*fsm.Worker {
	var list []*fsm.Worker
	for _, h := range ring {
		list = append(list, h.Worker)
	}
	return list
}

// parked looks at a job that waits with its state in the memory of workers: it goes on live
// as soon as enough workers are free, in its turn.
func (d *decider) parked(j *fsm.Job) {
	if !j.Sound() {
		return
	}
	for _, p := range j.Parked.Placement {
		if by := d.Promised[p.Worker]; by != "" && by != j.ID {
			return // it is another job's turn
		}
	}
	if _, known := d.Ending[j.ID]; !known {
		d.Hold[j.ID] = true // their first reports are on their way
	}
	if note := d.awaited(j); note != "" {
		d.Hold[j.ID] = true
		d.note(j, "%s", note)
		return
	}
	f, lack := d.live(j, false)
	if lack.wait != "" {
		d.Hold[j.ID] = true
		d.note(j, "%s", lack.wait)
		return
	}
	newest, _ := j.Newest()
	if f == nil || f.unwanted && f.plan.Target == newest.Step || len(f.ring) < j.WorkersMin || f.plan.Target == newest.Step && shard.UsefulWorkers(j.WorldSize, len(f.ring)) < len(f.ring) {
		return // the scheduler does as well
	}
	d.generate(j, f, "enough workers are free again")
}
