package allreduce

import (
	"context"
	"fmt"

	"github.com/skein-ml/skein/internal/invariant"
	"github.com/skein-ml/skein/shard"
)

// Every worker mirrors the one before it in the ring: it holds the same master weights
// and moments, and gets the same reduced gradients before the step is voted on, so that
// it can make the same update. DESIGN.md says why that is safe.

// MirrorMemory is the memory of a worker that mirrors the one before it.
type MirrorMemory interface {
	// Mirror is where the reduced gradient of a piece goes that the previous worker owns,
	// fp32. The range lies in one piece. The link writes there from the moment at which
	// this worker's gradient of the bucket is Ready, until the step is decided.
	Mirror(bucket int, r shard.Range) []byte
}

// newMirror makes the counts of what is mirrored.
func (l *Link) newMirror() {
	buckets := l.c.Table.Buckets()
	l.mirrorLeft, l.mirrorSent = make([]int, buckets), make([]bool, buckets)
	for range buckets {
		l.mirrorAt = append(l.mirrorAt, make([]int64, l.c.Table.WorldSize()))
	}
}

// beginMirror forgets the last step.
func (l *Link) beginMirror() {
	if !l.c.Mirror {
		return
	}
	pieces := len(l.c.Placement.Ranks(l.prev))
	for b := range l.mirrorLeft {
		l.mirrorLeft[b], l.mirrorSent[b] = pieces, false
		clear(l.mirrorAt[b])
	}
}

// MirrorReady says that the pieces owned here of a bucket are final in Reduced memory,
// sparse rows included, and returns at once: they go to the next worker, and stay
// unchanged until the step is decided. Without Mirror it does nothing.
func (l *Link) MirrorReady(bucket int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.c.Mirror || l.err != nil {
		return
	}
	invariant.Check(l.reducing && l.reducedLeft[bucket] == 0 && !l.mirrorSent[bucket],
		"step %d, bucket %d: it is mirrored with %d pieces not reduced, or twice", l.step, bucket, l.reducedLeft[bucket])
	l.mirrorSent[bucket] = true
	for _, rank := range l.engine.hosted {
		piece := l.c.Table.Bucket(bucket).Piece(rank)
		for lo := piece.Lo; lo < piece.Hi; lo += l.fullElems {
			r := shard.Range{Lo: lo, Hi: min(lo+l.fullElems, piece.Hi)}
			h := header{Kind: kindMirror, Step: l.step, Lo: r.Lo, Hi: r.Hi, Bucket: uint32(bucket), Piece: uint16(rank), From: uint16(l.c.Worker)}
			l.sendLocked(item{header: h, payload: l.c.Memory.Reduced(bucket, r)})
		}
	}
}

// WaitMirrored waits until the reduced gradients of all pieces of a bucket that the
// previous worker owns are in Mirror memory. Without Mirror there are none.
func (l *Link) WaitMirrored(ctx context.Context, bucket int) error {
	return l.wait(ctx, kindMirror, bucket, func() bool { return !l.c.Mirror || l.reducing && l.mirrorLeft[bucket] == 0 })
}

// mirror reads a stretch of a reduced gradient to its place.
func (r *receiver) mirror(h *header) error {
	l := r.l
	if !l.c.Mirror {
		return outOfPlace(h, "nothing is mirrored in this generation")
	}
	if err := l.cell(h, l.fullElems, 4); err != nil {
		return err
	}
	whole, err := l.admitMirror(h)
	if err != nil {
		return err
	}
	place := l.c.Memory.(MirrorMemory).Mirror(int(h.Bucket), shard.Range{Lo: h.Lo, Hi: h.Hi})
	if err := r.payload(h, place); err != nil || !whole {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mirrorLeft[h.Bucket]--; l.mirrorLeft[h.Bucket] == 0 {
		l.changed.Broadcast()
	}
	return nil
}

// admitMirror refuses what must not be written to memory, and tells whether the frame
// is the last of its piece. A piece is reduced with the gradients of this worker, so its
// sum cannot come before this worker has begun the step; and no step is decided before
// it is here.
func (l *Link) admitMirror(h *header) (whole bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	piece := l.c.Table.Bucket(int(h.Bucket)).Piece(shard.Rank(h.Piece))
	at := &l.mirrorAt[h.Bucket][h.Piece]
	switch {
	case !l.reducing || h.Step != l.step || l.decision != nil:
		return false, outOfPlace(h, "step %d is under way, decided: %t", l.step, l.decision != nil)
	case l.c.Placement.Worker(shard.Rank(h.Piece)) != l.prev:
		return false, outOfPlace(h, "%s does not own this piece", l.name(l.prev))
	case h.Lo != piece.Lo+*at:
		return false, outOfPlace(h, "expected elements from %d", piece.Lo+*at)
	}
	*at += h.Hi - h.Lo
	return h.Hi == piece.Hi, nil
}

// unready says what this worker still lacks to vote, or "": a vote says that the pieces
// of its ranks are reduced, and that what is mirrored here, or held by all, is here.
func (l *Link) unready() string {
	for b := range l.reducedLeft {
		switch {
		case l.reducedLeft[b] != 0:
			return fmt.Sprintf("bucket %d is reduced", b)
		case l.c.Mirror && !l.mirrorSent[b]:
			return fmt.Sprintf("bucket %d is sent to the mirror", b)
		case l.c.Mirror && l.mirrorLeft[b] != 0:
			return fmt.Sprintf("bucket %d of %s is mirrored here", b, l.name(l.prev))
		case l.c.GatherFirst && l.gatheredLeft[b] != 0:
			return fmt.Sprintf("bucket %d is gathered", b)
		}
	}
	return ""
}
