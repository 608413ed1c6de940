// Package allreduce adds the ranks' gradients and lets them agree on what a step
// does. The rules live in pure machines: Ring knows which stretch of which piece
// goes where and in which order it is added, Decide turns votes into the decision
// record. Links execute what a Ring asks for: Local moves nothing and adds in the
// memory of one worker. All links and all ZeRO stages share the one addition that
// the caller injects, which is why they give the same bits.
//
// How a piece is summed, for four ranks and piece 1 (its owner, rank 1, comes last):
//
//	rank 2          rank 3               rank 0               rank 1
//	w(g2)  ──▶  w(w(g2) + g3)  ──▶  w(… + g0)  ──▶  R = … + g1
//
// Every sum is in fp32. w rounds what is sent to the wire type: nothing for an fp32
// wire, to the nearest bfloat16 for a bf16 wire, even when both ranks are on the
// same worker. The owner's last sum is not rounded. Elements do not see each other,
// so how a piece is cut into frames changes nothing.
package allreduce

import (
	"errors"
	"fmt"

	"github.com/skein-ml/skein/internal/invariant"
	"github.com/skein-ml/skein/shard"
)

// Wire is the type in which gradients travel between ranks.
type Wire uint8

// The wire types.
const (
	WireFP32 Wire = iota
	WireBF16
)

// Op is a collective operation.
type Op uint8

// The operations on a bucket: reduce-scatter, then all-gather.
const (
	OpReduce Op = iota
	OpGather
	opCount
)

func (o Op) String() string {
	switch o {
	case OpReduce:
		return "reduce"
	case OpGather:
		return "gather"
	}
	return fmt.Sprintf("op %d", uint8(o))
}

// Frame names a stretch of a piece on its way round the ring. Together with job
// and generation, which belong to a connection, it is what every frame says, so
// that a hang always has a culprit.
type Frame struct {
	Step   int64
	Op     Op
	Bucket int
	Piece  shard.Rank
	Range  shard.Range // elements, counted from the start of the bucket
}

func (f Frame) String() string {
	return fmt.Sprintf("%v, step %d, bucket %d, piece %d, elements [%d, %d)", f.Op, f.Step, f.Bucket, f.Piece, f.Range.Lo, f.Range.Hi)
}

// Errors of Ring.Arrived to branch on.
var (
	// ErrEarly is returned for a frame of the next step: a neighbour can be one step
	// ahead and no more. Link keeps such frames of a reduce and delivers them after
	// Begin, without asking the ring before.
	ErrEarly = errors.New("frame of the next step")
	// ErrFrame is returned for a frame that cannot come in this place.
	ErrFrame = errors.New("unexpected frame")
)

// Do is what a Ring asks its link to do.
type Do uint8

// The kinds of actions. "own" is the rank's local gradient of the bucket, "sum"
// the partial or final sum; frames that arrive are placed in sum by the link.
const (
	// DoCopy: sum = own. Only in a ring of one rank.
	DoCopy Do = iota
	// DoRoundOwn: sum = own, rounded to the wire type. The start of a piece.
	DoRoundOwn
	// DoAdd: sum = received + own.
	DoAdd
	// DoRound: sum is rounded to the wire type, in place.
	DoRound
	// DoSendOwn: send own to the next rank. The start of a piece on an fp32 wire.
	DoSendOwn
	// DoSend: send sum (or for a gather, the final bytes) to the next rank.
	DoSend
	// DoneReduce: the rank's own piece of the bucket is reduced.
	DoneReduce
	// DoneGather: all pieces of the bucket are here.
	DoneGather
)

// Action is one thing to do, about the stretch that its frame names.
type Action struct {
	Do    Do
	Frame Frame
	// Hop counts a piece's additions, from 1; for DoAdd only. At hop 1 what was
	// received is the previous rank's own gradient.
	Hop int
}

// Ring is one rank's part in reduce-scatter and all-gather: a step machine with
// events in and actions out, without goroutine, clock or bytes. Actions must be
// executed in the order in which they come. Frames of one piece must be delivered
// in the order in which they were sent; different pieces and buckets may overtake
// each other.
type Ring struct {
	table shard.Table
	rank  shard.Rank
	wire  Wire
	chunk int64
	step  int64
	state [opCount][]bucketState
}

// bucketState is the progress of one operation on one bucket.
type bucketState struct {
	ready bool // own gradient, or own piece, is complete
	// arrived and done are ends of stretches by piece, counted from the start of the
	// piece: what came from the previous rank, and what was handled.
	// Invariant: 0 ≤ done ≤ arrived ≤ length of a piece.
	arrived, done []int64
	complete      int // pieces that are wholly handled
}

// NewRing makes the ring of one rank. Frames hold at most chunkElems elements.
func NewRing(table shard.Table, rank shard.Rank, wire Wire, chunkElems int64) *Ring {
	invariant.Check(chunkElems > 0, "chunk of %d elements", chunkElems)
	r := &Ring{table: table, rank: rank, wire: wire, chunk: chunkElems}
	for op := range r.state {
		r.state[op] = make([]bucketState, table.Buckets())
		for i := range r.state[op] {
			s := &r.state[op][i]
			s.arrived, s.done = make([]int64, table.WorldSize()), make([]int64, table.WorldSize())
		}
	}
	return r
}

// Begin starts a step and forgets what the last one left unfinished.
func (r *Ring) Begin(step int64) {
	r.step = step
	for op := range r.state {
		for i := range r.state[op] {
			s := &r.state[op][i]
			s.ready, s.complete = false, 0
			clear(s.arrived)
			clear(s.done)
		}
	}
}

// next and prev are the neighbours of a rank.
func (r *Ring) next(rank shard.Rank) shard.Rank {
	return shard.Rank((int(rank) + 1) % r.table.WorldSize())
}

func (r *Ring) prev(rank shard.Rank) shard.Rank {
	return shard.Rank((int(rank) + r.table.WorldSize() - 1) % r.table.WorldSize())
}

// Ready says that the rank's local gradient of a bucket is complete, and appends
// what is to be done to acts.
func (r *Ring) Ready(bucket int, acts []Action) []Action {
	if r.table.WorldSize() == 1 {
		r.markReady(bucket)
		whole := r.frame(OpReduce, bucket, 0, 0, r.pieceLen(bucket))
		return append(acts, Action{Do: DoCopy, Frame: whole}, Action{Do: DoneReduce, Frame: whole})
	}
	return r.Contribute(bucket, r.Start(bucket, acts))
}

// Contribute is Ready without Start: it adds to what others began, and begins nothing.
// A link that bounds what is under way calls the two at different times, in a ring of
// more than one rank.
func (r *Ring) Contribute(bucket int, acts []Action) []Action {
	r.markReady(bucket)
	for piece := range r.state[OpReduce][bucket].arrived {
		acts = r.fold(bucket, shard.Rank(piece), acts)
	}
	return acts
}

func (r *Ring) markReady(bucket int) {
	s := &r.state[OpReduce][bucket]
	invariant.Check(!s.ready, "rank %d: bucket %d is ready twice in step %d", r.rank, bucket, r.step)
	s.ready = true
}

// Start sends the piece that begins at this rank: the one of the rank before it. The
// local gradient of the bucket must be complete.
func (r *Ring) Start(bucket int, acts []Action) []Action {
	piece, send := r.prev(r.rank), DoSendOwn
	if r.wire == WireBF16 {
		send = DoSend
	}
	for lo := int64(0); lo < r.pieceLen(bucket); lo += r.chunk {
		f := r.frame(OpReduce, bucket, piece, lo, min(lo+r.chunk, r.pieceLen(bucket)))
		if r.wire == WireBF16 {
			acts = append(acts, Action{Do: DoRoundOwn, Frame: f})
		}
		acts = append(acts, Action{Do: send, Frame: f})
	}
	return acts
}

// fold adds what has arrived of a piece and not been added, and passes it on.
func (r *Ring) fold(bucket int, piece shard.Rank, acts []Action) []Action {
	s := &r.state[OpReduce][bucket]
	last := piece == r.rank
	for s.done[piece] < s.arrived[piece] {
		lo := s.done[piece]
		hi := min(lo+r.chunk, s.arrived[piece])
		f := r.frame(OpReduce, bucket, piece, lo, hi)
		acts = append(acts, Action{Do: DoAdd, Frame: f, Hop: r.hop(piece)})
		s.done[piece] = hi
		if last {
			continue
		}
		if r.wire == WireBF16 {
			acts = append(acts, Action{Do: DoRound, Frame: f})
		}
		acts = append(acts, Action{Do: DoSend, Frame: f})
	}
	if last && s.complete == 0 && s.done[piece] == r.pieceLen(bucket) {
		s.complete = 1
		acts = append(acts, Action{Do: DoneReduce, Frame: r.frame(OpReduce, bucket, piece, 0, s.done[piece])})
	}
	return acts
}

// hop is how many additions a piece has seen after this rank's.
func (r *Ring) hop(piece shard.Rank) int {
	worldSize := r.table.WorldSize()
	return (int(r.rank) - int(piece) - 1 + worldSize) % worldSize
}

// GatherReady says that the rank's own piece of a bucket has its final bytes.
func (r *Ring) GatherReady(bucket int, acts []Action) []Action {
	s := &r.state[OpGather][bucket]
	invariant.Check(!s.ready, "rank %d: piece of bucket %d is final twice in step %d", r.rank, bucket, r.step)
	s.ready = true
	if r.table.WorldSize() > 1 {
		for lo := int64(0); lo < r.pieceLen(bucket); lo += r.chunk {
			hi := min(lo+r.chunk, r.pieceLen(bucket))
			acts = append(acts, Action{Do: DoSend, Frame: r.frame(OpGather, bucket, r.rank, lo, hi)})
		}
	}
	return r.gathered(bucket, acts)
}

// GatherAgain forgets a gather of a bucket that is complete, for another one in the same step.
func (r *Ring) GatherAgain(bucket int) {
	s := &r.state[OpGather][bucket]
	invariant.Check(r.Gathered(bucket), "rank %d: bucket %d is gathered again before it is gathered, in step %d", r.rank, bucket, r.step)
	s.ready, s.complete = false, 0
	clear(s.arrived)
	clear(s.done)
}

// gathered counts one more complete piece and notices the last.
func (r *Ring) gathered(bucket int, acts []Action) []Action {
	s := &r.state[OpGather][bucket]
	s.complete++
	if s.complete == r.table.WorldSize() {
		acts = append(acts, Action{Do: DoneGather, Frame: r.frame(OpGather, bucket, r.rank, 0, r.pieceLen(bucket))})
	}
	return acts
}

// Arrived says that a frame came from the previous rank and that its elements are
// in place. It returns ErrEarly or ErrFrame (wrapped) and does nothing for a frame
// that must not be handled now.
func (r *Ring) Arrived(f Frame, acts []Action) ([]Action, error) {
	if f.Step == r.step+1 {
		return acts, fmt.Errorf("rank %d is at step %d: %v: %w", r.rank, r.step, f, ErrEarly)
	}
	if why := r.misplaced(f); why != "" {
		return acts, fmt.Errorf("rank %d, step %d: %v: %w: %s", r.rank, r.step, f, ErrFrame, why)
	}
	s := &r.state[f.Op][f.Bucket]
	s.arrived[f.Piece] += f.Range.Len()
	if f.Op == OpGather {
		return r.pass(f, acts), nil
	}
	if s.ready {
		acts = r.fold(f.Bucket, f.Piece, acts)
	}
	return acts, nil
}

// pass forwards a frame of a gather, unless the next rank is where it began.
func (r *Ring) pass(f Frame, acts []Action) []Action {
	s := &r.state[OpGather][f.Bucket]
	s.done[f.Piece] = s.arrived[f.Piece]
	if r.next(r.rank) != f.Piece {
		acts = append(acts, Action{Do: DoSend, Frame: f})
	}
	if s.done[f.Piece] == r.pieceLen(f.Bucket) {
		acts = r.gathered(f.Bucket, acts)
	}
	return acts
}

// misplaced says why a frame cannot come now, or "".
func (r *Ring) misplaced(f Frame) string {
	switch {
	case f.Step != r.step:
		return "it belongs to another step"
	case f.Op >= opCount:
		return "no such operation"
	case f.Bucket < 0 || f.Bucket >= r.table.Buckets():
		return fmt.Sprintf("there are %d buckets", r.table.Buckets())
	case f.Piece < 0 || int(f.Piece) >= r.table.WorldSize():
		return fmt.Sprintf("there are %d pieces", r.table.WorldSize())
	case f.Op == OpReduce && f.Piece == r.prev(r.rank), f.Op == OpGather && f.Piece == r.rank:
		return "this piece begins here"
	}
	piece := r.table.Bucket(f.Bucket).Piece(f.Piece)
	want := piece.Lo + r.state[f.Op][f.Bucket].arrived[f.Piece]
	if f.Range.Lo != want || f.Range.Hi <= f.Range.Lo || f.Range.Hi > piece.Hi {
		return fmt.Sprintf("expected elements from %d, at most to %d", want, piece.Hi)
	}
	return ""
}

// Reduced tells whether the rank's own piece of a bucket is reduced.
func (r *Ring) Reduced(bucket int) bool {
	return r.state[OpReduce][bucket].complete == 1 || r.table.WorldSize() == 1 && r.state[OpReduce][bucket].ready
}

// Gathered tells whether all pieces of a bucket are here.
func (r *Ring) Gathered(bucket int) bool {
	return r.state[OpGather][bucket].complete == r.table.WorldSize()
}

func (r *Ring) pieceLen(bucket int) int64 {
	return r.table.Bucket(bucket).Padded / int64(r.table.WorldSize())
}

// frame names elements [lo, hi) of a piece, counted from its start.
func (r *Ring) frame(op Op, bucket int, piece shard.Rank, lo, hi int64) Frame {
	base := r.table.Bucket(bucket).Piece(piece).Lo
	return Frame{r.step, op, bucket, piece, shard.Range{Lo: base + lo, Hi: base + hi}}
}
