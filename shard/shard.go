// Package shard is the arithmetic of cutting a job into ranks: which elements of
// the parameters a rank owns, which sequences it reads, in which order gradients
// are added, where ranks run, and how many bytes that takes. Everything here is a
// pure function; there is no I/O, and no other package of Skein but internal
// leaves is imported.
//
// The words, from the outside in:
//
//	model   = buckets               one bucket per layer, embedding, final norm (+ head)
//	bucket  = tensors | padding     padded to a multiple of worldSize·Align elements
//	bucket  = piece 0 | … | piece V−1    equal cuts; rank r owns piece r of every bucket
//	segment = all pieces of a rank
//
// The cut is a function of the model and the world size alone. Weights, moments,
// gradients, mirrors, norms and checkpoint ranges all use it, in every ZeRO stage;
// changing it changes the bits of every job.
package shard

import "fmt"

// Align is the number of elements that a piece's length is a multiple of.
const Align = 256

// WorldSizeMax is the most logical ranks that a job may have.
const WorldSizeMax = 16

// Rank is a logical rank of a job, from 0 to its world size − 1. Everything
// numeric is a function of ranks; which worker a rank runs on is Placement's.
type Rank int

// Range is the half-open range of elements [Lo, Hi).
type Range struct{ Lo, Hi int64 }

// Len is the number of elements in the range.
func (r Range) Len() int64 { return r.Hi - r.Lo }

// CheckWorldSize refuses a world size that no job may have.
func CheckWorldSize(worldSize int) error {
	if worldSize < 1 || worldSize > WorldSizeMax {
		return fmt.Errorf("world size %d: must be between 1 and %d", worldSize, WorldSizeMax)
	}
	return nil
}

// FoldOrder is the order in which ranks' gradients of a piece are added:
// piece+1, piece+2, …, worldSize−1, 0, …, piece. The owner comes last, which is
// the order in which a ring delivers partial sums to it.
func FoldOrder(piece Rank, worldSize int) []Rank {
	order := make([]Rank, worldSize)
	for i := range order {
		order[i] = Rank((int(piece) + 1 + i) % worldSize)
	}
	return order
}

// RankSequences is the range [lo, hi) of sequences of a global batch that a rank
// reads, in ascending order. globalBatch must be a multiple of worldSize.
func RankSequences(r Rank, globalBatch, worldSize int) (lo, hi int) {
	share := globalBatch / worldSize
	return int(r) * share, (int(r) + 1) * share
}

// CheckGlobalBatch refuses a global batch that does not give every rank the same
// number of sequences, and names the nearest ones that do.
func CheckGlobalBatch(globalBatch, worldSize int) error {
	if globalBatch >= worldSize && globalBatch%worldSize == 0 {
		return nil
	}
	below, above := globalBatch/worldSize*worldSize, (globalBatch/worldSize+1)*worldSize
	if below < worldSize {
		return fmt.Errorf("global batch %d: the world size %d does not divide it; use %d", globalBatch, worldSize, above)
	}
	return fmt.Errorf("global batch %d: the world size %d does not divide it; use %d or %d", globalBatch, worldSize, below, above)
}
