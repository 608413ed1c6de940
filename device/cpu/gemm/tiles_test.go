package gemm

import (
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/amxemu/tile"
	"github.com/skein-ml/skein/device/cpu/kernel"
	"github.com/skein-ml/skein/device/cpu/native"
)

// The model of package tile is Intel's description, to the bit. Hardware must be within the
// rounding of its sums; whether it is equal to the bit is logged.
func TestTileProductsFollowTheManual(t *testing.T) {
	if !native.Features().AMXBF16 {
		t.Skip("SKIPPED: no AMX here; device/cpu/amxemu runs this test under emulation")
	}
	t.Run("amx-bf16", func(t *testing.T) {
		h := newHost(t, "amx-bf16", 1)
		const m, n, k = 37, 35, 100
		r := rand.New(rand.NewPCG(8, 8))
		data := func(int, int) float32 { // some subnormals among values of many sizes
			if r.IntN(50) == 0 {
				return math.Float32frombits(uint32(r.IntN(128)) << 16)
			}
			return float32(r.NormFloat64() * math.Pow(2, float64(r.IntN(20)-10)))
		}
		x, src := newMat(t, device.BF16, m, k, data), newMat(t, device.BF16, n, k, data)
		y := newMat(t, device.F32, m, n, zeros)
		h.linear(y, x, h.weight(src, device.FormForward), kernel.Matrix{}, kernel.Matrix{})
		differ := 0
		for i := range m {
			for j := range n {
				want, size := byManual(x, src, i, j, k)
				got := y.get(i, j)
				if math.Abs(float64(got-want)) > 1e-6*size {
					t.Fatalf("(%d, %d): got %v, the manual gives %v", i, j, got, want)
				}
				if math.Float32bits(got) != math.Float32bits(want) {
					differ++
				}
			}
		}
		if quick() && differ > 0 {
			t.Errorf("%d of %d elements differ from the model that emulates", differ, m*n)
		}
		t.Logf("%d of %d elements differ from the manual's order of additions", differ, m*n)
	})
}

// byManual is row i of x times row j of w by tiles of one row and one column.
func byManual(x, w mat, i, j, k int) (sum float32, size float64) {
	var s tile.State
	mem := &words{}
	mem.config[0] = 1
	for q, shape := range [3][2]byte{{1, 4}, {1, 64}, {16, 4}} { // dst, a, b: rows and bytes
		mem.config[48+q], mem.config[16+2*q] = shape[0], shape[1]
	}
	check := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	check(s.Run(tile.Instruction{Op: tile.LDTILECFG}, configAddr, 0, mem))
	check(s.Run(tile.Instruction{Op: tile.TILEZERO, Dst: 0}, 0, 0, mem))
	for l := 0; l < k; l += 32 {
		clear(mem.a[:])
		clear(mem.b[:])
		for q := l; q < min(k, l+32); q++ {
			mem.a[q-l], mem.b[q-l] = toBF16(x.get(i, q)), toBF16(w.get(j, q))
			size += math.Abs(float64(x.get(i, q)) * float64(w.get(j, q)))
		}
		check(s.Run(tile.Instruction{Op: tile.TILELOADD, Dst: 1}, aAddr, 64, mem))
		check(s.Run(tile.Instruction{Op: tile.TILELOADD, Dst: 2}, bAddr, 4, mem))
		check(s.Run(tile.Instruction{Op: tile.TDPBF16PS, Dst: 0, Src1: 1, Src2: 2}, 0, 0, mem))
	}
	check(s.Run(tile.Instruction{Op: tile.TILESTORED, Dst: 0}, cAddr, 4, mem))
	return mem.c, size
}

// words is a memory of a configuration, two operands and a result.
type words struct {
	config [64]byte
	a, b   [32]uint16
	c      float32
}

const (
	configAddr = 0
	aAddr      = 64
	bAddr      = 128
	cAddr      = 192
)

func (w *words) Read(addr uint64, stride int64, rows [][]byte) error {
	all := unsafe.Slice((*byte)(unsafe.Pointer(w)), unsafe.Sizeof(*w))
	for i, r := range rows {
		copy(r, all[addr+uint64(stride)*uint64(i):])
	}
	return nil
}

func (w *words) Write(addr uint64, stride int64, rows [][]byte) error {
	all := unsafe.Slice((*byte)(unsafe.Pointer(w)), unsafe.Sizeof(*w))
	for i, r := range rows {
		copy(all[addr+uint64(stride)*uint64(i):], r)
	}
	return nil
}
