package checkpoint

import (
	"context"
	"errors"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
)

// Chain hands the running hash of the weights from the worker of the lower ranks to
// the one of the higher ranks, bucket by bucket. The bytes are opaque.
type Chain interface {
	// Take waits for the state of a bucket from the worker of the ranks below.
	Take(ctx context.Context, bucket int) ([]byte, error)
	// Pass gives the state of a bucket to the worker of the ranks above. It must not
	// wait for that worker to take it.
	Pass(ctx context.Context, bucket int, state []byte) error
}

// Part is what one worker wrote of a checkpoint.
type Part struct {
	Objects []Object      `json:"objects"`
	Weights *shard.Digest `json:"weights,omitempty"` // hash of all master weights; set by the worker that has the last rank
}

// SavePart writes the objects of some ranks, contiguous and ascending.
func SavePart(ctx context.Context, fsys vfs.FS, dir string, table shard.Table, step int64, generation uint64,
	ranks []shard.Rank, src Source, chain Chain) (Part, error) {
	return Part{}, errors.ErrUnsupported
}

// WriteManifest joins the parts of all workers into a manifest.
func WriteManifest(ctx context.Context, fsys vfs.FS, dir string, table shard.Table, state State, generation uint64,
	parts []Part) (m Manifest, name string, bytes int64, err error) {
	return Manifest{}, "", 0, errors.ErrUnsupported
}

// Commit makes the named manifest the one of its step.
func Commit(fsys vfs.FS, dir, name string) error { return errors.ErrUnsupported }

// OpenNamed opens exactly the manifest of this name.
func OpenNamed(fsys vfs.FS, dir, name string) (*Checkpoint, error) { return nil, errors.ErrUnsupported }

// PruneOlder removes the steps older than the newest keep committed ones.
func PruneOlder(fsys vfs.FS, dir string, keep int) (removed []string, err error) {
	return nil, errors.ErrUnsupported
}
