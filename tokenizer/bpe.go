package tokenizer

import (
	"math"
	"math/bits"
	"slices"
	"sync"
)

// bpe merges the bytes of a piece into tokens: again and again the pair of neighbours of the lowest rank becomes one,
// the leftmost first where ranks are equal (Sennrich et al. 2016, arXiv:1508.07909).
type bpe struct {
	byteID       [256]int32       // token of one byte; unknown where the vocabulary has none
	unk          int32            // what an unknown byte becomes; unknown: it is dropped
	fuseUnk      bool             // unknown bytes in a row become one unk
	whole        map[string]int32 // with ignore_merges, tokens by their bytes: a piece that is one is not merged
	merges       mergeTable
	cache        *pieceCache
	linearMaxLen int // longest piece, in bytes, merged by search instead of by heap
}

const (
	unknown         = -1
	noRank          = math.MaxUint32
	linearMaxLenStd = 48 // measured: the heap wins from about fifty symbols on
)

// append appends the ids of piece, which is not empty.
func (m *bpe) append(dst []int32, piece string) []int32 {
	if len(piece) == 1 {
		if id := m.byteID[piece[0]]; id != unknown {
			return append(dst, id)
		}
	}
	if len(piece) > cachePieceMax {
		return m.merge(dst, piece)
	}
	slot := m.cache.slot(piece)
	if e := slot.Load(); e.holds(piece) {
		return append(dst, e.ids[:e.count]...)
	}
	start := len(dst)
	dst = m.merge(dst, piece)
	if e := newCacheEntry(piece, dst[start:]); e != nil {
		slot.Store(e)
	}
	return dst
}

func (m *bpe) merge(dst []int32, piece string) []int32 {
	if m.whole != nil {
		if id, ok := m.whole[piece]; ok {
			return append(dst, id)
		}
	}
	start := len(dst)
	dst = m.appendSymbols(dst, piece)
	var count int
	if len(piece) <= m.linearMaxLen {
		count = m.mergeLinear(dst[start:])
	} else {
		count = m.mergeHeap(dst[start:])
	}
	return dst[:start+count]
}

// appendSymbols appends the token of every byte of piece.
func (m *bpe) appendSymbols(dst []int32, piece string) []int32 {
	dst = slices.Grow(dst, len(piece))
	fusing := false
	for i := range len(piece) {
		id := m.byteID[piece[i]]
		if id != unknown {
			fusing = false
			dst = append(dst, id)
		} else if m.unk != unknown && !fusing {
			fusing = m.fuseUnk
			dst = append(dst, m.unk)
		}
	}
	return dst
}

// mergeLinear merges ids in place by searching for the lowest rank each time, and returns how many are left.
func (m *bpe) mergeLinear(ids []int32) int {
	var buffer [linearMaxLenStd]merge
	pairs := buffer[:0] // pairs[i] is the merge of ids[i] and ids[i+1]
	if len(ids) > len(buffer) {
		pairs = make([]merge, 0, len(ids))
	}
	for i := range len(ids) - 1 {
		pairs = append(pairs, m.merges.find(ids[i], ids[i+1]))
	}
	for {
		best, at := uint32(noRank), -1
		for i := range pairs {
			if pairs[i].rank < best {
				best, at = pairs[i].rank, i
			}
		}
		if at < 0 {
			return len(ids)
		}
		ids[at] = pairs[at].id
		ids = slices.Delete(ids, at+1, at+2)
		pairs = slices.Delete(pairs, at, at+1)
		if at > 0 {
			pairs[at-1] = m.merges.find(ids[at-1], ids[at])
		}
		if at < len(pairs) {
			pairs[at] = m.merges.find(ids[at], ids[at+1])
		}
	}
}

// heapScratch is what mergeHeap works in; kept between pieces.
type heapScratch struct {
	heap       []uint64 // rank<<32 | position: the smallest is the next merge
	prev, next []int32
}

var heapScratches = sync.Pool{New: func() any { return new(heapScratch) }}

const gone = math.MinInt32 // next of a symbol that was merged into the one before it

// mergeHeap is mergeLinear in n·log n steps.
func (m *bpe) mergeHeap(ids []int32) int {
	s := heapScratches.Get().(*heapScratch)
	defer heapScratches.Put(s)
	n := len(ids)
	s.heap = s.heap[:0]
	s.prev, s.next = slices.Grow(s.prev[:0], n)[:n], slices.Grow(s.next[:0], n)[:n]
	for i := range ids {
		s.prev[i], s.next[i] = int32(i-1), int32(i+1)
		if i+1 < n {
			s.offer(m.merges.find(ids[i], ids[i+1]), i)
		}
	}
	for len(s.heap) > 0 {
		top := s.pop()
		at := int(uint32(top))
		right := int(s.next[at])
		if right < 0 || right >= n {
			continue
		}
		pair := m.merges.find(ids[at], ids[right])
		if pair.rank != uint32(top>>32) {
			continue // one of the two was merged since
		}
		ids[at] = pair.id
		after := int(s.next[right])
		s.next[at], s.next[right] = int32(after), gone
		if after < n {
			s.prev[after] = int32(at)
			s.offer(m.merges.find(pair.id, ids[after]), at)
		}
		if before := int(s.prev[at]); before >= 0 {
			s.offer(m.merges.find(ids[before], pair.id), before)
		}
	}
	count := 0
	for i := 0; i < n; i = int(s.next[i]) {
		ids[count] = ids[i]
		count++
	}
	return count
}

// offer puts the merge of the symbol at position at with the one behind it on the heap.
func (s *heapScratch) offer(m merge, at int) {
	if m.rank == noRank {
		return
	}
	h := append(s.heap, uint64(m.rank)<<32|uint64(uint32(at)))
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if h[up] <= h[i] {
			break
		}
		h[up], h[i] = h[i], h[up]
		i = up
	}
	s.heap = h
}

func (s *heapScratch) pop() uint64 {
	h := s.heap
	top := h[0]
	h[0] = h[len(h)-1]
	h = h[:len(h)-1]
	for i := 0; ; {
		down := 2*i + 1
		if down >= len(h) {
			break
		}
		if down+1 < len(h) && h[down+1] < h[down] {
			down++
		}
		if h[i] <= h[down] {
			break
		}
		h[i], h[down] = h[down], h[i]
		i = down
	}
	s.heap = h
	return top
}

// merge is what two neighbours become. Lower ranks go first; noRank means never.
type merge struct {
	rank uint32
	id   int32
}

// mergeTable maps a pair of tokens to its merge: open addressing, at most two thirds full.
type mergeTable struct {
	slots []mergeSlot
	shift uint
}

type mergeSlot struct {
	pair uint64 // left<<32 | right; noPair when the slot is free
	merge
}

const noPair = math.MaxUint64

// newMergeTable returns a table with room for n merges.
func newMergeTable(n int) mergeTable {
	size := uint(bits.Len(uint(n + n/2 + 1)))
	t := mergeTable{slots: make([]mergeSlot, 1<<size), shift: 64 - size}
	for i := range t.slots {
		t.slots[i] = mergeSlot{noPair, merge{noRank, unknown}}
	}
	return t
}

func pairKey(left, right int32) uint64 { return uint64(uint32(left))<<32 | uint64(uint32(right)) }

// home returns the first slot to look in (Fibonacci hashing, Knuth 6.4).
func (t *mergeTable) home(pair uint64) uint64 {
	pair ^= pair >> 29
	return pair * 0x9E3779B97F4A7C15 >> t.shift
}

// put enters a merge; that of the same pair before it is forgotten.
func (t *mergeTable) put(left, right int32, m merge) {
	pair := pairKey(left, right)
	mask := uint64(len(t.slots) - 1)
	i := t.home(pair)
	for t.slots[i].pair != noPair && t.slots[i].pair != pair {
		i = (i + 1) & mask
	}
	t.slots[i] = mergeSlot{pair, m}
}

func (t *mergeTable) find(left, right int32) merge {
	pair := pairKey(left, right)
	mask := uint64(len(t.slots) - 1)
	for i := t.home(pair); ; i = (i + 1) & mask {
		s := &t.slots[i&mask]
		if s.pair == pair || s.pair == noPair {
			return s.merge
		}
	}
}
