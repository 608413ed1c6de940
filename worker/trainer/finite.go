package trainer

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/shard"
)

// A step whose loss or gradient is not finite is skipped by all workers. Which rank that came from, and in which
// layer it began, only the rank's own worker can see: in what the forward has left of each layer, and in
// the gradients before they were added to those of others. It looks there once it is known that there is something
// to find, so a step in which all is well costs nothing.

// NotFinite says where NaN or infinity began in what a rank has computed.
type NotFinite struct {
	Rank    shard.Rank
	Layer   string // the bucket's name; "" where only all sums together tell it, see [Result]
	Forward bool   // in the layer's output; else the forward and the loss are finite, and a gradient is not
	Once    bool   // it does not come about again when the same is computed again
}

// String names the layer.
func (n NotFinite) String() string {
	switch {
	case n.Once:
		return "and not when the same is computed again: look at its memory and processor"
	case n.Forward:
		return "first in the forward of " + n.Layer
	case n.Layer == "":
		return "in the backward"
	}
	return "first in the backward of " + n.Layer
}

// sound tells whether a rank itself has computed nothing but numbers, given the norms of the pieces that it owns and
// that of its gradient at the model's input. There everything ends that is not finite on its way back, but for what
// is so in weights' gradients alone. Those are looked at if the sums are not finite: the two that were computed last,
// of which every ZeRO stage has still all.
func (t *Trainer) sound(r *rank, norms []float64, input float64) (bool, error) {
	if !finite(r.loss, []float64{input}) {
		return false, nil
	}
	if finite(0, norms) {
		return true, nil
	}
	for _, b := range t.order[max(0, len(t.order)-2):] {
		if ok, err := t.allFinite(r.grads.Flat[b]); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

// locate finds where NaN or infinity began in what the ranks here have computed in the step that was just
// skipped for it. Weights and gradients are still those of that step.
func (t *Trainer) locate() (found []NotFinite, err error) {
	for at, r := range slices.Backward(t.ranks) {
		x, ok := NotFinite{Rank: r.id, Forward: true}, true
		switch {
		case finite(r.loss, nil):
			x.Forward = false
			x.Layer, ok, err = t.firstBackward(r)
		case t.together():
			x.Layer, err = t.firstOfMany(at)
		default:
			x.Layer, x.Once, err = t.firstAgain(r, at == len(t.ranks)-1)
		}
		if err != nil {
			return nil, err
		}
		if ok {
			found = append(found, x)
		}
	}
	slices.Reverse(found)
	return found, nil
}

// infiniteStream is the layer after which the residual stream of a micro-batch is not finite any more, "" if it is to the end.
func (t *Trainer) infiniteStream(lane int) (string, error) {
	for layer := range t.cfg.Model.Layers + 1 {
		if ok, err := t.allFinite(t.model.Residual(layer, lane)); err != nil || !ok {
			return t.table.Bucket(layer).Name, err // bucket 0 is the embedding
		}
	}
	return "", nil
}

// end is the bucket of what comes after the last layer.
func (t *Trainer) end() string {
	return t.table.Bucket(min(t.cfg.Model.Layers+1, t.table.Buckets()-1)).Name
}

// firstOfMany finds where the forward of a rank went wrong whose micro-batches have run together: what they left
// is there.
func (t *Trainer) firstOfMany(at int) (string, error) {
	for j := range t.micros() {
		if layer, err := t.infiniteStream(at*t.micros() + j); err != nil || layer != "" {
			return layer, err
		}
	}
	return t.end(), nil
}

// firstAgain finds it where micro-batches run one after the other: in what the last one has left, or by running
// them again.
func (t *Trainer) firstAgain(r *rank, left bool) (layer string, once bool, err error) {
	if left {
		if layer, err = t.infiniteStream(0); err != nil || layer != "" {
			return layer, false, err
		}
	}
	for j := range t.micros() {
		t.model.ResetLoss(t.stream)
		if err := t.model.Evaluate(t.stream, r.batch.slice(j, t.cfg.Batch.Micro), device.Tensor{}, t); err != nil {
			return "", false, err
		}
		if layer, err = t.infiniteStream(0); err != nil || layer != "" {
			return layer, false, err
		}
		if loss, err := t.model.Loss(t.stream, 0); err != nil || !finite(loss, nil) {
			return t.end(), false, err
		}
	}
	return "", true, nil
}

// firstBackward is the last bucket in which a rank's own gradient is not finite, if there is any. Where gradients
// share their memory, those that are left tell only that there is one.
func (t *Trainer) firstBackward(r *rank) (layer string, found bool, err error) {
	left, last := t.order, -1
	if t.together() {
		left = t.order[max(0, len(t.order)-2):]
	}
	for _, b := range left {
		ok, err := t.allFinite(r.grads.Flat[b])
		if err != nil {
			return "", false, err
		}
		if !ok {
			last = max(last, b)
		}
	}
	if last < 0 {
		ok, err := t.allFinite(r.sparse())
		return "", !ok, err
	}
	if t.together() {
		return "", true, nil
	}
	return t.table.Bucket(last).Name, true, nil
}

// allFinite looks at every element of a tensor.
func (t *Trainer) allFinite(x device.Tensor) (bool, error) {
	size := x.DT.Size()
	for lo, n := int64(0), int64(x.Rows)*int64(x.Cols); lo < n; lo += stretchElems {
		part := x.Buf.Slice(lo*size, min(stretchElems, n-lo)*size)
		le := t.scratch(int(part.Bytes()))
		t.dev.Download(t.stream, le, part)
		if err := t.stream.Record().Wait(); err != nil {
			return false, err
		}
		if !finiteBytes(x.DT, le) {
			return false, nil
		}
	}
	return true, nil
}

// finiteBytes looks at little-endian floats: those whose exponent is all ones are not finite.
func finiteBytes(dt device.DType, le []byte) bool {
	switch dt {
	case device.F32:
		for ; len(le) > 0; le = le[4:] {
			if binary.LittleEndian.Uint32(le)&0x7f800000 == 0x7f800000 {
				return false
			}
		}
	case device.BF16:
		for ; len(le) > 0; le = le[2:] {
			if binary.LittleEndian.Uint16(le)&0x7f80 == 0x7f80 {
				return false
			}
		}
	default:
		panic(fmt.Sprintf("trainer: %v is neither gradient nor activation", dt))
	}
	return true
}
