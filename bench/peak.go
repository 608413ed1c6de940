package bench

import (
	"encoding/binary"
	"math"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/native"
)

// Peak is what the machine can do with the given threads, in loops that do nothing else.
// What it lacks or what could not be measured is 0.
type Peak struct {
	Threads     int     `json:"threads"`
	F32Flops    float64 `json:"f32Flops"`    // multiply-adds of f32 in registers, flop a second
	PairFlops   float64 `json:"pairFlops"`   // products of bf16 pairs in registers
	TileFlops   float64 `json:"tileFlops"`   // products of bf16 tiles loaded from L1
	StreamBytes float64 `json:"streamBytes"` // bytes a second, read from memory that is in no cache
}

// Limit is the flop a second that products of a path in a precision are put beside: those
// of the fastest instructions that the path may use. A path of precision high needs three
// products for one.
func (p Peak) Limit(path string, dt device.DType) float64 {
	base, high := strings.CutSuffix(path, "-high")
	bf16 := max(p.F32Flops, p.PairFlops)
	if base == "amx-bf16" {
		bf16 = p.TileFlops
	}
	switch {
	case high:
		return max(p.F32Flops, bf16/3)
	case dt == device.BF16:
		return bf16
	}
	return p.F32Flops
}

// The lengths of the loops. A round is short, since the machine may be somebody else's for
// a moment, and the best one counts.
const (
	peakRounds  = 24
	roundFlop   = 1 << 27  // of vectors, for each thread
	roundTiles  = 1 << 30  // of tiles
	streamBytes = 64 << 20 // for each thread, far more than a core's share of any cache
	streams     = 8        // that a thread reads at once: one alone does not keep memory busy
)

// MeasurePeak measures with dev's memory; it takes about a second.
func MeasurePeak(dev device.Device, threads int) (Peak, error) {
	p := Peak{Threads: threads}
	have := native.Features()
	if have.AVX512 {
		p.F32Flops = fastest(threads, roundFlop, func(int) {
			var out [16]float32
			native.PeakFMA(&native.PeakFMAArgs{Rounds: roundFlop / 512, Out: unsafe.Pointer(&out)})
		})
	}
	if have.AVX512BF16 {
		p.PairFlops = fastest(threads, roundFlop, func(int) {
			var out [16]float32
			native.PeakDot(&native.PeakDotArgs{Rounds: roundFlop / 1024, Out: unsafe.Pointer(&out)})
		})
	}
	if have.AMXBF16 && !have.AMXEmulated {
		operands := tileOperands()
		p.TileFlops = fastest(threads, roundTiles, func(int) {
			var out [1024]float32
			native.PeakTiles(&native.PeakTilesArgs{Data: unsafe.Pointer(&operands[0]), Out: unsafe.Pointer(&out), Rounds: roundTiles / (8 * 65536)})
		})
	}
	var err error
	p.StreamBytes, err = stream(dev, threads)
	return p, err
}

// tileOperands are random numbers in ±1: zeros would flatter the tiles by a fifth.
func tileOperands() []uint16 {
	data := make([]uint16, 16384)
	for i := range data {
		data[i] = uint16(math.Float32bits(float32(2*unit(uint64(i))-1)) >> 16)
	}
	return data
}

// stream is how fast all threads together read memory, 0 where the host cannot see dev's.
func stream(dev device.Device, threads int) (float64, error) {
	host, ok := dev.(device.HostAddressable)
	if !ok {
		return 0, nil
	}
	buf, err := dev.Alloc(int64(threads)*streamBytes, device.KindWorkspace)
	if err != nil {
		return 0, err
	}
	defer dev.Free(buf)
	memory := host.Host(buf)
	for i := range memory { // written once: pages that nobody wrote to are one page of zeros
		memory[i] = byte(i)
	}
	sums := make([]uint64, threads)
	return fastest(threads, streamBytes, func(i int) {
		sums[i] = read(memory[i*streamBytes : (i+1)*streamBytes])
	}), nil
}

// fastest runs one loop a thread, all at once, and gives the best total rate of work, which
// is what one loop does.
func fastest(threads int, work float64, loop func(thread int)) float64 {
	var rate float64
	for range peakRounds {
		var done sync.WaitGroup
		began := time.Now()
		for i := range threads {
			done.Go(func() { loop(i) })
		}
		done.Wait()
		rate = max(rate, float64(threads)*work/time.Since(began).Seconds())
	}
	return rate
}

// read adds up memory in several streams, 64 bytes of each in turn.
func read(b []byte) uint64 {
	var sum [streams]uint64
	n := len(b) / streams
	for off := 0; off < n; off += 64 {
		for s := range streams {
			line := b[s*n+off:][:64:64]
			sum[s] += binary.LittleEndian.Uint64(line) + binary.LittleEndian.Uint64(line[8:]) + binary.LittleEndian.Uint64(line[16:]) +
				binary.LittleEndian.Uint64(line[24:]) + binary.LittleEndian.Uint64(line[32:]) + binary.LittleEndian.Uint64(line[40:]) +
				binary.LittleEndian.Uint64(line[48:]) + binary.LittleEndian.Uint64(line[56:])
		}
	}
	var total uint64
	for _, x := range sum {
		total += x
	}
	return total
}
