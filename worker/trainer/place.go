package trainer

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/shard"
)

// Place gives the trainer its place among the workers of a generation. The zero Placement
// hosts all ranks here. With mirror set, it keeps a copy of the optimizer state of the
// previous worker's ranks, unless the stage gives it everybody's anyway.
//
// What the trainer has stays: the state of ranks that go elsewhere too, until the next step
// is applied, because it may have to be sent there. One of several workers is connected to
// the others by [Trainer.Join].
func (t *Trainer) Place(p shard.Placement, worker int, mirror bool) error {
	var err error
	if p.WorldSize() == 0 {
		if p, err = shard.EvenPlacement(t.cfg.WorldSize, 1); err != nil {
			return err
		}
		worker = 0
	}
	_ = t.stream.Record().Wait() // nothing that is freed here is in use; an error shows again
	t.unlink()
	t.summed, t.asks, t.laggards = 0, 0, laggards{}
	t.cfg.Placement, t.cfg.Worker, t.cfg.Mirror = p, worker, mirror && !t.replicated()
	if err := t.placeRanks(p.Ranks(worker)); err != nil {
		return err
	}
	if err := t.model.SetLanes(t.lanes()); err != nil {
		return err
	}
	t.placeTwins()
	if t.mirrors = nil; t.cfg.Mirror {
		t.mirrors = t.twins
	}
	for r := range shard.Rank(t.cfg.WorldSize) {
		if t.segments[r] == nil && t.keeps(r) {
			if t.segments[r], err = t.newSegment(r); err != nil {
				return err
			}
		}
	}
	t.filling = nil
	clear(t.fresh)
	t.coming, t.inSlot = -1, [layerSlots]int{}
	t.ctx = nil // that of a generation that is over
	if !t.Alone() {
		t.peers = unlinked{}
		return nil
	}
	return t.newLocal()
}

// placeRanks makes the hosted ranks those listed. A rank that stays keeps its gradients.
func (t *Trainer) placeRanks(ids []shard.Rank) error {
	was := t.ranks
	t.ranks = nil
	for _, r := range was {
		if !slices.Contains(ids, r.id) {
			r.mem.free()
			continue
		}
		r.took = 0
		t.ranks = append(t.ranks, r)
	}
	for _, id := range ids {
		if t.hosts(id) {
			continue
		}
		r, err := t.newRank(id)
		if err != nil {
			return err
		}
		t.ranks = append(t.ranks, r)
	}
	slices.SortFunc(t.ranks, func(a, b *rank) int { return int(a.id - b.id) })
	return nil
}

// unlink forgets the other workers.
func (t *Trainer) unlink() {
	switch p := t.peers.(type) {
	case *linked:
		p.mem.free()
	case *local:
		p.mem.free()
	}
	t.peers = sealed{}
}

// Held is what a trainer has when nothing of it runs.
type Held struct {
	Step     int64  // that everything held is at
	Decision []byte // the record D(Step), encoded; nil if the trainer began at Step
	Ranks    []shard.Rank
	Summed   []shard.Rank // of Ranks: those whose R(Step+1) is complete here
	// Computed are ranks whose own gradients of Step+1 were completed since the trainer was
	// placed, and Took is the time that it took.
	Computed []shard.Rank
	Took     time.Duration
}

// Seal brings the trainer to rest after a step, or after one that failed, and says what it
// holds. The link must be closed, and nobody may read the state. A decision that has arrived
// is applied: who knows it may have told others. An error means that nothing is left to use.
func (t *Trainer) Seal() (Held, error) {
	if err := t.stream.Record().Wait(); err != nil {
		return Held{}, err
	}
	t.held = nil
	if t.pending == nil {
		if l, ok := t.peers.(*linked); ok && l.link != nil && t.summed == t.step+1 {
			if d, ok := l.link.Decided(); ok && d.Step == t.summed {
				t.pending = &d
			}
		}
	}
	t.unlink()
	if t.pending != nil {
		if err := t.apply(*t.pending); err != nil {
			return Held{}, err
		}
	}
	h := Held{Step: t.step, Ranks: t.Ready()}
	if t.last != nil {
		h.Decision = allreduce.AppendDecision(nil, *t.last)
	}
	if t.summed == t.step+1 {
		for _, r := range h.Ranks {
			if t.keeps(r) {
				h.Summed = append(h.Summed, r)
			}
		}
	}
	for _, r := range t.ranks {
		if r.done == t.step+1 && r.took > 0 {
			h.Computed, h.Took = append(h.Computed, r.id), h.Took+r.took
		}
	}
	return h, nil
}

// Hosts is how many ranks the trainer has been placed with.
func (t *Trainer) Hosts() int { return len(t.ranks) }

// StepTokens is how many tokens, padding left out, the hosted ranks computed in the
// trainer's last step.
func (t *Trainer) StepTokens() (n int64) {
	for _, r := range t.ranks {
		if r.at == t.step {
			n += r.read
		}
	}
	return n
}

// Ready lists the ranks whose state is here, at the trainer's step.
func (t *Trainer) Ready() []shard.Rank {
	var ready []shard.Rank
	for r, s := range t.segments {
		if s != nil && s.ready {
			ready = append(ready, shard.Rank(r))
		}
	}
	return ready
}

// Enter brings a sealed trainer to the step that a generation goes on from: it is there, or
// one step behind with all that the decision needs.
func (t *Trainer) Enter(step int64, decision []byte) error {
	if t.step == step {
		return nil
	}
	if t.step != step-1 || t.summed != step {
		return fmt.Errorf("the job goes on from step %d, and this worker is at step %d, summed up to %d", step, t.step, t.summed)
	}
	d, err := decisionOf(step, decision)
	if err != nil {
		return err
	}
	return t.apply(d)
}

func decisionOf(step int64, b []byte) (allreduce.Decision, error) {
	d, err := allreduce.DecodeDecision(b)
	if err == nil && d.Step != step {
		err = fmt.Errorf("it is of step %d", d.Step)
	}
	if err != nil {
		return d, fmt.Errorf("decision of step %d: %w", step, err)
	}
	return d, nil
}

// Forget leaves the trainer without state, at a step that others bring it to. The decision
// is that step's; of a step that a checkpoint begins with there is none, and taken, which
// the checkpoint says, counts.
func (t *Trainer) Forget(step, taken int64, decision []byte) error {
	t.last = nil
	if len(decision) > 0 {
		d, err := decisionOf(step, decision)
		if err != nil {
			return err
		}
		t.last, taken = &d, d.Taken
	}
	for _, s := range t.segments {
		if s != nil {
			s.ready = false
		}
	}
	for _, r := range t.ranks {
		r.done = 0
	}
	t.step, t.taken, t.summed, t.pending = step, taken, 0, nil
	return nil
}

// LastDecision is the record of the trainer's step; ok is false where it began.
func (t *Trainer) LastDecision() (d allreduce.Decision, ok bool) {
	if t.last == nil {
		return d, false
	}
	return *t.last, true
}

// Mirrors tells whether sums go to mirrors before the vote.
func (t *Trainer) Mirrors() bool { return t.cfg.Mirror }

// GathersFirst tells whether sums go to everybody before the vote.
func (t *Trainer) GathersFirst() bool { return t.replicated() }

// Protected tells whether every rank's state that is hosted or mirrored here stands twice,
// as far as this worker has a part in it.
func (t *Trainer) Protected() bool {
	if t.Alone() || !t.replicated() && len(t.mirrors) == 0 {
		return false
	}
	return t.each(func(s *segment) error {
		if t.keeps(s.rank) && !s.ready {
			return errUnlinked
		}
		return nil
	}) == nil
}

// Move is the optimizer state of a rank on its way to a worker that needs it.
type Move struct {
	Rank     shard.Rank
	From, To int // workers
}

// Moves says what state has to go where before a generation can begin, and what fills the
// mirrors meanwhile. has lists by worker the ranks whose state it has; source is by rank the
// worker to take it from. It is the same on every worker.
func (t *Trainer) Moves(has [][]shard.Rank, source []int) (hosts, mirrors []Move) {
	p := t.cfg.Placement
	n := p.Workers()
	if t.replicated() {
		return replicas(p, has, source), nil
	}
	for r := range shard.Rank(p.WorldSize()) {
		host, from := p.Worker(r), source[r]
		if !slices.Contains(has[host], r) {
			hosts = append(hosts, Move{r, from, host})
		}
		if to := (host + 1) % n; t.cfg.Mirror && n > 1 && !slices.Contains(has[to], r) {
			if slices.Contains(has[host], r) {
				from = host
			}
			mirrors = append(mirrors, Move{r, from, to})
		}
	}
	return hosts, mirrors
}

// replicas are the moves for an optimizer that every worker has whole: what each of them lacks.
func replicas(p shard.Placement, has [][]shard.Rank, source []int) []Move {
	var moves []Move
	for r := range shard.Rank(p.WorldSize()) {
		for w := range p.Workers() {
			if !slices.Contains(has[w], r) {
				moves = append(moves, Move{r, source[r], w})
			}
		}
	}
	return moves
}

// Transfer makes moves, and returns when all that comes here has come. Then [Trainer.Spread]
// makes working weights of it.
func (t *Trainer) Transfer(ctx context.Context, moves []Move) error {
	l, err := t.linked()
	if err != nil {
		return err
	}
	if err := l.sendMoves(moves); err != nil {
		return err
	}
	if err := l.receiveMoves(ctx, moves); err != nil {
		return err
	}
	if err := l.link.WaitSent(ctx); err != nil {
		return err
	}
	l.forgetState() // before the others go on: they may then send what fills mirrors
	// Nobody begins before all are here: what a neighbour sends of the next phase would
	// stand in the way of state that is still coming.
	_, err = l.link.Exchange(ctx, "all state is here", nil)
	return err
}

// Spread makes the working weights of what is hosted here, for all workers.
func (t *Trainer) Spread() error {
	for _, s := range t.segments {
		if s != nil && t.applies(s.rank) && !s.ready {
			return fmt.Errorf("nobody has brought the state of rank %d", s.rank)
		}
	}
	return t.refresh()
}

// Fill makes moves beside the next step, which is not decided before they are done.
func (t *Trainer) Fill(moves []Move) error {
	l, err := t.linked()
	if err != nil {
		return err
	}
	t.filling = moves
	return l.sendMoves(moves)
}

func (t *Trainer) linked() (*linked, error) {
	l, ok := t.peers.(*linked)
	if !ok || l.link == nil {
		return nil, errUnlinked
	}
	return l, nil
}
