package fsm

import (
	"maps"
	"slices"
	"strings"
	"sync"
)

// lookup is what is looked up again and again in a state that is not changed any more. With
// a thousand workers a thousand sessions look at each state.
type lookup struct {
	once    sync.Once
	byName  []*Worker
	inOrder []*Job
	busy    map[string]string // worker → job, see Busy
	waiting []*Job            // queued and running, in order
	parts   map[string][]*Job // by worker: jobs that it prepares, hosts ranks of, or may hold the state of
}

// Freeze returns a state that nothing changes any more, Apply least of all; what is looked
// up in it is found once for all who ask.
func (s *State) Freeze() *State {
	out := s.Clone()
	out.lookup = &lookup{}
	return out
}

// found is the lookup, of a frozen state for all, otherwise for this once.
func (s *State) found() *lookup {
	i := s.lookup
	if i == nil {
		i = &lookup{}
	}
	i.once.Do(func() {
		i.byName = slices.SortedFunc(maps.Values(s.Workers), func(a, b *Worker) int { return strings.Compare(a.Name, b.Name) })
		i.inOrder = slices.SortedFunc(maps.Values(s.Jobs), func(a, b *Job) int {
			switch {
			case a.Sequence < b.Sequence:
				return -1
			case a.Sequence > b.Sequence:
				return 1
			}
			return 0
		})
		i.busy, i.parts = map[string]string{}, map[string][]*Job{}
		for _, j := range i.inOrder {
			if j.Phase == Queued || j.Phase == Running {
				i.waiting = append(i.waiting, j)
			}
			for _, w := range j.Uses() {
				i.busy[w] = j.ID
				i.parts[w] = append(i.parts[w], j)
			}
			if j.Phase == Queued {
				for _, p := range j.Parked.Placement {
					i.parts[p.Worker] = append(i.parts[p.Worker], j)
				}
			}
		}
	})
	return i
}

// InOrder lists the jobs in order of submission.
func (s *State) InOrder() []*Job { return slices.Clone(s.found().inOrder) }

// ByName lists the workers by name.
func (s *State) ByName() []*Worker { return slices.Clone(s.found().byName) }

// Busy maps each worker that prepares or hosts ranks to its job.
func (s *State) Busy() map[string]string { return maps.Clone(s.found().busy) }

// BusyWith is the job that a worker prepares or hosts ranks of; empty: none.
func (s *State) BusyWith(worker string) string { return s.found().busy[worker] }

// Parts lists the jobs that a worker has a part in, in order of submission: it prepares
// them, hosts their ranks, or may hold the state of one that waits. Read only.
func (s *State) Parts(worker string) []*Job { return s.found().parts[worker] }

// Waiting lists the jobs that are queued or running, in order of submission. Read only.
func (s *State) Waiting() []*Job { return s.found().waiting }
