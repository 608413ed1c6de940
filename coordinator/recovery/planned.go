package recovery

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
)

// plan looks at a job in its stride: whether it should stop at a step boundary to go on
// elsewhere.
func (d *decider) plan(j *fsm.Job) {
	y := d.planned(j)
	if y.Why == "" {
		return
	}
	d.Yield[j.ID] = y
	d.note(j, "stops after the next step: %s", y.Why)
}

// planned says why a job in its stride should stop at a step boundary; zero if it need not.
//
// State that only leavers hold is moved by mirrors where the job has them: it stops when
// they are filled. Without them, or if too few would be left, it stops with a checkpoint
// of that very step.
func (d *decider) planned(j *fsm.Job) Yield {
	if j.Paused {
		return Yield{"it is to pause", true}
	}
	if by := d.Preempt[j.ID]; by != "" {
		return Yield{by + " has a higher priority and needs its workers", true}
	}
	var leave []string
	for _, p := range j.Placement {
		if w := d.s.Workers[p.Worker]; w != nil && w.Draining {
			leave = append(leave, p.Worker)
		}
	}
	over := len(j.Placement) - j.WorkersMax
	mirrored := j.Mirror && len(j.Placement) > 1
	switch {
	case len(leave) > 0 && len(j.Placement)-len(leave) < j.WorkersMin:
		// It may not be able to go on without them, and waits with nothing that is in their
		// memory alone.
		return Yield{does(leave, "leaves", "leave"), true}
	case mirrored && !d.Protected[j.ID] && (len(leave) == 0 || d.age(j) < d.c.DrainPatience/2):
		return Yield{} // the mirrors are being filled
	case len(leave) > 0:
		return Yield{does(leave, "leaves", "leave"), !mirrored || !d.Protected[j.ID]}
	case over > 0:
		return Yield{fmt.Sprintf("it is scaled to at most %d of its %d workers", j.WorkersMax, len(j.Placement)), !mirrored}
	case d.age(j) < d.c.Settle:
		return Yield{}
	}
	if names := d.joining(j); len(names) > 0 {
		if d.now.Sub(d.LastJoin) < d.c.Settle && len(j.Placement)+len(names) < j.WorkersMax {
			return Yield{} // more may follow
		}
		for _, w := range names {
			d.Joining[w] = j.ID
		}
		return Yield{does(names, "joins", "join"), false}
	}
	if uneven := d.uneven(j); uneven != "" {
		return Yield{uneven, false}
	}
	return Yield{}
}

// does says what one or several workers do.
func does(names []string, one, several string) string {
	if len(names) > 1 {
		one = several
	}
	return strings.Join(names, ", ") + " " + one
}

// members are the workers that the job runs on.
func (d *decider) members(j *fsm.Job) []*fsm.Worker {
	var list []*fsm.Worker
	for _, p := range j.Placement {
		if w := d.s.Workers[p.Worker]; w != nil {
			list = append(list, w)
		}
	}
	return list
}

// age is how old the generation is. It began by the clock of another leader perhaps, or
// before this one was set: one that is in the future has lasted for long enough.
func (d *decider) age(j *fsm.Job) time.Duration {
	if age := d.now.Sub(time.UnixMilli(j.Changed)); age >= 0 {
		return age
	}
	return math.MaxInt64
}

// joining are the workers that are ready to enter the job and shorten its step.
func (d *decider) joining(j *fsm.Job) []string {
	there := d.members(j)
	ready := d.Apart.Together(there, d.ready(j, fsm.Spread(d.joiners(j, there))), 0)
	var names []string
	for _, w := range ready[:max(0, min(len(ready), j.Use(len(j.Placement)+len(ready))-len(j.Placement)))] {
		names = append(names, w.Name)
	}
	return names
}

// uneven says that a worker hosts more ranks than one has to; empty if none does.
func (d *decider) uneven(j *fsm.Job) string {
	n := len(j.Placement)
	sizes := make([]int, n)
	for i, p := range j.Placement {
		sizes[i] = len(p.Ranks)
	}
	if slices.Max(sizes) <= (j.WorldSize+n-1)/n {
		return ""
	}
	return "its ranks lie unevenly, " + strings.Trim(fmt.Sprint(sizes), "[]")
}

// warm has workers without work make ready to enter the job: as many as would shorten its
// step, and one to spare for a job that is protected by mirrors.
func (d *decider) warm(j *fsm.Job) {
	could := fsm.Spread(d.joiners(j, d.members(j)))
	n := max(0, j.Use(len(j.Placement)+len(could))-len(j.Placement))
	if j.Mirror {
		n = max(n, 1)
	}
	// Who is ready already stays so.
	slices.SortStableFunc(could, func(a, b *fsm.Worker) int {
		switch readyA, readyB := d.Seen.Warm[a.Name] == j.ID, d.Seen.Warm[b.Name] == j.ID; {
		case readyA && !readyB:
			return -1
		case readyB && !readyA:
			return 1
		}
		return 0
	})
	for _, w := range could {
		if n == 0 {
			break
		}
		if d.Decision.Warm[w.Name] == "" {
			d.Decision.Warm[w.Name] = j.ID
			n--
		}
	}
}
