package cpu

import (
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// LayerNorm: y = w·(x−mean)/√(var+eps) + b, row by row.
func (d *Device) LayerNorm(s device.Stream, y, stats, x, w, b device.Tensor, eps float32) {
	device.CheckLayerNorm(y, stats, x, w, b)
	d.apart("LayerNorm", y, stats, x, w, b)
	d.apart("LayerNorm", stats, x, w, b)
	a := kernel.LayerNorm{Y: d.ptr(y), Stats: d.ptr(stats), X: d.ptr(x), W: d.ptr(w), B: d.ptr(b),
		Cols: x.Cols, LdY: y.Ld, LdX: x.Ld, Eps: eps}
	if st := d.begin(s); st != nil {
		defer st.end()
		d.jobs.layerNorm.a = a
		d.jobs.layerNorm.run(d.pool, d.kernels.LayerNorm[x.DT], x.Rows, x.Cols)
	}
}

// layerNorm sums a row, and then the squares of what its mean leaves, in slices of 256.
func layerNorm(dt device.DType) func(a *kernel.LayerNorm, lo, hi int) {
	return func(a *kernel.LayerNorm, lo, hi int) {
		w, b := at(a.W, dt, 0, a.Cols), at(a.B, dt, 0, a.Cols)
		for r := lo; r < hi; r++ {
			x, y := at(a.X, dt, r*a.LdX, a.Cols), at(a.Y, dt, r*a.LdY, a.Cols)
			mean := sliceSum(a.Cols, func(i int) float32 { return x.get(i) }) / float32(a.Cols)
			squares := sliceSum(a.Cols, func(i int) float32 {
				v := x.get(i) - mean
				return v * v
			})
			rstd := 1 / sqrtf(squares/float32(a.Cols)+a.Eps)
			if a.Stats != nil {
				stats := f32s(a.Stats, 2*r, 2)
				stats[0], stats[1] = mean, rstd
			}
			for i := range a.Cols {
				hat := float32(x.get(i)-mean) * rstd
				y.set(i, float32(float32(hat)*w.get(i))+b.get(i))
			}
		}
	}
}

// sliceSum is the sum of f(0) to f(n−1), each rounded, in slices of 256 as products do.
func sliceSum(n int, f func(i int) float32) float32 {
	var sum float32
	for k := 0; k < n; k += kSlice {
		var part float32
		for i := k; i < min(k+kSlice, n); i++ {
			part += float32(f(i))
		}
		sum += part
	}
	return sum
}

// LayerNormGrad: dx (+ add), and dw and db by blocks.
func (d *Device) LayerNormGrad(s device.Stream, dx, dw, db, dy, x, stats, w, add device.Tensor, seq int, ws device.Buf) {
	device.CheckLayerNormGrad(dx, dw, db, dy, x, stats, w, add, seq)
	d.apart("LayerNormGrad", dx, dw, db, dy, x, stats, w)
	d.apart("LayerNormGrad", dw, db, dy, x, stats, w, add)
	d.apart("LayerNormGrad", db, dy, x, stats, w, add)
	d.sameOrApart("LayerNormGrad", dx, add)
	a := kernel.LayerNormGrad{DX: d.ptr(dx), DY: d.ptr(dy), X: d.ptr(x), Stats: d.ptr(stats), W: d.ptr(w), Add: d.ptr(add),
		Cols: x.Cols, LdDX: dx.Ld, LdDY: dy.Ld, LdX: x.Ld, LdAdd: add.Ld}
	sumW, sumB := d.ptr(dw), d.ptr(db)
	mem := d.workspace("LayerNormGrad", ws, d.Need(device.OpLayerNormGrad, device.Shape{Rows: x.Rows, Seq: seq, In: x.Cols}))
	st := d.begin(s)
	if st == nil {
		return
	}
	defer st.end()
	job := &d.jobs.layerNormGrad
	*job = normGrad[kernel.LayerNormGrad]{a: a, f: d.kernels.LayerNormGrad[x.DT], seq: seq,
		partial: unsafe.Pointer(unsafe.SliceData(mem)), width: 2 * x.Cols}
	d.pool.Run(normChunks(x.Rows, seq), job)
	job.fold(f32s(sumW, 0, x.Cols), 0, x.Rows)
	job.fold(f32s(sumB, 0, x.Cols), x.Cols, x.Rows)
}

// layerNormGrad: with g = dy·w and x̂ = (x−mean)·rstd, dx = rstd·((g − mean(g)) − x̂·mean(g·x̂)) + add.
func layerNormGrad(dt device.DType) func(a *kernel.LayerNormGrad, lo, hi int, partial unsafe.Pointer) {
	return func(a *kernel.LayerNormGrad, lo, hi int, partial unsafe.Pointer) {
		w, dw, db := at(a.W, dt, 0, a.Cols), f32s(partial, 0, a.Cols), f32s(partial, a.Cols, a.Cols)
		clear(dw)
		clear(db)
		for r := lo; r < hi; r++ {
			x, dy, dx := at(a.X, dt, r*a.LdX, a.Cols), at(a.DY, dt, r*a.LdDY, a.Cols), at(a.DX, dt, r*a.LdDX, a.Cols)
			stats := f32s(a.Stats, 2*r, 2)
			center, rstd := stats[0], stats[1]
			hat := func(i int) float32 { return float32(x.get(i)-center) * rstd }
			mean := sliceSum(a.Cols, func(i int) float32 { return dy.get(i) * w.get(i) }) / float32(a.Cols)
			dot := sliceSum(a.Cols, func(i int) float32 { return float32(dy.get(i)*w.get(i)) * float32(hat(i)) }) / float32(a.Cols)
			var add vec
			if a.Add != nil {
				add = at(a.Add, dt, r*a.LdAdd, a.Cols)
			}
			for i := range a.Cols {
				h, g := float32(hat(i)), dy.get(i)
				dw[i] += float32(g * h)
				db[i] += g
				v := rstd * (float32(float32(g*w.get(i))-mean) - float32(h*dot))
				if a.Add != nil {
					v = float32(v) + add.get(i)
				}
				dx.set(i, v)
			}
		}
	}
}
