package trainer

import (
	"slices"
	"time"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/shard"
)

// A rank is slow that takes slowTimes as long as the median of all ranks, and a straggler if
// it does so for slowSteps in a row: everybody waits for it in every step.
const (
	slowTimes = 1.5
	slowSteps = 5
)

// Straggler is the rank that all others wait for, step after step.
type Straggler struct {
	Rank   shard.Rank
	Worker int
	Data   bool    // it waits for its samples longer than others; else it computes longer
	Times  float64 // as long as the median rank, in the last step
	Steps  int     // in a row
}

// laggards finds stragglers by the times in votes.
type laggards struct {
	slow  []int // by rank: steps in a row in which it was slow
	times []time.Duration
}

// look takes in the votes of a step, in rank order, and gives the straggler, if there is one:
// of several the slowest.
func (l *laggards) look(votes []allreduce.Vote) (s Straggler, found bool) {
	if len(l.slow) != len(votes) {
		l.slow = make([]int, len(votes))
	}
	median := l.median(votes, func(v *allreduce.Vote) time.Duration { return v.Data + v.Compute })
	for i := range votes {
		v := &votes[i]
		took := v.Data + v.Compute
		if median <= 0 || float64(took) <= slowTimes*float64(median) {
			l.slow[i] = 0
			continue
		}
		l.slow[i]++
		if times := float64(took) / float64(median); l.slow[i] >= slowSteps && times > s.Times {
			s, found = Straggler{Rank: v.Rank, Times: times, Steps: l.slow[i]}, true
		}
	}
	if found {
		v := &votes[s.Rank]
		data := v.Data - l.median(votes, func(v *allreduce.Vote) time.Duration { return v.Data })
		s.Data = data > v.Compute-l.median(votes, func(v *allreduce.Vote) time.Duration { return v.Compute })
	}
	return s, found
}

// median is that of the ranks' times, the lower one of two: of two ranks one can be slow.
func (l *laggards) median(votes []allreduce.Vote, of func(*allreduce.Vote) time.Duration) time.Duration {
	l.times = l.times[:0]
	for i := range votes {
		l.times = append(l.times, of(&votes[i]))
	}
	slices.Sort(l.times)
	return l.times[(len(l.times)-1)/2]
}
