// Package checkpoint keeps the state of a training job on disk: master weights and
// moments by pieces, and a manifest that maps every tensor to byte ranges, so that
// any world size and any ZeRO stage can load what another one saved. It also writes
// the job's lineage.
//
//	DIR/step-00000012/rank-00-master-g3-5b1c….obj   one per rank and kind, never changed
//	DIR/step-00000012/manifest-g3-e09a….json        of the workers of generation 3
//	DIR/step-00000012/manifest.json                 comes last: it makes the checkpoint
//
// What is promised: a checkpoint exists when its manifest does, and then it is
// whole. Objects are written and synced under a temporary name, renamed to one that
// holds their content's hash, and the manifest appears by one rename. A kill or a
// full disk at any moment leaves the checkpoints published before as they were, and
// at most files that no manifest names, which pruning removes. Nothing is gathered:
// memory is three blocks of 256 KiB, whatever the model's size.
//
// One process calls Save. Several workers each call SavePart for their ranks; one of
// them collects the parts and calls WriteManifest; the job's log publishes the name
// that this gives; then Commit. Save is generation 0. Names keep generations apart:
// whatever a worker does that was given up for dead, it does to files of its own.
package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
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

// Save writes and publishes the checkpoint of state.Step in dir: what SavePart,
// WriteManifest and Commit do, for one worker that has all ranks and dir to itself. It
// is generation 0. state.Chain is the chain before this checkpoint; the manifest
// returned has it extended. When Save fails, what was published before is untouched,
// and of this step nothing stays, or all of it if the failure was the very last sync.
//
// A step that is published already is written and published again if it comes out
// with the same weights, which also repairs a damaged one, and refused with
// ErrDiverged if not. Two Saves into one folder must not run at the same time.
func Save(ctx context.Context, fsys vfs.FS, dir string, table shard.Table, state State, src Source) (Manifest, error) {
	m, err := saveAll(ctx, fsys, dir, table, state, src)
	if err != nil {
		return Manifest{}, saveError(state.Step, dir, err)
	}
	return m, nil
}

func saveAll(ctx context.Context, fsys vfs.FS, dir string, table shard.Table, state State, src Source) (Manifest, error) {
	folder := filepath.Join(dir, stepName(state.Step))
	before, err := committed(fsys, folder)
	if err != nil {
		return Manifest{}, err
	}
	if before != nil {
		if err := (Want{state.Job, state.Model, table.Fingerprint(), state.Spec, state.Data}).check(*before); err != nil {
			return Manifest{}, err // before anything is written
		}
	}
	defer clean(fsys, folder)
	ranks := make([]shard.Rank, table.WorldSize())
	for i := range ranks {
		ranks[i] = shard.Rank(i)
	}
	part, err := savePart(ctx, fsys, dir, table, state.Step, 0, ranks, src, nil, func() {})
	if err != nil {
		return Manifest{}, err
	}
	m, err := join(table, state, 0, []Part{part})
	if err != nil {
		return Manifest{}, err
	}
	if err := m.follows(before); err != nil {
		return Manifest{}, err
	}
	file, err := m.encode()
	if err != nil {
		return Manifest{}, err
	}
	return m, replaceFile(fsys, filepath.Join(folder, tempName(manifestStem(0))), filepath.Join(folder, manifestName), file)
}

func saveError(step int64, dir string, err error) error {
	return fmt.Errorf("save checkpoint of step %d in %s: %w%s", step, dir, err, advice(dir, err))
}

// advice says what to do about an error of the file system.
func advice(dir string, err error) string {
	const unharmed = "; checkpoints published before are unharmed; "
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return unharmed + "free space there, or set checkpoint.store to another folder"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return unharmed + "let the user that runs Skein write into " + dir + ", or set checkpoint.store to another folder"
	}
	return ""
}

func stepName(step int64) string { return fmt.Sprintf("step-%08d", step) }

// clean removes from a step's folder the objects of generation 0 that its manifest
// does not name, and the folder if that leaves it empty. Best effort: what stays is
// named by none, and Prune removes it.
func clean(fsys vfs.FS, folder string) {
	file, err := vfs.ReadFile(fsys, filepath.Join(folder, manifestName), manifestBytesMax)
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
	_ = removeOwn(fsys, folder, func(name string) bool { return ofGeneration(name, 0) && !named[name] })
}
