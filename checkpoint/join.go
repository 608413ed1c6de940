package checkpoint

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
)

// WriteManifest joins the parts of all workers into the manifest of state.Step and
// writes it, durable, under a name with generation and content hash, such as
// step-00000012/manifest-g3-<sha256>.json. bytes is the size of all objects.
// state.Chain is the chain before this checkpoint; m has it extended.
//
// Readers of the folder do not see the checkpoint before Commit, OpenNamed does.
// ErrDiverged is returned if the step is committed already, with other weights or
// moments.
func WriteManifest(ctx context.Context, fsys vfs.FS, dir string, table shard.Table, state State, generation uint64,
	parts []Part) (m Manifest, name string, bytes int64, err error) {
	m, name, bytes, err = writeManifest(ctx, fsys, dir, table, state, generation, parts)
	if err != nil {
		return Manifest{}, "", 0, saveError(state.Step, dir, err)
	}
	return m, name, bytes, nil
}

func writeManifest(ctx context.Context, fsys vfs.FS, dir string, table shard.Table, state State, generation uint64,
	parts []Part) (m Manifest, name string, bytes int64, err error) {
	folder := filepath.Join(dir, stepName(state.Step))
	before, err := committed(fsys, folder)
	if err != nil {
		return Manifest{}, "", 0, err
	}
	if m, err = join(table, state, generation, parts); err != nil {
		return Manifest{}, "", 0, err
	}
	if err := m.follows(before); err != nil {
		return Manifest{}, "", 0, err
	}
	for _, o := range m.Objects {
		if err := ctx.Err(); err != nil {
			return Manifest{}, "", 0, err
		}
		if err := hasSize(fsys, filepath.Join(folder, o.File), o.Bytes); err != nil {
			return Manifest{}, "", 0, err
		}
		bytes += o.Bytes
	}
	file, err := m.encode()
	if err != nil {
		return Manifest{}, "", 0, err
	}
	name = manifestPath(m.Step, generation, sha256.Sum256(file))
	// What has this name has these bytes, or was damaged.
	temp := filepath.Join(folder, tempName(manifestStem(generation)))
	if err := replaceFile(fsys, temp, filepath.Join(folder, baseName(name)), file); err != nil {
		return Manifest{}, "", 0, err
	}
	return m, name, bytes, syncFolders(fsys, folder, dir)
}

// replaceFile writes temp, durable, and renames it to path.
func replaceFile(fsys vfs.FS, temp, path string, b []byte) error {
	if err := vfs.WriteFile(fsys, temp, b); err != nil {
		return err
	}
	if err := fsys.Rename(temp, path); err != nil {
		_ = fsys.Remove(temp) // best effort: the rename's error is the one to report
		return err
	}
	return fsys.SyncDir(filepath.Dir(path))
}

// hasSize fails unless a file that another worker wrote is here too.
func hasSize(fsys vfs.FS, path string, size int64) error {
	info, err := fsys.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s was written and is not here; checkpoint.store must be one folder that all machines see", ErrDamaged, path)
	}
	if err != nil {
		return err
	}
	if info.Size() != size {
		return fmt.Errorf("%w: %s has %d bytes, should have %d", ErrDamaged, path, info.Size(), size)
	}
	return nil
}

// join makes the manifest of what the workers wrote. It is pure: parts come from other
// machines, and each object that a manifest needs must be there once, as it must be.
func join(table shard.Table, state State, generation uint64, parts []Part) (Manifest, error) {
	m := Manifest{Format: manifestFormat, Version: manifestVersion, State: state,
		WorldSize: table.WorldSize(), Fingerprint: table.Fingerprint()}
	var weights *shard.Digest
	for _, p := range parts {
		m.Objects = append(m.Objects, p.Objects...)
		if p.Weights == nil {
			continue
		}
		if weights != nil {
			return Manifest{}, errors.New("two workers give a hash of all weights")
		}
		weights = p.Weights
	}
	if weights == nil {
		return Manifest{}, errors.New("no worker gives the hash of all weights")
	}
	slices.SortFunc(m.Objects, func(a, b Object) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Rank, b.Rank)) })
	if want := int(kindCount) * m.WorldSize; len(m.Objects) != want {
		return Manifest{}, fmt.Errorf("the workers wrote %d objects, a world size of %d needs %d", len(m.Objects), m.WorldSize, want)
	}
	for i, o := range m.Objects {
		kind, rank := Kind(i/m.WorldSize), shard.Rank(i%m.WorldSize)
		elems := segmentElems(table, rank)
		if want := (Object{objectName(kind, rank, generation, o.SHA256), kind, rank, elems, objectBytes(elems), o.SHA256}); o != want {
			return Manifest{}, fmt.Errorf("the workers wrote %+v, which should be %+v", o, want)
		}
	}
	m.mapTensors(table)
	m.Weights = *weights
	m.Chain = Extend(m.Chain, m.Spec, m.Data, m.Step, m.Weights)
	if err := m.validate(); err != nil {
		return Manifest{}, fmt.Errorf("the manifest to be written: %w", err)
	}
	return m, nil
}

// mapTensors says where in the objects, which are in the order of kinds and ranks,
// each tensor lies: an object is a rank's pieces of all buckets, padding left out.
func (m *Manifest) mapTensors(table shard.Table) {
	index := map[string]int{}
	for bucket := range table.Buckets() {
		for _, t := range table.Bucket(bucket).Tensors() {
			index[t.Tensor] = len(m.Tensors)
			m.Tensors = append(m.Tensors, TensorEntry{Name: t.Tensor, Elems: t.Bucket.Len()})
		}
	}
	for i, o := range m.Objects {
		offset := int64(headerBytes)
		for bucket, piece := range table.Segment(o.Rank) {
			for _, span := range table.SpansOf(bucket, piece.Lo, piece.Hi) {
				ranges := m.Tensors[index[span.Tensor]].ranges(o.Kind)
				*ranges = append(*ranges, Range{i, offset, span.Bucket.Len() * 4})
				offset += span.Bucket.Len() * 4
			}
		}
	}
}

// follows compares a manifest with the one that the step was published by before, if
// any: it must be of the same job and hold the same numbers.
func (m *Manifest) follows(before *Manifest) error {
	if before == nil {
		return nil
	}
	if err := (Want{m.Job, m.Model, m.Fingerprint, m.Spec, m.Data}).check(*before); err != nil {
		return err
	}
	const remedy = "the hardware that ran this step, now or then, is not to be trusted"
	if before.Weights != m.Weights {
		return fmt.Errorf("%w: now %s, published %s; %s", ErrDiverged, m.Weights, before.Weights, remedy)
	}
	if before.WorldSize == m.WorldSize && !slices.EqualFunc(before.Objects, m.Objects, sameContent) {
		return fmt.Errorf("%w: the weights are the same, AdamW's moments are not; %s", ErrDiverged, remedy)
	}
	return nil
}

func sameContent(a, b Object) bool {
	return a.Kind == b.Kind && a.Rank == b.Rank && a.SHA256 == b.SHA256
}
