package depot

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"slices"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
)

const (
	// filesMax and depthMax keep a folder that was named by mistake, or one that links
	// to itself, from being copied for ever.
	filesMax = 10_000
	depthMax = 16
	// copyBytes is how much is read at a time.
	copyBytes = 1 << 20
)

var errEmpty = errors.New("there is no file in it")

// entry is one file: its name in its folder, with slashes, and its content.
type entry struct {
	name string
	size int64
	sum  shard.Digest
}

// listing is the files of a folder by name, or one file, whose name is empty.
type listing []entry

// hash is the identity of a folder:
//
//	SHA-256( "skein folder 1\n" | for each file: u32 length of name | name | u64 bytes | SHA-256 )
func (l listing) hash() shard.Digest {
	h := sha256.New()
	h.Write([]byte("skein folder 1\n"))
	for _, e := range l {
		head := binary.LittleEndian.AppendUint32(nil, uint32(len(e.name)))
		head = append(head, e.name...)
		h.Write(binary.LittleEndian.AppendUint64(head, uint64(e.size)))
		h.Write(e.sum[:])
	}
	return shard.Digest(h.Sum(nil))
}

// scan reads a file, or the files of a folder and of those below it. include chooses
// among the latter; nil is all.
func scan(ctx context.Context, fsys vfs.FS, root string, include func(name string) bool) (listing, error) {
	names, err := walk(fsys, root, "", include, nil, 0)
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, errEmpty
	}
	slices.Sort(names)
	buf := make([]byte, copyBytes)
	var l listing
	for _, name := range names {
		e := entry{name: name}
		if e.size, e.sum, err = transfer(ctx, fsys, filepath.Join(root, filepath.FromSlash(name)), nil, buf); err != nil {
			return nil, err
		}
		l = append(l, e)
	}
	return l, nil
}

// walk adds the names of root/name, if it is a file, and of all files below.
func walk(fsys vfs.FS, root, name string, include func(string) bool, names []string, depth int) ([]string, error) {
	place := filepath.Join(root, filepath.FromSlash(name))
	info, err := fsys.Stat(place)
	switch {
	case err != nil:
		return nil, err
	case !info.IsDir() && name != "" && include != nil && !include(name):
		return names, nil
	case info.Mode().IsRegular():
		if len(names) == filesMax {
			return nil, fmt.Errorf("it has more than %d files", filesMax)
		}
		return append(names, name), nil
	case !info.IsDir():
		return nil, fmt.Errorf("%s is neither a file nor a folder", place)
	case depth == depthMax:
		return nil, fmt.Errorf("%s is more than %d folders deep", place, depthMax)
	}
	below, err := fsys.ReadDir(place)
	if err != nil {
		return nil, err
	}
	for _, b := range below {
		if names, err = walk(fsys, root, path.Join(name, b), include, names, depth+1); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// transfer reads a file and returns what it is; unless to is nil it also writes it.
func transfer(ctx context.Context, fsys vfs.FS, from string, to io.Writer, buf []byte) (size int64, sum shard.Digest, err error) {
	f, err := fsys.Open(from)
	if err != nil {
		return 0, sum, err
	}
	defer f.Close()
	h := sha256.New()
	for {
		if err := ctx.Err(); err != nil {
			return 0, sum, err
		}
		n, err := f.Read(buf)
		size += int64(n)
		h.Write(buf[:n])
		if to != nil {
			if _, err := to.Write(buf[:n]); err != nil {
				return 0, sum, err
			}
		}
		if errors.Is(err, io.EOF) {
			return size, shard.Digest(h.Sum(nil)), nil
		}
		if err != nil {
			return 0, sum, err
		}
	}
}

// place makes what l lists be at final, durable: it is copied there, whole or not at
// all, or it is there already, and then it must be the same.
func place(ctx context.Context, fsys vfs.FS, from, final string, l listing) error {
	there, err := vfs.Exists(fsys, final)
	if err == nil && !there {
		err = bring(ctx, fsys, from, final, l)
		there = errors.Is(err, fs.ErrExist) // somebody was quicker
	}
	if there {
		err = compare(ctx, fsys, final, l)
	}
	if err != nil {
		return err
	}
	// Whoever renamed it may have been killed before this. The store may be new too.
	for d := filepath.Dir(final); ; d = filepath.Dir(d) {
		if err := fsys.SyncDir(d); err != nil {
			return err
		}
		if base := filepath.Base(d); base == inputs || base == data {
			return fsys.SyncDir(filepath.Dir(d))
		}
	}
}

// bring copies what l lists to final, or fails with fs.ErrExist.
func bring(ctx context.Context, fsys vfs.FS, from, final string, l listing) error {
	if err := fsys.MkdirAll(filepath.Dir(final)); err != nil {
		return err
	}
	draft, err := vfs.NewDraft(fsys, final)
	if err != nil {
		return err
	}
	defer draft.Discard()
	if err := fill(ctx, fsys, from, draft.Dir, l); err != nil {
		return err
	}
	if l[0].name == "" {
		return fsys.RenameNew(filepath.Join(draft.Dir, single), final)
	}
	return draft.Publish()
}

// single is what a single file is called while it is copied.
const single = "file"

// fill copies files into a draft, durable, and makes sure that they are those listed.
func fill(ctx context.Context, fsys vfs.FS, from, draft string, l listing) error {
	buf := make([]byte, copyBytes)
	folders := map[string]bool{}
	for _, e := range l {
		to := filepath.Join(draft, filepath.FromSlash(cmp.Or(e.name, single)))
		for d := filepath.Dir(to); d != draft && !folders[d]; d = filepath.Dir(d) {
			folders[d] = true
		}
		if err := fsys.MkdirAll(filepath.Dir(to)); err != nil {
			return err
		}
		source := filepath.Join(from, filepath.FromSlash(e.name))
		got := entry{name: e.name}
		err := create(fsys, to, func(w io.Writer) (err error) {
			got.size, got.sum, err = transfer(ctx, fsys, source, w, buf)
			return err
		})
		if err != nil {
			return err
		}
		if got != e {
			return fmt.Errorf("%s was changed meanwhile: wait until it is finished, and try again", source)
		}
	}
	for d := range folders {
		if err := fsys.SyncDir(d); err != nil {
			return err
		}
	}
	return fsys.SyncDir(draft)
}

// create writes and syncs a file.
func create(fsys vfs.FS, name string, write func(io.Writer) error) error {
	f, err := fsys.Create(name)
	if err != nil {
		return err
	}
	if err = write(f); err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// compare fails unless what lies at final is what l lists, and nothing else.
func compare(ctx context.Context, fsys vfs.FS, final string, l listing) error {
	damaged := func(why string) error {
		return fmt.Errorf("%s %w: %s; remove it and try again", final, ErrDamaged, why)
	}
	there, err := scan(ctx, fsys, final, nil)
	if err != nil && !errors.Is(err, errEmpty) {
		return err
	}
	if slices.Equal(there, l) {
		return nil
	}
	differs := func(a, b listing) (string, bool) { // the first of a that is not in b
		for _, e := range a {
			if !slices.Contains(b, e) {
				return cmp.Or(e.name, filepath.Base(final)), true
			}
		}
		return "", false
	}
	if name, ok := differs(l, there); ok {
		return damaged(fmt.Sprintf("file %q differs or is missing", name))
	}
	if name, ok := differs(there, l); ok {
		return damaged(fmt.Sprintf("file %q does not belong there", name))
	}
	return nil
}
