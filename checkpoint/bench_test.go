package checkpoint

import (
	"testing"
	"time"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
)

// BenchmarkSave also says how long the source is held: training may change no weight
// meanwhile.
func BenchmarkSave(b *testing.B) {
	table := testTable(b, 4, 16<<20)
	ranks := []shard.Rank{0, 1, 2, 3}
	b.SetBytes(3 * 4 * table.Params())
	var held time.Duration
	for b.Loop() {
		began := time.Now()
		src := lent{zeros{}, func() { held += time.Since(began) }}
		if _, err := SavePart(b.Context(), vfs.OS, b.TempDir(), table, 3, 1, ranks, src, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(held.Milliseconds())/float64(b.N), "held-ms/op")
}

func BenchmarkVerify(b *testing.B) {
	dir := b.TempDir()
	table := testTable(b, 4, 16<<20)
	if _, err := Save(b.Context(), vfs.OS, dir, table, testState(3), zeros{}); err != nil {
		b.Fatal(err)
	}
	for _, deep := range []bool{false, true} {
		b.Run(map[bool]string{false: "crc", true: "sha256"}[deep], func(b *testing.B) {
			b.SetBytes(3 * 4 * table.Params())
			for b.Loop() {
				c, err := Open(vfs.OS, dir, 3)
				if err != nil {
					b.Fatal(err)
				}
				if err := c.verify(deep); err != nil {
					b.Fatal(err)
				}
				if err := c.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
