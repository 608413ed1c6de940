package fsm

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// Spared picks, of the workers that a job leaves out because their copies differed from those
// of others too often, those that it takes all the same. Doubted says by name how often they
// did, and others is how many workers it could have beside them. None is spared while the
// others are enough for it. If they are not, as few are as it takes to run, and to compare
// copies still: which of two workers is wrong is only found out beside a third, and until
// then the job is set back whenever they differ, which loses less than to wait.
func (j *Job) Spared(doubted map[string]int, others int) []string {
	if others >= j.WorkersMin {
		return nil
	}
	names := slices.SortedFunc(maps.Keys(doubted), func(a, b string) int {
		return cmp.Or(doubted[a]-doubted[b], strings.Compare(a, b))
	})
	need := max(j.WorkersMin, min(2, j.WorkersMax)) - others
	return names[:min(need, len(names))]
}

// Though says of spared workers that they are; empty if there are none. It follows the reason
// of a placement.
func Though(spared []string) string {
	if len(spared) == 0 {
		return ""
	}
	takes := " takes part"
	if len(spared) > 1 {
		takes = " take part"
	}
	return "; " + strings.Join(spared, ", ") + takes + ", although copies differed there again and again, because without that too few workers are left"
}
