package shard

import "fmt"

// Placement maps every rank of a job to a worker. Workers are numbered from 0 in
// the order of the placement; who they are is the control plane's business.
type Placement struct {
	worker []int // by rank; ascending, without gaps, from 0
}

// EvenPlacement puts worldSize ranks on workers in contiguous blocks whose sizes
// differ by at most one, larger blocks first: 8 ranks on 3 workers are
// [0 1 2] [3 4 5] [6 7].
func EvenPlacement(worldSize, workers int) (Placement, error) {
	if err := CheckWorldSize(worldSize); err != nil {
		return Placement{}, err
	}
	if workers < 1 {
		return Placement{}, fmt.Errorf("placement: %d workers: at least one is needed", workers)
	}
	if workers > worldSize {
		return Placement{}, fmt.Errorf("placement: %d workers for a world size of %d: a worker needs a rank; ask for at most %d workers",
			workers, worldSize, worldSize)
	}
	p := Placement{worker: make([]int, 0, worldSize)}
	for w := range workers {
		block := worldSize / workers
		if w < worldSize%workers {
			block++
		}
		for range block {
			p.worker = append(p.worker, w)
		}
	}
	return p, nil
}

// NewPlacement puts a block of consecutive ranks on each worker, in order.
func NewPlacement(blocks []int) (Placement, error) {
	var p Placement
	for w, n := range blocks {
		if n < 1 {
			return Placement{}, fmt.Errorf("placement: worker %d hosts %d ranks: a worker needs a rank", w, n)
		}
		for range n {
			p.worker = append(p.worker, w)
		}
	}
	return p, CheckWorldSize(len(p.worker))
}

// WorldSize is the number of ranks.
func (p Placement) WorldSize() int { return len(p.worker) }

// Workers is the number of workers.
func (p Placement) Workers() int {
	if len(p.worker) == 0 {
		return 0
	}
	return p.worker[len(p.worker)-1] + 1
}

// Worker is the worker that hosts rank r.
func (p Placement) Worker(r Rank) int { return p.worker[r] }

// Ranks are the ranks that a worker hosts, ascending.
func (p Placement) Ranks(worker int) []Rank {
	var ranks []Rank
	for r, w := range p.worker {
		if w == worker {
			ranks = append(ranks, Rank(r))
		}
	}
	return ranks
}

// UsefulWorkers is how many of the available workers shorten a step: the fewest
// that give the same largest block. 8 ranks on 5 workers take as long as on 4.
func UsefulWorkers(worldSize, available int) int {
	if available >= worldSize {
		return worldSize
	}
	if available < 1 {
		return 0
	}
	block := ceilDiv(worldSize, available)
	return ceilDiv(worldSize, block)
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }
