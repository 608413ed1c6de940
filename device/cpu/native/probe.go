package native

import (
	"math"
	"math/rand/v2"
	"sync"
	"time"
	"unsafe"
)

// Rates are what one core multiplies and adds in registers, in GF/s (10⁹ flop a second,
// a multiply-add being two); 0 where it has no such instructions, or they are emulated.
type Rates struct {
	AVX2       float64 `json:"avx2"`       // f32, by vectors of 8
	AVX512     float64 `json:"avx512"`     // f32, by vectors of 16
	AVX512BF16 float64 `json:"avx512Bf16"` // pairs of bf16
	AMXBF16    float64 `json:"amxBf16"`    // tiles of bf16, loaded from L1
}

// Probe measures once, for a few milliseconds, and for longer where that does not tell
// which of two instruction sets is the faster one: a neighbour on the same core may take
// half of it for a while.
var Probe = sync.OnceValue(func() Rates {
	r := Measure(3 * time.Millisecond)
	for range 5 {
		if ratio := r.AVX512BF16 / r.AVX512; !(ratio > 0.75 && ratio < 1.75) {
			break
		}
		more := Measure(10 * time.Millisecond)
		r = Rates{max(r.AVX2, more.AVX2), max(r.AVX512, more.AVX512), max(r.AVX512BF16, more.AVX512BF16), max(r.AMXBF16, more.AMXBF16)}
	}
	return r
})

// pairsWin is how much faster pairs must be to be chosen. Processors have them at half the
// rate of f32 (Intel's) or at twice (AMD's): what lies between is noise, and the choice
// must be the same each time, because it is part of a job's bits.
const pairsWin = 1.4

// PairsLose reports that bf16 pairs are no faster here than f32 multiply-adds, as on Intel's
// processors so far, where they have half the rate.
func PairsLose() bool {
	r := Probe()
	return r.AVX512BF16 <= pairsWin*r.AVX512
}

// turnsMin is how often each loop runs at least. One turn that a busy machine has interrupted
// may use up all the time there is, and would be taken for the rate of its instructions.
const turnsMin = 20

// Measure takes about as long as it is told to, and longer where it is interrupted. What it
// measures takes turns, so that none has the core for itself while it clocks higher.
func Measure(d time.Duration) Rates {
	have := Features()
	var r Rates
	var loops []loop
	if have.AVX2 {
		loops = append(loops, loop{&r.AVX2, 192, peakFMA256})
	}
	if have.AVX512 {
		loops = append(loops, loop{&r.AVX512, 512, peakFMA})
	}
	if have.AVX512BF16 {
		loops = append(loops, loop{&r.AVX512BF16, 1024, peakDot})
	}
	if have.AMXBF16 && !have.AMXEmulated {
		loops = append(loops, loop{&r.AMXBF16, 8 * 65536, newTileLoop()})
	}
	for start, turns := time.Now(), 0; turns < turnsMin || time.Since(start) < d; turns++ {
		for _, l := range loops {
			l.turn()
		}
	}
	return r
}

// loop is one of the things that Measure measures.
type loop struct {
	best *float64
	flop float64 // of a round
	run  func(rounds int64)
}

// turn runs for some 50 µs, short enough to fit between two interrupts.
func (l loop) turn() {
	const flop = 1e7
	rounds := int64(flop / l.flop)
	start := time.Now()
	l.run(rounds)
	if s := time.Since(start).Seconds(); s > 0 {
		*l.best = max(*l.best, float64(rounds)*l.flop/s/1e9)
	}
}

func peakFMA(rounds int64) {
	var out [16]float32
	PeakFMA(&PeakFMAArgs{Rounds: rounds, Out: unsafe.Pointer(&out)})
}

func peakFMA256(rounds int64) {
	var out [8]float32
	PeakFMA256(&PeakFMA256Args{Rounds: rounds, Out: unsafe.Pointer(&out)})
}

func peakDot(rounds int64) {
	var out [16]float32
	PeakDot(&PeakDotArgs{Rounds: rounds, Out: unsafe.Pointer(&out)})
}

func newTileLoop() func(int64) {
	r := rand.New(rand.NewPCG(1, 1))
	data, out := make([]uint16, 16384), make([]float32, 1024)
	for i := range data {
		data[i] = uint16(math.Float32bits(r.Float32()*2-1) >> 16)
	}
	return func(rounds int64) {
		PeakTiles(&PeakTilesArgs{Data: unsafe.Pointer(&data[0]), Out: unsafe.Pointer(&out[0]), Rounds: rounds})
	}
}

// PairsRound reports whether VDPBF16PS rounds here as its description says, which the bits
// of numeric class avx512-bf16 rest on: the second product of a pair is added first, each sum is
// rounded to nearest even, subnormals are zero going in and coming out.
var PairsRound = sync.OnceValue(func() bool {
	r := rand.New(rand.NewPCG(16, 2))
	for range 64 {
		var sums, out [16]float32
		var a, b [32]uint16
		for i := range sums {
			sums[i] = float32(math.Ldexp(r.NormFloat64(), r.IntN(24)-12))
			if r.IntN(8) == 0 {
				sums[i] = math.Float32frombits(r.Uint32() & 0x807fffff)
			}
		}
		for i := range a {
			a[i] = uint16(math.Float32bits(float32(math.Ldexp(r.NormFloat64(), r.IntN(12)-6))) >> 16)
			b[i] = uint16(math.Float32bits(float32(r.NormFloat64())) >> 16)
			if r.IntN(8) == 0 {
				a[i] = uint16(r.Uint32() & 0x807f)
			}
		}
		PairSums(&PairSumsArgs{
			Sums: unsafe.Pointer(&sums), A: unsafe.Pointer(&a), B: unsafe.Pointer(&b), Out: unsafe.Pointer(&out),
		})
		for i, s := range sums {
			s = pairSum(s, a[2*i+1], b[2*i+1])
			s = pairSum(s, a[2*i], b[2*i])
			if math.Float32bits(s) != math.Float32bits(out[i]) {
				return false
			}
		}
	}
	return true
})

// pairSum is s + a·b as VDPBF16PS adds one product of a pair. The product of two bf16 is exact
// in f32 unless it is tiny, and then so is its share of the sum.
func pairSum(s float32, a, b uint16) float32 {
	product := float32(flushed(math.Float32frombits(uint32(a)<<16)) * flushed(math.Float32frombits(uint32(b)<<16)))
	return flushed(flushed(s) + product)
}

// flushed is zero of x's sign where x is subnormal.
func flushed(x float32) float32 {
	if bits := math.Float32bits(x); bits&0x7f800000 == 0 {
		return math.Float32frombits(bits & 0x80000000)
	}
	return x
}
