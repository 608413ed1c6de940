package worker

import (
	"context"
	"fmt"
	"slices"

	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/internal/crc32c"
	"github.com/skein-ml/skein/shard"
	"github.com/skein-ml/skein/worker/trainer"
)

// A checkpoint takes each rank's state from the worker that hosts it, and a job may go back to
// it long after. So where another worker has that state too, both say before it is published
// what the checksums of all weights and moments are: the owner of the bytes that it hands to be
// written, the other one of its copy at that very step. If any differ, nothing is published.

// kinds is how many kinds of state there are: weights and two moments.
const kinds = int(checkpoint.Moment2) + 1

// sums are the CRC-32Cs of a rank's state, by kind and bucket, padding left out.
type sums struct {
	Rank shard.Rank `json:"rank"`
	Of   [][]uint32 `json:"of"`
}

// newSums are sums of nothing.
func newSums(buckets int, ranks []shard.Rank) []sums {
	var list []sums
	for _, r := range ranks {
		s := sums{Rank: r}
		for range kinds {
			s.Of = append(s.Of, make([]uint32, buckets))
		}
		list = append(list, s)
	}
	return list
}

// sound tells whether these are sums of a rank; they may come from another worker.
func (s sums) sound(table shard.Table) bool {
	return s.Rank >= 0 && int(s.Rank) < table.WorldSize() && len(s.Of) == kinds &&
		!slices.ContainsFunc(s.Of, func(of []uint32) bool { return len(of) != table.Buckets() })
}

// reading sums up what a checkpoint reads, and copies of what it takes from other workers.
// Training goes on as soon as both have been read.
type reading struct {
	*trainer.Trainer
	ctx         context.Context // ends it
	own, copies []sums
	err         error // of reading copies
	done        chan<- struct{}
}

// ReadState implements [checkpoint.Source].
func (r *reading) ReadState(kind checkpoint.Kind, bucket int, lo int64, le []byte) error {
	if err := r.Trainer.ReadState(kind, bucket, lo, le); err != nil {
		return err
	}
	hi := lo + int64(len(le)/4)
	for _, s := range r.own {
		piece := r.Table().Bucket(bucket).Piece(s.Rank)
		if from, to := max(lo, piece.Lo), min(hi, piece.Hi); from < to {
			sum := &s.Of[kind][bucket]
			*sum = crc32c.Update(*sum, le[4*(from-lo):4*(to-lo)])
		}
	}
	return nil
}

// comparedBytes is how much of a copy is read at a time: a processor's own cache holds it.
const comparedBytes = 256 << 10

// ReadDone implements [checkpoint.Releaser]: copies are read while the disk takes the rest.
func (r *reading) ReadDone() {
	defer close(r.done)
	le := make([]byte, comparedBytes)
	for _, s := range r.copies {
		for kind := range kinds {
			for bucket := range s.Of[kind] {
				if s.Of[kind][bucket], r.err = r.sum(s.Rank, checkpoint.Kind(kind), bucket, le); r.err != nil {
					return
				}
			}
		}
	}
}

// sum is the checksum of what is here of one kind of a rank's state in a bucket.
func (r *reading) sum(rank shard.Rank, kind checkpoint.Kind, bucket int, le []byte) (sum uint32, err error) {
	b := r.Table().Bucket(bucket)
	piece := b.Piece(rank)
	for lo, hi := piece.Lo, min(piece.Hi, b.Elems); lo < hi; {
		if err := r.ctx.Err(); err != nil {
			return 0, err
		}
		part := le[:min(int64(len(le)), (hi-lo)*4)]
		if err := r.Trainer.ReadState(kind, bucket, lo, part); err != nil {
			return 0, err
		}
		sum = crc32c.Update(sum, part)
		lo += int64(len(part)) / 4
	}
	return sum, nil
}

// agree fails unless all copies of what a checkpoint takes are the same. All workers hear the
// same, so none goes on.
func (h *hosting) agree(ctx context.Context, s *saving, all []share) error {
	if h.link == nil {
		return nil
	}
	began := h.Order.GetResume().GetStep()
	if h.Order.GetLive() {
		began = h.Order.GetTarget()
	}
	// Mirrors are filled by the end of the first step of a generation.
	whole := s.state.Step > began && (h.tr.Mirrors() || h.tr.GathersFirst())
	found, err := differences(h.Table, h.Config.Placement, s.state.Step, all, whole)
	if err != nil || len(found) == 0 {
		return err
	}
	for _, d := range found {
		if d.Owner == h.self || d.Mirror == h.self {
			return d
		}
	}
	// The two that it is about say so, and leave the ring.
	if _, err := h.link.Exchange(ctx, "who leaves for "+found[0].Error(), nil); err != nil {
		return err
	}
	return fmt.Errorf("%w: %w", errUnreachable, found[0])
}

// differences compares the copies of each rank with what its owner has. With whole set, every
// rank must have one on the next worker.
func differences(table shard.Table, p shard.Placement, step int64, all []share, whole bool) ([]*trainer.DivergedError, error) {
	owners := make([]sums, table.WorldSize())
	for w, s := range all {
		ranks := p.Ranks(w)
		if !slices.EqualFunc(s.Own, ranks, func(x sums, r shard.Rank) bool { return x.Rank == r && x.sound(table) }) {
			return nil, &trainer.PeerError{Worker: w, Err: fmt.Errorf("no checksums of its ranks %v with its part of the checkpoint of step %d", ranks, step)}
		}
		for _, x := range s.Own {
			owners[x.Rank] = x
		}
	}
	var found []*trainer.DivergedError
	compared := make([]bool, table.WorldSize())
	for w, s := range all {
		for _, x := range s.Copies {
			if !x.sound(table) || p.Worker(x.Rank) == w {
				return nil, &trainer.PeerError{Worker: w, Err: fmt.Errorf("checksums of no copy, rank %d, with its part of the checkpoint of step %d", x.Rank, step)}
			}
			owner := p.Worker(x.Rank)
			compared[x.Rank] = compared[x.Rank] || w == (owner+1)%p.Workers()
			if d := difference(table, owners[x.Rank], x); d != nil {
				d.Step, d.Owner, d.Mirror = step, owner, w
				found = append(found, d)
			}
		}
	}
	if r := slices.Index(compared, false); whole && len(found) == 0 && r >= 0 {
		w := (p.Worker(shard.Rank(r)) + 1) % p.Workers()
		return nil, &trainer.PeerError{Worker: w, Err: fmt.Errorf("no checksums of its copy of rank %d with its part of the checkpoint of step %d", r, step)}
	}
	return found, nil
}

// difference is the first one between a rank's state and a copy of it; nil if there is none.
func difference(table shard.Table, own, other sums) *trainer.DivergedError {
	for kind := range kinds {
		for b, sum := range own.Of[kind] {
			if at := other.Of[kind][b]; at != sum {
				return &trainer.DivergedError{Rank: own.Rank, Kind: checkpoint.Kind(kind), Bucket: b, Layer: table.Bucket(b).Name, OwnerSum: sum, MirrorSum: at}
			}
		}
	}
	return nil
}
