package hearing

import (
	"strings"
	"testing"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/membership"
	"github.com/skein-ml/skein/coordinator/recovery"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/protocol"
	"github.com/skein-ml/skein/shard"
)

// heardAt is when the tests below begin.
var heardAt = time.Unix(1_800_000_000, 0)

// running is a state with a job in generation 1 on one worker process.
func running(worker, incarnation string) *fsm.State {
	s := fsm.New()
	s.Workers[worker] = &fsm.Worker{Name: worker, Incarnation: incarnation, Classes: []string{"generic r1"}}
	s.Jobs["j"] = &fsm.Job{ID: "j", Phase: fsm.Running, Generation: 1, Setbacks: 1, Nonce: fsm.Nonce{Object: "o", Value: "v"},
		Placement: []fsm.Place{{Worker: worker, Incarnation: incarnation, Ranks: []int{0}}}}
	return s
}

func (h *Hearing) connected(t *testing.T, now time.Time, worker, incarnation string) (session uint64) {
	t.Helper()
	session, err := h.Connect(now, time.Second, worker, incarnation)
	if err != nil {
		t.Fatal(err)
	}
	return session
}

func TestANewProcessOfAnOldNameIsAskedToReadTheStore(t *testing.T) {
	for name, away := range map[string]time.Duration{"at once": 0, "after its contact is forgotten": 2 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			now, h, s := heardAt, New(heardAt), running("w3", "old")
			session := h.connected(t, now, "w3", "old")
			if !h.probe(now, "w3", "j") {
				t.Fatal("the first process is not asked")
			}
			h.Read(now, "w3", s.Jobs["j"], "v", "")
			if !h.forRecovery(s).Reads["j"]["w3"] {
				t.Fatal("what it read is not noted")
			}
			h.Disconnect(now, "w3", session)
			delete(s.Workers, "w3")
			now = now.Add(away)
			h.Forget(now, s)
			h.connected(t, now, "w3", "new")
			s.Workers["w3"] = &fsm.Worker{Name: "w3", Incarnation: "new"}
			if h.forRecovery(s).Reads["j"]["w3"] {
				t.Error("the new process counts as having read what the old one did")
			}
			if _, answered := h.forScheduler(now, s, time.Second, recovery.Config{}).Reads["j"]["w3"]; answered {
				t.Error("the scheduler waits for no answer of the new process")
			}
			if !h.probe(now, "w3", "j") {
				t.Error("the new process is not asked")
			}
		})
	}
}

func TestAnAccusationCountsForItsGenerationAndNotForLong(t *testing.T) {
	var c membership.Config
	c.EnsureDefaults()
	for name, later := range map[string]struct {
		after      time.Duration
		generation uint64
		removed    bool
	}{
		"at once":                  {100 * time.Millisecond, 1, true},
		"in the next generation":   {100 * time.Millisecond, 2, false},
		"when it has gone on long": {time.Hour, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			now, h, s := heardAt, New(heardAt), running("w2", "a")
			session := h.connected(t, now, "w2", "a")
			h.blame("j", broken{Broken: recovery.Broken{Generation: 1, By: "w1", Reason: "reset", At: now}}, "w2", "a")
			now = now.Add(later.after)
			s.Jobs["j"].Generation = later.generation
			h.Heartbeat(now, "w2", session, nil)
			h.Forget(now, s)
			h.Disconnect(now, "w2", session)
			gone, _ := membership.Decide(now.Add(time.Millisecond), s, h.ForMembership(), c)
			if (len(gone) > 0) != later.removed {
				t.Errorf("given up: %v", gone)
			}
		})
	}
}

func TestWhoGivesUpByItselfIsAskedToReadTheStoreAgainAndRestsInTheEnd(t *testing.T) {
	var c recovery.Config
	c.EnsureDefaults()
	now, h, s := heardAt, New(heardAt), running("w3", "a")
	h.connected(t, now, "w3", "a")
	rests := func() bool { return h.forScheduler(now, s, time.Second, c).Resting["j"]["w3"] != "" }
	for generation := range uint64(3) {
		if rests() {
			t.Fatalf("it rests after %d generations", generation)
		}
		s.Jobs["j"].Generation = generation + 1
		b := broken{Broken: recovery.Broken{Generation: generation + 1, By: "w3", Reason: "stale file handle", At: now}}
		h.blame("j", b, "", "")
		h.blame("j", b, "", "") // again, in a new session
		o := h.Orders(now, s, s.Workers["w3"])
		if len(o.GetProbes()) != 1 || o.GetAssignment() == nil {
			t.Fatalf("its orders are %v", o)
		}
		if h.forRecovery(s).Reads["j"]["w3"] {
			t.Fatal("what it read before counts still")
		}
		h.Read(now, "w3", s.Jobs["j"], "v", "")
		if o := h.Orders(now, s, s.Workers["w3"]); len(o.GetProbes()) != 0 {
			t.Fatalf("it has read, and is asked again: %v", o)
		}
	}
	if !rests() {
		t.Error("it gave up three times and does not rest")
	}
	if now = now.Add(c.GiveUpRest + time.Second); rests() {
		t.Error("it rests for ever")
	}
	s.Jobs["j"].Generation, s.Jobs["j"].Setbacks = 4, 0 // which published something
	h.Forget(now, s)
	if g := h.forRecovery(s).GaveUp["j"]["w3"]; g.Times != 0 {
		t.Errorf("a checkpoint later %+v counts still", g)
	}
}

func TestWhoGivesUpOnAnothersWordIsNotToBlame(t *testing.T) {
	now, h, s := heardAt, New(heardAt), running("w1", "a")
	h.blame("j", broken{Broken: recovery.Broken{Generation: 1, By: "w1", Reason: "reset", At: now}}, "w2", "b")
	h.blame("j", broken{preparation: 1, Broken: recovery.Broken{By: "w1", Reason: "disk full", At: now}}, "", "")
	if g := h.forRecovery(s).GaveUp["j"]; len(g) != 0 {
		t.Errorf("%v", g)
	}
}

func TestATaskThatTheLogDoesNotOrderIsAStray(t *testing.T) {
	for name, c := range map[string]struct {
		beat  *skeinv1.Heartbeat
		stray string
	}{
		"nothing":            {&skeinv1.Heartbeat{}, ""},
		"what it is to do":   {&skeinv1.Heartbeat{Job: "j", Generation: 1}, ""},
		"an old generation":  {&skeinv1.Heartbeat{Job: "j", Generation: 9}, "generation 9 of j"},
		"a forgotten job":    {&skeinv1.Heartbeat{Job: "x", Generation: 1}, "generation 1 of x"},
		"an old preparation": {&skeinv1.Heartbeat{Job: "j", Preparation: 1}, "preparation 1 of j"},
	} {
		t.Run(name, func(t *testing.T) {
			now, h, s := heardAt, New(heardAt), running("w1", "a")
			session := h.connected(t, now, "w1", "a")
			h.Heartbeat(now, "w1", session, c.beat)
			h.Forget(now, s)
			h.Heartbeat(now.Add(time.Second), "w1", session, c.beat)
			h.Forget(now.Add(time.Second), s)
			got := h.forRecovery(s).Strays["w1"]
			if got.Task != c.stray || c.stray != "" && !got.Since.Equal(now) {
				t.Errorf("%+v", got)
			}
			h.Heartbeat(now, "w1", session, &skeinv1.Heartbeat{})
			h.Forget(now, s)
			if len(h.forScheduler(now, s, time.Second, recovery.Config{}).Strays) != 0 {
				t.Error("it has stopped, and is a stray still")
			}
		})
	}
}

// What a worker said that it holds counts as long as it says that it keeps it; what it said
// was decided always does.
func TestAReportOfWhatHasBeenDroppedSinceGivesNothing(t *testing.T) {
	other, none, same := "other", "", "j"
	for name, c := range map[string]struct {
		keeps *string
		held  int
	}{
		"it keeps it still":             {&same, 2},
		"it says nothing about it":      {nil, 2},
		"it works for another job":      {&other, 0},
		"it was told to drop all":       {&none, 0},
		"another process of that name ": {&none, 2},
	} {
		t.Run(name, func(t *testing.T) {
			h, s := New(heardAt), running("w1", "a")
			session := h.connected(t, heardAt, "w1", "a")
			r := recovery.Sealed{Generation: 1, Incarnation: "a", Report: protocol.Report{Worker: "w1", Step: 5, Decision: []byte("D(5)"), Held: []shard.Rank{0, 1}, Summed: []shard.Rank{1}}}
			if strings.HasPrefix(name, "another process") {
				r.Incarnation = "older"
			}
			h.sealed["j"] = map[string]recovery.Sealed{"w1": r}
			h.Heartbeat(heardAt, "w1", session, &skeinv1.Heartbeat{Keeps: c.keeps})
			got := h.forRecovery(s).Sealed["j"]["w1"]
			if len(got.Held) != c.held || len(got.Summed) != c.held/2 || got.Step != 5 || string(got.Decision) != "D(5)" {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestAWorkerThatHoldsWhatNobodyElseDoesIsNotReleased(t *testing.T) {
	h, s := New(heardAt), running("w1", "a")
	w := *s.Workers["w1"]
	w.Name, w.Draining = "w2", true
	s.Workers["w2"] = &w
	if !h.Orders(heardAt, s, &w).GetReleased() {
		t.Error("a worker without work that wants to leave is not released")
	}
	h.Follow(heardAt, s, recovery.Decision{Stays: map[string]string{"w2": "j"}})
	if h.Orders(heardAt, s, &w).GetReleased() {
		t.Error("it is released with what nobody else has")
	}
}

func TestAReportThatCannotBeTrueCountsForNothing(t *testing.T) {
	j := &fsm.Job{ID: "a", Phase: fsm.Running, WorldSize: 4, Steps: 24, Generation: 3}
	w := &fsm.Worker{Name: "w1", Incarnation: "p1"}
	for what, c := range map[string]struct {
		said  *skeinv1.Sealed
		sound bool
	}{
		"nothing at all":           {nil, true},
		"a rank and its sums":      {&skeinv1.Sealed{Step: 5, Held: []int32{0, 3}, Summed: []int32{3}, Decision: []byte("D")}, true},
		"a rank of no job":         {&skeinv1.Sealed{Held: []int32{4}}, false},
		"a negative rank":          {&skeinv1.Sealed{Held: []int32{-1}}, false},
		"a rank twice":             {&skeinv1.Sealed{Held: []int32{1, 1}}, false},
		"sums of what is not held": {&skeinv1.Sealed{Held: []int32{1}, Summed: []int32{2}}, false},
		"a step before the first":  {&skeinv1.Sealed{Step: -1, Held: []int32{1}}, false},
		"a step after the last":    {&skeinv1.Sealed{Step: 25, Held: []int32{1}}, false},
		"a decision without end":   {&skeinv1.Sealed{Held: []int32{1}, Decision: make([]byte, decisionBytesMax+1)}, false},
		"more workers than ranks":  {&skeinv1.Sealed{Held: []int32{1}, Reaches: make([]string, 5)}, false},
	} {
		got, sound := sealedOf(heardAt, j, w, c.said)
		if sound != c.sound || !sound && (len(got.Held) > 0 || len(got.Decision) > 0) || got.Generation != 3 || got.Worker != "w1" {
			t.Errorf("%s: %+v, sound: %t", what, got, sound)
		}
	}
}
