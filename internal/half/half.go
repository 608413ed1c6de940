// Package half converts IEEE 754 binary16 numbers, the "fp16" of model files.
package half

import "math"

// Float32 widens the binary16 number with these bits; every one is a binary32
// number. NaN payloads and infinities are kept.
func Float32(bits uint16) float32 {
	sign, exp, frac := uint32(bits>>15)<<31, uint32(bits>>10&31), uint32(bits&1023)
	switch exp {
	case 0: // zero or subnormal: frac·2^-24
		magnitude := float32(frac) * (1.0 / (1 << 24))
		return math.Float32frombits(math.Float32bits(magnitude) | sign)
	case 31:
		return math.Float32frombits(sign | 0x7f800000 | frac<<13)
	}
	return math.Float32frombits(sign | (exp+112)<<23 | frac<<13)
}
