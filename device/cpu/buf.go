package cpu

import (
	"fmt"
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// allocation is one stretch of memory that Alloc or NewWeight gave out.
type allocation struct {
	dev   *Device
	mem   mapping
	kind  device.Kind
	freed bool
}

// Bytes implements [device.Memory].
func (a *allocation) Bytes() int64 { return int64(len(a.mem.used)) }

// Alloc returns zeroed memory outside of the Go heap.
func (d *Device) Alloc(bytes int64, k device.Kind) (device.Buf, error) {
	if bytes < 0 || bytes > 1<<46 {
		return device.Buf{}, fmt.Errorf("cpu: %d bytes of %v memory is not a size", bytes, k)
	}
	a, err := d.allocate(bytes, k)
	if err != nil {
		return device.Buf{}, err
	}
	return device.Whole(a), nil
}

func (d *Device) allocate(bytes int64, k device.Kind) (*allocation, error) {
	d.memory.Lock()
	defer d.memory.Unlock()
	var used int64
	for _, n := range d.allocated {
		used += n
	}
	if d.closed {
		return nil, fmt.Errorf("cpu: %d bytes of %v memory asked of a closed device", bytes, k)
	}
	if d.limit > 0 && used+bytes > d.limit {
		return nil, fmt.Errorf("cpu: %d bytes of %v memory asked for, %d of %d free: lower the micro-batch or the sequence length, or use more workers",
			bytes, k, max(0, d.limit-used), d.limit)
	}
	m, err := mapMemory(bytes)
	if err != nil {
		return nil, fmt.Errorf("cpu: %v memory, %d bytes in use: %w", k, used, err)
	}
	a := &allocation{dev: d, mem: m, kind: k}
	d.live[a] = struct{}{}
	d.allocated[k] += bytes
	d.peak = max(d.peak, used+bytes)
	return a, nil
}

// Free gives b back to the system.
func (d *Device) Free(b device.Buf) {
	a, off := d.own(b)
	if off != 0 || b.Bytes() != a.Bytes() {
		panic("cpu: Free of a slice")
	}
	d.release(a)
}

func (d *Device) release(a *allocation) {
	d.memory.Lock()
	defer d.memory.Unlock()
	a.freed = true
	delete(d.live, a)
	d.allocated[a.kind] -= int64(len(a.mem.used))
	a.mem.unmap()
}

// own is the allocation of b, and where in it b begins, if it is this device's and alive.
func (d *Device) own(b device.Buf) (*allocation, int64) {
	m, off := b.Memory()
	a, ok := m.(*allocation)
	if !ok || a.dev != d {
		panic(fmt.Sprintf("cpu: a buffer of another device (%T)", m))
	}
	if a.freed {
		panic(fmt.Sprintf("cpu: use of a freed buffer of %d bytes", b.Bytes()))
	}
	return a, off
}

// Host is the memory behind b.
func (d *Device) Host(b device.Buf) []byte {
	a, off := d.own(b)
	return a.mem.used[off : off+b.Bytes() : off+b.Bytes()]
}

// ptr is t's first element, nil for none.
func (d *Device) ptr(t device.Tensor) unsafe.Pointer {
	if t.IsZero() {
		return nil
	}
	a, off := d.own(t.Buf)
	return unsafe.Add(unsafe.Pointer(unsafe.SliceData(a.mem.used)), off)
}

func (d *Device) matrix(t device.Tensor) kernel.Matrix {
	return kernel.Matrix{P: d.ptr(t), DT: t.DT, Rows: t.Rows, Cols: t.Cols, Ld: t.Ld}
}

// workspace is the memory of ws, which has at least need bytes.
func (d *Device) workspace(op string, ws device.Buf, need int64) []byte {
	if need == 0 && ws.IsZero() {
		return nil
	}
	if ws.Bytes() < need {
		panic(fmt.Sprintf("cpu: %s needs %d bytes of workspace, was given %d", op, need, ws.Bytes()))
	}
	return d.Host(ws)
}

func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// weight is a weight; its allocation holds the packed forms.
type weight struct {
	*allocation
	src device.Tensor
	k   kernel.Weight
}

func (w *weight) Shape() (out, in int) { return w.k.Out, w.k.In }
func (w *weight) DType() device.DType  { return w.k.DT }
func (w *weight) Forms() device.Forms  { return w.k.Forms }

// NewWeight makes a weight of src.
func (d *Device) NewWeight(src device.Tensor, forms device.Forms) (device.Weight, error) {
	device.CheckNewWeight(src, forms)
	k := kernel.Weight{Out: src.Rows, In: src.Cols, DT: src.DT, Forms: forms, Src: d.matrix(src)}
	a, err := d.allocate(d.products.PackedBytes(src.Rows, src.Cols, src.DT, forms), device.KindWeights)
	if err != nil {
		return nil, err
	}
	k.Mem = a.mem.used
	return &weight{a, src, k}, nil
}

// FreeWeight gives w's memory back to the system.
func (d *Device) FreeWeight(w device.Weight) { d.release(d.weight(w).allocation) }

// weight is w if it is this device's and alive.
func (d *Device) weight(w device.Weight) *weight {
	c, ok := w.(*weight)
	if !ok || c == nil || c.dev != d {
		panic(fmt.Sprintf("cpu: a weight of another device (%T)", w))
	}
	if c.freed {
		panic(fmt.Sprintf("cpu: use of a freed weight [%d, %d]", c.k.Out, c.k.In))
	}
	return c
}

// operand is w for a product: its source has to be alive, too.
func (d *Device) operand(w device.Weight) *kernel.Weight {
	own := d.weight(w)
	d.own(own.src.Buf)
	return &own.k
}
