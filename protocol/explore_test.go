package protocol

import (
	"fmt"
	"slices"
	"strings"
)

// explorer visits states breadth first, so that the first violation has a shortest path.
type explorer struct {
	rules  rules
	bounds bounds
	seen   map[[3]uint64]struct{}
	parent []int32 // by number of the state
	labels []string
	queue  []state
	head   int
	plans  map[string]planned
	bad    string // the first violation
	badAt  string // its path
	counts map[string]int
}

// planned is what Recover said.
type planned struct {
	plan Plan
	err  error
}

// explore visits everything until a rule of the protocol is violated.
func explore(r rules, b bounds) *explorer {
	e := &explorer{rules: r, bounds: b, seen: map[[3]uint64]struct{}{}, plans: map[string]planned{}, counts: map[string]int{}}
	e.add(begin(b), -1, "begin")
	for e.head < len(e.queue) && e.bad == "" {
		s := e.queue[e.head]
		before := e.counts["edges"]
		if !s.over {
			e.successors(&s)
		}
		if e.counts["edges"] == before && e.bad == "" {
			e.stuck(&s)
		}
		e.queue[e.head] = state{} // the queue's memory is of no use any more, its place is
		e.head++
	}
	return e
}

func (e *explorer) add(s state, from int, label string) {
	e.counts["edges"]++
	if why := e.settle(&s); why != "" {
		e.violated(label, "%s", why)
		return
	}
	k := s.key()
	if _, known := e.seen[k]; known {
		return
	}
	e.seen[k] = struct{}{}
	e.parent = append(e.parent, int32(from))
	e.labels = append(e.labels, label)
	e.queue = append(e.queue, s)
}

// violated ends the exploration.
func (e *explorer) violated(label, format string, args ...any) {
	if e.bad != "" {
		return
	}
	e.bad = fmt.Sprintf(format, args...)
	path := []string{label}
	for i := int32(e.head); i > 0; i = e.parent[i] {
		path = append(path, e.labels[i])
	}
	slices.Reverse(path)
	e.badAt = strings.Join(path, ", ")
}

// stuck is a state from which nothing can happen: the job must be at its end.
func (e *explorer) stuck(s *state) {
	if s.over {
		e.counts["back to the checkpoint"]++
		return
	}
	for w := range uint8(workersN) {
		if x := &s.w[w]; s.placed(s.gen, w) && (!x.up || x.lost || x.seal >= s.gen) {
			e.counts["out of generations"]++ // there is none left to go on in
			return
		}
	}
	for w := range uint8(workersN) {
		if x := &s.w[w]; s.placed(s.gen, w) && x.step != e.bounds.steps {
			e.violated("stuck", "worker %d stays at step %d", w, x.step)
		}
	}
	e.counts["done"]++
}
