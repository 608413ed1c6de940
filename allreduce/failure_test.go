package allreduce

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// These tests kill a worker at every point of a step and look at what the survivors hold
// when their links have broken: the claims that recovery rests on (DESIGN.md).

// moment is a point of a step at which a worker dies.
type moment int

const (
	never moment = iota
	beforeBegin
	inCompute
	reduced
	mirrorSent
	mirrorHere
	voteCast
	deciding // on rank 0's worker: it has made the decision and sent it to nobody
	decided
	inGather
	momentEnd
)

var errKilled = errors.New("killed by the test")

// die ends a worker's connections as the kernel does for a dead process.
func (w *testWorker) die() error {
	w.link.mu.Lock() // it says nothing between the two
	defer w.link.mu.Unlock()
	w.link.in.abort()
	w.link.out.abort()
	return errKilled
}

// mortal takes steps until its link breaks or its moment comes.
type mortal struct {
	*testWorker
	want    [][]byte
	vouched atomic.Int64 // the last step whose sums it has looked at, its own and those it mirrors
}

func (m *mortal) steps(from, to int64, at moment, when int64) error {
	for step := from; step < to; step++ {
		last := never
		if step == when {
			last = at
		}
		if err := m.oneStep(step, last); err != nil {
			return err
		}
	}
	return nil
}

// oneStep takes a step, or dies in it.
func (m *mortal) oneStep(step int64, last moment) error {
	w, ctx := m.testWorker, m.t.Context()
	buckets := w.c.Table.Buckets()
	dies := func(now moment) bool { return last == now }
	if dies(beforeBegin) {
		return w.die()
	}
	if err := w.link.Begin(ctx, step); err != nil {
		return err
	}
	for b := range buckets {
		for _, r := range w.ranks() {
			if dies(inCompute) && b == 1 {
				return w.die()
			}
			w.link.Ready(r, b)
		}
	}
	for b := range buckets {
		if err := w.link.WaitReduced(ctx, b); err != nil {
			return err
		}
	}
	if dies(reduced) {
		return w.die()
	}
	for b := range buckets {
		w.link.MirrorReady(b)
	}
	if dies(mirrorSent) {
		return w.die()
	}
	for b := range buckets {
		if err := w.link.WaitMirrored(ctx, b); err != nil {
			return err
		}
	}
	if err := m.vouch(step); err != nil {
		return err
	}
	switch last {
	case mirrorHere:
		return w.die()
	case voteCast:
		ended, cancel := context.WithCancel(ctx)
		cancel()
		_, _ = w.link.Vote(ended, w.votes(step))
		return w.die()
	}
	if _, err := w.link.Vote(ctx, w.votes(step)); err != nil {
		return err
	}
	if dies(decided) {
		return w.die()
	}
	return m.gatherAndForget(step, dies(inGather))
}

// vouch looks at what a vote says: that the sums are here.
func (m *mortal) vouch(step int64) error {
	for b := range m.want {
		for _, rank := range m.ranks() {
			p := m.c.Table.Bucket(b).Piece(rank)
			if n, _ := differing(m.sums[b][4*p.Lo:4*p.Hi], m.want[b][4*p.Lo:4*p.Hi]); n != 0 {
				return fmt.Errorf("step %d, bucket %d, piece %d: %d elements of its owner differ", step, b, rank, n)
			}
		}
	}
	if err := m.checkMirror(step, m.want); err != nil {
		return err
	}
	m.vouched.Store(step)
	return nil
}

// gatherAndForget ends a step, so that nothing of it can be taken for the next one's.
func (m *mortal) gatherAndForget(step int64, dies bool) error {
	for b := range m.want { // before others' pieces may come
		m.fill(b, step)
	}
	if err := m.link.BeginGather(m.t.Context(), step); err != nil {
		return err
	}
	for b := range m.want {
		if dies && b == 1 {
			return m.die()
		}
		m.link.GatherReady(b)
	}
	for b := range m.want {
		if err := m.link.WaitGathered(m.t.Context(), b); err != nil {
			return err
		}
	}
	for _, s := range m.sums {
		clear(s)
	}
	return nil
}

// struck is what is left of a ring in which a worker died.
type struck struct {
	survivors []*mortal
	decided   []int64 // by survivor: the step of the last decision that it knows
}

// strike runs a ring from step 5 and kills a worker at a moment of a step, or, if the
// moment is never, some time after it has seen the sums of the step.
func strike(t *testing.T, victim int, at moment, step int64, after time.Duration) struck {
	t.Helper()
	const workers = 4
	var mortals []*mortal
	ring := newWorkers(t, ringOptions{worldSize: 8, workers: workers, wire: WireBF16, elem: 4, mirror: true, chunk: 600, elems: []int64{3000, 700, 1200}, seed: 3})
	if at == deciding {
		decide := ring[0].c.Decide
		ring[0].c.Decide = func(votes []Vote) (Decision, error) {
			d, err := decide(votes)
			if d.Step == step {
				_ = ring[0].die()
			}
			return d, err
		}
	}
	connect(t, ring)
	want := localSums(t, ring[0])
	var wg sync.WaitGroup
	errs := make([]error, workers)
	for i, w := range ring {
		m := &mortal{testWorker: w, want: want}
		m.vouched.Store(4)
		mortals = append(mortals, m)
		wg.Go(func() {
			when := int64(0)
			if i == victim {
				when = step
			}
			errs[i] = m.steps(5, 1<<40, at, when)
		})
	}
	if at == never {
		until(t, func() bool { return mortals[victim].vouched.Load() >= step })
		time.Sleep(after)
		_ = ring[victim].die()
	}
	wg.Wait()
	closeAll(ring)
	for i, err := range errs {
		t.Logf("worker %d ended with: %v", i, err) // seen if the test fails
	}
	var s struck
	for i, m := range mortals {
		if i == victim {
			continue
		}
		if broken, ok := errors.AsType[*LinkError](errs[i]); !ok || broken.Accused < 0 {
			t.Errorf("worker %d: %v", i, errs[i])
		}
		d, known := m.link.Decided()
		if !known {
			d.Step = 4
		}
		s.survivors, s.decided = append(s.survivors, m), append(s.decided, d.Step)
	}
	s.check(t)
	return s
}

// check holds for whatever has happened: if anybody knows a decision, every survivor has
// seen the sums of its own pieces and of those that it mirrors. With one worker dead that
// is every piece.
func (s struck) check(t *testing.T) {
	t.Helper()
	newest := s.newest()
	for i, m := range s.survivors {
		if m.vouched.Load() < newest {
			t.Errorf("step %d is decided, and %s holds the sums of step %d", newest, m.link.name(m.c.Worker), m.vouched.Load())
		}
		if s.decided[i] < newest-1 {
			t.Errorf("survivors know decisions %v", s.decided)
		}
	}
}

func (s struck) newest() int64 {
	newest := s.decided[0]
	for _, d := range s.decided {
		newest = max(newest, d)
	}
	return newest
}

// TestBeforeItsVoteNobodyHasTheDecision is the row "compute, reduce, mirror, vote".
func TestBeforeItsVoteNobodyHasTheDecision(t *testing.T) {
	for victim := range 4 {
		for at := beforeBegin; at < voteCast; at++ {
			if s := strike(t, victim, at, 6, 0); s.newest() != 5 {
				t.Errorf("worker %d at moment %d: decisions %v", victim, at, s.decided)
			}
		}
	}
}

// TestADecisionThatOnlyTheDeadKnewIsKnownToNobody is the row "decided, only the dead know".
func TestADecisionThatOnlyTheDeadKnewIsKnownToNobody(t *testing.T) {
	s := strike(t, 0, deciding, 6, 0)
	if s.newest() != 5 {
		t.Errorf("decisions %v", s.decided)
	}
	for _, m := range s.survivors { // and all that it would have needed is there
		if m.vouched.Load() != 6 {
			t.Errorf("%s holds the sums of step %d", m.link.name(m.c.Worker), m.vouched.Load())
		}
	}
}

// TestWhereASurvivorHasTheDecisionEverySumIsWithSurvivors is the row "a survivor has the
// decision; apply or gather partial".
func TestWhereASurvivorHasTheDecisionEverySumIsWithSurvivors(t *testing.T) {
	for victim := range 4 {
		for _, at := range []moment{voteCast, decided, inGather} {
			s := strike(t, victim, at, 6, 0)
			if known := s.newest(); known > 6 || at == decided && victim != 0 && known != 6 {
				t.Errorf("worker %d at moment %d: decisions %v", victim, at, s.decided)
			}
		}
	}
}

// TestInTheNextStepAllKnowTheLastDecision is the row "in the next step before its decision".
func TestInTheNextStepAllKnowTheLastDecision(t *testing.T) {
	for victim := range 4 {
		for _, at := range []moment{inCompute, reduced, mirrorHere} {
			s := strike(t, victim, at, 7, 0)
			if fmt.Sprint(s.decided) != "[6 6 6]" {
				t.Errorf("worker %d at moment %d: decisions %v", victim, at, s.decided)
			}
		}
	}
}

// TestKilledAtAnyTimeADecisionImpliesItsSums kills by the clock.
func TestKilledAtAnyTimeADecisionImpliesItsSums(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range int64(25) {
		step := 4 + i%5
		if newest := strike(t, r.IntN(4), never, step, time.Duration(r.IntN(20_000))*time.Microsecond).newest(); newest < step-1 {
			t.Errorf("step %d is the last that is known to be decided, and sums of step %d were there", newest, step)
		}
	}
	if t.Failed() {
		t.Errorf("seed %d", seed)
	}
}

// TestAZombieOfAnOldGenerationIsRefused is the row "a zombie wakes in an old generation":
// the survivors of generation 3 are in generation 4 when w2 goes on.
func TestAZombieOfAnOldGenerationIsRefused(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("ring", func(t *testing.T) {
		ring := newRing(t, ringOptions{worldSize: 3, workers: 3, elem: 4, mirror: true, chunk: 1000, elems: []int64{300}, seed: 1})
		zombie := ring[2]
		each(t, ring, func(w *testWorker) error { return w.link.Begin(t.Context(), 6) })
		zombie.link.Ready(2, 0) // and then it sleeps
		old := []*testWorker{{link: ring[0].link}, {link: ring[1].link}}
		for _, w := range ring[:2] { // which are told to seal
			w.link.fail(&LinkError{Accused: 2, Name: "w2", Err: errors.New("w2 has been given up")})
		}
		closeAll(old)
		next := newWorkers(t, ringOptions{worldSize: 3, workers: 2, elem: 4, mirror: true, chunk: 1000, elems: []int64{300}, seed: 1})
		for i, w := range next {
			_ = w.listener.Close()
			w.listener, w.c.Key.Generation, w.c.Next = ring[i].listener, 4, ring[1-i].listener.Addr()
		}
		connect(t, next)
		// It wakes: what it can still do in its generation changes nothing.
		zombie.link.Ready(2, 0)
		if err := zombie.link.WaitReduced(t.Context(), 0); err == nil {
			t.Error("its step goes on")
		}
		if _, err := zombie.link.Vote(t.Context(), zombie.votes(6)); err == nil {
			t.Error("its vote counts")
		}
		zombie.link.Close()
		again := zombie.c
		if _, err := Connect(t.Context(), zombie.listener, again); err == nil {
			t.Error("it has connected again")
		}
		fresh := newWorkers(t, ringOptions{worldSize: 3, workers: 3, elem: 4, mirror: true, chunk: 1000, elems: []int64{300}, seed: 1})[2]
		again.Memory = fresh
		_, err := Connect(t.Context(), fresh.listener, again)
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "generation 3 is over, this worker is in 4") {
			t.Errorf("error %v", err)
		}
		each(t, next, func(w *testWorker) error {
			m := &mortal{testWorker: w, want: localSums(t, w)}
			return m.steps(6, 8, never, 0)
		})
	})
}
