package bench

import (
	"context"
	"fmt"
	"hash/fnv"
	"math"

	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/model/config"
)

// weights are a model's first weights: matrices uniform with the standard deviation that
// the configuration asks for, norms one, biases zero. Kernels take as long with any
// numbers but zeros, NaN and subnormals.
type weights struct{ model config.Config }

func (w weights) Config() config.Config { return w.model }

func (w weights) Close() error { return nil }

func (w weights) Shape(name string) []int64 {
	if t, ok := w.tensor(name); ok {
		return t.Shape()
	}
	return nil
}

func (w weights) tensor(name string) (config.Tensor, bool) {
	for _, t := range w.model.Tensors() {
		if t.Name == name {
			return t, true
		}
	}
	return config.Tensor{}, false
}

// ReadRange implements [config.Weights].
func (w weights) ReadRange(name string, elemOff int64, dst []float32) error {
	t, ok := w.tensor(name)
	if !ok {
		return fmt.Errorf("bench: the model has no tensor %s", name)
	}
	if t.Vector {
		one := float32(0)
		if !isBias(name) {
			one = 1
		}
		for i := range dst {
			dst[i] = one
		}
		return nil
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never fails
	seed, half := h.Sum64(), w.model.InitStd*math.Sqrt(3)
	for i := range dst {
		dst[i] = float32(half * (2*unit(seed+uint64(elemOff)+uint64(i)) - 1))
	}
	return nil
}

func isBias(name string) bool {
	const suffix = ".bias"
	return len(name) > len(suffix) && name[len(name)-len(suffix):] == suffix
}

// unit is the number in [0, 1) that belongs to n (splitmix64).
func unit(n uint64) float64 {
	return float64(mix(n)>>11) / (1 << 53)
}

func mix(n uint64) uint64 {
	n += 0x9e3779b97f4a7c15
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// noTarget says that nothing is predicted at a token, the last one of a document.
const noTarget = -100

// samples are sequences of random tokens, each one document, whose targets are the next tokens.
type samples struct{ seqLen, vocab int }

// Batch fills dst with the samples of these indices.
func (s samples) Batch(_ context.Context, indices []int64, dst *data.Batch) error {
	dst.Rows, dst.SeqLen, dst.TargetCount = len(indices), s.seqLen, int64(len(indices)*(s.seqLen-1))
	dst.Tokens, dst.Targets, dst.CuDocs, dst.Padding = dst.Tokens[:0], dst.Targets[:0], append(dst.CuDocs[:0], 0), dst.Padding[:0]
	for _, index := range indices {
		first := uint64(index) * uint64(s.seqLen)
		for i := range uint64(s.seqLen) {
			dst.Tokens = append(dst.Tokens, int32(mix(first+i)%uint64(s.vocab)))
		}
		dst.Targets = append(dst.Targets, dst.Tokens[len(dst.Tokens)-s.seqLen+1:]...)
		dst.Targets = append(dst.Targets, noTarget)
		dst.CuDocs = append(dst.CuDocs, int32(len(dst.Tokens)))
		dst.Padding = append(dst.Padding, 0)
	}
	return nil
}
