package protocol

import (
	"slices"
)

// This file is a model of the rules for three workers and three ranks, small enough to
// visit every state that it can get into. A rank's segment is one piece; messages are not
// kept but read off their sender, dead or gone on as it may be, at any later moment or
// never. So every message may be late, lost, or come again. The plan of a new generation
// is Recover's, the product's own.
//
// What the model leaves out: numbers (a sum is there or is not), how a piece is cut into
// frames, and the checkpoint behind all of it (a job that must go back to it is over
// here: it would begin again like the first generation).

const (
	workersN = 3
	ranksN   = 3
	gensMax  = 3 // generations 1 … gensMax
)

// rules are those that a test can take away.
type rules struct {
	mirroredVotes bool // a vote waits for the sums of what is mirrored
	sealing       bool // who has reported does nothing more in its generation
	decisionAhead bool // D comes with the first of the new weights
	fencing       bool // frames of other generations are refused
	fillOneStep   bool // a fill counts only if the owner has not applied anything meanwhile
	fillThenVote  bool // a fill that ends after its worker's vote does not count
	logDecision   bool // the log keeps D(target) of a generation
	keepSources   bool // what was given to others is kept until the first step is decided
	sealUnentered bool // a report is also a promise not to enter what it helps to end
	sealApplies   bool // what is decided is applied before it is reported
	zombiesEmpty  bool // who was given up is not read any more
	processes     bool // a generation places processes: one of the same name is not placed
}

var allRules = rules{true, true, true, true, true, true, true, true, true, true, true, true}

// bounds say how far to go.
type bounds struct {
	steps, gens, faults uint8
	joins               uint8 // processes that come back with nothing, after a fault
	spare               bool  // worker 2 has no ranks at first
	filled              bool  // the first generation begins with its mirrors filled
	replicated          bool  // every worker mirrors every rank, as in ZeRO stage 0
}

// What a worker has of a rank's masters and moments.
const (
	nothing = 0
	atStep0 = 1 // at step s: atStep0 + s
	filling = 5 // a fill that began when the owner was at step s: filling + s
	torn    = 9 // of no step
)

// nobody hosts the ranks of a generation that is over for everybody.
const nobody = 3

type workerState struct {
	up, lost  bool // the process lives; the leader has given it up
	gen, seal uint8
	step      uint8 // newest D known
	voted     bool  // for step+1
	fresh     bool  // working weights are those of step: the gradients of step+1 can be sent
	ahead     bool  // some working weight is newer than step
	m         [ranksN]uint8
	r         uint8            // ranks whose R(master's step + 1) is here
	past      [gensMax]outgone // what it had sent in generations that it has left, from 1
}

// outgone is what others may still receive of a generation that its sender has left.
type outgone struct {
	was, voted, fresh bool
	step              uint8
}

type state struct {
	w      [workersN]workerState
	gen    uint8                      // newest generation in the log
	owner  [gensMax + 1][ranksN]uint8 // by generation
	target [gensMax + 1]uint8
	// safe are the workers, by rank, that the rules promise can give it: only if all of
	// them are lost may the rank be lost.
	safe   [ranksN]uint8
	faults uint8
	joins  uint8
	over   bool // back to the checkpoint

	replicated bool // every worker has a copy of every rank; never changes
}

// begin is the first generation, just entered from a checkpoint.
func begin(b bounds) state {
	s := state{gen: 1, replicated: b.replicated}
	s.owner[1] = [ranksN]uint8{0, 1, 2}
	if b.spare {
		s.owner[1] = [ranksN]uint8{0, 0, 1}
	}
	for w := range s.w {
		s.w[w].up = true
		if s.placed(1, uint8(w)) {
			s.w[w].gen, s.w[w].fresh = 1, true
		}
	}
	for r := range ranksN {
		o := s.owner[1][r]
		s.w[o].m[r] = atStep0
		s.safe[r] = 1 << o
		for w := range uint8(workersN) {
			if b.filled && s.mirrors(1, w, r) {
				s.w[w].m[r] = atStep0
				s.safe[r] |= 1 << w
			}
		}
	}
	return s
}

func (s *state) placed(gen, w uint8) bool { return slices.Contains(s.owner[gen][:], w) }

// mirrors tells whether a worker is to mirror a rank: it comes after the rank's owner in
// the ring. Of replicated state everybody has a copy.
func (s *state) mirrors(gen, w uint8, rank int) bool {
	o := s.owner[gen][rank]
	if o == w || !s.placed(gen, w) {
		return false
	}
	next := (o + 1) % workersN
	for !s.placed(gen, next) {
		next = (next + 1) % workersN
	}
	return next == w || s.replicated
}

// sent is what worker x has sent in a generation, so far or before it left.
func (s *state) sent(x, gen uint8) outgone {
	w := &s.w[x]
	if w.gen == gen {
		return outgone{true, w.voted, w.fresh, w.step}
	}
	return w.past[gen-1]
}
