package device

import "unsafe"

// HostBytes views host numbers as the bytes that Upload and Download move. All
// supported machines are little-endian, as buffers are.
func HostBytes[E int32 | uint16 | float32 | float64](x []E) []byte {
	if len(x) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&x[0])), len(x)*int(unsafe.Sizeof(x[0])))
}
