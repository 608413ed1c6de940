package protocol

// settle does what may as well happen at once, and forgets what nobody can ask for any
// more, so that fewer states differ:
//
//   - What is decided is applied, gradients are computed and summed, and sums mirrored as
//     soon as that is possible. Only the worker's vote follows from it, which may be late
//     itself; and a report names sums only of those who have voted.
//   - So is the vote, unless a mirror might be filled before. Only D follows from it, which
//     may be late.
//   - A process that died without a report is given up: nothing goes on before that.
//   - Of generations in which nobody acts any more, only what was reported counts.
//
// It returns what is wrong, or "".
func (e *explorer) settle(s *state) string {
	for w := range uint8(workersN) {
		x := &s.w[w]
		if !x.up && x.seal < s.gen {
			x.lost = true
		}
		if !e.active(s, w) {
			continue
		}
		if x.pending() && e.rules.sealApplies {
			if why := s.apply(w); why != "" {
				return why
			}
		}
	}
	for w := range uint8(workersN) {
		x := &s.w[w]
		if !e.active(s, w) || x.step == e.bounds.steps {
			continue
		}
		x.fresh = x.fresh || s.gathered(w)
	}
	for range 2 { // sums, then those of mirrors
		for w := range uint8(workersN) {
			for r := range ranksN {
				if e.active(s, w) && !e.lateSums() && s.w[w].step < e.bounds.steps && (s.mayReduce(w, r) || s.mayPush(w, r)) {
					s.w[w].r |= 1 << r
				}
			}
		}
	}
	for w := range uint8(workersN) {
		x := &s.w[w]
		if !e.active(s, w) || x.step == e.bounds.steps {
			continue
		}
		x.voted = x.voted || !s.fills(w) && s.mayVote(w, e.rules)
	}
	if e.rules.fencing && e.rules.sealing && e.rules.sealUnentered && e.rules.zombiesEmpty {
		e.forget(s)
	}
	return ""
}

// lateSums: without one of these rules it matters when sums come.
func (e *explorer) lateSums() bool { return !e.rules.mirroredVotes || !e.rules.fillThenVote }

// active tells whether a worker acts in its generation.
func (e *explorer) active(s *state, w uint8) bool {
	x := &s.w[w]
	return x.up && x.gen > 0 && (x.seal < x.gen || !e.rules.sealing && x.gen+1 >= s.gen)
}

// forget drops what is left of generations that are over for everybody.
func (e *explorer) forget(s *state) {
	for gen := uint8(1); gen <= s.gen; gen++ {
		acts := false
		for w := range uint8(workersN) {
			x := &s.w[w]
			acts = acts || e.active(s, w) && x.gen == gen
			acts = acts || gen == s.gen && x.up && !x.lost && x.seal < gen && x.gen < gen && s.placed(gen, w)
		}
		if acts {
			continue
		}
		if gen < s.gen {
			s.owner[gen], s.target[gen] = [ranksN]uint8{nobody, nobody, nobody}, 0
		}
		for w := range s.w {
			x := &s.w[w]
			x.past[gen-1] = outgone{}
			if x.gen != gen {
				continue
			}
			x.fresh = false
			if !x.voted {
				x.r = 0
			}
			if x.lost {
				*x = workerState{lost: true, gen: gen, seal: gen, past: x.past}
			}
		}
	}
}
