package data

import (
	"testing"

	"github.com/skein-ml/skein/internal/vfs"
)

// The demo's data set: 117 thousand dialogues, 5.6 million tokens.
func BenchmarkPrepareCMUDict(b *testing.B) {
	enc := smolEncoder(b)
	train, _ := cmudictRows(b, 1<<30)
	for b.Loop() {
		spec := Spec{Train: []string{train}, SequenceLength: 512, Packing: true, CacheDir: b.TempDir()}
		_, err := Prepare(b.Context(), vfs.OS, spec, enc)
		must(b, err)
	}
}

// Packs in random order from a data set much larger than the cache of records.
func BenchmarkBatchShuffled(b *testing.B) {
	m := vfs.NewMem()
	dir, _ := smallSet(b, m, 512, 128*64, 100)
	d, err := Open(m, dir)
	must(b, err)
	defer closing(b, d)
	var batch Batch
	indices := make([]int64, 4)
	n := int64(0)
	for b.Loop() {
		for i := range indices {
			n = (n + 5003) % d.Len()
			indices[i] = n
		}
		must(b, d.Batch(b.Context(), indices, &batch))
	}
}
