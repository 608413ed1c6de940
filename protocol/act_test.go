package protocol

import (
	"fmt"
	"slices"
)

// successors adds all that can happen next.
func (e *explorer) successors(s *state) {
	for w := range uint8(workersN) {
		x := &s.w[w]
		if e.active(s, w) {
			e.act(s, w)
		}
		if x.up {
			e.end(s, w)
			e.enter(s, w)
		}
		e.fail(s, w)
	}
	if s.gen < e.bounds.gens {
		e.plan(s)
	}
}

// act is what a worker does in a step.
func (e *explorer) act(s *state, w uint8) {
	e.learn(s, w)
	e.applies(s, w)
	e.gather(s, w)
	for r := range ranksN {
		e.sums(s, w, r)
		e.fill(s, w, r)
		e.move(s, w, r)
	}
	e.vote(s, w)
	e.decide(s, w)
}

// learn: D reaches a worker, ahead of the weights or with them.
func (e *explorer) learn(s *state, w uint8) {
	x := &s.w[w]
	for y := range uint8(workersN) {
		knows := y != w && s.sent(y, x.gen).was && s.sent(y, x.gen).step > x.step
		if !e.rules.fencing && y != w && s.w[y].gen > 0 && s.w[y].gen != x.gen && s.w[y].step > x.step {
			knows = true
		}
		if knows && !x.pending() {
			t := *s
			t.decided(w)
			e.add(t, e.head, fmt.Sprintf("%d learns D(%d)", w, x.step+1))
			return
		}
	}
}

// decided makes a worker know the next decision.
func (s *state) decided(w uint8) {
	x := &s.w[w]
	x.step++
	x.voted, x.fresh, x.ahead = false, false, false
}

// pending tells whether something decided is still to be applied.
func (x *workerState) pending() bool {
	return x.step > 0 && slices.Contains(x.m[:], atStep0+x.step-1)
}

// applies: a holder applies what is decided. Who holds a rank and has no part in it any
// more drops it.
func (e *explorer) applies(s *state, w uint8) {
	if !s.w[w].pending() || e.rules.sealApplies {
		return
	}
	t := *s
	label := fmt.Sprintf("%d applies step %d", w, t.w[w].step)
	if why := t.apply(w); why != "" {
		e.violated(label, "%s", why)
		return
	}
	e.add(t, e.head, label)
}

// apply returns what is wrong, or "".
func (s *state) apply(w uint8) string {
	x := &s.w[w]
	for r := range ranksN {
		if x.m[r] != atStep0+x.step-1 {
			continue
		}
		switch {
		case x.r&(1<<r) != 0:
			x.m[r]++
		case s.owner[x.gen][r] == w || s.mirrors(x.gen, w, r):
			return fmt.Sprintf("worker %d knows D(%d) and holds rank %d at step %d without its sum", w, x.step, r, x.step-1)
		default:
			x.m[r] = nothing
		}
	}
	x.r = 0
	return ""
}

// gather, without the rule: new weights are here before D is.
func (e *explorer) gather(s *state, w uint8) {
	x := &s.w[w]
	for r := range ranksN {
		o := &s.w[s.owner[x.gen][r]]
		if !e.rules.decisionAhead && !x.ahead && o.gen == x.gen && o.m[r] == atStep0+x.step+1 {
			t := *s
			t.w[w].ahead = true
			e.add(t, e.head, fmt.Sprintf("%d gets weights of rank %d", w, r))
		}
	}
}

// gathered tells whether all weights of a worker's step are final at their owners.
func (s *state) gathered(w uint8) bool {
	x := &s.w[w]
	for r := range ranksN {
		if o := &s.w[s.owner[x.gen][r]]; o.gen != x.gen || o.m[r] != atStep0+x.step {
			return false
		}
	}
	return !x.pending()
}

// mayReduce: the gradients of all workers have come round to the owner.
func (s *state) mayReduce(w uint8, r int) bool {
	x := &s.w[w]
	if s.owner[x.gen][r] != w || x.m[r] != atStep0+x.step || x.r&(1<<r) != 0 || x.pending() {
		return false
	}
	for y := range uint8(workersN) {
		sent := s.sent(y, x.gen)
		if s.placed(x.gen, y) && (!sent.was || sent.step < x.step || sent.step == x.step && !sent.fresh) {
			return false
		}
	}
	return true
}

// mayPush: the owner's sum reaches the mirror.
func (s *state) mayPush(w uint8, r int) bool {
	x := &s.w[w]
	o := &s.w[s.owner[x.gen][r]]
	return s.mirrors(x.gen, w, r) && x.r&(1<<r) == 0 && !x.pending() && o.gen == x.gen && o.r&(1<<r) != 0 && o.m[r] == atStep0+x.step
}

// sums: what settle does not do at once, because a rule is missing.
func (e *explorer) sums(s *state, w uint8, r int) {
	if e.lateSums() && s.w[w].step < e.bounds.steps && (s.mayReduce(w, r) || s.mayPush(w, r)) {
		t := *s
		t.w[w].r |= 1 << r
		e.add(t, e.head, fmt.Sprintf("%d has the sum of rank %d", w, r))
	}
}

// fill: the owner's state goes to a mirror that has none, in the course of time.
func (e *explorer) fill(s *state, w uint8, r int) {
	x := &s.w[w]
	o := &s.w[s.owner[x.gen][r]]
	if !s.mirrors(x.gen, w, r) || o.gen != x.gen {
		return
	}
	has, from := o.m[r], x.m[r]-filling
	if x.m[r] == nothing && e.rules.fillOneStep {
		from = has - atStep0 // only the step in which a fill ends counts: when it began does not
	}
	t := *s
	switch {
	case has < atStep0 || has >= filling:
	case x.m[r] == nothing && !e.rules.fillOneStep:
		t.w[w].m[r] = has - atStep0 + filling
		e.add(t, e.head, fmt.Sprintf("%d begins to mirror rank %d", w, r))
	case x.m[r] != nothing && (x.m[r] < filling || x.m[r] == torn):
	case has != atStep0+from && x.step == has-atStep0 && !x.voted && !x.pending():
		e.violated(fmt.Sprintf("%d mirrors rank %d", w, r), "the mirror of rank %d has parts of two steps", r)
	case x.step == from && (!x.voted || !e.rules.fillThenVote) && !x.pending():
		t.w[w].m[r] = atStep0 + from
		if x.gen == s.gen {
			t.safe[r] |= 1 << w
		}
		e.add(t, e.head, fmt.Sprintf("%d mirrors rank %d", w, r))
	}
}

// move: a new owner gets its rank from a holder.
func (e *explorer) move(s *state, w uint8, r int) {
	x := &s.w[w]
	if s.owner[x.gen][r] != w || x.m[r] != nothing || x.step != s.target[x.gen] {
		return
	}
	for y := range s.w {
		if s.w[y].gen == x.gen && s.w[y].m[r] == atStep0+x.step {
			t := *s
			t.w[w].m[r] = atStep0 + x.step
			if x.gen == s.gen {
				t.safe[r] |= 1 << w
			}
			e.add(t, e.head, fmt.Sprintf("%d takes over rank %d from %d", w, r, y))
			return
		}
	}
}

// mayVote: the sums of a worker's own ranks are here, and of those that it mirrors.
func (s *state) mayVote(w uint8, rules rules) bool {
	x := &s.w[w]
	for r := range ranksN {
		mine := s.owner[x.gen][r] == w
		ready := s.mirrors(x.gen, w, r) && x.m[r] == atStep0+x.step
		if (mine || ready && rules.mirroredVotes) && x.r&(1<<r) == 0 {
			return false
		}
	}
	return !x.pending()
}

// fills tells whether a worker may still become a mirror.
func (s *state) fills(w uint8) bool {
	for r := range ranksN {
		if s.mirrors(s.w[w].gen, w, r) && (s.w[w].m[r] == nothing || s.w[w].m[r] >= filling) {
			return true
		}
	}
	return false
}

func (e *explorer) vote(s *state, w uint8) {
	if s.w[w].voted || s.w[w].step == e.bounds.steps || !s.mayVote(w, e.rules) {
		return
	}
	t := *s
	t.w[w].voted = true
	e.add(t, e.head, fmt.Sprintf("%d votes for step %d", w, t.w[w].step+1))
}

// decide: rank 0's worker has the votes of all.
func (e *explorer) decide(s *state, w uint8) {
	x := &s.w[w]
	if s.owner[x.gen][0] != w || !x.voted {
		return
	}
	for y := range uint8(workersN) {
		sent := s.sent(y, x.gen)
		has := sent.was && sent.voted && sent.step == x.step
		if !e.rules.fencing { // a vote for this step of any generation will do
			for g := uint8(1); g <= s.gen; g++ {
				old := s.sent(y, g)
				has = has || old.was && old.voted && old.step == x.step
			}
		}
		if s.placed(x.gen, y) && !has {
			return
		}
	}
	t := *s
	if x.gen == s.gen {
		for r := range ranksN {
			part := uint8(1) << s.owner[x.gen][r]
			for m := range uint8(workersN) {
				if s.mirrors(x.gen, m, r) && s.w[m].gen == x.gen && s.w[m].m[r] == atStep0+x.step {
					part |= 1 << m
				}
			}
			t.safe[r] &= part
		}
	}
	t.decided(w)
	e.add(t, e.head, fmt.Sprintf("%d decides step %d", w, x.step+1))
}
