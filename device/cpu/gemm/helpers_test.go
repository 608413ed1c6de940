package gemm

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
	"github.com/skein-ml/skein/device/cpu/native"
	"github.com/skein-ml/skein/internal/fence"
)

// testPool is a Pool of n goroutines per call.
type testPool int

func (p testPool) Workers() int { return int(p) }

func (p testPool) Run(n int, t kernel.Task) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for w := range int(p) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				t.Piece(int(i), w)
			}
		})
	}
	wg.Wait()
}

// testPaths are the paths that this machine can run; others are skipped by name.
func testPaths(t testing.TB) []string {
	var list []string
	for _, e := range engines {
		path := e.path
		if _, err := New(path); err != nil {
			t.Logf("SKIPPED: %v", err)
		} else {
			list = append(list, path)
		}
	}
	if len(list) == 0 {
		t.Skip("SKIPPED: no path of this package runs on this machine")
	}
	return list
}

// high reports whether a path makes f32 products of bf16 halves.
func high(path string) bool { return strings.HasSuffix(path, HighSuffix) }

// quick shrinks shapes where tile instructions are emulated, about 40 µs each.
func quick() bool { return native.Features().AMXEmulated }

// long reports whether the environment asks for the long form of a test.
func long() bool { return os.Getenv("SKEIN_TEST_LONG") != "" }

// guarded returns n bytes that end where memory ends.
func guarded(t testing.TB, n int) []byte {
	t.Helper()
	whole, used, err := fence.Map(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(whole) })
	return used
}

// mat is a matrix of test data: guard elements before each row catch writes out of bounds,
// and behind the last one memory ends.
type mat struct {
	kernel.Matrix
	mem   []byte
	guard float32
}

const guardCols = 3

func newMat(t testing.TB, dt device.DType, rows, cols int, f func(r, c int) float32) mat {
	size, ld := int(dt.Size()), cols+guardCols
	m := mat{mem: guarded(t, (rows*ld+ld-guardCols)*size), guard: 7}
	m.Matrix = kernel.Matrix{DT: dt, Rows: rows, Cols: cols, Ld: ld}
	m.P = m.at(0, 0)
	for r := range rows {
		for c := range cols {
			m.set(r, c, f(r, c))
		}
	}
	m.fillGuards(m.guard)
	return m
}

// guards calls f for every guard element: row −1, and what stands between rows.
func (m mat) guards(f func(r, c int)) {
	for r := -1; r < m.Rows; r++ {
		for c := range m.Ld {
			if r < 0 || c >= m.Cols && r < m.Rows-1 {
				f(r, c)
			}
		}
	}
}

// fillGuards puts x around the matrix.
func (m *mat) fillGuards(x float32) {
	m.guard = x
	m.guards(func(r, c int) { m.set(r, c, x) })
}

func (m mat) at(r, c int) unsafe.Pointer {
	return unsafe.Pointer(&m.mem[((r+1)*m.Ld+c)*int(m.DT.Size())])
}

func (m mat) set(r, c int, x float32) {
	if m.DT == device.BF16 {
		*(*uint16)(m.at(r, c)) = toBF16(x)
	} else {
		*(*float32)(m.at(r, c)) = x
	}
}

func (m mat) get(r, c int) float32 {
	if m.DT == device.BF16 {
		return fromBF16(*(*uint16)(m.at(r, c)))
	}
	return *(*float32)(m.at(r, c))
}

func (m mat) checkGuards(t *testing.T, what string) {
	t.Helper()
	m.guards(func(r, c int) {
		if m.get(r, c) != m.guard {
			t.Fatalf("%s: wrote outside of the output at row %d, column %d", what, r, c)
		}
	})
}

func (m mat) equalBits(o mat) error {
	for r := range m.Rows {
		for c := range m.Cols {
			a, b := m.get(r, c), o.get(r, c)
			if math.Float32bits(a) != math.Float32bits(b) {
				return fmt.Errorf("(%d, %d): %v (%08x) and %v (%08x)", r, c, a, math.Float32bits(a), b, math.Float32bits(b))
			}
		}
	}
	return nil
}

func toBF16(x float32) uint16 {
	u := math.Float32bits(x)
	if x != x {
		return uint16(u>>16) | 0x40
	}
	return uint16((u + 0x7fff + u>>16&1) >> 16)
}

func fromBF16(b uint16) float32 { return math.Float32frombits(uint32(b) << 16) }

func zeros(int, int) float32 { return 0 }

// integers are small enough for every sum to be exact.
func integers(r *rand.Rand) func(int, int) float32 {
	return func(int, int) float32 { return float32(r.IntN(7) - 3) }
}

func normals(r *rand.Rand) func(int, int) float32 {
	return func(int, int) float32 { return float32(r.NormFloat64()) }
}

// host is a path with workers and workspace, as the device would hold it.
type host struct {
	t    testing.TB
	g    *Products
	pool testPool
}

func newHost(t testing.TB, path string, workers int) host {
	g, err := New(path)
	if err != nil {
		t.Fatal(err)
	}
	return host{t, g, testPool(workers)}
}

// workspace is full of NaN and has what Need asks for but for eight bytes: it begins that far behind a
// cache line, so that of the 64 for alignment 56 are lost and nothing is left at its end, which is that
// of memory.
func (h host) workspace(op device.Op, sh device.Shape) []byte {
	b := guarded(h.t, int(h.g.Need(op, sh, int(h.pool)))-8)
	for i := range b {
		b[i] = 0xff
	}
	return b
}

// weight packs w [out, in], whole or in the stretches that cuts separate.
func (h host) weight(w mat, forms device.Forms, cuts ...int) *kernel.Weight {
	k := &kernel.Weight{Out: w.Rows, In: w.Cols, DT: w.DT, Forms: forms, Src: w.Matrix,
		Mem: guarded(h.t, int(h.g.PackedBytes(w.Rows, w.Cols, w.DT, forms)))} // whole cache lines
	first := 0
	for _, end := range append(cuts, w.Rows) {
		h.g.Pack(h.pool, k, first, end)
		first = end
	}
	return k
}

func (h host) linear(y, x mat, w *kernel.Weight, bias, add kernel.Matrix) {
	h.g.Linear(h.pool, y.Matrix, x.Matrix, w, bias, add,
		h.workspace(device.OpLinear, device.Shape{Rows: x.Rows, Seq: x.Rows, In: w.In, Out: w.Out, DT: w.DT}))
}

func (h host) linearDX(dx, dy mat, w *kernel.Weight, add kernel.Matrix) {
	h.g.LinearDX(h.pool, dx.Matrix, dy.Matrix, w, add,
		h.workspace(device.OpLinearDX, device.Shape{Rows: dy.Rows, Seq: dy.Rows, In: w.In, Out: w.Out, DT: w.DT}))
}

func (h host) linearDW(dw, dy, x mat, seq int) {
	h.g.LinearDW(h.pool, dw.Matrix, dy.Matrix, x.Matrix, seq,
		h.workspace(device.OpLinearDW, device.Shape{Rows: x.Rows, Seq: seq, In: x.Cols, Out: dy.Cols, DT: x.DT}))
}
