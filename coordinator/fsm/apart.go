package fsm

import (
	"slices"
	"strings"
)

// Apart are pairs of workers that do not reach each other, in both orders.
type Apart map[[2]string]bool

// Add notes that two workers do not reach each other.
func (a Apart) Add(one, other string) {
	a[[2]string{one, other}], a[[2]string{other, one}] = true, true
}

// Together picks, of more workers, those that may be in a ring with the ones that are there:
// none of them is apart from those, or from another one that is picked. Who is apart from the
// most makes way, and of two the later one. If fewer than least would be in the ring, those
// that made way last come back, as far as it takes: a link that was broken may hold again,
// and a job that could run is not kept waiting. The order is kept.
func (a Apart) Together(there, more []*Worker, least int) []*Worker {
	if len(a) == 0 {
		return more
	}
	var out []*Worker // who made way first comes first
	left := slices.Clone(more)
	for w := a.worst(there, left); w != nil; w = a.worst(there, left) {
		out = append(out, w)
		left = slices.DeleteFunc(left, func(l *Worker) bool { return l == w })
	}
	back := min(max(0, least-len(there)-len(left)), len(out))
	out = out[:len(out)-back]
	return slices.DeleteFunc(slices.Clone(more), func(w *Worker) bool { return slices.Contains(out, w) })
}

// worst is who of the more workers is apart from the most, the last of equals; nil if nobody
// is. Those that are there cannot make way, so one of them weighs more than all others.
func (a Apart) worst(there, more []*Worker) (worst *Worker) {
	most := 1
	named := map[string]bool{} // few of a thousand workers are in any pair
	for pair := range a {
		named[pair[0]] = true
	}
	for _, w := range more {
		if !named[w.Name] {
			continue
		}
		n := a.count(w, there)*len(a) + a.count(w, more)
		if n >= most {
			worst, most = w, n
		}
	}
	return worst
}

// count is how many of a list a worker is apart from.
func (a Apart) count(w *Worker, list []*Worker) (n int) {
	for _, other := range list {
		if a[[2]string{w.Name, other.Name}] {
			n++
		}
	}
	return n
}

// Without says which of the workers that could be in a ring are not, because they are apart
// from others; empty if all are. The text ends a sentence.
func (a Apart) Without(could, ring []*Worker) string {
	var names []string
	for _, w := range could {
		if !slices.Contains(ring, w) && a.count(w, ring) > 0 {
			names = append(names, w.Name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return "; without " + strings.Join(names, ", ") + ", which not all others reach"
}
