package cpu

import (
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// RMSNorm: y = w · x/√(mean(x²)+eps), row by row.
func (d *Device) RMSNorm(s device.Stream, y, rstd, x, w device.Tensor, eps float32) {
	device.CheckRMSNorm(y, rstd, x, w)
	d.apart("RMSNorm", y, rstd, x, w)
	d.apart("RMSNorm", rstd, x, w)
	a := kernel.RMSNorm{Y: d.ptr(y), Rstd: d.ptr(rstd), X: d.ptr(x), W: d.ptr(w),
		Cols: x.Cols, LdY: y.Ld, LdX: x.Ld, Eps: eps}
	if st := d.begin(s); st != nil {
		defer st.end()
		d.jobs.rmsNorm.a = a
		d.jobs.rmsNorm.run(d.pool, d.kernels.RMSNorm[x.DT], x.Rows, x.Cols)
	}
}

// rmsNorm sums the squares of a row in slices of 256, as products do.
func rmsNorm(dt device.DType) func(a *kernel.RMSNorm, lo, hi int) {
	return func(a *kernel.RMSNorm, lo, hi int) {
		w := at(a.W, dt, 0, a.Cols)
		for r := lo; r < hi; r++ {
			x, y := at(a.X, dt, r*a.LdX, a.Cols), at(a.Y, dt, r*a.LdY, a.Cols)
			rstd := 1 / sqrtf(sumSquares(x, a.Cols)/float32(a.Cols)+a.Eps)
			if a.Rstd != nil {
				f32s(a.Rstd, r, 1)[0] = rstd
			}
			for i := range a.Cols {
				y.set(i, round(x.get(i)*rstd, dt)*w.get(i))
			}
		}
	}
}

func sumSquares(x vec, n int) float32 {
	var sum float32
	for k := 0; k < n; k += kSlice {
		var part float32
		for i := k; i < min(k+kSlice, n); i++ {
			v := x.get(i)
			part += float32(v * v)
		}
		sum += part
	}
	return sum
}

// normGrad is the task of a norm's gradient: a piece is a chunk of a block.
type normGrad[A any] struct {
	a       A
	f       func(a *A, lo, hi int, partial unsafe.Pointer)
	seq     int
	partial unsafe.Pointer // F32 [chunks, width]: sums of a chunk's rows
	width   int
}

// RMSNormGrad: dx (+ add), and dw by blocks.
func (d *Device) RMSNormGrad(s device.Stream, dx, dw, dy, x, rstd, w, add device.Tensor, seq int, ws device.Buf) {
	device.CheckRMSNormGrad(dx, dw, dy, x, rstd, w, add, seq)
	d.apart("RMSNormGrad", dx, dw, dy, x, rstd, w)
	d.apart("RMSNormGrad", dw, dy, x, rstd, w, add)
	d.sameOrApart("RMSNormGrad", dx, add)
	a := kernel.RMSNormGrad{DX: d.ptr(dx), DY: d.ptr(dy), X: d.ptr(x), Rstd: d.ptr(rstd), W: d.ptr(w), Add: d.ptr(add),
		Cols: x.Cols, LdDX: dx.Ld, LdDY: dy.Ld, LdX: x.Ld, LdAdd: add.Ld}
	sum := d.ptr(dw)
	mem := d.workspace("RMSNormGrad", ws, d.Need(device.OpNormGrad, device.Shape{Rows: x.Rows, Seq: seq, In: x.Cols}))
	st := d.begin(s)
	if st == nil {
		return
	}
	defer st.end()
	job := &d.jobs.rmsNormGrad
	*job = normGrad[kernel.RMSNormGrad]{a: a, f: d.kernels.RMSNormGrad[x.DT], seq: seq,
		partial: unsafe.Pointer(unsafe.SliceData(mem)), width: x.Cols}
	d.pool.Run(normChunks(x.Rows, seq), job)
	job.fold(f32s(sum, 0, x.Cols), 0, x.Rows)
}

// normChunks is the number of chunks of rows: blocks are cut into chunks as
// sequences are cut into blocks.
func normChunks(rows, seq int) int {
	if seq <= 0 {
		return 0
	}
	perSeq := seq/device.BlockRows*(device.BlockRows/kernel.NormChunk) + pieces(seq%device.BlockRows, kernel.NormChunk)
	return rows / seq * perSeq
}

func (t *normGrad[A]) Piece(i, _ int) {
	perSeq := normChunks(t.seq, t.seq)
	first := i / perSeq * t.seq
	lo := first + i%perSeq*kernel.NormChunk
	t.f(&t.a, lo, min(lo+kernel.NormChunk, first+t.seq), unsafe.Add(t.partial, i*t.width*4))
}

// fold adds up chunks into blocks and blocks into sum, all in order; sum's columns begin at
// column at of the partials. A chunk ends where its block does, since NormChunk divides BlockRows.
func (t *normGrad[A]) fold(sum []float32, at, rows int) {
	chunk := 0
	for first := 0; first < rows; {
		end := blockEnd(first, t.seq)
		block := f32s(t.partial, chunk*t.width+at, len(sum))
		for lo := first + kernel.NormChunk; lo < end; lo += kernel.NormChunk {
			chunk++
			for i, v := range f32s(t.partial, chunk*t.width+at, len(sum)) {
				block[i] += v
			}
		}
		chunk++
		for i, v := range block {
			sum[i] += v
		}
		first = end
	}
}

// rmsNormGrad: with g = dy·w and x̂ = x·rstd, dx = rstd·(g − x̂·mean(g·x̂)) + add.
func rmsNormGrad(dt device.DType) func(a *kernel.RMSNormGrad, lo, hi int, partial unsafe.Pointer) {
	return func(a *kernel.RMSNormGrad, lo, hi int, partial unsafe.Pointer) {
		w, dw := at(a.W, dt, 0, a.Cols), f32s(partial, 0, a.Cols)
		clear(dw)
		for r := lo; r < hi; r++ {
			x, dy, dx := at(a.X, dt, r*a.LdX, a.Cols), at(a.DY, dt, r*a.LdDY, a.Cols), at(a.DX, dt, r*a.LdDX, a.Cols)
			rstd := f32s(a.Rstd, r, 1)[0]
			mean := normDot(x, dy, w, rstd, a.Cols) / float32(a.Cols)
			var add vec
			if a.Add != nil {
				add = at(a.Add, dt, r*a.LdAdd, a.Cols)
			}
			for i := range a.Cols {
				hat, g := x.get(i)*rstd, dy.get(i)
				dw[i] += float32(g * round(hat, dt))
				v := rstd * (float32(g*w.get(i)) - float32(hat*mean))
				if a.Add != nil {
					v = float32(v) + add.get(i)
				}
				dx.set(i, v)
			}
		}
	}
}

// normDot is Σ dy·w·x̂ in slices of 256.
func normDot(x, dy, w vec, rstd float32, n int) float32 {
	var sum float32
	for k := 0; k < n; k += kSlice {
		var part float32
		for i := k; i < min(k+kSlice, n); i++ {
			part += float32(float32(dy.get(i)*w.get(i)) * float32(x.get(i)*rstd))
		}
		sum += part
	}
	return sum
}
