package model

import (
	"fmt"

	"github.com/skein-ml/skein/device"
)

// Decoder generates: it keeps each layer's keys and values, so that a new token costs
// one row. It uses its model's buffers; only one of them may run at a time.
type Decoder struct {
	m            *Model
	mem          arena
	keys, values []device.Tensor // per layer [capacity, K]
	logits       device.Tensor   // [1, V] F32
	host         []float32
	n            int // tokens in the cache
}

// NewDecoder allocates caches for dialogues of up to capacity tokens, at most the
// model's SeqLen.
func (m *Model) NewDecoder(capacity int) (_ *Decoder, err error) {
	if capacity < 1 || capacity > m.opt.SeqLen {
		return nil, fmt.Errorf("model: a dialogue of %d tokens, the model was built for %d", capacity, m.opt.SeqLen)
	}
	c := m.cfg
	d := &Decoder{m: m, mem: arena{dev: m.dev}, host: make([]float32, c.Vocab)}
	d.keys, d.values = make([]device.Tensor, c.Layers), make([]device.Tensor, c.Layers)
	list := []tensorSpec{{&d.logits, device.F32, 1, c.Vocab}}
	for i := range c.Layers {
		kv := c.KVHeads * c.HeadDim
		list = append(list, tensorSpec{&d.keys[i], m.opt.DType, capacity, kv}, tensorSpec{&d.values[i], m.opt.DType, capacity, kv})
	}
	if err := d.mem.tensors(device.KindActivations, list); err != nil {
		d.Close()
		return nil, fmt.Errorf("model: caches for %d tokens: %w", capacity, err)
	}
	return d, nil
}

// Close gives back the caches.
func (d *Decoder) Close() { d.mem.free() }

// Prefill starts a dialogue with its prompt and returns the logits after it, [V],
// valid until the next call.
func (d *Decoder) Prefill(s device.Stream, ids []int32, hooks Hooks) ([]float32, error) {
	if len(ids) == 0 || len(ids) > d.capacity() {
		return nil, fmt.Errorf("model: a prompt of %d tokens, room for 1 to %d", len(ids), d.capacity())
	}
	m := d.m
	if err := m.load(s, 0, Batch{IDs: ids, CuDocs: []int32{0, int32(len(ids))}}); err != nil {
		return nil, err
	}
	m.afterAttention = func(layer int, k, v device.Tensor) { d.fill(s, layer, 0, k, v) }
	err := m.forward(s, 1, hooks)
	m.afterAttention = nil
	if err != nil {
		return nil, err
	}
	d.n = len(ids)
	return d.head(s, m.finalNorm(s).RowRange(d.n-1, d.n))
}

// Decode appends one token and returns the logits after it, valid until the next call.
func (d *Decoder) Decode(s device.Stream, id int32, hooks Hooks) ([]float32, error) {
	if d.n == 0 {
		return nil, fmt.Errorf("model: nothing to go on from: call Prefill first")
	}
	if d.Full() {
		return nil, fmt.Errorf("model: the cache of %d tokens is full", d.n)
	}
	m := d.m
	if err := m.load(s, 0, Batch{IDs: []int32{id}, CuDocs: []int32{0, 1}}); err != nil {
		return nil, err
	}
	in := &m.now.inputs
	in.hostPos[0] = int32(d.n)
	m.dev.Upload(s, in.pos.Buf.Slice(0, 4), device.HostBytes(in.hostPos[:1]))
	d.n++
	if err := m.embed(s, m.now.view, hooks); err != nil {
		return nil, err
	}
	for i := range m.cfg.Layers {
		if err := hooks.NeedWeights(i+1, m.after(i)); err != nil {
			return nil, err
		}
		d.layer(s, m.now.view, i)
	}
	if err := hooks.NeedWeights(m.layout.norm, -1); err != nil {
		return nil, err
	}
	return d.head(s, m.finalNorm(s))
}

// layer is layerForward for one row whose keys and values are cached.
func (d *Decoder) layer(s device.Stream, b batchView, i int) {
	m := d.m
	m.layerForwardWith(s, b, i, m.layerActs(i).rows(1), residual{in: m.input(i, 1), out: m.input(i+1, 1)},
		func(o, q, k, v device.Tensor) {
			d.fill(s, i, d.n-1, k, v)
			m.dev.AttentionDecode(s, o, q, d.keys[i], d.values[i], d.n, m.attnShape(i))
		})
}

// fill copies rows of k and v into layer's caches from row at.
func (d *Decoder) fill(s device.Stream, layer, at int, k, v device.Tensor) {
	for r := range k.Rows {
		d.m.dev.Copy(s, d.keys[layer].RowRange(at+r, at+r+1).Buf, k.RowRange(r, r+1).Buf)
		d.m.dev.Copy(s, d.values[layer].RowRange(at+r, at+r+1).Buf, v.RowRange(r, r+1).Buf)
	}
}

func (d *Decoder) head(s device.Stream, x device.Tensor) ([]float32, error) {
	d.m.dev.Linear(s, d.logits, x, d.m.weights.head, device.Epilogue{}, d.m.ws)
	d.m.dev.Download(s, device.HostBytes(d.host), d.logits.Buf)
	err := s.Record().Wait()
	return d.host, err
}

// Full tells that no further token fits.
func (d *Decoder) Full() bool { return d.n == d.capacity() }

func (d *Decoder) capacity() int { return d.keys[0].Rows }
