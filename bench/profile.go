package bench

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/skein-ml/skein/device"
)

// Profiler is a device that notes how long each operation of another one takes, by kind
// and shape. It waits for every operation, so a device that runs them later is slower
// under it. Operations must be called from one goroutine.
type Profiler struct {
	device.Device
	costs map[key]*Cost
	host  time.Duration // of the device's calls, to tell what lies between them
	begun time.Time
}

// key is what is counted together.
type key struct{ op, shape string }

// Cost is what one operation at one shape has cost.
type Cost struct {
	Op      string  `json:"op"`
	Shape   string  `json:"shape,omitempty"`
	Calls   int     `json:"calls"`
	Seconds float64 `json:"seconds"`
	Flop    float64 `json:"flop,omitempty"`  // of products and attention, which makes its scores again in the backward
	Bytes   float64 `json:"bytes,omitempty"` // of everything else, each operand read or written once
}

// NewProfiler watches dev. Closing it closes dev.
func NewProfiler(dev device.Device) *Profiler {
	p := &Profiler{Device: dev}
	p.Reset()
	return p
}

// Reset forgets what was noted.
func (p *Profiler) Reset() { p.costs, p.host, p.begun = map[key]*Cost{}, 0, time.Now() }

// Report is what was noted since Reset, the most expensive first, and the wall time since.
// What no operation accounts for comes last, as "between operations".
func (p *Profiler) Report() (costs []Cost, wall float64) {
	wall = time.Since(p.begun).Seconds()
	for _, c := range p.costs {
		costs = append(costs, *c)
	}
	slices.SortFunc(costs, func(a, b Cost) int {
		return cmp.Or(cmp.Compare(b.Seconds, a.Seconds), cmp.Compare(a.Op+a.Shape, b.Op+b.Shape))
	})
	return append(costs, Cost{Op: "between operations", Seconds: max(0, wall-p.host.Seconds())}), wall
}

// watch begins to time an operation on s; the function that it gives ends it.
func (p *Profiler) watch(s device.Stream, op, shape string, flop, bytes float64) func() {
	k := key{op, shape}
	c := p.costs[k]
	if c == nil {
		c = &Cost{Op: op, Shape: shape}
		p.costs[k] = c
	}
	began := time.Now()
	return func() {
		_ = s.Record().Wait() // the stream keeps the error for whoever asks next
		took := time.Since(began)
		p.host += took
		c.Calls++
		c.Seconds += took.Seconds()
		c.Flop += flop
		c.Bytes += bytes
	}
}

// size is the bytes of tensors' elements.
func size(list ...device.Tensor) float64 {
	var n float64
	for _, t := range list {
		if !t.IsZero() {
			n += float64(t.Rows) * float64(t.Cols) * float64(t.DT.Size())
		}
	}
	return n
}

// product is rows × in × out, and its flop.
func product(rows, in, out int) (shape string, flop float64) {
	return fmt.Sprintf("%d×%d×%d", rows, in, out), 2 * float64(rows) * float64(in) * float64(out)
}

// Linear implements [device.Linears].
func (p *Profiler) Linear(s device.Stream, y, x device.Tensor, w device.Weight, e device.Epilogue, ws device.Buf) {
	shape, flop := product(x.Rows, x.Cols, y.Cols)
	defer p.watch(s, "Linear", shape, flop, 0)()
	p.Device.Linear(s, y, x, w, e, ws)
}

// LinearDX implements [device.Linears].
func (p *Profiler) LinearDX(s device.Stream, dx, dy device.Tensor, w device.Weight, e device.Epilogue, ws device.Buf) {
	shape, flop := product(dy.Rows, dy.Cols, dx.Cols)
	defer p.watch(s, "LinearDX", shape, flop, 0)()
	p.Device.LinearDX(s, dx, dy, w, e, ws)
}

// LinearDW implements [device.Linears].
func (p *Profiler) LinearDW(s device.Stream, dw, db, dy, x device.Tensor, seq int, ws device.Buf) {
	shape, flop := product(dw.Rows, x.Rows, dw.Cols)
	defer p.watch(s, "LinearDW", shape, flop, 0)()
	p.Device.LinearDW(s, dw, db, dy, x, seq, ws)
}

// Pack implements [device.Linears].
func (p *Profiler) Pack(s device.Stream, w device.Weight, lo, hi int) {
	forms := 0
	for _, f := range []device.Forms{device.FormForward, device.FormDX} {
		if w.Forms()&f != 0 {
			forms++
		}
	}
	_, in := w.Shape()
	defer p.watch(s, "Pack", "", 0, float64(int64(1+forms)*int64(hi-lo)*int64(in)*w.DType().Size()))()
	p.Device.Pack(s, w, lo, hi)
}

// Attention implements [device.Attentions].
func (p *Profiler) Attention(s device.Stream, o, lse, q, k, v device.Tensor, docs device.Docs, a device.AttnShape, ws device.Buf) {
	defer p.watch(s, "Attention", heads(a), 2*pairFlop(docs, a), 0)()
	p.Device.Attention(s, o, lse, q, k, v, docs, a, ws)
}

// AttentionGrad implements [device.Attentions].
func (p *Profiler) AttentionGrad(s device.Stream, dq, dk, dv, do, q, k, v, o, lse device.Tensor, docs device.Docs, a device.AttnShape, ws device.Buf) {
	defer p.watch(s, "AttentionGrad", heads(a), 5*pairFlop(docs, a), 0)()
	p.Device.AttentionGrad(s, dq, dk, dv, do, q, k, v, o, lse, docs, a, ws)
}

func heads(a device.AttnShape) string { return fmt.Sprintf("%d/%d×%d", a.Heads, a.KVHeads, a.HeadDim) }

// pairFlop is the flop of one product over all pairs of a query and a key that it sees.
// A forward has two such products, a backward five.
func pairFlop(docs device.Docs, a device.AttnShape) float64 {
	var pairs float64
	for i := 1; i < len(docs.Host); i++ {
		n := float64(docs.Host[i] - docs.Host[i-1])
		pairs += n * (n + 1) / 2
		if w := float64(a.Window); w > 0 && n > w {
			pairs -= (n - w) * (n - w + 1) / 2
		}
	}
	return 2 * pairs * float64(a.Heads) * float64(a.HeadDim)
}

// HeadLoss implements [device.Tokens].
func (p *Profiler) HeadLoss(s device.Stream, h device.HeadLossArgs, ws device.Buf) {
	vocab, _ := h.W.Shape()
	shape, flop := product(h.X.Rows, h.X.Cols, vocab)
	if !h.DX.IsZero() {
		flop *= 3
	}
	defer p.watch(s, "HeadLoss", shape, flop, 0)()
	p.Device.HeadLoss(s, h, ws)
}
