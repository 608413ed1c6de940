package allreduce

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/skein-ml/skein/shard"
)

// TestLinkGivesTheBitsOfLocal runs three steps for 2 to 16 ranks on 2 to 6 workers
// over TCP, with both wires and frames that divide nothing, and compares every bit.
func TestLinkGivesTheBitsOfLocal(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for worldSize := 2; worldSize <= shard.WorldSizeMax; worldSize++ {
		for workers := 2; workers <= min(worldSize, 6); workers++ {
			for _, wire := range []Wire{WireFP32, WireBF16} {
				seed := uint64(100*worldSize + 10*workers + int(wire))
				t.Run(fmt.Sprintf("ranks=%d/workers=%d/wire=%d", worldSize, workers, wire), func(t *testing.T) {
					runLinks(t, worldSize, workers, wire, seed)
				})
			}
		}
	}
}

func runLinks(t *testing.T, worldSize, workers int, wire Wire, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 5))
	ring := newRing(t, ringOptions{
		worldSize: worldSize, workers: workers, wire: wire, elem: 2 + 2*r.IntN(2), chunk: 4 * (50 + r.IntN(500)),
		elems: []int64{1 + r.Int64N(300), 1 + r.Int64N(9000), 1 + r.Int64N(5000), 1}, seed: seed,
	})
	want := localSums(t, ring[0])
	each(t, ring, func(w *testWorker) error {
		r := rand.New(rand.NewPCG(seed, uint64(w.c.Worker)))
		for step := int64(5); step < 8; step++ {
			d, err := w.reduce(t.Context(), step, r)
			if err != nil {
				return err
			}
			if d.Step != step || d.Tokens != int64(worldSize) || d.Loss != float64(worldSize+1)/2 {
				return fmt.Errorf("decision %+v", d)
			}
			if err := w.gather(t.Context(), step, r); err != nil {
				return err
			}
			if err := w.check(step, want); err != nil {
				return err
			}
			for _, s := range w.sums {
				clear(s)
			}
		}
		return w.link.Close() // as soon as this worker has all, whatever the others still wait for
	})
}

func TestVotesOfASkippedStepReachEverybodyAndNothingIsGathered(t *testing.T) {
	ring := newRing(t, ringOptions{worldSize: 5, workers: 3, elem: 4, chunk: 1000, elems: []int64{3000}, seed: 1})
	each(t, ring, func(w *testWorker) error {
		r := rand.New(rand.NewPCG(1, 1))
		for step := int64(1); step <= 3; step++ {
			if err := w.link.Begin(t.Context(), step); err != nil {
				return err
			}
			for _, rank := range w.ranks() {
				w.link.Ready(rank, 0)
			}
			if err := w.link.WaitReduced(t.Context(), 0); err != nil {
				return err
			}
			votes := w.votes(step)
			for i := range votes {
				votes[i].Finite = votes[i].Rank != 3 || step != 2
				votes[i].Requests = Requests(1) << (votes[i].Rank % 4)
			}
			d, err := w.link.Vote(t.Context(), votes)
			if err != nil {
				return err
			}
			if skip := step == 2; (d.Action == Skip) != skip || skip && d.Culprit != 3 || d.Requests != requestsAll {
				return fmt.Errorf("decision %+v", d)
			}
			if d.Action == Apply {
				if err := w.gather(t.Context(), step, r); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func TestRestoredWorkersGatherWithoutAReduce(t *testing.T) {
	ring := newRing(t, ringOptions{worldSize: 6, workers: 4, elem: 2, chunk: 1000, elems: []int64{3000, 700}, seed: 2})
	want := localSums(t, ring[0])
	each(t, ring, func(w *testWorker) error {
		r := rand.New(rand.NewPCG(1, uint64(w.c.Worker)))
		for b := range want {
			copy(w.sums[b], want[b])
		}
		time.Sleep(time.Duration(w.c.Worker) * 20 * time.Millisecond) // loading takes unequal times
		if err := w.gather(t.Context(), 41, r); err != nil {
			return err
		}
		if err := w.check(41, want); err != nil {
			return err
		}
		if _, err := w.reduce(t.Context(), 42, r); err != nil {
			return err
		}
		if err := w.gather(t.Context(), 42, r); err != nil {
			return err
		}
		return w.check(42, want)
	})
}

// TestANeighbourOneStepAheadWaitsInBoundedMemory lets one worker rest between steps
// while all others begin the next one and send what they may.
func TestANeighbourOneStepAheadWaitsInBoundedMemory(t *testing.T) {
	elems := make([]int64, 12)
	for i := range elems {
		elems[i] = 8 << 10
	}
	ring := newRing(t, ringOptions{worldSize: 4, workers: 4, elem: 4, chunk: 4 << 10, elems: elems, seed: 3})
	want := localSums(t, ring[0])
	each(t, ring, func(w *testWorker) error {
		r := rand.New(rand.NewPCG(1, 1)) // one order for all, as in backward
		for step := int64(1); step <= 3; step++ {
			if w.c.Worker == 2 {
				time.Sleep(150 * time.Millisecond)
			}
			if _, err := w.reduce(t.Context(), step, r); err != nil {
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
	for _, w := range ring {
		bytes := 0
		w.link.mu.Lock()
		for c := w.link.free; c != nil; c = c.next {
			bytes += len(c.buf)
		}
		w.link.mu.Unlock()
		if most := int(4 * 3 * w.c.Table.BucketMax()); bytes > most {
			t.Errorf("worker %d held %d bytes in transit, more than three buckets of %d", w.c.Worker, bytes, most/3)
		}
	}
}

// TestASlowRankStopsNobodyForGood lets ranks be ready in opposite orders, and one of
// them late, with far more buckets than may be under way.
func TestASlowRankStopsNobodyForGood(t *testing.T) {
	elems := make([]int64, 15)
	for i := range elems {
		elems[i] = int64(1 + 700*i)
	}
	for _, wire := range []Wire{WireFP32, WireBF16} {
		ring := newRing(t, ringOptions{worldSize: 5, workers: 3, wire: wire, elem: 4, chunk: 1 << 10, elems: elems, seed: 4})
		want := localSums(t, ring[0])
		each(t, ring, func(w *testWorker) error {
			for step := int64(1); step <= 2; step++ {
				if err := w.link.Begin(t.Context(), step); err != nil {
					return err
				}
				for _, rank := range w.ranks() {
					for i := range elems {
						b := i
						if rank%2 == 1 {
							b = len(elems) - 1 - i
						}
						if rank == 3 {
							time.Sleep(5 * time.Millisecond)
						}
						w.link.Ready(rank, b)
					}
				}
				for b := range elems {
					if err := w.link.WaitReduced(t.Context(), b); err != nil {
						return err
					}
				}
				if _, err := w.link.Vote(t.Context(), w.votes(step)); err != nil {
					return err
				}
				if err := w.gather(t.Context(), step, rand.New(rand.NewPCG(1, 1))); err != nil {
					return err
				}
				if err := w.check(step, want); err != nil {
					return err
				}
			}
			return nil
		})
		closeAll(ring)
	}
}

func TestExchangeGivesEverybodyEveryBlob(t *testing.T) {
	ring := newRing(t, ringOptions{worldSize: 5, workers: 5, elem: 4, chunk: 1000, elems: []int64{10}, seed: 5})
	blob := func(worker, number int) []byte {
		return bytes.Repeat([]byte{byte(worker), byte(number)}, []int{0, 1, 700, 5000, 100_000}[(worker+number)%5])
	}
	each(t, ring, func(w *testWorker) error {
		for number := range 6 {
			all, err := w.link.Exchange(t.Context(), fmt.Sprint("parts ", number), blob(w.c.Worker, number))
			if err != nil {
				return err
			}
			for from, b := range all {
				if !bytes.Equal(b, blob(from, number)) {
					return fmt.Errorf("exchange %d: blob of worker %d has %d bytes", number, from, len(b))
				}
			}
		}
		return nil
	})
}

func TestExchangesOfDifferentNamesBreakTheLink(t *testing.T) {
	ring := newRing(t, ringOptions{worldSize: 4, workers: 2, elem: 4, chunk: 1000, elems: []int64{10}, seed: 5})
	each(t, ring, func(w *testWorker) error { return w.link.Begin(t.Context(), 7) })
	errs := make([]error, len(ring))
	var wg sync.WaitGroup
	for i, w := range ring {
		wg.Go(func() { _, errs[i] = w.link.Exchange(t.Context(), fmt.Sprint("parts ", i), nil) })
	}
	wg.Wait()
	said := 0
	for i, err := range errs {
		broken, ok := errors.AsType[*LinkError](err)
		if !ok || broken.Accused != -1 { // nobody knows which of them is wrong
			t.Fatalf("worker %d: %v", i, err)
		}
		if errors.Is(err, ErrLeft) { // the other one has seen it first
			continue
		}
		said++
		for _, want := range []string{"generation 3", "exchange 0", fmt.Sprintf("%q on w%d", fmt.Sprint("parts ", i), i), "step 7", "w0 with ranks [0 1]", "w1 with ranks [2 3]"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("worker %d: %v; want %q in it", i, err, want)
			}
		}
	}
	if said == 0 {
		t.Errorf("nobody says that the exchanges differ: %v", errs)
	}
}

func TestMessagesAreTakenByTheirTag(t *testing.T) {
	ring := newRing(t, ringOptions{worldSize: 3, workers: 3, elem: 4, chunk: 1000, elems: []int64{10}, seed: 6})
	each(t, ring, func(w *testWorker) error {
		for tag := range uint64(5) {
			if err := w.link.Pass(1<<63+tag, bytes.Repeat([]byte{byte(w.c.Worker)}, int(tag*tag)*500)); err != nil {
				return err
			}
		}
		for _, tag := range []uint64{3, 0, 4, 2, 1} {
			b, err := w.link.Take(t.Context(), 1<<63+tag)
			if err != nil {
				return err
			}
			if !bytes.Equal(b, bytes.Repeat([]byte{byte((w.c.Worker + 2) % 3)}, int(tag*tag)*500)) {
				return fmt.Errorf("message %d: %d bytes", tag, len(b))
			}
		}
		return nil
	})
}

func TestALeavingNeighbourIsNotAccused(t *testing.T) {
	ring := newRing(t, ringOptions{worldSize: 3, workers: 3, elem: 4, chunk: 1000, elems: []int64{10}, seed: 6})
	if err := ring[1].link.Close(); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 2} {
		err := ring[i].link.Begin(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range ring[i].ranks() {
			ring[i].link.Ready(r, 0)
		}
	}
	for _, i := range []int{2, 0} {
		err := ring[i].link.WaitReduced(t.Context(), 0)
		var broken *LinkError
		if !errors.As(err, &broken) || broken.Accused != -1 || !errors.Is(err, ErrLeft) || broken.Name != "w1" {
			t.Errorf("worker %d: %v", i, err)
		}
		if err := ring[i].link.Err(); err != nil {
			t.Errorf("worker %d: its link broke: %v", i, err)
		}
	}
}

// TestWhatOthersOweMayBeLostOnALeavingWorker: a worker that has left needs no news, and
// whoever has news for it still gets all that comes from the other side.
func TestWhatOthersOweMayBeLostOnALeavingWorker(t *testing.T) {
	ring := newRing(t, ringOptions{worldSize: 3, workers: 3, elem: 4, chunk: 1000, elems: []int64{10}, seed: 6})
	if err := ring[0].link.Close(); err != nil {
		t.Fatal(err)
	}
	last := ring[2].link
	last.mu.Lock()
	for !last.nextLeft {
		last.changed.Wait()
	}
	last.sendLocked(item{header: debt{phase: owesGather, step: 1}.header(1)})
	last.mu.Unlock()
	time.AfterFunc(20*time.Millisecond, func() {
		if err := ring[1].link.Pass(4, []byte("late")); err != nil {
			t.Error(err)
		}
	})
	if b, err := last.Take(t.Context(), 4); err != nil || string(b) != "late" {
		t.Errorf("took %q, %v", b, err)
	}
}

// TestBeginEndsWithItsContextWhileNothingCanBeWritten stops the bytes of w0 on their
// way: what it has to send fills the sockets and stays.
func TestBeginEndsWithItsContextWhileNothingCanBeWritten(t *testing.T) {
	for _, c := range []struct {
		name  string
		begin func(*Link, context.Context) error
	}{
		{"reduce", func(l *Link, ctx context.Context) error { return l.Begin(ctx, 1) }},
		{"gather", func(l *Link, ctx context.Context) error { return l.BeginGather(ctx, 1) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			open := make(chan struct{})
			ring := newRing(t, ringOptions{worldSize: 2, workers: 2, elem: 4, chunk: 1 << 20, elems: []int64{10}, seed: 6,
				address: func(worker int, addr string) string {
					if worker == 0 {
						return addr
					}
					return newProxy(t, addr, func(_ header, f []byte) ([][]byte, bool) {
						<-open
						return [][]byte{f}, false
					}).l.Addr().String()
				}})
			link := ring[0].link
			if err := link.Pass(1, make([]byte, 48<<20)); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if err := c.begin(link, ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v", err)
			}
			close(open)
			if err := c.begin(link, t.Context()); err != nil {
				t.Errorf("when all is written: %v", err)
			}
		})
	}
}

func TestWaitsEndWithTheirContextAndWithClose(t *testing.T) {
	ring := newRing(t, ringOptions{worldSize: 2, workers: 2, elem: 4, chunk: 1000, elems: []int64{10}, seed: 6})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := ring[0].link.WaitReduced(ctx, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	closed := make(chan error, 1)
	go func() { closed <- ring[0].link.WaitGathered(t.Context(), 0) }()
	time.Sleep(10 * time.Millisecond)
	if err := ring[0].link.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-closed; !errors.Is(err, ErrLinkClosed) {
		t.Errorf("error %v", err)
	}
	<-ring[0].link.Broken()
	if err := ring[0].link.Begin(t.Context(), 1); !errors.Is(err, ErrLinkClosed) {
		t.Errorf("error %v", err)
	}
}
