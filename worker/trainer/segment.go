package trainer

import (
	"slices"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/shard"
)

// states is how many kinds of optimizer state there are: fp32 master weights and Adam's
// two moments, in the order of [checkpoint.Kind].
const states = 3

// segment is the optimizer state of one rank, of its piece of every bucket, and the
// reduced gradient R(k) of these pieces. A worker holds the segments of the ranks that it
// hosts and of those that it mirrors; where the optimizer is replicated, all of them.
type segment struct {
	rank    shard.Rank
	mem     memory
	state   [states][]device.Tensor // by bucket, [1, piece] F32
	sum     []device.Tensor         // by bucket, [1, piece] F32
	updates [][]update              // by bucket

	// ready says that the state is that of the trainer's step, not on its way or unknown.
	ready bool
}

// update is a range of a bucket that one AdamW call updates.
type update struct {
	shard.Range
	decay bool
}

// newSegment allocates the segment of a rank; what is in it is undefined.
func (t *Trainer) newSegment(rank shard.Rank) (*segment, error) {
	s := &segment{rank: rank, mem: memory{dev: t.dev}}
	elems := int(t.table.SegmentElems())
	cut := func(kind device.Kind) ([]device.Tensor, error) {
		whole, err := s.mem.tensor(kind, device.F32, 1, elems)
		if err != nil {
			return nil, err
		}
		var pieces []device.Tensor
		at := 0
		for _, piece := range t.table.Segment(rank) {
			n := int(piece.Len())
			pieces = append(pieces, whole.ColRange(at, at+n))
			at += n
		}
		return pieces, nil
	}
	var err error
	for kind := range s.state {
		if s.state[kind], err = cut(device.KindOptimizer); err != nil {
			s.mem.free()
			return nil, err
		}
	}
	if s.sum, err = cut(device.KindGradients); err != nil {
		s.mem.free()
		return nil, err
	}
	for b := range t.table.Buckets() {
		s.updates = append(s.updates, t.cutUpdates(b, t.table.Bucket(b).Piece(rank)))
	}
	return s, nil
}

// cutUpdates cuts a piece where weight decay starts or ends.
func (t *Trainer) cutUpdates(bucket int, piece shard.Range) []update {
	var list []update
	for _, s := range t.table.SpansOf(bucket, piece.Lo, piece.Hi) {
		if n := len(list); n > 0 && list[n-1].decay == s.Decay {
			list[n-1].Hi = s.Bucket.Hi
			continue
		}
		list = append(list, update{s.Bucket, s.Decay})
	}
	return list
}

// piece is the rank whose piece of a bucket has an element, and that piece.
func (t *Trainer) piece(bucket int, elem int64) (shard.Rank, shard.Range) {
	b := t.table.Bucket(bucket)
	r := shard.Rank(elem / (b.Padded / int64(t.cfg.WorldSize)))
	return r, b.Piece(r)
}

// part is a stretch of one kind of a segment's tensors; r counts in the bucket and lies in
// the segment's piece.
func (t *Trainer) part(s *segment, of []device.Tensor, bucket int, r shard.Range) device.Tensor {
	base := t.table.Bucket(bucket).Piece(s.rank).Lo
	return of[bucket].ColRange(int(r.Lo-base), int(r.Hi-base))
}

// sum is a stretch of a piece's reduced gradient.
func (t *Trainer) sum(bucket int, r shard.Range) device.Tensor {
	rank, _ := t.piece(bucket, r.Lo)
	s := t.segments[rank]
	return t.part(s, s.sum, bucket, r)
}

// inPieces calls f for each piece that a stretch of a bucket crosses, in order.
func (t *Trainer) inPieces(bucket int, r shard.Range, f func(*segment, shard.Range) error) error {
	for lo := r.Lo; lo < r.Hi; {
		rank, piece := t.piece(bucket, lo)
		hi := min(r.Hi, piece.Hi)
		if err := f(t.segments[rank], shard.Range{Lo: lo, Hi: hi}); err != nil {
			return err
		}
		lo = hi
	}
	return nil
}

// replicated tells whether every worker holds all segments.
func (t *Trainer) replicated() bool { return t.cfg.Stage < shard.StageOptimizer }

// hosts tells whether a rank is hosted here.
func (t *Trainer) hosts(r shard.Rank) bool {
	return slices.ContainsFunc(t.ranks, func(x *rank) bool { return x.id == r })
}

// applies tells whether this worker applies a rank's decisions for its own use: it makes
// working weights of them.
func (t *Trainer) applies(r shard.Rank) bool { return t.replicated() || t.hosts(r) }

// keeps tells whether a rank's segment belongs here.
func (t *Trainer) keeps(r shard.Rank) bool { return t.applies(r) || slices.Contains(t.mirrors, r) }

// each calls f for the segments that are here, in rank order.
func (t *Trainer) each(f func(*segment) error) error {
	for _, s := range t.segments {
		if s == nil {
			continue
		}
		if err := f(s); err != nil {
			return err
		}
	}
	return nil
}

// dropOthers frees what does not belong here: after a step it is of no use to anybody.
func (t *Trainer) dropOthers() {
	for r, s := range t.segments {
		if s != nil && !t.keeps(shard.Rank(r)) {
			s.mem.free()
			t.segments[r] = nil
		}
	}
}
