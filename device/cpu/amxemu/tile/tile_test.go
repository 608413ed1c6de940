package tile

import (
	"encoding/hex"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"testing"
)

var lineRE = regexp.MustCompile(`(?m)^\t(BYTE .*) // [0-9a-f]{4} (\S+) ?(.*)$`)

// Every line of the generated kernels says in a comment what its bytes are.
func TestDecodingAgreesWithTheDisassembler(t *testing.T) {
	src, err := os.ReadFile("../../native/amx_amd64.s")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, m := range lineRE.FindAllStringSubmatch(string(src), -1) {
		code, err := hex.DecodeString(strings.NewReplacer("BYTE $0x", "", "; ", "").Replace(m[1]))
		if err != nil {
			t.Fatal(err)
		}
		in, ok := Decode(append(code, make([]byte, 8)...))
		isTile := strings.HasPrefix(m[2], "tile") || strings.HasPrefix(m[2], "tdp") || strings.HasSuffix(m[2], "tilecfg")
		if ok != isTile {
			t.Errorf("% x is %s: decoded %v", code, m[2], ok)
			continue
		}
		if !ok {
			continue
		}
		found++
		if got := in.Op.String() + " " + operands(in); in.Len != len(code) || strings.TrimSpace(got) != strings.TrimSpace(m[2]+" "+m[3]) {
			t.Errorf("% x: got %q of %d bytes, want %q", code, got, in.Len, m[2]+" "+m[3])
		}
	}
	if found < 20 {
		t.Errorf("only %d tile instructions in the kernels", found)
	}
}

// operands writes them as objdump does.
func operands(in Instruction) string {
	names := strings.Fields("rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15 rip")
	mem := ""
	if in.Base >= 0 {
		mem = names[in.Base]
	}
	if in.Index >= 0 {
		mem += fmt.Sprintf("+%s*%d", names[in.Index], in.Scale)
	}
	if in.Disp > 0 {
		mem += fmt.Sprintf("+%#x", in.Disp)
	} else if in.Disp < 0 {
		mem += fmt.Sprintf("-%#x", -in.Disp)
	}
	switch in.Op {
	case TILERELEASE:
		return ""
	case TILEZERO:
		return fmt.Sprintf("tmm%d", in.Dst)
	case TDPBF16PS:
		return fmt.Sprintf("tmm%d,tmm%d,tmm%d", in.Dst, in.Src1, in.Src2)
	case TILESTORED:
		return fmt.Sprintf("[%s],tmm%d", mem, in.Dst)
	case LDTILECFG, STTILECFG:
		return fmt.Sprintf("[%s]", mem)
	}
	return fmt.Sprintf("tmm%d,[%s]", in.Dst, mem)
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{0xc4, 0xe2, 0x78, 0x49, 0xc0})
	f.Add([]byte{0xc4, 0xe2, 0x7b, 0x4b, 0x84, 0x25, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, code []byte) {
		if in, ok := Decode(code); ok && (in.Len < 5 || in.Len > len(code)) {
			t.Errorf("% x: length %d", code, in.Len)
		}
	})
}

// exact is a·b + c rounded once, by big numbers; only for finite results of normal size.
func exact(a, b, c float32) float32 {
	x := new(big.Float).SetPrec(2000)
	x.Mul(big.NewFloat(float64(a)), new(big.Float).SetPrec(2000).SetFloat64(float64(b)))
	x.Add(x, big.NewFloat(float64(c)))
	r, _ := x.Float32()
	return r
}

func TestMultiplyAddRoundsOnce(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	short := func() float32 { // a BF16
		return math.Float32frombits(uint32(r.IntN(1<<16))&0x87ff<<16 | 0x38<<24)
	}
	for i := range 300_000 {
		a, b := short(), short()
		p := float64(a) * float64(b)
		// Accumulators around the product, and some that make halfway cases.
		c := float32(math.Ldexp(r.NormFloat64()*math.Abs(p), r.IntN(80)-40))
		if i%3 == 0 {
			c = float32(math.Ldexp(p, r.IntN(30)))
		}
		if c != daz(c) || math.Abs(float64(c)) > 1e38 {
			continue
		}
		want := exact(a, b, c)
		if want != daz(want) {
			continue
		}
		if got := fma(float64(a), float64(b), c); math.Float32bits(got) != math.Float32bits(want) && got != want {
			t.Fatalf("%v·%v + %v = %v, want %v", a, b, c, got, want)
		}
	}
}

func TestSpecialValues(t *testing.T) {
	inf, nan := math.Inf(1), math.NaN()
	for _, c := range []struct {
		a, b float64
		c    float32
		want float64
	}{
		{inf, 1, 0, inf}, {inf, 0, 0, nan}, {inf, 1, float32(-inf), nan}, {nan, 1, 0, nan},
		{1e30, 1e30, 0, inf}, {-1e30, 1e30, 0, -inf}, {0x1p-70, 0x1p-70, 0, 0}, {0x1p-63, 0x1p-63, 0, minNormal},
		{0x1p-64, 0x1p-63, 0, 0}, {-0x1p-64, 0x1p-63, 0, math.Copysign(0, -1)},
	} {
		got := float64(fma(c.a, c.b, c.c))
		if math.Float64bits(got) != math.Float64bits(c.want) && !(math.IsNaN(got) && math.IsNaN(c.want)) {
			t.Errorf("%v·%v + %v = %v, want %v", c.a, c.b, c.c, got, c.want)
		}
	}
}

// array is memory that starts at address 0.
type array []byte

func (a array) Read(addr uint64, stride int64, rows [][]byte) error {
	for i, r := range rows {
		copy(r, a[addr+uint64(stride)*uint64(i):])
	}
	return nil
}

func (a array) Write(addr uint64, stride int64, rows [][]byte) error {
	for i, r := range rows {
		copy(a[addr+uint64(stride)*uint64(i):], r)
	}
	return nil
}

// config asks for 8 tiles of rows × 64 bytes.
func config(rows byte) array {
	m := make(array, 4096)
	m[0] = 1
	for i := range 8 {
		m[16+2*i], m[48+i] = 64, rows
	}
	return m
}

func TestUnconfiguredTilesFault(t *testing.T) {
	var s State
	for _, op := range []Op{TILEZERO, TILELOADD, TILESTORED, TDPBF16PS} {
		if err := s.Run(Instruction{Op: op, Dst: 0, Src1: 1, Src2: 2}, 0, 64, config(16)); err == nil {
			t.Errorf("%v ran without a configuration", op)
		}
	}
	if err := s.Run(Instruction{Op: LDTILECFG}, 0, 0, config(16)); err != nil || !s.Configured() {
		t.Fatal(err)
	}
	if err := s.Run(Instruction{Op: TILERELEASE}, 0, 0, nil); err != nil || s.Configured() {
		t.Errorf("release left the configuration: %v", err)
	}
	bad := config(17)
	if err := s.Run(Instruction{Op: LDTILECFG}, 0, 0, bad); err == nil {
		t.Error("17 rows were accepted")
	}
}

func TestShapesThatDoNotFitFault(t *testing.T) {
	var s State
	if err := s.Run(Instruction{Op: LDTILECFG}, 0, 0, config(8)); err != nil {
		t.Fatal(err)
	}
	if err := s.Run(Instruction{Op: TDPBF16PS, Dst: 0, Src1: 1, Src2: 2}, 0, 0, nil); err == nil {
		t.Error("8 rows of 16 pairs times 8 rows of pairs: no fault")
	}
}

// The sums over the two halves of the pairs run apart: with 2²⁴ in an upper half, ones in the
// lower halves survive, which they would not in one sum.
func TestHalvesOfPairsAreSummedApart(t *testing.T) {
	var dst, a, b Tile
	put := func(tl *Tile, row, i int, x float32) {
		u := math.Float32bits(x)
		tl[row][2*i], tl[row][2*i+1] = byte(u>>16), byte(u>>24)
	}
	for l := range 16 {
		put(&a, 0, 2*l, 1)
		put(&b, l, 0, 1)
	}
	put(&a, 0, 1, 4096)
	put(&b, 0, 1, 4096)
	product(&dst, &a, &b, 1, 1, 16)
	if got, want := dst.float(0, 0), float32(1<<24+16); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}
