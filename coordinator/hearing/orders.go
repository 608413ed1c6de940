package hearing

import (
	"slices"
	"strings"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Orders are all that a worker is to do, from what is decided.
func (h *Hearing) Orders(now time.Time, s *fsm.State, w *fsm.Worker) *skeinv1.Orders {
	busy := s.BusyWith(w.Name)
	// Who holds what nobody else does stays for a while.
	o := &skeinv1.Orders{Draining: w.Draining, Released: w.Draining && busy == "" && h.want.Stays[w.Name] == ""}
	for _, j := range s.Parts(w.Name) {
		switch j.Phase {
		case fsm.Preparing:
			if p := j.Preparation; p.Worker == w.Name && p.Incarnation == w.Incarnation {
				o.Preparation = &skeinv1.Preparation{Job: j.ID, Number: p.Number, Spec: j.Spec}
			}
		case fsm.Running:
			if p := j.Place(w.Name); p != nil && p.Incarnation == w.Incarnation {
				o.Assignment = h.assignment(s, j, p, w)
				h.ordered(j, o.Assignment)
			}
		case fsm.Queued:
			// It keeps what it holds until somebody else needs it, and says what that is.
			if p := j.Holder(w.Name); p != nil && p.Incarnation == w.Incarnation && busy == "" && o.Assignment == nil && h.want.Warm[w.Name] == "" {
				o.Assignment = h.assignment(s, j, p, w)
				o.Assignment.Seal = true
			}
		}
	}
	for _, j := range s.Waiting() {
		// Who is busy with another job is asked once it is free: each worker would have to
		// read the stores of all jobs otherwise, again for each leader.
		if busy != "" && busy != j.ID {
			continue
		}
		// Who gave the generation up by itself has to show again that it reads the store.
		if j.Phase == fsm.Queued || o.Assignment.GetJob() != j.ID || h.hasGivenUp(j.ID, w.Name, j.Generation) {
			o.Probes = h.appendProbe(now, o.Probes, j, w)
		}
	}
	if j := s.Jobs[h.want.Warm[w.Name]]; j != nil && o.Assignment == nil && o.Preparation == nil && busy == "" {
		o.Warm = &skeinv1.Warm{Job: j.ID, Resolved: j.Resolved, SpecHash: j.SpecHash, DataServers: h.servers(s, j.DataHash, w)}
	}
	return o
}

// ordered adds what recovery wants of a worker to its orders to host ranks.
func (h *Hearing) ordered(j *fsm.Job, a *skeinv1.Assignment) {
	if h.wanted[j.ID] != j.Generation {
		return // it was wanted of the generation before: the next turn decides about this one
	}
	_, a.Seal = h.want.Seal[j.ID]
	if y, ok := h.want.Yield[j.ID]; ok && !a.Seal {
		a.YieldRequest = 1 // a generation stops but once
		if y.Save {
			a.CheckpointRequest = j.PublishedIndex + 1 // higher than what an older one asked for
		}
	}
}

func (h *Hearing) appendProbe(now time.Time, list []*skeinv1.StoreProbe, j *fsm.Job, w *fsm.Worker) []*skeinv1.StoreProbe {
	if j.Nonce.Object == "" || w.Draining || !w.Has(j.Class) || !h.probe(now, w.Name, j.ID) {
		return list
	}
	return append(list, &skeinv1.StoreProbe{Job: j.ID, Store: jobStore(j), NonceObject: j.Nonce.Object})
}

// jobStore is the job's own folder in its store: all that the job writes is below it.
func jobStore(j *fsm.Job) string { return strings.TrimRight(j.Store, "/") + "/" + j.ID }

// assignment is a worker's part in the generation that runs, or in the one that is parked.
func (h *Hearing) assignment(s *fsm.State, j *fsm.Job, own *fsm.Place, w *fsm.Worker) *skeinv1.Assignment {
	g := j.Ended()
	a := &skeinv1.Assignment{
		Job: j.ID, Generation: g.Generation, Resolved: j.Resolved, SpecHash: j.SpecHash, Ranks: Ranks(own.Ranks),
		Members: Members(s, g.Placement), Resume: Checkpoint(j.Resume), DataServers: h.servers(s, j.DataHash, w),
		Mirror: j.Mirror && len(g.Placement) > 1,
	}
	if l := g.Live; l != nil {
		a.Live, a.After, a.Target, a.Decision = true, l.After, l.Target, l.Decision
		for r, from := range l.Sources {
			a.Sources = append(a.Sources, &skeinv1.Source{Rank: int32(r), Worker: from})
		}
	}
	for i, p := range g.Placement {
		if p.Worker == w.Name {
			n := len(g.Placement)
			a.Previous, a.Next = g.Placement[(i+n-1)%n].Worker, g.Placement[(i+1)%n].Worker
		}
	}
	return a
}

// servers lists the stream addresses of connected workers that have a data set, the
// nearest to a worker first: itself, those on its node, the others. Each begins with the
// next one after it by name, so that not all read from the same one.
func (h *Hearing) servers(s *fsm.State, dataHash string, of *fsm.Worker) []string {
	var after, before []*fsm.Worker
	for _, w := range s.ByName() {
		c := h.contacts[w.Name]
		switch {
		case c == nil || !c.connected || c.incarnation != w.Incarnation || !slices.Contains(c.dataSets, dataHash):
		case w.Name < of.Name:
			before = append(before, w)
		default:
			after = append(after, w)
		}
	}
	var near, far []string
	for _, w := range append(after, before...) {
		if w.Node == of.Node {
			near = append(near, w.Stream)
		} else {
			far = append(far, w.Stream)
		}
	}
	return append(near, far...)
}

// Members is a placement as workers and clients get it. An address is empty where another
// process has the worker's name by now.
func Members(s *fsm.State, placement []fsm.Place) []*skeinv1.Member {
	var list []*skeinv1.Member
	for _, p := range placement {
		m := &skeinv1.Member{Worker: p.Worker, Incarnation: p.Incarnation, Ranks: Ranks(p.Ranks)}
		if w := s.Workers[p.Worker]; w != nil && w.Incarnation == p.Incarnation {
			m.RingAddress, m.StreamAddress = w.Ring, w.Stream
		}
		list = append(list, m)
	}
	return list
}

// Ranks is a list of ranks as workers and clients get it.
func Ranks(list []int) []int32 {
	var out []int32
	for _, r := range list {
		out = append(out, int32(r))
	}
	return out
}

// Checkpoint is a checkpoint as workers and clients get it.
func Checkpoint(c fsm.Checkpoint) *skeinv1.Checkpoint {
	return &skeinv1.Checkpoint{Generation: c.Generation, Step: c.Step, Manifest: c.Manifest, Weights: c.Weights, Bytes: c.Bytes, AtUnixMs: c.At}
}
