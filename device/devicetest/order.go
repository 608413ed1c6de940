package devicetest

import (
	"bytes"
	"strings"
	"testing"

	"github.com/skein-ml/skein/device"
)

// runOrder: streams keep their order, events order streams, and host memory is the caller's
// when the contract says so.
func runOrder(t *testing.T, d device.Device) {
	t.Run("UploadCopiesTheHostsBytesInTheCall", func(t *testing.T) { uploadCopies(t, d) })
	t.Run("EventsOrderTwoStreams", func(t *testing.T) { eventsOrder(t, d) })
	t.Run("AStreamKeepsItsOrder", func(t *testing.T) { streamOrder(t, d) })
	t.Run("NewMemoryIsZero", func(t *testing.T) { newMemory(t, d) })
	t.Run("AWeightForgetsNoRows", func(t *testing.T) { repack(t, d) })
}

func uploadCopies(t *testing.T, d device.Device) {
	r := newRig(t, d, layouts[0])
	defer r.close()
	b, host := r.alloc(1000), bytes.Repeat([]byte{7}, 1000)
	for range 20 {
		r.d.Upload(r.s, b, host)
	}
	clear(host)
	got := make([]byte, 1000)
	r.d.Download(r.s, got, b)
	r.wait()
	if !bytes.Equal(got, bytes.Repeat([]byte{7}, 1000)) {
		t.Errorf("the device has what the host wrote after Upload")
	}
}

// eventsOrder passes numbers from the copy stream through the compute stream and back, many
// times over one buffer, so that a missing wait would be seen.
func eventsOrder(t *testing.T, d device.Device) {
	const n, rounds = 4096, 20
	r := newRig(t, d, layouts[0])
	defer r.close()
	copies := d.Stream(device.StreamCopy)
	in, out := r.out(device.F32, 1, n), r.out(device.F32, 1, n)
	results := make([][]byte, rounds)
	r.wait()
	done := r.s.Record()
	for i := range results {
		x := newMat(1, n)
		for j := range x.v {
			x.v[j] = float64(i + j)
		}
		copies.After(done)
		r.d.Upload(copies, in.Buf.Slice(0, 4*n), encode(device.F32, x.v))
		r.s.After(copies.Record())
		r.d.Add(r.s, out, in, in)
		copies.After(r.s.Record())
		results[i] = make([]byte, 4*n)
		r.d.Download(copies, results[i], out.Buf.Slice(0, 4*n))
		done = copies.Record()
	}
	if err := done.Wait(); err != nil {
		t.Fatal(err)
	}
	for i, b := range results {
		for j, v := range decode(device.F32, b) {
			if v != float64(2*(i+j)) {
				t.Fatalf("round %d: element %d is %g, want %d", i, j, v, 2*(i+j))
			}
		}
	}
}

func streamOrder(t *testing.T, d device.Device) {
	const n = 1000
	r := newRig(t, d, layouts[0])
	defer r.close()
	a, b := r.out(device.F32, 1, n), r.out(device.F32, 1, n)
	r.d.Fill(r.s, a, 1)
	for range 10 { // a doubles in each round
		r.d.Copy(r.s, b.Buf.Slice(0, 4*n), a.Buf.Slice(0, 4*n))
		r.d.Add(r.s, a, a, b)
	}
	for _, v := range r.read(a) {
		if v != 1024 {
			t.Fatalf("ten doublings of 1 give %g", v)
		}
	}
}

func newMemory(t *testing.T, d device.Device) {
	for range 3 { // memory that was used before must be zero too
		r := newRig(t, d, layouts[0])
		b, got := r.alloc(3<<20), make([]byte, 3<<20)
		r.d.Download(r.s, got, b)
		r.wait()
		if n := len(bytes.TrimLeft(got, "\x00")); n != 0 {
			t.Errorf("%d bytes from the first that is not zero", n)
		}
		r.d.Upload(r.s, b, bytes.Repeat([]byte{0xff}, 3<<20))
		r.close()
	}
}

// repack changes rows of a weight and uses both of its forms before and after.
func repack(t *testing.T, d device.Device) {
	const out, in = 70, 50
	for _, dt := range bothTypes {
		s := newSource("repack")
		w, x, dy := s.integers(out, in), s.integers(3, in), s.integers(3, out)
		r := newRig(t, d, layouts[0])
		src := device.Make(r.alloc(out*in*dt.Size()), dt, out, in)
		r.d.Upload(r.s, src.Buf, encode(dt, w.v))
		wt, xt, dyt := r.weightOf(src, bothForms), r.in(dt, x), r.in(dt, dy)
		for _, rows := range [][2]int{{0, 0}, {0, 1}, {31, 34}, {69, 70}, {0, 70}} {
			fresh := s.integers(rows[1]-rows[0], in)
			copy(w.v[rows[0]*in:], fresh.v)
			r.d.Upload(r.s, src.RowRange(rows[0], rows[1]).Buf, encode(dt, fresh.v))
			r.d.Pack(r.s, wt, rows[0], rows[1])
			y, dx := r.out(dt, 3, out), r.out(dt, 3, in)
			r.d.Linear(r.s, y, xt, wt, device.Epilogue{}, r.workspace(device.OpLinear, device.Shape{Rows: 3, Seq: 3, In: in, Out: out, DT: dt}))
			r.d.LinearDX(r.s, dx, dyt, wt, device.Epilogue{}, r.workspace(device.OpLinearDX, device.Shape{Rows: 3, Seq: 3, In: in, Out: out, DT: dt}))
			wantDX, _ := linearGrad(dy, x, w)
			compare(t, result{"y", y, linear(x, w), dt, true}, r.read(y), Tolerance{})
			compare(t, result{"dx", dx, wantDX, dt, true}, r.read(dx), Tolerance{})
		}
		r.close()
	}
}

// misuse is a call that has to panic.
type misuse struct {
	name string
	call func()
}

// runMisuse: mistakes of the caller panic in the call; what is wrong in memory
// comes out of an event.
func runMisuse(t *testing.T, d device.Device, open func() device.Device) {
	r := newRig(t, d, layouts[0])
	defer r.close()
	const f, b = device.F32, device.BF16
	x, wide, half, flat := r.in(f, newMat(4, 8)), r.in(f, newMat(4, 9)), r.in(b, newMat(4, 8)), r.in(f, newMat(1, 8))
	ids, w := r.ints([]int32{0, 1, 2, 3}), r.weight(f, newMat(8, 8), device.FormForward)
	other := open()
	defer other.Close()
	foreign := newRig(t, other, layouts[0])
	defer foreign.close()
	alien := foreign.in(f, newMat(4, 8))
	freed, err := d.Alloc(128, device.KindStaging)
	if err != nil {
		t.Fatal(err)
	}
	gone := device.Make(freed, f, 4, 8)
	d.Free(freed)
	docs := device.Docs{Cu: r.ints([]int32{0, 3}), Host: []int32{0, 3}}
	a := device.AttnShape{Heads: 2, KVHeads: 1, HeadDim: 4, Scale: 1}
	for _, c := range append(plainMisuse(r), []misuse{
		{"Add with another width", func() { d.Add(r.s, x, x, wide) }},
		{"Add with another type", func() { d.Add(r.s, x, x, half) }},
		{"Add with nothing", func() { d.Add(r.s, x, x, device.Tensor{}) }},
		{"Add past the end", func() { p := x; p.Rows = 5; d.Add(r.s, p, p, p) }},
		{"Linear of another type", func() { d.Linear(r.s, x, half, w, device.Epilogue{}, device.Buf{}) }},
		{"LinearDX without its form", func() { d.LinearDX(r.s, x, x, w, device.Epilogue{}, device.Buf{}) }},
		{"LinearDW into BF16", func() { d.LinearDW(r.s, half, device.Tensor{}, x, x, 4, device.Buf{}) }},
		{"LinearDW of part of a sequence", func() { d.LinearDW(r.s, r.in(f, newMat(8, 8)), device.Tensor{}, x, x, 3, device.Buf{}) }},
		{"Pack past the end", func() { d.Pack(r.s, w, 5, 9) }},
		{"RMSNorm with a wide weight", func() { d.RMSNorm(r.s, x, device.Tensor{}, x, wide, 1e-5) }},
		{"RMSNormGrad without workspace", func() {
			d.RMSNormGrad(r.s, x, flat, x, x, r.column(newMat(4, 1)), flat, device.Tensor{}, 4, device.Buf{})
		}},
		{"Rope of half a head", func() { d.Rope(r.s, x, x, r.in(f, newMat(4, 5)), ids, 5, false) }},
		{"GLU of a narrow input", func() { d.GLU(r.s, x, x, device.SiLU) }},
		{"Attention without all rows", func() {
			d.Attention(r.s, x, device.Tensor{}, x, x.ColRange(0, 4), x.ColRange(0, 4), docs, a, device.Buf{})
		}},
		{"Embed of I32", func() { d.Embed(r.s, x, device.Tensor{Buf: x.Buf, DT: device.I32, Rows: 4, Cols: 8, Ld: 8}, ids) }},
		{"SqNorm of BF16", func() { d.SqNorm(r.s, r.in(device.F64, newMat(1, 1)), half) }},
		{"Upload of too little", func() { d.Upload(r.s, x.Buf, make([]byte, 5)) }},
		{"another device's buffer", func() { d.Add(r.s, x, x, alien) }},
		{"another device's stream", func() { d.Add(foreign.s, x, x, x) }},
		{"a freed buffer", func() { d.Add(r.s, x, x, gone) }},
		{"freeing twice", func() { d.Free(freed) }},
		{"freeing a slice", func() { d.Free(x.Buf.Slice(0, 4)) }},
		{"a slice past the end", func() { x.Buf.Slice(0, 1<<20) }},
	}...) {
		t.Run(c.name, func(t *testing.T) { expectPanic(t, c.call) })
	}
	r.wait()
	t.Run("Alloc of more than there is", func(t *testing.T) {
		if _, err := d.Alloc(1<<45, device.KindWeights); err == nil {
			t.Error("32 TiB were given")
		}
	})
	for _, c := range []struct {
		name string
		call func(r *rig)
	}{
		{"Embed", func(r *rig) { r.d.Embed(r.s, r.out(f, 2, 8), r.in(f, newMat(5, 8)), r.ints([]int32{4, 5})) }},
		{"Embed below zero", func(r *rig) { r.d.Embed(r.s, r.out(f, 2, 8), r.in(f, newMat(5, 8)), r.ints([]int32{-1, 0})) }},
		{"Rope", func(r *rig) {
			r.d.Rope(r.s, r.in(f, newMat(1, 8)), device.Tensor{}, r.in(f, newMat(3, 4)), r.ints([]int32{3}), 4, false)
		}},
	} {
		t.Run("bad index of "+c.name, func(t *testing.T) { failsItsStream(t, open(), c.call) })
	}
}

func expectPanic(t *testing.T, call func()) {
	defer func() {
		if v := recover(); v == nil {
			t.Error("did not panic")
		} else if s, ok := v.(string); !ok || !strings.Contains(s, ": ") {
			t.Errorf("panicked with %v, want a line that says what is wrong", v)
		}
	}()
	call()
}

// failsItsStream: the call returns, its event tells, and what follows on the stream does not run.
func failsItsStream(t *testing.T, d device.Device, call func(r *rig)) {
	r := newRig(t, d, layouts[0])
	call(r)
	if err := r.s.Record().Wait(); err == nil {
		t.Error("the event has no error")
	}
	if err := r.s.Record().Wait(); err == nil {
		t.Error("a later event has no error")
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
