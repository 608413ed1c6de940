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

// Probe measures once, for as long as it takes to tell which instructions are the faster ones.
func Probe() Rates { return probe().rates }

// PairsLose reports that bf16 pairs are no faster here than f32 multiply-adds, as on Intel's
// processors so far, where they have half the rate.
func PairsLose() bool { return !probe().pairsWin }

var probe = sync.OnceValue(func() verdict {
	return settle(func() Rates { return Measure(3 * time.Millisecond) })
})

// verdict is what looks at a machine come to.
type verdict struct {
	rates    Rates // the best of each
	pairsWin bool
}

// Processors have bf16 pairs at half the rate of f32 (Intel's) or at twice (AMD's). Nearer to
// even than these is noise, and so is AVX-512 that is slower than AVX2.
const (
	pairsLoseBelow = 0.75
	pairsWinAbove  = 1.6
	avx512Slower   = 0.95
	steady         = 1.05 // a rate that rises by less has been reached
	looksMax       = 24
)

// settle looks until the best rates are the machine's own. Which path wins is part of a job's
// bits, so a processor must get the same answer each time, however busy it is: what disturbs a
// look only lowers its rates, so a look counts once neither rate has risen in it. If looks come
// to nothing, f32 it is.
func settle(look func() Rates) verdict {
	best := look()
	for range looksMax {
		last := best
		more := look()
		best = Rates{max(best.AVX2, more.AVX2), max(best.AVX512, more.AVX512), max(best.AVX512BF16, more.AVX512BF16), max(best.AMXBF16, more.AMXBF16)}
		if best.AVX512BF16 == 0 {
			break
		}
		reached := best.AVX512 < steady*last.AVX512 && best.AVX512BF16 < steady*last.AVX512BF16 && best.AVX512 > avx512Slower*best.AVX2
		ratio := best.AVX512BF16 / best.AVX512
		if reached && (ratio < pairsLoseBelow || ratio > pairsWinAbove) {
			return verdict{best, ratio > pairsWinAbove}
		}
	}
	return verdict{best, false}
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
