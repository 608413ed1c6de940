package scheduler

import (
	"slices"
	"strings"

	"github.com/skein-ml/skein/coordinator/fsm"
)

// preempts finds running jobs of lower priority whose workers would do for a job that
// needs more than are free: the lowest first, of equals the youngest, and none if all of them would not
// be enough. They stop at a step boundary with a checkpoint, and wait in the queue. It says
// so; the text is empty if there are none, or ends with "; ".
func (d *decision) preempts(j *fsm.Job, free, need int) string {
	running := d.s.InOrder()
	slices.Reverse(running)
	slices.SortStableFunc(running, func(a, b *fsm.Job) int { return a.Priority - b.Priority })
	var victims []string
	for _, v := range running {
		if free >= need || v.Priority >= j.Priority {
			break
		}
		n := 0
		for _, w := range d.fit(j) {
			if d.busy[w.Name] == v.ID {
				n++
			}
		}
		if v.Phase == fsm.Running && d.preempt[v.ID] == "" && n > 0 {
			free += n
			victims = append(victims, v.ID)
		}
	}
	if free < need || len(victims) == 0 {
		return ""
	}
	for _, v := range victims {
		d.preempt[v] = j.ID
	}
	return "gets the workers of " + strings.Join(victims, ", ") + ", of lower priority, after their next step; "
}
