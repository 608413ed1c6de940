package allreduce

import (
	"context"
	"encoding/binary"
	"slices"

	"github.com/skein-ml/skein/internal/invariant"
	"github.com/skein-ml/skein/shard"
)

// RankRows are the sparse rows of one rank: ids ascending, an fp32 row each.
type RankRows struct {
	IDs  []int32
	Rows []byte
}

// rowSet is what is known of the sparse rows of one step, by rank.
type rowSet struct {
	step  int64
	ranks []rankRows
	left  int // ranks whose rows are not complete
}

// rankRows are one rank's rows as they arrive: ids, then rows, in one stretch that is
// used again two steps later. Of a hosted rank only the ids are copied.
type rankRows struct {
	buf  []byte
	got  int64
	done bool
	RankRows
}

// begin makes the set that of a step, unless rows of it came early.
func (s *rowSet) begin(step int64) {
	if s.step == step {
		return
	}
	s.step, s.left = step, len(s.ranks)
	for i := range s.ranks {
		s.ranks[i].got, s.ranks[i].done = 0, false
	}
}

// resize returns b with n elements, in the memory that it has if that is enough.
func resize[T any](b []T, n int) []T { return slices.Grow(b[:0], n)[:n] }

// SendRows sends the sparse rows of a hosted rank to all workers, once per rank and
// step; a rank without rows sends none of length zero. Both slices stay unchanged
// until the step is decided.
func (l *Link) SendRows(rank shard.Rank, ids []int32, rows []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	set := &l.rows[l.step&1]
	r := &set.ranks[rank]
	invariant.Check(l.reducing && l.hosted[rank] && !r.done, "rows of rank %d in step %d, sent before: %t", rank, l.step, r.done)
	r.buf = resize(r.buf, 4*len(ids))
	for i, id := range ids {
		binary.LittleEndian.PutUint32(r.buf[4*i:], uint32(id))
	}
	r.IDs, r.Rows = append(r.IDs[:0], ids...), rows
	h := header{Kind: kindRows, Step: l.step, Bucket: uint32(len(ids)), Piece: uint16(rank), From: uint16(l.c.Worker)}
	l.sendPartsLocked(h, r.buf, rows)
	l.rowsDoneLocked(set, r)
}

func (l *Link) rowsDoneLocked(set *rowSet, r *rankRows) {
	r.done = true
	set.left--
	l.changed.Broadcast()
}

// sendPartsLocked sends payloads, one after the other, in frames.
func (l *Link) sendPartsLocked(h header, parts ...[]byte) {
	h.Lo, h.Hi = 0, 0
	for _, p := range parts {
		h.Hi += int64(len(p))
	}
	if h.Hi == 0 {
		l.sendLocked(item{header: h})
		return
	}
	for _, p := range parts {
		for part := range slices.Chunk(p, l.c.ChunkBytes) {
			l.sendLocked(item{header: h, payload: part})
			h.Lo += int64(len(part))
		}
	}
}

// WaitRows waits for the sparse rows of all ranks, and returns them by rank. They are
// valid until the next Begin.
func (l *Link) WaitRows(ctx context.Context) ([]RankRows, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	set := &l.rows[l.step&1]
	if err := l.waitLocked(ctx, kindRows, -1, func() bool { return set.left == 0 }); err != nil {
		return nil, err
	}
	all := make([]RankRows, len(set.ranks))
	for i := range all {
		all[i] = set.ranks[i].RankRows
	}
	return all, nil
}

// rows reads part of a rank's rows, and passes it on.
func (r *receiver) rows(h *header) error {
	l := r.l
	set, err := l.admitRows(h)
	if err != nil {
		return err
	}
	rr := &set.ranks[h.Piece]
	part := rr.buf[h.Lo : h.Lo+int64(h.Length)]
	if err := r.payload(h, part); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	rr.got += int64(h.Length)
	if l.c.Placement.Worker(shard.Rank(h.Piece)) != l.next {
		l.sendLocked(item{header: *h, payload: part, summed: true})
	}
	if rr.got == h.Hi {
		n := int(h.Bucket)
		rr.IDs, rr.Rows = resize(rr.IDs, n), rr.buf[4*n:]
		for i := range rr.IDs {
			rr.IDs[i] = int32(binary.LittleEndian.Uint32(rr.buf[4*i:]))
		}
		if !ascending(rr.IDs) || n > 0 && rr.IDs[0] < 0 {
			return outOfPlace(h, "its ids are not ascending")
		}
		l.rowsDoneLocked(set, rr)
	}
	return nil
}

// admitRows checks a part of a rank's rows and makes room for the whole.
func (l *Link) admitRows(h *header) (*rowSet, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	rankMax := 8 * l.c.Table.BucketMax() // ids and rows of a whole embedding
	set := &l.rows[h.Step&1]
	switch {
	case l.reducing && h.Step != l.step && h.Step != l.step+1, h.Step < set.step:
		return nil, outOfPlace(h, "step %d is under way", l.step)
	case int(h.Piece) >= l.c.Table.WorldSize() || l.hosted[h.Piece]:
		return nil, outOfPlace(h, "this rank's rows come from elsewhere")
	case h.Hi > rankMax || int64(h.Bucket)*4 > h.Hi || int(h.Length) > l.c.ChunkBytes:
		return nil, outOfPlace(h, "%d bytes with %d ids, in a frame of %d bytes", h.Hi, h.Bucket, h.Length)
	}
	set.begin(h.Step)
	rr := &set.ranks[h.Piece]
	if rr.done || h.Lo != rr.got || rr.got > 0 && int64(len(rr.buf)) != h.Hi {
		return nil, outOfPlace(h, "bytes from %d of %d, expected from %d", h.Lo, h.Hi, rr.got)
	}
	if rr.got == 0 {
		rr.buf = resize(rr.buf, int(h.Hi))
	}
	return set, nil
}
