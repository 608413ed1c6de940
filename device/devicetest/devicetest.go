// Package devicetest is what every device must pass. Operations are compared with
// F64 models written from their definitions, which are themselves held to finite
// differences; and with themselves, bit for bit, under changes that must not matter: row
// ranges, batch splits, memory layout, garbage in workspaces, other documents.
package devicetest

import (
	"bytes"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skein-ml/skein/device"
)

// Tolerance is the largest error of a result, as a part of the result's largest element.
type Tolerance struct {
	F32  float64 // where all operands are F32
	BF16 float64 // where any is BF16
}

// trial is one call of an operation with its operands and what should come out.
type trial struct {
	name  string
	setUp func(r *rig) (call func(), results []result)
}

// result is a tensor that a call writes.
type result struct {
	name  string
	t     device.Tensor
	want  mat
	dt    device.DType // decides the tolerance
	exact bool         // want is right to the bit
}

// Run holds the devices that open makes to the contract of package device.
func Run(t *testing.T, open func() device.Device, tol Tolerance) {
	d := open()
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	t.Run("Operations", func(t *testing.T) {
		for _, c := range trials() {
			t.Run(c.name, func(t *testing.T) { runTrial(t, d, c, tol) })
		}
	})
	t.Run("Invariance", func(t *testing.T) { runInvariance(t, d) })
	t.Run("Rounding", func(t *testing.T) { runRounding(t, d) })
	t.Run("Values", func(t *testing.T) { runValues(t, d) })
	t.Run("Order", func(t *testing.T) { runOrder(t, d) })
	t.Run("Misuse", func(t *testing.T) { runMisuse(t, d, open) })
}

// runTrial compares a trial with its model, and its layouts with each other.
func runTrial(t *testing.T, d device.Device, c trial, tol Tolerance) {
	var first [][]byte
	for _, l := range layouts {
		r := newRig(t, d, l)
		call, results := c.setUp(r)
		call()
		r.wait()
		for i, res := range results {
			bits := r.raw(res.t)
			if len(first) <= i {
				first = append(first, bits)
				compare(t, res, decode(res.t.DT, bits), tol)
			} else if !bytes.Equal(bits, first[i]) {
				t.Errorf("%s depends on the layout of memory or on garbage in it", res.name)
			}
		}
		r.close()
	}
}

func compare(t *testing.T, res result, got []float64, tol Tolerance) {
	t.Helper()
	limit := tol.F32
	if res.dt == device.BF16 || res.t.DT == device.BF16 {
		limit = tol.BF16
	}
	var largest float64
	for _, v := range res.want.v {
		largest = math.Max(largest, math.Abs(v))
	}
	worst, at := 0.0, -1
	for i, want := range res.want.v {
		err := math.Abs(got[i] - want)
		if res.exact {
			want = roundTo(want, res.t.DT)
			if got[i] == want || (got[i] != got[i] && want != want) {
				continue
			}
			t.Errorf("%s: element %d is %g, want exactly %g", res.name, i, got[i], want)
			return
		}
		if err > worst || err != err {
			worst, at = err, i
			if err != err {
				break
			}
		}
	}
	if worst != worst || worst > limit*largest {
		t.Errorf("%s: element %d is %g, want %g: error %.3g of the largest, limit %.3g",
			res.name, at, got[at], res.want.v[at], worst/largest, limit)
	}
}

// Agree demands that all devices give the same bits for everything.
func Agree(t *testing.T, opens ...func() device.Device) {
	var devices []device.Device
	for _, open := range opens {
		d := open()
		defer func() {
			if err := d.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}()
		devices = append(devices, d)
	}
	for _, c := range trials() {
		t.Run(c.name, func(t *testing.T) {
			var first [][]byte
			for n, d := range devices {
				for i, bits := range bitsOf(t, d, c) {
					if n == 0 {
						first = append(first, bits)
					} else if !bytes.Equal(bits, first[i]) {
						t.Errorf("result %d: %s and %s differ", i, devices[0].Info().Name, d.Info().Name)
					}
				}
			}
		})
	}
}

// Stress runs trials on several devices at once, again and again for a time, and demands the
// same bits each time. The caller makes it uncomfortable meanwhile.
func Stress(t *testing.T, devices []device.Device, long time.Duration) {
	var picked []trial
	for i, c := range trials() {
		if i%7 == 0 {
			picked = append(picked, c)
		}
	}
	want := make([][][]byte, len(picked))
	for i, c := range picked {
		want[i] = bitsOf(t, devices[0], c)
	}
	var group sync.WaitGroup
	var runs atomic.Int64
	until := time.Now().Add(long)
	for n, d := range devices {
		group.Go(func() {
			for i := n; time.Now().Before(until) && !t.Failed(); i++ {
				c := picked[i%len(picked)]
				for j, bits := range bitsOf(t, d, c) {
					if !bytes.Equal(bits, want[i%len(picked)][j]) {
						t.Errorf("%s: result %d has other bits", c.name, j)
					}
				}
				runs.Add(1)
			}
		})
	}
	group.Wait()
	if runs.Load() < int64(len(devices)) {
		t.Errorf("%d runs on %d devices", runs.Load(), len(devices))
	}
	t.Logf("%d runs", runs.Load())
}

// bitsOf runs a trial and returns what it wrote.
func bitsOf(t *testing.T, d device.Device, c trial) [][]byte {
	r := newRig(t, d, layouts[0])
	defer r.close()
	call, results := c.setUp(r)
	call()
	var all [][]byte
	for _, res := range results {
		all = append(all, r.raw(res.t))
	}
	return all
}

// NoAllocations demands that operations of d leave Go's heap alone. It is for devices that
// run an operation inside of its call.
func NoAllocations(t *testing.T, d device.Device) {
	for _, c := range trials() {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, d, layouts[0])
			defer r.close()
			call, _ := c.setUp(r)
			if n := testing.AllocsPerRun(2, call); n != 0 {
				t.Errorf("%g allocations", n)
			}
		})
	}
}

func trials() []trial {
	var all []trial
	all = append(all, linearTrials()...)
	all = append(all, normTrials()...)
	all = append(all, plainLayerTrials()...)
	all = append(all, elementTrials()...)
	all = append(all, attentionTrials()...)
	all = append(all, tokenTrials()...)
	all = append(all, updateTrials()...)
	if !raceDetector {
		return all
	}
	var some []trial // what races is found by a part of them, ten times as slowly
	for i := 0; i < len(all); i += 6 {
		some = append(some, all[i])
	}
	return some
}

var bothTypes = []device.DType{device.F32, device.BF16}

func title(op string, dt device.DType, format string, args ...any) string {
	return fmt.Sprintf("%s/%v/%s", op, dt, fmt.Sprintf(format, args...))
}
