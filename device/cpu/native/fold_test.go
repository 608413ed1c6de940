package native

import (
	"encoding/binary"
	"math"
	"testing"
	"unsafe"
)

func TestFoldsGiveTheBitsOfPlainGo(t *testing.T) {
	defer func(saved func() ISA) { best = saved }(best)
	for isa, has := range map[ISA]bool{AVX512: Features().AVX512, AVX2: Features().AVX2} {
		t.Run([]string{"avx512", "avx2"}[isa], func(t *testing.T) {
			if !has {
				t.Skip("SKIPPED: this machine lacks it")
			}
			best = func() ISA { return isa }
			checkFolds(t)
		})
	}
}

func checkFolds(t *testing.T) {
	rng := newRand(9)
	for _, n := range append(widths, callElements+7) {
		bytes := func(size int) []byte { // at an odd address; one byte more and memory ends
			return unsafe.Slice((*byte)(guarded(t, n*size+1)), n*size)
		}
		a, b, dst, narrow, sent, last := bytes(4), bytes(4), bytes(4), bytes(2), bytes(2), bytes(4)
		for i := range n {
			binary.LittleEndian.PutUint32(a[4*i:], math.Float32bits(anyBits(rng)))
			binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(float32(rng.NormFloat64())))
		}
		FoldAdd(dst, a, b)
		FoldRound(narrow, a)
		FoldAddRound(sent, narrow, b)
		FoldAddLast(last, narrow, b)
		for i := range n {
			x, y := get32(a, i), get32(b, i)
			if !sameFloat(get32(dst, i), x+y) {
				t.Fatalf("%v + %v = %v", x, y, get32(dst, i))
			}
			r := roundBF16(x)
			if got := binary.LittleEndian.Uint16(narrow[2*i:]); got != r {
				t.Fatalf("%v rounds to %04x, want %04x", x, got, r)
			}
			received := math.Float32frombits(uint32(r) << 16)
			if got := binary.LittleEndian.Uint16(sent[2*i:]); got != roundBF16(received+y) {
				t.Fatalf("%v + %v is sent as %04x", received, y, got)
			}
			if !sameFloat(get32(last, i), received+y) {
				t.Fatalf("%v + %v ends as %v", received, y, get32(last, i))
			}
		}
	}
}

func get32(b []byte, i int) float32 {
	return math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
}

func TestFoldsRefuseOtherLengths(t *testing.T) {
	for name, f := range map[string]func(){
		"add":   func() { FoldAdd(make([]byte, 8), make([]byte, 8), make([]byte, 4)) },
		"odd":   func() { FoldAdd(make([]byte, 6), make([]byte, 6), make([]byte, 6)) },
		"round": func() { FoldRound(make([]byte, 8), make([]byte, 8)) },
		"sent":  func() { FoldAddRound(make([]byte, 4), make([]byte, 4), make([]byte, 4)) },
		"last":  func() { FoldAddLast(make([]byte, 8), make([]byte, 8), make([]byte, 8)) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: taken", name)
				}
			}()
			f()
		}()
	}
}
