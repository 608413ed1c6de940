//go:build unix

package cpu

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/skein-ml/skein/internal/fence"
	"github.com/skein-ml/skein/internal/invariant"
)

const hugePage = 2 << 20

// mapping is zeroed memory from the system, outside of the Go heap, so that the
// collector neither scans nor moves it.
type mapping struct{ whole, used []byte }

// mapMemory returns n bytes; big ones begin on a huge page.
func mapMemory(n int64) (mapping, error) {
	if n == 0 {
		return mapping{}, nil
	}
	if invariant.Enabled && n < hugePage {
		whole, used, err := fence.Map(int(n+63) &^ 63) // it starts at a cache line
		if err != nil {
			return mapping{}, err
		}
		return mapping{whole, used[:n:n]}, nil
	}
	size := n
	if n >= hugePage {
		size += hugePage
	}
	whole, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return mapping{}, fmt.Errorf("map %d bytes: %w", n, err)
	}
	used := whole[:n:n]
	if n >= hugePage {
		skip := -addressOf(whole) & (hugePage - 1)
		used = whole[skip : skip+uintptr(n) : skip+uintptr(n)]
		adviseHugePages(used)
	}
	return mapping{whole, used}, nil
}

func (m mapping) unmap() {
	if m.whole != nil {
		_ = unix.Munmap(m.whole) // fails only for an address that is not ours
	}
}
