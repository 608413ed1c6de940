package trainer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/internal/crc32c"
	"github.com/skein-ml/skein/shard"
)

// ErrDiverged is returned when the copies of a rank's weights differ: a processor or memory
// has computed or kept something else.
var ErrDiverged = errors.New("two copies of the same weights differ")

// compareTag marks the messages of compare among all that go round the ring.
const compareTag = 1 << 62

// compare holds the weights that this worker mirrors against their owner's: one bucket in
// each step, by checksum, all of them in turn. So a difference is known some steps after it
// arose, by the rank, the bucket and the step.
func (l *linked) compare(ctx context.Context) error {
	t := l.t
	if !t.cfg.Mirror || t.replicated() || t.Alone() {
		return nil
	}
	bucket := int(t.step % int64(t.table.Buckets()))
	var sums []byte
	for _, r := range t.ranks {
		sum, err := t.checksum(r.id, bucket)
		if err != nil {
			return err
		}
		sums = binary.LittleEndian.AppendUint32(sums, sum)
	}
	tag := compareTag | uint64(t.step)
	if err := l.link.Pass(tag, sums); err != nil {
		return err
	}
	theirs, err := l.link.Take(ctx, tag)
	if err != nil {
		return err
	}
	if len(theirs) != 4*len(t.mirrors) {
		return fmt.Errorf("checksums of %d bytes for %d ranks", len(theirs), len(t.mirrors))
	}
	for i, r := range t.mirrors {
		if !t.segments[r].ready {
			continue
		}
		own, err := t.checksum(r, bucket)
		if err != nil {
			return err
		}
		if want := binary.LittleEndian.Uint32(theirs[4*i:]); own != want {
			return fmt.Errorf("%w: rank %d, %s, after step %d: checksum %08x at its owner, %08x at its mirror; one of the two machines computes wrongly",
				ErrDiverged, r, t.table.Bucket(bucket).Name, t.step, want, own)
		}
	}
	return nil
}

// checksum is the CRC-32C of a rank's master weights in a bucket.
func (t *Trainer) checksum(r shard.Rank, bucket int) (uint32, error) {
	piece := t.table.Bucket(bucket).Piece(r)
	le := t.scratch(int(piece.Len()) * 4)
	if err := t.ReadState(checkpoint.Master, bucket, piece.Lo, le); err != nil {
		return 0, err
	}
	return crc32c.Sum(le), nil
}

// scratch is host memory for a moment.
func (t *Trainer) scratch(n int) []byte {
	if len(t.staging) < n {
		t.staging = make([]byte, n)
	}
	return t.staging[:n]
}
