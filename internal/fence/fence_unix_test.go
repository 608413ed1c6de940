//go:build unix

package fence

import (
	"runtime/debug"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestNobodyReadsBehindTheFence(t *testing.T) {
	for _, n := range []int{0, 1, 4095, 4096, 70_000} {
		whole, used, err := Map(n)
		if err != nil {
			t.Fatal(err)
		}
		if len(used) != n || cap(used) != n {
			t.Errorf("%d bytes: %d, with room for %d", n, len(used), cap(used))
		}
		for i := range used {
			used[i]++
		}
		if !faults(unsafe.Add(unsafe.Pointer(unsafe.SliceData(whole)), cap(whole)-unix.Getpagesize())) {
			t.Errorf("%d bytes: what stands behind them can be read", n)
		}
		if err := unix.Munmap(whole); err != nil {
			t.Error(err)
		}
	}
}

// faults tells whether reading a byte is refused by the system.
func faults(p unsafe.Pointer) (refused bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { refused = recover() != nil }()
	return *(*byte)(p) == 1
}
