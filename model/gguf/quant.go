package gguf

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/skein-ml/skein/internal/half"
)

// quant is one way to store elements: in blocks of a few elements with shared scales.
type quant struct {
	name     string
	elements int64 // per block
	bytes    int64 // per block
	// decode converts whole blocks; len(dst) = elements·blocks, len(src) = bytes·blocks.
	decode func(dst []float32, src []byte)
}

// quants lists the tensor types that are read, by their number in files.
var quants = map[uint32]quant{
	0:  {"F32", 1, 4, decodeF32},
	1:  {"F16", 1, 2, decodeF16},
	2:  {"Q4_0", 32, 18, decodeQ40},
	3:  {"Q4_1", 32, 20, decodeQ41},
	8:  {"Q8_0", 32, 34, decodeQ80},
	30: {"BF16", 1, 2, decodeBF16},
}

// otherQuants names types that exist but are not read.
var otherQuants = map[uint32]string{6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
	14: "Q6_K", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"}

func quantOf(id uint32) (quant, error) {
	if q, ok := quants[id]; ok {
		return q, nil
	}
	var names []string
	for _, q := range quants {
		names = append(names, q.name)
	}
	slices.Sort(names)
	name, ok := otherQuants[id]
	if !ok {
		name = fmt.Sprintf("of the unknown type %d", id)
	}
	return quant{}, fmt.Errorf("it is %s, which is not read; choose a file of %s", name, strings.Join(names, ", "))
}

func decodeF32(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
	}
}

func decodeF16(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = half.Float32(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

func decodeBF16(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16)
	}
}

// decodeQ80: | scale f16 | 32 × int8 |, x = scale·q.
func decodeQ80(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[32:], src[34:] {
		scale := half.Float32(binary.LittleEndian.Uint16(src))
		for i, q := range src[2:34] {
			dst[i] = scale * float32(int8(q))
		}
	}
}

// decodeQ40: | scale f16 | 16 bytes of two |, x = scale·(q−8). A byte's low half is
// element i, its high half element i+16.
func decodeQ40(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[32:], src[18:] {
		scale := half.Float32(binary.LittleEndian.Uint16(src))
		for i, q := range src[2:18] {
			dst[i] = scale * float32(int(q&15)-8)
			dst[i+16] = scale * float32(int(q>>4)-8)
		}
	}
}

// decodeQ41: | scale f16 | least f16 | 16 bytes of two |, x = scale·q + least. The
// product is exact in fp32, so a fused multiply-add gives the same sum.
func decodeQ41(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[32:], src[20:] {
		scale := half.Float32(binary.LittleEndian.Uint16(src))
		least := half.Float32(binary.LittleEndian.Uint16(src[2:]))
		for i, q := range src[4:20] {
			dst[i] = float32(scale*float32(q&15)) + least
			dst[i+16] = float32(scale*float32(q>>4)) + least
		}
	}
}
