package checkpoint

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/skein-ml/skein/internal/vfs"
)

// Other tools name their folders step-00001000 too, and people put notes beside a
// checkpoint. So a folder is ours by what lies in it, and nothing is removed but by
// names of our own, see ownName.

// folderKind is what a folder named like a step's is.
type folderKind int

const (
	foreign    folderKind = iota // nothing of ours
	unfinished                   // empty, or objects without a manifest
	published                    // with a manifest, which may be damaged or of another version
)

// kindOf looks into a folder that is named like a step's. One that vanishes meanwhile,
// as folders do when another worker prunes, is foreign.
func kindOf(fsys vfs.FS, folder string) (folderKind, error) {
	kind, err := look(fsys, folder)
	if errors.Is(err, fs.ErrNotExist) {
		return foreign, nil
	}
	return kind, err
}

func look(fsys vfs.FS, folder string) (folderKind, error) {
	info, err := fsys.Stat(folder)
	if err != nil || !info.IsDir() {
		return foreign, err
	}
	names, err := fsys.ReadDir(folder)
	if err != nil {
		return foreign, err
	}
	own, whole := slices.ContainsFunc(names, ownName.MatchString), slices.Contains(names, manifestName)
	switch {
	case own && whole:
		return published, nil
	case own || len(names) == 0:
		return unfinished, nil
	case !whole:
		return foreign, nil
	}
	// Only the manifest can tell. Of every version it names its format.
	file, err := vfs.ReadFile(fsys, filepath.Join(folder, manifestName), manifestBytesMax)
	if errors.Is(err, vfs.ErrTooLarge) || err == nil && !bytes.Contains(file, []byte(`"`+manifestFormat+`"`)) {
		return foreign, nil
	}
	return published, err
}

// removeOwn removes from a step's folder the files that this package wrote and that
// gone says yes to, nil for all, and the folder if nothing is left in it. It goes on
// after an error and returns the first. Others may write into the folder or remove
// files from it meanwhile.
func removeOwn(fsys vfs.FS, folder string, gone func(name string) bool) error {
	names, err := fsys.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	stay := false
	for _, name := range names {
		if !ownName.MatchString(name) || gone != nil && !gone(name) {
			stay = true
			continue
		}
		if e := fsys.Remove(filepath.Join(folder, name)); err == nil && !errors.Is(e, fs.ErrNotExist) {
			err = e
		}
	}
	if err != nil || stay {
		return err
	}
	err = fsys.Remove(folder)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, fs.ErrExist) {
		return nil // somebody removed it, or wrote into it
	}
	return err
}

// errForeignFolder says why a step is not saved into a folder.
func errForeignFolder(folder string) error {
	return fmt.Errorf("%w: %s holds a %s of another program; set checkpoint.store to another folder", ErrForeign, folder, manifestName)
}
