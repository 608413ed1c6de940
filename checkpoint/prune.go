package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/skein-ml/skein/internal/vfs"
)

// Prune keeps the newest published checkpoints of dir, at least one, and removes
// older ones and what unfinished saves left behind: files that Save wrote, and their
// folder once it is empty. What others put there stays, and so does a checkpoint of
// another version, which does not count. Before it removes a checkpoint
// it makes sure that one of those it keeps can be read from end to end; while none
// can, older ones stay. It must not run at the same time as a Save into dir.
//
// removed says, one line each, what went. A checkpoint is unpublished first, so
// that a kill in between leaves a leftover and never a torn checkpoint.
func Prune(fsys vfs.FS, dir string, keep int) (removed []string, err error) {
	steps, leftovers, err := Published(fsys, dir)
	if err != nil {
		return nil, err
	}
	for _, step := range leftovers {
		folder := filepath.Join(dir, stepName(step))
		if err := removeOwn(fsys, folder, nil); err != nil {
			return removed, fmt.Errorf("prune checkpoints: %w", err)
		}
		removed = append(removed, folder+" (unfinished)")
	}
	old, _ := older(fsys, dir, steps, keep)
	return unpublishAll(fsys, dir, old, removed)
}

// PruneOlder is Prune for a folder that several workers write into, perhaps at this
// moment, and perhaps some that were given up for dead: at or above the oldest step
// that is kept it touches nothing. Below, it also removes what unfinished saves left
// behind. It may run beside SavePart, WriteManifest and Commit of later steps.
func PruneOlder(fsys vfs.FS, dir string, keep int) (removed []string, err error) {
	steps, leftovers, err := Published(fsys, dir)
	if err != nil {
		return nil, err
	}
	old, oldest := older(fsys, dir, steps, keep)
	for _, step := range leftovers {
		if step < oldest {
			old = append(old, step)
		}
	}
	return unpublishAll(fsys, dir, old, nil)
}

// older are those of the published steps that may go, newest first, and the oldest of
// those that are kept.
func older(fsys vfs.FS, dir string, steps []int64, keep int) (old []int64, oldest int64) {
	good, kept := false, 0
	for _, step := range slices.Backward(steps) {
		c, err := Open(fsys, dir, step)
		if errors.Is(err, ErrVersion) {
			continue
		}
		if kept < max(keep, 1) || !good {
			kept++
			oldest = step
			good = good || err == nil && errors.Join(c.verify(false), c.Close()) == nil
			continue
		}
		old = append(old, step)
	}
	return old, oldest
}

// unpublishAll adds to removed what it removes.
func unpublishAll(fsys vfs.FS, dir string, steps []int64, removed []string) ([]string, error) {
	for _, step := range steps {
		folder := filepath.Join(dir, stepName(step))
		if err := unpublish(fsys, folder); err != nil {
			return removed, fmt.Errorf("prune checkpoints: %w", err)
		}
		removed = append(removed, folder)
	}
	return removed, nil
}

// unpublish removes the manifest, makes that durable, and then removes the objects.
func unpublish(fsys vfs.FS, folder string) error {
	err := fsys.Remove(filepath.Join(folder, manifestName))
	if err == nil {
		err = fsys.SyncDir(folder)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // another prune may have been quicker
		return err
	}
	return removeOwn(fsys, folder, nil)
}
