package trainer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/shard"
)

// errUnlinked is the error of a worker that hosts some of the ranks and was not joined
// to the others.
var errUnlinked = errors.New("not connected to the other workers of the job")

// unlinked stands in for a link until there is one.
type unlinked struct{}

func (unlinked) ready(*rank, int) error              { return errUnlinked }
func (unlinked) rowsReady(*rank) error               { return errUnlinked }
func (unlinked) spent(context.Context, int) error    { return errUnlinked }
func (unlinked) reduce(context.Context) error        { return errUnlinked }
func (unlinked) begin(int64) error                   { return errUnlinked }
func (unlinked) changed(int) error                   { return errUnlinked }
func (unlinked) gathered(context.Context, int) error { return errUnlinked }
func (unlinked) gather(int) error                    { return errUnlinked }
func (unlinked) written(context.Context, int) error  { return errUnlinked }
func (unlinked) decide(context.Context, []allreduce.Vote) (allreduce.Decision, error) {
	return allreduce.Decision{}, errUnlinked
}

// sealed stands in where a worker has left its generation: what it applies then, nobody
// hears of.
type sealed struct{ unlinked }

func (sealed) begin(int64) error { return nil }
func (sealed) changed(int) error { return nil }

// linked is the collective of ranks on several workers. The link reads gradients and
// writes sums and weights in host memory: the device's own where the host can address
// it, else mirrors that are copied from and to it.
type linked struct {
	t    *Trainer
	link *allreduce.Link
	mem  memory

	begun  bool // the step under way
	copied bool // host memory is a copy of the device's
	first  shard.Rank
	grads  [][][]byte // by hosted rank and bucket
	rows   [][]byte   // by hosted rank
	sums   [][][]byte // by rank and bucket: of the segments here
	work   [][]byte   // by bucket

	mu    sync.Mutex
	state []*[states][][]byte // by rank, of what is on its way: by kind and bucket

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
	l := &linked{t: t, mem: memory{dev: t.dev}, first: t.ranks[0].id, state: make([]*[states][][]byte, t.cfg.WorldSize)}
	if _, ok := t.dev.(device.HostAddressable); !ok {
		l.copied = true
	}
	for _, r := range t.ranks {
		l.grads, l.rows = append(l.grads, l.gradients(r)), append(l.rows, l.host(r.grads.Sparse))
	}
	for r, s := range t.segments {
		l.sums = append(l.sums, nil)
		if s != nil && t.keeps(shard.Rank(r)) {
			l.sums[r] = l.hosts(s.sum)
		}
	}
	for b := range t.table.Buckets() {
		if t.onDemand() && t.slot(b) >= 0 && b > layerSlots {
			l.work = append(l.work, l.work[b-layerSlots]) // the same memory at other times
			continue
		}
		l.work = append(l.work, l.host(t.model.Bucket(b)))
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

// host is a tensor's memory as the host sees it, or room for a copy.
func (l *linked) host(x device.Tensor) []byte {
	if d, ok := l.t.dev.(device.HostAddressable); ok {
		return d.Host(x.Buf)
	}
	return make([]byte, x.Buf.Bytes())
}

func (l *linked) hosts(list []device.Tensor) [][]byte {
	var memory [][]byte
	for _, x := range list {
		memory = append(memory, l.host(x))
	}
	return memory
}

// gradients are a rank's gradients by bucket as the host sees them.
func (l *linked) gradients(r *rank) [][]byte {
	if !l.copied || r.window.IsZero() {
		return l.hosts(r.grads.Flat)
	}
	window, memory := l.host(r.window), make([][]byte, len(r.grads.Flat))
	for at, b := range l.t.order {
		lo, hi := l.t.inWindow(at)
		memory[b] = window[4*lo : 4*hi]
	}
	return memory
}

// Gradient implements [allreduce.LinkMemory].
func (l *linked) Gradient(rank shard.Rank, bucket int, r shard.Range) []byte {
	return l.grads[rank-l.first][bucket][r.Lo*4 : r.Hi*4]
}

// Reduced implements [allreduce.LinkMemory].
func (l *linked) Reduced(bucket int, r shard.Range) []byte {
	rank, piece := l.t.piece(bucket, r.Lo)
	return l.sums[rank][bucket][(r.Lo-piece.Lo)*4 : (r.Hi-piece.Lo)*4]
}

// Mirror implements [allreduce.MirrorMemory].
func (l *linked) Mirror(bucket int, r shard.Range) []byte { return l.Reduced(bucket, r) }

// State implements [allreduce.StateMemory]: room for what the segments here lack.
func (l *linked) State(rank shard.Rank, part, bucket int, r shard.Range) []byte {
	s := l.t.segments[rank]
	if s == nil || s.ready || !l.t.keeps(rank) {
		return nil
	}
	piece := l.t.table.Bucket(bucket).Piece(rank)
	return l.stateOf(s)[part][bucket][(r.Lo-piece.Lo)*4 : (r.Hi-piece.Lo)*4]
}

// stateOf is the host's view of a segment's state, for a while.
func (l *linked) stateOf(s *segment) *[states][][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state[s.rank] == nil {
		var all [states][][]byte
		for kind := range all {
			all[kind] = l.hosts(s.state[kind])
		}
		l.state[s.rank] = &all
	}
	return l.state[s.rank]
}

// forgetState drops what the host has of state: nothing of it is on its way any more.
func (l *linked) forgetState() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.state)
}

// Gathered implements [allreduce.LinkMemory].
func (l *linked) Gathered(bucket int, r shard.Range) []byte {
	if l.t.replicated() {
		return l.Reduced(bucket, r)
	}
	size := int64(l.ElemBytes())
	return l.work[bucket][r.Lo*size : r.Hi*size]
}

// ElemBytes implements [allreduce.LinkMemory].
func (l *linked) ElemBytes() int {
	if l.t.replicated() {
		return 4
	}
	return int(l.t.cfg.Precision.Size())
}

// fetch makes a stretch of host memory what the device has.
func (l *linked) fetch(host []byte, x device.Tensor) error {
	if !l.copied {
		return l.t.stream.Record().Wait()
	}
	l.t.dev.Download(l.t.stream, host, x.Buf)
	return l.t.stream.Record().Wait()
}

// put makes the device's memory what a copy has.
func (l *linked) put(x device.Tensor, host []byte) {
	if l.copied {
		l.t.dev.Upload(l.t.stream, x.Buf, host)
	}
}

// beginStep begins the step on the link: when its first gradient is ready, because then the forward has
// used every bucket's weights, so all of them are here; or when weights are first needed, on demand.
func (l *linked) beginStep() error {
	if l.begun {
		return nil
	}
	l.begun = true
	return l.link.Begin(l.t.ctx, l.t.step+1)
}

func (l *linked) ready(r *rank, bucket int) error {
	if err := l.beginStep(); err != nil {
		return err
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

func (l *linked) spent(ctx context.Context, bucket int) error { return l.link.WaitSpent(ctx, bucket) }

// reduce waits for the sums of what is hosted here, and sends them on to who keeps them too.
func (l *linked) reduce(ctx context.Context) error {
	l.begun = false
	t := l.t
	if err := l.passSums(); err != nil {
		return err
	}
	for b := range slices.Backward(t.fresh) { // the order in which they come
		if err := l.link.WaitReduced(ctx, b); err != nil {
			return err
		}
		for _, r := range t.ranks {
			l.put(t.segments[r.id].sum[b], l.sums[r.id][b])
		}
		if b != embedding {
			if err := l.announce(ctx, b); err != nil {
				return err
			}
		}
	}
	if err := l.addRows(ctx); err != nil {
		return err
	}
	if err := l.announce(ctx, embedding); err != nil {
		return err
	}
	if err := l.collect(ctx); err != nil {
		return err
	}
	return l.compare(ctx) // last, when the others' are here: who waits for anybody waits for a piece
}

// addRows adds the sparse rows of all ranks.
func (l *linked) addRows(ctx context.Context) error {
	t := l.t
	all, err := l.link.WaitRows(ctx)
	if err != nil {
		return err
	}
	ids := make([][]int32, len(all))
	for i, r := range all {
		if err := l.check(r); err != nil {
			return &PeerError{t.cfg.Placement.Worker(shard.Rank(i)), fmt.Errorf("embedding rows of rank %d of step %d: %w", i, t.step+1, err)}
		}
		ids[i] = r.IDs
	}
	t.addSparse(ids, func(part allreduce.Rows) (device.Tensor, device.Tensor) { return l.stage(all[part.Rank], part) })
	for _, r := range t.ranks {
		if err := l.fetch(l.sums[r.id][embedding], t.segments[r.id].sum[embedding]); err != nil {
			return err
		}
	}
	return nil
}

// announce says that the sums of a bucket are final here.
func (l *linked) announce(ctx context.Context, bucket int) error {
	switch {
	case l.t.replicated(): // once all are final: see collect
		return ctx.Err()
	case l.t.cfg.Mirror:
		l.link.MirrorReady(bucket)
	}
	return nil
}

// collect waits for the sums of what others host and this worker keeps too. A worker votes
// when it has them, so a decision says that every sum stands twice.
func (l *linked) collect(ctx context.Context) error {
	t := l.t
	if t.replicated() {
		if err := l.link.BeginGather(ctx, t.step+1); err != nil {
			return err
		}
		for b := range t.table.Buckets() {
			l.link.GatherReady(b)
		}
	}
	for b := range t.table.Buckets() {
		var err error
		switch {
		case t.replicated():
			err = l.link.WaitGathered(ctx, b)
		case len(t.mirrors) > 0:
			err = l.link.WaitMirrored(ctx, b)
		}
		if err != nil {
			return err
		}
		for r, s := range t.segments {
			if s != nil && t.keeps(shard.Rank(r)) && !t.hosts(shard.Rank(r)) {
				l.put(s.sum[b], l.sums[r][b])
			}
		}
	}
	if len(t.filling) == 0 {
		return nil
	}
	if err := l.receiveMoves(ctx, t.filling); err != nil {
		return err
	}
	if err := l.link.WaitSent(ctx); err != nil {
		return err
	}
	t.filling = nil
	l.forgetState()
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

func (l *linked) begin(step int64) error {
	if l.t.replicated() || l.t.onDemand() {
		return nil
	}
	ctx := l.t.ctx
	if ctx == nil { // restored before its first step: little can wait to be written
		ctx = context.Background()
	}
	return l.link.BeginGather(ctx, step)
}

func (l *linked) changed(bucket int) error {
	if l.t.replicated() || l.t.onDemand() {
		return nil
	}
	if err := l.fetchOwn(bucket); err != nil {
		return err
	}
	l.link.GatherReady(bucket)
	return nil
}

// fetchOwn makes the weights of the hosted ranks' pieces of a bucket final for the host.
func (l *linked) fetchOwn(bucket int) error {
	own, size := l.t.owns(bucket), int64(l.ElemBytes())
	return l.fetch(l.work[bucket][own.Lo*size:own.Hi*size], l.t.model.Bucket(bucket).ColRange(int(own.Lo), int(own.Hi)))
}

func (l *linked) gather(bucket int) error {
	if err := l.beginStep(); err != nil {
		return err
	}
	if err := l.fetchOwn(bucket); err != nil {
		return err
	}
	return l.link.Gather(bucket)
}

func (l *linked) written(ctx context.Context, bucket int) error {
	return l.link.WaitWritten(ctx, bucket)
}

func (l *linked) gathered(ctx context.Context, bucket int) error {
	if l.t.replicated() {
		return nil
	}
	if err := l.link.WaitGathered(ctx, bucket); err != nil {
		return err
	}
	l.put(l.t.model.Bucket(bucket), l.work[bucket])
	return nil
}

// sendMoves queues what this worker has to send. The link reads it until it has gone, so what goes
// to several workers is fetched once: a device may write anything to memory that it copies to.
func (l *linked) sendMoves(moves []Move) error {
	t := l.t
	fetched := make([]bool, t.cfg.WorldSize)
	for _, m := range moves {
		if m.From != t.cfg.Worker {
			continue
		}
		s := t.segments[m.Rank]
		if s == nil || !s.ready {
			return fmt.Errorf("the state of rank %d is to come from here, and is not here", m.Rank)
		}
		host := l.stateOf(s)
		for b := range t.table.Buckets() {
			var parts [states][]byte
			for kind := range parts {
				parts[kind] = host[kind][b]
				if fetched[m.Rank] {
					continue
				}
				if err := l.fetch(parts[kind], s.state[kind][b]); err != nil {
					return err
				}
			}
			if err := l.link.SendState(m.To, m.Rank, b, t.step, parts); err != nil {
				return err
			}
		}
		fetched[m.Rank] = true
	}
	return nil
}

// receiveMoves waits for what comes here.
func (l *linked) receiveMoves(ctx context.Context, moves []Move) error {
	t := l.t
	for _, m := range moves {
		if m.To != t.cfg.Worker {
			continue
		}
		s := t.segments[m.Rank]
		for b := range t.table.Buckets() {
			if err := l.link.WaitState(ctx, m.From, m.Rank, b, t.step); err != nil {
				return err
			}
			for kind := range s.state {
				l.put(s.state[kind][b], l.stateOf(s)[kind][b])
			}
		}
		s.ready = true
	}
	return nil
}
