package fsm

import (
	"bytes"
	"testing"

	"github.com/skein-ml/skein/coordinator/ledger"
)

// TestALedgerFollowsItsJobThroughTheLog plays a job with a live recovery, a fall back to a
// checkpoint and a pause, through a snapshot after every entry.
func TestALedgerFollowsItsJobThroughTheLog(t *testing.T) {
	id := New().newID("pronounce", "golden")
	s := New()
	for i, e := range []Entry{
		{At: 1000, Decision: register("w1")}, {At: 1000, Decision: register("w2")},
		{At: 2000, Decision: submit("golden")},
		{At: 3000, Decision: prepare(id, 1, "w1")},
		{At: 5000, Decision: resolve(id, 1)},
		{At: 6000, Decision: generate(id, 1, 0, "w1", "w2")},
		{At: 9000, Decision: publish(id, 1, 4), Spent: ledger.Spent{Step: 5, Entering: 500, Productive: 2400, Safe: 2000}},
		{At: 12_000, Decision: live(id, 2, 4, 6, []string{"w1", "w1", "w1", "w1"}, "w1"), Spent: ledger.Spent{Step: 6, Entering: 500, Productive: 3000, Checkpoint: 100, Rework: 1900, Safe: 2000}},
		{At: 15_000, Decision: generate(id, 3, 4, "w1", "w2"), Spent: ledger.Spent{Step: 8, Entering: 200, Productive: 2000, DataWait: 300}},
		{At: 16_000, Decision: &Pause{id}},
		{At: 18_000, Decision: publish(id, 3, 8), Spent: ledger.Spent{Step: 8, Entering: 300, Productive: 2500, Safe: 2500}},
		{At: 18_100, Decision: &Suspend{Job: id, Generation: 4}, Spent: ledger.Spent{Step: 8, Entering: 300, Productive: 2500, Safe: 2500}},
		{At: 28_100, Decision: &Resume{id}},
		{At: 28_200, Decision: generate(id, 5, 8, "w1", "w2")},
		{At: 30_000, Decision: publish(id, 5, 10), Spent: ledger.Spent{Step: 10, Entering: 100, Productive: 1200, Safe: 1200}},
		{At: 30_200, Decision: &Complete{Job: id, Generation: 5}, Spent: ledger.Spent{Step: 10, Entering: 100, Productive: 1200, Evaluation: 600, Safe: 1200}},
	} {
		if r := s.Apply(uint64(i+1), e); r.Err != nil {
			t.Fatalf("%s: %v", e.Decision.Kind(), r.Err)
		}
		var err error
		if s, err = Restore(bytes.NewReader(bytesOf(t, s))); err != nil {
			t.Fatal(err)
		}
	}
	want := ledger.Figures{
		Preparing:  3000 + 500,
		Productive: 2000 + 2500 + 1200,
		Rework:     1000 + 1900 + 2000, // steps 5 and 6, what was under way, steps 7 and 8
		Recovery:   500 + 700 + 600 + 200,
		Checkpoint: 100, DataWait: 300, Evaluation: 600, Paused: 1000 + 10_100,
	}
	l := s.Jobs[id].Ledger
	if l.Figures != want {
		t.Errorf("the ledger says %+v, want %+v", l.Figures, want)
	}
	if l.Wall() != 30_200-2000 {
		t.Errorf("it adds up to %d ms", l.Wall())
	}
}

func TestWhatIsKnownOfAGenerationCountsOnceThoughItsEntryComesLate(t *testing.T) {
	b := newBench(t)
	id := b.in(Running)
	spent := ledger.Spent{Generation: 1, Step: 9, Entering: 100, Productive: 9000}
	at := b.s.Jobs[id].Ledger.Until
	for i, e := range []Entry{
		{At: at + 11_000, Decision: generate(id, 2, 0, "w1", "w2"), Spent: spent},
		{At: at + 12_000, Decision: &Cancel{Job: id}, Spent: spent}, // proposed before the second one began
	} {
		if r := b.s.Apply(b.s.Index+1, e); r.Err != nil {
			t.Fatalf("entry %d: %v", i, r.Err)
		}
	}
	if l := b.s.Jobs[id].Ledger; l.Productive+l.Rework != 9000 || l.Wall() != at+12_000-b.s.Jobs[id].Submitted {
		t.Errorf("the ledger says %+v", l.Figures)
	}
}
