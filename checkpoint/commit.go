package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/skein-ml/skein/internal/vfs"
)

// Commit makes the manifest that WriteManifest gave this name the manifest.json of its
// step, so that all readers of the folder see the checkpoint. It is called after the
// log has published that name, and may be called again at any time: after a crash,
// or by a worker that does not know that others went on without it.
//
// A step that has a whole manifest already keeps it, whoever wrote it, if it holds
// the same weights and moments; the error is ErrDiverged if not.
func Commit(fsys vfs.FS, dir, name string) error {
	if err := commit(fsys, dir, name); err != nil {
		return fmt.Errorf("publish checkpoint %s: %w%s", name, err, advice(dir, err))
	}
	return nil
}

func commit(fsys vfs.FS, dir, name string) error {
	c, file, err := openNamed(fsys, dir, name)
	if err != nil {
		return err
	}
	if err := c.complete(); err != nil {
		return err
	}
	for {
		before, err := committed(fsys, c.folder)
		if err != nil {
			return err
		}
		if err := c.Manifest.follows(before); err != nil {
			return err
		}
		if before != nil && (&Checkpoint{Manifest: *before, fsys: fsys, folder: c.folder}).complete() == nil {
			return fsys.SyncDir(c.folder) // whoever renamed it may have been killed before this
		}
		err = c.rename(file)
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		// Somebody was quicker. Compare with what is there now.
	}
}

// rename makes a manifest's bytes the manifest.json of its folder. If there is none the
// rename must make it, so that of two who come at once the second one looks at what
// the first one wrote.
func (c *Checkpoint) rename(file []byte) error {
	_, generation, _, err := parseManifestPath(filepath.Base(c.folder) + "/" + c.file)
	if err != nil {
		return err
	}
	final, temp := filepath.Join(c.folder, manifestName), filepath.Join(c.folder, tempName(manifestStem(generation)))
	there, err := vfs.Exists(c.fsys, final)
	if err != nil {
		return err
	}
	if err := vfs.WriteFile(c.fsys, temp, file); err != nil {
		return err
	}
	if there { // damaged: to be replaced
		err = c.fsys.Rename(temp, final)
	} else {
		err = c.fsys.RenameNew(temp, final)
	}
	if err != nil {
		_ = c.fsys.Remove(temp) // best effort: the rename's error is the one to report
		return err
	}
	return c.fsys.SyncDir(c.folder)
}

// complete tells whether all objects are there, by their sizes.
func (c *Checkpoint) complete() error {
	for _, o := range c.Manifest.Objects {
		if err := hasSize(c.fsys, filepath.Join(c.folder, o.File), o.Bytes); err != nil {
			return err
		}
	}
	return nil
}

// committed is the manifest.json that a step's folder has, or nil. A damaged one
// counts as none: it is about to be replaced. One that is of another version, or not
// ours at all, is an error.
func committed(fsys vfs.FS, folder string) (*Manifest, error) {
	path := filepath.Join(folder, manifestName)
	file, err := vfs.ReadFile(fsys, path, manifestBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil && !errors.Is(err, vfs.ErrTooLarge) {
		return nil, err
	}
	m, err := DecodeManifest(file)
	if errors.Is(err, ErrVersion) {
		return nil, fmt.Errorf("%s %w", path, err)
	}
	if err != nil {
		kind, err := kindOf(fsys, folder)
		if err == nil && kind == foreign {
			err = errForeignFolder(folder)
		}
		return nil, err
	}
	return &m, nil
}
