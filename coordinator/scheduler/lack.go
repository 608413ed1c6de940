package scheduler

import (
	"fmt"
	"slices"
	"strings"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/internal/console"
)

// short says what is missing for a job that needs so many workers: what they must be,
// which are free, and what is with the others. why stands before it.
func (d *decision) short(j *fsm.Job, need int, why string) {
	var free []string
	for _, w := range d.free(j) {
		free = append(free, w.Name)
	}
	text := why + d.behind(j, need, len(free)) + "needs " + requirement(j, need)
	switch len(free) {
	case 0:
		text += "; none is free"
	case 1:
		text += fmt.Sprintf("; 1 is free (%s)", free[0])
	default:
		text += fmt.Sprintf("; %d are free (%s)", len(free), strings.Join(limited(free, namesShown), ", "))
	}
	if len(d.s.Workers) == 0 {
		text += ", because the cluster has no workers yet"
	}
	d.wait(j, "%s", strings.Join(append([]string{text}, limited(d.others(j), othersShown)...), "; "))
	if d.enough(j) { // they will be free some day
		d.promise(j)
	}
}

// behind names the job that keeps this one waiting although there are enough workers
// with nothing to do; empty if it is not that.
func (d *decision) behind(j *fsm.Job, need, free int) string {
	first := ""
	for _, w := range d.fit(j) {
		if other := d.promised[w.Name]; other != "" && d.taken(j, w) == promisedTo(other) {
			if free++; first == "" {
				first = other
			}
		}
	}
	if first == "" || free < need {
		return ""
	}
	return "waits behind " + first + ", which comes before it; "
}

// requirement is what a job needs: 4 workers of class avx512 r1 with 3.1 GB each.
func requirement(j *fsm.Job, need int) string {
	text := "1 worker"
	if need != 1 {
		text = fmt.Sprintf("%d workers", need)
	}
	if j.Class != "" && j.Class != "auto" {
		text += " of class " + j.Class
	}
	if j.Memory > 0 {
		text += " with " + console.Bytes(j.Memory)
		if need != 1 {
			text += " each"
		}
	}
	return text
}

// others says of each worker that is not free why it is not, those with the same reason
// together.
func (d *decision) others(j *fsm.Job) []string {
	var reasons []string
	names := map[string][]string{}
	for _, w := range d.s.ByName() {
		reason := d.unfit(j, w)
		if reason == "" {
			reason = d.taken(j, w)
		}
		if reason == "" {
			continue
		}
		if names[reason] == nil {
			reasons = append(reasons, reason)
		}
		names[reason] = append(names[reason], w.Name)
	}
	for i, reason := range reasons {
		is := " is "
		if len(names[reason]) > 1 {
			is = " are "
		}
		reasons[i] = strings.Join(limited(names[reason], namesShown), ", ") + is + reason
	}
	return reasons
}

// How much of a long list is shown.
const (
	namesShown  = 6
	othersShown = 4
)

// limited keeps a list readable.
func limited(list []string, shown int) []string {
	if len(list) <= shown {
		return list
	}
	return append(slices.Clone(list[:shown]), fmt.Sprintf("and %d more", len(list)-shown))
}
