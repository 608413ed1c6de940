// Package opaque is a device for tests whose memory Go code can not address and whose
// work runs later: what it needs to hold is that nothing outside of a device assumes
// host memory or a synchronous call. A GPU fits where this device does.
//
// It computes with the generic path of package cpu and gives its bits, but hands out
// handles only, runs each stream on a goroutine after seeded random delays, and is strict:
//
//   - Freed and foreign buffers, and buffers freed while queued work uses them, panic.
//   - A Download's host memory holds poison until it is filled; who writes to it before
//     fails the stream. So does who changes Docs.Host, or whose Docs.Cu differs from it.
package opaque

import (
	"fmt"
	"sync"
	"time"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
)

// Options say how late the device is. Zero values mean the default.
type Options struct {
	Seed     uint64        // of the delays
	DelayMax time.Duration // before an operation; 0: operations only yield
	Threads  int           // of the hidden device, 1 by default
}

// Device is the opaque device.
type Device struct {
	inner   *cpu.Device
	streams [2]*stream

	mu     sync.Mutex
	bufs   map[handle]*memory
	next   handle
	closed bool
}

var _ device.Device = (*Device)(nil)

// handle names memory. What it stands for is in the device's table only.
type handle uint64

// memory is what a handle stands for.
type memory struct {
	buf    device.Buf    // of the hidden device: this,
	weight device.Weight // or this
	queued int           // operations that use it and have not run
}

// New opens an opaque device.
func New(o Options) (*Device, error) {
	if o.Threads == 0 {
		o.Threads = 1
	}
	inner, err := cpu.New(cpu.Options{Path: "generic", Threads: o.Threads})
	if err != nil {
		return nil, fmt.Errorf("opaque: %w", err)
	}
	d := &Device{inner: inner, bufs: map[handle]*memory{}}
	for i := range d.streams {
		d.streams[i] = newStream(d, inner.Stream(device.StreamKind(i)), o, uint64(i))
	}
	return d, nil
}

// Info is the hidden device's under another name.
func (d *Device) Info() device.Info {
	info := d.inner.Info()
	info.Name, info.Path = "opaque", "opaque"
	return info
}

// Close runs what is queued and frees all memory.
func (d *Device) Close() error {
	d.mu.Lock()
	closed := d.closed
	d.closed = true
	d.mu.Unlock()
	if closed {
		return nil
	}
	for _, s := range d.streams {
		s.close()
	}
	d.mu.Lock()
	clear(d.bufs)
	d.mu.Unlock()
	return d.inner.Close()
}

// stretch is an allocation as the caller knows it.
type stretch struct {
	dev *Device
	h   handle
	n   int64
}

// Bytes implements [device.Memory].
func (m *stretch) Bytes() int64 { return m.n }

// Alloc returns a handle to zeroed memory.
func (d *Device) Alloc(bytes int64, k device.Kind) (device.Buf, error) {
	inner, err := d.inner.Alloc(bytes, k)
	if err != nil {
		return device.Buf{}, err
	}
	return device.Whole(&stretch{dev: d, h: d.keep(&memory{buf: inner}), n: bytes}), nil
}

func (d *Device) keep(m *memory) handle {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.next++
	d.bufs[d.next] = m
	return d.next
}

// Free gives memory back. Nothing that is queued may use it.
func (d *Device) Free(b device.Buf) {
	own, off := d.own(b)
	if off != 0 || b.Bytes() != own.n {
		panic("opaque: Free of a slice")
	}
	d.inner.Free(d.drop(own.h).buf)
}

// drop forgets a handle.
func (d *Device) drop(h handle) *memory {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.lookup(h)
	if m.queued > 0 {
		panic(fmt.Sprintf("opaque: freed while %d queued operations use it: wait for their event first", m.queued))
	}
	delete(d.bufs, h)
	return m
}

// lookup is what h stands for. The caller holds the lock.
func (d *Device) lookup(h handle) *memory {
	m := d.bufs[h]
	if m == nil {
		panic("opaque: use of freed memory")
	}
	return m
}

func (d *Device) own(b device.Buf) (*stretch, int64) {
	m, off := b.Memory()
	own, ok := m.(*stretch)
	if !ok || own.dev != d {
		panic(fmt.Sprintf("opaque: a buffer of another device (%T)", m))
	}
	return own, off
}

// weight is a handle to a weight.
type weight struct {
	dev   *Device
	h     handle
	src   device.Tensor
	forms device.Forms
}

func (w *weight) Shape() (out, in int) { return w.src.Rows, w.src.Cols }
func (w *weight) DType() device.DType  { return w.src.DT }
func (w *weight) Forms() device.Forms  { return w.forms }

// NewWeight makes a weight of src.
func (d *Device) NewWeight(src device.Tensor, forms device.Forms) (device.Weight, error) {
	device.CheckNewWeight(src, forms)
	own, off := d.own(src.Buf)
	d.mu.Lock()
	hidden := src
	hidden.Buf = d.lookup(own.h).buf.Slice(off, src.Buf.Bytes())
	d.mu.Unlock()
	inner, err := d.inner.NewWeight(hidden, forms)
	if err != nil {
		return nil, err
	}
	return &weight{d, d.keep(&memory{weight: inner}), src, forms}, nil
}

// FreeWeight gives a weight's memory back. Nothing that is queued may use it.
func (d *Device) FreeWeight(w device.Weight) {
	d.inner.FreeWeight(d.drop(d.ownWeight(w).h).weight)
}

func (d *Device) ownWeight(w device.Weight) *weight {
	own, ok := w.(*weight)
	if !ok || own == nil || own.dev != d {
		panic(fmt.Sprintf("opaque: a weight of another device (%T)", w))
	}
	return own
}

// Need is the workspace of op in bytes.
func (d *Device) Need(op device.Op, sh device.Shape) int64 { return d.inner.Need(op, sh) }
