// Package protocol is how a job survives its workers: the rules of one optimizer step
// that make a decided step durable, and the pure function that finds, from what is left
// after a failure, where the job goes on. Who holds what is said in whole ranks: a rank's
// segment has one owner, the worker that hosts the rank, and while the job is protected
// one mirror, the next worker of the ring.
//
// The rules of step k, on every worker:
//
//	reduce   the owner completes R(k), the sum of the gradients, of its pieces
//	mirror   and sends it to the next worker
//	vote     only with R(k) of its own pieces and of all that it mirrors at hand
//	decide   rank 0's worker makes D(k) from the votes of all ranks
//	apply    every holder applies R(k) with D(k): same bits, nothing is shipped
//	gather   new weights to everybody, and D(k) ahead of them
//	seal     a link that broke or an order ends all of this for good: what is decided is
//	         applied, nothing else is begun, and the worker reports what it holds
//
// So D(k) implies that R(k) of every rank is at its owner and its mirror, and since D(k)
// needs all votes, no two workers are more than one step apart. A mirror that is being
// filled is nobody's: it is reported, and awaited by votes, once it is filled. The tests
// of this package enumerate these rules under crashes and zombies, and show what breaks
// without each of them.
package protocol

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/skein-ml/skein/shard"
)

// Report is what a sealed worker holds. It is true until the worker enters a higher
// generation, and says nothing of how it came to be: after a failure during a recovery
// the same reports, or newer ones of the same kind, are recovered from again.
//
// A report without a Worker is what the log itself knows: the step that the ended
// generation was to begin from, and its decision. It holds nothing.
type Report struct {
	Worker string
	// Step is the newest step that the worker knows decided. What it holds is at Step.
	Step int64
	// Decision is D(Step), encoded; empty if the generation began at Step from a
	// checkpoint.
	Decision []byte
	// Held are the ranks whose masters and moments are complete here, as the owner or as
	// a mirror that is filled.
	Held []shard.Rank
	// Summed are those of Held whose R(Step+1) is complete here.
	Summed []shard.Rank
	// Reaches names the workers whose ring port answers this one. Itself need not be in it.
	Reaches []string
	// Order is the place of the report in the order in which reports were made. Of two
	// workers the later report tells whether they reach each other: to be answered takes
	// both directions, and one of them may have been stopped, or cut off, only before. If
	// the orders are equal, both must say so.
	Order int
}

// Plan is how a job goes on.
type Plan struct {
	// Target is the step that the next generation begins after: no step up to it is run
	// again.
	Target int64
	// Decision is D(Target), encoded; empty if nobody has taken a step since a checkpoint
	// at Target. Who is at Target−1 applies it.
	Decision []byte
	// Members are the workers that go on, in the order of the ring: all reach each other,
	// and together they hold every rank. The others join empty, whatever they hold.
	Members []string
	// Sources names, by rank, the member that the rank's segment is taken from: its owner
	// if that is a member, else the first holder after it in the ring.
	Sources []string
}

// ErrReports is returned for reports that no generation can have ended with.
var ErrReports = errors.New("the sealed reports contradict each other")

// Uncovered is the error of Recover if some ranks cannot be taken from anybody: the job
// goes back to a checkpoint, unless their holders come back.
type Uncovered struct {
	Ranks []shard.Rank // ascending
	// Apart is set if the ranks are held, but by workers that do not all reach each other.
	Apart bool
}

func (u *Uncovered) Error() string {
	list := make([]string, len(u.Ranks))
	for i, r := range u.Ranks {
		list[i] = fmt.Sprint(int(r))
	}
	who := "rank " + list[0] + " is"
	if len(list) > 1 {
		who = "ranks " + strings.Join(list, ", ") + " are"
	}
	if u.Apart {
		return who + " held only by workers that do not reach all the others"
	}
	return who + " held by nobody that is left"
}

// Recover finds where a job goes on from the reports of the workers of an ended
// generation. owners names, by rank, who hosted it there. The reports must be those of
// every worker that is not given up; their order is of no account.
//
// The target is the highest step that any report knows decided, whoever goes on: D is in
// the report, and the rules above see to it that every holder can follow. A worker can
// give a rank if it holds it at the target, or one step behind with the sum.
//
// Of the sets of workers that all reach each other and together can give every rank, the
// largest goes on; between equals, the one whose first worker comes first in the ring.
func Recover(worldSize int, owners []string, reports []Report) (Plan, error) {
	if err := shard.CheckWorldSize(worldSize); err != nil {
		return Plan{}, err
	}
	if len(owners) != worldSize {
		return Plan{}, fmt.Errorf("protocol: %d owners of %d ranks", len(owners), worldSize)
	}
	plan := Plan{}
	var err error
	if plan.Target, plan.Decision, err = target(reports); err != nil {
		return Plan{}, err
	}
	ring, err := inRing(worldSize, owners, reports)
	if err != nil {
		return Plan{}, err
	}
	gives := make([]uint32, len(ring)) // ranks that the worker can give, a bit each
	for i, r := range ring {
		gives[i] = r.gives(plan.Target)
	}
	members, err := members(worldSize, ring, gives)
	if err != nil {
		return Plan{}, err
	}
	for i, r := range ring {
		if members&(1<<i) != 0 {
			plan.Members = append(plan.Members, r.Worker)
		}
	}
	plan.Sources = sources(owners, ring, gives, members)
	return plan, nil
}

// empty tells whether the worker holds nothing and knows of nothing decided: one that has
// just joined. Its step says nothing.
func (r Report) empty() bool { return len(r.Held) == 0 && len(r.Decision) == 0 }

// gives is the set of ranks that the worker can give at the target, a bit each.
func (r Report) gives(target int64) uint32 {
	list := r.Held
	switch r.Step {
	case target:
	case target - 1:
		list = r.Summed
	default:
		list = nil
	}
	return set(list)
}

func set(list []shard.Rank) uint32 {
	var s uint32
	for _, r := range list {
		s |= 1 << r
	}
	return s
}

// target is the highest step decided, and its decision.
func target(reports []Report) (int64, []byte, error) {
	var workers, known []Report
	for _, r := range reports {
		if !r.empty() {
			known = append(known, r)
			if r.Worker != "" {
				workers = append(workers, r)
			}
		}
	}
	if len(known) == 0 {
		return 0, nil, nil
	}
	byStep := func(a, b Report) int { return cmp.Compare(a.Step, b.Step) }
	if len(workers) > 0 {
		low, high := slices.MinFunc(workers, byStep), slices.MaxFunc(workers, byStep)
		if low.Step < 0 || high.Step-low.Step > 1 {
			return 0, nil, fmt.Errorf("%w: %s is at step %d, %s at step %d", ErrReports, low.Worker, low.Step, high.Worker, high.Step)
		}
	}
	slices.SortStableFunc(known, byStep)
	for i, r := range known[1:] {
		if same := known[i]; r.Step == same.Step && !bytes.Equal(r.Decision, same.Decision) {
			return 0, nil, fmt.Errorf("%w: %s and %s have different decisions of step %d", ErrReports, same.name(), r.name(), r.Step)
		}
	}
	newest := known[len(known)-1]
	return newest.Step, newest.Decision, nil
}

func (r Report) name() string {
	if r.Worker == "" {
		return "the log"
	}
	return r.Worker
}

// inRing checks the reports of workers and sorts them: owners in the order of their
// ranks, then the others by name.
func inRing(worldSize int, owners []string, reports []Report) ([]Report, error) {
	at := map[string]int{}
	for i, w := range owners {
		if _, known := at[w]; !known {
			at[w] = i
		}
	}
	var ring []Report
	seen := map[string]bool{}
	for _, r := range reports {
		if why := r.wrong(worldSize); why != "" {
			return nil, fmt.Errorf("%w: %s %s", ErrReports, r.name(), why)
		}
		if r.Worker == "" {
			continue
		}
		if seen[r.Worker] {
			return nil, fmt.Errorf("%w: %s reports twice", ErrReports, r.Worker)
		}
		seen[r.Worker] = true
		if _, known := at[r.Worker]; !known {
			at[r.Worker] = worldSize
		}
		ring = append(ring, r)
	}
	if len(ring) > workersMax {
		return nil, fmt.Errorf("protocol: %d reports, of %d workers at most", len(ring), workersMax)
	}
	slices.SortFunc(ring, func(a, b Report) int {
		if d := at[a.Worker] - at[b.Worker]; d != 0 {
			return d
		}
		return strings.Compare(a.Worker, b.Worker)
	})
	return ring, nil
}

// workersMax bounds the workers of a generation: one for each rank.
const workersMax = shard.WorldSizeMax

// wrong says what a report cannot say; empty if it is well formed.
func (r Report) wrong(worldSize int) string {
	if r.Worker == "" && len(r.Held)+len(r.Summed) > 0 {
		return "holds ranks"
	}
	var held uint32
	for _, rank := range r.Held {
		if rank < 0 || int(rank) >= worldSize {
			return fmt.Sprintf("holds rank %d of %d", rank, worldSize)
		}
		if held&(1<<rank) != 0 {
			return fmt.Sprintf("holds rank %d twice", rank)
		}
		held |= 1 << rank
	}
	for _, rank := range r.Summed {
		if rank < 0 || int(rank) >= worldSize || held&(1<<rank) == 0 {
			return fmt.Sprintf("has the sum of rank %d and does not hold it", rank)
		}
	}
	return ""
}

// members is the set of workers that go on, a bit for each of ring.
func members(worldSize int, ring []Report, gives []uint32) (uint32, error) {
	all := uint32(1)<<worldSize - 1
	reach := mutual(ring)
	var best, bestCovers, held uint32
	for _, g := range gives {
		held |= g
	}
	for m := uint32(1); m < 1<<len(ring); m++ {
		covers, connected := uint32(0), true
		for i := range ring {
			if m&(1<<i) != 0 {
				covers |= gives[i]
				connected = connected && m&^reach[i] == 0
			}
		}
		if connected && better(m, covers, best, bestCovers) {
			best, bestCovers = m, covers
		}
	}
	if bestCovers == all {
		return best, nil
	}
	if held != all {
		return 0, &Uncovered{Ranks: ranks(all &^ held)}
	}
	return 0, &Uncovered{Ranks: ranks(all &^ bestCovers), Apart: true}
}

// better tells whether to go on with set m rather than with best: more ranks, then more
// workers, then workers that come first.
func better(m, covers, best, bestCovers uint32) bool {
	if a, b := bits.OnesCount32(covers), bits.OnesCount32(bestCovers); a != b {
		return a > b
	}
	if a, b := bits.OnesCount32(m), bits.OnesCount32(best); a != b {
		return a > b
	}
	return bits.Reverse32(m) > bits.Reverse32(best)
}

// mutual is, for each worker of the ring, the set of those that it reaches and that reach
// it, itself among them.
func mutual(ring []Report) []uint32 {
	reach := make([]uint32, len(ring))
	for i, a := range ring {
		for k, b := range ring {
			if i == k || a.reaches(b) {
				reach[i] |= 1 << k
			}
		}
	}
	return reach
}

// reaches tells whether two workers reach each other.
func (r Report) reaches(other Report) bool {
	mine, others := slices.Contains(r.Reaches, other.Worker), slices.Contains(other.Reaches, r.Worker)
	switch {
	case r.Order > other.Order:
		return mine
	case r.Order < other.Order:
		return others
	}
	return mine && others
}

func ranks(s uint32) []shard.Rank {
	var list []shard.Rank
	for ; s != 0; s &= s - 1 {
		list = append(list, shard.Rank(bits.TrailingZeros32(s)))
	}
	return list
}

// sources picks for each rank the member that gives it.
func sources(owners []string, ring []Report, gives []uint32, members uint32) []string {
	list := make([]string, len(owners))
	for rank, owner := range owners {
		from := slices.IndexFunc(ring, func(r Report) bool { return r.Worker == owner })
		if from < 0 { // the owner is lost: the first that comes after it
			from = slices.IndexFunc(ring, func(r Report) bool { return slices.Index(owners, r.Worker) > rank })
		}
		for i := range ring {
			k := (max(from, 0) + i) % len(ring)
			if members&(1<<k) != 0 && gives[k]&(1<<rank) != 0 {
				list[rank] = ring[k].Worker
				break
			}
		}
	}
	return list
}
