package device

import "fmt"

// Memory is what an implementation knows an allocation by. Nothing outside of the
// implementation may look into it.
type Memory interface {
	// Bytes is its length.
	Bytes() int64
}

// Buf is a stretch of a device's memory: what [Device.Alloc] returned, or a part of that.
// It is a value, so that views cost no allocation in a step. The zero Buf means "none".
type Buf struct {
	mem    Memory
	off, n int64
}

// Whole is all of m. Implementations make their buffers with it.
func Whole(m Memory) Buf { return Buf{mem: m, n: m.Bytes()} }

// IsZero tells whether b is the zero Buf, "none".
func (b Buf) IsZero() bool { return b.mem == nil }

// Bytes is the length of the stretch.
func (b Buf) Bytes() int64 { return b.n }

// Slice is a view of n bytes from off. It shares memory with b and is never freed by
// itself. It panics when the range leaves b.
func (b Buf) Slice(off, n int64) Buf {
	if off < 0 || n < 0 || off+n > b.n {
		panic(fmt.Sprintf("device: bytes [%d, %d) of a buffer of %d", off, off+n, b.n))
	}
	return Buf{mem: b.mem, off: b.off + off, n: n}
}

// Memory is the allocation that b is a stretch of, and where in it b begins; nil for the
// zero Buf.
func (b Buf) Memory() (m Memory, off int64) { return b.mem, b.off }
