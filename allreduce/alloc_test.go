package allreduce

import (
	"runtime"
	"testing"
)

// TestFramesAllocateNothing runs steps with many frames and with few: the difference
// in allocations is what frames cost.
func TestFramesAllocateNothing(t *testing.T) {
	for _, wire := range []Wire{WireFP32, WireBF16} {
		few, many := allocations(t, wire, 64<<10), allocations(t, wire, 256)
		if frames := float64(6 * 2 * (3 << 14) / 4 / 256); many-few > frames/10 {
			t.Errorf("wire %d: %.0f allocations a step in whole pieces, %.0f in %.0f frames", wire, few, many, frames)
		}
	}
}

// allocations counts what a step allocates on three workers, in a warm ring.
func allocations(t *testing.T, wire Wire, chunk int) float64 {
	ring := newRing(t, ringOptions{worldSize: 6, workers: 3, wire: wire, elem: 2, chunk: chunk, elems: []int64{3 << 14}, seed: 1})
	defer closeAll(ring)
	steps := func(from, to int64) {
		each(t, ring, func(w *testWorker) error {
			for step := from; step < to; step++ {
				if err := w.link.Begin(t.Context(), step); err != nil {
					return err
				}
				for _, rank := range w.ranks() {
					w.link.Ready(rank, 0)
				}
				if err := w.link.WaitReduced(t.Context(), 0); err != nil {
					return err
				}
				if _, err := w.link.Vote(t.Context(), w.votes(step)); err != nil {
					return err
				}
				if err := w.link.BeginGather(t.Context(), step); err != nil {
					return err
				}
				w.link.GatherReady(0)
				if err := w.link.WaitGathered(t.Context(), 0); err != nil {
					return err
				}
			}
			return nil
		})
	}
	steps(1, 60)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	steps(60, 80)
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / 20
}
