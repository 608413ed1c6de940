package allreduce

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"time"

	"github.com/skein-ml/skein/shard"
)

// Requests are what workers ask to happen after a step. A decision record carries
// the requests of all votes.
type Requests uint8

// The requests.
const (
	// RequestCheckpoint asks for a checkpoint.
	RequestCheckpoint Requests = 1
	// RequestYield asks all workers to stop when they have applied the step, because the
	// placement is to change.
	RequestYield Requests = 2
)

// requestsAll are the bits that a vote may have: those kept for later are passed on.
const requestsAll Requests = 1<<4 - 1

// Vote is what a rank says when its pieces are reduced.
type Vote struct {
	Step int64
	Rank shard.Rank
	// SqNorms is the sum of squares of the reduced gradient in the rank's piece of
	// each bucket, unscaled, in fp64.
	SqNorms  []float64
	Loss     float64 // sum of the losses of the rank's target tokens
	Tokens   int64   // target tokens
	Finite   bool    // nothing that the rank has computed itself was NaN or infinite, as far as it has looked
	Requests Requests
	// Data and Compute are how long the rank waited for its samples and computed. No decision
	// depends on them; they tell rank 0's worker who is slow.
	Data, Compute time.Duration
}

// Rule is what a decision depends on besides the votes: all of it fixed by the job.
type Rule struct {
	WorldSize int
	Buckets   int
	LossShift int     // from LossShift: backward ran on the sum of losses × 2^−LossShift
	Clip      float64 // largest norm of the mean gradient; 0: no clipping
}

// LossShift is s = ⌊log2(globalBatch·sequenceTokens)⌋: backward runs on the sum of
// the token losses × 2^−s, which keeps gradients in range and costs no bits.
func LossShift(globalBatch, sequenceTokens int) int {
	return bits.Len64(uint64(globalBatch)*uint64(sequenceTokens)) - 1
}

// ErrVotes is returned for a set of votes that no decision can rest on.
var ErrVotes = errors.New("votes do not add up to a decision")

// Decide makes the decision record of a step from the votes of all ranks, in any
// order. rateBits is the step's learning rate, taken the number of steps taken
// before it. It is a pure function: floating-point numbers are added in rank order,
// within a rank in bucket order.
//
// The gradient that ranks hold is the sum over tokens × 2^−s. With N target tokens
// in all, the mean gradient is 2^s/N times that; its norm is clipped to rule.Clip:
//
//	α = 2^s/N · min(1, clip / (‖g‖·2^s/N + 1e-6))
func Decide(votes []Vote, rule Rule, rateBits uint32, taken int64) (Decision, error) {
	byRank, err := sortVotes(votes, rule)
	if err != nil {
		return Decision{}, err
	}
	d := Decision{Step: byRank[0].Step, RateBits: rateBits, Taken: taken}
	d.Culprit, _ = NotFinite(byRank)
	var loss, sqNorm float64
	for _, v := range byRank {
		var own float64
		for _, x := range v.SqNorms {
			own += x
		}
		sqNorm += own
		loss += v.Loss
		d.Tokens += v.Tokens
		d.Requests |= v.Requests
	}
	if d.Tokens == 0 {
		d.Action, d.Cause, d.Culprit = Skip, CauseNoTokens, NoCulprit
		return d, nil
	}
	mean := math.Ldexp(1, rule.LossShift) / float64(d.Tokens)
	// The conversion keeps the product from being fused with the sum below.
	d.Loss, d.GradNorm = loss/float64(d.Tokens), float64(math.Sqrt(sqNorm)*mean)
	alpha := mean
	if rule.Clip > 0 {
		alpha *= min(1, rule.Clip/(d.GradNorm+1e-6))
	}
	if scale := float32(alpha); d.Culprit == NoCulprit && finite(d.GradNorm) && finite(d.Loss) && finite(float64(scale)) {
		d.Action, d.ScaleBits, d.Taken = Apply, math.Float32bits(scale), taken+1
		return d, nil
	}
	d.Action, d.Cause = Skip, CauseNotFinite
	return d, nil
}

// NotFinite says where NaN or infinity showed: the rank that a decision names, or
// NoCulprit, and the buckets with a sum that is not finite, ascending. A rank's loss is its
// own, so the lowest rank whose loss is not finite is the one to look at; if all losses
// are finite, the lowest that says that its own gradient is not; and if no rank does, the lowest
// that sees it in the sums of its pieces. Backward goes from the last bucket to the first and carries on what is
// not finite, so that it began in the last of the buckets, or in the forward before it.
func NotFinite(votes []Vote) (rank shard.Rank, buckets []int) {
	rank = NoCulprit
	surest := 0
	for _, v := range votes {
		var own float64
		for b, x := range v.SqNorms {
			own += x
			if !finite(x) && !slices.Contains(buckets, b) {
				buckets = append(buckets, b)
			}
		}
		sure := 0
		switch {
		case !finite(v.Loss):
			sure = 3
		case !v.Finite:
			sure = 2
		case !finite(own):
			sure = 1
		}
		if sure > surest || sure == surest && sure > 0 && v.Rank < rank {
			rank, surest = v.Rank, sure
		}
	}
	slices.Sort(buckets)
	return rank, buckets
}

// sortVotes gives votes in rank order, the same slice where they are, and checks that there
// is one of each rank, all about the same step.
func sortVotes(votes []Vote, rule Rule) ([]Vote, error) {
	if len(votes) != rule.WorldSize || len(votes) == 0 {
		return nil, fmt.Errorf("%w: %d votes of %d ranks", ErrVotes, len(votes), rule.WorldSize)
	}
	var seen uint64 // a bit for each rank: there are at most [shard.WorldSizeMax]
	sorted := true
	for i, v := range votes {
		switch {
		case v.Rank < 0 || int(v.Rank) >= len(votes):
			return nil, fmt.Errorf("%w: rank %d of %d", ErrVotes, v.Rank, len(votes))
		case seen&(1<<v.Rank) != 0:
			return nil, fmt.Errorf("%w: two votes of rank %d", ErrVotes, v.Rank)
		case v.Step != votes[0].Step:
			return nil, fmt.Errorf("%w: rank %d is at step %d, rank %d at step %d", ErrVotes, v.Rank, v.Step, votes[0].Rank, votes[0].Step)
		case len(v.SqNorms) != rule.Buckets:
			return nil, fmt.Errorf("%w: rank %d has norms of %d buckets, the model has %d", ErrVotes, v.Rank, len(v.SqNorms), rule.Buckets)
		case v.Tokens < 0:
			return nil, fmt.Errorf("%w: rank %d counts %d tokens", ErrVotes, v.Rank, v.Tokens)
		}
		seen |= 1 << v.Rank
		sorted = sorted && int(v.Rank) == i
	}
	if sorted {
		return votes, nil
	}
	byRank := make([]Vote, len(votes))
	for _, v := range votes {
		byRank[v.Rank] = v
	}
	return byRank, nil
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }
