//go:build !unix

package cpu

// mapping is zeroed memory of the Go heap, where there is no mmap.
type mapping struct{ used []byte }

func mapMemory(n int64) (mapping, error) {
	if n == 0 {
		return mapping{}, nil
	}
	whole := make([]byte, n+63)
	skip := -addressOf(whole) & 63
	return mapping{whole[skip : skip+uintptr(n) : skip+uintptr(n)]}, nil
}

func (m mapping) unmap() {}

// systemMemory is 0: unknown.
func systemMemory() int64 { return 0 }
