package raftlog

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"math"

	"github.com/skein-ml/skein/internal/vfs"
)

// The database maps its file into memory and follows the numbers of pages in it without a
// look at how many there are: one that was cut short, or whose list of free pages is damaged,
// reads whatever lies behind the map, and may find out only when it writes. So what it goes
// by is looked at first: its newest root, the file's length, the list of free pages.
//
//	page of a root   0 number u64 · 8 flags u16 · 10 count u16 · 12 overflow u32
//	                16 magic u32 · 20 version u32 · 24 page size u32 · 28 flags u32
//	                32 bucket u64, u64 · 48 list of free pages u64 · 56 pages u64 · 64 transaction u64 · 72 FNV-1a of 16 to 72
//	free pages       0 as above · 16 numbers u64, ascending; count 65535: the first is how many
const (
	boltMagic, boltVersion = 0xED0CDAED, 2
	boltRootBytes          = 80
	boltHeaderBytes        = 16
	boltFreeList           = 0x10       // flags of its page
	boltNoFreeList         = ^uint64(0) // it is not written
)

// boltRoot is what one of the two roots of a database says.
type boltRoot struct {
	pageBytes                    int64
	freeList, pages, transaction uint64
}

// checkBolt refuses a file that the database could not work with.
func checkBolt(f vfs.File) error {
	root, ok := newestRoot(f)
	if !ok {
		return nil // a new file, or one that the database refuses by itself
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if need := root.pages * uint64(root.pageBytes); root.pages > math.MaxInt64/uint64(root.pageBytes) || uint64(info.Size()) < need {
		return fmt.Errorf("%w: %s has %d bytes of %d pages of %d", ErrCorrupt, logFile, info.Size(), root.pages, root.pageBytes)
	}
	err = root.checkFree(f, info.Size())
	if again, _ := newestRoot(f); again != root {
		return nil // another process works with it, as the lock will tell
	}
	return err
}

// newestRoot reads the root that the database goes by.
func newestRoot(f io.ReaderAt) (newest boltRoot, ok bool) {
	for _, at := range []int64{0, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16} {
		if r, sound := readRoot(f, at); sound && (!ok || r.transaction > newest.transaction) {
			newest, ok = r, true
		}
	}
	return newest, ok
}

func readRoot(f io.ReaderAt, at int64) (r boltRoot, ok bool) {
	b := make([]byte, boltRootBytes)
	if _, err := f.ReadAt(b, at); err != nil {
		return r, false
	}
	order := binary.NativeEndian
	h := fnv.New64a()
	h.Write(b[boltHeaderBytes:72])
	if order.Uint32(b[16:]) != boltMagic || order.Uint32(b[20:]) != boltVersion || order.Uint64(b[72:]) != h.Sum64() {
		return r, false
	}
	r = boltRoot{int64(order.Uint32(b[24:])), order.Uint64(b[48:]), order.Uint64(b[56:]), order.Uint64(b[64:])}
	return r, r.pageBytes >= boltRootBytes && (at == 0 || at == r.pageBytes)
}

// checkFree refuses a list of free pages that names pages which cannot be. size is the
// file's.
func (r boltRoot) checkFree(f io.ReaderAt, size int64) error {
	if r.freeList == boltNoFreeList {
		return nil
	}
	wrong := fmt.Errorf("%w: %s: its list of free pages", ErrCorrupt, logFile)
	if r.freeList < 2 || r.freeList >= r.pages {
		return wrong
	}
	order, at := binary.NativeEndian, int64(r.freeList)*r.pageBytes
	b := make([]byte, boltHeaderBytes+8)
	if _, err := f.ReadAt(b, at); err != nil {
		return fmt.Errorf("%w: %w", wrong, err)
	}
	count, first := uint64(order.Uint16(b[10:])), at+boltHeaderBytes
	if count == math.MaxUint16 {
		count, first = order.Uint64(b[16:]), first+8
	}
	if order.Uint16(b[8:]) != boltFreeList || count > r.pages || first+8*int64(count) > size {
		return wrong
	}
	list := make([]byte, 8*count)
	if _, err := f.ReadAt(list, first); err != nil {
		return fmt.Errorf("%w: %w", wrong, err)
	}
	last := uint64(1) // the roots' pages are never free
	for ; len(list) > 0; list = list[8:] {
		page := order.Uint64(list)
		if page <= last || page >= r.pages {
			return wrong
		}
		last = page
	}
	return nil
}
