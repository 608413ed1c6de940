package trainer

import (
	"fmt"
	"unsafe"

	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/device"
)

// States gives back what a checkpoint holds; a [checkpoint.Checkpoint] is one.
type States interface {
	// ReadRange fills dst with elements of a tensor's weights or moments from elemOff.
	ReadRange(tensor string, kind checkpoint.Kind, elemOff int64, dst []float32) error
}

// Restore sets weights, moments and counts to those of a checkpoint.
func (t *Trainer) Restore(src States, step, taken int64) error {
	host := make([]float32, stretchElems)
	for kind, flats := range t.kinds() {
		for b := range t.table.Buckets() {
			for _, x := range t.table.Bucket(b).Tensors() {
				for off, n := int64(0), x.Bucket.Len(); off < n; off += stretchElems {
					part := host[:min(stretchElems, n-off)]
					if err := src.ReadRange(x.Tensor, checkpoint.Kind(kind), off, part); err != nil {
						return fmt.Errorf("reading %s: %w", x.Tensor, err)
					}
					lo := int(x.Bucket.Lo + off)
					t.dev.Upload(t.stream, flats[b].ColRange(lo, lo+len(part)).Buf, device.HostBytes(part))
				}
			}
		}
	}
	t.step, t.taken = step, taken
	return t.refresh()
}

// ReadState implements [checkpoint.Source].
func (t *Trainer) ReadState(kind checkpoint.Kind, bucket int, lo int64, le []byte) error {
	if len(le) == 0 {
		return nil
	}
	return t.download(t.kinds()[kind][bucket], lo, unsafe.Slice((*float32)(unsafe.Pointer(&le[0])), len(le)/4))
}

// kinds are the flat buckets of each kind of state, by [checkpoint.Kind].
func (t *Trainer) kinds() [3][]device.Tensor {
	s := &t.state
	return [3][]device.Tensor{checkpoint.Master: s.master, checkpoint.Moment1: s.m, checkpoint.Moment2: s.v}
}

// StepsTaken is how many steps were not skipped: Adam's count.
func (t *Trainer) StepsTaken() int64 { return t.taken }
