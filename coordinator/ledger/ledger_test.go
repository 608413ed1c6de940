package ledger

import (
	"encoding/json"
	"testing"

	"pgregory.net/rapid"
)

// life is a job as it really was, beside its ledger.
type life struct {
	*rapid.T
	now    int64
	ledger Ledger
	want   Figures
	taken  []int64 // productive time of each step since the newest checkpoint
	steps  int64
	gen    Spent // of the running generation, as its workers measure it
	first  bool  // no step was begun before this generation
}

func (l *life) ms(most int, what string) int64 { return int64(rapid.IntRange(1, most).Draw(l.T, what)) }

// pass lets time go by.
func (l *life) pass(d int64, into ...*int64) {
	l.now += d
	for _, x := range into {
		*x += d
	}
}

// generation is one from its entry in the log until it is known to be over.
func (l *life) generation(live bool) {
	workers := rapid.IntRange(1, 4).Draw(l.T, "workers")
	l.ledger.Train(l.now, l.gen, live, workers, 4)
	if !live {
		for _, d := range l.taken {
			l.want.Productive -= d
			l.want.Rework += d
		}
		l.taken = nil
	}
	l.gen = Spent{Step: l.steps}
	l.pass(l.ms(100, "orders"), &l.want.Recovery) // nobody measures it
	entering := &l.want.Recovery
	if l.first {
		entering = &l.want.Preparing
	}
	l.pass(l.ms(900, "entering"), entering, &l.gen.Entering)
	l.first = false
	for range rapid.IntRange(0, 6).Draw(l.T, "steps") {
		l.pass(l.ms(50, "data"), &l.want.DataWait, &l.gen.DataWait)
		d := l.ms(3000, "step")
		l.pass(d, &l.want.Productive, &l.gen.Productive)
		l.taken = append(l.taken, d)
		l.steps++
		l.gen.Step = l.steps
		switch rapid.IntRange(0, 3).Draw(l.T, "after a step") {
		case 0:
			l.pass(l.ms(300, "checkpoint"), &l.want.Checkpoint, &l.gen.Checkpoint)
			l.taken, l.gen.Safe = nil, l.gen.Productive
			known := l.gen
			if rapid.IntRange(0, 3).Draw(l.T, "the leader knows nothing") == 0 {
				known = Spent{}
			}
			l.ledger.Publish(known)
		case 1:
			l.pass(l.ms(300, "evaluation"), &l.want.Evaluation, &l.gen.Evaluation)
		}
		l.again()
	}
	d := l.ms(3000, "unfinished")
	l.pass(d, &l.want.Rework, &l.gen.Rework)
	l.pass(l.ms(1500, "sealing"), &l.want.Recovery)
}

// again has another leader take over, who knows what the log says.
func (l *life) again() {
	b, err := json.Marshal(l.ledger)
	if err != nil {
		l.Fatal(err)
	}
	l.ledger = Ledger{}
	if err := json.Unmarshal(b, &l.ledger); err != nil {
		l.Fatal(err)
	}
}

func TestALedgerTellsWhereTheTimeOfAJobWent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := life{T: t, now: 1_700_000_000_000, first: true}
		began := l.now
		l.ledger = Begin(l.now)
		l.pass(l.ms(5000, "preparing"), &l.want.Preparing)
		waits := true
		l.ledger.Wait(l.now, Spent{})
		for range rapid.IntRange(1, 6).Draw(t, "generations") {
			if waits {
				l.pass(l.ms(5000, "waiting"), &l.want.Paused)
			}
			l.generation(rapid.Bool().Draw(t, "live"))
			waits = rapid.IntRange(0, 2).Draw(t, "waits") == 0
			if waits {
				l.ledger.Wait(l.now, l.gen)
				l.gen = Spent{}
			}
		}
		l.ledger.End(l.now, l.gen, false)
		if l.ledger.Figures != l.want {
			t.Fatalf("the ledger says %+v, it was %+v", l.ledger.Figures, l.want)
		}
		if got := l.ledger.Wall(); got != l.now-began {
			t.Fatalf("the figures add up to %d ms, the job lasted %d", got, l.now-began)
		}
		if share, ok := l.ledger.Capacity(); !ok || share <= 0 || share > 1 {
			t.Fatalf("capacity is %v, %v", share, ok)
		}
	})
}

// anySpent draws what workers may say, true or not.
func anySpent(t *rapid.T) Spent {
	ms := rapid.Int64Range(-10, 5000)
	if rapid.IntRange(0, 20).Draw(t, "nonsense") == 0 {
		ms = rapid.Int64()
	}
	return Spent{Step: ms.Draw(t, "step"), Entering: ms.Draw(t, "entering"), Productive: ms.Draw(t, "productive"), Rework: ms.Draw(t, "rework"),
		Checkpoint: ms.Draw(t, "checkpoint"), DataWait: ms.Draw(t, "data"), Evaluation: ms.Draw(t, "evaluation"), Safe: ms.Draw(t, "safe")}
}

// TestFiguresAddUpToTheWallTimeWhateverHappens lets anything happen in any order, with
// clocks that jump: no figure is below zero, none falls but the productive one in favour of
// rework, and the sum is the time that went by as far as clocks and workers agree on it.
func TestFiguresAddUpToTheWallTimeWhateverHappens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at := int64(1_700_000_000_000)
		l := Begin(at)
		began, forgiven := at, int64(0)
		for range rapid.IntRange(1, 40).Draw(t, "events") {
			step := rapid.Int64Range(0, 10_000).Draw(t, "later")
			if rapid.IntRange(0, 9).Draw(t, "jump") == 0 {
				step = rapid.Int64Range(-1e7, 1e7).Draw(t, "to")
			}
			at += step
			before, heard, closes := l, anySpent(t), true
			switch rapid.IntRange(0, 6).Draw(t, "event") {
			case 0:
				l.Wait(at, heard)
			case 1, 2:
				l.Train(at, heard, rapid.Bool().Draw(t, "live"), rapid.IntRange(0, 4).Draw(t, "workers"), 4)
			case 3:
				l.Publish(heard)
				closes = false
			case 4:
				l.Want(at, 3)
				closes = false
			case 5:
				heard = Spent{}
				l.Lose(at)
			case 6:
				if now := l.Now(at, heard, at-rapid.Int64Range(0, 5000).Draw(t, "heard"), rapid.Bool().Draw(t, "ends")); now.Wall() < l.Wall() {
					t.Fatalf("shown as %+v after %+v", now, l)
				}
				closes = false
			}
			since := int64(0)
			if closes {
				shown, measured := at-before.Until-before.Lead, int64(0)
				if before.Doing == Training {
					known := before
					known.learn(heard)
					measured = known.Known.total()
				}
				since = max(shown, measured, 0)
				if lead := since - shown; lead > leadMax { // the clock was set back
					forgiven += lead
				}
			}
			if l.Wall() != before.Wall()+since {
				t.Fatalf("%d ms went by, and the figures went from %d to %d", since, before.Wall(), l.Wall())
			}
			if l.Wall() != l.Until-began+l.Lead+forgiven {
				t.Fatalf("the figures add up to %d ms, the clock shows %d, they lead by %d", l.Wall(), l.Until-began+forgiven, l.Lead)
			}
			f := l.Figures
			for _, x := range []int64{f.Preparing, f.Productive, f.Rework, f.Recovery, f.Checkpoint, f.DataWait, f.Evaluation, f.Paused, l.Risk, l.Productive - l.Risk} {
				if x < 0 {
					t.Fatalf("a figure is below zero: %+v", l)
				}
			}
		}
		l.End(at, Spent{}, true)
		end := l
		l.Wait(at+1000, Spent{})
		l.End(at+5000, Spent{}, true)
		if l.Figures != end.Figures {
			t.Fatalf("a job that is over goes on: %+v after %+v", l.Figures, end.Figures)
		}
	})
}

func TestAnUndisturbedJobIsAllProductiveOnceItIsPrepared(t *testing.T) {
	l := Begin(1000)
	l.Wait(3000, Spent{})
	l.Train(3000, Spent{}, false, 4, 4)
	l.End(14_000, Spent{Step: 10, Entering: 900, Productive: 10_000}, true)
	if share, ok := l.Goodput(); !ok || share != 1 {
		t.Errorf("goodput %v, %v of %+v", share, ok, l.Figures)
	}
	if l.Preparing != 3000 {
		t.Errorf("prepared for %d ms", l.Preparing)
	}
}

func TestStepsLostByAFallBackBecomeReworkAfterTheFact(t *testing.T) {
	l := Begin(0)
	l.Train(1000, Spent{}, false, 2, 4)
	l.Publish(Spent{Step: 4, Entering: 10, Productive: 4000, Safe: 3500})
	if l.Risk != 0 {
		t.Errorf("%d ms are at risk with all published", l.Risk)
	}
	l.Train(11_000, Spent{Step: 8, Entering: 10, Productive: 8000, Rework: 500, Safe: 3500}, true, 4, 4)
	if l.Productive != 8000 || l.Risk != 4500 {
		t.Errorf("going on live: productive %d ms, at risk %d", l.Productive, l.Risk)
	}
	l.Train(13_000, Spent{Step: 9, Entering: 10, Productive: 1000}, false, 4, 4)
	if l.Productive != 3500 || l.Rework != 500+4500+1000 {
		t.Errorf("after a fall back: productive %d ms, rework %d", l.Productive, l.Rework)
	}
	if share, _ := l.Capacity(); share != (10.*2+2*4)/(12*4) {
		t.Errorf("capacity %v", share)
	}
}

func TestAStepUnderWayCountsUntilItsGenerationEnds(t *testing.T) {
	l := Begin(1000)
	l.Train(1000, Spent{}, false, 4, 4)
	known := Spent{Step: 2, Entering: 100, Productive: 2000}
	for _, c := range []struct {
		at, heard  int64
		ends       bool
		productive int64
		recovery   int64
	}{
		{4000, 3200, false, 2800, 0},
		{4000, 3200, true, 2000, 900},
		{1500, 0, false, 0, 0},
	} {
		if c.heard == 0 {
			known = Spent{}
		}
		if f := l.Now(c.at, known, c.heard, c.ends); f.Productive != c.productive || f.Recovery != c.recovery || f.Wall() != c.at-1000 {
			t.Errorf("at %d, heard at %d, ends %v: %+v", c.at, c.heard, c.ends, f.Figures)
		}
	}
}

func TestLeadersWhoseClocksDifferMakeNoJobLonger(t *testing.T) {
	const ahead = 3000 // the second leader's clock
	at := int64(1_700_000_000_000)
	began := at
	l := Begin(at)
	for change := range int64(40) {
		leader := change % 2 * ahead
		l.Train(at+leader, Spent{}, true, 4, 4)
		at += 1500 // steps of a second, and the recovery; the other leader sees it end
		leader = ahead - leader
		l.Train(at+leader, Spent{Step: change + 1, Entering: 400, Productive: 1000}, true, 4, 4)
		at += 20
		l.Wait(at+leader, Spent{})
	}
	l.End(at, Spent{}, false)
	if wall := at - began; l.Wall()-l.Lead != wall || l.Lead > ahead {
		t.Errorf("the figures add up to %d ms and lead by %d, the job lasted %d", l.Wall(), l.Lead, wall)
	}
	if l.Productive != 40_000 {
		t.Errorf("%d ms are productive", l.Productive)
	}
}

func TestAClockThatIsSetBackByAnHourStopsNoAccount(t *testing.T) {
	l := Begin(10_000_000)
	l.Wait(10_001_000, Spent{})
	l.Train(6_400_000, Spent{}, false, 1, 1)
	l.End(6_405_000, Spent{Step: 4, Entering: 500, Productive: 4000}, true)
	if want := (Figures{Preparing: 1000 + 1000, Productive: 4000}); l.Figures != want {
		t.Errorf("the ledger says %+v, want %+v", l.Figures, want)
	}
}

func TestWhatACheckpointHasIsNoReworkThoughTheLastToTellForgetsIt(t *testing.T) {
	l := Begin(1000)
	l.Train(1000, Spent{}, false, 2, 2)
	l.Publish(Spent{Step: 5, Entering: 100, Productive: 5000, Safe: 4000})
	l.Train(11_000, Spent{Step: 9, Entering: 100, Productive: 9000}, false, 2, 2)
	if l.Productive != 4000 || l.Rework != 5000 {
		t.Errorf("%d ms are productive and %d rework", l.Productive, l.Rework)
	}
}
