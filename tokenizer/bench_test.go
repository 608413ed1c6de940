package tokenizer

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// TestSpeedOfOnePass prints the speed of a first and a second pass over the corpus for scripts/oracle/tokenizer_bench.py,
// which sets the name of the vocabulary and measures the library beside it.
func TestSpeedOfOnePass(t *testing.T) {
	name := os.Getenv("SKEIN_TOKENIZER_BENCH")
	if name == "" {
		t.Skip("only run by scripts/oracle/tokenizer_bench.py")
	}
	docs := corpus(t)
	data, _ := published(t, name)
	tok := mustLoad(t, data)
	size := 0
	for _, d := range docs {
		size += len(d)
	}
	var speed [2]float64
	var ids int
	for pass := range speed {
		ids = 0
		start := time.Now()
		for _, d := range docs {
			ids += len(tok.Encode(d, false))
		}
		speed[pass] = float64(size) / time.Since(start).Seconds() / 1e6
	}
	fmt.Printf("{\"cold\": %.3f, \"warm\": %.3f, \"ids\": %d}\n", speed[0], speed[1], ids)
}

func BenchmarkEncode(b *testing.B) {
	docs := corpus(b)
	size := 0
	for _, d := range docs {
		size += len(d)
	}
	for _, name := range publishedNames {
		b.Run(name, func(b *testing.B) {
			tok, _ := publishedTokenizer(b, name)
			b.SetBytes(int64(size))
			var ids []int32
			for b.Loop() {
				for _, d := range docs {
					ids = tok.AppendEncode(ids[:0], d)
				}
			}
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	for _, name := range publishedNames {
		b.Run(name, func(b *testing.B) {
			data, _ := published(b, name)
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				mustLoad(b, data)
			}
		})
	}
}
