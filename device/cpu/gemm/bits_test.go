package gemm

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// classBits is what the products of paths avx2 and avx512 give for fixed data. Multiply-adds are the same
// on every machine, so a change here is a change of the numeric class: raise its revision
// in device/cpu/path.go, together with this.
const classBits = "d4c9f52454ffe110"

func TestBitsOfTheClassStayAsTheyWere(t *testing.T) {
	for _, path := range testPaths(t) {
		if path == "avx2" || path == "avx512" {
			t.Run(path, func(t *testing.T) { checkBits(t, path) })
		}
	}
}

func checkBits(t *testing.T, path string) {
	sum := sha256.New()
	add := func(m mat) {
		for r := range m.Rows {
			for c := range m.Cols {
				_ = binary.Write(sum, binary.LittleEndian, math.Float32bits(m.get(r, c)))
			}
		}
	}
	for _, dt := range types {
		for _, s := range []shape{{40, 70, 1100}, {30, 1100, 50}, {600, 33, 35}} {
			r := rand.New(rand.NewPCG(10, uint64(s.m)))
			h := newHost(t, path, 2)
			x, dy, src := newMat(t, dt, s.m, s.k, normals(r)), newMat(t, dt, s.m, s.n, normals(r)), newMat(t, dt, s.n, s.k, normals(r))
			bias, more := newMat(t, device.F32, 1, s.n, normals(r)), newMat(t, dt, s.m, s.n, normals(r))
			w := h.weight(src, device.FormForward|device.FormDX)
			y, dx, dw := newMat(t, dt, s.m, s.n, zeros), newMat(t, dt, s.m, s.k, zeros), newMat(t, device.F32, s.n, s.k, zeros)
			h.linear(y, x, w, bias.Matrix, more.Matrix)
			h.linearDX(dx, dy, w, kernel.Matrix{})
			h.linearDW(dw, dy, x, s.m)
			add(y)
			add(dx)
			add(dw)
		}
	}
	if got := hex.EncodeToString(sum.Sum(nil))[:16]; got != classBits {
		t.Errorf("bits are %s, were %s: if that is wanted, raise the revision of the class", got, classBits)
	}
}
