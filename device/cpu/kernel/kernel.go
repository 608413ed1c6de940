// Package kernel is the seam between the CPU device and the code that makes it
// fast. The device checks shapes, cuts an operation into pieces by its shape
// alone, and runs the pieces on its pool; what computes one piece is an entry of a
// [Table], and what computes a matrix product is a [Products].
//
// Package cpu fills a whole Table and a Products in plain Go: the generic path, which
// is the specification. A faster path lays its own entries over these:
//
//	native.Table(path) Table      // nil entries stay as they are
//	gemm.New(path) Products       // every product, or an error
//
// Rules for an entry:
//
//   - It runs on one thread, allocates nothing and keeps nothing. Package cpu has
//     checked every bound. Pointers are to memory outside the Go heap or to
//     arguments that live as long as the call.
//   - Matrices are row-major, Ld is the distance of two rows in elements, rows need
//     not be aligned. The first element of a buffer is 64-byte aligned, a view's is not.
//   - Ranges are half open. Any [lo, hi) must give the bits that the same rows (or
//     elements) have in any other range: no row knows its index or its neighbours.
//   - Assembly can not be preempted: an entry may call it more than once, each
//     call well below a millisecond.
//   - Outputs may be the inputs wherever package device allows it.
//
// Argument structs hold pointers first, then int (64 bits on every machine that
// has a fast path), then float32, so that C can read them through one pointer.
package kernel

import (
	"unsafe"

	"github.com/skein-ml/skein/device"
)

// Task is an operation cut into pieces. Pieces of one task may run in any order
// and at the same time, so no two may write the same byte.
type Task interface {
	// Piece computes piece i. Worker is in [0, Pool.Workers()), and no two pieces
	// run with the same worker at once: scratch memory is indexed by it.
	Piece(i, worker int)
}

// Pool runs tasks.
type Pool interface {
	// Run computes pieces 0 to n−1 of t, each once, and returns when all are done. The
	// caller computes too. A panic in a piece comes out of Run. It does not allocate
	// when t is a pointer.
	Run(n int, t Task)
	Workers() int
}

// Aligned drops what stands before the first cache line of a workspace.
func Aligned(ws []byte) []byte {
	off := int(-uintptr(unsafe.Pointer(unsafe.SliceData(ws))) & 63)
	return ws[min(off, len(ws)):]
}

// Matrix is a row-major view of host memory. P is nil for "none".
type Matrix struct {
	P              unsafe.Pointer
	DT             device.DType // F32 or BF16
	Rows, Cols, Ld int
}

// Weight is a weight: Mem holds the forms that the Products that made it have packed from
// Src, in their own layout. Mem is 64-byte aligned, outside the Go heap, and zeroed when new.
type Weight struct {
	Out, In int
	DT      device.DType
	Forms   device.Forms
	Src     Matrix // [Out, In]
	Mem     []byte
}

// Products are the matrix products of [device.Linears]. Each call is one whole
// operation: it cuts itself by its shape alone and runs on p. Operands have been
// checked and have rows. An implementation may keep memory per Pool worker, made once.
// Only one call runs at a time.
type Products interface {
	// PackedBytes is the length of Weight.Mem: nothing for forms that products read from
	// Weight.Src.
	PackedBytes(out, in int, dt device.DType, forms device.Forms) int64
	// Need is the workspace in bytes of op, one of OpLinear, OpLinearDX and OpLinearDW,
	// with the Rows, Seq, In, Out and DT of sh. It does not fall when Rows grows.
	Need(op device.Op, sh device.Shape, workers int) int64

	// Pack makes rows [lo, hi) of every packed form of w those of its source.
	Pack(p Pool, w *Weight, lo, hi int)
	// Linear: y = x·Wᵀ + bias + add; x has w's type, y and bias may be F32, add has y's type.
	Linear(p Pool, y, x Matrix, w *Weight, bias, add Matrix, ws []byte)
	// LinearDX: dx = dy·W + add; dy has w's type, dx may be F32, add has dx's type.
	LinearDX(p Pool, dx, dy Matrix, w *Weight, add Matrix, ws []byte)
	// LinearDW: dw F32 += dyᵀ·x by blocks of device.BlockRows rows within sequences
	// of seq rows, each summed from zero; dy and x have one type.
	LinearDW(p Pool, dw, dy, x Matrix, seq int, ws []byte)
}

// Table is what a path computes with. An array is indexed by the element type, F32 or
// BF16. A nil entry of an overlay leaves the one below.
type Table struct {
	// Scratch is the memory in bytes that an entry with a scratch argument may write:
	// one stretch per worker, 64-byte aligned, garbage at the start of a call. It has to
	// do for head dimensions up to [HeadDimMax] and rows of any length.
	Scratch int64

	RMSNorm     [2]func(a *RMSNorm, lo, hi int)
	RMSNormGrad [2]func(a *RMSNormGrad, lo, hi int, partial unsafe.Pointer)
	// LayerNormGrad's partial is F32 [2, Cols]: the sums of dy·x̂, then those of dy.
	LayerNorm     [2]func(a *LayerNorm, lo, hi int)
	LayerNormGrad [2]func(a *LayerNormGrad, lo, hi int, partial unsafe.Pointer)
	Rope          [2]func(a *Rope, lo, hi int)
	GLU           [2]func(a *GLU, lo, hi int)
	GLUGrad       [2]func(a *GLUGrad, lo, hi int)

	// Activate and ActivateGrad work on n elements of one type.
	Activate     [2]func(y, x unsafe.Pointer, n int, act device.Act)
	ActivateGrad [2]func(dx, dy, x unsafe.Pointer, n int, act device.Act)

	// Add: dst = a + b, n elements of one type, rounded once; dst may be a or b.
	Add [2]func(dst, a, b unsafe.Pointer, n int)
	// Cast converts n elements from the index's type to the other one.
	Cast [2]func(dst, src unsafe.Pointer, n int)

	Attention       [2]func(a *Attention, t Tile, scratch unsafe.Pointer)
	AttentionDelta  [2]func(a *AttentionGrad, lo, hi int)
	AttentionGrad   [2]func(a *AttentionGrad, p Pair, scratch unsafe.Pointer)
	AttentionDecode [2]func(a *AttentionDecode, head int, scratch unsafe.Pointer)

	// CrossEntropy's index is the type of the gradient, which is the type of x.
	CrossEntropy [2]func(a *CrossEntropy, lo, hi int)
	// ColumnSum: columns [lo, hi) of db += Σ dy by blocks (see device.BlockRows), each
	// column of a block summed from zero.
	ColumnSum [2]func(a *ColumnSum, lo, hi int)
	// EmbedGrad's range is of slots; the index is dx's type; scratch is F32 [Cols].
	EmbedGrad [2]func(a *EmbedGrad, lo, hi int, scratch unsafe.Pointer)

	// AdamW's index is the type of Work.
	AdamW [2]func(a *AdamW, lo, hi int)
	// SqNorm is the sum of squares, in F64, of n ≤ 4,096 F32 elements.
	SqNorm func(x unsafe.Pointer, n int) float64
}

// HeadDimMax is the largest head dimension that Scratch has to do for.
const HeadDimMax = device.HeadDimMax

// TileRows is the most queries or keys of one [Tile]. Tiles are counted from the
// first token of their document.
const TileRows = 64

// RMSNorm is device.RMSNorm; the range is of rows. Rstd may be nil: not kept.
type RMSNorm struct {
	Y, Rstd, X, W unsafe.Pointer
	Cols          int
	LdY, LdX      int
	Eps           float32
}

// RMSNormGrad is device.RMSNormGrad for rows [lo, hi), at most [NormChunk], of
// one block. Partial, F32 [Cols], is overwritten with the rows' sum of dy·x̂, x̂
// rounded as in the forward. The device adds partials up. Add is nil for none.
type RMSNormGrad struct {
	DX, DY, X, Rstd, W, Add unsafe.Pointer
	Cols                    int
	LdDX, LdDY, LdX, LdAdd  int
}

// LayerNorm is device.LayerNorm; the range is of rows. Stats may be nil: not kept.
type LayerNorm struct {
	Y, Stats, X, W, B unsafe.Pointer
	Cols              int
	LdY, LdX          int
	Eps               float32
}

// LayerNormGrad is device.LayerNormGrad for rows [lo, hi), with chunks as [RMSNormGrad].
// Partial is overwritten. Add is nil for none.
type LayerNormGrad struct {
	DX, DY, X, Stats, W, Add unsafe.Pointer
	Cols                     int
	LdDX, LdDY, LdX, LdAdd   int
}

// NormChunk is the most rows of one call of RMSNormGrad or LayerNormGrad. Chunks are counted from the first
// row of a block.
const NormChunk = 64

// Rope is device.Rope; the range is of rows. K is nil for none. Table is [positions,
// HeadDim] F32 with leading dimension LdTable, Pos I32 by row.
type Rope struct {
	Q, K, Table, Pos  unsafe.Pointer
	Heads, KVHeads    int
	HeadDim           int
	LdQ, LdK, LdTable int
	Inverse           int // 0 or 1
}

// GLU is device.GLU; the range is of rows, F is the width of y.
type GLU struct {
	Y, GateUp unsafe.Pointer
	F         int
	LdY, LdG  int
	Act       int // device.Act
}

// GLUGrad is device.GLUGrad; the range is of rows. DGateUp may be GateUp.
type GLUGrad struct {
	DGateUp, DY, GateUp unsafe.Pointer
	F                   int
	LdDG, LdDY, LdG     int
	Act                 int
}

// Tile says which rows of which document and heads an attention entry computes.
// Rows are rows of the matrices, not of the document.
type Tile struct {
	Doc, End    int // the document's rows
	Lo, Hi      int // the queries: one tile, or several whole ones in a row and one more; Lo−Doc is a multiple of TileRows
	Head, Heads int // query heads [Head, Head+Heads), which read one key head
}

// TilesMax is the most tiles of queries, of all heads together, in one Tile.
const TilesMax = 4

// Pair is a tile of queries of one head that meets a tile of keys of the key head it reads, of
// one document. Both are at most TileRows long and start at a multiple of that in their document.
// A worker meets the pairs of a few key tiles one after the other: by query head, then by
// queries, then by keys, each ascending. The calls in between have the same scratch.
type Pair struct {
	KeyLo, KeyHi     int
	QueryLo, QueryHi int
	KVHead, Head     int
	Slot             int  // of the keys among those that the worker holds, below KeySlots
	NewQueries       bool // these are not the queries of the call before
	FirstOfKeys      bool // first call with these keys
	LastOfKeys       bool // last call with them: DK and DV get their rows
	FirstOfQueries   bool // no pair before this one, in the order of keys, had these queries
	LastOfQueries    bool // none after it will: DQ gets its rows
}

// KeySlots is the most key tiles that a worker holds at once in AttentionGrad.
const KeySlots = 2

// Attention is device.Attention. Softmax streams over key tiles that start at Tile.Doc. Memory
// outside of [Doc, End) must not be looked at: it may hold NaN, or not exist.
// LSE is F32 [heads, LdLSE]; head h of row r stands at h·LdLSE + r.
type Attention struct {
	O, LSE, Q, K, V         unsafe.Pointer
	LdO, LdLSE              int
	LdQ, LdK, LdV           int
	Heads, KVHeads, HeadDim int
	Window                  int // 0: none
	Scale                   float32
}

// AttentionGrad is device.AttentionGrad. Delta has LSE's layout: AttentionDelta fills
// rows [lo, hi) of all heads with do·o, before the pairs are met. Sums is F32 [Heads, LdDelta,
// HeadDim up to a multiple of 16] and garbage at first: dq of the pairs met so far. dk and dv are summed over
// query heads, ascending, and their queries, ascending; dq over keys, ascending.
type AttentionGrad struct {
	DQ, DK, DV, DO               unsafe.Pointer
	Q, K, V, O, LSE, Delta, Sums unsafe.Pointer
	LdDQ, LdDK, LdDV, LdDO       int
	LdQ, LdK, LdV, LdO           int
	LdLSE                        int // of LSE
	LdDelta                      int
	Heads, KVHeads, HeadDim      int
	Window                       int
	Scale                        float32
}

// AttentionDecode is device.AttentionDecode for one query head.
type AttentionDecode struct {
	O, Q, Keys, Values      unsafe.Pointer
	N                       int
	LdK, LdV                int
	Heads, KVHeads, HeadDim int
	Window                  int
	Scale                   float32
}

// CrossEntropy turns rows [lo, hi) of logits into losses and, if Grad is 1, into
// gradients (softmax − onehot)·Scale in place. Logits are F32 [rows, Ld]. Gradients have the
// index's type: row r begins where the row of logits began, so that BF16 ones
// have leading dimension 2·Ld. Every target is in [0, Vocab).
type CrossEntropy struct {
	Logits, Targets, NLL unsafe.Pointer // NLL F32 by row
	Vocab, Ld            int
	Grad                 int
	Scale                float32
}

// ColumnSum is the bias gradient of device.LinearDW.
type ColumnSum struct {
	DB, DY  unsafe.Pointer
	Rows    int
	LdDY    int
	Seq     int
	Columns int
}

// EmbedGrad is device.EmbedGrad; the range is of slots.
type EmbedGrad struct {
	Rows, DX, Order, Starts unsafe.Pointer
	Cols                    int
	LdRows, LdDX            int
	Seq                     int
}

// AdamW is device.AdamW on flat elements, with what is constant worked out in F32. Work
// is nil for none.
type AdamW struct {
	Master, M, V, Grad, Work unsafe.Pointer

	GradScale   float32
	DecayStep   float32 // LR·Decay
	Beta1Rest   float32 // 1 − β1
	Beta2       float32
	Beta2Rest   float32 // 1 − β2
	Step        float32 // LR / Correction1
	Correction2 float32
	Eps         float32
}
