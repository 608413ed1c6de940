package trainer

import (
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/model/modeltest"
	"github.com/skein-ml/skein/shard"
)

// spoiling is a device some of whose attentions, counted from 1 in the forward or the backward, come out infinite.
type spoiling struct {
	device.Device
	forward, backward atomic.Int64 // how many are still to come until then
	again             int64        // in the forward, after which another one does; 0: no more
}

var infinite = device.HostBytes([]float32{float32(math.Inf(1))})

func (d *spoiling) Attention(s device.Stream, o, lse, q, k, v device.Tensor, docs device.Docs, a device.AttnShape, ws device.Buf) {
	d.Device.Attention(s, o, lse, q, k, v, docs, a, ws)
	if d.forward.Add(-1) == 0 {
		d.forward.Add(d.again)
		d.again = 0
		d.Upload(s, o.RowRange(0, 1).ColRange(0, 1).Buf, infinite)
	}
}

func (d *spoiling) AttentionGrad(s device.Stream, dq, dk, dv, do, q, k, v, o, lse device.Tensor, docs device.Docs, a device.AttnShape, ws device.Buf) {
	d.Device.AttentionGrad(s, dq, dk, dv, do, q, k, v, o, lse, docs, a, ws)
	if d.backward.Add(-1) == 0 {
		d.Upload(s, dv.RowRange(0, 1).ColRange(0, 1).Buf, infinite)
	}
}

// TestWhatIsNotFiniteNamesTheRankTheLayerAndTheStep spoils, in each ZeRO stage, what rank 3 of four computes in one
// layer, on the second of two workers. Rank 0 owns pieces of every sum that it gets into, and is not to blame.
func TestWhatIsNotFiniteNamesTheRankTheLayerAndTheStep(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-untied-bias")}
	layers := g.Config.Layers
	for _, stage := range stages {
		for _, forward := range []bool{true, false} {
			for layer := range layers {
				t.Run(fmt.Sprintf("ZeRO-%d/forward %t/layer %d", stage, forward, layer), func(t *testing.T) {
					c := g.config(4, 4)
					c.Stage = stage
					bad := &spoiling{Device: newDevice(t, "generic", 1)}
					m := newTeam(t, func(w int) device.Device {
						if w == 1 {
							return bad
						}
						return newDevice(t, "generic", 1)
					}, g, c, 2)
					m.steps(t, 1)
					before := m.hash(t)
					// Ranks run one after the other, or together, layer by layer.
					together := m.trainers[1].together()
					switch {
					case forward && together:
						bad.forward.Store(int64(2*layer + 2))
					case forward:
						bad.forward.Store(int64(layers + layer + 1))
					case together:
						bad.backward.Store(int64(2*(layers-1-layer) + 2))
					default:
						bad.backward.Store(int64(layers + layers - layer))
					}
					results := make([]Result, 2)
					m.each(t, func(w int, tr *Trainer) (err error) {
						results[w], err = tr.Step(t.Context())
						return err
					})
					name := m.trainers[0].table.Bucket(layer + 1).Name
					for w, res := range results {
						d := res.Decision
						if d.Step != 2 || d.Action != allreduce.Skip || d.Cause != allreduce.CauseNotFinite || d.Culprit != 3 {
							t.Errorf("worker %d: %v", w, d)
						}
						layer := name
						if together && !forward { // the sums tell
							layer = ""
						}
						if want := []NotFinite{{Rank: 3, Layer: layer, Forward: forward}}; w == 1 && !slices.Equal(res.NotFinite, want) || w == 0 && res.NotFinite != nil {
							t.Errorf("worker %d has found %v, where %v are to be found on worker 1", w, res.NotFinite, want)
						}
					}
					if got := results[0].Layer; !forward && got != name || forward && got != "" {
						t.Errorf("by the sums it began in %q, spoilt was %q", got, name)
					}
					if m.hash(t) != before {
						t.Error("a step that is skipped has changed weights")
					}
					if res := m.steps(t, 1); res.Decision.Action != allreduce.Apply || res.NotFinite != nil {
						t.Errorf("the next step: %v, %v", res.Decision, res.NotFinite)
					}
				})
			}
		}
	}
}

// TestAnElementThatNoOtherRankSeesIsFoundByWhoseItIs makes one element of a gradient infinite, so that only the owner of
// its piece has it in a sum.
func TestAnElementThatNoOtherRankSeesIsFoundByWhoseItIs(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-tied-gqa")}
	tr := newTrainer(t, newDevice(t, "generic", 1), g, g.config(4, 4))
	steps(t, tr, 1)
	x := tr.ranks[2].grads.Flat[2]
	tr.dev.Upload(tr.stream, x.ColRange(1, 2).Buf, infinite) // in the piece of rank 0
	found, err := tr.locate()
	if want := []NotFinite{{Rank: 2, Layer: tr.table.Bucket(2).Name}}; err != nil || !slices.Equal(found, want) {
		t.Errorf("found %v, %v; want %v", found, err, want)
	}
	for _, r := range tr.ranks {
		ok, err := tr.sound(r, []float64{math.Inf(1)}, 1)
		if want := r.id != 2 || !slices.Contains(tr.order[len(tr.order)-2:], 2); err != nil || ok != want {
			t.Errorf("rank %d: sound %t, %v", r.id, ok, err)
		}
	}
	tr.ranks[1].loss = math.NaN() // whose forward gives a number when it is run again
	found, err = tr.locate()
	if want := []NotFinite{{Rank: 1, Forward: true, Once: true}, {Rank: 2, Layer: tr.table.Bucket(2).Name}}; err != nil || !slices.Equal(found, want) {
		t.Errorf("found %v, %v; want %v", found, err, want)
	}
}

// TestAForwardThatIsNotFiniteIsRunAgainToFindTheLayer spoils rank 2 of worker 1, which rank 3 follows there, twice: in
// the step, and when it is computed again.
func TestAForwardThatIsNotFiniteIsRunAgainToFindTheLayer(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-untied-bias")}
	layers := g.Config.Layers
	for layer := range layers {
		for micro, first := range map[int]int{1: 0, 2: layers} { // in which of two micro-batches
			c := g.config(4, 8)
			c.Batch.Global, c.Order.GlobalBatch = 8, 8
			bad := &spoiling{Device: newDevice(t, "generic", 1)}
			m := newTeam(t, func(w int) device.Device {
				if w == 1 {
					return bad
				}
				return newDevice(t, "generic", 1)
			}, g, c, 2)
			m.steps(t, 1)
			bad.again = int64(4 * layers)
			bad.forward.Store(int64(first + layer + 1))
			var found []NotFinite
			m.each(t, func(w int, tr *Trainer) error {
				res, err := tr.Step(t.Context())
				if w == 1 {
					found = res.NotFinite
				}
				return err
			})
			if want := []NotFinite{{Rank: 2, Layer: m.trainers[0].table.Bucket(layer + 1).Name, Forward: true}}; !slices.Equal(found, want) {
				t.Errorf("micro-batch %d, layer %d: found %v, want %v", micro, layer, found, want)
			}
		}
	}
}

func TestEveryInfinityAndNaNIsSeenAndNothingElse(t *testing.T) {
	dev, err := cpu.New(cpu.Options{Path: "generic", Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	tr := &Trainer{dev: dev, stream: dev.Stream(device.StreamCompute)}
	const n = stretchElems + 5
	for _, at := range []int64{0, stretchElems - 1, stretchElems, n - 1} {
		for bits, want := range map[uint32]bool{
			0: true, 0x80000000: true, 1: true, math.Float32bits(math.MaxFloat32): true, math.Float32bits(-math.MaxFloat32): true,
			0x7f800000: false, 0xff800000: false, 0x7fc00000: false, 0xffffffff: false, 0x7f800001: false,
		} {
			for _, dt := range []device.DType{device.F32, device.BF16} {
				if dt == device.BF16 && bits&0xffff != 0 && bits&0x7f800000 == 0x7f800000 {
					bits |= 1 << 16 // the half that is kept is to be what the whole is
				}
				buf, err := dev.Alloc(n*dt.Size(), device.KindStaging)
				if err != nil {
					t.Fatal(err)
				}
				x := device.Make(buf, dt, 1, n)
				dev.Fill(tr.stream, x, 1)
				if dt == device.F32 {
					dev.Upload(tr.stream, buf.Slice(4*at, 4), device.HostBytes([]int32{int32(bits)}))
				} else {
					dev.Upload(tr.stream, buf.Slice(2*at, 2), device.HostBytes([]uint16{uint16(bits >> 16)}))
				}
				if got, err := tr.allFinite(x); err != nil || got != want {
					t.Errorf("%v, bits %08x at %d: finite %t, %v", dt, bits, at, got, err)
				}
				dev.Free(buf)
			}
		}
	}
}

func TestTheRankAndItsLayerAreSaidInWords(t *testing.T) {
	for want, x := range map[string]NotFinite{
		"first in the forward of layer.3":  {Rank: shard.Rank(1), Layer: "layer.3", Forward: true},
		"first in the backward of layer.3": {Rank: shard.Rank(1), Layer: "layer.3"},
		"in the backward":                  {Rank: shard.Rank(1)},
		"and not when the same is computed again: look at its memory and processor": {Rank: shard.Rank(1), Forward: true, Once: true},
	} {
		if x.String() != want {
			t.Errorf("%q, want %q", x, want)
		}
	}
}
