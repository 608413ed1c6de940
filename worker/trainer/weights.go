package trainer

import (
	"fmt"

	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model/config"
	"github.com/skein-ml/skein/shard"
)

// stretchElems is how many elements go between device and host at a time.
const stretchElems = 1 << 20

// Import sets the master weights to a model's, zeroes the moments and the step
// number: the state of step 0.
func (t *Trainer) Import(src config.Weights) error {
	if err := t.load(int(checkpoint.Master), make([]float32, stretchElems), src.ReadRange); err != nil {
		return err
	}
	for _, s := range t.segments {
		if s == nil {
			continue
		}
		for b := range t.table.Buckets() {
			t.dev.Fill(t.stream, s.state[checkpoint.Moment1][b], 0)
			t.dev.Fill(t.stream, s.state[checkpoint.Moment2][b], 0)
		}
	}
	return t.begins(0, 0)
}

// refresh makes the working weights anew from the masters.
func (t *Trainer) refresh() error {
	if err := t.peers.begin(t.step); err != nil {
		return err
	}
	for b := range t.table.Buckets() {
		for _, s := range t.segments {
			if s != nil && t.applies(s.rank) && !t.onDemand() {
				piece := t.table.Bucket(b).Piece(s.rank)
				t.dev.Cast(t.stream, t.model.Bucket(b).ColRange(int(piece.Lo), int(piece.Hi)), s.state[checkpoint.Master][b])
			}
		}
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
	return w.t.ReadState(checkpoint.Master, b, lo, device.HostBytes(dst))
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
			if err := t.ReadState(checkpoint.Master, b, lo, device.HostBytes(part)); err != nil {
				return shard.Digest{}, err
			}
			if err := h.Write(b, lo, device.HostBytes(part)); err != nil {
				return shard.Digest{}, err
			}
		}
	}
	return h.Sum()
}
