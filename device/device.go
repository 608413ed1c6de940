// Package device is the list of operations that a transformer needs, each with
// its backward: no graph and no automatic differentiation. Model code calls them
// by layer, forward and backward side by side.
//
// Rules that hold for every operation and every implementation:
//
//   - Memory is opaque. Nothing outside an implementation may look into a [Buf];
//     bytes go in and out by [Device.Upload] and [Device.Download] only.
//   - Calls are asynchronous in stream order and return nothing. Scalars go to a
//     buffer. Errors of execution surface at [Event.Wait].
//   - No operation allocates. The caller passes workspace of [Device.Need] bytes.
//   - A wrong shape or type is a bug of the caller: implementations panic with both, in
//     the call (the Check functions say what is wrong). So is memory that was freed or
//     is another device's, and too little workspace. What is wrong in memory, such as an id out of
//     range, fails the stream: its events carry the error from then on, and operations
//     after it may be skipped.
//   - Outputs overlap no input and no workspace, unless an operation allows it. Views
//     of one buffer that share no element do not overlap.
//   - An operation on zero rows does nothing.
//   - Gradients of weights accumulate in F32 (dw += …); all other outputs are overwritten.
//   - Sums over tokens are cut into blocks of [BlockRows] rows, counted from the
//     first row of each sequence; a sequence's last block may be short. A block is
//     summed from zero and then added to the F32 accumulator, blocks in order. So
//     neither the micro-batch size nor the number of threads can change a bit.
//   - No row's result depends on its index or on how many rows there are, and an
//     elementwise operation gives f(x[a:b]) = f(x)[a:b] for every a and b.
//   - BF16 tensors are read exactly, arithmetic is in F32, and a result is rounded
//     once, to nearest even, when it is stored, unless an operation says otherwise.
package device

// BlockRows is the number of rows of one sequence that are summed from zero
// before they are added to an accumulator.
const BlockRows = 512

// HeadDimMax is the largest head size that every device has to take.
const HeadDimMax = 256

// Kind says what memory is for, so that an implementation can account for it and place it.
type Kind uint8

// The kinds of memory.
const (
	KindWeights Kind = iota
	KindGradients
	KindOptimizer
	KindActivations
	KindWorkspace
	KindStaging
	kindCount
)

// Kinds lists every kind of memory, for accounting.
func Kinds() []Kind {
	kinds := make([]Kind, kindCount)
	for i := range kinds {
		kinds[i] = Kind(i)
	}
	return kinds
}

func (k Kind) String() string {
	names := [...]string{"weights", "gradients", "optimizer", "activations", "workspace", "staging"}
	if int(k) < len(names) {
		return names[k]
	}
	return "unknown"
}

// Forms says which products a packed weight will be used for.
type Forms uint8

// The forms of a packed weight. Most weights need both.
const (
	FormForward Forms = 1 << iota // x·Wᵀ
	FormDX                        // dy·W
)

// Weight is a matrix [out, in] that products are made with: its source, and what the device
// has packed of it in layouts of its own.
type Weight interface {
	Shape() (out, in int)
	DType() DType
	Forms() Forms
}

// StreamKind names the streams of a device.
type StreamKind uint8

// The streams: compute, and a second one for copies that overlap it.
const (
	StreamCompute StreamKind = iota
	StreamCopy
)

// Stream runs operations in the order in which they were called.
type Stream interface {
	// Record returns an event that fires when everything called so far has run.
	Record() Event
	// After makes everything called from now on wait for e.
	After(e Event)
}

// Event is a point in a stream.
type Event interface {
	// Wait blocks the host until the event has fired and returns the first error
	// of the work before it.
	Wait() error
}

// Info describes a device for `skein doctor`, for plans and for lineage.
type Info struct {
	Name        string           // human name, such as "cpu avx512, 2 threads"
	Path        string           // amx-bf16, avx512, generic; or a device model
	Class       string           // numeric class: path and kernel revision, such as "avx512 r1"
	Threads     int              // worker threads; no result depends on it
	MemoryBytes int64            // memory that can be allocated, 0 if unknown
	Allocated   [kindCount]int64 // bytes in use, by kind

	// PackedCopies is how many copies of a weight with both forms are held besides its
	// source, by its type.
	PackedCopies [2]int
	Peak         int64 // most bytes ever in use at once
}

// Op names the operations that need a workspace.
type Op uint8

// Operations with a workspace.
const (
	OpLinear Op = iota
	OpLinearDX
	OpLinearDW
	OpAttention
	OpAttentionGrad
	OpHeadLoss
	OpNormGrad
	OpEmbedGrad
	OpLayerNormGrad
)

// Shape carries the sizes that an operation's workspace depends on; zero where they do not matter.
type Shape struct {
	Rows    int // tokens in the call
	Seq     int // tokens of one sequence; Rows is a multiple of it
	In, Out int // of a weight; for NormGrad, LayerNormGrad and EmbedGrad In is the width
	DT      DType

	Heads, KVHeads, HeadDim int
	DocTokensMax            int // longest document, at most Seq
}

// Device is one compute device. Methods may be called from one goroutine at a
// time per stream; different streams may be driven concurrently.
type Device interface {
	Info() Info
	// Alloc returns zeroed memory, aligned to 64 bytes, or an error that says how
	// much was asked for and how much there is.
	Alloc(bytes int64, k Kind) (Buf, error)
	// Free gives back what Alloc returned, never a slice of it. Nothing that was called
	// and has not run may use it: wait for an event first.
	Free(Buf)
	// NewWeight makes a weight of src [out, in], F32 or BF16, for the products of forms. They
	// are undefined before [Linears.Pack]. Where a product can read src as it stands, the
	// device keeps no copy: src lives at least as long as the weight and changes
	// only between the last product and Pack.
	NewWeight(src Tensor, forms Forms) (Weight, error)
	FreeWeight(Weight)
	Stream(k StreamKind) Stream
	// Upload copies host memory in; host may be reused when the call returns.
	Upload(s Stream, dst Buf, host []byte)
	// Download copies out; host is filled when an event recorded after it has fired, and
	// is the device's until then.
	Download(s Stream, host []byte, src Buf)
	// Copy moves bytes between two buffers of this device; they must not overlap.
	Copy(s Stream, dst, src Buf)
	// Need is the workspace of op in bytes; more is always accepted. It does not fall
	// when Rows grows. Where it is 0, a nil workspace does.
	Need(op Op, sh Shape) int64
	Close() error

	Linears
	Norms
	Attentions
	Tokens
	Updates
}

// Act is an activation function.
type Act uint8

// The activation functions: SiLU in gated MLPs, the others in plain ones.
const (
	SiLU     Act = iota // x·σ(x)
	GELU                // x·Φ(x), Φ the normal distribution function
	GELUTanh            // x·σ(2u), u = √(2/π)·(x + 0.044715·x³), which is x/2·(1 + tanh u)
)

// Epilogue is what a product does to its sum before the one rounding: y = sum + Bias + Add.
type Epilogue struct {
	Bias Tensor // [1, out], F32 or the type of y; zero Tensor: none
	Add  Tensor // [rows, out], the type of y, may be y itself; zero Tensor: none
}

// Linears are the products with a packed weight.
type Linears interface {
	// Pack makes rows [lo, hi) of w those of its source, in every form: after load, gather or
	// an optimizer step.
	Pack(s Stream, w Weight, lo, hi int)
	// Linear: y [rows, out] = x [rows, in] · Wᵀ, then e. x has w's type; y may be F32.
	Linear(s Stream, y, x Tensor, w Weight, e Epilogue, ws Buf)
	// LinearDX: dx [rows, in] = dy [rows, out] · W, then e.Add (Bias must be zero).
	LinearDX(s Stream, dx, dy Tensor, w Weight, e Epilogue, ws Buf)
	// LinearDW: dw [out, in] += dyᵀ·x and, unless db is zero, db [1, out] += column
	// sums of dy, both F32, by blocks of BlockRows within sequences of seq rows.
	LinearDW(s Stream, dw, db, dy, x Tensor, seq int, ws Buf)
}

// Norms are the row-wise and elementwise operations of a layer.
type Norms interface {
	// RMSNorm: x̂ = x·rstd with rstd = 1/√(mean(x²)+eps) in F32, x̂ rounded to the
	// type of y, times w, rounded again (as Llama does). rstd [rows, 1] F32, dense, is kept
	// for the backward; zero Tensor: not wanted. x, y and w [1, cols] have one type.
	RMSNorm(s Stream, y, rstd, x, w Tensor, eps float32)
	// RMSNormGrad: dx = gradient of RMSNorm at x, + add unless that is zero (the
	// residual's gradient; may be dx itself); dw [1, cols] F32 += by blocks, of dy
	// times the rounded x̂.
	RMSNormGrad(s Stream, dx, dw, dy, x, rstd, w, add Tensor, seq int, ws Buf)
	// LayerNorm: y = x̂·w + b with x̂ = (x − mean)·rstd, rstd = 1/√(mean((x − mean)²)+eps), all
	// in F32, rounded once. stats [rows, 2] F32, dense, keeps mean and rstd of each row
	// for the backward; zero Tensor: not wanted. x, y, w and b [1, cols] have one type.
	LayerNorm(s Stream, y, stats, x, w, b Tensor, eps float32)
	// LayerNormGrad: dx = gradient of LayerNorm at x, + add unless that is zero (may be dx
	// itself); dw += by blocks, of dy·x̂; db += by blocks, of dy; both [1, cols] F32.
	LayerNormGrad(s Stream, dx, dw, db, dy, x, stats, w, add Tensor, seq int, ws Buf)
	// Rope rotates heads of q [rows, heads·D] and k [rows, kvHeads·D] in place, pairing
	// element j with j+D/2, by the row's position: table [positions, D] F32 holds
	// cos for j in [0, D/2) and then sin; pos [1, rows] I32. inverse rotates back,
	// which is the backward. k may be the zero Tensor.
	Rope(s Stream, q, k, table, pos Tensor, headDim int, inverse bool)
	// GLU: y [rows, f] = act(gate) ⊙ up, gateUp [rows, 2f] holding gate | up.
	GLU(s Stream, y, gateUp Tensor, act Act)
	// GLUGrad: dGateUp from dy and gateUp; dGateUp may be gateUp.
	GLUGrad(s Stream, dGateUp, dy, gateUp Tensor, act Act)
	// Activate: y = act(x), of one shape and type; act is GELU or GELUTanh.
	Activate(s Stream, y, x Tensor, act Act)
	// ActivateGrad: dx = dy·act'(x); dx may be x or dy.
	ActivateGrad(s Stream, dx, dy, x Tensor, act Act)
	// Add: dst = a + b, all of one type, rounded once; dst may be a or b.
	Add(s Stream, dst, a, b Tensor)
	// Fill sets every element of an F32, BF16 or F64 tensor to v.
	Fill(s Stream, dst Tensor, v float32)
	// Cast copies src to dst, converting between F32 and BF16 where their types differ.
	// Subnormals are kept.
	Cast(s Stream, dst, src Tensor)
}

// Docs says where packed documents begin: document i is rows [Host[i], Host[i+1]).
// Rows of different documents never see each other. Host stays unchanged until the
// operations that were given it have run.
type Docs struct {
	Cu   Tensor  // [1, n+1] I32 on the device, equal to Host
	Host []int32 // ascending from 0 to the number of rows
}

// AttnShape is the geometry of an attention operation.
type AttnShape struct {
	Heads, KVHeads, HeadDim int
	Scale                   float32 // on the scores, usually 1/√HeadDim
	Window                  int     // key j is seen by query i iff i−Window < j ≤ i; 0: no limit
}

// Attentions are causal attention over packed documents, and over a cache when generating.
type Attentions interface {
	// Attention: o [rows, heads·D] from q [rows, heads·D] and k, v [rows, kvHeads·D];
	// query head h reads key head h·kvHeads/heads. lse [heads, rows] F32 is the log of the sum of
	// exponentials, for the backward; zero Tensor: not wanted. T×T is never stored.
	Attention(s Stream, o, lse, q, k, v Tensor, docs Docs, a AttnShape, ws Buf)
	// AttentionGrad: dq, dk, dv from do and what the forward had. No atomics.
	AttentionGrad(s Stream, dq, dk, dv, do, q, k, v, o, lse Tensor, docs Docs, a AttnShape, ws Buf)
	// AttentionDecode: o [1, heads·D] of one query over the first n rows of the caches
	// keys, values [capacity, kvHeads·D], of which row n−1 is the query's own.
	AttentionDecode(s Stream, o, q, keys, values Tensor, n int, a AttnShape)
}

// HeadLossArgs are the operands of HeadLoss. Only rows with a target cost anything.
type HeadLossArgs struct {
	X       Tensor  // [rows, d]
	W       Weight  // [vocab, d]
	Targets Tensor  // [1, rows] I32; below zero: no target
	Seq     int     // rows of one sequence
	Scale   float32 // on gradients, a power of two; not on Loss

	Loss Tensor // [1, 1] F64, += sum of token losses
	NLL  Tensor // [1, rows] F32, loss of each token, 0 where there is no target; zero Tensor: not wanted
	DX   Tensor // [rows, d], rows without target become 0; zero Tensor: forward only
	DW   Tensor // [vocab, d] F32, += by blocks; zero iff DX is
}

// Tokens are the operations at the two ends of a model, where ids are.
type Tokens interface {
	// Embed: y [n, d] = rows ids [1, n] I32 of table [vocab, d], in table's type.
	Embed(s Stream, y, table, ids Tensor)
	// EmbedGrad: rows [u, d] F32 += sums of dx [n, d] over the tokens of each slot.
	// Slot i's tokens are order[starts[i]:starts[i+1]], ascending; order [1, n] and
	// starts [1, u+1] are I32; a slot may be empty. Sums are cut by blocks within
	// sequences of seq rows.
	EmbedGrad(s Stream, rows, dx, order, starts Tensor, seq int, ws Buf)
	// HeadLoss: LM head and cross-entropy, forward and backward in one, by blocks;
	// the full logits are never stored. The loss is log(sum(exp(logits))) − logit[target].
	// A block's rows with a target are computed as if there were no others. Logits are
	// F32; their gradients are rounded to X's type before the products. Loss adds
	// each block's sum, F64 and in order of rows.
	HeadLoss(s Stream, h HeadLossArgs, ws Buf)
}

// AdamWArgs are the operands of one AdamW update on a flat range. All are [1, n].
type AdamWArgs struct {
	Master, M, V Tensor // F32, updated
	Grad         Tensor // F32, reduced gradient, unscaled
	Work         Tensor // weight type, receives the rounded master; zero Tensor: not wanted

	GradScale    float32 // α of the decision record, multiplied in first
	LR           float32
	Beta1, Beta2 float32
	Eps          float32
	Decay        float32 // weight decay of this range, 0 for norms and biases
	Correction1  float32 // 1 − β1^t
	Correction2  float32 // √(1 − β2^t)
}

// Updates are the operations on gradients, optimizer state and working weights.
type Updates interface {
	// SqNorm: out [1, 1] F64 = sum of squares of x [1, n] F32, in F64 over blocks of
	// 4,096 elements, blocks added in order.
	SqNorm(s Stream, out, x Tensor)
	// AdamW, in this order, every product rounded to F32 by itself:
	//   g = Grad·GradScale; p = Master − Master·(LR·Decay)
	//   m = M + (g − M)·(1−β1); v = V·β2 + (g·g)·(1−β2)
	//   p = p − (LR/Correction1)·(m / (√v/Correction2 + Eps))
	AdamW(s Stream, a AdamWArgs)
	// AddRows adds sparse rows to a piece of a flat matrix of width rows.Cols: row i
	// of rows [u, d] F32 stands at element ids[i]·d; dst [1, n] F32 holds elements
	// [lo, lo+n). Only what falls inside is added, row by row.
	AddRows(s Stream, dst Tensor, lo int64, ids, rows Tensor)
}

// HostAddressable is what a device offers whose memory the host may address: the
// ring and checkpoints then need no staging copies.
type HostAddressable interface {
	// Host is the memory behind b. The caller orders its use by events.
	Host(b Buf) []byte

	// The additions of the ring, on little-endian bytes, aligned or not, from any goroutine;
	// their bits are the same on every device.

	// AddF32: dst = a + b, F32; dst may be a or b.
	AddF32(dst, a, b []byte)
	// RoundBF16: dst BF16 = src F32, of twice the length, rounded to nearest even.
	RoundBF16(dst, src []byte)
	// AddBF16: dst BF16 = received BF16 + own F32, rounded to nearest even; dst may be received.
	AddBF16(dst, received, own []byte)
	// AddBF16Last: dst F32 = received BF16 + own F32, not rounded; dst may be own.
	AddBF16Last(dst, received, own []byte)
}
