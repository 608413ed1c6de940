package cpu

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/skein-ml/skein/device/cpu/native"
)

// The additions of the ring work on little-endian bytes, aligned or not. Their bits are the same on
// every path and every machine: one F32 addition, and one rounding to nearest even where the
// wire is BF16. With AVX2 they run at the speed of memory.

// AddF32 is the addition on an fp32 wire: dst = a + b, F32. All three have one length, a
// multiple of 4; dst may be a or b.
func AddF32(dst, a, b []byte) {
	checkFold("AddF32", len(dst), len(a), len(b), 1)
	if native.Features().AVX2 {
		native.FoldAdd(dst, a, b)
		return
	}
	addF32(dst, a, b)
}

func addF32(dst, a, b []byte) {
	for i := 0; i < len(dst); i += 4 {
		put32(dst[i:], get32(a[i:])+get32(b[i:]))
	}
}

// RoundBF16 makes the partial sum that the first rank sends on a bf16 wire: dst BF16 = src
// F32, of twice the length, rounded to nearest even.
func RoundBF16(dst, src []byte) {
	checkFold("RoundBF16", len(dst), len(dst), len(src), 2)
	if native.Features().AVX2 {
		native.FoldRound(dst, src)
		return
	}
	roundBF16(dst, src)
}

func roundBF16(dst, src []byte) {
	for i := 0; i < len(dst); i += 2 {
		binary.LittleEndian.PutUint16(dst[i:], bf16(get32(src[2*i:])))
	}
}

// AddBF16 is the addition of a hop on a bf16 wire: dst BF16 = received BF16 + own F32, of twice
// the length, added in F32 and rounded to nearest even. dst may be received.
func AddBF16(dst, received, own []byte) {
	checkFold("AddBF16", len(dst), len(received), len(own), 2)
	if native.Features().AVX2 {
		native.FoldAddRound(dst, received, own)
		return
	}
	addBF16(dst, received, own)
}

func addBF16(dst, received, own []byte) {
	for i := 0; i < len(dst); i += 2 {
		binary.LittleEndian.PutUint16(dst[i:], bf16(get16(received[i:])+get32(own[2*i:])))
	}
}

// AddBF16Last is the owner's addition, the last one on a bf16 wire: dst F32 = received BF16 +
// own F32, of twice the length; the sum stays F32. dst may be own.
func AddBF16Last(dst, received, own []byte) {
	if len(dst) != len(own) {
		panic(fmt.Sprintf("cpu: AddBF16Last: %d bytes from %d", len(dst), len(own)))
	}
	checkFold("AddBF16Last", len(received), len(received), len(own), 2)
	if native.Features().AVX2 {
		native.FoldAddLast(dst, received, own)
		return
	}
	addBF16Last(dst, received, own)
}

func addBF16Last(dst, received, own []byte) {
	for i := 0; i < len(received); i += 2 {
		put32(dst[2*i:], get16(received[i:])+get32(own[2*i:]))
	}
}

func checkFold(op string, dst, a, b, ratio int) {
	if dst != a || b != ratio*a || dst%(4/ratio) != 0 {
		panic(fmt.Sprintf("cpu: %s: %d bytes from %d and %d", op, dst, a, b))
	}
}

func get32(b []byte) float32    { return math.Float32frombits(binary.LittleEndian.Uint32(b)) }
func put32(b []byte, v float32) { binary.LittleEndian.PutUint32(b, math.Float32bits(v)) }
func get16(b []byte) float32    { return unbf16(binary.LittleEndian.Uint16(b)) }

// AddF32 implements [device.HostAddressable].
func (*Device) AddF32(dst, a, b []byte) { AddF32(dst, a, b) }

// RoundBF16 implements [device.HostAddressable].
func (*Device) RoundBF16(dst, src []byte) { RoundBF16(dst, src) }

// AddBF16 implements [device.HostAddressable].
func (*Device) AddBF16(dst, received, own []byte) { AddBF16(dst, received, own) }

// AddBF16Last implements [device.HostAddressable].
func (*Device) AddBF16Last(dst, received, own []byte) { AddBF16Last(dst, received, own) }
