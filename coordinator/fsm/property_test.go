package fsm

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// anyDecision draws a decision that fits the state more often than not: pure
// chance would be refused nearly always.
func anyDecision(t *rapid.T, s *State) Decision {
	worker := rapid.SampledFrom([]string{"w1", "w2", "w3", "w4"}).Draw(t, "worker")
	incarnation := fmt.Sprintf("%s-%d", worker, rapid.SampledFrom([]int{1, 1, 1, 2}).Draw(t, "incarnation"))
	jobs := s.InOrder()
	if len(jobs) == 0 || rapid.IntRange(0, 5).Draw(t, "what") == 5 {
		switch rapid.IntRange(0, 9).Draw(t, "of workers") {
		case 0, 1:
			return submit(fmt.Sprint("request-", rapid.IntRange(0, 5).Draw(t, "request")))
		case 8:
			return &Drain{worker, incarnation}
		case 9:
			return &Remove{worker, incarnation}
		}
		return registerAs(worker, incarnation)
	}
	j := jobs[rapid.IntRange(0, len(jobs)-1).Draw(t, "job")]
	off := uint64(rapid.SampledFrom([]int{0, 0, 0, 0, 1}).Draw(t, "off"))
	newest, _ := j.Newest()
	// rapid prefers small numbers, so what ends a job has the large ones.
	switch rapid.IntRange(0, 22).Draw(t, "of jobs") {
	case 22:
		return &Scale{Job: j.ID, Workers: rapid.IntRange(0, 5).Draw(t, "scaled to")}
	case 21:
		return &Pause{Job: j.ID}
	case 20, 11:
		return &Resume{Job: j.ID}
	case 19:
		return &Fail{Job: j.ID, Generation: j.Generation + off}
	case 18:
		return &Cancel{Job: j.ID}
	case 17, 16:
		return &Suspend{Job: j.ID, Generation: j.Generation + 1 + off}
	case 15, 14, 4:
		return publish(j.ID, j.Generation-off, newest.Step+int64(rapid.SampledFrom([]int{10, 3, 1, 0}).Draw(t, "steps")))
	case 13, 12, 5:
		return &Complete{Job: j.ID, Generation: j.Generation - off}
	}
	switch j.Phase {
	case Preparing:
		if j.Preparation.Number > 0 && rapid.Bool().Draw(t, "prepared") {
			return resolve(j.ID, j.Preparation.Number-off)
		}
		return &Prepare{Job: j.ID, Number: j.Preparation.Number + 1 - off, Worker: worker, Incarnation: incarnation}
	case Running:
		if newest.Step == j.Steps {
			return &Complete{Job: j.ID, Generation: j.Generation - off}
		}
		if rapid.Bool().Draw(t, "to the end") {
			return publish(j.ID, j.Generation-off, j.Steps)
		}
	}
	order := rapid.Permutation([]string{"w1", "w2", "w3", "w4"}).Draw(t, "order")
	g := generate(j.ID, j.Generation+1-off, newest.Step, order[:rapid.IntRange(1, 4).Draw(t, "workers")]...)
	for i, p := range g.Placement {
		if w := s.Workers[p.Worker]; w != nil {
			g.Placement[i].Incarnation = w.Incarnation
		}
	}
	if ended := j.Ended(); ended.Generation > 0 && rapid.Bool().Draw(t, "live") {
		g.Live = &Live{After: ended.Generation, Target: newest.Step + int64(off), Decision: []byte("D")}
		for range 4 {
			g.Live.Sources = append(g.Live.Sources, rapid.SampledFrom(ended.Placement).Draw(t, "source").Worker)
		}
	}
	return g
}

// randomLog draws a log of decisions and gives the state that it leads to.
func randomLog(t *rapid.T) ([]Entry, *State) {
	s := New()
	var log []Entry
	for range rapid.IntRange(20, 80).Draw(t, "entries") {
		e := Entry{At: int64(len(log)), Reason: "r", Decision: anyDecision(t, s)}
		raw, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if e, err = Decode(raw); err != nil {
			t.Fatal(err)
		}
		log = append(log, e)
		s.Apply(uint64(len(log)), e)
	}
	return log, s
}

func TestTheSameLogGivesTheSameStateThroughAnySnapshot(t *testing.T) {
	reached := map[Phase]int{}
	rapid.Check(t, func(t *rapid.T) {
		log, want := randomLog(t)
		cut := rapid.IntRange(0, len(log)).Draw(t, "snapshot after")
		s := New()
		for i, e := range log {
			if i == cut {
				restored, err := Restore(bytes.NewReader(bytesOf(t, s)))
				if err != nil {
					t.Fatalf("restore after %d entries: %v", i, err)
				}
				s = restored
			}
			s.Apply(uint64(i+1), e)
		}
		if !bytes.Equal(bytesOf(t, s), bytesOf(t, want)) {
			t.Fatalf("two readings of one log differ:\n%s\n%s", bytesOf(t, s), bytesOf(t, want))
		}
		for _, j := range want.Jobs {
			reached[j.Phase]++
		}
	})
	for _, p := range Phases {
		if testing.Short() {
			break // a few logs only
		}
		if reached[p] == 0 {
			t.Errorf("no random job ended up %s: the test is weaker than it looks (%v)", p, reached)
		}
	}
}

func TestAnEntryProposedTwiceCountsOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		log, _ := randomLog(t)
		once, twice := New(), New()
		for i, e := range log {
			once.Apply(uint64(2*i+1), e)
			first := twice.Apply(uint64(2*i+1), e)
			again := twice.Apply(uint64(2*i+2), e)
			if first.Err == nil && again.Err == nil && first.Job != again.Job {
				t.Fatalf("%s gave %s and then %s", e.Decision.Kind(), first.Job, again.Job)
			}
		}
		once.Index = twice.Index
		if !bytes.Equal(bytesOf(t, once), bytesOf(t, twice)) {
			t.Fatalf("retries changed the state:\n%s\n%s", bytesOf(t, once), bytesOf(t, twice))
		}
	})
}

func TestGenerationsNeverFallAndFinalPhasesStay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		log, _ := randomLog(t)
		s := New()
		for i, e := range log {
			before := s.Clone()
			s.Apply(uint64(i+1), e)
			for id, was := range before.Jobs {
				is := s.Jobs[id]
				if is.Generation < was.Generation || is.Generation > was.Generation+1 {
					t.Fatalf("%s: generation %d after %d", id, is.Generation, was.Generation)
				}
				if was.Phase.Final() && is != was {
					t.Fatalf("%s was over and changed by a %s", id, e.Decision.Kind())
				}
				if err := was.Phase.mayBecome(is.Phase); err != nil && is.Phase != was.Phase {
					t.Fatalf("%s: %v", id, err)
				}
			}
		}
	})
}
