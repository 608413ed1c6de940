// Package vfs is the small seam between Skein and the file system. Code that must survive a full disk or a kill at any
// moment takes an FS; in production that is OS, in tests it is Mem (which forgets what was not synced) or Fault (which
// fails, tears and crashes on demand).
//
// Durability contract, the same for every implementation: bytes of a file are safe after File.Sync; a name (create,
// rename, remove) is safe after SyncDir of the folder that holds it. Nothing else is promised.
package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
)

// File is an open file. It is not safe for concurrent use, but for ReadAt.
type File interface {
	io.Reader
	io.ReaderAt
	io.Writer
	io.Seeker
	io.Closer
	// WriteAt writes at an absolute offset and leaves the position alone.
	io.WriterAt
	// Sync makes the bytes written so far durable.
	Sync() error
	// Stat describes the file; Size is what users of this package read from it.
	Stat() (fs.FileInfo, error)
	// Name is the path it was opened with.
	Name() string
}

// FS is a file system. Paths are those of the host (package filepath). Methods may be called concurrently.
// Errors wrap fs.ErrNotExist, fs.ErrExist and syscall errors, so errors.Is works, and name the operation and the file.
type FS interface {
	// Create makes or empties a file, open for reading and writing.
	Create(name string) (File, error)
	// Open opens a file for reading.
	Open(name string) (File, error)
	// OpenReadWrite opens an existing file for reading and writing, without emptying it.
	OpenReadWrite(name string) (File, error)
	// Rename moves a file or a folder. A file replaces an existing file; nothing replaces a folder.
	Rename(oldname, newname string) error
	// RenameNew moves a file or a folder to a name that nothing has, or fails with fs.ErrExist.
	RenameNew(oldname, newname string) error
	// Remove deletes a file or an empty folder.
	Remove(name string) error
	// RemoveAll deletes name and what is below it; a missing name is no error.
	RemoveAll(name string) error
	// MkdirAll makes a folder and its parents.
	MkdirAll(name string) error
	// Stat describes a name.
	Stat(name string) (fs.FileInfo, error)
	// ReadDir lists the names in a folder, sorted.
	ReadDir(name string) ([]string, error)
	// SyncDir makes the names in a folder durable.
	SyncDir(name string) error
}

// OS is the host's file system.
var OS FS = osFS{}

type osFS struct{}

func (osFS) Create(name string) (File, error) {
	return wrapFile(os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644))
}
func (osFS) Open(name string) (File, error) { return wrapFile(os.Open(name)) }
func (osFS) OpenReadWrite(name string) (File, error) {
	return wrapFile(os.OpenFile(name, os.O_RDWR, 0))
}
func (osFS) Rename(oldname, newname string) error  { return os.Rename(oldname, newname) }
func (osFS) RenameNew(from, to string) error       { return renameNew(from, to) }
func (osFS) Remove(name string) error              { return os.Remove(name) }
func (osFS) RemoveAll(name string) error           { return os.RemoveAll(name) }
func (osFS) MkdirAll(name string) error            { return os.MkdirAll(name, 0o755) }
func (osFS) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }
func (osFS) ReadDir(name string) ([]string, error) {
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	sort.Strings(names)
	return names, nil
}

func (osFS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

// renameChecked is RenameNew where the system has no such call. Between check and rename somebody may make newname; a folder
// that holds something is safe even then.
func renameChecked(oldname, newname string) error {
	if _, err := os.Lstat(newname); err == nil {
		return &os.LinkError{Op: "rename", Old: oldname, New: newname, Err: fs.ErrExist}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Rename(oldname, newname)
}

// wrapFile keeps a nil *os.File from becoming a non-nil File.
func wrapFile(f *os.File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return f, nil
}

// ErrTooLarge is returned by ReadFile for a file over its limit.
var ErrTooLarge = errors.New("file is larger than the limit")

// ReadFile reads a whole file of at most maxBytes bytes. The size is checked before anything is allocated.
func ReadFile(fsys FS, name string, maxBytes int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("is a folder")}
	}
	if info.Size() > maxBytes {
		return nil, fmt.Errorf("%s: %w: %d bytes, limit %d", name, ErrTooLarge, info.Size(), maxBytes)
	}
	// One byte more than promised, so that a file that grows while it is read is noticed.
	b, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err != nil {
		return nil, err // names the file already
	}
	if int64(len(b)) > maxBytes {
		return nil, fmt.Errorf("%s: %w: limit %d", name, ErrTooLarge, maxBytes)
	}
	return b, nil
}

// WriteFile writes and syncs a file. A failure leaves no file of that name that looks whole only by luck: it is removed.
// The name itself is durable after SyncDir of its folder.
func WriteFile(fsys FS, name string, b []byte) error {
	f, err := fsys.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		_ = fsys.Remove(name) // best effort: the first error is the one to report
	}
	return err // names the file already
}

// ReplaceFile makes b the content of a file, durable: at any moment, for every reader and after any kill, it holds what it held
// before or b. Several may do so at once; the last rename wins.
func ReplaceFile(fsys FS, name string, b []byte) error {
	temp := name + "-" + Unique() + ".tmp"
	if err := WriteFile(fsys, temp, b); err != nil {
		return err
	}
	if err := fsys.Rename(temp, name); err != nil {
		_ = fsys.Remove(temp) // best effort: the rename's error is the one to report
		return err
	}
	return fsys.SyncDir(filepath.Dir(name))
}

// Publish makes a finished folder appear under its final name, whole or not at all: the names in temp are synced, temp is
// renamed, and the parent is synced. Files in temp must have been synced by their writer. If final exists, be it an empty
// folder, the error is fs.ErrExist and temp is left for the caller to remove.
func Publish(fsys FS, temp, final string) error {
	if err := fsys.SyncDir(temp); err != nil {
		return err
	}
	if err := fsys.RenameNew(temp, final); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(final))
}

// Exists reports whether a name is there. Any error but "not there" is returned.
func Exists(fsys FS, name string) (bool, error) {
	_, err := fsys.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
