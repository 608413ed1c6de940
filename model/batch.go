package model

import (
	"fmt"
	"slices"

	"github.com/skein-ml/skein/device"
)

// Batch is one micro-batch on the host: whole sequences of T rows each. The slices
// stay unchanged until the run that was given them is over.
type Batch struct {
	IDs     []int32 // [N] token ids
	Targets []int32 // [N] the id to predict at each row, below zero: none
	CuDocs  []int32 // documents are rows [CuDocs[i], CuDocs[i+1]); they never cross a sequence
}

// inputs are the device's copy of a batch.
type inputs struct {
	ids, targets, pos, cu device.Tensor // [1, N] I32; cu [1, N+1]
	order, starts         device.Tensor // [1, N], [1, slots+1] I32: tokens by slot of the sparse gradient
	hostPos               []int32

	// With a learned table of positions: tokens by position, as order and starts.
	posOrder, posStarts         device.Tensor // [1, N], [1, T+1] I32
	hostPosOrder, hostPosStarts []int32
}

func (m *Model) newInputs(l *lane) error {
	n, in := m.rows(), &l.inputs
	in.hostPos = make([]int32, n)
	specs := []tensorSpec{
		{&in.ids, device.I32, 1, n}, {&in.targets, device.I32, 1, n},
		{&in.pos, device.I32, 1, n}, {&in.cu, device.I32, 1, n + 1},
	}
	if !m.opt.ForwardOnly {
		specs = append(specs, tensorSpec{&in.order, device.I32, 1, n}, tensorSpec{&in.starts, device.I32, 1, m.opt.SlotsMax + 1})
	}
	if !m.opt.ForwardOnly && !m.cfg.Rotary() {
		in.hostPosOrder, in.hostPosStarts = make([]int32, n), make([]int32, m.opt.SeqLen+1)
		specs = append(specs, tensorSpec{&in.posOrder, device.I32, 1, n}, tensorSpec{&in.posStarts, device.I32, 1, m.opt.SeqLen + 1})
	}
	return l.mem.tensors(device.KindActivations, specs)
}

// batchView is a batch as the layers see it: views of N rows.
type batchView struct {
	n                 int
	ids, targets, pos device.Tensor
	docs              device.Docs
}

// load checks b and uploads it to a lane, which becomes the one at work.
func (m *Model) load(s device.Stream, at int, b Batch) error {
	n := len(b.IDs)
	if err := m.check(b); err != nil {
		return err
	}
	m.enter(at)
	in := &m.now.inputs
	for i := 1; i < len(b.CuDocs); i++ {
		for r := b.CuDocs[i-1]; r < b.CuDocs[i]; r++ {
			in.hostPos[r] = r - b.CuDocs[i-1]
		}
	}
	m.dev.Upload(s, in.ids.Buf.Slice(0, int64(n)*4), device.HostBytes(b.IDs))
	if b.Targets != nil {
		m.dev.Upload(s, in.targets.Buf.Slice(0, int64(n)*4), device.HostBytes(b.Targets))
	}
	m.dev.Upload(s, in.pos.Buf.Slice(0, int64(n)*4), device.HostBytes(in.hostPos[:n]))
	m.dev.Upload(s, in.cu.Buf.Slice(0, int64(len(b.CuDocs))*4), device.HostBytes(b.CuDocs))
	m.now.view = batchView{
		n:   n,
		ids: in.ids.ColRange(0, n), targets: in.targets.ColRange(0, n), pos: in.pos.ColRange(0, n),
		docs: device.Docs{Cu: in.cu.ColRange(0, len(b.CuDocs)), Host: b.CuDocs},
	}
	return nil
}

// check refuses a batch that would index outside a table.
func (m *Model) check(b Batch) error {
	n := len(b.IDs)
	if n == 0 || n > m.rows() {
		return fmt.Errorf("model: micro-batch of %d rows, buffers hold 1 to %d", n, m.rows())
	}
	if b.Targets != nil && len(b.Targets) != n {
		return fmt.Errorf("model: %d targets for %d tokens", len(b.Targets), n)
	}
	if len(b.CuDocs) < 2 || b.CuDocs[0] != 0 || int(b.CuDocs[len(b.CuDocs)-1]) != n || !slices.IsSorted(b.CuDocs) {
		return fmt.Errorf("model: documents %v do not cut %d rows", b.CuDocs, n)
	}
	for i := 1; i < len(b.CuDocs); i++ {
		if tokens := int(b.CuDocs[i] - b.CuDocs[i-1]); tokens > m.opt.SeqLen {
			return fmt.Errorf("model: document of %d tokens in sequences of %d", tokens, m.opt.SeqLen)
		}
	}
	for i, id := range b.IDs {
		if id < 0 || int(id) >= m.cfg.Vocab {
			return fmt.Errorf("model: token %d has id %d, the vocabulary has %d: is this the model's own tokenizer?", i, id, m.cfg.Vocab)
		}
		if b.Targets != nil && int(b.Targets[i]) >= m.cfg.Vocab {
			return fmt.Errorf("model: target %d has id %d, the vocabulary has %d", i, b.Targets[i], m.cfg.Vocab)
		}
	}
	return nil
}

// byPosition uploads the tokens of a batch of n rows in the order of their positions.
func (m *Model) byPosition(s device.Stream, n int) (order, starts device.Tensor) {
	in := &m.now.inputs
	clear(in.hostPosStarts)
	for _, p := range in.hostPos[:n] {
		in.hostPosStarts[p+1]++
	}
	for p := range m.opt.SeqLen {
		in.hostPosStarts[p+1] += in.hostPosStarts[p]
	}
	for i, p := range in.hostPos[:n] { // starts[p] moves to the end of p's tokens, which is the next start
		in.hostPosOrder[in.hostPosStarts[p]] = int32(i)
		in.hostPosStarts[p]++
	}
	copy(in.hostPosStarts[1:], in.hostPosStarts)
	in.hostPosStarts[0] = 0
	order = in.posOrder.ColRange(0, n)
	m.dev.Upload(s, in.posOrder.Buf.Slice(0, int64(n)*4), device.HostBytes(in.hostPosOrder[:n]))
	m.dev.Upload(s, in.posStarts.Buf, device.HostBytes(in.hostPosStarts))
	return order, in.posStarts
}

// Slots gives each distinct id of a rank's step a row of the sparse gradient, ids
// ascending. The zero value is ready; its memory is reused from step to step.
type Slots struct {
	IDs []int32 // distinct, ascending; slot i is the row of IDs[i]

	order, starts []int32
	keys          []uint64
}

// Reset makes the slots of all tokens that a rank reads in one step.
func (l *Slots) Reset(sequences ...[]int32) {
	l.IDs = l.IDs[:0]
	for _, ids := range sequences {
		l.IDs = append(l.IDs, ids...)
	}
	slices.Sort(l.IDs)
	l.IDs = slices.Compact(l.IDs)
}

// group sorts a micro-batch's tokens by slot, ascending within each.
func (l *Slots) group(ids []int32) (order, starts []int32) {
	l.keys = l.keys[:0]
	for i, id := range ids {
		l.keys = append(l.keys, uint64(id)<<32|uint64(i))
	}
	slices.Sort(l.keys)
	l.order, l.starts = l.order[:0], l.starts[:0]
	next := 0
	for _, id := range l.IDs {
		l.starts = append(l.starts, int32(next))
		for next < len(l.keys) && int32(l.keys[next]>>32) == id {
			l.order = append(l.order, int32(l.keys[next]&0xffffffff))
			next++
		}
	}
	l.starts = append(l.starts, int32(next))
	return l.order, l.starts
}
