package trainer

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model"
	"github.com/skein-ml/skein/shard"
)

// rank is a logical rank hosted here.
type rank struct {
	id     shard.Rank
	mem    memory
	batch  rankBatch // of the step under way
	grads  model.Grads
	window device.Tensor // what grads are views of, if they share memory; see window.go
	ids    device.Tensor // [1, slots] I32: which rows of the embedding the sparse rows are
	done   int64         // step whose gradients are complete here
	loss   float64       // sum of token losses of this step
	tokens int64         // targets of this step
	at     int64         // step whose samples it has read
	read   int64         // tokens of that step, padding left out
	took   time.Duration // that its gradients were computed in, where the trainer is placed now
	data   time.Duration // that it waited for its samples
	work   time.Duration // and that it computed, as its vote tells
}

func (t *Trainer) newRank(id shard.Rank) (_ *rank, err error) {
	share := t.cfg.Batch.Global / t.cfg.WorldSize
	slots := min(share*t.cfg.Batch.SeqLen, t.cfg.Model.Vocab)
	r := &rank{id: id, mem: memory{dev: t.dev}}
	defer func() {
		if err != nil {
			r.mem.free()
		}
	}()
	r.grads.Slots = &model.Slots{}
	if r.grads.Flat, err = t.newFlat(r); err != nil {
		return nil, err
	}
	if r.grads.Sparse, err = r.mem.tensor(device.KindGradients, device.F32, slots, t.cfg.Model.Hidden); err != nil {
		return nil, err
	}
	if r.ids, err = r.mem.tensor(device.KindGradients, device.I32, 1, slots); err != nil {
		return nil, err
	}
	return r, nil
}

// newFlat are a rank's gradients. In a world of one there is nothing to add, so they are the
// sums of its segment.
func (t *Trainer) newFlat(r *rank) (flat []device.Tensor, err error) {
	if t.cfg.WorldSize == 1 {
		s := t.segments[r.id]
		if s == nil {
			if s, err = t.newSegment(r.id); err != nil {
				return nil, err
			}
			t.segments[r.id] = s
		}
		return s.sum, nil
	}
	if t.together() {
		return t.newWindow(r)
	}
	for b := range t.table.Buckets() {
		x, err := r.mem.tensor(device.KindGradients, device.F32, 1, int(t.table.Bucket(b).Padded))
		if err != nil {
			return nil, err
		}
		flat = append(flat, x)
	}
	return flat, nil
}

// rankBatch is the samples that one rank reads in one step.
type rankBatch struct {
	data.Batch
	indices []int64
	// docs are the documents of each micro-batch, counted from its start. The device
	// may read them until the rank's last micro-batch has run.
	docs [][]int32
}

// read fills a rank's batch with its samples of step k.
func (t *Trainer) read(ctx context.Context, k int64, r *rank) error {
	b := &r.batch
	lo, hi := shard.RankSequences(r.id, t.cfg.Batch.Global, t.cfg.WorldSize)
	b.indices = b.indices[:0]
	for j := lo; j < hi; j++ {
		index, _ := t.cfg.Order.Sample(k, int64(j))
		b.indices = append(b.indices, index)
	}
	if err := t.samples.Batch(ctx, b.indices, &b.Batch); err != nil {
		return err
	}
	if b.SeqLen != t.cfg.Batch.SeqLen {
		return fmt.Errorf("the data set has sequences of %d tokens, the job of %d", b.SeqLen, t.cfg.Batch.SeqLen)
	}
	return nil
}

// slice is micro-batch i of the samples read, of n sequences.
func (b *rankBatch) slice(i, n int) model.Batch {
	lo, hi := int32(i*n*b.SeqLen), int32((i+1)*n*b.SeqLen)
	for len(b.docs) <= i {
		b.docs = append(b.docs, nil)
	}
	docs := b.docs[i][:0]
	for _, d := range b.CuDocs {
		if d >= lo && d <= hi {
			docs = append(docs, d-lo)
		}
	}
	b.docs[i] = docs
	return model.Batch{IDs: b.Tokens[lo:hi], Targets: b.Targets[lo:hi], CuDocs: docs}
}

// tokens is how many tokens the batch has, padding left out.
func (b *rankBatch) tokens() int64 {
	n := int64(len(b.Tokens))
	for _, p := range b.Padding {
		n -= int64(p)
	}
	return n
}

// prepare reads a rank's samples of step k.
func (t *Trainer) prepare(ctx context.Context, k int64, r *rank, clock *stopwatch, res *Result) error {
	if err := t.read(ctx, k, r); err != nil {
		return err
	}
	r.data = clock.lap()
	res.Timing.Data += r.data
	r.at, r.read = k, r.batch.tokens()
	res.Tokens += r.read
	r.tokens = r.batch.TargetCount
	r.grads.Slots.Reset(r.batch.Tokens)
	t.dev.Upload(t.stream, r.ids.Buf.Slice(0, int64(len(r.grads.Slots.IDs))*4), device.HostBytes(r.grads.Slots.IDs))
	t.dev.Fill(t.stream, r.sparse(), 0)
	return nil
}

// compute runs rank r's micro-batches of step k, in order, into its gradients.
func (t *Trainer) compute(ctx context.Context, k int64, r *rank, clock *stopwatch, res *Result) error {
	if err := t.prepare(ctx, k, r, clock, res); err != nil {
		return err
	}
	for _, g := range r.grads.Flat {
		t.dev.Fill(t.stream, g, 0)
	}
	t.model.ResetLoss(t.stream)
	scale := lossScale(t.cfg.Batch)
	waited := res.Timing.waited()
	t.now = r
	for i, n := 0, t.micros(); i < n; i++ {
		t.closing = i == n-1
		if err := t.model.Train(t.stream, r.batch.slice(i, t.cfg.Batch.Micro), &r.grads, scale, t); err != nil {
			return err
		}
	}
	var err error
	if r.loss, err = t.model.Loss(t.stream, 0); err != nil {
		return err
	}
	err = t.peers.rowsReady(r)
	r.work = clock.lap() - (res.Timing.waited() - waited)
	res.Timing.Compute += r.work
	return err
}

// micros is how many micro-batches a rank has in a step.
func (t *Trainer) micros() int { return t.cfg.Batch.Global / t.cfg.WorldSize / t.cfg.Batch.Micro }

// sparse is the rank's sparse rows of this step, one per slot.
func (r *rank) sparse() device.Tensor { return r.grads.Sparse.RowRange(0, len(r.grads.Slots.IDs)) }

// lossScale is what backward multiplies the sum of losses by, a power of two.
func lossScale(b Batching) float32 {
	return float32(math.Ldexp(1, -allreduce.LossShift(b.Global, b.SeqLen)))
}

// NeedWeights brings a bucket's packed weights up to its flat ones, once after each
// step that changed them: the gather of a step is hidden in the next forward. On demand, next
// begins to come.
func (t *Trainer) NeedWeights(bucket, next int) error {
	if !t.fresh[bucket] {
		if err := t.awaitWeights(bucket); err != nil {
			return err
		}
	}
	if t.onDemand() && next >= 0 && !t.fresh[next] {
		defer t.waits(&t.result.Timing.Gather, time.Now())
		return t.bring(next)
	}
	return t.ctx.Err()
}

// waits adds the time since a wait began to that of a phase. What is waited for within a computation is no
// part of it: a rank that waits for a slow one is not slow.
func (t *Trainer) waits(phase *time.Duration, began time.Time) { *phase += time.Since(began) }

func (t *Trainer) awaitWeights(bucket int) error {
	began := time.Now()
	if t.onDemand() {
		if err := t.bring(bucket); err != nil {
			return err
		}
	}
	if err := t.peers.gathered(t.ctx, bucket); err != nil {
		return err
	}
	t.waits(&t.result.Timing.Gather, began)
	t.model.Repack(t.stream, bucket)
	t.fresh[bucket], t.coming = true, -1
	return nil
}

// GradReady sends a bucket on its way round the ring when its last micro-batch has
// left it, while the layers before it are still computed.
func (t *Trainer) GradReady(bucket, at int) error {
	r, last := t.now, t.closing
	if t.together() {
		r, last = t.ranks[at/t.micros()], (at+1)%t.micros() == 0
	}
	if !last {
		return t.ctx.Err()
	}
	return t.peers.ready(r, bucket)
}

// memory is what was allocated together and is freed together.
type memory struct {
	dev  device.Device
	bufs []device.Buf
}

func (m *memory) tensor(k device.Kind, dt device.DType, rows, cols int) (device.Tensor, error) {
	b, err := m.dev.Alloc(int64(rows)*int64(cols)*dt.Size(), k)
	if err != nil {
		return device.Tensor{}, err
	}
	m.bufs = append(m.bufs, b)
	return device.Make(b, dt, rows, cols), nil
}

func (m *memory) free() {
	for _, b := range m.bufs {
		m.dev.Free(b)
	}
	m.bufs = nil
}
