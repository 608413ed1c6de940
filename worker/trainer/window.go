package trainer

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model"
)

// From ZeRO stage 2 on a worker has no room for whole gradients. It runs all micro-batches of its ranks
// together, layer by layer, so that all contributions to a bucket come at once, and a rank's gradients
// of two buckets in a row share one stretch of memory, the window:
//
//	bucket 0 of the order │·················│ bucket 1
//	bucket 2 │······························│ bucket 1
//	bucket 2 │·························│ bucket 3
//
// A bucket is overwritten by the one after the next, once the ring has added it to its sums. ADR 0019
// says why ranks do not run one after the other.

// together tells whether all micro-batches of the ranks here run together. A world of one rank has
// nothing to gain: its gradients are its sums.
func (t *Trainer) together() bool { return t.cfg.cutsGradients() }

// newWindow allocates a rank's window, and returns the buckets' gradients in it.
func (t *Trainer) newWindow(r *rank) ([]device.Tensor, error) {
	var err error
	if r.window, err = r.mem.tensor(device.KindGradients, device.F32, 1, int(t.table.Window(t.order))); err != nil {
		return nil, err
	}
	flat := make([]device.Tensor, t.table.Buckets())
	for at, b := range t.order {
		lo, hi := t.inWindow(at)
		flat[b] = r.window.ColRange(lo, hi)
	}
	return flat, nil
}

// inWindow is where the gradient of bucket order[at] stands in a window.
func (t *Trainer) inWindow(at int) (lo, hi int) {
	n := int(t.table.Bucket(t.order[at]).Padded)
	if at%2 == 0 {
		return 0, n
	}
	size := int(t.table.Window(t.order))
	return size - n, size
}

// lanes is how many micro-batches run together here.
func (t *Trainer) lanes() int {
	if !t.together() {
		return 1
	}
	return len(t.ranks) * t.micros()
}

// computeTogether runs all micro-batches of step k, of all ranks here.
func (t *Trainer) computeTogether(ctx context.Context, k int64, clock *stopwatch, res *Result) error {
	t.work = t.work[:0]
	for i, r := range t.ranks {
		if err := t.prepare(ctx, k, r, clock, res); err != nil {
			return fmt.Errorf("rank %d: %w", r.id, err)
		}
		for j := range t.micros() {
			t.work = append(t.work, model.Work{Batch: r.batch.slice(j, t.cfg.Batch.Micro), Grads: &r.grads, Cell: i})
		}
	}
	t.model.ResetLoss(t.stream)
	waited := res.Timing.waited()
	if err := t.model.TrainTogether(t.stream, t.work, lossScale(t.cfg.Batch), t); err != nil {
		return err
	}
	for i, r := range t.ranks {
		var err error
		if r.loss, err = t.model.Loss(t.stream, i); err != nil {
			return err
		}
		if err := t.peers.rowsReady(r); err != nil {
			return err
		}
	}
	took := clock.lap() - (res.Timing.waited() - waited)
	for _, r := range t.ranks {
		r.work = took / time.Duration(len(t.ranks))
	}
	res.Timing.Compute += took
	return nil
}

// NeedGrad makes room for a bucket's gradients: in a window, once what stood there is added.
func (t *Trainer) NeedGrad(bucket int) error {
	if !t.together() {
		return t.ctx.Err()
	}
	if at := slices.Index(t.order, bucket); at >= 2 {
		began := time.Now()
		if err := t.peers.spent(t.ctx, t.order[at-2]); err != nil {
			return err
		}
		t.waits(&t.result.Timing.Reduce, began)
	}
	for _, r := range t.ranks {
		t.dev.Fill(t.stream, r.grads.Flat[bucket], 0)
	}
	return t.ctx.Err()
}
