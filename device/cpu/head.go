package cpu

import (
	"fmt"
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// headLayout is how HeadLoss cuts its workspace: one block's logits in F32, which become the
// logits' gradients in place, and the block's rows that have a target, gathered.
type headLayout struct {
	rows     int // of a block
	ldLogits int // elements of F32

	// Offsets in bytes; the logits begin at 0.
	xAt, dxAt, nllAt, targetsAt, indexAt, productsAt, end int64
}

func (d *Device) headLayout(sh device.Shape) headLayout {
	align := func(n int64) int64 { return (n + 63) &^ 63 }
	l := headLayout{rows: min(device.BlockRows, max(1, sh.Seq)), ldLogits: (sh.Out + 15) &^ 15}
	n := int64(l.rows)
	l.xAt = n * int64(l.ldLogits) * 4
	l.dxAt = l.xAt + align(n*int64(sh.In)*sh.DT.Size())
	l.nllAt = l.dxAt + align(n*int64(sh.In)*sh.DT.Size())
	l.targetsAt = l.nllAt + align(n*4)
	l.indexAt = l.targetsAt + align(n*4)
	l.productsAt = l.indexAt + align(n*4)
	block := device.Shape{Rows: l.rows, Seq: l.rows, In: sh.In, Out: sh.Out, DT: sh.DT}
	var need int64
	for _, op := range [...]device.Op{device.OpLinear, device.OpLinearDX, device.OpLinearDW} {
		need = max(need, d.products.Need(op, block, d.pool.Workers()))
	}
	l.end = l.productsAt + need
	return l
}

func (d *Device) headNeed(sh device.Shape) int64 { return d.headLayout(sh).end }

// head is one call of HeadLoss.
type head struct {
	headLayout
	d          *Device
	w          *kernel.Weight
	x, dx, dw  kernel.Matrix
	targets    []int32
	nll        []float32 // of all rows, nil if not wanted
	loss       *float64
	scale      float32
	mem        []byte
	seq, vocab int
}

// HeadLoss: logits, loss and gradients of the rows that have a target, block by block.
func (d *Device) HeadLoss(s device.Stream, h device.HeadLossArgs, ws device.Buf) {
	device.CheckHeadLoss(h)
	d.apart("HeadLoss", h.DX, h.X, h.Targets, h.Loss, h.NLL, h.DW)
	w := d.operand(h.W)
	call := head{d: d, w: w, x: d.matrix(h.X), dx: d.matrix(h.DX), dw: d.matrix(h.DW),
		targets: i32s(d.ptr(h.Targets), h.X.Rows), loss: (*float64)(d.ptr(h.Loss)),
		scale: h.Scale, seq: h.Seq, vocab: w.Out,
		headLayout: d.headLayout(device.Shape{Rows: h.X.Rows, Seq: h.Seq, In: w.In, Out: w.Out, DT: w.DT})}
	if !h.NLL.IsZero() {
		call.nll = f32s(d.ptr(h.NLL), 0, h.X.Rows)
	}
	call.mem = d.workspace("HeadLoss", ws, call.end)
	st := d.begin(s)
	if st == nil {
		return
	}
	defer st.end()
	for i, t := range call.targets {
		if int(t) >= call.vocab {
			panic(fmt.Errorf("cpu: HeadLoss: target %d of row %d is outside a vocabulary of %d", t, i, call.vocab))
		}
	}
	for first := 0; first < h.X.Rows; {
		end := blockEnd(first, h.Seq)
		call.block(first, end)
		first = end
	}
}

// block computes rows [first, end), one block of one sequence.
func (h *head) block(first, end int) {
	index := unsafe.Slice((*int32)(h.at(h.indexAt)), h.rows)[:0]
	for r := first; r < end; r++ {
		if h.targets[r] >= 0 {
			index = append(index, int32(r))
		}
	}
	n := len(index)
	if n > 0 {
		x := h.gather(index, first)
		h.logits(x, index)
		if h.dx.P != nil {
			h.gradients(x, first, end)
		}
	}
	h.spread(index, first, end)
}

func (h *head) at(off int64) unsafe.Pointer { return unsafe.Pointer(&h.mem[off : off+1][0]) }

// gather is the rows of x that index names, close together.
func (h *head) gather(index []int32, first int) kernel.Matrix {
	n := len(index)
	if int(index[n-1])-first == n-1 { // rows [first, first+n) as they are
		return kernel.Matrix{P: element(h.x, first, 0), DT: h.x.DT, Rows: n, Cols: h.x.Cols, Ld: h.x.Ld}
	}
	x := kernel.Matrix{P: h.at(h.xAt), DT: h.x.DT, Rows: n, Cols: h.x.Cols, Ld: h.x.Cols}
	for i, r := range index {
		copyRow(x, i, h.x, int(r))
	}
	return x
}

// logits computes logits and losses; where gradients are wanted, logits become these.
func (h *head) logits(x kernel.Matrix, index []int32) {
	n := len(index)
	y := kernel.Matrix{P: h.at(0), DT: device.F32, Rows: n, Cols: h.vocab, Ld: h.ldLogits}
	h.d.products.Linear(h.d.pool, y, x, h.w, kernel.Matrix{}, kernel.Matrix{}, h.mem[h.productsAt:])
	targets, nll := i32s(h.at(h.targetsAt), n), f32s(h.at(h.nllAt), 0, n)
	for i, r := range index {
		targets[i] = h.targets[r]
	}
	job := &h.d.jobs.crossEntropy
	job.a = kernel.CrossEntropy{Logits: y.P, Targets: h.at(h.targetsAt), NLL: h.at(h.nllAt),
		Vocab: h.vocab, Ld: h.ldLogits, Scale: h.scale}
	if h.dx.P != nil {
		job.a.Grad = 1
	}
	job.run(h.d.pool, h.d.kernels.CrossEntropy[h.x.DT], n, 4*h.vocab)
	var sum float64
	for _, v := range nll {
		sum += float64(v)
	}
	*h.loss += sum
}

// gradients computes dx of the block's rows that have a target and adds to dw.
func (h *head) gradients(x kernel.Matrix, first, end int) {
	n := x.Rows
	dLogits := kernel.Matrix{P: h.at(0), DT: x.DT, Rows: n, Cols: h.vocab, Ld: h.ldLogits * 4 / int(x.DT.Size())}
	dx := kernel.Matrix{P: h.at(h.dxAt), DT: x.DT, Rows: n, Cols: x.Cols, Ld: x.Cols}
	if n == end-first {
		dx.P, dx.Ld = element(h.dx, first, 0), h.dx.Ld
	}
	h.d.products.LinearDX(h.d.pool, dx, dLogits, h.w, kernel.Matrix{}, h.mem[h.productsAt:])
	h.d.products.LinearDW(h.d.pool, h.dw, dLogits, x, n, h.mem[h.productsAt:])
}

// spread takes losses and gradients back to their rows; the others become 0.
func (h *head) spread(index []int32, first, end int) {
	n := len(index)
	nll := f32s(h.at(h.nllAt), 0, n)
	dx := kernel.Matrix{P: h.at(h.dxAt), DT: h.x.DT, Cols: h.x.Cols, Ld: h.x.Cols}
	for i, r := 0, first; r < end; r++ {
		has := i < n && int(index[i]) == r
		if h.nll != nil && has {
			h.nll[r] = nll[i]
		} else if h.nll != nil {
			h.nll[r] = 0
		}
		if h.dx.P != nil && !has {
			clear(unsafe.Slice((*byte)(element(h.dx, r, 0)), h.dx.Cols*int(h.dx.DT.Size())))
		} else if h.dx.P != nil && n < end-first {
			copyRow(h.dx, r, dx, i)
		}
		if has {
			i++
		}
	}
}

// crossEntropy: loss = log Σ exp(l − m) + (m − l[target]), with m the largest logit.
// The sum is taken in slices of 256.
func crossEntropy(dt device.DType) func(a *kernel.CrossEntropy, lo, hi int) {
	return func(a *kernel.CrossEntropy, lo, hi int) {
		targets, nll := i32s(a.Targets, hi), f32s(a.NLL, 0, hi)
		for r := lo; r < hi; r++ {
			l, target := f32s(a.Logits, r*a.Ld, a.Vocab), int(targets[r])
			m := l[0]
			for _, v := range l {
				if v > m {
					m = v
				}
			}
			own := m - l[target]
			sum := expSum(l, m, a.Grad != 0)
			nll[r] = logf(sum) + own
			if a.Grad == 0 {
				continue
			}
			grad := at(unsafe.Pointer(&l[0]), dt, 0, a.Vocab) // over l, never ahead of it
			for i := range a.Vocab {
				p := l[i] / sum
				if i == target {
					p--
				}
				grad.set(i, p*a.Scale)
			}
		}
	}
}

// expSum is Σ exp(l − m); if keep, each term takes its logit's place.
func expSum(l []float32, m float32, keep bool) float32 {
	var sum float32
	for k := 0; k < len(l); k += kSlice {
		var part float32
		slice := l[k:min(k+kSlice, len(l))]
		for i, v := range slice {
			e := expf(v - m)
			part += e
			if keep {
				slice[i] = e
			}
		}
		sum += part
	}
	return sum
}
