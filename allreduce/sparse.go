package allreduce

import (
	"slices"

	"github.com/skein-ml/skein/internal/invariant"
	"github.com/skein-ml/skein/shard"
)

// The sparse part of an embedding's gradient does not go round the ring. Each rank
// has rows for the ids that its tokens use: ids unique and ascending, one fp32 row
// each. They are cut at piece boundaries and go straight to the owners. An owner
// adds them to its piece after the dense fold is complete:
//
//	for rank 0, 1, …, V−1:  for the rank's ids, ascending:  R[row id] += row
//
// The rows travel in fp32 on every wire and nothing is rounded in between, so the
// order of the ranks is all that fixes the bits. The addition is the device's.

// Rows is one rank's contribution to one piece of an embedding.
type Rows struct {
	Rank shard.Rank
	// Lo and Hi bound the indices into the rank's ids whose rows touch the piece.
	// The first and the last of them may lie only partly inside.
	Lo, Hi int
}

// AppendSparseOrder lists what an owner adds to a piece, in order, behind what order has:
// one entry for each rank that has rows there. The embedding is [vocab, width] and begins at
// element base of its bucket; ids are by rank.
func AppendSparseOrder(order []Rows, piece shard.Range, base, width int64, ids [][]int32) []Rows {
	for r, own := range ids {
		if invariant.Enabled {
			invariant.Check(ascending(own), "ids of rank %d are not ascending and unique", r)
		}
		// Row id covers elements [base + id·width, base + (id+1)·width).
		lo, _ := slices.BinarySearchFunc(own, piece.Lo, func(id int32, at int64) int {
			return sign(base + (int64(id)+1)*width - 1 - at)
		})
		hi, _ := slices.BinarySearchFunc(own, piece.Hi, func(id int32, at int64) int {
			return sign(base + int64(id)*width - at)
		})
		if lo < hi {
			order = append(order, Rows{shard.Rank(r), lo, hi})
		}
	}
	return order
}

func ascending(ids []int32) bool {
	for i := 1; i < len(ids); i++ {
		if ids[i-1] >= ids[i] {
			return false
		}
	}
	return true
}

func sign(x int64) int {
	switch {
	case x < 0:
		return -1
	case x > 0:
		return 1
	}
	return 0
}
