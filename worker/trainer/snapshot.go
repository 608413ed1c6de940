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
	for kind := range checkpoint.Kind(states) {
		read := func(x string, off int64, part []float32) error { return src.ReadRange(x, kind, off, part) }
		if err := t.load(int(kind), host, read); err != nil {
			return err
		}
	}
	return t.begins(step, taken)
}

// load sets one kind of state of everything that belongs here, tensor by tensor.
func (t *Trainer) load(kind int, host []float32, read func(tensor string, off int64, part []float32) error) error {
	t.dropOthers()
	return t.each(func(s *segment) error {
		for b := range t.table.Buckets() {
			piece := t.table.Bucket(b).Piece(s.rank)
			for _, x := range t.table.SpansOf(b, piece.Lo, piece.Hi) {
				for off, n := int64(0), x.Bucket.Len(); off < n; off += stretchElems {
					part := host[:min(stretchElems, n-off)]
					if err := read(x.Tensor, x.Lo+off, part); err != nil {
						return fmt.Errorf("reading %s: %w", x.Tensor, err)
					}
					lo := x.Bucket.Lo + off
					t.dev.Upload(t.stream, t.part(s, s.state[kind], b, shard.Range{Lo: lo, Hi: lo + int64(len(part))}).Buf, device.HostBytes(part))
				}
			}
		}
		return nil
	})
}

// begins makes a step that was loaded the trainer's, and its working weights everybody's.
func (t *Trainer) begins(step, taken int64) error {
	t.step, t.taken, t.last, t.pending, t.summed = step, taken, nil, nil, 0
	for _, r := range t.ranks {
		r.done = 0
	}
	for _, s := range t.segments {
		if s != nil {
			s.ready = true
		}
	}
	return t.refresh()
}

// ReadState implements [checkpoint.Source] for what is held here. It may be called
// while a step is computed if [Trainer.Hold] keeps the step from being applied.
func (t *Trainer) ReadState(kind checkpoint.Kind, bucket int, lo int64, le []byte) error {
	if len(le) == 0 {
		return nil
	}
	stream := t.dev.Stream(device.StreamCopy)
	_ = t.inPieces(bucket, shard.Range{Lo: lo, Hi: lo + int64(len(le)/4)}, func(s *segment, r shard.Range) error {
		at := (r.Lo - lo) * 4
		t.dev.Download(stream, le[at:at+r.Len()*4], t.part(s, s.state[kind], bucket, r).Buf)
		return nil
	})
	return stream.Record().Wait()
}

// StepsTaken is how many steps were not skipped: Adam's count.
func (t *Trainer) StepsTaken() int64 { return t.taken }
