//go:build unix

// Package fence maps memory that ends where a page begins that nobody may touch: what reads or
// writes behind it, such as an assembly kernel, is stopped there and then, by name, and damages
// nothing.
package fence

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Map returns n zero bytes in front of such a page, and the whole mapping, which the caller
// gives to unix.Munmap in the end.
func Map(n int) (whole, used []byte, err error) {
	page := os.Getpagesize()
	size := (n + page - 1) &^ (page - 1)
	whole, err = unix.Mmap(-1, 0, size+page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, nil, fmt.Errorf("map %d bytes: %w", n, err)
	}
	if err := unix.Mprotect(whole[size:], unix.PROT_NONE); err != nil {
		_ = unix.Munmap(whole) // the first error is the one to report
		return nil, nil, fmt.Errorf("protect a page: %w", err)
	}
	return whole, whole[size-n : size : size], nil
}
