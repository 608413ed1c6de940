package cpu_test

import (
	"testing"

	"github.com/skein-ml/skein/device/devicetest"
)

// digests are what each numeric class makes of fixed data. A class's bits do not change: who
// changes them raises the revision in path.go and adds a line here.
var digests = map[string]string{
	"generic r1":          "ad73fe93e76de6445671ee8b",
	"avx2 r1":             "5d0cb8ebd2cfccd9af21d3b6",
	"avx512 r1":           "5d0cb8ebd2cfccd9af21d3b6",
	"avx512-bf16 r1":      "ff5eca8d8f5cb541e0cf4c65",
	"avx512-bf16-high r1": "940d16f3fa075506ec2317c8",
	"amx-bf16-high r1":    "e436800385c43b85332b6483",
	"amx-bf16 r1":         "2ad3ccd5f8e5fadc2cedb56b",
}

// plainDigests are of operations that came later: they do not raise a revision, since no
// bit that a class made before is another.
var plainDigests = map[string]string{
	"generic r1":          "0c32f019d7a987d69dcbf6c9",
	"avx2 r1":             "e57599d0f4cd05247b88f60c",
	"avx512 r1":           "e57599d0f4cd05247b88f60c",
	"avx512-bf16 r1":      "e57599d0f4cd05247b88f60c",
	"avx512-bf16-high r1": "e57599d0f4cd05247b88f60c",
	"amx-bf16-high r1":    "e57599d0f4cd05247b88f60c",
	"amx-bf16 r1":         "e57599d0f4cd05247b88f60c",
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
