package checkpoint

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/skein-ml/skein/internal/vfs"
)

// Other tools name their folders step-00001000 too, and people put notes beside a
// checkpoint. So a folder is ours by what lies in it, and nothing is removed but by
// names that Save gives.

// ownName matches what Save writes besides manifest.json.
var ownName = regexp.MustCompile(`^(rank-\d\d-(master|m|v)(\.tmp|-[0-9a-f]{16}\.obj)|manifest\.json\.tmp)$`)

// folderKind is what a folder named like a step's is.
type folderKind int

const (
	foreign    folderKind = iota // nothing that Save wrote
	unfinished                   // empty, or objects without a manifest
	published                    // with a manifest, which may be damaged or of another version
)

// kindOf looks into a folder that is named like a step's.
func kindOf(fsys vfs.FS, folder string) (folderKind, error) {
	info, err := fsys.Stat(folder)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return foreign, nil
	}
	if err != nil {
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

// removeOwn removes from a step's folder what Save wrote and keep does not name, and
// the folder if nothing is left in it. It goes on after an error and returns the first.
func removeOwn(fsys vfs.FS, folder string, keep map[string]bool) error {
	names, err := fsys.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	stay := false
	for _, name := range names {
		if keep[name] || !ownName.MatchString(name) {
			stay = true
			continue
		}
		if e := fsys.Remove(filepath.Join(folder, name)); err == nil {
			err = e
		}
	}
	if err != nil || stay {
		return err
	}
	return fsys.Remove(folder)
}

// errForeignFolder says why a step is not saved into a folder.
func errForeignFolder(folder string) error {
	return fmt.Errorf("%w: %s holds a %s of another program; set checkpoint.store to another folder", ErrForeign, folder, manifestName)
}
