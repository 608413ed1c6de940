// Package checkpoint keeps the state of a training job on disk: master weights and
// moments by pieces, and a manifest that maps every tensor to byte ranges, so that
// any world size and any ZeRO stage can load what another one saved. It also writes
// the job's lineage.
//
//	DIR/step-00000012/rank-00-master-5b1c….obj   one per rank and kind, never changed
//	DIR/step-00000012/manifest.json              written last: it makes the checkpoint
//
// What is promised: a checkpoint exists when its manifest does, and then it is
// whole. Objects are written and synced under a temporary name, renamed to one that
// holds their content's hash, and the manifest appears by one rename. A kill or a
// full disk at any moment leaves the checkpoints published before as they were, and
// at most files that no manifest names, which Prune removes. Nothing is gathered:
// memory is one block of 256 KiB, whatever the model's size.
package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
)

const (
	manifestName = "manifest.json"
	objectSuffix = ".obj"
	tempSuffix   = ".tmp"
)

// Errors to branch on.
var (
	// ErrForeign is returned when a checkpoint belongs to another model or job.
	ErrForeign = errors.New("checkpoint of another job")
	// ErrDiverged is returned when a step that was published before comes out with
	// other weights: the hardware or the kernels do not compute the same bits.
	ErrDiverged = errors.New("weights differ from those published for the same step")
)

// Source gives the numbers to save.
type Source interface {
	// ReadState fills le with elements [lo, lo+len(le)/4) of a bucket as
	// little-endian fp32. It is called from one goroutine, each bucket's elements in
	// ascending order for a kind; le is the caller's again afterwards.
	ReadState(kind Kind, bucket int, lo int64, le []byte) error
}

// saver is one Save under way.
type saver struct {
	fsys     vfs.FS
	folder   string
	table    shard.Table
	src      Source
	buf      []byte
	hash     *shard.WeightsHash
	manifest Manifest
	tensor   map[string]int // index in manifest.Tensors
}

// Save writes and publishes the checkpoint of state.Step in dir. state.Chain is the
// chain before this checkpoint; the manifest returned has it extended. When Save
// fails, what was published before is untouched, and of this step nothing stays, or
// all of it if the failure was the very last sync.
//
// A step that is published already is written and published again if it comes out
// with the same weights, which also repairs a damaged one, and refused with
// ErrDiverged if not. Two Saves into one folder must not run at the same time.
func Save(ctx context.Context, fsys vfs.FS, dir string, table shard.Table, state State, src Source) (Manifest, error) {
	s := &saver{fsys: fsys, folder: filepath.Join(dir, stepName(state.Step)), table: table, src: src,
		buf: make([]byte, blockBytes), hash: shard.NewWeightsHash(table), tensor: map[string]int{}}
	s.manifest = Manifest{Format: manifestFormat, Version: manifestVersion, State: state,
		WorldSize: table.WorldSize(), Fingerprint: table.Fingerprint()}
	before, err := s.published()
	if err == nil {
		err = s.save(ctx, dir, before)
		s.clean()
	}
	if err != nil {
		return Manifest{}, fmt.Errorf("save checkpoint of step %d in %s: %w%s", state.Step, dir, err, advice(err))
	}
	return s.manifest, nil
}

func advice(err error) string {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return "; checkpoints published before are unharmed; free space there, or set checkpoint.store to another folder"
	}
	return ""
}

func stepName(step int64) string { return fmt.Sprintf("step-%08d", step) }

// published is the manifest of this step that is there already, or nil. A damaged one
// counts as none: it is about to be replaced. One that is of another version, or not
// ours at all, is an error.
func (s *saver) published() (*Manifest, error) {
	file, err := vfs.ReadFile(s.fsys, filepath.Join(s.folder, manifestName), manifestBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil && !errors.Is(err, vfs.ErrTooLarge) {
		return nil, err
	}
	m, err := DecodeManifest(file)
	if errors.Is(err, ErrVersion) {
		return nil, fmt.Errorf("%s %w", filepath.Join(s.folder, manifestName), err)
	}
	if err != nil {
		kind, err := kindOf(s.fsys, s.folder)
		if err == nil && kind == foreign {
			err = errForeignFolder(s.folder)
		}
		return nil, err
	}
	return &m, Want{s.manifest.Job, s.manifest.Model, s.manifest.Fingerprint, s.manifest.Spec, s.manifest.Data}.check(m)
}

func (s *saver) save(ctx context.Context, dir string, before *Manifest) error {
	if err := s.fsys.MkdirAll(s.folder); err != nil {
		return err
	}
	for i := range s.table.Buckets() {
		for _, t := range s.table.Bucket(i).Tensors() {
			s.tensor[t.Tensor] = len(s.manifest.Tensors)
			s.manifest.Tensors = append(s.manifest.Tensors, TensorEntry{Name: t.Tensor, Elems: t.Bucket.Len()})
		}
	}
	for kind := range kindCount {
		for r := range s.table.WorldSize() {
			if err := s.object(ctx, kind, shard.Rank(r)); err != nil {
				return err
			}
		}
	}
	weights, err := s.hash.Sum()
	if err != nil {
		return err
	}
	m := &s.manifest
	if before != nil && (before.Weights != weights || before.WorldSize == m.WorldSize && !slices.Equal(before.Objects, m.Objects)) {
		return fmt.Errorf("%w: now %s, published %s; the hardware that ran this step, now or then, is not to be trusted", ErrDiverged, weights, before.Weights)
	}
	m.Weights = weights
	m.Chain = Extend(m.Chain, m.Spec, m.Data, m.Step, weights)
	return s.publish(dir)
}

// publish makes the objects' names durable, then the manifest, then the folder.
func (s *saver) publish(dir string) error {
	if err := s.manifest.validate(); err != nil {
		return fmt.Errorf("the manifest to be written: %w", err)
	}
	file, err := s.manifest.encode()
	if err != nil {
		return err
	}
	for _, folder := range []string{s.folder, dir} {
		if err := s.fsys.SyncDir(folder); err != nil {
			return err
		}
	}
	_ = s.fsys.SyncDir(filepath.Dir(dir)) // matters if dir is new; its parent may not be ours to open
	return replaceFile(s.fsys, filepath.Join(s.folder, manifestName), file)
}

// object writes the segment of one rank, padding left out.
func (s *saver) object(ctx context.Context, kind Kind, rank shard.Rank) error {
	h := header{kind: kind, step: s.manifest.Step, rank: rank}
	for i, piece := range s.table.Segment(rank) {
		for _, span := range s.table.SpansOf(i, piece.Lo, piece.Hi) {
			h.elems += span.Bucket.Len()
		}
	}
	temp := filepath.Join(s.folder, fmt.Sprintf("rank-%02d-%v%s", rank, kind, tempSuffix))
	f, err := s.fsys.Create(temp)
	if err != nil {
		return err
	}
	sum, err := s.segment(ctx, f, h)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	// A name holds the hash of its content, so a file of that name that is there
	// already has these bytes, or should have.
	name := fmt.Sprintf("rank-%02d-%v-%x%s", rank, kind, sum[:8], objectSuffix)
	s.manifest.Objects = append(s.manifest.Objects, Object{name, kind, rank, h.elems, objectBytes(h.elems), sum})
	return s.fsys.Rename(temp, filepath.Join(s.folder, name))
}

// segment streams an object's data and notes where each tensor lies.
func (s *saver) segment(ctx context.Context, f vfs.File, h header) (shard.Digest, error) {
	w, err := newObjectWriter(f, h)
	if err != nil {
		return shard.Digest{}, err
	}
	offset := int64(headerBytes)
	for i, piece := range s.table.Segment(h.rank) {
		for _, span := range s.table.SpansOf(i, piece.Lo, piece.Hi) {
			ranges := s.manifest.Tensors[s.tensor[span.Tensor]].ranges(h.kind)
			*ranges = append(*ranges, Range{len(s.manifest.Objects), offset, span.Bucket.Len() * 4})
			offset += span.Bucket.Len() * 4
			if err := s.copy(ctx, w, h.kind, i, span.Bucket); err != nil {
				return shard.Digest{}, err
			}
		}
	}
	return w.finish()
}

// copy moves elements from the source to an object, a block at a time.
func (s *saver) copy(ctx context.Context, w *objectWriter, kind Kind, bucket int, r shard.Range) error {
	for lo := r.Lo; lo < r.Hi; {
		if err := ctx.Err(); err != nil {
			return err
		}
		le := s.buf[:min(blockBytes, (r.Hi-lo)*4)]
		if err := s.src.ReadState(kind, bucket, lo, le); err != nil {
			return err
		}
		if kind == Master {
			if err := s.hash.Write(bucket, lo, le); err != nil {
				return err
			}
		}
		if err := w.data(le); err != nil {
			return err
		}
		lo += int64(len(le)) / 4
	}
	return nil
}

// clean removes from the step's folder the objects that its manifest does not name,
// and the folder if that leaves it empty. Best effort: what stays is named by none,
// and Prune removes it.
func (s *saver) clean() {
	file, err := vfs.ReadFile(s.fsys, filepath.Join(s.folder, manifestName), manifestBytesMax)
	named := map[string]bool{}
	if !errors.Is(err, fs.ErrNotExist) {
		m, err := DecodeManifest(file)
		if err != nil {
			return // unreadable: it may be the disk, so nothing is touched
		}
		for _, o := range m.Objects {
			named[o.File] = true
		}
	}
	_ = removeOwn(s.fsys, s.folder, named)
}
