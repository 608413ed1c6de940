package crc32c

import (
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

func random(n int) []byte {
	r := rand.New(rand.NewPCG(uint64(n), 1))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

func TestSumIsTheStandardLibrarys(t *testing.T) {
	p := random(20_000)
	for n := range 5000 {
		for _, sum := range []uint32{0, 1, 0xDEADBEEF, ^uint32(0)} {
			if got, want := Update(sum, p[n%13:n%13+n]), crc32.Update(sum, table, p[n%13:n%13+n]); got != want {
				t.Fatalf("%d bytes after %#x: %#x, want %#x", n, sum, got, want)
			}
		}
	}
	if got := Sum([]byte("123456789")); got != 0xE3069283 {
		t.Errorf("the check value is %#x", got)
	}
}

func TestEveryBitCounts(t *testing.T) {
	p := random(4096 + 100)
	want := Sum(p)
	for i := range p {
		p[i] ^= 1 << (i % 8)
		if Sum(p) == want {
			t.Fatalf("a flip in byte %d does not show", i)
		}
		p[i] ^= 1 << (i % 8)
	}
}

func FuzzUpdate(f *testing.F) {
	f.Add(uint32(0), random(1024))
	f.Add(uint32(7), random(1279))
	f.Add(uint32(7), random(3))
	f.Fuzz(func(t *testing.T, sum uint32, p []byte) {
		if got, want := Update(sum, p), crc32.Update(sum, table, p); got != want {
			t.Fatalf("%#x, want %#x", got, want)
		}
	})
}

func TestItAllocatesNothing(t *testing.T) {
	p := random(10_000)
	if n := testing.AllocsPerRun(10, func() { Sum(p) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSum(b *testing.B) {
	p := random(256 << 10)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		Sum(p)
	}
}

func BenchmarkStandardLibrary(b *testing.B) {
	p := random(256 << 10)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		crc32.Checksum(p, table)
	}
}
