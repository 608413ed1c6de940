package native

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// formEnv names the form of the kernels that tests look at, avx2 instead of avx512.
const formEnv = "SKEIN_TEST_NATIVE"

// avx512 is the table under test: of AVX-512, unless formEnv says otherwise.
func avx512(t testing.TB) kernel.Table {
	t.Helper()
	switch form := os.Getenv(formEnv); {
	case form == "avx2" && Features().AVX2:
		return Table("avx2")
	case form == "" && Features().AVX512:
		return Table("avx512")
	}
	t.Skip("SKIPPED: no AVX-512, or AVX2, on this machine")
	return kernel.Table{}
}

// The tests of every entry are for AVX-512; here they run again, in a process of their own, on
// the forms for AVX2.
func TestTheFormsForAVX2PassTheSameTests(t *testing.T) {
	if !Features().AVX2 || os.Getenv(formEnv) != "" {
		t.Skip("SKIPPED: no AVX2 on this machine, or it is the other process")
	}
	again := exec.Command(os.Args[0], "-test.short", "-test.v")
	again.Env = append(os.Environ(), formEnv+"=avx2")
	if out, err := again.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: TestAttention")) {
		t.Errorf("%v\n%s", err, out)
	}
}

var floatTypes = []device.DType{device.F32, device.BF16}

// matrix is test memory: rows of ld elements whose first cols count. What lies between and
// before is NaN, which no kernel may let through or overwrite; behind it memory ends.
type matrix struct {
	dt             device.DType
	rows, cols, ld int
	mem            []uint32 // backing, of which the matrix begins at byte off
	off            int
}

func newMatrix(t testing.TB, dt device.DType, rows, cols, gap int) *matrix {
	m := &matrix{dt: dt, rows: rows, cols: cols, ld: cols + gap}
	size := ((rows-1)*m.ld + cols) * int(dt.Size())
	words := 9 + (size+3)/4
	m.mem, m.off = unsafe.Slice((*uint32)(guarded(t, 4*words)), words), 4*words-size
	for i := range m.mem {
		m.mem[i] = 0x7fc07fc0 // NaN, and two BF16 NaNs
	}
	return m
}

func randomMatrix(t testing.TB, rng *rand.Rand, dt device.DType, rows, cols, gap int, scale float64) *matrix {
	m := newMatrix(t, dt, rows, cols, gap)
	for r := range rows {
		for c := range cols {
			m.set(r, c, float32(rng.NormFloat64()*scale))
		}
	}
	return m
}

func (m *matrix) p() unsafe.Pointer { return unsafe.Add(unsafe.Pointer(&m.mem[0]), m.off) }

//go:norace
func (m *matrix) at(r, c int) unsafe.Pointer {
	return unsafe.Add(m.p(), (r*m.ld+c)*int(m.dt.Size()))
}

//go:norace
func (m *matrix) get(r, c int) float32 {
	if m.dt == device.BF16 {
		return math.Float32frombits(uint32(*(*uint16)(m.at(r, c))) << 16)
	}
	return *(*float32)(m.at(r, c))
}

func (m *matrix) f64(r, c int) float64 { return float64(m.get(r, c)) }

//go:norace
func (m *matrix) set(r, c int, x float32) {
	if m.dt == device.BF16 {
		*(*uint16)(m.at(r, c)) = roundBF16(x)
		return
	}
	*(*float32)(m.at(r, c)) = x
}

func (m *matrix) clone() *matrix {
	c := *m
	c.mem = append([]uint32(nil), m.mem...)
	return &c
}

// checkGaps fails if anything outside the matrix was written.
func (m *matrix) checkGaps(t *testing.T, name string) {
	t.Helper()
	probe := m.clone()
	for r := range m.rows {
		for c := range m.cols {
			probe.set(r, c, float32(math.NaN()))
			if m.dt == device.BF16 {
				*(*uint16)(probe.at(r, c)) = 0x7fc0
			} else {
				*(*uint32)(probe.at(r, c)) = 0x7fc07fc0
			}
		}
	}
	for i, w := range probe.mem {
		if w != 0x7fc07fc0 {
			t.Fatalf("%s: wrote outside of %dx%d (ld %d, word %d)", name, m.rows, m.cols, m.ld, i)
		}
	}
}

func equalBits(a, b *matrix) bool {
	for r := range a.rows {
		for c := range a.cols {
			if math.Float32bits(a.get(r, c)) != math.Float32bits(b.get(r, c)) {
				return false
			}
		}
	}
	return true
}

func roundBF16(x float32) uint16 {
	u := math.Float32bits(x)
	if u&0x7fffffff > 0x7f800000 {
		return uint16(u>>16) | 0x40
	}
	return uint16((u + 0x7fff + u>>16&1) >> 16)
}

func roundTo(dt device.DType, x float32) float32 {
	if dt == device.BF16 {
		return math.Float32frombits(uint32(roundBF16(x)) << 16)
	}
	return x
}

// near holds got to a tolerance that is relative to scale, plus the rounding of dt.
func near(dt device.DType, got float32, want, scale, tolerance float64) bool {
	if dt == device.BF16 {
		tolerance += 1.0 / 256
	}
	return math.Abs(float64(got)-want) <= tolerance*max(scale, math.Abs(want))
}

// expect compares every element; inputs are about 1, so that 0.1 counts as small.
func expect(t *testing.T, m *matrix, name string, tolerance float64, want func(r, c int) float64) {
	t.Helper()
	scale := 0.1
	for r := range m.rows {
		for c := range m.cols {
			scale = max(scale, math.Abs(want(r, c)))
		}
	}
	for r := range m.rows {
		for c := range m.cols {
			if w := want(r, c); !near(m.dt, m.get(r, c), w, scale, tolerance) {
				t.Fatalf("%s [%d, %d] = %v, want %v (scale %v)", name, r, c, m.get(r, c), w, scale)
			}
		}
	}
	m.checkGaps(t, name)
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x5e1f)) }

// widths have every kind of tail: none, less than a vector, and of several vectors.
var widths = []int{1, 3, 15, 16, 17, 31, 48, 63, 64, 65, 100, 127, 192, 576, 577}

func eachType(t *testing.T, f func(t *testing.T, dt device.DType)) {
	for _, dt := range floatTypes {
		t.Run(dt.String(), func(t *testing.T) { f(t, dt) })
	}
}

func TestTableIsEmptyForOtherPaths(t *testing.T) {
	if table := Table("generic"); table.SqNorm != nil || table.Add[0] != nil {
		t.Error("the generic path has native entries")
	}
}

func TestEntriesAllocateNothing(t *testing.T) {
	table := avx512(t)
	m := newMatrix(t, device.F32, 4, 64, 0)
	scratch := newScratch(t, table)
	attn := kernel.Attention{O: m.p(), LSE: m.p(), Q: m.p(), K: m.p(), V: m.p(), LdO: 64, LdLSE: 4, LdQ: 64, LdK: 64, LdV: 64,
		Heads: 1, KVHeads: 1, HeadDim: 64, Scale: 1}
	adam := kernel.AdamW{Master: m.p(), M: m.p(), V: m.p(), Grad: m.p()}
	if n := testing.AllocsPerRun(10, func() {
		table.Add[0](m.p(), m.p(), m.p(), 64)
		table.SqNorm(m.p(), 64)
		table.AdamW[0](&adam, 0, 64)
		table.Attention[0](&attn, kernel.Tile{End: 4, Hi: 4, Heads: 1}, scratch)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// newScratch is a worker's scratch memory, full of NaN, as garbage may be.
func newScratch(t testing.TB, table kernel.Table) unsafe.Pointer {
	return garbage(t, int(table.Scratch/4))
}

// garbage is n floats of NaN that start on a cache line, and end with memory if n fills lines.
func garbage(t testing.TB, n int) unsafe.Pointer {
	n = (n + 15) &^ 15
	p := guarded(t, 4*n)
	for i, mem := 0, unsafe.Slice((*uint32)(p), n); i < n; i++ {
		mem[i] = 0x7fc00000
	}
	return p
}

func name(parts ...any) string { return fmt.Sprint(parts...) }
