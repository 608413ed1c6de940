package raftlog

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/skein-ml/skein/internal/vfs"
)

// checked looks at a database of these bytes.
func checked(t *testing.T, name string, b []byte) error {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := vfs.OS.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return checkBolt(f)
}

// TestADatabaseCutAnywhereIsNotOpened cuts it at every page, and within pages. What it lacks
// would be read from memory that is something else's.
func TestADatabaseCutAnywhereIsNotOpened(t *testing.T) {
	_, dir := damaged(t)
	whole, err := os.ReadFile(filepath.Join(dir, logFile))
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "cut")
	if err := checked(t, name, whole); err != nil {
		t.Fatalf("whole: %v", err)
	}
	f, err := vfs.OS.Open(filepath.Join(dir, logFile))
	if err != nil {
		t.Fatal(err)
	}
	root, ok := newestRoot(f)
	f.Close()
	if need := int(root.pages) * int(root.pageBytes); !ok || need > len(whole) || need < len(whole)/8 {
		t.Fatalf("%d bytes, %+v, %t", len(whole), root, ok)
	}
	for size := 2 * int(root.pageBytes); size < len(whole); size += 1000 {
		err := checked(t, name, whole[:size])
		if cut := size < int(root.pages)*int(root.pageBytes); cut != errors.Is(err, ErrCorrupt) || !cut && err != nil {
			t.Errorf("%d of %d bytes: %v", size, len(whole), err)
		}
	}
	for _, size := range []int{0, 1, 79, int(root.pageBytes) - 1} { // the database says so itself
		if err := checked(t, name, whole[:size]); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// TestFreePagesThatCannotBeAreNamed damages each byte of the list, and of its page's head.
func TestFreePagesThatCannotBeAreNamed(t *testing.T) {
	_, dir := damaged(t)
	whole, err := os.ReadFile(filepath.Join(dir, logFile))
	if err != nil {
		t.Fatal(err)
	}
	f, err := vfs.OS.Open(filepath.Join(dir, logFile))
	if err != nil {
		t.Fatal(err)
	}
	root, ok := newestRoot(f)
	f.Close()
	if !ok || root.freeList == boltNoFreeList {
		t.Fatalf("%+v", root)
	}
	name := filepath.Join(t.TempDir(), "bad")
	at := int(root.freeList) * int(root.pageBytes)
	for what, c := range map[string]struct{ offset, value int }{
		"another kind of page":           {8, 0x02},
		"more free pages than there are": {11, 0x70},
		"a page beyond the last":         {boltHeaderBytes + 7, 1},
		"the page of a root":             {boltHeaderBytes, 0},
	} {
		bad := append([]byte(nil), whole...)
		bad[at+c.offset] = byte(c.value)
		if err := checked(t, name, bad); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// FuzzRootsAndFreePages looks at files of any bytes: what is refused is refused by name.
func FuzzRootsAndFreePages(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, boltRootBytes))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := checked(t, filepath.Join(t.TempDir(), "any"), b); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Error(err)
		}
	})
}
