package vfs

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// renameNew leaves the check to the kernel, which makes check and rename one step.
func renameNew(oldname, newname string) error {
	for {
		err := unix.Renameat2(unix.AT_FDCWD, oldname, unix.AT_FDCWD, newname, unix.RENAME_NOREPLACE)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS): // file systems that cannot, such as NFS
			return renameChecked(oldname, newname)
		default:
			return &os.LinkError{Op: "rename", Old: oldname, New: newname, Err: err}
		}
	}
}
