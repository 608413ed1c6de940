package fsm

import (
	"fmt"
	"slices"
	"strings"

	"github.com/skein-ml/skein/shard"
)

// Spread orders workers so that taking the first few of them uses as many machines as
// there are: the first worker of each node, by name, then the second of each.
func Spread(workers []*Worker) []*Worker {
	byName := slices.Clone(workers)
	slices.SortFunc(byName, func(a, b *Worker) int { return strings.Compare(a.Name, b.Name) })
	nth, round := map[string]int{}, map[string]int{}
	for _, w := range byName {
		round[w.Name] = nth[w.Node]
		nth[w.Node]++
	}
	slices.SortStableFunc(byName, func(a, b *Worker) int { return round[a.Name] - round[b.Name] })
	return byName
}

// Use is how many of the free workers a job gets: those that shorten a step, within
// its bounds. It is 0 if they are too few.
func (j *Job) Use(free int) int {
	if free < j.WorkersMin {
		return 0
	}
	return max(j.WorkersMin, shard.UsefulWorkers(j.WorldSize, min(free, j.WorkersMax)))
}

// Cut places the job's ranks evenly on the workers. Workers of one node become
// neighbours in the ring, because their links are short; with mirrors, which lie on the
// next worker, it is the other way round, so that no machine has both.
func (j *Job) Cut(workers []*Worker) ([]Place, error) {
	p, err := shard.EvenPlacement(j.WorldSize, len(workers))
	if err != nil {
		return nil, err
	}
	ring := slices.Clone(workers)
	slices.SortFunc(ring, func(a, b *Worker) int {
		if c := strings.Compare(a.Node, b.Node); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	if j.Mirror {
		ring = Spread(ring)
	}
	places := make([]Place, len(ring))
	for i, w := range ring {
		places[i] = Place{Worker: w.Name, Incarnation: w.Incarnation}
		for _, r := range p.Ranks(i) {
			places[i].Ranks = append(places[i].Ranks, int(r))
		}
	}
	return places, nil
}

// Describe writes a placement as people read it: w1:0,1 w2:2,3.
func Describe(placement []Place) string {
	var b strings.Builder
	for i, p := range placement {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(p.Worker)
		for k, r := range p.Ranks {
			fmt.Fprintf(&b, "%c%d", ":,"[min(k, 1)], r)
		}
	}
	return b.String()
}
