package allreduce

import "encoding/binary"

// Add sets dst = received + own, element by element, in fp32; all three are
// little-endian fp32 of one length, and dst may be one of the others.
type Add func(dst, received, own []byte)

// Round sets dst = src rounded to the nearest bfloat16, ties to even, kept as fp32;
// dst may be src.
type Round func(dst, src []byte)

// Host is Memory for gradients that the host can address.
type Host struct {
	Grads [][][]byte // by rank and bucket: fp32, padded length
	Sums  [][]byte   // by bucket
	// AddFunc and RoundFunc are the device's; AddRef and RoundRef are the plain ones.
	AddFunc   Add
	RoundFunc Round
}

func (h *Host) bytes(v View) []byte {
	whole := h.Sums
	if !v.Sum {
		whole = h.Grads[v.Rank]
	}
	return whole[v.Bucket][v.Range.Lo*4 : v.Range.Hi*4]
}

// Copy implements Memory.
func (h *Host) Copy(dst, src View) { copy(h.bytes(dst), h.bytes(src)) }

// Add implements Memory.
func (h *Host) Add(dst, received, own View) { h.AddFunc(h.bytes(dst), h.bytes(received), h.bytes(own)) }

// Round implements Memory.
func (h *Host) Round(dst, src View) { h.RoundFunc(h.bytes(dst), h.bytes(src)) }

// RoundRef is the plain rounding, the specification of Round.
func RoundRef(dst, src []byte) {
	for i := 0; i+4 <= len(dst); i += 4 {
		binary.LittleEndian.PutUint32(dst[i:], RoundBits(binary.LittleEndian.Uint32(src[i:])))
	}
}
