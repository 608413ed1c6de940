package cpu

import (
	"fmt"
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// embed is the task of Embed.
type embed struct {
	y, table kernel.Matrix
	ids      []int32
	step     int
}

// Embed: y[i] = table[ids[i]].
func (d *Device) Embed(s device.Stream, y, table, ids device.Tensor) {
	device.CheckEmbed(y, table, ids)
	d.apart("Embed", y, table, ids)
	t := embed{y: d.matrix(y), table: d.matrix(table), ids: i32s(d.ptr(ids), y.Rows),
		step: max(1, pieceElements/max(1, y.Cols))}
	if st := d.begin(s); st != nil {
		defer st.end()
		checkIndex("Embed: token", unsafe.Pointer(unsafe.SliceData(t.ids)), y.Rows, table.Rows)
		d.jobs.embed = t
		d.pool.Run(pieces(y.Rows, t.step), &d.jobs.embed)
	}
}

func (t *embed) Piece(i, _ int) {
	for r := i * t.step; r < min((i+1)*t.step, t.y.Rows); r++ {
		copyRow(t.y, r, t.table, int(t.ids[r]))
	}
}

// copyRow copies row from of src to row to of dst; the types are equal.
func copyRow(dst kernel.Matrix, to int, src kernel.Matrix, from int) {
	n := dst.Cols * int(dst.DT.Size())
	copy(unsafe.Slice((*byte)(element(dst, to, 0)), n), unsafe.Slice((*byte)(element(src, from, 0)), n))
}

// embedGrad is the task of EmbedGrad: slots by runs, each slot has one writer.
type embedGrad struct {
	a     kernel.EmbedGrad
	f     func(a *kernel.EmbedGrad, lo, hi int, scratch unsafe.Pointer)
	slots int
	mem   unsafe.Pointer // F32 [workers, cols]
}

// slotsPerPiece is the number of distinct tokens in one piece of EmbedGrad.
const slotsPerPiece = 16

// EmbedGrad: each slot's row += the sums of its tokens' gradients, by blocks.
func (d *Device) EmbedGrad(s device.Stream, rows, dx, order, starts device.Tensor, seq int, ws device.Buf) {
	device.CheckEmbedGrad(rows, dx, order, starts, seq)
	d.apart("EmbedGrad", rows, dx, order, starts)
	a := kernel.EmbedGrad{Rows: d.ptr(rows), DX: d.ptr(dx), Order: d.ptr(order), Starts: d.ptr(starts),
		Cols: dx.Cols, LdRows: rows.Ld, LdDX: dx.Ld, Seq: seq}
	mem := d.workspace("EmbedGrad", ws, d.Need(device.OpEmbedGrad, device.Shape{Rows: dx.Rows, Seq: seq, In: dx.Cols}))
	st := d.begin(s)
	if st == nil {
		return
	}
	defer st.end()
	checkSlots(a, rows.Rows, dx.Rows)
	d.jobs.embedGrad = embedGrad{a, d.kernels.EmbedGrad[dx.DT], rows.Rows, unsafe.Pointer(unsafe.SliceData(mem))}
	d.pool.Run(pieces(rows.Rows, slotsPerPiece), &d.jobs.embedGrad)
}

// checkSlots demands that starts cuts order, and order's tokens exist and ascend in each slot.
func checkSlots(a kernel.EmbedGrad, slots, tokens int) {
	starts, order := i32s(a.Starts, slots+1), i32s(a.Order, tokens)
	if starts[0] != 0 || int(starts[slots]) > tokens {
		panic(fmt.Errorf("cpu: EmbedGrad: slots begin at %d and end at %d of %d tokens", starts[0], starts[slots], tokens))
	}
	for i := range slots {
		if starts[i+1] < starts[i] || int(starts[i+1]) > tokens {
			panic(fmt.Errorf("cpu: EmbedGrad: slot %d is [%d, %d) of %d tokens", i, starts[i], starts[i+1], tokens))
		}
		before := int32(-1)
		for _, t := range order[starts[i]:starts[i+1]] {
			if t <= before || int(t) >= tokens {
				panic(fmt.Errorf("cpu: EmbedGrad: slot %d has token %d after %d, of %d", i, t, before, tokens))
			}
			before = t
		}
	}
}

func (t *embedGrad) Piece(i, worker int) {
	lo := i * slotsPerPiece
	t.f(&t.a, lo, min(lo+slotsPerPiece, t.slots), unsafe.Add(t.mem, worker*t.a.Cols*4))
}

// embedGradSlots adds the tokens of one slot and block from zero, then to the slot's row.
func embedGradSlots(dt device.DType) func(a *kernel.EmbedGrad, lo, hi int, scratch unsafe.Pointer) {
	return func(a *kernel.EmbedGrad, lo, hi int, scratch unsafe.Pointer) {
		starts, sum := i32s(a.Starts, hi+1), f32s(scratch, 0, a.Cols)
		order := i32s(a.Order, int(starts[hi]))
		for slot := lo; slot < hi; slot++ {
			row := f32s(a.Rows, slot*a.LdRows, a.Cols)
			for tokens := order[starts[slot]:starts[slot+1]]; len(tokens) > 0; {
				tokens = sumBlock(a, dt, sum, tokens)
				for i, v := range sum {
					row[i] += v
				}
			}
		}
	}
}

// sumBlock sums those of the tokens that share the first one's block and returns the rest.
func sumBlock(a *kernel.EmbedGrad, dt device.DType, sum []float32, tokens []int32) []int32 {
	first := int(tokens[0]) / a.Seq * a.Seq
	end := blockEnd(first+(int(tokens[0])-first)/device.BlockRows*device.BlockRows, a.Seq)
	clear(sum)
	for len(tokens) > 0 && int(tokens[0]) < end {
		dx := at(a.DX, dt, int(tokens[0])*a.LdDX, a.Cols)
		for i := range sum {
			sum[i] += dx.get(i)
		}
		tokens = tokens[1:]
	}
	return tokens
}
