package cpu_test

import (
	"testing"

	"github.com/skein-ml/skein/device/devicetest"
)

// digests are what each numeric class makes of fixed data. A class's bits do not change: who
// changes them raises the revision in path.go and adds a line here.
var digests = map[string]string{
	"generic r1":          "ad73fe93e76de6445671ee8b",
	"avx2 r2":             "4da537c116849105de9f3b1b",
	"avx512 r2":           "4da537c116849105de9f3b1b",
	"avx512-bf16 r2":      "d5f62e0e23f666e2dc69817f",
	"avx512-bf16-high r2": "7ac9cf62a2174708490bd5ff",
	"amx-bf16-high r2":    "a5952b72e65d29f78ef13c41",
	"amx-bf16 r2":         "f51040c6b0a7c63f598a7f7e",
}

// plainDigests are of operations that came later: they do not raise a revision, since no
// bit that a class made before is another.
var plainDigests = map[string]string{
	"generic r1":          "0c32f019d7a987d69dcbf6c9",
	"avx2 r2":             "e57599d0f4cd05247b88f60c",
	"avx512 r2":           "e57599d0f4cd05247b88f60c",
	"avx512-bf16 r2":      "e57599d0f4cd05247b88f60c",
	"avx512-bf16-high r2": "e57599d0f4cd05247b88f60c",
	"amx-bf16-high r2":    "e57599d0f4cd05247b88f60c",
	"amx-bf16 r2":         "e57599d0f4cd05247b88f60c",
}

func TestAClassKeepsItsBits(t *testing.T) {
	for _, p := range allPaths() {
		t.Run(p.Name, func(t *testing.T) {
			if !p.Available {
				t.Skipf("SKIPPED: this machine lacks %s", p.Why)
			}
			d := opener(t, p.Name, 2)()
			defer d.Close()
			if got := devicetest.Digest(t, d); got != digests[p.Class] {
				t.Errorf("class %q has digest %s, want %s", p.Class, got, digests[p.Class])
			}
			if got := devicetest.PlainDigest(t, d); got != plainDigests[p.Class] {
				t.Errorf("class %q has digest %s for plain layers, want %s", p.Class, got, plainDigests[p.Class])
			}
		})
	}
}
