package bench

import (
	"encoding/binary"
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
	F32Flops    float64 `json:"f32Flops"`    // multiply-adds in registers, flop a second
	StreamBytes float64 `json:"streamBytes"` // bytes a second, of memory that is in no cache
}

// Flops is the limit beside which products are put.
func (p Peak) Flops() float64 { return p.F32Flops }

// The lengths of the loops. A round is short, since the machine may be somebody else's for
// a moment, and the best one counts.
const (
	peakRounds  = 24
	fmaRounds   = 1 << 18
	fmaFlop     = 512
	streamBytes = 64 << 20 // for each thread, far more than a core's share of any cache
	streams     = 8        // that a thread reads at once: one alone does not keep memory busy
)

// MeasurePeak measures with dev's memory; it takes about a second.
func MeasurePeak(dev device.Device, threads int) (Peak, error) {
	p := Peak{Threads: threads}
	if native.Features().AVX512 {
		p.F32Flops = fastest(threads, fmaRounds*fmaFlop, func(int) {
			var out [16]float32
			native.PeakFMA(&native.PeakFMAArgs{Rounds: fmaRounds, Out: unsafe.Pointer(&out)})
		})
	}
	host, ok := dev.(device.HostAddressable)
	if !ok {
		return p, nil
	}
	buf, err := dev.Alloc(int64(threads)*streamBytes, device.KindWorkspace)
	if err != nil {
		return p, err
	}
	defer dev.Free(buf)
	memory := host.Host(buf)
	for i := range memory { // written once: pages that nobody wrote to are one page of zeros
		memory[i] = byte(i)
	}
	sums := make([]uint64, threads)
	p.StreamBytes = fastest(threads, streamBytes, func(i int) {
		sums[i] = read(memory[i*streamBytes : (i+1)*streamBytes])
	})
	return p, nil
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
