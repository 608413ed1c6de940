package checkpoint

import (
	"testing"

	"github.com/skein-ml/skein/internal/vfs"
)

func BenchmarkSave(b *testing.B) {
	table := testTable(b, 4, 16<<20)
	b.SetBytes(3 * 4 * table.Params())
	for b.Loop() {
		if _, err := Save(b.Context(), vfs.OS, b.TempDir(), table, testState(3), zeros{}); err != nil {
			b.Fatal(err)
		}
	}
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
