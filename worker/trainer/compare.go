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
	Began         int64 // the first one after which the two may have differed; 0: nobody knows
	Rank          shard.Rank
	Kind          checkpoint.Kind // weights, or which moment
	Bucket        int
	Layer         string // the bucket's name
	Owner, Mirror int    // workers; where every worker has all, Mirror is the one that has compared
	// CRC-32C of what the rank has of that kind in the bucket.
	OwnerSum, MirrorSum uint32
}

func (e *DivergedError) Error() string {
	since := ""
	switch {
	case e.Began == e.Step && e.Began > 0:
		since = ", and not before"
	case e.Began > 0:
		since = fmt.Sprintf(", since step %d at the earliest", e.Began)
	}
	return fmt.Sprintf("%v: rank %d, bucket %d (%s), %v, after step %d%s: checksum %08x at its owner, worker %d, and %08x at its mirror, worker %d",
		ErrDiverged, e.Rank, e.Bucket, e.Layer, e.Kind, e.Step, since, e.OwnerSum, e.Owner, e.MirrorSum, e.Mirror)
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
	t.same = make([]int64, t.table.Buckets()*len(t.twins))
	for i := range t.same {
		t.same[i] = -1
	}
	t.turns = t.findTurns()
}

// To compare a weight costs a worker what it takes to read it, and it does so for what it owns and for
// what it mirrors; to train it costs six operations for each token of the step. So the share of that depends
// on the tokens of a step alone: it is some half a percent of a step of fullTokens, whatever the model and
// the number of workers. Below littleElems it does not show at all.
const (
	fullTokens  = 4096
	littleElems = 4 << 20
)

// findTurns divides the buckets among as many steps as it takes to compare all of them: turn i is buckets
// [at[i], at[i+1]). One turn is all of them in every step. Where the host cannot reach the
// device's memory, weights would have to be copied for it, so there one bucket has its turn in each step.
func (t *Trainer) findTurns() (at []int) {
	_, near := t.dev.(device.HostAddressable)
	room := max(littleElems, t.table.Padded()*int64(t.cfg.Batch.Global*t.cfg.Batch.SeqLen)/fullTokens)
	var elems int64
	for b := range t.table.Buckets() {
		n := t.table.Bucket(b).Padded
		if b == 0 || !near || elems+n > room {
			at, elems = append(at, b), 0
		}
		elems += n
	}
	return append(at, t.table.Buckets())
}

// passSums tells the next worker the checksums of the weights that it has, too.
func (l *linked) passSums() error {
	t := l.t
	if len(t.twins) == 0 {
		return nil
	}
	turn := int(t.step % int64(len(t.turns)-1))
	sums := binary.LittleEndian.AppendUint32(nil, uint32(t.turns[turn]))
	for b := t.turns[turn]; b < t.turns[turn+1]; b++ {
		for _, r := range t.ranks {
			sum, err := t.checksum(r.id, b)
			if err != nil {
				return err
			}
			sums = binary.LittleEndian.AppendUint32(sums, sum)
		}
	}
	return l.link.Pass(compareTag|uint64(t.step), sums)
}

// compare holds the weights that this worker has of the previous one's ranks against those
// there, by checksum: all of them in every step, or in turns, see findTurns. So a difference is known
// by the rank, the bucket and the step in which it arose, or by the few steps among which that one is. Before
// a checkpoint moments are compared, too, see [Trainer.Copies].
func (l *linked) compare(ctx context.Context) error {
	t := l.t
	if len(t.twins) == 0 {
		return nil
	}
	theirs, err := l.link.Take(ctx, compareTag|uint64(t.step))
	if err != nil {
		return err
	}
	return t.compareWith(theirs)
}

// compareWith compares what is here of the previous worker's ranks with its checksums: after the number of a
// bucket, those of all its ranks in that bucket, then in the next ones.
func (t *Trainer) compareWith(theirs []byte) error {
	n := t.cfg.Placement.Workers()
	owner := (t.cfg.Worker + n - 1) % n
	first, each := 0, 4*len(t.twins)
	if len(theirs) >= 4 {
		first, theirs = int(binary.LittleEndian.Uint32(theirs)), theirs[4:]
	}
	if first >= t.table.Buckets() || len(theirs) == 0 || len(theirs)%each != 0 || len(theirs)/each > t.table.Buckets()-first {
		return &PeerError{owner, fmt.Errorf("%d bytes of checksums of buckets from %d on after step %d, for %d ranks", len(theirs), first, t.step, len(t.twins))}
	}
	for at := 0; at < len(theirs)/4; at++ {
		b, i := first+at/len(t.twins), at%len(t.twins)
		r := t.twins[i]
		if !t.segments[r].ready {
			continue
		}
		own, err := t.checksum(r, b)
		if err != nil {
			return err
		}
		same := &t.same[b*len(t.twins)+i]
		if want := binary.LittleEndian.Uint32(theirs[4*at:]); own != want {
			return &DivergedError{Step: t.step, Began: *same + 1, Rank: r, Bucket: b, Layer: t.table.Bucket(b).Name,
				Owner: owner, Mirror: t.cfg.Worker, OwnerSum: want, MirrorSum: own}
		}
		*same = t.step
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
