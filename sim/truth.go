package sim

import (
	"fmt"
	"math"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/shard"
)

// value stands for the contents of a stretch of memory: equal values, equal bits.
type value uint64

// mix is the value of something made from others, in this order.
func mix(of ...value) value {
	h := value(0x9e3779b97f4a7c15)
	for _, x := range of {
		h ^= x + 0x9e3779b97f4a7c15 + h<<6 + h>>2
		h ^= h >> 30
		h *= 0xbf58476d1ce4e5b9
		h ^= h >> 27
		h *= 0x94d049bb133111eb
		h ^= h >> 31
	}
	return h
}

// The arithmetic of a step, on values. weights are those of all ranks.
func gradient(weights value, step int64, rank, piece shard.Rank) value {
	return mix(1, weights, value(step), value(rank), value(piece))
}

func add(sum, own value) value { return mix(2, sum, own) }

func applied(state, sum value, d allreduce.Decision) value {
	return mix(3, state, sum, value(d.Step), value(d.ScaleBits), value(math.Float64bits(d.Loss)))
}

func initial(rank shard.Rank) value { return mix(4, value(rank)) }

// together is the value of the weights of all ranks.
func together(state []value) value { return mix(append([]value{5}, state...)...) }

// squared is what a vote says of a rank's sum.
func squared(sum value) float64 { return float64(sum>>40) / 1024 }

// loss is what a rank says of its share of a batch.
func loss(weights value, step int64, rank shard.Rank) float64 {
	return float64(mix(6, weights, value(step), value(rank))>>44) / 256
}

// truth is an undisturbed run.
type truth struct {
	state     [][]value            // by step and rank
	decisions []allreduce.Decision // by step; the first is none
}

func newTruth(worldSize int, steps int64) *truth {
	t := &truth{decisions: make([]allreduce.Decision, 1)}
	state := make([]value, worldSize)
	for r := range state {
		state[r] = initial(shard.Rank(r))
	}
	t.state = append(t.state, state)
	for step := int64(1); step <= steps; step++ {
		weights := together(state)
		sums, votes := make([]value, worldSize), make([]allreduce.Vote, worldSize)
		for p := range shard.Rank(worldSize) {
			for i, r := range shard.FoldOrder(p, worldSize) {
				if g := gradient(weights, step, r, p); i == 0 {
					sums[p] = g
				} else {
					sums[p] = add(sums[p], g)
				}
			}
			votes[p] = vote(weights, step, p, sums[p], 0)
		}
		d, err := decide(votes)
		if err != nil {
			panic(err)
		}
		next := make([]value, worldSize)
		for r := range state {
			next[r] = applied(state[r], sums[r], d)
		}
		t.state, t.decisions = append(t.state, next), append(t.decisions, d)
		state = next
	}
	return t
}

func vote(weights value, step int64, rank shard.Rank, sum value, requests allreduce.Requests) allreduce.Vote {
	return allreduce.Vote{Step: step, Rank: rank, SqNorms: []float64{squared(sum)}, Loss: loss(weights, step, rank), Tokens: 1, Finite: true, Requests: requests}
}

func decide(votes []allreduce.Vote) (allreduce.Decision, error) {
	rule := allreduce.Rule{WorldSize: len(votes), Buckets: 1, LossShift: 3, Clip: 1}
	return allreduce.Decide(votes, rule, math.Float32bits(1e-3), votes[0].Step-1)
}

// weights is the hash of a checkpoint at a step.
func (t *truth) weights(step int64) string {
	return fmt.Sprintf("%016x", uint64(together(t.state[step])))
}

// holds checks the state of a rank after a step.
func (w *world) holds(who string, rank shard.Rank, step int64, state value) {
	if want := w.truth.state[step][rank]; state != want {
		_ = w.wrong("%s has %x as rank %d after step %d, undisturbed it is %x", who, state, rank, step, want)
	}
}

// decided checks a decision.
func (w *world) decided(who string, d allreduce.Decision) {
	d.Requests = 0
	if want := w.truth.decisions[d.Step]; d != want {
		_ = w.wrong("%s has another decision of step %d: %+v, undisturbed it is %+v", who, d.Step, d, want)
	}
}
