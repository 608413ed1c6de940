package gemm

import "github.com/skein-ml/skein/device"

// geometry is the shape that an engine's kernels want, and what of it fits where.
type geometry struct {
	mr      int // rows of a panel of the left operand
	kUnit   int // k is padded to a multiple of it
	kStep   int // slices are multiples of it, but the last
	kSlice  int // largest slice: 32 columns of it stay in L1
	kChunk  int // most k of the left operand packed at once: rowsMax·kChunk stay in L2
	rowsMax int // rows of a piece
}

// panelsMax is the most panels of one piece when k takes several chunks: their sums stay
// in L2.
const panelsMax = 24

func roundUp(n, unit int) int { return (n + unit - 1) / unit * unit }

func panels(n int) int { return (n + 31) / 32 }

// slices cuts a sum of k terms into slices of equal length, the last one shorter.
// Every slice is summed from zero, or continued, as the engine says: this function is
// part of what fixes bits.
func (g geometry) slices(k int) (length int) {
	n := (k + g.kSlice - 1) / g.kSlice
	return roundUp((k+n-1)/n, g.kStep)
}

// cut says how an output [m, n] is cut into pieces. No bit depends on it.
type cut struct {
	m, n        int
	groupRows   int // rows of a piece, a multiple of mr but for the last
	groups      int
	blockPanels int // panels of a piece
	blocks      int

	leftBytes, rightBytes, sumBytes int // scratch of one worker
}

// newCut aims at twice as many pieces as workers, since a core may be busy with
// something else, unless they would become too small to pay for their packing. It cuts rows
// first: every block of columns packs the left operand anew.
func newCut(e engine, m, n, k, workers int) cut {
	g := e.geometry()
	length := roundUp(g.slices(k), g.kUnit)
	chunk := min(roundUp(k, length), g.kChunk/length*length)
	wide := panelsMax
	if chunk >= k {
		wide *= 2 // one panel of sums is enough, and the left operand is packed half as often
	}
	c := cut{m: m, n: n, groups: (m + g.rowsMax - 1) / g.rowsMax, blocks: (panels(n) + wide - 1) / wide}
	if workers > 1 {
		for c.groups*c.blocks < 2*workers && m/(c.groups+1) >= 96 {
			c.groups++
		}
		for c.groups*c.blocks < 2*workers && panels(n)/(c.blocks+1) >= 8 {
			c.blocks++
		}
	}
	c.groupRows = roundUp((m+c.groups-1)/c.groups, g.mr)
	c.groups = (m + c.groupRows - 1) / c.groupRows
	c.blockPanels = (panels(n) + c.blocks - 1) / c.blocks
	c.blocks = (panels(n) + c.blockPanels - 1) / c.blockPanels

	c.leftBytes = roundUp(c.groupRows*chunk*e.leftSize(), 64)
	c.rightBytes = length * 32 * 4
	c.sumBytes = c.groupRows * 32 * 4
	if chunk < k {
		c.sumBytes *= c.blockPanels
	}
	return c
}

func (c cut) pieces() int { return c.groups * c.blocks }

// workerBytes is the scratch of one worker. The last lines keep the workers' pages apart.
func (c cut) workerBytes() int { return c.leftBytes + c.rightBytes + c.sumBytes + 4096 }

func (c cut) bytes(workers int) int64 {
	return int64(c.workerBytes()) * int64(workers)
}

// scratchBound is scratch that does for every product of at most m rows, n columns and
// k terms. It never falls when a size grows, which the bytes of newCut do: fewer rows
// may be cut into taller groups, and fewer terms into longer slices.
func scratchBound(e engine, m, n, k, workers int) int64 {
	g := e.geometry()
	c := cut{groupRows: min(roundUp(m, g.mr), roundUp(g.rowsMax, g.mr)), blockPanels: min(panels(n), panelsMax)}
	length := min(roundUp(k, max(g.kUnit, g.kStep)), roundUp(g.kSlice, g.kUnit))
	c.leftBytes = roundUp(c.groupRows*min(roundUp(k, length), g.kChunk)*e.leftSize(), 64)
	c.rightBytes = length * 32 * 4
	c.sumBytes = c.groupRows * 32 * 4
	if k > g.kChunk-length { // less fits one chunk, whatever its slices
		c.sumBytes *= c.blockPanels
	}
	return c.bytes(workers)
}

// blockEnd is the end of the block of rows that begins at row first, in sequences of seq rows.
func blockEnd(first, seq int) int {
	return min(first+device.BlockRows, (first/seq+1)*seq)
}
