package native

import (
	"fmt"
	"unsafe"
)

// The additions of the ring on bytes, with the bits of their plain namesakes in
// package cpu. They need AVX2. Memory may be unaligned; dst may be an input of its type.

// FoldAdd: dst = a + b, all F32 of one length.
func FoldAdd(dst, a, b []byte) {
	checkLengths("FoldAdd", 4, len(dst), len(a), len(b))
	addRange(start(dst), start(a), start(b), len(dst)/4, variant{0, best()})
}

// FoldRound: dst BF16 = src F32, of twice the length, rounded to nearest even.
func FoldRound(dst, src []byte) {
	checkLengths("FoldRound", 4, 2*len(dst), 2*len(dst), len(src))
	castRange(start(dst), start(src), len(dst)/2, variant{0, best()})
}

// FoldAddRound: dst BF16 = received BF16 + own F32, of twice the length, rounded to nearest even.
func FoldAddRound(dst, received, own []byte) {
	checkLengths("FoldAddRound", 4, 2*len(dst), 2*len(received), len(own))
	fold(dst, received, own, 2, 0)
}

// FoldAddLast: dst F32 = received BF16, of half the length, + own F32.
func FoldAddLast(dst, received, own []byte) {
	checkLengths("FoldAddLast", 4, len(dst), 2*len(received), len(own))
	fold(dst, received, own, 4, 1)
}

func fold(dst, received, own []byte, dstSize int, last int64) {
	n := len(received) / 2
	for lo := 0; lo < n; lo += callElements {
		FoldBf16(&FoldBf16Args{
			Dst: unsafe.Add(start(dst), lo*dstSize), Received: unsafe.Add(start(received), lo*2), Own: unsafe.Add(start(own), lo*4),
			N: int64(min(n-lo, callElements)), Last: last,
		}, best())
	}
}

// best is the instruction set to use where no path is asked for. It is a variable so that
// tests can choose the other one.
var best = func() ISA {
	if Features().AVX512 {
		return AVX512
	}
	return AVX2
}

func start(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }

func checkLengths(op string, size, dst, a, b int) {
	if dst != a || dst != b || dst%size != 0 {
		panic(fmt.Sprintf("native: %s: lengths %d, %d and %d do not match", op, dst, a, b))
	}
}
