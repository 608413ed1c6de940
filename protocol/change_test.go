package protocol

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/skein-ml/skein/shard"
)

// end: a worker seals, because a link broke or because it is told to.
func (e *explorer) end(s *state, w uint8) {
	x := &s.w[w]
	if s.gen >= e.bounds.gens {
		return
	}
	for _, upTo := range []uint8{x.gen, s.gen} {
		if x.seal >= upTo || upTo > x.gen && !s.placed(upTo, w) {
			continue
		}
		t := *s
		label := fmt.Sprintf("%d seals generation %d", w, upTo)
		y := &t.w[w]
		y.seal = upTo
		if e.rules.sealApplies && y.pending() {
			if why := t.apply(w); why != "" {
				e.violated(label, "%s", why)
				return
			}
		}
		for r := range ranksN {
			if y.m[r] >= filling && y.m[r] != torn {
				y.m[r] = nothing
			}
		}
		e.add(t, e.head, label)
	}
}

// fail: a process dies, the leader gives one up, or a lost one comes back with nothing.
func (e *explorer) fail(s *state, w uint8) {
	x := &s.w[w]
	room := s.gen < e.bounds.gens
	if x.up && room && s.faults < e.bounds.faults {
		t := *s
		t.faults++
		t.w[w].up = false
		e.add(t, e.head, fmt.Sprintf("%d crashes", w))
	}
	if !x.lost && (!x.up || room && s.faults < e.bounds.faults && x.gen > 0) {
		t := *s
		t.w[w].lost = true
		if x.up {
			t.faults++
			e.add(t, e.head, fmt.Sprintf("%d is given up and lives", w))
		} else {
			e.add(t, e.head, fmt.Sprintf("%d is given up", w))
		}
	}
	if x.lost && room && s.joins < e.bounds.joins {
		t := *s
		t.joins++
		t.leave(w)
		t.w[w] = workerState{up: true, past: t.w[w].past}
		if e.rules.processes {
			t.w[w].seal = s.gen
		}
		for r := range t.safe {
			t.safe[r] &^= 1 << w
		}
		e.add(t, e.head, fmt.Sprintf("%d comes back with nothing", w))
	}
}

// leave keeps what others may still receive of a generation.
func (s *state) leave(w uint8) {
	if x := &s.w[w]; x.gen > 0 {
		x.past[x.gen-1] = s.sent(w, x.gen)
	}
}

// enter: a worker hears of a generation that it is placed in, perhaps of one that is over.
func (e *explorer) enter(s *state, w uint8) {
	x := &s.w[w]
	for g := x.gen + 1; g <= s.gen; g++ {
		if x.lost || !s.placed(g, w) || g <= x.seal {
			continue
		}
		t := *s
		label := fmt.Sprintf("%d enters generation %d", w, g)
		if why := t.enter(w, g, e.rules); why != "" {
			e.violated(label, "%s", why)
			return
		}
		e.add(t, e.head, label)
	}
}

func (s *state) enter(w, gen uint8, rules rules) string {
	x := &s.w[w]
	target := s.target[gen]
	if x.gen > 0 && x.step > target {
		return fmt.Sprintf("worker %d knows D(%d), and generation %d goes on from step %d", w, x.step, gen, target)
	}
	for r := range ranksN {
		part := s.owner[gen][r] == w || s.mirrors(gen, w, r)
		gives := x.m[r] == atStep0+target || target > 0 && x.m[r] == atStep0+target-1 && x.r&(1<<r) != 0 && x.voted
		switch {
		case gives && (part || rules.keepSources):
			x.m[r] = atStep0 + target
		case !gives && gen == s.gen && s.safe[r]&(1<<w) != 0:
			return fmt.Sprintf("worker %d was to give rank %d at step %d and has it no more", w, r, target)
		default:
			x.m[r] = nothing
		}
	}
	s.leave(w)
	x.gen, x.step, x.r, x.voted, x.fresh, x.ahead = gen, target, 0, false, false, false
	return ""
}

// plan: the leader has the sealed report of everybody that it has not given up.
func (e *explorer) plan(s *state) {
	var reports []Report
	if e.rules.logDecision {
		reports = append(reports, Report{Step: int64(s.target[s.gen]), Decision: decision(s.target[s.gen])})
	}
	ahead := uint8(0)
	for w := range uint8(workersN) {
		x := &s.w[w]
		if !s.placed(s.gen, w) {
			continue
		}
		sealed := x.seal >= s.gen || !e.rules.sealUnentered && x.gen > 0 && x.seal >= x.gen
		zombie := x.lost && x.up && !e.rules.zombiesEmpty
		if x.lost && !zombie {
			continue
		}
		if !sealed && e.rules.sealing && !zombie {
			return
		}
		reports = append(reports, s.report(w))
		if x.ahead {
			ahead = max(ahead, x.step+1)
		}
	}
	if len(reports) == 0 || len(reports) == 1 && e.rules.logDecision {
		return // nobody is left: from the checkpoint
	}
	p := e.recover(s, reports)
	if uncovered := (*Uncovered)(nil); errors.As(p.err, &uncovered) {
		for _, r := range uncovered.Ranks {
			if left := s.safe[r] &^ s.lost(); left != 0 {
				e.violated("plan", "rank %d is lost, though worker %d is left", r, bits.TrailingZeros8(left))
			}
		}
		t := *s
		t.over = true
		e.add(t, e.head, "back to the checkpoint")
		return
	}
	switch {
	case p.err != nil:
		e.violated("plan", "%v", p.err)
	case int64(ahead) > p.plan.Target:
		e.violated("plan", "weights of step %d are at a worker, and the job goes on from step %d", ahead, p.plan.Target)
	case p.plan.Target < int64(s.target[s.gen]):
		e.violated("plan", "generation %d began after step %d, the next one after step %d", s.gen, s.target[s.gen], p.plan.Target)
	default:
		e.generate(s, p.plan, reports)
	}
}

func (s *state) lost() uint8 {
	var lost uint8
	for w := range s.w {
		if s.w[w].lost {
			lost |= 1 << w
		}
	}
	return lost
}

func decision(step uint8) []byte {
	if step == 0 {
		return nil // step 0 is a checkpoint
	}
	return []byte{step}
}

func name(w uint8) string { return string(rune('a' + w)) }

func (s *state) report(w uint8) Report {
	x := &s.w[w]
	r := Report{Worker: name(w), Step: int64(x.step), Decision: decision(x.step), Reaches: []string{"a", "b", "c"}}
	for rank := range ranksN {
		behind := x.pending() // it knows no D, then, that it has not applied
		if !behind && x.m[rank] == atStep0+x.step || x.m[rank] == torn {
			r.Held = append(r.Held, shard.Rank(rank))
			if x.r&(1<<rank) != 0 && x.voted {
				r.Summed = append(r.Summed, shard.Rank(rank))
			}
		}
	}
	return r
}

// recover asks Recover, once for each set of reports.
func (e *explorer) recover(s *state, reports []Report) planned {
	key := fmt.Sprint(s.owner[s.gen], reports)
	p, known := e.plans[key]
	if !known {
		owners := make([]string, ranksN)
		for r, o := range s.owner[s.gen] {
			owners[r] = name(o)
		}
		p.plan, p.err = Recover(ranksN, owners, reports)
		e.plans[key] = p
	}
	return p
}

// generate commits the next generation, in each way to place its ranks: every rank where
// it comes from, so that nothing moves, or all of them cut evenly, those who wait included.
func (e *explorer) generate(s *state, p Plan, reports []Report) {
	t := *s
	t.gen++
	t.target[t.gen] = uint8(p.Target)
	var hosts []uint8
	for w := range uint8(workersN) {
		if x := &s.w[w]; slices.Contains(p.Members, name(w)) || x.up && !x.lost && x.gen == 0 {
			hosts = append(hosts, w)
		}
	}
	for r := range ranksN {
		t.owner[t.gen][r] = p.Sources[r][0] - 'a'
		t.safe[r] = 0
		for _, report := range reports {
			if report.Worker != "" && slices.Contains(p.Members, report.Worker) && report.gives(p.Target)&(1<<r) != 0 {
				t.safe[r] |= 1 << (report.Worker[0] - 'a')
			}
		}
	}
	e.add(t, e.head, fmt.Sprintf("generation %d after step %d on %v", t.gen, p.Target, t.owner[t.gen]))
	placement, err := shard.EvenPlacement(ranksN, len(hosts))
	if err != nil {
		panic(err)
	}
	for r := range ranksN {
		t.owner[t.gen][r] = hosts[placement.Worker(shard.Rank(r))]
	}
	e.add(t, e.head, fmt.Sprintf("generation %d after step %d on %v", t.gen, p.Target, t.owner[t.gen]))
}
