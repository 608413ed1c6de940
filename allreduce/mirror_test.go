package allreduce

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/skein-ml/skein/shard"
)

// checkMirror compares what is mirrored with the definition of the sum.
func (w *testWorker) checkMirror(step int64, want [][]byte) error {
	for b := range want {
		for _, rank := range w.c.Placement.Ranks(w.link.prev) {
			p := w.c.Table.Bucket(b).Piece(rank)
			if n, first := differing(w.mirrored[b][4*p.Lo:4*p.Hi], want[b][4*p.Lo:4*p.Hi]); n != 0 {
				return fmt.Errorf("step %d, bucket %d: the mirror of piece %d has %d other elements, the first is %d", step, b, rank, n, first)
			}
		}
		clear(w.mirrored[b])
	}
	return nil
}

// TestTheMirrorHasTheOwnersBitsBeforeTheDecision runs steps on 2 to 5 workers and
// compares what every worker mirrors when it has voted, with both wires.
func TestTheMirrorHasTheOwnersBitsBeforeTheDecision(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for _, c := range []struct{ worldSize, workers int }{{2, 2}, {3, 3}, {5, 2}, {8, 3}, {8, 5}} {
		for _, wire := range []Wire{WireFP32, WireBF16} {
			t.Run(fmt.Sprintf("ranks=%d/workers=%d/wire=%d", c.worldSize, c.workers, wire), func(t *testing.T) {
				runMirrored(t, c.worldSize, c.workers, wire)
			})
		}
	}
}

func runMirrored(t *testing.T, worldSize, workers int, wire Wire) {
	ring := newRing(t, ringOptions{worldSize: worldSize, workers: workers, wire: wire, elem: 2, mirror: true, chunk: 4 * 130,
		elems: []int64{1, 3000, 700}, seed: uint64(worldSize)})
	want := localSums(t, ring[0])
	each(t, ring, func(w *testWorker) error {
		r := rand.New(rand.NewPCG(7, uint64(w.c.Worker)))
		for step := int64(5); step < 8; step++ {
			if _, err := w.reduce(t.Context(), step, r); err != nil {
				return err
			}
			if err := w.checkMirror(step, want); err != nil {
				return err
			}
			if err := w.gather(t.Context(), step, r); err != nil {
				return err
			}
			if err := w.check(step, want); err != nil {
				return err
			}
		}
		return nil
	})
	if stats := ring[0].link.Stats().Mirror; stats.SentBytes == 0 || stats.ReceivedBytes == 0 || stats.SentBytes%3 != 0 {
		t.Errorf("%+v", stats)
	}
}

// TestSumsAreGatheredBeforeTheVote is the step of a job whose workers all update all
// pieces.
func TestSumsAreGatheredBeforeTheVote(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for _, workers := range []int{2, 3, 5} {
		for _, wire := range []Wire{WireFP32, WireBF16} {
			t.Run(fmt.Sprintf("workers=%d/wire=%d", workers, wire), func(t *testing.T) { runGatherFirst(t, workers, wire) })
		}
	}
}

func runGatherFirst(t *testing.T, workers int, wire Wire) {
	ring := newRing(t, ringOptions{worldSize: 5, workers: workers, wire: wire, elem: 4, gatherFirst: true, chunk: 4 * 130,
		elems: []int64{9000, 1, 3000, 700, 8000}, seed: 3})
	want := localSums(t, ring[0])
	each(t, ring, func(w *testWorker) error {
		r := rand.New(rand.NewPCG(7, uint64(w.c.Worker)))
		for step := int64(1); step < 5; step++ {
			if _, err := w.reduce(t.Context(), step, r); err != nil {
				return err
			}
			for b := range want {
				if !bytes.Equal(w.sums[b], want[b]) {
					return fmt.Errorf("step %d, bucket %d: the sums differ", step, b)
				}
				clear(w.sums[b])
			}
		}
		return nil
	})
}

// TestAVoteIsRefusedBeforeWhatItVouchesForIsHere goes through a step and tries to vote
// wherever that would be wrong.
func TestAVoteIsRefusedBeforeWhatItVouchesForIsHere(t *testing.T) {
	for _, c := range []struct {
		mirror, gatherFirst bool
		whys                []string
	}{
		{true, false, []string{"is reduced", "is sent to the mirror", "of w1 is mirrored here"}},
		{false, true, []string{"is reduced", "is gathered"}},
	} {
		ring := newRing(t, ringOptions{worldSize: 2, workers: 2, elem: 4, mirror: c.mirror, gatherFirst: c.gatherFirst, chunk: 1000, elems: []int64{300}, seed: 1})
		w, other := ring[0], ring[1]
		early := func(why string) {
			t.Helper()
			if _, err := w.link.Vote(t.Context(), w.votes(1)); err == nil || !strings.Contains(err.Error(), why) {
				t.Errorf("error %v, want %q", err, why)
			}
		}
		each(t, ring, func(w *testWorker) error { return w.link.Begin(t.Context(), 1) })
		early(c.whys[0])
		each(t, ring, func(w *testWorker) error {
			w.link.Ready(shard.Rank(w.c.Worker), 0)
			return w.link.WaitReduced(t.Context(), 0)
		})
		early(c.whys[1])
		if c.mirror {
			w.link.MirrorReady(0)
			early(c.whys[2])
		}
		each(t, ring, func(x *testWorker) error {
			if x == other && c.mirror {
				x.link.MirrorReady(0)
			}
			if c.gatherFirst {
				if err := x.link.BeginGather(t.Context(), 1); err != nil {
					return err
				}
				x.link.GatherReady(0)
				if err := x.link.WaitGathered(t.Context(), 0); err != nil {
					return err
				}
			}
			if err := x.link.WaitMirrored(t.Context(), 0); err != nil {
				return err
			}
			d, err := x.link.Vote(t.Context(), x.votes(1))
			if got, ok := x.link.Decided(); err == nil && (!ok || got != d) {
				return fmt.Errorf("decided %+v, %t; the vote says %+v", got, ok, d)
			}
			return err
		})
		if err := w.link.BeginGather(t.Context(), 1); c.gatherFirst == (err == nil) {
			t.Errorf("a gather after the vote: %v", err)
		}
		closeAll(ring)
	}
}

// TestADecisionThatAllVotesAllowIsMadeAlthoughTheLinkHasBroken breaks the link when
// rank 0's worker has everybody's votes and its own vote is still to be cast.
func TestADecisionOutlivesTheLink(t *testing.T) {
	ring := newRing(t, ringOptions{worldSize: 3, workers: 3, elem: 4, mirror: true, chunk: 1000, elems: []int64{300}, seed: 1})
	each(t, ring, func(w *testWorker) error {
		r := rand.New(rand.NewPCG(7, uint64(w.c.Worker)))
		if _, ok := w.link.Decided(); ok {
			return errors.New("decided before the first step")
		}
		if _, err := w.reduce(t.Context(), 1, r); err != nil {
			return err
		}
		if err := w.gather(t.Context(), 1, r); err != nil {
			return err
		}
		if err := w.link.Begin(t.Context(), 2); err != nil {
			return err
		}
		w.link.Ready(shard.Rank(w.c.Worker), 0)
		if err := w.link.WaitReduced(t.Context(), 0); err != nil {
			return err
		}
		w.link.MirrorReady(0)
		if err := w.link.WaitMirrored(t.Context(), 0); err != nil {
			return err
		}
		if w.c.Worker == 0 { // whose own votes count first, and nobody's wait ends yet
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := w.link.Vote(ctx, w.votes(2)); !errors.Is(err, context.Canceled) {
			return fmt.Errorf("error %w", err)
		}
		return nil
	})
	first := ring[0].link
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	until(t, func() bool { // all votes but its own
		first.mu.Lock()
		defer first.mu.Unlock()
		return first.voted == 2
	})
	if _, err := first.Vote(ctx, ring[0].votes(2)); err != nil {
		t.Fatalf("with all votes: %v", err)
	}
	for _, w := range ring[1:] {
		if d, err := w.link.Vote(t.Context(), w.votes(2)); err != nil || d.Step != 2 { // cast once, waits again
			t.Fatal(d, err)
		}
	}
	_ = ring[1].link.Close()
	for _, w := range ring {
		w.link.fail(&LinkError{Accused: -1, Err: errors.New("broken by the test")})
		d, err := w.link.Vote(t.Context(), w.votes(2))
		if known, ok := w.link.Decided(); err != nil || !ok || known != d || d.Step != 2 {
			t.Errorf("worker %d: %+v, %v; known: %+v, %t", w.c.Worker, d, err, known, ok)
		}
		if err := w.link.WaitReduced(t.Context(), 0); err != nil {
			t.Errorf("worker %d has lost what is reduced: %v", w.c.Worker, err)
		}
		if err := w.link.WaitMirrored(t.Context(), 0); err != nil {
			t.Errorf("worker %d has lost what is mirrored: %v", w.c.Worker, err)
		}
		if err := w.link.BeginGather(t.Context(), 2); err == nil {
			t.Errorf("worker %d gathers with a broken link", w.c.Worker)
		}
	}
}

// TestStateReachesTheWorkerThatItIsFor moves ranks all ways round a ring at once, far
// more than may be under way, while steps are taken.
func TestStateReachesTheWorkerThatItIsFor(t *testing.T) {
	const workers = 4
	elems := []int64{3 << 19, 700}
	ring := newRing(t, ringOptions{worldSize: workers, workers: workers, wire: WireBF16, elem: 4, chunk: 64 << 10, elems: elems, seed: 1})
	place := func(rank shard.Rank, part, b int) string { return fmt.Sprint(rank, part, b) }
	content := func(rank shard.Rank, part, b int, n int64) []byte {
		r := rand.NewChaCha8([32]byte{byte(rank), byte(part), byte(b)})
		x := make([]byte, 4*n)
		_, _ = r.Read(x)
		return x
	}
	length := func(b int, rank shard.Rank) int64 { return ring[0].c.Table.Bucket(b).Piece(rank).Len() }
	for i, w := range ring { // every worker expects the ranks of all others
		w.link.mu.Lock() // a neighbour may send before this worker's own goroutine runs
		w.state = map[string][]byte{}
		for rank := range shard.Rank(workers) {
			for part := range StateParts {
				for b := range elems {
					if int(rank) != i {
						w.state[place(rank, part, b)] = make([]byte, 4*length(b, rank))
					}
				}
			}
		}
		w.link.mu.Unlock()
	}
	each(t, ring, func(w *testWorker) error {
		rank := shard.Rank(w.c.Worker)
		for b := range elems {
			var parts [StateParts][]byte
			for part := range parts {
				parts[part] = content(rank, part, b, length(b, rank))
			}
			for hop := 1; hop < workers; hop++ {
				if err := w.link.SendState((w.c.Worker+hop)%workers, rank, b, 41, parts); err != nil {
					return err
				}
			}
		}
		r := rand.New(rand.NewPCG(7, uint64(w.c.Worker)))
		for step := int64(1); step < 4; step++ { // state holds up no step
			if _, err := w.reduce(t.Context(), step, r); err != nil {
				return err
			}
			if err := w.gather(t.Context(), step, r); err != nil {
				return err
			}
		}
		for from := range shard.Rank(workers) {
			for b := range elems {
				if from == rank {
					continue
				}
				if err := w.link.WaitState(t.Context(), int(from), from, b, 41); err != nil {
					return err
				}
				for part := range StateParts {
					if !bytes.Equal(w.state[place(from, part, b)], content(from, part, b, length(b, from))) {
						return fmt.Errorf("rank %d, part %d, bucket %d: it differs", from, part, b)
					}
				}
			}
		}
		return w.link.WaitSent(t.Context())
	})
	for _, w := range ring {
		bytes := 0
		w.link.mu.Lock()
		for c := w.link.free; c != nil; c = c.next {
			bytes += len(c.buf)
		}
		w.link.mu.Unlock()
		if most := workers*(stateWindow+w.c.ChunkBytes) + int(3*4*w.c.Table.BucketMax()); bytes > most {
			t.Errorf("worker %d held %d bytes in transit, more than %d", w.c.Worker, bytes, most)
		}
	}
}

func TestStateThatNobodyExpectsIsRefusedByName(t *testing.T) {
	ring := newRing(t, ringOptions{worldSize: 3, workers: 3, elem: 4, chunk: 1000, elems: []int64{300}, seed: 1})
	b := make([]byte, 4*ring[0].c.Table.Bucket(0).Piece(0).Len())
	parts := [StateParts][]byte{b, b, b}
	for why, err := range map[string]error{
		"to itself":  ring[0].link.SendState(0, 0, 0, 1, parts),
		"to nobody":  ring[0].link.SendState(3, 0, 0, 1, parts),
		"a part off": ring[0].link.SendState(1, 0, 0, 1, [StateParts][]byte{b, b}),
	} {
		if err == nil {
			t.Errorf("%s: no error", why)
		}
	}
	if err := ring[0].link.SendState(2, 0, 0, 17, parts); err != nil {
		t.Fatal(err)
	}
	err := ring[2].link.WaitState(t.Context(), 0, 0, 0, 17)
	if err == nil || !strings.Contains(err.Error(), "state of worker 0 for worker 2, step 17, bucket 0, piece 0, part 0") {
		t.Errorf("error %v", err)
	}
	if err := ring[0].link.WaitSent(t.Context()); err == nil {
		t.Error("it is not known to be lost")
	}
}

func TestWaitsForStateEndWithTheirContext(t *testing.T) {
	ring := newRing(t, ringOptions{worldSize: 2, workers: 2, elem: 4, chunk: 1000, elems: []int64{300}, seed: 1})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := ring[0].link.WaitState(ctx, 1, 1, 0, 3); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if err := ring[0].link.WaitSent(t.Context()); err != nil {
		t.Errorf("nothing was sent: %v", err)
	}
}
