package gemm

import (
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// reads is vector with the other choice of readsRows.
type reads struct {
	vector
	rows bool
}

func (r reads) readsRows() bool { return r.rows }

// BenchmarkRowsOrPacks times LinearDX of SmolLM2's layers in F32, 512 rows, with packed weights and with
// the weights' own rows, in turn: ten layers, so that each finds its weights in memory and not in L2.
func BenchmarkRowsOrPacks(b *testing.B) {
	if _, err := New("avx512"); err != nil {
		b.Skip(err)
	}
	const layers, rows = 10, 512
	r := rand.New(rand.NewPCG(1, 1))
	type side struct {
		host
		weights [][]*kernel.Weight
		best    time.Duration
	}
	shapes := []shape{{rows, 960, 576}, {rows, 576, 576}, {rows, 3072, 576}, {rows, 576, 1536}}
	var sides [2]side
	for i := range sides {
		g, err := New("avx512")
		if err != nil {
			b.Fatal(err)
		}
		e := reads{vector{}, i == 1}
		g.f32, g.bf16 = e, e
		sides[i].host = host{b, g, testPool(runtime.GOMAXPROCS(0))}
	}
	for range layers {
		var list [2][]*kernel.Weight
		for _, s := range shapes {
			src := denseMat(device.F32, s.n, s.k, r)
			for i := range sides {
				list[i] = append(list[i], sides[i].weight(mat{Matrix: src}, device.FormForward|device.FormDX))
			}
		}
		for i := range sides {
			sides[i].weights = append(sides[i].weights, list[i])
		}
	}
	dy, dx := denseMat(device.F32, rows, 3072, r), denseMat(device.F32, rows, 1536, r)
	pass := func(s *side) {
		began := time.Now()
		for _, layer := range s.weights {
			for _, w := range layer {
				sh := device.Shape{Rows: rows, Seq: rows, In: w.In, Out: w.Out, DT: device.F32}
				ws := make([]byte, s.g.Need(device.OpLinearDX, sh, int(s.pool)))
				left, out := dy, dx
				left.Cols, out.Cols = w.Out, w.In
				s.g.LinearDX(s.pool, out, left, w, kernel.Matrix{}, ws)
			}
		}
		if took := time.Since(began); s.best == 0 || took < s.best {
			s.best = took
		}
	}
	for b.Loop() {
		pass(&sides[0])
		pass(&sides[1])
	}
	b.ReportMetric(sides[0].best.Seconds()*1e3, "packed-ms")
	b.ReportMetric(sides[1].best.Seconds()*1e3, "rows-ms")
	b.ReportMetric(sides[0].best.Seconds()/sides[1].best.Seconds(), "rows-speed")
}
