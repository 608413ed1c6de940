package allreduce

import (
	"bytes"
	"fmt"
	"testing"

	"go.uber.org/goleak"
)

// A gradient that is spent may be overwritten while its bucket is still on its way, with both
// wires, on few and many workers: the sums come out the same.
func TestASpentGradientMayBeOverwritten(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for _, x := range []struct{ worldSize, workers int }{{2, 2}, {5, 2}, {6, 3}, {4, 4}, {16, 5}} {
		for _, wire := range []Wire{WireFP32, WireBF16} {
			t.Run(fmt.Sprintf("ranks=%d/workers=%d/wire=%d", x.worldSize, x.workers, wire), func(t *testing.T) {
				ring := newRing(t, ringOptions{worldSize: x.worldSize, workers: x.workers, wire: wire, elem: 4, chunk: 1000,
					elems: []int64{9000, 300, 5000, 2000}, seed: 3})
				want := localSums(t, ring[0])
				each(t, ring, func(w *testWorker) error {
					for step := int64(1); step <= 3; step++ {
						if err := w.reduceInTurn(t, step); err != nil {
							return err
						}
						for b := range want {
							for _, rank := range w.ranks() {
								p := w.c.Table.Bucket(b).Piece(rank)
								if !bytes.Equal(w.sums[b][4*p.Lo:4*p.Hi], want[b][4*p.Lo:4*p.Hi]) {
									return fmt.Errorf("step %d, bucket %d, piece %d is not by the definition", step, b, rank)
								}
							}
						}
					}
					return w.link.Close()
				})
			})
		}
	}
}

// reduceInTurn reduces a step bucket by bucket, with room for the gradients of one at a time: no
// bucket is made before the one before it is spent.
func (w *testWorker) reduceInTurn(t *testing.T, step int64) error {
	if err := w.link.Begin(t.Context(), step); err != nil {
		return err
	}
	ranks, room := w.ranks(), map[int][]byte{}
	for b := range w.c.Table.Buckets() {
		for i, rank := range ranks {
			room[i] = bytes.Clone(w.grads[rank][b])
			w.link.Ready(rank, b)
		}
		if err := w.link.WaitSpent(t.Context(), b); err != nil {
			return err
		}
		for _, rank := range ranks {
			for i := range w.grads[rank][b] {
				w.grads[rank][b][i] = 0xff
			}
		}
		if err := w.link.WaitReduced(t.Context(), b); err != nil {
			return err
		}
		for i, rank := range ranks {
			copy(w.grads[rank][b], room[i])
		}
	}
	for _, rank := range ranks {
		rows := testRows(rank, step)
		w.link.SendRows(rank, rows.IDs, rows.Rows)
	}
	if _, err := w.link.WaitRows(t.Context()); err != nil {
		return err
	}
	_, err := w.link.Vote(t.Context(), w.votes(step))
	return err
}
