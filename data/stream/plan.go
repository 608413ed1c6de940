package stream

import (
	"fmt"
	"slices"

	"github.com/skein-ml/skein/shard"
)

// aheadDefault steps are fetched ahead: enough to hide a server that fails, little enough to be thrown away at a change.
const aheadDefault = 8

// Plan tells a client which packs its worker will ask for, so that they are here before.
type Plan struct {
	Order  shard.Order
	Places []Places // that the worker's ranks read in every step
	Ahead  int      // steps to fetch ahead, this one included; 0: 8
}

// Places are the places [From, To) of the global batch.
type Places struct{ From, To int64 }

// RankPlaces gives the places of ranks.
func RankPlaces(ranks []shard.Rank, globalBatch, worldSize int) []Places {
	var list []Places
	for _, r := range ranks {
		lo, hi := shard.RankSequences(r, globalBatch, worldSize)
		list = append(list, Places{int64(lo), int64(hi)})
	}
	return list
}

// Follow fetches ahead by a plan from now on, in place of the plan before; step is the next that the worker takes. A plan
// without places ends it. It may be called at any time: a placement changes, a step is run again.
func (c *Client) Follow(p Plan, step int64) error {
	if len(p.Places) > 0 {
		if err := p.Order.Validate(); err != nil {
			return err
		}
		if p.Order.Samples != c.x.Packs {
			return fmt.Errorf("data stream: the order is of %d packs, the data set has %d", p.Order.Samples, c.x.Packs)
		}
	}
	for _, r := range p.Places {
		if r.From < 0 || r.From > r.To || r.To > p.Order.GlobalBatch {
			return fmt.Errorf("data stream: places %d to %d of a global batch of %d", r.From, r.To, p.Order.GlobalBatch)
		}
	}
	if p.Ahead < 0 || step < 1 {
		return fmt.Errorf("data stream: %d steps ahead of step %d", p.Ahead, step)
	}
	if p.Ahead == 0 {
		p.Ahead = aheadDefault
	}
	c.mu.Lock()
	c.plan = p
	c.mu.Unlock()
	c.Step(step)
	return nil
}

// Step says that the worker begins a step, from 1. It returns at once.
func (c *Client) Step(step int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	soon := c.upcoming(step)
	for _, i := range slices.Backward(soon) { // the soonest last, so that it is thrown out last
		c.cache.get(i)
	}
	c.window = slices.DeleteFunc(soon, func(i int64) bool { return c.cache.has(i) })
	c.changed.Broadcast()
}

// upcoming lists the records of the plan's steps, in the order in which they are needed: those that half of the cache holds,
// so that what a batch asks for unforeseen does not drive them out.
func (c *Client) upcoming(step int64) []int64 {
	n := int64(c.x.RecordPacks())
	room := int(c.cache.limit / 2 / max(c.x.RecordBytesMax(), 1))
	seen := map[int64]bool{}
	var all []int64
	for k := step; k < step+int64(c.plan.Ahead); k++ {
		for _, p := range c.plan.Places {
			for j := p.From; j < p.To; j++ {
				index, _ := c.plan.Order.Sample(k, j)
				i := index / n
				if index < 0 || seen[i] {
					continue
				}
				seen[i] = true
				if all = append(all, i); len(all) == room {
					return all
				}
			}
		}
	}
	return all
}
