package data

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/skein-ml/skein/internal/vfs"
)

// testdata/v1 was written by the first version of this package: pronounce(20) by byteEncoder at T = 64.
func TestDataOfVersion1IsStillRead(t *testing.T) {
	m := memWith(t, map[string]string{"/a.jsonl": pronounce(20)})
	p, err := prepareOn(m, demoSpec())
	must(t, err)
	if dir := os.Getenv("SKEIN_WRITE_TESTDATA"); dir != "" { // how it was written; a new version gets a folder of its own
		must(t, os.MkdirAll(dir, 0o755))
		for _, name := range []string{manifestName, "packs-00000.arrow"} {
			b, err := vfs.ReadFile(m, filepath.Join(p.Train, name), 1<<20)
			must(t, err)
			must(t, os.WriteFile(filepath.Join(dir, name), b, 0o644))
		}
	}
	old, err := ReadManifest(vfs.OS, "testdata/v1")
	must(t, err)
	if old.ContentHash != p.TrainManifest.ContentHash {
		t.Errorf("content hash %s, today's packs of the same rows have %s", old.ContentHash, p.TrainManifest.ContentHash)
	}
	if !reflect.DeepEqual(readAll(t, vfs.OS, "testdata/v1"), readAll(t, m, p.Train)) {
		t.Error("the packs differ from what is prepared from the same rows today")
	}
}
