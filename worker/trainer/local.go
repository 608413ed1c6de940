package trainer

import (
	"context"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/device"
)

// local is the collective of ranks that are all hosted here: hops are operations of
// the device, and whoever computes new weights has them.
type local struct {
	t     *Trainer
	ring  *allreduce.Local
	mem   memory
	begun bool
	round device.Tensor // [1, longest piece] BF16: staging of a bf16 wire
	ids   [][]int32     // by rank, of its sparse rows
}

func (t *Trainer) newLocal() error {
	l := &local{t: t, mem: memory{dev: t.dev}}
	if t.cfg.Wire == allreduce.WireBF16 {
		piece := int(t.table.BucketMax()) / t.cfg.WorldSize
		var err error
		if l.round, err = l.mem.tensor(device.KindStaging, device.BF16, 1, piece); err != nil {
			return err
		}
	}
	l.ring = allreduce.NewLocal(t.table, t.cfg.Wire, l)
	t.peers = l
	return nil
}

func (l *local) view(v allreduce.View) device.Tensor {
	if v.Sum {
		return l.t.sum(v.Bucket, v.Range)
	}
	return l.t.ranks[v.Rank].grads.Flat[v.Bucket].ColRange(int(v.Range.Lo), int(v.Range.Hi))
}

// Copy implements [allreduce.Memory]. A ring of one copies its gradients to its sums, and
// these are one thing, see newFlat.
func (l *local) Copy(dst, src allreduce.View) {
	if l.t.cfg.WorldSize == 1 {
		return
	}
	l.t.dev.Copy(l.t.stream, l.view(dst).Buf, l.view(src).Buf)
}

// Add implements [allreduce.Memory].
func (l *local) Add(dst, received, own allreduce.View) {
	l.t.dev.Add(l.t.stream, l.view(dst), l.view(received), l.view(own))
}

// Round implements [allreduce.Memory].
func (l *local) Round(dst, src allreduce.View) {
	from := l.view(src)
	stage := l.round.ColRange(0, from.Cols)
	l.t.dev.Cast(l.t.stream, stage, from)
	l.t.dev.Cast(l.t.stream, l.view(dst), stage)
}

func (l *local) ready(r *rank, bucket int) error {
	if !l.begun {
		l.ring.Begin(l.t.step + 1)
		l.begun = true
	}
	return l.ring.Ready(r.id, bucket)
}

func (l *local) rowsReady(*rank) error { return nil }

// spent has nothing to wait for: what is called later runs after the additions.
func (l *local) spent(context.Context, int) error { return nil }

// reduce has nothing to wait for: it adds the embedding's sparse rows.
func (l *local) reduce(context.Context) error {
	l.begun = false
	t := l.t
	l.ids = l.ids[:0]
	for _, r := range t.ranks {
		l.ids = append(l.ids, r.grads.Slots.IDs)
		if t.cfg.WorldSize == 1 {
			r.done = 0 // the rows go into the gradients themselves, so these cannot be summed again
		}
	}
	t.addSparse(l.ids, func(part allreduce.Rows) (device.Tensor, device.Tensor) {
		r := t.ranks[part.Rank]
		return r.ids.ColRange(part.Lo, part.Hi), r.grads.Sparse.RowRange(part.Lo, part.Hi)
	})
	return nil
}

func (l *local) decide(_ context.Context, votes []allreduce.Vote) (allreduce.Decision, error) {
	return l.t.Decide(votes)
}

func (l *local) begin(int64) error                   { return nil }
func (l *local) gather(int) error                    { return nil }
func (l *local) written(context.Context, int) error  { return nil }
func (l *local) changed(int) error                   { return nil }
func (l *local) gathered(context.Context, int) error { return nil }

// embedding is the bucket of the embedding, which is the first tensor in it.
const embedding = 0

// addSparse adds all ranks' embedding rows, ids by rank, to the hosted pieces that they
// fall in, after the dense fold and in the order of the ranks.
func (t *Trainer) addSparse(ids [][]int32, rows func(allreduce.Rows) (ids, rows device.Tensor)) {
	width := int64(t.cfg.Model.Hidden)
	for _, r := range t.ranks {
		piece := t.table.Bucket(embedding).Piece(r.id)
		dst := t.sum(embedding, piece)
		t.rows = allreduce.AppendSparseOrder(t.rows[:0], piece, 0, width, ids)
		for _, part := range t.rows {
			ids, rows := rows(part)
			t.dev.AddRows(t.stream, dst, piece.Lo, ids, rows)
		}
	}
}
