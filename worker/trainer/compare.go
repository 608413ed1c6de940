package trainer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/internal/crc32c"
	"github.com/skein-ml/skein/shard"
)

// ErrDiverged is what a [DivergedError] is.
var ErrDiverged = errors.New("two copies of the same state differ")

// DivergedError says that the copies of a rank's state differ: a processor or memory has
// computed or kept something else. Which of the two machines is wrong, nobody knows, so
// neither copy is to be used.
type DivergedError struct {
	Step          int64 // the last one that both have taken
	Rank          shard.Rank
	Kind          checkpoint.Kind // weights, or which moment
	Bucket        int
	Layer         string // the bucket's name
	Owner, Mirror int    // workers; where every worker has all, Mirror is the one that has compared
	// CRC-32C of what the rank has of that kind in the bucket.
	OwnerSum, MirrorSum uint32
}

func (e *DivergedError) Error() string {
	return fmt.Sprintf("%v: rank %d, bucket %d (%s), %v, after step %d: checksum %08x at its owner, worker %d, and %08x at its mirror, worker %d",
		ErrDiverged, e.Rank, e.Bucket, e.Layer, e.Kind, e.Step, e.OwnerSum, e.Owner, e.MirrorSum, e.Mirror)
}

// Unwrap returns ErrDiverged.
func (e *DivergedError) Unwrap() error { return ErrDiverged }

// PeerError says that another worker has sent what it cannot mean.
type PeerError struct {
	Worker int
	Err    error
}

func (e *PeerError) Error() string { return fmt.Sprintf("worker %d sent %v", e.Worker, e.Err) }

// Unwrap returns what it sent.
func (e *PeerError) Unwrap() error { return e.Err }

// compareTag marks the messages of compare among all that go round the ring.
const compareTag = 1 << 62

// Copies are the ranks that another worker hosts and whose state is here too, at the trainer's
// step: what is mirrored here, and until the next step is applied also what was here in another
// placement. Of what every worker has, each answers for the previous one's ranks.
func (t *Trainer) Copies() []shard.Rank {
	var list []shard.Rank
	for _, r := range t.Ready() {
		if !t.hosts(r) && (!t.replicated() || slices.Contains(t.twins, r)) {
			list = append(list, r)
		}
	}
	return list
}

// placeTwins finds the ranks of the previous worker, if this one keeps their state too.
func (t *Trainer) placeTwins() {
	p := t.cfg.Placement
	t.twins = nil
	if n := p.Workers(); n > 1 && (t.cfg.Mirror || t.replicated()) {
		t.twins = p.Ranks((t.cfg.Worker + n - 1) % n)
	}
}

// compare holds the weights that this worker has of the previous one's ranks against those
// there: one bucket in each step, by checksum, all of them in turn. So a difference is known
// some steps after it arose, by the rank, the bucket and the step. Before a checkpoint all is
// compared, see [Trainer.Copies].
func (l *linked) compare(ctx context.Context) error {
	t := l.t
	if len(t.twins) == 0 {
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
	return t.same(bucket, theirs)
}

// same compares what is here of a bucket of the previous worker's ranks with its checksums.
func (t *Trainer) same(bucket int, theirs []byte) error {
	n := t.cfg.Placement.Workers()
	owner := (t.cfg.Worker + n - 1) % n
	if len(theirs) != 4*len(t.twins) {
		return &PeerError{owner, fmt.Errorf("%d bytes of checksums of bucket %d after step %d, for %d ranks", len(theirs), bucket, t.step, len(t.twins))}
	}
	for i, r := range t.twins {
		if !t.segments[r].ready {
			continue
		}
		own, err := t.checksum(r, bucket)
		if err != nil {
			return err
		}
		if want := binary.LittleEndian.Uint32(theirs[4*i:]); own != want {
			return &DivergedError{Step: t.step, Rank: r, Bucket: bucket, Layer: t.table.Bucket(bucket).Name,
				Owner: owner, Mirror: t.cfg.Worker, OwnerSum: want, MirrorSum: own}
		}
	}
	return nil
}

// checksum is the CRC-32C of a rank's master weights in a bucket. It goes by the stream of
// the step: a checkpoint may be using the other one.
func (t *Trainer) checksum(r shard.Rank, bucket int) (uint32, error) {
	buf := t.segments[r].state[checkpoint.Master][bucket].Buf
	host, ok := t.dev.(device.HostAddressable)
	if ok {
		if err := t.stream.Record().Wait(); err != nil {
			return 0, err
		}
		return crc32c.Sum(host.Host(buf)), nil
	}
	le := t.scratch(int(buf.Bytes()))
	t.dev.Download(t.stream, le, buf)
	if err := t.stream.Record().Wait(); err != nil {
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
