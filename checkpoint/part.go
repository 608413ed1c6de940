package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
)

// Chain hands the running hash of the weights from the worker of the lower ranks to
// the one of the higher ranks, bucket by bucket. The bytes are opaque, and may come
// from a stranger: what is no state of this bucket is refused.
type Chain interface {
	// Take waits for the state of a bucket from the worker of the ranks below.
	Take(ctx context.Context, bucket int) ([]byte, error)
	// Pass gives the state of a bucket to the worker of the ranks above. It must not
	// wait until that worker takes it.
	Pass(ctx context.Context, bucket int, state []byte) error
}

// Part is what one worker wrote of a checkpoint. Workers send it to each other as
// JSON.
type Part struct {
	Objects []Object      `json:"objects"`
	Weights *shard.Digest `json:"weights,omitempty"` // hash of all master weights; only from the worker of the last rank
}

// Releaser is a Source that wants to know when it is free again. SavePart calls
// ReadDone once, after it has read the last number and before it waits for the disk;
// if it fails, at the latest before it returns.
type Releaser interface {
	Source
	ReadDone()
}

// partSaver is one SavePart under way.
type partSaver struct {
	table shard.Table
	ranks []shard.Rank
	src   Source
	chain Chain
	hash  *shard.WeightsHash
	spool *spool
}

// SavePart writes the objects of some ranks for the checkpoint of a step: a worker's
// share of it. When it returns they are durable, and no manifest names them yet.
// Ranks are ascending and without gaps. A worker that has all of them needs no chain.
//
// Names hold generation and content hash. A file of that name that is there and whole
// is used as it is, so a step may be saved twice. When SavePart fails, what it wrote
// is removed, but for finished objects of generation 0, and what was there before is
// untouched.
//
// With a chain, a worker whose files cannot be written, for a full disk say, or whose folder
// cannot be looked into, reads src to its end all the same and hands the hash on, so that
// the others do not wait for it; only then it fails with [ErrUnwritten].
//
// src is read from the calling goroutine, bucket by bucket: weights first, then the
// moments.
func SavePart(ctx context.Context, fsys vfs.FS, dir string, table shard.Table, step int64, generation uint64,
	ranks []shard.Rank, src Source, chain Chain) (Part, error) {
	release := sync.OnceFunc(func() {
		if r, ok := src.(Releaser); ok {
			r.ReadDone()
		}
	})
	defer release()
	part, err := savePart(ctx, fsys, dir, table, step, generation, ranks, src, chain, release)
	if err != nil {
		return Part{}, saveError(step, dir, err)
	}
	return part, nil
}

func savePart(ctx context.Context, fsys vfs.FS, dir string, table shard.Table, step int64, generation uint64,
	ranks []shard.Rank, src Source, chain Chain, release func()) (Part, error) {
	if err := checkRanks(ranks, table.WorldSize(), chain); err != nil {
		return Part{}, err
	}
	if step < 0 {
		return Part{}, fmt.Errorf("there is no step %d", step)
	}
	folder := filepath.Join(dir, stepName(step))
	before, err := committed(fsys, folder)
	switch {
	case err == nil && before != nil && before.Fingerprint != table.Fingerprint():
		return Part{}, fmt.Errorf("%w: %s holds model %q; set checkpoint.store to another folder", ErrForeign, folder, before.Model)
	case errors.Is(err, ErrForeign), errors.Is(err, ErrVersion):
		return Part{}, err
	case err == nil:
		err = fsys.MkdirAll(folder)
	} // any other error is the store's, as one of a write is
	p := &partSaver{table: table, ranks: ranks, src: src, chain: chain, hash: shard.NewWeightsHash(table),
		spool: &spool{fsys: fsys, folder: folder, step: step, generation: generation, through: chain != nil, failed: err}}
	p.spool.start(ctx, table.BucketMax()/int64(table.WorldSize())*4)
	err = p.read(p.spool.ctx)
	release()
	objects, err := p.spool.wait(err)
	if err != nil {
		return Part{}, err
	}
	part := Part{Objects: objects}
	if p.last() {
		weights, err := p.hash.Sum()
		if err != nil {
			p.spool.discard()
			return Part{}, err
		}
		part.Weights = &weights
	}
	if err := syncFolders(fsys, folder, dir); err != nil {
		p.spool.discard()
		return Part{}, unwritten{err}
	}
	return part, nil
}

// ErrUnwritten marks the failure of a SavePart that has read all and handed on the hash of
// the weights, and whose files could not be written: the store is at fault, and nothing else.
var ErrUnwritten = errors.New("not written")

// unwritten is such a failure.
type unwritten struct{ error }

func (unwritten) Is(target error) bool { return target == ErrUnwritten }

// Unwrap gives what the file system said.
func (u unwritten) Unwrap() error { return u.error }

// Withdraw removes what a SavePart wrote for a checkpoint that no manifest names and that
// is given up, as well as it can.
func Withdraw(fsys vfs.FS, dir string, step int64, part Part) {
	for _, o := range part.Objects {
		_ = fsys.Remove(filepath.Join(dir, stepName(step), o.File))
	}
}

func checkRanks(ranks []shard.Rank, worldSize int, chain Chain) error {
	if len(ranks) == 0 {
		return errors.New("no rank to save")
	}
	for i, r := range ranks {
		if r != ranks[0]+shard.Rank(i) || r < 0 || int(r) >= worldSize {
			return fmt.Errorf("ranks %v of %d are not ascending without gaps", ranks, worldSize)
		}
	}
	if chain == nil && len(ranks) < worldSize {
		return fmt.Errorf("ranks %v of %d cannot be saved alone: the hash of the weights goes over all of them", ranks, worldSize)
	}
	return nil
}

// syncFolders makes the names in a step's folder durable, and its own.
func syncFolders(fsys vfs.FS, folder, dir string) error {
	for _, d := range []string{folder, dir} {
		if err := fsys.SyncDir(d); err != nil {
			return err
		}
	}
	_ = fsys.SyncDir(filepath.Dir(dir)) // matters if dir is new; its parent may not be ours to open
	return nil
}

// read reads everything once. It goes by buckets, not by objects, so that the hash of
// a bucket is handed on as soon as this worker's share of it is read.
func (p *partSaver) read(ctx context.Context) error {
	for kind := range kindCount {
		objects := make([]*spooled, len(p.ranks))
		for i, r := range p.ranks {
			objects[i] = &spooled{kind: kind, rank: r, elems: segmentElems(p.table, r)}
		}
		for bucket := range p.table.Buckets() {
			if err := p.bucket(ctx, kind, bucket, objects); err != nil {
				return err
			}
		}
		for _, o := range objects {
			if err := p.spool.put(spoolWork{object: o, end: true}); err != nil {
				return err
			}
		}
	}
	return nil
}

// segmentElems is the number of elements of a rank's segment, padding left out.
func segmentElems(table shard.Table, rank shard.Rank) int64 {
	var n int64
	for bucket := range table.Buckets() {
		n += ownElems(table.Bucket(bucket), rank).Len()
	}
	return n
}

// ownElems is a rank's piece of a bucket without the padding.
func ownElems(b shard.Bucket, rank shard.Rank) shard.Range {
	piece := b.Piece(rank)
	return shard.Range{Lo: min(piece.Lo, b.Elems), Hi: min(piece.Hi, b.Elems)}
}

// bucket reads the ranks' pieces of one bucket.
func (p *partSaver) bucket(ctx context.Context, kind Kind, bucket int, objects []*spooled) error {
	if kind == Master && p.ranks[0] > 0 {
		if err := p.take(ctx, bucket); err != nil {
			return err
		}
	}
	for _, o := range objects {
		if err := p.piece(kind, bucket, ownElems(p.table.Bucket(bucket), o.rank), o); err != nil {
			return err
		}
	}
	if kind != Master || p.last() {
		return nil
	}
	state, err := p.hash.State(bucket)
	if err != nil {
		return err
	}
	return p.chain.Pass(ctx, bucket, state)
}

// last tells whether the last rank is here, and so the whole hash in the end.
func (p *partSaver) last() bool { return int(p.ranks[len(p.ranks)-1]) == p.table.WorldSize()-1 }

// take goes on with the hash of a bucket where the worker of the ranks below ended.
func (p *partSaver) take(ctx context.Context, bucket int) error {
	state, err := p.chain.Take(ctx, bucket)
	if err != nil {
		return err
	}
	if err := p.hash.SetState(bucket, state); err != nil {
		return err
	}
	if at, lo := p.hash.At(bucket), ownElems(p.table.Bucket(bucket), p.ranks[0]).Lo; at != lo {
		return fmt.Errorf("the hash of bucket %q was handed on at element %d, rank %d begins at %d", p.table.Bucket(bucket).Name, at, p.ranks[0], lo)
	}
	return nil
}

// piece reads elements of a bucket, a buffer at a time, and hands them to be written.
func (p *partSaver) piece(kind Kind, bucket int, r shard.Range, o *spooled) error {
	for lo := r.Lo; lo < r.Hi; {
		le, err := p.spool.buffer()
		if err != nil {
			return err
		}
		le = le[:min(int64(len(le)), (r.Hi-lo)*4)]
		if err := p.src.ReadState(kind, bucket, lo, le); err != nil {
			return err
		}
		if kind == Master {
			if err := p.hash.Write(bucket, lo, le); err != nil {
				return err
			}
		}
		lo += int64(len(le)) / 4
		if err := p.spool.put(spoolWork{object: o, le: le}); err != nil {
			return err
		}
	}
	return nil
}
