package crc32c

import (
	"encoding/binary"
	"hash/crc32"

	"golang.org/x/sys/cpu"
)

var fast = cpu.X86.HasAVX512F && cpu.X86.HasAVX512VPCLMULQDQ && cpu.X86.HasSSE42

const (
	// lanes is how many bytes are folded into at a time.
	lanes = 256
	// fastMin is where folding begins to pay.
	fastMin = 4 * lanes
)

// shift holds x^(8·lanes+32) and x^(8·lanes−32) modulo the polynomial, reflected and
// shifted by one: what carries the low and the high half of a lane over lanes bytes.
// (V. Gopal et al., Fast CRC Computation for Generic Polynomials Using PCLMULQDQ, 2009)
var shift = [2]uint64{0xdcb17aa4, 0xb9e02b86}

// fold carries acc over n bytes at p, a multiple of lanes, and returns the remainder
// that the polynomial of acc followed by these bytes leaves. acc is scratch after it.
//
//go:noescape
func fold(acc *[lanes]byte, p *byte, n int, shift *[2]uint64) uint32

// foldUpdate is Update for at least fastMin bytes. The state of a sum, which is its
// complement, is as good as added to the first four bytes.
func foldUpdate(sum uint32, p []byte) uint32 {
	acc := [lanes]byte(p)
	binary.LittleEndian.PutUint32(acc[:], binary.LittleEndian.Uint32(acc[:])^^sum)
	n := (len(p) - lanes) / lanes * lanes
	return crc32.Update(^fold(&acc, &p[lanes], n, &shift), table, p[lanes+n:])
}
