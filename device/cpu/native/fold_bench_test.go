package native

import "testing"

// The ring's additions over a piece of a layer of SmolLM2-135M on four ranks; bytes are what is
// read and written.
func BenchmarkFold(b *testing.B) {
	if !Features().AVX512 {
		b.Skip("SKIPPED: this machine lacks AVX-512")
	}
	const n = 885_000
	wide, other, narrow := make([]byte, 4*n), make([]byte, 4*n), make([]byte, 2*n)
	for _, c := range []struct {
		name  string
		bytes int64
		fold  func()
	}{
		{"FoldAdd", 12, func() { FoldAdd(wide, wide, other) }},
		{"FoldRound", 6, func() { FoldRound(narrow, wide) }},
		{"FoldAddRound", 8, func() { FoldAddRound(narrow, narrow, other) }},
		{"FoldAddLast", 10, func() { FoldAddLast(wide, narrow, wide) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(c.bytes * n)
			for b.Loop() {
				c.fold()
			}
		})
	}
}
