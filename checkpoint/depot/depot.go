// Package depot keeps what a job needs beside its checkpoints in the job's store:
// nonces that show that all workers see one folder, the inputs that were uploaded
// with it, and the prepared data set.
package depot

import (
	"context"
	"errors"

	"github.com/skein-ml/skein/internal/vfs"
)

// PutNonce writes a fresh nonce. object is its name in the store.
func PutNonce(fsys vfs.FS, dir string) (object, nonce string, err error) {
	return "", "", errors.ErrUnsupported
}

// ReadNonce reads the nonce of an object that PutNonce named.
func ReadNonce(fsys vfs.FS, dir, object string) (nonce string, err error) {
	return "", errors.ErrUnsupported
}

// PutFile copies a file to DIR/inputs/<sha256>/<name> and returns that path.
func PutFile(ctx context.Context, fsys vfs.FS, dir, file string) (path string, err error) {
	return "", errors.ErrUnsupported
}

// PutFolder copies those files of a folder that include names, or all if it is nil,
// to DIR/inputs/<sha256>/<name>, and returns that path. include gets names with
// slashes, relative to the folder.
func PutFolder(ctx context.Context, fsys vfs.FS, dir, folder string, include func(name string) bool) (path string, err error) {
	return "", errors.ErrUnsupported
}

// PutDataset copies a prepared data set to DIR/data/<hash> and returns that path.
func PutDataset(ctx context.Context, fsys vfs.FS, dir, folder string) (path string, err error) {
	return "", errors.ErrUnsupported
}
