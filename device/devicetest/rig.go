package devicetest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/skein-ml/skein/device"
)

// source makes data that depends on its name only.
type source struct {
	*rand.Rand
	name string
}

func newSource(name string) source {
	h := fnv.New64a()
	h.Write([]byte(name))
	return source{rand.New(rand.NewPCG(h.Sum64(), 1)), name}
}

// memos are what models gave, by the name of the data: many devices and layouts
// are compared with the same numbers.
var memos sync.Map

func memo[T any](key string, f func() T) T {
	if v, ok := memos.Load(key); ok {
		return v.(T)
	}
	v := f()
	memos.Store(key, v)
	return v
}

func (s source) normal(rows, cols int) mat {
	m := newMat(rows, cols)
	for i := range m.v {
		m.v[i] = s.NormFloat64()
	}
	return m
}

// integers are small enough that every product and sum of a test is exact.
func (s source) integers(rows, cols int) mat {
	m := newMat(rows, cols)
	for i := range m.v {
		m.v[i] = float64(s.IntN(7) - 3)
	}
	return m
}

// uniform integers in [lo, hi).
func (s source) ids(n, lo, hi int) []int32 {
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = int32(lo + s.IntN(hi-lo))
	}
	return ids
}

func ropeTable(positions, dim int) mat {
	m := newMat(positions, dim)
	for p := range positions {
		for j := range dim / 2 {
			angle := float64(p) / math.Pow(100, float64(j)/float64(dim/2))
			m.v[p*dim+j], m.v[p*dim+dim/2+j] = math.Cos(angle), math.Sin(angle)
		}
	}
	return roundMat(m, device.F32)
}

// roundTo is x as dt stores it.
func roundTo(x float64, dt device.DType) float64 {
	switch dt {
	case device.F64:
		return x
	case device.F32:
		return float64(float32(x))
	}
	f := float32(x)
	if f != f || math.IsInf(float64(f), 0) {
		return float64(f)
	}
	u := math.Float32bits(f)
	low := u & 0xffff
	u -= low
	if low > 0x8000 || (low == 0x8000 && u&0x10000 != 0) {
		u += 0x10000
	}
	return float64(math.Float32frombits(u))
}

func roundMat(m mat, dt device.DType) mat {
	for i, x := range m.v {
		m.v[i] = roundTo(x, dt)
	}
	return m
}

// layout is how a rig lays memory out; no result may depend on it.
type layout struct {
	name string
	pad  int  // elements before the first one and between rows
	fill byte // of memory that nothing has been written to, workspaces included
}

var layouts = []layout{{"dense", 0, 0xff}, {"padded", 3, 0x41}}

// rig is a device and the tensors of one test on it.
type rig struct {
	t testing.TB
	d device.Device
	s device.Stream
	layout
	bufs    []device.Buf
	weights []device.Weight
	guards  []guard
}

// guard is a buffer and what it held at first: what lies outside of the tensor must stay.
type guard struct {
	t     device.Tensor
	buf   device.Buf
	first int64 // offset of the tensor
	image []byte
}

func newRig(t testing.TB, d device.Device, l layout) *rig {
	return &rig{t: t, d: d, s: d.Stream(device.StreamCompute), layout: l}
}

// close frees what the rig made.
func (r *rig) close() {
	r.wait()
	for _, b := range r.bufs {
		r.d.Free(b)
	}
	for _, w := range r.weights {
		r.d.FreeWeight(w)
	}
	r.bufs, r.weights, r.guards = nil, nil, nil
}

func (r *rig) wait() {
	r.t.Helper()
	if err := r.s.Record().Wait(); err != nil {
		r.t.Fatalf("the device failed: %v", err)
	}
}

func (r *rig) alloc(n int64) device.Buf {
	r.t.Helper()
	b, err := r.d.Alloc(n, device.KindStaging)
	if err != nil {
		r.t.Fatal(err)
	}
	r.bufs = append(r.bufs, b)
	return b
}

// make is a tensor with the rig's padding, its elements and surroundings garbage.
func (r *rig) make(dt device.DType, rows, cols, ld int, data []byte) device.Tensor {
	r.t.Helper()
	size := int(dt.Size())
	image := bytes.Repeat([]byte{r.fill}, (r.pad+rows*ld+1)*size)
	first := r.pad * size
	for i := range rows {
		if data != nil {
			copy(image[first+i*ld*size:], data[i*cols*size:(i+1)*cols*size])
		}
	}
	b := r.alloc(int64(len(image)))
	r.d.Upload(r.s, b, image)
	t := device.Tensor{Buf: b.Slice(int64(first), int64(len(image)-first)), DT: dt, Rows: rows, Cols: cols, Ld: ld}
	r.guards = append(r.guards, guard{t, b, int64(first), image})
	return t
}

// in is m as a tensor of type dt.
func (r *rig) in(dt device.DType, m mat) device.Tensor {
	r.t.Helper()
	return r.make(dt, m.rows, m.cols, m.cols+r.pad, encode(dt, m.v))
}

// column is m [rows, 1], dense.
func (r *rig) column(m mat) device.Tensor {
	r.t.Helper()
	return r.make(device.F32, m.rows, 1, 1, encode(device.F32, m.v))
}

func (r *rig) ints(v []int32) device.Tensor {
	r.t.Helper()
	return r.make(device.I32, 1, len(v), len(v), device.HostBytes(v))
}

// out is a tensor of garbage that an operation has to overwrite.
func (r *rig) out(dt device.DType, rows, cols int) device.Tensor {
	r.t.Helper()
	return r.make(dt, rows, cols, cols+r.pad, nil)
}

func (r *rig) weight(dt device.DType, m mat, forms device.Forms) device.Weight {
	r.t.Helper()
	return r.weightOf(r.in(dt, m), forms)
}

// weightOf is a weight of src, packed.
func (r *rig) weightOf(src device.Tensor, forms device.Forms) device.Weight {
	r.t.Helper()
	w, err := r.d.NewWeight(src, forms)
	if err != nil {
		r.t.Fatal(err)
	}
	r.weights = append(r.weights, w)
	for lo, n := 0, 1; lo < src.Rows; lo, n = lo+n, 2*n+1 { // in pieces of odd size
		r.d.Pack(r.s, w, lo, min(lo+n, src.Rows))
	}
	return w
}

// workspace is garbage of exactly what op needs, nil for nothing.
func (r *rig) workspace(op device.Op, sh device.Shape) device.Buf {
	r.t.Helper()
	n := r.d.Need(op, sh)
	if n == 0 {
		return device.Buf{}
	}
	b := r.alloc(n)
	r.d.Upload(r.s, b, bytes.Repeat([]byte{r.fill}, int(n)))
	return b
}

// raw is the bytes of t's elements. It fails if anything around them changed.
func (r *rig) raw(t device.Tensor) []byte {
	r.t.Helper()
	for _, g := range r.guards {
		if g.t != t {
			continue
		}
		now := make([]byte, len(g.image))
		r.d.Download(r.s, now, g.buf)
		r.wait()
		size := int(t.DT.Size())
		data := make([]byte, 0, t.Rows*t.Cols*size)
		for i := range t.Rows {
			lo := int(g.first) + i*t.Ld*size
			data = append(data, now[lo:lo+t.Cols*size]...)
			copy(now[lo:lo+t.Cols*size], g.image[lo:])
		}
		if !bytes.Equal(now, g.image) {
			r.t.Errorf("memory around %v was written", t)
		}
		return data
	}
	panic("devicetest: not a tensor of this rig")
}

func (r *rig) read(t device.Tensor) []float64 {
	r.t.Helper()
	return decode(t.DT, r.raw(t))
}

func encode(dt device.DType, v []float64) []byte {
	b := make([]byte, 0, len(v)*int(dt.Size()))
	for _, x := range v {
		switch dt {
		case device.F64:
			b = binary.LittleEndian.AppendUint64(b, math.Float64bits(x))
		case device.F32:
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(x)))
		case device.BF16:
			b = binary.LittleEndian.AppendUint16(b, uint16(math.Float32bits(float32(roundTo(x, dt)))>>16))
		default:
			panic(fmt.Sprintf("devicetest: encode %v", dt))
		}
	}
	return b
}

func decode(dt device.DType, b []byte) []float64 {
	v := make([]float64, len(b)/int(dt.Size()))
	for i := range v {
		switch dt {
		case device.F64:
			v[i] = math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:]))
		case device.F32:
			v[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:])))
		case device.BF16:
			v[i] = float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(b[2*i:])) << 16))
		default:
			panic(fmt.Sprintf("devicetest: decode %v", dt))
		}
	}
	return v
}
