package cpu

import (
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// gradCase is one AttentionGrad of random-looking rows, ready to be run again.
func gradCase(t *testing.T, threads int, docs []int32) (run func() error, outputs [3]device.Tensor, d *Device) {
	d, err := New(Options{Path: "generic", Threads: threads})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	const heads, kvHeads, dim = 4, 2, 8
	rows, s := int(docs[len(docs)-1]), d.Stream(device.StreamCompute)
	tensor := func(cols int) device.Tensor {
		b, err := d.Alloc(int64(rows*cols*4), device.KindActivations)
		if err != nil {
			t.Fatal(err)
		}
		x := make([]float32, rows*cols)
		for i := range x {
			x[i] = float32(i*7919%1000)/1000 - 0.5
		}
		d.Upload(s, b, device.HostBytes(x))
		return device.Make(b, device.F32, rows, cols)
	}
	q, k, v, do, o := tensor(heads*dim), tensor(kvHeads*dim), tensor(kvHeads*dim), tensor(heads*dim), tensor(heads*dim)
	dq, dk, dv := tensor(heads*dim), tensor(kvHeads*dim), tensor(kvHeads*dim)
	lse, cu := tensor(heads), tensor(1)
	lse = device.Make(lse.Buf, device.F32, heads, rows)
	d.Upload(s, cu.Buf.Slice(0, int64(len(docs))*4), device.HostBytes(docs))
	list := device.Docs{Cu: device.Make(cu.Buf, device.I32, 1, len(docs)), Host: docs}
	shape := device.AttnShape{Heads: heads, KVHeads: kvHeads, HeadDim: dim, Scale: 0.3}
	ws, err := d.Alloc(d.Need(device.OpAttentionGrad, device.Shape{Rows: rows, Heads: heads, KVHeads: kvHeads, HeadDim: dim}), device.KindWorkspace)
	if err != nil {
		t.Fatal(err)
	}
	d.Attention(s, o, lse, q, k, v, list, shape, ws)
	return func() error {
		d.AttentionGrad(s, dq, dk, dv, do, q, k, v, o, lse, list, shape, ws)
		return s.Record().Wait()
	}, [3]device.Tensor{dq, dk, dv}, d
}

// With more threads than key heads, strips of keys wait for each other's turn at dq.
func TestStripsTakeTurnsWhateverTheThreads(t *testing.T) {
	docs := []int32{0, 500, 501, 900}
	var want [3][]byte
	for _, threads := range []int{1, 2, 7} {
		run, outputs, d := gradCase(t, threads, docs)
		for range 5 {
			if err := run(); err != nil {
				t.Fatal(err)
			}
			for i, x := range outputs {
				got := d.Host(x.Buf)
				if want[i] == nil {
					want[i] = slices.Clone(got)
				} else if !slices.Equal(got, want[i]) {
					t.Fatalf("%d threads: gradient %d is another", threads, i)
				}
			}
		}
	}
}

// A strip whose turn will never come, since the one before it failed, must not wait for ever.
func TestAFailedStripKeepsNobodyWaiting(t *testing.T) {
	run, _, d := gradCase(t, 4, []int32{0, 900})
	meet := d.kernels.AttentionGrad[device.F32]
	d.kernels.AttentionGrad[device.F32] = func(a *kernel.AttentionGrad, p kernel.Pair, scratch unsafe.Pointer) {
		if p.KeyLo == 0 && p.QueryLo == 640 {
			panic("a strip fails")
		}
		meet(a, p, scratch)
	}
	if err := run(); err == nil || !strings.Contains(err.Error(), "a strip fails") {
		t.Fatalf("got %v", err)
	}
}
