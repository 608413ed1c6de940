package recovery

import (
	"math/bits"
	"slices"

	"github.com/skein-ml/skein/coordinator/fsm"
)

// holder is a worker that may go on, and what it holds of the job's state.
type holder struct {
	*fsm.Worker
	gives    uint32 // ranks, a bit each
	unwanted bool   // it goes on only if the others do not hold everything
}

// stay picks who goes on: all that are wanted, at most so many, and of the unwanted and
// those beyond the limit as few as are needed to hold every rank. It is nil if even all of
// them do not. The order is kept.
func stay(worldSize int, all []holder, most int) []holder {
	full := uint32(1)<<worldSize - 1
	var best []holder
	bestScore := [5]int{}
	for set := uint32(1); set < 1<<len(all); set++ {
		gives, unwanted, nodes, zones := uint32(0), 0, map[string]bool{}, map[string]bool{}
		for i, h := range all {
			if set&(1<<i) == 0 {
				continue
			}
			gives |= h.gives
			nodes[h.Node], zones[h.Zone] = true, true
			if h.unwanted {
				unwanted++
			}
		}
		n := bits.OnesCount32(set)
		if gives != full {
			continue
		}
		// Compared from the first on: fewer unwanted, fewer beyond the limit, more workers,
		// more zones and machines; then who comes first in the ring.
		score := [5]int{-unwanted, -max(n-most, 0), n, len(zones), len(nodes)}
		if best == nil || slices.Compare(score[:], bestScore[:]) > 0 {
			best, bestScore = pick(all, set), score
		}
	}
	return best
}

func pick(all []holder, set uint32) []holder {
	var list []holder
	for i, h := range all {
		if set&(1<<i) != 0 {
			list = append(list, h)
		}
	}
	return list
}

// ringOf puts joiners between those who stay, whose order is kept: where the fewest
// neighbours share a zone, and of those places where the fewest share a machine, so that a
// rank and its mirror seldom do, and then where the fewest ranks move.
func ringOf(worldSize int, stay, joiners []holder, even bool) []holder {
	ring := slices.Clone(stay)
	for _, j := range joiners {
		var best []holder
		bestScore := [3]int{}
		for at := range len(ring) + 1 {
			try := slices.Insert(slices.Clone(ring), at, j)
			_, moved := blocks(worldSize, try, even)
			score := [3]int{together(try, zoneOf), together(try, nodeOf), moved}
			if best == nil || slices.Compare(score[:], bestScore[:]) < 0 {
				best, bestScore = try, score
			}
		}
		ring = best
	}
	return ring
}

// together counts neighbours of a ring that are in one failure domain.
func together(ring []holder, domain func(holder) string) int {
	n := 0
	for i, h := range ring {
		if len(ring) > 1 && domain(h) == domain(ring[(i+1)%len(ring)]) {
			n++
		}
	}
	return n
}

func nodeOf(h holder) string { return h.Node }
func zoneOf(h holder) string { return h.Zone }

// blocks cuts the ranks into one block for each worker of a ring, in order, and tells how
// many of them have to be moved to a worker that does not hold them. Even blocks are as
// small as can be, and then as few ranks move as can; otherwise it is the other way round:
// nothing is moved that need not be.
func blocks(worldSize int, ring []holder, even bool) (sizes []int, moved int) {
	smallest := (worldSize + len(ring) - 1) / len(ring)
	for most := smallest; most <= worldSize; most++ {
		s, m := cut(worldSize, ring, most)
		if sizes == nil || m < moved {
			sizes, moved = s, m
		}
		if even {
			break
		}
	}
	return sizes, moved
}

// cut finds the blocks of at most so many ranks that move the fewest; of those, the ones
// whose first blocks are the largest.
func cut(worldSize int, ring []holder, most int) (sizes []int, moved int) {
	const never = 1 << 20
	// cost[i][r]: ranks that move if workers i… get the ranks from r on.
	cost := make([][]int, len(ring)+1)
	first := make([][]int, len(ring)) // the size of block i in that case
	for i := range cost {
		cost[i] = slices.Repeat([]int{never}, worldSize+1)
	}
	cost[len(ring)][worldSize] = 0
	for i := len(ring) - 1; i >= 0; i-- {
		first[i] = make([]int, worldSize+1)
		for r := range worldSize {
			moves := 0
			for n := 1; n <= most && r+n <= worldSize; n++ {
				if ring[i].gives&(1<<(r+n-1)) == 0 {
					moves++
				}
				if c := moves + cost[i+1][r+n]; c <= cost[i][r] && c < never {
					cost[i][r], first[i][r] = c, n
				}
			}
		}
	}
	for i, r := 0, 0; i < len(ring); i++ {
		sizes = append(sizes, first[i][r])
		r += first[i][r]
	}
	return sizes, cost[0][0]
}

// places writes blocks down as a placement, and names for each rank the worker that has
// its state: its new host if it does, else the one that the plan names, else any.
func places(ring []holder, sizes []int, sources []string) (list []fsm.Place, from []string) {
	rank := 0
	for i, h := range ring {
		p := fsm.Place{Worker: h.Name, Incarnation: h.Incarnation}
		for range sizes[i] {
			p.Ranks = append(p.Ranks, rank)
			from = append(from, source(ring, h, rank, sources[rank]))
			rank++
		}
		list = append(list, p)
	}
	return list, from
}

func source(ring []holder, host holder, rank int, planned string) string {
	if host.gives&(1<<rank) != 0 {
		return host.Name
	}
	first := ""
	for _, h := range ring {
		if h.gives&(1<<rank) == 0 {
			continue
		}
		if h.Name == planned {
			return planned
		}
		if first == "" {
			first = h.Name
		}
	}
	return first
}
