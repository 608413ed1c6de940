package trainer

import (
	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/shard"
)

// ring reduces buckets of ranks that are all hosted here.
type ring struct {
	mem   memory
	local *allreduce.Local
	sums  []device.Tensor // per bucket [1, padded] F32: R(k) of all its pieces
	round device.Tensor   // [1, longest piece] BF16: staging of a bf16 wire
}

func (t *Trainer) newRing() error {
	r := &t.ring
	r.mem.dev = t.dev
	for b := range t.table.Buckets() {
		sum, err := r.mem.tensor(device.KindGradients, device.F32, 1, int(t.table.Bucket(b).Padded))
		if err != nil {
			return err
		}
		r.sums = append(r.sums, sum)
	}
	if t.cfg.Wire == allreduce.WireBF16 {
		piece := int(t.table.BucketMax()) / t.cfg.WorldSize
		var err error
		if r.round, err = r.mem.tensor(device.KindStaging, device.BF16, 1, piece); err != nil {
			return err
		}
	}
	r.local = allreduce.NewLocal(t.table, t.cfg.Wire, ringMemory{t})
	return nil
}

// ringMemory is the memory of the ring: hops are operations of the device.
type ringMemory struct{ t *Trainer }

func (m ringMemory) at(v allreduce.View) device.Tensor {
	flat := m.t.ring.sums[v.Bucket]
	if !v.Sum {
		flat = m.t.ranks[v.Rank].grads.Flat[v.Bucket]
	}
	return flat.ColRange(int(v.Range.Lo), int(v.Range.Hi))
}

// Copy implements [allreduce.Memory].
func (m ringMemory) Copy(dst, src allreduce.View) {
	m.t.dev.Copy(m.t.stream, m.at(dst).Buf, m.at(src).Buf)
}

// Add implements [allreduce.Memory].
func (m ringMemory) Add(dst, received, own allreduce.View) {
	m.t.dev.Add(m.t.stream, m.at(dst), m.at(received), m.at(own))
}

// Round implements [allreduce.Memory].
func (m ringMemory) Round(dst, src allreduce.View) {
	from := m.at(src)
	stage := m.t.ring.round.ColRange(0, from.Cols)
	m.t.dev.Cast(m.t.stream, stage, from)
	m.t.dev.Cast(m.t.stream, m.at(dst), stage)
}

// reduce folds every bucket in ring order and adds the embedding's sparse rows.
func (t *Trainer) reduce(k int64) error {
	t.ring.local.Begin(k)
	for b := range t.table.Buckets() {
		for _, r := range t.ranks {
			if err := t.ring.local.Ready(r.id, b); err != nil {
				return err
			}
		}
	}
	t.addSparse()
	return nil
}

// addSparse adds each rank's embedding rows to the pieces they fall in, after the
// dense fold, ranks in order.
func (t *Trainer) addSparse() {
	const embedding = 0 // its bucket, and the tensor is the first in it
	ids := make([][]int32, len(t.ranks))
	for i, r := range t.ranks {
		ids[i] = r.grads.Slots.IDs
	}
	width := int64(t.cfg.Model.Hidden)
	for p := range t.cfg.WorldSize {
		piece := t.table.Bucket(embedding).Piece(shard.Rank(p))
		dst := t.ring.sums[embedding].ColRange(int(piece.Lo), int(piece.Hi))
		for _, part := range allreduce.SparseOrder(piece, 0, width, ids) {
			r := t.ranks[part.Rank]
			t.dev.AddRows(t.stream, dst, piece.Lo, r.ids.ColRange(part.Lo, part.Hi), r.grads.Sparse.RowRange(part.Lo, part.Hi))
		}
	}
}
