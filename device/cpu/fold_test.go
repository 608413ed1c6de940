package cpu

import (
	"bytes"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/skein-ml/skein/device"
)

// awkward numbers: every exponent, subnormals, infinities, midpoints of BF16.
func awkward(seed uint64, n int) []float32 {
	rng := rand.New(rand.NewPCG(seed, 0))
	x := make([]float32, n)
	for i := range x {
		x[i] = math.Float32frombits(rng.Uint32())
		if i%3 == 0 {
			x[i] = math.Float32frombits(rng.Uint32()&0xffff0000 | 0x8000)
		}
		if x[i] != x[i] {
			x[i] = float32(math.Inf(1 - 2*int(rng.Uint32()&1)))
		}
	}
	return x
}

func sameNumber(a, b float32) bool {
	return math.Float32bits(a) == math.Float32bits(b) || (a != a && b != b)
}

func TestRingAdditionsRoundWhereTheWireDoes(t *testing.T) {
	const n = 5001
	a, b := awkward(1, n), awkward(2, n)
	own, wire := device.HostBytes(b), make([]uint16, n)
	f, h, last := make([]float32, n), make([]uint16, n), make([]float32, n)
	AddF32(device.HostBytes(f), device.HostBytes(a), own)
	RoundBF16(device.HostBytes(wire), device.HostBytes(a))
	AddBF16(device.HostBytes(h), device.HostBytes(wire), own)
	AddBF16Last(device.HostBytes(last), device.HostBytes(wire), own)
	for i := range n {
		sum := unbf16(wire[i]) + b[i]
		if !sameNumber(f[i], a[i]+b[i]) {
			t.Fatalf("AddF32: %g + %g = %g", a[i], b[i], f[i])
		}
		if wire[i] != bf16(a[i]) {
			t.Fatalf("RoundBF16: %g became %g", a[i], unbf16(wire[i]))
		}
		if !sameNumber(unbf16(h[i]), unbf16(bf16(sum))) {
			t.Fatalf("AddBF16: %g + %g = %g", unbf16(wire[i]), b[i], unbf16(h[i]))
		}
		if !sameNumber(last[i], sum) {
			t.Fatalf("AddBF16Last: %g + %g = %g", unbf16(wire[i]), b[i], last[i])
		}
	}
	half := []float32{1, 1.0 / 256} // 1 + 2⁻⁸ lies midway: to even
	AddBF16(device.HostBytes(h[:1]), []byte{0x80, 0x3f}, device.HostBytes(half[1:]))
	if unbf16(h[0]) != 1 {
		t.Errorf("1 + 1/256 became %g", unbf16(h[0]))
	}
}

func TestRingAdditionsHaveThePlainOnesBits(t *testing.T) {
	const n = 3003
	own := slices.Clone(device.HostBytes(awkward(3, n)))
	other := device.HostBytes(awkward(4, n))
	wire := make([]byte, 2*n)
	roundBF16(wire, other)
	for _, c := range []struct {
		name        string
		size        int
		fast, plain func(dst []byte)
	}{
		{"AddF32", 4 * n, func(d []byte) { AddF32(d, own, other) }, func(d []byte) { addF32(d, own, other) }},
		{"RoundBF16", 2 * n, func(d []byte) { RoundBF16(d, own) }, func(d []byte) { roundBF16(d, own) }},
		{"AddBF16", 2 * n, func(d []byte) { AddBF16(d, wire, own) }, func(d []byte) { addBF16(d, wire, own) }},
		{"AddBF16Last", 4 * n, func(d []byte) { AddBF16Last(d, wire, own) }, func(d []byte) { addBF16Last(d, wire, own) }},
	} {
		// One byte off: what comes off a wire need not be aligned.
		got, want := make([]byte, c.size+1)[1:], make([]byte, c.size)
		c.fast(got)
		c.plain(want)
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs from plain Go", c.name)
		}
	}
}

func TestRingAdditionsInPlace(t *testing.T) {
	a, b := awkward(5, 100), awkward(6, 100)
	want := make([]byte, 400)
	addF32(want, device.HostBytes(a), device.HostBytes(b))
	AddF32(device.HostBytes(a), device.HostBytes(a), device.HostBytes(b))
	if !bytes.Equal(device.HostBytes(a), want) {
		t.Error("AddF32 into an operand gives another sum")
	}
}

func TestRingAdditionsRefuseOtherLengths(t *testing.T) {
	b := make([]byte, 16)
	expectPanic(t, "AddF32: 16 bytes from 16 and 12", func() { AddF32(b, b, b[:12]) })
	expectPanic(t, "AddF32: 3 bytes", func() { AddF32(b[:3], b[:3], b[:3]) })
	expectPanic(t, "AddBF16: 8 bytes from 8 and 8", func() { AddBF16(b[:8], b[:8], b[:8]) })
	expectPanic(t, "AddBF16Last: 8 bytes from 16", func() { AddBF16Last(b[:8], b[:8], b) })
	expectPanic(t, "RoundBF16: 8 bytes", func() { RoundBF16(b[:8], b[:8]) })
}
