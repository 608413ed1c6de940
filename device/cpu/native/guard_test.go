package native

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/skein-ml/skein/internal/fence"
)

// guarded returns n bytes that end where memory ends.
func guarded(t testing.TB, n int) unsafe.Pointer {
	t.Helper()
	whole, used, err := fence.Map(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(whole) })
	return unsafe.Pointer(unsafe.SliceData(used))
}
