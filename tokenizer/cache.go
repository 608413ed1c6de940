package tokenizer

import (
	"hash/maphash"
	"sync/atomic"
)

const (
	cachePieceMax = 30      // bytes
	cacheIDsMax   = 8       // ids
	cacheSlots    = 1 << 16 // 4.5 MiB when full
)

// cacheEntry is one cache line and holds no pointer: the collector never looks into it.
type cacheEntry struct {
	size, count uint8
	piece       [cachePieceMax]byte
	ids         [cacheIDsMax]int32
}

// pieceCache remembers the ids of short pieces. It is bounded, because every piece has one slot and takes it from
// whatever was there, and it needs no lock, because an entry never changes once it is in its slot. What it holds never
// changes an answer, only how soon it comes.
type pieceCache struct {
	seed  maphash.Seed
	slots [cacheSlots]atomic.Pointer[cacheEntry]
}

func newPieceCache() *pieceCache { return &pieceCache{seed: maphash.MakeSeed()} }

// slot returns the only slot that piece may be in.
func (c *pieceCache) slot(piece string) *atomic.Pointer[cacheEntry] {
	return &c.slots[maphash.String(c.seed, piece)%cacheSlots]
}

// holds says whether the entry (nil for an empty slot) is that of piece.
func (e *cacheEntry) holds(piece string) bool {
	return e != nil && string(e.piece[:e.size]) == piece
}

// newCacheEntry returns nil when piece or ids are too long to keep.
func newCacheEntry(piece string, ids []int32) *cacheEntry {
	if len(piece) > cachePieceMax || len(ids) > cacheIDsMax {
		return nil
	}
	e := &cacheEntry{size: uint8(len(piece)), count: uint8(len(ids))}
	copy(e.piece[:], piece)
	copy(e.ids[:], ids)
	return e
}
