package cpu

import (
	"math"
	"testing"

	"github.com/skein-ml/skein/device"
)

func TestRingAdditionsRoundWhereTheWireDoes(t *testing.T) {
	a, b := []float32{1, 0.1, 3e38, float32(math.NaN())}, []float32{1.0 / 256, 0.2, 3e38, 1}
	dst := make([]float32, 4)
	AddF32(device.HostBytes(dst), device.HostBytes(a), device.HostBytes(b))
	for i := range dst {
		if want := a[i] + b[i]; math.Float32bits(dst[i]) != math.Float32bits(want) && want == want {
			t.Errorf("AddF32: %g + %g = %g", a[i], b[i], dst[i])
		}
	}
	wire := make([]uint16, 4)
	RoundBF16(device.HostBytes(wire), device.HostBytes(a))
	sum, last := make([]uint16, 4), make([]float32, 4)
	AddBF16(device.HostBytes(sum), device.HostBytes(wire), device.HostBytes(b))
	AddBF16Last(device.HostBytes(last), device.HostBytes(wire), device.HostBytes(b))
	for i := range sum {
		want := unbf16(wire[i]) + b[i]
		if sum[i] != bf16(want) {
			t.Errorf("AddBF16: %g + %g = %g", unbf16(wire[i]), b[i], unbf16(sum[i]))
		}
		if last[i] != want && want == want {
			t.Errorf("AddBF16Last: %g + %g = %g", unbf16(wire[i]), b[i], last[i])
		}
	}
	if unbf16(sum[0]) != 1 { // 1 + 2⁻⁸ lies midway: to even
		t.Errorf("1 + 1/256 became %g", unbf16(sum[0]))
	}
	expectPanic(t, "AddBF16: 8 bytes from 8 and 8", func() {
		AddBF16(device.HostBytes(sum), device.HostBytes(wire), device.HostBytes(b[:2]))
	})
}
