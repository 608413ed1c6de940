package native

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// guarded returns n bytes that end where memory ends: what reads or writes behind them faults
// there and then, with the kernel's name, and does not damage what the heap has put there.
func guarded(t testing.TB, n int) unsafe.Pointer {
	t.Helper()
	page := unix.Getpagesize()
	size := (n + page - 1) / page * page
	whole, err := unix.Mmap(-1, 0, size+page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(whole); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mprotect(whole[size:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	return unsafe.Pointer(&whole[size-n])
}
