package trainer

import (
	"context"
	"errors"
	"fmt"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/shard"
)

// errUnlinked is the error of a worker that hosts some of the ranks and was not joined
// to the others.
var errUnlinked = errors.New("not connected to the other workers of the job")

// unlinked stands in for a link until there is one.
type unlinked struct{}

func (unlinked) ready(*rank, int) error               { return errUnlinked }
func (unlinked) rowsReady(*rank) error                { return errUnlinked }
func (unlinked) reduce(context.Context) error         { return errUnlinked }
func (unlinked) average(context.Context, int64) error { return errUnlinked }
func (unlinked) begin(int64) error                    { return errUnlinked }
func (unlinked) changed(int) error                    { return errUnlinked }
func (unlinked) gathered(context.Context, int) error  { return errUnlinked }
func (unlinked) decide(context.Context, []allreduce.Vote) (allreduce.Decision, error) {
	return allreduce.Decision{}, errUnlinked
}

// linked is the collective of ranks on several workers. The link reads gradients and
// writes sums and weights in host memory: the device's own where the host can address
// it, else mirrors that are copied from and to it.
type linked struct {
	t    *Trainer
	link *allreduce.Link
	mem  memory

	begun    bool // the reduce of the step under way
	mirrored bool
	first    shard.Rank
	grads    [][][]byte // by hosted rank and bucket
	rows     [][]byte   // by hosted rank
	sums     [][]byte   // by bucket: what is held
	work     [][]byte   // by bucket

	// Where another worker's sparse rows stand while they are added.
	stageIDs, stageRows device.Tensor
}

// LinkMemory is the memory that a link between workers works on. The trainer must be
// one of several; the link is then given to [Trainer.Join].
func (t *Trainer) LinkMemory() (allreduce.LinkMemory, error) {
	l, err := t.newLinked()
	if err != nil {
		return nil, err
	}
	t.peers = l
	return l, nil
}

// Arithmetic is how the link adds: with the device's own additions where the host can
// reach its memory.
func (t *Trainer) Arithmetic() allreduce.Arithmetic {
	d, ok := t.dev.(device.HostAddressable)
	if !ok {
		return allreduce.RefArithmetic
	}
	return allreduce.Arithmetic{AddF32: d.AddF32, RoundBF16: d.RoundBF16, AddBF16: d.AddBF16, AddBF16Last: d.AddBF16Last}
}

// Join connects the trainer to the other workers.
func (t *Trainer) Join(link *allreduce.Link) { t.peers.(*linked).link = link }

func (t *Trainer) newLinked() (*linked, error) {
	l := &linked{t: t, mem: memory{dev: t.dev}, first: t.ranks[0].id}
	host := func(x device.Tensor) []byte { return make([]byte, x.Buf.Bytes()) }
	if d, ok := t.dev.(device.HostAddressable); ok {
		host = func(x device.Tensor) []byte { return d.Host(x.Buf) }
	} else {
		l.mirrored = true
	}
	for _, r := range t.ranks {
		var flat [][]byte
		for _, g := range r.grads.Flat {
			flat = append(flat, host(g))
		}
		l.grads, l.rows = append(l.grads, flat), append(l.rows, host(r.grads.Sparse))
	}
	for b := range t.table.Buckets() {
		l.sums, l.work = append(l.sums, host(t.sums.flat[b])), append(l.work, host(t.model.Bucket(b)))
	}
	slots := t.ranks[0].grads.Sparse.Rows
	var err error
	if l.stageIDs, err = l.mem.tensor(device.KindStaging, device.I32, 1, slots); err == nil {
		l.stageRows, err = l.mem.tensor(device.KindStaging, device.F32, slots, t.cfg.Model.Hidden)
	}
	if err != nil {
		l.mem.free()
		return nil, err
	}
	return l, nil
}

// Gradient implements [allreduce.LinkMemory].
func (l *linked) Gradient(rank shard.Rank, bucket int, r shard.Range) []byte {
	return l.grads[rank-l.first][bucket][r.Lo*4 : r.Hi*4]
}

// Reduced implements [allreduce.LinkMemory].
func (l *linked) Reduced(bucket int, r shard.Range) []byte {
	base := l.t.state.held[bucket].Lo
	return l.sums[bucket][(r.Lo-base)*4 : (r.Hi-base)*4]
}

// Gathered implements [allreduce.LinkMemory].
func (l *linked) Gathered(bucket int, r shard.Range) []byte {
	if l.replicated() {
		return l.Reduced(bucket, r)
	}
	size := int64(l.ElemBytes())
	return l.work[bucket][r.Lo*size : r.Hi*size]
}

// ElemBytes implements [allreduce.LinkMemory].
func (l *linked) ElemBytes() int {
	if l.replicated() {
		return 4
	}
	return int(l.t.cfg.Precision.Size())
}

// replicated tells whether the optimizer is: then sums are gathered, not weights.
func (l *linked) replicated() bool { return l.t.cfg.Stage < shard.StageOptimizer }

// fetch makes a stretch of a mirror what the device has.
func (l *linked) fetch(host []byte, x device.Tensor) error {
	if !l.mirrored {
		return l.t.stream.Record().Wait()
	}
	l.t.dev.Download(l.t.stream, host, x.Buf)
	return l.t.stream.Record().Wait()
}

// put makes the device's memory what a mirror has.
func (l *linked) put(x device.Tensor, host []byte) {
	if l.mirrored {
		l.t.dev.Upload(l.t.stream, x.Buf, host)
	}
}

func (l *linked) ready(r *rank, bucket int) error {
	if !l.begun {
		// The forward has used every bucket's weights, so all of them are here.
		if err := l.link.Begin(l.t.ctx, l.t.step+1); err != nil {
			return err
		}
		l.begun = true
	}
	if err := l.fetch(l.grads[r.id-l.first][bucket], r.grads.Flat[bucket]); err != nil {
		return err
	}
	l.link.Ready(r.id, bucket)
	return l.t.ctx.Err()
}

func (l *linked) rowsReady(r *rank) error {
	rows := r.sparse()
	host := l.rows[r.id-l.first][:rows.Buf.Bytes()]
	if err := l.fetch(host, rows); err != nil {
		return err
	}
	l.link.SendRows(r.id, r.grads.Slots.IDs, host)
	return nil
}

func (l *linked) reduce(ctx context.Context) error {
	l.begun = false
	t := l.t
	for b := range t.table.Buckets() {
		if err := l.link.WaitReduced(ctx, b); err != nil {
			return err
		}
		own := t.owns(b)
		l.put(t.sum(b, own), l.Reduced(b, own))
	}
	all, err := l.link.WaitRows(ctx)
	if err != nil {
		return err
	}
	ids := make([][]int32, len(all))
	for i, r := range all {
		if err := l.check(r); err != nil {
			return fmt.Errorf("embedding rows of rank %d: %w", i, err)
		}
		ids[i] = r.IDs
	}
	t.addSparse(ids, func(part allreduce.Rows) (device.Tensor, device.Tensor) { return l.stage(all[part.Rank], part) })
	return nil
}

// check refuses rows that the model has no place for: they came from the network.
func (l *linked) check(r allreduce.RankRows) error {
	width := l.t.cfg.Model.Hidden * 4
	if len(r.IDs) > l.stageIDs.Cols || len(r.Rows) != len(r.IDs)*width {
		return fmt.Errorf("%d ids with %d bytes, where at most %d with %d bytes each can come", len(r.IDs), len(r.Rows), l.stageIDs.Cols, width)
	}
	last := int32(-1)
	for _, id := range r.IDs {
		if id <= last || int(id) >= l.t.cfg.Model.Vocab {
			return fmt.Errorf("id %d after %d in a vocabulary of %d", id, last, l.t.cfg.Model.Vocab)
		}
		last = id
	}
	return nil
}

// stage brings a rank's rows of a piece to the device.
func (l *linked) stage(r allreduce.RankRows, part allreduce.Rows) (ids, rows device.Tensor) {
	t, width := l.t, l.t.cfg.Model.Hidden*4
	ids, rows = l.stageIDs.ColRange(0, part.Hi-part.Lo), l.stageRows.RowRange(0, part.Hi-part.Lo)
	t.dev.Upload(t.stream, ids.Buf, device.HostBytes(r.IDs[part.Lo:part.Hi]))
	t.dev.Upload(t.stream, rows.Buf, r.Rows[part.Lo*width:part.Hi*width])
	return ids, rows
}

func (l *linked) decide(ctx context.Context, votes []allreduce.Vote) (allreduce.Decision, error) {
	return l.link.Vote(ctx, votes)
}

// average gathers the sums, for an optimizer that is replicated.
func (l *linked) average(ctx context.Context, step int64) error {
	if !l.replicated() {
		return nil
	}
	t := l.t
	if err := l.link.BeginGather(ctx, step); err != nil {
		return err
	}
	for b := range t.table.Buckets() {
		own := t.owns(b)
		if err := l.fetch(l.Reduced(b, own), t.sum(b, own)); err != nil {
			return err
		}
		l.link.GatherReady(b)
	}
	for b := range t.table.Buckets() {
		if err := l.link.WaitGathered(ctx, b); err != nil {
			return err
		}
		l.put(t.sums.flat[b], l.sums[b])
	}
	return nil
}

func (l *linked) begin(step int64) error {
	if l.replicated() {
		return nil
	}
	ctx := l.t.ctx
	if ctx == nil { // restored before its first step: little can wait to be written
		ctx = context.Background()
	}
	return l.link.BeginGather(ctx, step)
}

func (l *linked) changed(bucket int) error {
	if l.replicated() {
		return nil
	}
	own := l.t.owns(bucket)
	if err := l.fetch(l.Gathered(bucket, own), l.t.model.Bucket(bucket).ColRange(int(own.Lo), int(own.Hi))); err != nil {
		return err
	}
	l.link.GatherReady(bucket)
	return nil
}

func (l *linked) gathered(ctx context.Context, bucket int) error {
	if l.replicated() {
		return nil
	}
	if err := l.link.WaitGathered(ctx, bucket); err != nil {
		return err
	}
	l.put(l.t.model.Bucket(bucket), l.work[bucket])
	return nil
}
