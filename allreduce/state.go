package allreduce

import (
	"context"
	"fmt"

	"github.com/skein-ml/skein/shard"
)

// A rank moves to another worker, or a mirror is filled, by sending what its owner holds
// of it, piece by piece, the way round the ring. Such state lets all frames of steps
// pass. Relays hold what they have read and not yet written; a worker therefore has at
// most stateWindow bytes under way, which the receipts of those who got them free again.
// No reader waits for a writer: in a ring that could end with everybody waiting.

// StateParts are the parts of a piece's state: master weights, first and second moment.
const StateParts = 3

// stateWindow bounds the state of a worker that is on its way.
const stateWindow = 4 << 20

// StateMemory is the memory of a worker that takes state from others.
type StateMemory interface {
	// State is where a stretch of a part of the state of a rank's piece goes, fp32, or nil
	// if this worker expects no such thing: then the link refuses the frame by name. The
	// range lies in one piece, that of the rank.
	State(rank shard.Rank, part, bucket int, r shard.Range) []byte
}

// statePlace names the piece of a rank.
type statePlace struct {
	rank   shard.Rank
	bucket int
}

// stateIn is what has come of the state of a piece.
type stateIn struct {
	step int64
	at   [StateParts]int64 // elements of each part
	left int               // parts that are not complete
}

// SendState sends the state of a rank's piece of a bucket at a step to another worker,
// and returns at once. The parts are fp32, of the piece's length; they stay unchanged
// until WaitSent. It may be called at any time in the life of the link.
func (l *Link) SendState(to int, rank shard.Rank, bucket int, step int64, parts [StateParts][]byte) error {
	piece := l.c.Table.Bucket(bucket).Piece(rank)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil:
		return l.err
	case l.nextLeft:
		return l.leftError()
	case to < 0 || to >= l.c.Placement.Workers() || to == l.c.Worker:
		return fmt.Errorf("ring: state of rank %d for worker %d, from worker %d of %d", rank, to, l.c.Worker, l.c.Placement.Workers())
	}
	for part, b := range parts {
		if int64(len(b)) != 4*piece.Len() {
			return fmt.Errorf("ring: state of rank %d, bucket %d, part %d: %d bytes for %d elements", rank, bucket, part, len(b), piece.Len())
		}
	}
	for part, b := range parts {
		for lo := int64(0); lo < piece.Len(); lo += l.fullElems {
			hi := min(lo+l.fullElems, piece.Len())
			h := header{Kind: kindState, Part: uint8(part), Step: step, Lo: piece.Lo + lo, Hi: piece.Lo + hi,
				Bucket: uint32(bucket), Piece: uint16(rank), From: uint16(l.c.Worker), To: uint16(to)}
			l.stateUnsent += 4 * (hi - lo)
			l.sendLocked(item{header: h, payload: b[4*lo : 4*hi]})
		}
	}
	return nil
}

// WaitSent waits until everything that SendState took has arrived where it was sent.
func (l *Link) WaitSent(ctx context.Context) error {
	return l.wait(ctx, kindReceipt, -1, func() bool { return l.stateUnsent == 0 && l.stateInRing == 0 })
}

// WaitState waits until all parts of the state of a rank's piece of a bucket, at that
// step, are in State memory. They come from a worker that has them.
func (l *Link) WaitState(ctx context.Context, from int, rank shard.Rank, bucket int, step int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waitAs(ctx, waiting{kind: kindState, step: step, bucket: bucket, piece: rank, from: from}, func() bool {
		in := l.states[statePlace{rank, bucket}]
		return in != nil && in.step == step && in.left == 0
	})
}

// state reads a stretch of a piece's state to its place, or passes it on.
func (r *receiver) state(h *header) error {
	l := r.l
	if err := l.cell(h, l.fullElems, 4); err != nil {
		return err
	}
	if err := l.admitWay(h); err != nil {
		return err
	}
	if int(h.To) != l.c.Worker {
		c := l.newChunkBytes(int64(h.Length))
		if err := r.payload(h, c.data); err != nil {
			l.freeChunk(c)
			return err
		}
		l.send(item{header: *h, payload: c.data, chunk: c, summed: true})
		return nil
	}
	in, err := l.admitState(h)
	if err != nil {
		return err
	}
	var place []byte
	if m, ok := l.c.Memory.(StateMemory); ok {
		place = m.State(shard.Rank(h.Piece), int(h.Part), int(h.Bucket), shard.Range{Lo: h.Lo, Hi: h.Hi})
	}
	if place == nil {
		return outOfPlace(h, "this worker expects no such state")
	}
	if err := r.payload(h, place); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sendLocked(item{header: header{Kind: kindReceipt, Hi: int64(h.Length), From: uint16(l.c.Worker), To: h.From}})
	if h.Hi == l.c.Table.Bucket(int(h.Bucket)).Piece(shard.Rank(h.Piece)).Hi {
		in.left--
		l.changed.Broadcast()
	}
	return nil
}

// admitWay refuses what has gone too far round the ring.
func (l *Link) admitWay(h *header) error {
	from, to := int(h.From), int(h.To)
	if workers := l.c.Placement.Workers(); from >= workers || to >= workers || from == to || from == l.c.Worker {
		return outOfPlace(h, "it reaches worker %d of %d", l.c.Worker, workers)
	}
	return nil
}

// admitState takes the next stretch of a part. The first of a piece begins anew.
func (l *Link) admitState(h *header) (*stateIn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	where := statePlace{shard.Rank(h.Piece), int(h.Bucket)}
	piece := l.c.Table.Bucket(where.bucket).Piece(where.rank)
	in := l.states[where]
	if h.Part == 0 && h.Lo == piece.Lo {
		if in == nil {
			in = &stateIn{}
			l.states[where] = in
		}
		*in = stateIn{step: h.Step, left: StateParts}
	}
	if in == nil || in.step != h.Step || h.Lo != piece.Lo+in.at[h.Part] {
		return nil, outOfPlace(h, "it is not what follows")
	}
	in.at[h.Part] += h.Hi - h.Lo
	return in, nil
}

// receipt frees what has arrived, or passes on.
func (r *receiver) receipt(h *header) error {
	l := r.l
	if err := l.admitWay(h); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if int(h.To) != l.c.Worker {
		l.sendLocked(item{header: *h})
		return nil
	}
	if h.Hi > l.stateInRing {
		return outOfPlace(h, "%d bytes, of %d under way", h.Hi, l.stateInRing)
	}
	l.stateInRing -= h.Hi
	l.work.Signal()
	if l.stateInRing == 0 && l.stateUnsent == 0 {
		l.changed.Broadcast()
	}
	return nil
}
