// Package depot keeps in a job's store what the job needs beside its checkpoints: nonces
// that show that all workers see one folder, the inputs that were uploaded with it, and
// the prepared data set.
//
//	DIR/nonces/3f9c….nonce            one line of random digits
//	DIR/inputs/9a41…/words.jsonl      a file, in a folder named by its content's SHA-256
//	DIR/inputs/07be…/SmolLM2-135M/…   a folder, likewise
//	DIR/data/5be3…/…                  a prepared data set, likewise
//
// Names are hashes of contents, and what is there is never changed. A folder appears
// whole, by one rename; what is there already is verified and used as it is.
package depot

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"syscall"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
)

const (
	nonces = "nonces"
	inputs = "inputs"
	data   = "data"

	nonceBytes = 16
)

// ErrDamaged is returned when something lies under a content's name that is not that
// content. It is never written over: the message says what to remove.
var ErrDamaged = errors.New("does not hold what its name says")

var nonceName = regexp.MustCompile(`^nonces/[0-9a-f]{32}\.nonce$`)

// PutNonce writes a fresh nonce, durable. object is its name in the store; the names
// of two nonces differ, and say nothing about the nonce.
func PutNonce(fsys vfs.FS, dir string) (object, nonce string, err error) {
	object, nonce = nonces+"/"+random()+".nonce", random()
	folder := filepath.Join(dir, nonces)
	err = fsys.MkdirAll(folder)
	if err == nil {
		err = vfs.WriteFile(fsys, filepath.Join(dir, filepath.FromSlash(object)), []byte(nonce+"\n"))
	}
	for _, d := range []string{folder, dir} {
		if err == nil {
			err = fsys.SyncDir(d)
		}
	}
	if err != nil {
		return "", "", fmt.Errorf("store %s: %w", dir, err)
	}
	return object, nonce, nil
}

func random() string { return vfs.Unique() + vfs.Unique() }

// ReadNonce reads the nonce that PutNonce wrote under this name. Other names are
// refused, and so is a file that holds no nonce: a store is probed by names that come
// from elsewhere.
func ReadNonce(fsys vfs.FS, dir, object string) (nonce string, err error) {
	if !nonceName.MatchString(object) {
		return "", fmt.Errorf("store %s: %.80q is not the name of a nonce", dir, object)
	}
	b, err := vfs.ReadFile(fsys, filepath.Join(dir, filepath.FromSlash(object)), 2*nonceBytes+1)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("store %s: %w; it must be one folder that all machines see under this name", dir, err)
	}
	if err != nil {
		return "", fmt.Errorf("store %s: %w", dir, err)
	}
	text, ended := bytes.CutSuffix(b, []byte("\n"))
	if _, err := hex.DecodeString(string(text)); err != nil || !ended || len(text) != 2*nonceBytes {
		return "", fmt.Errorf("store %s: %s holds no nonce", dir, object)
	}
	return string(text), nil
}

// PutFile copies a file to DIR/inputs/<sha256>/<name> and returns that path. What is
// there already is verified and used as it is.
func PutFile(ctx context.Context, fsys vfs.FS, dir, file string) (path string, err error) {
	info, err := fsys.Stat(file)
	if err != nil {
		return "", putError(file, dir, err)
	}
	if info.IsDir() {
		return "", putError(file, dir, errors.New("it is a folder, not a file"))
	}
	l, err := scan(ctx, fsys, file, nil)
	if err != nil {
		return "", putError(file, dir, err)
	}
	final := filepath.Join(dir, inputs, l[0].sum.String(), filepath.Base(file))
	if err := place(ctx, fsys, file, final, l); err != nil {
		return "", putError(file, dir, err)
	}
	return final, nil
}

// PutFolder copies a folder to DIR/inputs/<hash>/<name> and returns that path. What is
// there already is verified and used as it is. include, unless it is nil, chooses
// files by their names in the folder, with slashes; folders in which nothing is chosen
// are left out. The hash is over names and contents.
func PutFolder(ctx context.Context, fsys vfs.FS, dir, folder string, include func(name string) bool) (path string, err error) {
	return putFolder(ctx, fsys, dir, folder, include, func(hash shard.Digest) (string, error) {
		abs, err := filepath.Abs(folder) // "." has a name too
		if err != nil {
			return "", err
		}
		name := filepath.Base(abs)
		if name == string(filepath.Separator) {
			name = "folder"
		}
		return filepath.Join(dir, inputs, hash.String(), name), nil
	})
}

// PutDataset copies the folder of a prepared data set to DIR/data/<hash> and returns
// that path. What is there already is verified and used as it is.
func PutDataset(ctx context.Context, fsys vfs.FS, dir, folder string) (path string, err error) {
	return putFolder(ctx, fsys, dir, folder, nil, func(hash shard.Digest) (string, error) {
		return filepath.Join(dir, data, hash.String()), nil
	})
}

func putFolder(ctx context.Context, fsys vfs.FS, dir, folder string, include func(string) bool, where func(shard.Digest) (string, error)) (string, error) {
	info, err := fsys.Stat(folder)
	if err == nil && !info.IsDir() {
		err = errors.New("it is a file, not a folder")
	}
	if err == nil {
		err = apart(folder, dir)
	}
	var l listing
	if err == nil {
		l, err = scan(ctx, fsys, folder, include)
	}
	var final string
	if err == nil {
		final, err = where(l.hash())
	}
	if err == nil {
		err = place(ctx, fsys, folder, final, l)
	}
	if err != nil {
		return "", putError(folder, dir, err)
	}
	return final, nil
}

// apart refuses a store inside the folder that is to be copied into it.
func apart(folder, dir string) error {
	from, err := filepath.Abs(folder)
	if err != nil {
		return err
	}
	to, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if rel, err := filepath.Rel(from, to); err == nil && filepath.IsLocal(rel) {
		return errors.New("the store lies inside that folder: set checkpoint.store to a folder beside it")
	}
	return nil
}

func putError(what, dir string, err error) error {
	advice := ""
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		advice = "; free space there, or set checkpoint.store to another folder"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		advice = "; let the user that runs Skein read the one and write into the other"
	}
	return fmt.Errorf("copy %s into the store %s: %w%s", what, dir, err, advice)
}
