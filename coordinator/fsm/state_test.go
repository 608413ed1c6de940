package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// bench applies decisions one after the other, as the log would: through their
// encoded form.
type bench struct {
	*testing.T
	s *State
}

func newBench(t *testing.T) *bench { return &bench{t, New()} }

func (b *bench) apply(d Decision) Result {
	b.Helper()
	raw, err := Entry{At: int64(b.s.Index) * 1000, Reason: "because of " + d.Kind(), Decision: d}.Encode()
	if err != nil {
		b.Fatal(err)
	}
	e, err := Decode(raw)
	if err != nil {
		b.Fatal(err)
	}
	return b.s.Apply(b.s.Index+1, e)
}

func (b *bench) must(decisions ...Decision) {
	b.Helper()
	for _, d := range decisions {
		if r := b.apply(d); r.Err != nil {
			b.Fatalf("%s: %v", d.Kind(), r.Err)
		}
	}
}

// refused applies a decision that must change nothing.
func (b *bench) refused(d Decision, want error) {
	b.Helper()
	before := bytesOf(b, b.s)
	r := b.apply(d)
	if !errors.Is(r.Err, want) {
		b.Fatalf("%s: %v, want %v", d.Kind(), r.Err, want)
	}
	b.s.Index-- // the only thing that a refused entry moves
	if !bytes.Equal(before, bytesOf(b, b.s)) {
		b.Fatalf("%s was refused (%v) and yet changed the state", d.Kind(), r.Err)
	}
	b.s.Index++
}

func bytesOf(t interface{ Fatal(...any) }, s *State) []byte {
	var b bytes.Buffer
	if err := s.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Builders of decisions, with a world size of 4 and 10 steps.

func submit(request string) *Submit {
	return &Submit{Request: request, Name: "pronounce", Spec: []byte(`{"request":"` + request + `"}`), WorldSize: 4, WorkersMin: 1, WorkersMax: 4, Class: "auto", Store: "/store"}
}

func register(name string) *Register { return registerAs(name, name+"-1") }

func registerAs(name, incarnation string) *Register {
	return &Register{Worker{Name: name, Incarnation: incarnation, Node: "n", Ring: name + ":1", Stream: name + ":2", Classes: []string{"generic r1"}}}
}

func prepare(job string, number uint64, worker string) *Prepare {
	return &Prepare{Job: job, Number: number, Worker: worker, Incarnation: worker + "-1"}
}

func resolve(job string, number uint64) *Resolve {
	return &Resolve{Job: job, Number: number, Resolved: []byte(`{"resolved":true}`), SpecHash: "51", DataHash: "da", Class: "generic r1", Steps: 10,
		Nonce: Nonce{"nonce", "42"}, Step0: Checkpoint{Manifest: "manifest-0", Weights: "00"}}
}

func generate(job string, generation uint64, from int64, workers ...string) *Generate {
	g := &Generate{Job: job, Generation: generation, From: from}
	for i, w := range workers {
		p := Place{Worker: w, Incarnation: w + "-1"}
		for r := i * 4 / len(workers); r < (i+1)*4/len(workers); r++ {
			p.Ranks = append(p.Ranks, r)
		}
		g.Placement = append(g.Placement, p)
	}
	return g
}

func publish(job string, generation uint64, step int64) *Publish {
	return &Publish{Job: job, Checkpoint: Checkpoint{Generation: generation, Step: step, Manifest: fmt.Sprintf("manifest-%d-%d", generation, step), Weights: fmt.Sprintf("%02d", step)}}
}

func (b *bench) submitted(request string) string {
	b.Helper()
	r := b.apply(submit(request))
	if r.Err != nil {
		b.Fatal(r.Err)
	}
	return r.Job
}

// in brings a new job into a phase, on workers w1 and w2.
func (b *bench) in(p Phase) string {
	b.Helper()
	b.must(register("w1"), register("w2"))
	id := b.submitted("request-" + string(p))
	path := map[Phase][]Decision{
		Preparing: {prepare(id, 1, "w1")},
		Queued:    {prepare(id, 1, "w1"), resolve(id, 1)},
		Running:   {prepare(id, 1, "w1"), resolve(id, 1), generate(id, 1, 0, "w1", "w2")},
		Done:      {prepare(id, 1, "w1"), resolve(id, 1), generate(id, 1, 0, "w1", "w2"), publish(id, 1, 10), &Complete{Job: id, Generation: 1}},
		Failed:    {&Fail{Job: id}},
		Canceled:  {&Cancel{Job: id}},
	}
	b.must(path[p]...)
	if got := b.s.Jobs[id].Phase; got != p {
		b.Fatalf("the job is %s, want %s", got, p)
	}
	return id
}

func TestAJobLivesFromSubmissionToItsEnd(t *testing.T) {
	b := newBench(t)
	id := b.in(Done)
	j := b.s.Jobs[id]
	if !strings.HasPrefix(id, "pronounce-") || len(id) != len("pronounce-")+4 {
		t.Errorf("the job is called %q", id)
	}
	var kinds []string
	for _, e := range j.Events {
		kinds = append(kinds, e.Kind)
	}
	if got, want := strings.Join(kinds, " "), "submitted preparing resolved generation published done"; got != want {
		t.Errorf("events: %s, want %s", got, want)
	}
	if c, _ := j.Newest(); c.Step != 10 || c.Weights != "10" {
		t.Errorf("the newest checkpoint is %+v", c)
	}
	if len(b.s.Busy()) != 0 {
		t.Errorf("workers are still busy: %v", b.s.Busy())
	}
}

// Every pair of phases that the table does not allow, tried with every decision
// that leads to the second.
func TestIllegalTransitionsAreRefused(t *testing.T) {
	leads := map[Phase]func(*bench, string) Decision{
		Preparing: func(b *bench, id string) Decision {
			return prepare(id, b.s.Jobs[id].Preparation.Number+1, "w1")
		},
		Queued: func(b *bench, id string) Decision {
			d := resolve(id, b.s.Jobs[id].Preparation.Number)
			d.Resolved = []byte("another")
			return d
		},
		Running: func(b *bench, id string) Decision {
			return generate(id, b.s.Jobs[id].Generation+1, b.newest(id), "w1")
		},
		Done: func(b *bench, id string) Decision {
			return &Complete{Job: id, Generation: b.s.Jobs[id].Generation, Result: []byte("another")}
		},
		Failed:   func(_ *bench, id string) Decision { return &Fail{Job: id} },
		Canceled: func(_ *bench, id string) Decision { return &Cancel{Job: id} },
	}
	for _, from := range Phases {
		for _, to := range Phases {
			if from.mayBecome(to) == nil || from == to && from != Queued {
				continue // legal, or a repetition that changes nothing
			}
			t.Run(fmt.Sprintf("%s to %s", from, to), func(t *testing.T) {
				b := newBench(t)
				id := b.in(from)
				before := b.s.Jobs[id].Phase
				r := b.apply(leads[to](b, id))
				if r.Err == nil || b.s.Jobs[id].Phase != before {
					t.Fatalf("the job became %s (error %v)", b.s.Jobs[id].Phase, r.Err)
				}
				if from == Running && to == Queued || to == Done && from != Running {
					return // refused by an earlier rule: the fence, or the missing last step
				}
				if !errors.Is(r.Err, ErrIllegal) {
					t.Fatalf("refused with %v, want %v", r.Err, ErrIllegal)
				}
			})
		}
	}
}

func (b *bench) newest(id string) int64 {
	c, _ := b.s.Jobs[id].Newest()
	return c.Step
}

func TestSuspendTakesARunningJobBackToTheQueueAndNoOther(t *testing.T) {
	for _, from := range Phases {
		b := newBench(t)
		id := b.in(from)
		d := &Suspend{Job: id, Generation: b.s.Jobs[id].Generation + 1}
		if from != Running {
			b.refused(d, ErrIllegal)
			continue
		}
		b.must(d)
		j := b.s.Jobs[id]
		if j.Phase != Queued || j.Generation != 2 || len(j.Placement) != 0 {
			t.Errorf("suspended: %s, generation %d, placed on %v", j.Phase, j.Generation, j.Placement)
		}
		b.refused(publish(id, 1, 5), ErrFenced)
		b.refused(publish(id, 2, 5), ErrIllegal)
		b.must(generate(id, 3, 0, "w2"))
	}
}

func TestGenerationsAreCommittedByCompareAndSet(t *testing.T) {
	b := newBench(t)
	id := b.in(Running)
	b.refused(generate(id, 1, 0, "w1"), ErrFenced) // again
	b.refused(generate(id, 3, 0, "w1"), ErrFenced) // one left out
	b.must(publish(id, 1, 4))
	b.refused(generate(id, 2, 0, "w1"), ErrFenced) // decided before step 4 was published
	b.must(generate(id, 2, 4, "w1"))
	b.refused(publish(id, 1, 6), ErrFenced) // a zombie of generation 1
	b.refused(&Complete{Job: id, Generation: 1}, ErrFenced)
	b.refused(&Fail{Job: id, Generation: 1}, ErrFenced)
	b.must(publish(id, 2, 6))
}

func TestNobodyActsInTheGenerationOfAQueuedJob(t *testing.T) {
	b := newBench(t)
	id := b.in(Running)
	b.must(&Suspend{Job: id, Generation: 2})
	b.refused(&Fail{Job: id, Generation: 2}, ErrFenced)
	b.refused(&Complete{Job: id, Generation: 2, Result: []byte("{}")}, ErrConflict)
	b.refused(publish(id, 1, 4), ErrFenced) // who was stopped in generation 1 has nothing to fail with
	if j := b.s.Jobs[id]; j.Phase != Queued {
		t.Errorf("the job is %s", j.Phase)
	}
	b.must(generate(id, 3, 0, "w1"), &Fail{Job: id, Generation: 3}, &Fail{Job: id, Generation: 3}) // and a retry
}

func TestATryThatWasGivenUpIsCountedAndOneThatWasLostIsNot(t *testing.T) {
	b := newBench(t)
	id := b.in(Preparing)
	second, third := prepare(id, 2, "w2"), prepare(id, 3, "w1")
	second.GaveUp = true
	b.must(second, third)
	if p := b.s.Jobs[id].Preparation; p.Number != 3 || p.GaveUp != 1 {
		t.Errorf("of two tries before this one, one was given up: %+v", p)
	}
}

func TestPreparationsAreFencedByTheirNumber(t *testing.T) {
	b := newBench(t)
	id := b.in(Preparing)
	b.must(prepare(id, 2, "w2"))
	b.refused(resolve(id, 1), ErrFenced)
	b.refused(&Fail{Job: id, Preparation: 1}, ErrFenced)
	b.refused(prepare(id, 2, "w1"), ErrFenced)
	b.must(resolve(id, 2))
	b.refused(&Fail{Job: id, Preparation: 2}, ErrFenced) // it succeeded
}

func TestAPlacementMustCoverTheRanksOnFreeWorkers(t *testing.T) {
	b := newBench(t)
	id := b.in(Queued)
	other := b.submitted("other")
	b.must(register("w3"), register("w4"), prepare(other, 1, "w3"))
	gap := generate(id, 1, 0, "w1", "w2")
	gap.Placement[1].Ranks = []int{3}
	short := generate(id, 1, 0, "w1")
	short.Placement[0].Ranks = []int{0, 1, 2}
	twice := generate(id, 1, 0, "w1", "w1")
	stale := generate(id, 1, 0, "w1", "w2")
	stale.Placement[1].Incarnation = "w2-0"
	for what, d := range map[string]*Generate{"gap": gap, "short": short, "twice": twice, "nobody": generate(id, 1, 0), "busy": generate(id, 1, 0, "w1", "w3")} {
		t.Run(what, func(t *testing.T) { (&bench{t, b.s}).refused(d, ErrConflict) })
	}
	b.refused(stale, ErrFenced)
	b.refused(generate(id, 1, 0, "w9"), ErrUnknown)
	b.must(&Drain{"w4", "w4-1"})
	b.refused(generate(id, 1, 0, "w4"), ErrConflict)
	b.must(&Register{Worker{Name: "w5", Incarnation: "w5-1", Classes: []string{"avx512 r1"}}})
	b.refused(generate(id, 1, 0, "w5"), ErrConflict)
}

func TestTheSameStepWithOtherBitsIsRefused(t *testing.T) {
	b := newBench(t)
	id := b.in(Running)
	b.must(publish(id, 1, 4))
	b.must(publish(id, 1, 4)) // a retry
	if n := len(b.s.Jobs[id].Published); n != 2 {
		t.Fatalf("%d checkpoints after a retry, want 2", n)
	}
	other := publish(id, 1, 4)
	other.Checkpoint.Weights = "ff"
	b.refused(other, ErrConflict)
	b.refused(publish(id, 1, 3), ErrConflict)  // backwards
	b.refused(publish(id, 1, 11), ErrConflict) // beyond the last step
	b.refused(&Complete{Job: id, Generation: 1}, ErrConflict)
}

func TestASubmissionRepeatedIsTheSameJob(t *testing.T) {
	b := newBench(t)
	first := b.submitted("request-1")
	b.must(&Cancel{Job: first})
	if again := b.submitted("request-1"); again != first || len(b.s.Jobs) != 1 {
		t.Fatalf("the retry made %s beside %s", again, first)
	}
	other := submit("request-1")
	other.Spec = []byte(`{"other":1}`)
	b.refused(other, ErrConflict)
}

func TestSubmissionsBeyondTheLimitsAreRefused(t *testing.T) {
	b := newBench(t)
	for what, spoil := range map[string]func(*Submit){
		"no worker":      func(d *Submit) { d.WorkersMin = 0 },
		"max below min":  func(d *Submit) { d.WorkersMin, d.WorkersMax = 3, 2 },
		"idle workers":   func(d *Submit) { d.WorkersMax = 5 },
		"world too big":  func(d *Submit) { d.WorldSize = 17 },
		"nameless":       func(d *Submit) { d.Name = "" },
		"without a name": func(d *Submit) { d.Request = "" },
	} {
		d := submit("x")
		spoil(d)
		t.Run(what, func(t *testing.T) { (&bench{t, b.s}).refused(d, ErrConflict) })
	}
}

func TestFinishedJobsMakeWayAndActiveOnesAreLimited(t *testing.T) {
	b := newBench(t)
	first := b.submitted("first")
	b.must(&Cancel{Job: first})
	for i := range jobsFinishedMax {
		b.must(&Cancel{Job: b.submitted(fmt.Sprint("finished-", i))})
	}
	if b.s.Jobs[first] != nil || len(b.s.Jobs) != jobsFinishedMax {
		t.Fatalf("%d finished jobs are kept, the first among them: %v", len(b.s.Jobs), b.s.Jobs[first] != nil)
	}
	s := New()
	for i := range jobsActiveMax {
		s.put(Job{ID: fmt.Sprint(i), Request: fmt.Sprint(i), Phase: Queued})
	}
	if err := s.makeRoom(0); !errors.Is(err, ErrFull) {
		t.Fatalf("job %d was taken: %v", jobsActiveMax+1, err)
	}
}

func TestIDsGrowWhenTheyCollide(t *testing.T) {
	s := New()
	short := s.newID("x", "request")
	s.put(Job{ID: short})
	longer := s.newID("x", "request")
	if longer == short || !strings.HasPrefix(longer, short) {
		t.Fatalf("%q after %q", longer, short)
	}
}

func TestAWorkerStartedAgainIsAnotherProcess(t *testing.T) {
	b := newBench(t)
	id := b.in(Running)
	b.must(&Drain{"w1", "w1-1"}, register("w1"))
	if !b.s.Workers["w1"].Draining {
		t.Error("a worker that registered again forgot that it was leaving")
	}
	b.must(registerAs("w1", "w1-2"))
	if b.s.Workers["w1"].Draining {
		t.Error("a new process is leaving, because an old one was")
	}
	b.refused(&Remove{"w1", "w1-1"}, ErrFenced)
	b.refused(&Drain{"w1", "w1-1"}, ErrFenced)
	b.must(&Remove{"w1", "w1-2"})
	b.refused(&Remove{"w1", "w1-2"}, ErrUnknown)
	if got := b.s.Jobs[id].Phase; got != Running {
		t.Errorf("the job became %s without a decision", got)
	}
}

func TestEventsAndCheckpointsAreBounded(t *testing.T) {
	b := newBench(t)
	id := b.in(Queued)
	s := b.s.Jobs[id]
	long := *s
	long.Steps = 1000
	b.s.put(long)
	b.must(generate(id, 1, 0, "w1"))
	for step := int64(1); step <= 3*publishedMax; step++ {
		b.must(publish(id, 1, step))
	}
	j := b.s.Jobs[id]
	if len(j.Published) != publishedMax || len(j.Events) != eventsMax {
		t.Fatalf("%d checkpoints and %d events are kept", len(j.Published), len(j.Events))
	}
	if c, _ := j.Newest(); c.Step != 3*publishedMax {
		t.Fatalf("the newest checkpoint is of step %d", c.Step)
	}
}

func TestACloneStaysAsItWas(t *testing.T) {
	b := newBench(t)
	id := b.in(Running)
	clone := b.s.Clone()
	before := bytesOf(t, clone)
	b.must(publish(id, 1, 4), &Cancel{Job: id}, register("w9"), &Remove{"w1", "w1-1"})
	b.submitted("another")
	if !bytes.Equal(before, bytesOf(t, clone)) {
		t.Fatal("entries applied later changed the clone")
	}
}

func TestSpecsHaveALimitTogether(t *testing.T) {
	s := New()
	big := make([]byte, 1<<20)
	apply := func(d Decision) Result {
		return s.Apply(s.Index+1, Entry{Reason: "test", Decision: d})
	}
	fill := func(prefix string) (taken int, err error) {
		for i := range 200 {
			d := submit(fmt.Sprint(prefix, i))
			d.Spec = big
			if r := apply(d); r.Err != nil {
				return i, r.Err
			}
		}
		return 200, nil
	}
	taken, err := fill("active-")
	if !errors.Is(err, ErrFull) || taken != jobsBytesMax/(2<<20) {
		t.Fatalf("%d jobs of 1 MiB were taken: %v", taken, err)
	}
	for id := range s.Jobs {
		apply(&Cancel{Job: id})
	}
	if taken, err = fill("later-"); taken != jobsBytesMax/(2<<20) {
		t.Fatalf("%d jobs were taken in the place of those that are over: %v", taken, err)
	}
	if len(s.Jobs) != taken {
		t.Errorf("%d jobs are kept of %d", len(s.Jobs), taken)
	}
}
