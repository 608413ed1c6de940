package trainer

import (
	"fmt"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model/config"
	"github.com/skein-ml/skein/shard"
)

// stretchElems is how many elements go between device and host at a time.
const stretchElems = 1 << 20

// Import sets the master weights to a model's, zeroes the moments and the step
// number: the state of step 0.
func (t *Trainer) Import(src config.Weights) error {
	for b := range t.table.Buckets() {
		for _, x := range t.table.SpansOf(b, t.state.held[b].Lo, t.state.held[b].Hi) {
			if err := t.importSpan(src, b, x); err != nil {
				return err
			}
		}
		t.dev.Fill(t.stream, t.state.m[b], 0)
		t.dev.Fill(t.stream, t.state.v[b], 0)
	}
	t.step, t.taken = 0, 0
	return t.refresh()
}

func (t *Trainer) importSpan(src config.Weights, bucket int, x shard.Span) error {
	host := make([]float32, min(stretchElems, x.Bucket.Len()))
	for off := int64(0); off < x.Bucket.Len(); off += stretchElems {
		part := host[:min(stretchElems, x.Bucket.Len()-off)]
		if err := src.ReadRange(x.Tensor, x.Lo+off, part); err != nil {
			return fmt.Errorf("reading %s: %w", x.Tensor, err)
		}
		lo := x.Bucket.Lo + off
		t.dev.Upload(t.stream, t.at(t.state.master[bucket], bucket, shard.Range{Lo: lo, Hi: lo + int64(len(part))}).Buf, device.HostBytes(part))
	}
	return nil
}

// refresh makes the working weights anew from the masters.
func (t *Trainer) refresh() error {
	if err := t.peers.begin(t.step); err != nil {
		return err
	}
	for b := range t.table.Buckets() {
		held := t.state.held[b]
		t.dev.Cast(t.stream, t.model.Bucket(b).ColRange(int(held.Lo), int(held.Hi)), t.state.master[b])
		t.fresh[b] = false
		if err := t.peers.changed(b); err != nil {
			return err
		}
	}
	return t.stream.Record().Wait()
}

// Weights are the master weights, readable by tensor, for export. All ranks must be here.
func (t *Trainer) Weights() config.Weights { return masters{t} }

type masters struct{ t *Trainer }

func (w masters) Config() config.Config { return w.t.cfg.Model }

func (w masters) Close() error { return nil }

func (w masters) Shape(name string) []int64 {
	for _, x := range w.t.cfg.Model.Tensors() {
		if x.Name == name {
			return x.Shape()
		}
	}
	return nil
}

func (w masters) ReadRange(name string, elemOff int64, dst []float32) error {
	b, span, ok := w.t.table.Lookup(name)
	if !ok {
		return fmt.Errorf("the model has no tensor %s", name)
	}
	lo := span.Bucket.Lo + elemOff
	if elemOff < 0 || lo+int64(len(dst)) > span.Bucket.Hi {
		return fmt.Errorf("elements [%d, %d) of %s, which has %d", elemOff, elemOff+int64(len(dst)), name, span.Bucket.Len())
	}
	return w.t.download(w.t.state.master[b], lo, dst)
}

// download reads elements from lo of a flat F32 tensor.
func (t *Trainer) download(flat device.Tensor, lo int64, dst []float32) error {
	t.dev.Download(t.stream, device.HostBytes(dst), flat.ColRange(int(lo), int(lo)+len(dst)).Buf)
	return t.stream.Record().Wait()
}

// WeightsHash is the identity of the master weights, see [shard.WeightsHash]. All ranks
// must be here; workers that share a job hash on while they save.
func (t *Trainer) WeightsHash() (shard.Digest, error) {
	if !t.Alone() {
		return shard.Digest{}, errUnlinked
	}
	h := shard.NewWeightsHash(t.table)
	host := make([]float32, stretchElems)
	for b := range t.table.Buckets() {
		for lo, n := int64(0), t.table.Bucket(b).Padded; lo < n; lo += stretchElems {
			part := host[:min(stretchElems, n-lo)]
			if err := t.download(t.state.master[b], lo, part); err != nil {
				return shard.Digest{}, err
			}
			if err := h.Write(b, lo, device.HostBytes(part)); err != nil {
				return shard.Digest{}, err
			}
		}
	}
	return h.Sum()
}
