package cpu

import (
	"unsafe"

	"github.com/skein-ml/skein/device/cpu/kernel"
)

// pieceElements is about how many elements a piece of an elementwise operation has: some
// ten microseconds of work, which a thread's wake-up does not drown.
const pieceElements = 1 << 15

// jobs are the tasks of all operations, kept in the device so that none allocates.
type jobs struct {
	rmsNorm       ranges[kernel.RMSNorm]
	rmsNormGrad   normGrad[kernel.RMSNormGrad]
	layerNorm     ranges[kernel.LayerNorm]
	layerNormGrad normGrad[kernel.LayerNormGrad]
	rope          ranges[kernel.Rope]
	glu           ranges[kernel.GLU]
	gluGrad       ranges[kernel.GLUGrad]
	elements      elements
	fill          fill

	attention attend
	grad      attendGrad
	delta     ranges[kernel.AttentionGrad]
	decode    decode

	embed        embed
	embedGrad    embedGrad
	crossEntropy ranges[kernel.CrossEntropy]
	columnSum    ranges[kernel.ColumnSum]

	sqNorm  sqNorm
	adamW   ranges[kernel.AdamW]
	addRows addRows
}

// ranges cuts [0, n) into ranges of step and calls f for each.
type ranges[A any] struct {
	a       A
	f       func(a *A, lo, hi int)
	n, step int
}

func (t *ranges[A]) Piece(i, _ int) {
	lo := i * t.step
	t.f(&t.a, lo, min(lo+t.step, t.n))
}

// run runs f over [0, n), whose every index costs about so many elements.
func (t *ranges[A]) run(p kernel.Pool, f func(a *A, lo, hi int), n, cost int) {
	t.f, t.n = f, n
	t.step = max(1, pieceElements/max(1, cost))
	p.Run(pieces(n, t.step), t)
}

func pieces(n, step int) int { return (n + step - 1) / step }

// scratchOf is the scratch memory of a worker.
func (d *Device) scratchOf(worker int) unsafe.Pointer {
	return unsafe.Add(unsafe.Pointer(unsafe.SliceData(d.scratch.used)), int64(worker)*d.kernels.Scratch)
}
