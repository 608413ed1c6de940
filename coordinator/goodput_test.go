package coordinator

import (
	"testing"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/ledger"
	"github.com/skein-ml/skein/coordinator/recovery"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// spending is a job of four ranks on two workers, in its third generation.
func spending() (*fsm.Job, *memory) {
	j := &fsm.Job{ID: "job", Phase: fsm.Running, Generation: 3, WorldSize: 4,
		Placement: []fsm.Place{{Worker: "w1", Incarnation: "a", Ranks: []int{0, 1}}, {Worker: "w2", Incarnation: "b", Ranks: []int{2, 3}}}}
	return j, newMemory(time.Now())
}

func told(step, productive, evaluation int64) *skeinv1.Spent {
	return &skeinv1.Spent{Step: step, EnteringMs: 100, ProductiveMs: productive, DataWaitMs: 3, CheckpointMs: 4, EvaluationMs: evaluation,
		Marks: []*skeinv1.Mark{{Step: 8, ProductiveMs: 800}, {Step: 16, ProductiveMs: 1600}}}
}

func TestTheReportThatReachesFurthestSaysWhatAGenerationSpent(t *testing.T) {
	j, h := spending()
	published := fsm.Checkpoint{Generation: 3, Step: 8}
	if got := h.spentOf(j, published, nil); got != (ledger.Spent{}) {
		t.Errorf("of a generation that nobody has told of: %+v", got)
	}
	h.spends(time.Now(), "job", 3, told(20, 2000, 50))
	h.spends(time.Now(), "job", 2, told(99, 9900, 0)) // late news of an older one
	want := ledger.Spent{Generation: 3, Step: 20, Entering: 100, Productive: 2000, Checkpoint: 4, DataWait: 3, Evaluation: 50, Safe: 800}
	if got := h.spentOf(j, published, nil); got != want {
		t.Errorf("while it trains: %+v, want %+v", got, want)
	}
	s := told(21, 2150, 0) // it waited in a step while rank 0's worker evaluated
	s.UnfinishedMs = 70
	h.spent("job", 3, "w2", &skeinv1.Sealed{Step: 21, Spent: s})
	want = ledger.Spent{Generation: 3, Step: 21, Entering: 100, Productive: 2100, Rework: 70, Checkpoint: 4, DataWait: 3, Evaluation: 50, Safe: 1600}
	if got := h.spentOf(j, fsm.Checkpoint{Generation: 3, Step: 16}, nil); got != want {
		t.Errorf("when w1 is lost and w2 has sealed: %+v, want %+v", got, want)
	}
	if got := h.spentOf(j, fsm.Checkpoint{Generation: 2, Step: 16}, nil); got.Safe != 0 {
		t.Errorf("a checkpoint of an older generation makes %d ms of this one safe", got.Safe)
	}
}

func TestAStepThatOnlyTheDeadKnewDecidedIsNotProductive(t *testing.T) {
	j, h := spending()
	h.spends(time.Now(), "job", 3, told(21, 2100, 0)) // by w1, which is lost
	s := told(20, 2000, 0)
	s.UnfinishedMs = 90
	h.spent("job", 3, "w2", &skeinv1.Sealed{Step: 20, Spent: s})
	place := []fsm.Place{{Worker: "w2", Incarnation: "b", Ranks: []int{0, 1, 2, 3}}}
	got := h.spentOf(j, fsm.Checkpoint{}, &fsm.Generate{Placement: place, Live: &fsm.Live{Target: 20}})
	if got.Step != 20 || got.Productive != 2000 || got.Rework != 90 {
		t.Errorf("going on from step 20: %+v", got)
	}
	if got = h.spentOf(j, fsm.Checkpoint{}, &fsm.Generate{Placement: place, Live: &fsm.Live{Target: 21}}); got.Step != 21 || got.Productive != 2100 {
		t.Errorf("going on from step 21: %+v", got)
	}
}

func TestGradientsThatStayWhereTheyAreAreProductive(t *testing.T) {
	sealed := func(ranks ...int32) *skeinv1.Sealed {
		s := told(20, 2000, 0)
		s.UnfinishedMs = 90
		return &skeinv1.Sealed{Step: 20, Spent: s, Computed: ranks, ComputedMs: 80}
	}
	place := func(worker, incarnation string, ranks ...int) fsm.Place {
		return fsm.Place{Worker: worker, Incarnation: incarnation, Ranks: ranks}
	}
	for _, c := range []struct {
		name  string
		live  *fsm.Live
		place []fsm.Place
		want  int64 // of 90 ms
	}{
		{"both stay", &fsm.Live{Target: 20}, []fsm.Place{place("w1", "a", 0, 1), place("w2", "b", 2, 3)}, 80},
		{"one is lost", &fsm.Live{Target: 20}, []fsm.Place{place("w2", "b", 0, 1, 2, 3)}, 40},
		{"a rank moves", &fsm.Live{Target: 20}, []fsm.Place{place("w1", "a", 0), place("w2", "b", 1, 2, 3)}, 60},
		{"started again", &fsm.Live{Target: 20}, []fsm.Place{place("w1", "a", 0, 1), place("w2", "c", 2, 3)}, 40},
		{"another step", &fsm.Live{Target: 21}, []fsm.Place{place("w1", "a", 0, 1), place("w2", "b", 2, 3)}, 0},
		{"from a checkpoint", nil, []fsm.Place{place("w1", "a", 0, 1), place("w2", "b", 2, 3)}, 0},
	} {
		j, h := spending()
		h.spent("job", 3, "w1", sealed(0, 1))
		h.spent("job", 3, "w2", sealed(2, 3))
		got := h.spentOf(j, fsm.Checkpoint{}, &fsm.Generate{Placement: c.place, Live: c.live})
		if got.Productive != 2000+c.want || got.Rework != 90-c.want {
			t.Errorf("%s: %d ms productive, %d rework; want %d of 90 kept", c.name, got.Productive-2000, got.Rework, c.want)
		}
	}
}

func TestAStepUnderWayIsShownAsProductiveUntilItsGenerationIsKnownToEnd(t *testing.T) {
	j, h := spending()
	now := time.Now()
	j.Ledger = ledger.Begin(now.Add(-10 * time.Second).UnixMilli())
	j.Ledger.Train(now.Add(-8*time.Second).UnixMilli(), ledger.Spent{}, false, 2, 4)
	h.spends(now.Add(-time.Second), "job", 3, told(20, 2000, 0))
	l := ledgerOf(now, j, h)
	if l.Productive != 3000 || l.Wall() != 10_000 {
		t.Errorf("%+v", l.Figures)
	}
	if m := ledgerMessage(l); m.GetProductiveMs() != 3000 || m.GetCapacity() != .5 {
		t.Errorf("%v", m)
	}
	s := fsm.New()
	s.Jobs["job"] = j
	h.follow(now, s, recovery.Decision{Seal: map[string]string{"job": "w2 is gone"}})
	if l = ledgerOf(now, j, h); l.Productive != 2000 || l.Wall() != 10_000 {
		t.Errorf("when it ends: %+v", l.Figures)
	}
	if l = ledgerOf(now, j, nil); l.Wall() != 10_000 {
		t.Errorf("where nothing was heard: %+v", l.Figures)
	}
}
