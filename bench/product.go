package bench

import (
	"fmt"
	"time"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model/config"
)

// ProductKind is one of the products that a weight has part in.
type ProductKind string

// The kinds. Head is the three products of the LM head with the cross-entropy between
// them, as one operation on a block of rows.
const (
	ProductForward ProductKind = "fwd"
	ProductDX      ProductKind = "dx"
	ProductDW      ProductKind = "dw"
	ProductHead    ProductKind = "head"
)

// Product is one of a training step's products at its shape.
type Product struct {
	Name      string       `json:"name"`
	Kind      ProductKind  `json:"kind"`
	Precision string       `json:"precision"` // bf16 or f32
	Rows      int          `json:"rows"`      // tokens
	In        int          `json:"in"`
	Out       int          `json:"out"`
	Calls     int          `json:"calls"` // in a step
	DT        device.DType `json:"-"`
}

// Flop is the multiplications and additions of one call.
func (p Product) Flop() float64 {
	flop := 2 * float64(p.Rows) * float64(p.In) * float64(p.Out)
	if p.Kind == ProductHead {
		flop *= 3
	}
	return flop
}

// Products lists those of both models' steps, by precision and model.
func Products(quick bool) []Product {
	var list []Product
	for _, dt := range []device.DType{device.BF16, device.F32} {
		for _, name := range []string{"gpt2", "smollm2"} {
			w, err := Find(fmt.Sprintf("%s-%s-step", name, dt), quick)
			if err != nil {
				panic(err) // they are in the list
			}
			list = append(list, products(fmt.Sprintf("gemm-%s-%s", dt, name), w)...)
		}
	}
	return list
}

func products(prefix string, w Workload) []Product {
	c := w.Model
	var list []Product
	for _, m := range matrices(c) {
		for _, kind := range []ProductKind{ProductForward, ProductDX, ProductDW} {
			list = append(list, Product{Name: fmt.Sprintf("%s-%s-%s", prefix, m.name, kind), Kind: kind, Precision: w.Precision.String(),
				Rows: w.Tokens(), In: m.in, Out: m.out, Calls: c.Layers, DT: w.Precision})
		}
	}
	rows := min(device.BlockRows, w.SeqLen)
	return append(list, Product{Name: prefix + "-head", Kind: ProductHead, Precision: w.Precision.String(),
		Rows: rows, In: c.Hidden, Out: c.Vocab, Calls: w.Tokens() / rows, DT: w.Precision})
}

type matrix struct {
	name    string
	out, in int
}

// matrices are a layer's, as the model multiplies with them.
func matrices(c config.Config) []matrix {
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	inner := c.MLP
	if c.Gated() {
		inner *= 2
	}
	return []matrix{{"qkv", q + 2*kv, c.Hidden}, {"out", c.Hidden, q}, {"inner", inner, c.Hidden}, {"down", c.Hidden, c.MLP}}
}

// productSeconds is how long one round of a product lasts: it is called as often as fits.
const productSeconds = 0.1

// Bench is one product with its operands.
type Bench struct {
	Product
	dev  device.Device
	s    device.Stream
	mem  []device.Buf
	w    device.Weight
	ws   device.Buf
	x, y device.Tensor // [rows, in], [rows, out]
	dx   device.Tensor
	dw   device.Tensor // [out, in] F32
	ids  device.Tensor // the head's targets
	loss device.Tensor
	err  error
}

// NewBench gives a product random operands. Close it.
func NewBench(dev device.Device, p Product) (*Bench, error) {
	b := &Bench{Product: p, dev: dev, s: dev.Stream(device.StreamCompute)}
	src := b.random(p.DT, p.Out, p.In)
	b.x, b.y = b.random(p.DT, p.Rows, p.In), b.random(p.DT, p.Rows, p.Out)
	b.dx, b.dw = b.tensor(p.DT, p.Rows, p.In), b.tensor(device.F32, p.Out, p.In)
	b.ids, b.loss = b.tensor(device.I32, 1, p.Rows), b.tensor(device.F64, 1, 1)
	if b.err == nil {
		b.w, b.err = dev.NewWeight(src, device.FormForward|device.FormDX)
	}
	if b.err == nil {
		dev.Pack(b.s, b.w, 0, p.Out)
		var need int64
		for _, op := range []device.Op{device.OpLinear, device.OpLinearDX, device.OpLinearDW, device.OpHeadLoss} {
			need = max(need, dev.Need(op, device.Shape{Rows: p.Rows, Seq: b.seq(), In: p.In, Out: p.Out, DT: p.DT}))
		}
		b.ws = b.alloc(max(need, 1), device.KindWorkspace)
		ids := make([]int32, p.Rows)
		for i := range ids {
			ids[i] = int32(mix(uint64(i)) % uint64(p.Out))
		}
		dev.Upload(b.s, b.ids.Buf, device.HostBytes(ids))
		b.err = b.s.Record().Wait()
	}
	if b.err != nil {
		b.Close()
		return nil, fmt.Errorf("%s: %w", p.Name, b.err)
	}
	return b, nil
}

// seq is the rows of one sequence.
func (b *Bench) seq() int { return min(device.BlockRows, b.Rows) }

func (b *Bench) alloc(bytes int64, k device.Kind) (buf device.Buf) {
	if b.err == nil {
		if buf, b.err = b.dev.Alloc(bytes, k); b.err == nil {
			b.mem = append(b.mem, buf)
		}
	}
	return buf
}

func (b *Bench) tensor(dt device.DType, rows, cols int) device.Tensor {
	buf := b.alloc(int64(rows)*int64(cols)*dt.Size(), device.KindActivations)
	if b.err != nil {
		return device.Tensor{}
	}
	return device.Make(buf, dt, rows, cols)
}

// random is uniform in ±1/2.
func (b *Bench) random(dt device.DType, rows, cols int) device.Tensor {
	wide, t := b.tensor(device.F32, rows, cols), b.tensor(dt, rows, cols)
	if b.err != nil {
		return t
	}
	host := make([]float32, rows*cols)
	for i := range host {
		host[i] = float32(unit(uint64(i)) - 0.5)
	}
	b.dev.Upload(b.s, wide.Buf, device.HostBytes(host))
	b.dev.Cast(b.s, t, wide)
	return t
}

// Round computes the product again and again for a tenth of a second and gives the
// seconds of the fastest call.
func (b *Bench) Round() (float64, error) {
	var fastest time.Duration
	for began := time.Now(); fastest == 0 || time.Since(began).Seconds() < productSeconds; {
		start := time.Now()
		b.call()
		if err := b.s.Record().Wait(); err != nil {
			return 0, fmt.Errorf("%s: %w", b.Name, err)
		}
		if took := time.Since(start); fastest == 0 || took < fastest {
			fastest = took
		}
	}
	return fastest.Seconds(), nil
}

func (b *Bench) call() {
	switch b.Kind {
	case ProductForward:
		b.dev.Linear(b.s, b.y, b.x, b.w, device.Epilogue{}, b.ws)
	case ProductDX:
		b.dev.LinearDX(b.s, b.dx, b.y, b.w, device.Epilogue{}, b.ws)
	case ProductDW:
		b.dev.LinearDW(b.s, b.dw, device.Tensor{}, b.y, b.x, b.seq(), b.ws)
	case ProductHead:
		b.dev.HeadLoss(b.s, device.HeadLossArgs{X: b.x, W: b.w, Targets: b.ids, Seq: b.seq(), Scale: 1, Loss: b.loss, DX: b.dx, DW: b.dw}, b.ws)
	}
}

// Close gives back the operands' memory.
func (b *Bench) Close() {
	if b.w != nil {
		b.dev.FreeWeight(b.w)
	}
	for _, m := range b.mem {
		b.dev.Free(m)
	}
}
