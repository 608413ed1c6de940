package allreduce

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/skein-ml/skein/shard"
)

// Workers gather the same buckets in the same order, many times in a step, while gradients go
// round, with room for one bucket's weights at a time; some are ahead of others.
func TestWeightsOnDemandAreTheOwnersInEveryRound(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for _, x := range []struct{ worldSize, workers, elem, rounds int }{
		{2, 2, 4, roundEnd + 20}, {5, 3, 2, 60}, {4, 4, 2, 60}, {16, 5, 4, 60},
	} {
		t.Run(fmt.Sprintf("ranks=%d/workers=%d", x.worldSize, x.workers), func(t *testing.T) {
			ring := newRing(t, ringOptions{worldSize: x.worldSize, workers: x.workers, elem: x.elem, chunk: 1000,
				elems: []int64{9000, 300, 5000}, seed: 4, change: func(c *LinkConfig) { c.OnDemand = true }})
			each(t, ring, func(w *testWorker) error {
				same := rand.New(rand.NewPCG(9, 9)) // all workers draw the same order
				for step := int64(3); step <= 4; step++ {
					if err := w.stepOnDemand(t, step, x.rounds, same); err != nil {
						return fmt.Errorf("worker %d: %w", w.c.Worker, err)
					}
				}
				return w.link.Close()
			})
		})
	}
}

func (w *testWorker) stepOnDemand(t *testing.T, step int64, rounds int, same *rand.Rand) error {
	if err := w.link.Begin(t.Context(), step); err != nil {
		return err
	}
	buckets := w.c.Table.Buckets()
	for round := range rounds {
		b := 0
		if round%10 == 0 {
			b = same.IntN(buckets)
		}
		if round%10 == 5 && round/10 < buckets {
			for _, rank := range w.ranks() {
				w.link.Ready(rank, round/10)
			}
		}
		if err := w.gatherOnDemand(t, b, byte(round)+byte(step)); err != nil {
			return err
		}
	}
	for b := range buckets {
		if err := w.link.WaitReduced(t.Context(), b); err != nil {
			return err
		}
	}
	_, err := w.link.Vote(t.Context(), w.votes(step))
	return err
}

// gatherOnDemand gathers weights whose bytes say whose they are, and of which round.
func (w *testWorker) gatherOnDemand(t *testing.T, bucket int, mark byte) error {
	if err := w.link.WaitWritten(t.Context(), bucket); err != nil {
		return err
	}
	want := make([]byte, len(w.gathered[bucket]))
	for p := range shard.Rank(w.c.Table.WorldSize()) {
		r := w.c.Table.Bucket(bucket).Piece(p)
		piece := want[r.Lo*int64(w.elem) : r.Hi*int64(w.elem)]
		for i := range piece {
			piece[i] = mark + byte(p) + byte(i)
		}
	}
	clear(w.gathered[bucket])
	for _, p := range w.ranks() {
		r := w.c.Table.Bucket(bucket).Piece(p)
		copy(w.gathered[bucket][r.Lo*int64(w.elem):r.Hi*int64(w.elem)], want[r.Lo*int64(w.elem):])
	}
	if err := w.link.Gather(bucket); err != nil {
		return err
	}
	if err := w.link.WaitGathered(t.Context(), bucket); err != nil {
		return err
	}
	if !bytes.Equal(w.gathered[bucket], want) {
		return fmt.Errorf("bucket %d, mark %d: other weights than the owners'", bucket, mark)
	}
	return nil
}

func TestAGatherOnDemandOutOfPlaceIsRefused(t *testing.T) {
	ring := newRing(t, ringOptions{worldSize: 2, workers: 2, elem: 4, chunk: 1000, elems: []int64{300, 300}, seed: 4,
		change: func(c *LinkConfig) { c.OnDemand = true }})
	each(t, ring, func(w *testWorker) error {
		if err := w.link.Gather(0); err == nil {
			return fmt.Errorf("a gather in no step began")
		}
		if err := w.link.BeginGather(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "on demand") {
			return fmt.Errorf("all weights at once: %w", err)
		}
		if err := w.link.Begin(t.Context(), 1); err != nil {
			return err
		}
		if w.c.Worker == 0 {
			if err := w.link.Gather(0); err != nil {
				return err
			}
			if err := w.link.Gather(1); err == nil || !strings.Contains(err.Error(), "bucket 1 is to be gathered while bucket 0 is") {
				return fmt.Errorf("two at a time: %w", err)
			}
			return w.link.WaitGathered(t.Context(), 0)
		}
		if err := w.link.Gather(0); err != nil {
			return err
		}
		return w.link.WaitGathered(t.Context(), 0)
	})
}

// A frame that comes twice, or of a gather that nobody has begun, does not pass for one of the next.
func TestAFrameOfAnotherGatherOnDemandBreaksTheLink(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for _, x := range []struct {
		name, says string
		spoil      func(h header, f []byte) [][]byte
	}{
		{"twice", "expected elements from", func(_ header, f []byte) [][]byte { return [][]byte{f, f} }},
		{"a round left out", ", not by 3", func(h header, f []byte) [][]byte {
			h.Part += 2
			h.encode(f)
			return [][]byte{f}
		}},
		{"no round", ", not by 0", func(h header, f []byte) [][]byte {
			h.Part = 0
			h.encode(f)
			return [][]byte{f}
		}},
	} {
		t.Run(x.name, func(t *testing.T) {
			first := true
			ring := newRing(t, ringOptions{worldSize: 2, workers: 2, elem: 4, chunk: 1000, elems: []int64{300}, seed: 1,
				change: func(c *LinkConfig) { c.OnDemand = true },
				address: func(worker int, addr string) string {
					if worker == 0 {
						return addr
					}
					return newProxy(t, addr, func(h header, f []byte) ([][]byte, bool) {
						if h.Kind != kindGather || !first {
							return [][]byte{f}, false
						}
						first = false
						return x.spoil(h, f), false
					}).l.Addr().String()
				}})
			errs := make([]error, len(ring))
			var all sync.WaitGroup
			for i, w := range ring {
				all.Go(func() {
					if errs[i] = w.link.Begin(t.Context(), 1); errs[i] == nil {
						errs[i] = w.link.Gather(0)
					}
					for errs[i] == nil {
						_, errs[i] = w.link.Take(t.Context(), 1)
					}
				})
			}
			all.Wait()
			if errs[1] == nil || !strings.Contains(errs[1].Error(), x.says) {
				t.Errorf("%v, want an error that says %q", errs[1], x.says)
			}
			closeAll(ring)
		})
	}
}
