package shard

import (
	"fmt"
	"math/bits"

	"github.com/skein-ml/skein/internal/invariant"
)

// Filler is the index that Order.Sample gives for a place in the last batch that no sample is left for. Such a place is
// computed as a sequence without targets, so it has weight zero.
const Filler = int64(-1)

// Order says which sample stands at each place of each step. It is a pure function of its fields: the step number is the
// whole state of the data loader, so nothing has to be saved, lost or restored.
//
// Sample n = (step−1)·GlobalBatch + j, for steps from 1, belongs to epoch n div Samples and stands at position n mod Samples
// of that epoch; a keyed permutation of [0, Samples) turns the position into an index. Batches straddle epochs.
//
// Its values are part of every job's bits: changing them changes the weights that a spec trains to.
type Order struct {
	Seed        uint64
	Samples     int64 // S, samples (packs) in the data set; > 0
	GlobalBatch int64 // G, samples a step; > 0
	Total       int64 // samples of the whole job, after which only Filler follows; 0: no end
	Sequential  bool  // the order of the file in every epoch, in place of a permutation
}

// Validate names what is wrong with the fields.
func (o Order) Validate() error {
	switch {
	case o.Samples <= 0:
		return fmt.Errorf("order of %d samples: the data set is empty", o.Samples)
	case o.GlobalBatch <= 0:
		return fmt.Errorf("order: global batch is %d, must be at least 1", o.GlobalBatch)
	case o.Total < 0:
		return fmt.Errorf("order: a total of %d samples, must not be negative", o.Total)
	}
	return nil
}

// Steps is the number of steps that Total takes, the last one filled up with Filler; 0 if there is no end.
func (o Order) Steps() int64 {
	steps := o.Total / o.GlobalBatch
	if o.Total%o.GlobalBatch != 0 {
		steps++
	}
	return steps
}

// Sample is the sample at place j in [0, GlobalBatch) of a step ≥ 1, and its epoch from 0. Past Total the index is
// Filler. O(1) time whatever the step.
func (o Order) Sample(step, j int64) (index, epoch int64) {
	if invariant.Enabled {
		invariant.Check(step >= 1 && j >= 0 && j < o.GlobalBatch, "place %d of step %d, global batch %d", j, step, o.GlobalBatch)
	}
	n := (step-1)*o.GlobalBatch + j
	epoch = n / o.Samples
	if o.Total > 0 && n >= o.Total {
		return Filler, epoch
	}
	position := n % o.Samples
	if o.Sequential {
		return position, epoch
	}
	return permute(position, o.Samples, o.Seed, uint64(epoch)), epoch
}

// permuteRounds is the number of Feistel rounds. Four suffice for a permutation that looks random to a bounded adversary
// (Luby and Rackoff, 1988); the surplus is for halves of a few bits, and costs nanoseconds a sample.
const permuteRounds = 8

// minHalfBits keeps the cipher's domain at 256 at least: over a domain of 4 the rounds reach too few permutations. Small
// data sets then walk some tens of cycles more, which nobody will notice.
const minHalfBits = 4

// permute is the image of x under a permutation of [0, s) keyed by seed and epoch: a balanced Feistel network over the next
// even power of two, walked along its cycle until it lands below s. A walk that starts below s ends below s, and two starts
// never meet, so the map is one to one.
func permute(x, s int64, seed, epoch uint64) int64 {
	if s == 1 {
		return 0
	}
	half := max(minHalfBits, (bits.Len64(uint64(s-1))+1)/2)
	mask := uint64(1)<<half - 1
	key := mix64(mix64(seed) ^ epoch)
	v := uint64(x)
	for {
		left, right := v>>half, v&mask
		for round := range uint64(permuteRounds) {
			left, right = right, left^(mix64(key+round<<32+right)&mask)
		}
		v = left<<half | right
		if v < uint64(s) {
			return int64(v)
		}
	}
}

// mix64 is the finaliser of SplitMix64 (Steele, Lea, Flood, 2014) after its additive step.
func mix64(z uint64) uint64 {
	z += 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
