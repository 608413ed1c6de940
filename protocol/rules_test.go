package protocol

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

// bounded are the explorations. Two faults may be one in the middle of the recovery of
// the other. With spare or joins, ranks move to a worker that holds nothing.
var bounded = map[string]bounds{
	"two faults":                          {steps: 2, gens: 3, faults: 2, filled: true},
	"two faults in three steps":           {steps: 3, gens: 3, faults: 2, filled: true},
	"two faults while mirrors are filled": {steps: 2, gens: 3, faults: 2},
	"a lost worker comes back":            {steps: 2, gens: 3, faults: 2, joins: 1, filled: true},
	"a job grows":                         {steps: 2, gens: 3, faults: 2, spare: true},
	"a job grows and a worker returns":    {steps: 2, gens: 3, faults: 1, joins: 1, spare: true, filled: true},
	"replicated state":                    {steps: 2, gens: 3, faults: 2, joins: 1, replicated: true, filled: true},
}

// atLeisure takes minutes: SKEIN_ENUMERATE=all.
var atLeisure = map[string]bounds{
	"mirrors are filled and a worker returns": {steps: 2, gens: 3, faults: 2, joins: 1},
	"a job grows, two faults and a return":    {steps: 2, gens: 3, faults: 2, joins: 1, spare: true},
	"mirrors are filled in three steps":       {steps: 3, gens: 3, faults: 2},
	"three faults":                            {steps: 2, gens: 3, faults: 3, joins: 1, filled: true},
	"replicas are filled":                     {steps: 2, gens: 3, faults: 2, replicated: true},
}

// TestNothingIsLostWhateverFailsWhenever visits every state of the model. In each of them
// holds: no decided step that a worker left knows is run again; a rank is lost only with
// all workers that the rules promise to hold it; who knows D(k) can apply it; no worker
// has weights that the job goes back behind; and nothing waits for ever.
func TestNothingIsLostWhateverFailsWhenever(t *testing.T) {
	all := maps.Clone(bounded)
	if os.Getenv("SKEIN_ENUMERATE") == "all" {
		maps.Copy(all, atLeisure)
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t.Run(name, func(t *testing.T) {
			e := explore(allRules, all[name])
			t.Logf("%d states, %d ends with the job done, %d at the checkpoint, %d different plans",
				len(e.seen), e.counts["done"], e.counts["back to the checkpoint"], len(e.plans))
			if e.bad != "" {
				t.Errorf("%s: %s", e.bad, e.badAt)
			}
			if e.counts["done"] == 0 {
				t.Error("the job never came to its end")
			}
		})
	}
}

// filled and unready are where rules are taken away.
var (
	filled  = bounds{steps: 2, gens: 3, faults: 2, joins: 1, filled: true}
	unready = bounds{steps: 2, gens: 2, faults: 1}
)

// TestWithoutAnyOneRuleSomethingIsLost takes the rules away one by one.
func TestWithoutAnyOneRuleSomethingIsLost(t *testing.T) {
	for _, c := range []struct {
		rule string
		off  func(r *rules)
		from bounds
		want string
	}{
		{"a vote waits for the sums of what is mirrored", func(r *rules) { r.mirroredVotes = false }, filled, "without its sum"},
		{"who has reported does nothing more", func(r *rules) { r.sealing = false }, filled, "goes on from"},
		{"D comes with the first of the new weights", func(r *rules) { r.decisionAhead = false }, filled, "weights of step"},
		{"frames of other generations are refused", func(r *rules) { r.fencing = false }, filled, "without its sum"},
		{"a fill is of one step", func(r *rules) { r.fillOneStep = false }, unready, "parts of two steps"},
		{"a fill that ends after the vote does not count", func(r *rules) { r.fillThenVote = false }, unready, "without its sum"},
		{"the log keeps D of the step that a generation goes on from", func(r *rules) { r.logDecision = false }, filled, "the next one after"},
		{"sources keep what they gave", func(r *rules) { r.keepSources = false }, bounds{steps: 2, gens: 3, faults: 1, spare: true}, "is left"},
		{"a report is a promise not to enter what it helps to end", func(r *rules) { r.sealUnentered = false }, filled, "goes on from"},
		{"what is decided is applied before it is reported", func(r *rules) { r.sealApplies = false }, filled, "is left"},
		{"who was given up is not read", func(r *rules) { r.zombiesEmpty = false }, filled, "is left"},
		{"a generation places processes", func(r *rules) { r.processes = false }, filled, "without its sum"},
	} {
		t.Run(c.rule, func(t *testing.T) {
			r := allRules
			c.off(&r)
			e := explore(r, c.from)
			t.Logf("%d states: %s: %s", len(e.seen), e.bad, e.badAt)
			if e.bad == "" || !strings.Contains(e.bad, c.want) {
				t.Errorf("without the rule that %s: %q, want %q", c.rule, e.bad, c.want)
			}
		})
	}
}
