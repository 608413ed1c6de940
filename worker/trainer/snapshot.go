package trainer

import (
	"fmt"

	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/shard"
)

// States gives back what a checkpoint holds; a [checkpoint.Checkpoint] is one.
type States interface {
	// ReadRange fills dst with elements of a tensor's weights or moments from elemOff.
	ReadRange(tensor string, kind checkpoint.Kind, elemOff int64, dst []float32) error
}

// Restore sets weights, moments and counts to those of a checkpoint: those of the
// pieces held here, with the working weights made from them on their way to all.
func (t *Trainer) Restore(src States, step, taken int64) error {
	host := make([]float32, stretchElems)
	for kind, flats := range t.kinds() {
		for b := range t.table.Buckets() {
			for _, x := range t.table.SpansOf(b, t.state.held[b].Lo, t.state.held[b].Hi) {
				for off, n := int64(0), x.Bucket.Len(); off < n; off += stretchElems {
					part := host[:min(stretchElems, n-off)]
					if err := src.ReadRange(x.Tensor, checkpoint.Kind(kind), x.Lo+off, part); err != nil {
						return fmt.Errorf("reading %s: %w", x.Tensor, err)
					}
					lo := x.Bucket.Lo + off
					t.dev.Upload(t.stream, t.at(flats[b], b, shard.Range{Lo: lo, Hi: lo + int64(len(part))}).Buf, device.HostBytes(part))
				}
			}
		}
	}
	t.step, t.taken = step, taken
	return t.refresh()
}

// ReadState implements [checkpoint.Source] for what is held here. It may be called
// while a step is computed if [Trainer.Hold] keeps the step from being applied.
func (t *Trainer) ReadState(kind checkpoint.Kind, bucket int, lo int64, le []byte) error {
	if len(le) == 0 {
		return nil
	}
	s := t.dev.Stream(device.StreamCopy)
	x := t.at(t.kinds()[kind][bucket], bucket, shard.Range{Lo: lo, Hi: lo + int64(len(le)/4)})
	t.dev.Download(s, le, x.Buf)
	return s.Record().Wait()
}

// kinds are the flat buckets of each kind of state, by [checkpoint.Kind].
func (t *Trainer) kinds() [3][]device.Tensor {
	s := &t.state
	return [3][]device.Tensor{checkpoint.Master: s.master, checkpoint.Moment1: s.m, checkpoint.Moment2: s.v}
}

// StepsTaken is how many steps were not skipped: Adam's count.
func (t *Trainer) StepsTaken() int64 { return t.taken }
