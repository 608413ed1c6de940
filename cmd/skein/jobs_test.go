package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/internal/console"
)

func TestTheTableOfJobsIsCutToATerminalAndNothingElse(t *testing.T) {
	loss := 1.25
	why := strings.Repeat("needs 4 workers ", 10)
	jobs := []client.Job{
		{ID: "a-1", Phase: "queued", WaitingFor: why},
		{ID: "b-2", Phase: "done", Result: console.Marshal(console.Done{Steps: 24, LossAfter: &loss})},
	}
	narrow := jobTable(jobs, false, time.Now())
	if !strings.Contains(narrow, strings.TrimSpace(why)) || clipLines(narrow, 0) != narrow {
		t.Errorf("what goes to a pipe is cut:\n%s", narrow)
	}
	for line := range strings.Lines(clipLines(narrow, 60)) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 60 {
			t.Errorf("a line of %d characters on a terminal of 60", n)
		}
	}
	if wide := jobTable(jobs, true, time.Now()); !strings.Contains(wide, "1.250@24") {
		t.Errorf("the held-out loss of a job that is done is not shown:\n%s", wide)
	}
	var out bytes.Buffer
	if err := list(streams{out: &out}, outputYAML, []client.Job{}, nil); err != nil || out.String() != "[]\n" {
		t.Errorf("no jobs are %q in YAML (%v)", out.String(), err)
	}
}
