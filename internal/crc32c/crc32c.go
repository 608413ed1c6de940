// Package crc32c is the CRC-32C of the standard library, several times as fast for
// long data where the processor multiplies polynomials 512 bits at a time. The sums
// are the same everywhere.
package crc32c

import "hash/crc32"

var table = crc32.MakeTable(crc32.Castagnoli)

// Sum is the CRC-32C of p.
func Sum(p []byte) uint32 { return Update(0, p) }

// Update adds p to a sum.
func Update(sum uint32, p []byte) uint32 {
	if fast && len(p) >= fastMin {
		return foldUpdate(sum, p)
	}
	return crc32.Update(sum, table, p)
}
