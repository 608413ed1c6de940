package cpu

import (
	"fmt"
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

const (
	sqNormBlock = 4096 // elements that are summed from zero
	sqNormRound = 4096 // blocks between two additions to the total
)

// sqNorm is the task of SqNorm: a piece is one block.
type sqNorm struct {
	x    unsafe.Pointer
	n    int // elements of this round
	f    func(x unsafe.Pointer, n int) float64
	sums []float64
}

func (t *sqNorm) Piece(i, _ int) {
	const perPiece = pieceElements / sqNormBlock
	for b := i * perPiece; b < min((i+1)*perPiece, len(t.sums)); b++ {
		t.sums[b] = t.f(unsafe.Add(t.x, b*sqNormBlock*4), min(sqNormBlock, t.n-b*sqNormBlock))
	}
}

// SqNorm: out = Σ x² in F64.
func (d *Device) SqNorm(s device.Stream, out, x device.Tensor) {
	device.CheckSqNorm(out, x)
	to, from := (*float64)(d.ptr(out)), d.ptr(x)
	st := d.begin(s)
	if st == nil {
		return
	}
	defer st.end()
	var total float64
	const round = sqNormBlock * sqNormRound
	for lo := 0; lo < x.Cols; lo += round {
		n := min(round, x.Cols-lo)
		sums := d.sums[:pieces(n, sqNormBlock)]
		d.jobs.sqNorm = sqNorm{x: unsafe.Add(from, lo*4), n: n, f: d.kernels.SqNorm, sums: sums}
		d.pool.Run(pieces(n, pieceElements), &d.jobs.sqNorm)
		for _, v := range sums {
			total += v
		}
	}
	*to = total
}

// sumSquares64 adds eight interleaved sums, element i to sum i mod 8, and these in order.
func sumSquares64(p unsafe.Pointer, n int) float64 {
	var lane [8]float64
	x := f32s(p, 0, n)
	for ; len(x) >= 8; x = x[8:] {
		for i, v := range x[:8] {
			lane[i] += float64(float64(v) * float64(v))
		}
	}
	for i, v := range x {
		lane[i] += float64(float64(v) * float64(v))
	}
	var sum float64
	for _, v := range lane {
		sum += v
	}
	return sum
}

// AdamW: one step of master weights and moments.
func (d *Device) AdamW(s device.Stream, a device.AdamWArgs) {
	device.CheckAdamW(a)
	args := kernel.AdamW{Master: d.ptr(a.Master), M: d.ptr(a.M), V: d.ptr(a.V), Grad: d.ptr(a.Grad), Work: d.ptr(a.Work),
		GradScale: a.GradScale, DecayStep: a.LR * a.Decay,
		Beta1Rest: 1 - a.Beta1, Beta2: a.Beta2, Beta2Rest: 1 - a.Beta2,
		Step: a.LR / a.Correction1, Correction2: a.Correction2, Eps: a.Eps}
	if st := d.begin(s); st != nil {
		defer st.end()
		d.jobs.adamW.a = args
		d.jobs.adamW.run(d.pool, d.kernels.AdamW[a.Work.DT], a.Master.Cols, 2)
	}
}

func adamW(dt device.DType) func(a *kernel.AdamW, lo, hi int) {
	return func(a *kernel.AdamW, lo, hi int) {
		n := hi - lo
		master, m, v, grad := f32s(a.Master, lo, n), f32s(a.M, lo, n), f32s(a.V, lo, n), f32s(a.Grad, lo, n)
		var work vec
		if a.Work != nil {
			work = at(a.Work, dt, lo, n)
		}
		for i := range n {
			g := float32(grad[i] * a.GradScale)
			p := master[i] - float32(master[i]*a.DecayStep)
			m[i] += float32((g - m[i]) * a.Beta1Rest)
			v[i] = float32(v[i]*a.Beta2) + float32(float32(g*g)*a.Beta2Rest)
			p -= float32(a.Step * (m[i] / (sqrtf(v[i])/a.Correction2 + a.Eps)))
			master[i] = p
			if a.Work != nil {
				work.set(i, p)
			}
		}
	}
}

// addRows is the task of AddRows: a piece is a run of dst, and looks at all rows.
type addRows struct {
	dst  []float32
	lo   int64
	ids  []int32
	rows kernel.Matrix
}

// AddRows: dst += those elements of sparse rows that fall inside.
func (d *Device) AddRows(s device.Stream, dst device.Tensor, lo int64, ids, rows device.Tensor) {
	device.CheckAddRows(dst, lo, ids, rows)
	t := addRows{dst: f32s(d.ptr(dst), 0, dst.Cols), lo: lo, ids: i32s(d.ptr(ids), rows.Rows), rows: d.matrix(rows)}
	st := d.begin(s)
	if st == nil {
		return
	}
	defer st.end()
	for i, id := range t.ids {
		if id < 0 {
			panic(fmt.Errorf("cpu: AddRows: row %d has id %d", i, id))
		}
	}
	d.jobs.addRows = t
	d.pool.Run(pieces(dst.Cols, pieceElements), &d.jobs.addRows)
}

func (t *addRows) Piece(i, _ int) {
	off := i * pieceElements
	dst := t.dst[off:min(off+pieceElements, len(t.dst))]
	lo := t.lo + int64(off)
	for r, id := range t.ids {
		first := int64(id) * int64(t.rows.Cols) // of the row, among the flat matrix's elements
		from, to := max(first, lo), min(first+int64(t.rows.Cols), lo+int64(len(dst)))
		if from >= to {
			continue
		}
		src := f32s(t.rows.P, r*t.rows.Ld+int(from-first), int(to-from))
		for j, v := range src {
			dst[int(from-lo)+j] += v
		}
	}
}
