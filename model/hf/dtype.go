package hf

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/skein-ml/skein/internal/half"
)

// DType is the type of stored tensor elements, by its safetensors name.
type DType string

// The types that parameters may have.
const (
	F32  DType = "F32"
	BF16 DType = "BF16"
	F16  DType = "F16"
)

// bitsOf lists every dtype of the safetensors format with its width, so that files
// which hold more than parameters can still be checked byte for byte.
var bitsOf = map[DType]uint64{
	"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
	"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, F16: 16, BF16: 16, "I32": 32, "U32": 32, F32: 32,
	"C64": 64, "F64": 64, "I64": 64, "U64": 64,
}

// size is the bytes of one element of a parameter type, 0 for any other.
func (d DType) size() int64 {
	switch d {
	case F32:
		return 4
	case BF16, F16:
		return 2
	}
	return 0
}

// torchName is the dtype as config.json spells it.
func (d DType) torchName() string {
	return map[DType]string{F32: "float32", BF16: "bfloat16", F16: "float16"}[d]
}

// decode converts len(dst) little-endian elements of src to fp32, exactly. It
// returns the index of the first element that is not finite, or -1.
func (d DType) decode(dst []float32, src []byte) int {
	switch d {
	case F32:
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
		}
	case BF16:
		for i := range dst {
			dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16)
		}
	case F16:
		for i := range dst {
			dst[i] = half.Float32(binary.LittleEndian.Uint16(src[2*i:]))
		}
	default:
		panic("hf: decode of " + string(d))
	}
	return notFinite(dst)
}

// notFinite returns the index of the first NaN or infinity in x, or -1.
func notFinite(x []float32) int {
	for i, v := range x {
		if math.Float32bits(v)&0x7f800000 == 0x7f800000 {
			return i
		}
	}
	return -1
}

// encode appends x to dst as d, rounded to nearest even. It fails on an element that
// is not finite once rounded.
func (d DType) encode(dst []byte, x []float32) ([]byte, error) {
	for i, v := range x {
		bits := math.Float32bits(v)
		if d == BF16 {
			bits += 0x7fff + bits>>16&1
		}
		if bits&0x7f800000 == 0x7f800000 || math.IsNaN(float64(v)) {
			return nil, &elementError{i, fmt.Sprintf("%v is not a finite %s", v, d.torchName())}
		}
		if d == BF16 {
			dst = binary.LittleEndian.AppendUint16(dst, uint16(bits>>16))
		} else {
			dst = binary.LittleEndian.AppendUint32(dst, bits)
		}
	}
	return dst, nil
}

// elementError is a bad value at an index of a slice; the caller knows of which tensor.
type elementError struct {
	index   int
	problem string
}

func (e *elementError) Error() string { return e.problem }
