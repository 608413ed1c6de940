package fsm

import (
	"fmt"
	"slices"
	"strings"

	"github.com/skein-ml/skein/shard"
)

// Spread orders workers so that taking the first few of them uses as many zones as there
// are, and as many machines of each: the first worker of each zone, then the second of
// each. Of a zone it is the first worker of each machine, by name, then the second of each.
func Spread(workers []*Worker) []*Worker {
	list := slices.Clone(workers)
	slices.SortFunc(list, func(a, b *Worker) int { return strings.Compare(a.Name, b.Name) })
	inTurns(list, func(w *Worker) string { return w.Node })
	inTurns(list, func(w *Worker) string { return w.Zone })
	return list
}

// inTurns takes one worker of each group in turn; the order within a group is kept.
func inTurns(list []*Worker, group func(*Worker) string) {
	taken, turn := map[string]int{}, map[*Worker]int{}
	for _, w := range list {
		turn[w] = taken[group(w)]
		taken[group(w)]++
	}
	slices.SortStableFunc(list, func(a, b *Worker) int { return turn[a] - turn[b] })
}

// SharedDomains says which failure domains the mirrors of a running job share with what
// they mirror: the loss of one may then cost steps. It is empty if there are none, or no
// mirrors. Zones count where the cluster has more than one.
func (s *State) SharedDomains(j *Job) string {
	n := len(j.Placement)
	if !j.Mirror || j.Phase != Running || n < 2 {
		return ""
	}
	zones := map[string]bool{}
	for _, w := range s.Workers {
		if w.Zone != "" {
			zones[w.Zone] = true
		}
	}
	var shared []string
	pairs := 0
	for i, p := range j.Placement {
		a, b := s.Workers[p.Worker], s.Workers[j.Placement[(i+1)%n].Worker]
		if a == nil || b == nil {
			continue // it is given up: another generation follows
		}
		domain := ""
		switch {
		case a.Node == b.Node:
			domain = "node " + a.Node
		case len(zones) > 1 && a.Zone != "" && a.Zone == b.Zone:
			domain = "zone " + a.Zone
		default:
			continue
		}
		if pairs++; !slices.Contains(shared, domain) {
			shared = append(shared, domain)
		}
	}
	switch {
	case len(shared) == 0:
		return ""
	case pairs == n && len(shared) == 1:
		return "no second failure domain: all its workers share " + shared[0]
	}
	slices.Sort(shared)
	return "mirrors share " + strings.Join(shared, ", ")
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
