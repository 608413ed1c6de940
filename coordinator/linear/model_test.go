package linear

import (
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// jobsEach is how many jobs a history is about. Histories of different jobs are checked
// apart.
const jobsEach = 3

// row is one job as clients see it. Preparing, queued and running are one to the model:
// when a job goes from one to the next is the cluster's business and not the clients'.
type row struct {
	phase   string // "": there is no such job; active, done, canceled
	workers int32  // that it may use at most
}

// table is all jobs of a history; the model's state.
type table [jobsEach]row

// The calls of the model.
const (
	submit   = "submit"
	cancel   = "cancel"
	scale    = "scale"
	complete = "complete"
	get      = "get"
	list     = "list"
)

// call is what somebody asked for.
type call struct {
	kind    string
	job     int
	workers int32 // of submit and scale
}

// The outcomes of a call.
const (
	held    = "held"
	refused = "refused" // not with this job, in this phase
	absent  = "absent"  // there is no such job
	unknown = "unknown" // no answer came: it may have happened, at any time since
)

// answer is what came of it.
type answer struct {
	outcome string
	saw     table // of get the job's row alone
}

// step is the sequential table of jobs: whether a call may be answered so, and what it
// leaves.
func step(s table, c call, a answer) (legal bool, next table) {
	j := &s[c.job]
	switch c.kind {
	case get:
		return a.saw[c.job] == *j, s
	case list:
		return a.saw == s, s
	}
	outcome, change := held, func() {}
	switch {
	case c.kind == submit:
		if j.phase == "" {
			change = func() { *j = row{"active", c.workers} }
		}
	case j.phase == "":
		outcome = absent
	case c.kind == cancel && j.phase == "done", c.kind == scale && j.phase != "active", c.kind == complete && j.phase == "canceled":
		outcome = refused
	case c.kind == cancel:
		change = func() { j.phase = "canceled" }
	case c.kind == scale:
		change = func() { j.workers = c.workers }
	case c.kind == complete:
		change = func() { j.phase = "done" }
	}
	if c.kind == complete && a.outcome == refused { // its generation may be over, which is none of the model's business
		return true, s
	}
	legal = a.outcome == unknown || a.outcome == outcome
	if legal {
		change()
	}
	return legal, s
}

var model = porcupine.Model{
	Init: func() any { return table{} },
	Step: func(s, c, a any) (bool, any) { return step(s.(table), c.(call), a.(answer)) },
	DescribeOperation: func(c, a any) string {
		return fmt.Sprintf("%+v → %+v", c, a)
	},
}

// history is what all clients asked and were told.
type history struct {
	mu    sync.Mutex
	began time.Time
	ops   []porcupine.Operation
}

func newHistory() *history { return &history{began: time.Now()} }

// ask notes a call, and returns how to note its answer.
func (h *history) ask(client int, c call) func(answer) {
	at := time.Since(h.began).Nanoseconds()
	return func(a answer) {
		op := porcupine.Operation{ClientId: client, Input: c, Call: at, Output: a, Return: time.Since(h.began).Nanoseconds()}
		if a.outcome == unknown {
			if c.kind == get || c.kind == list {
				return // it has changed nothing
			}
			op.Return = math.MaxInt64
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.ops = append(h.ops, op)
	}
}

// count tells how many calls were answered, and how many never were.
func (h *history) count() (answered, lost int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, op := range h.ops {
		if op.Return == math.MaxInt64 {
			lost++
		}
	}
	return len(h.ops) - lost, lost
}

// ends says how many calls of each kind held, were refused and so on.
func (h *history) ends() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := map[string]int{}
	for _, op := range h.ops {
		n[op.Input.(call).kind+" "+op.Output.(answer).outcome]++
	}
	return fmt.Sprint(n)
}

// String lists the calls in the order in which they were made.
func (h *history) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var b strings.Builder
	for _, op := range h.ops {
		end := "     never"
		if op.Return != math.MaxInt64 {
			end = fmt.Sprintf("%10.3f", time.Duration(op.Return).Seconds()*1e3)
		}
		fmt.Fprintf(&b, "%10.3f %s ms  client %d  %+v → %+v\n", time.Duration(op.Call).Seconds()*1e3, end, op.ClientId, op.Input, op.Output)
	}
	return b.String()
}

// check tells whether the calls can have happened one after the other.
func (h *history) check() porcupine.CheckResult {
	h.mu.Lock()
	defer h.mu.Unlock()
	return porcupine.CheckOperationsTimeout(model, h.ops, 2*patience)
}

// TestTheCheckerTellsWhatCanBeFromWhatCannot shows the checker histories of which it is
// known.
func TestTheCheckerTellsWhatCanBeFromWhatCannot(t *testing.T) {
	active := func(workers int32) table { return table{row{"active", workers}} }
	// told is one call: who, from when, to when, what, and what was answered.
	type told struct {
		client   int
		from, to int64
		c        call
		a        answer
	}
	first := told{0, 0, 1, call{submit, 0, 4}, answer{outcome: held}}
	for name, c := range map[string]struct {
		calls []told
		want  porcupine.CheckResult
	}{
		"a life": {[]told{first, {1, 2, 3, call{kind: get}, answer{held, active(4)}}, {0, 4, 5, call{scale, 0, 2}, answer{outcome: held}},
			{1, 6, 7, call{kind: list}, answer{held, active(2)}}, {2, 8, 9, call{kind: complete}, answer{outcome: held}},
			{0, 10, 11, call{kind: cancel}, answer{outcome: refused}}}, porcupine.Ok},
		"a stale read": {[]told{first, {0, 2, 3, call{kind: cancel}, answer{outcome: held}}, {1, 4, 5, call{kind: get}, answer{held, active(4)}}}, porcupine.Illegal},
		"a read during a change, either way": {[]told{first, {0, 2, 9, call{kind: cancel}, answer{outcome: held}},
			{1, 4, 5, call{kind: get}, answer{held, active(4)}}}, porcupine.Ok},
		"a read that goes back": {[]told{first, {0, 2, 9, call{kind: cancel}, answer{outcome: held}},
			{1, 3, 4, call{kind: get}, answer{held, table{{"canceled", 4}}}}, {2, 5, 6, call{kind: get}, answer{held, active(4)}}}, porcupine.Illegal},
		"a lost submission":   {[]told{first, {1, 2, 3, call{kind: get}, answer{outcome: held}}}, porcupine.Illegal},
		"a lost scaling":      {[]told{first, {0, 2, 3, call{scale, 0, 2}, answer{outcome: held}}, {1, 4, 5, call{kind: list}, answer{held, active(4)}}}, porcupine.Illegal},
		"two ends of one job": {[]told{first, {0, 2, 3, call{kind: cancel}, answer{outcome: held}}, {2, 4, 5, call{kind: complete}, answer{outcome: held}}}, porcupine.Illegal},
		"no answer, and it happened": {[]told{first, {0, 2, math.MaxInt64, call{kind: cancel}, answer{outcome: unknown}},
			{1, 4, 5, call{kind: get}, answer{held, active(4)}}, {1, 6, 7, call{kind: get}, answer{held, table{{"canceled", 4}}}}}, porcupine.Ok},
		"no answer, and it never happened": {[]told{first, {0, 2, math.MaxInt64, call{kind: cancel}, answer{outcome: unknown}},
			{2, 4, 5, call{kind: complete}, answer{outcome: held}}, {1, 6, 7, call{kind: get}, answer{held, table{{"done", 4}}}}}, porcupine.Ok},
		"no answer, and it happened twice": {[]told{first, {0, 2, math.MaxInt64, call{scale, 0, 2}, answer{outcome: unknown}},
			{1, 4, 5, call{kind: get}, answer{held, active(2)}}, {0, 6, 7, call{scale, 0, 3}, answer{outcome: held}},
			{1, 8, 9, call{kind: get}, answer{held, active(2)}}}, porcupine.Illegal},
	} {
		h := newHistory()
		for _, o := range c.calls {
			h.ops = append(h.ops, porcupine.Operation{ClientId: o.client, Input: o.c, Call: o.from, Output: o.a, Return: o.to})
		}
		if got := h.check(); got != c.want {
			t.Errorf("%s: %s, want %s\n%s", name, got, c.want, h)
		}
	}
}
