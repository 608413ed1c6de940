package fsm

import (
	"slices"
	"testing"
)

// live goes on from the memory of workers: rank r's state is on sources[r].
func live(job string, generation uint64, from, target int64, sources []string, workers ...string) *Generate {
	g := generate(job, generation, from, workers...)
	g.Live = &Live{After: generation - 1, Target: target, Decision: []byte("D"), Sources: sources}
	return g
}

func TestALiveGenerationGoesOnFromTheMemoryOfItsWorkers(t *testing.T) {
	b := newBench(t)
	id := b.in(Running) // w1: 0 1, w2: 2 3
	b.must(register("w3"))
	kept := []string{"w1", "w1", "w2", "w2"}
	b.must(live(id, 2, 0, 3, kept, "w1", "w2", "w3"))
	j := b.s.Jobs[id]
	if j.Began() != 3 || j.Live == nil || j.Setbacks != 0 || j.Resume.Step != 0 {
		t.Fatalf("began at %d after %d setbacks, live %+v", j.Began(), j.Setbacks, j.Live)
	}
	b.must(live(id, 3, 0, 3, kept, "w1", "w2")) // a link broke before any step was taken
	if j = b.s.Jobs[id]; j.Setbacks != 1 {
		t.Fatalf("%d setbacks after a generation that gained nothing, want 1", j.Setbacks)
	}
	b.must(publish(id, 3, 5))
	for what, c := range map[string]struct {
		d    *Generate
		want error
	}{
		"behind what is published":     {live(id, 4, 5, 4, kept, "w1", "w2"), ErrConflict},
		"beyond the last step":         {live(id, 4, 5, 11, kept, "w1", "w2"), ErrConflict},
		"a source that is not placed":  {live(id, 4, 5, 6, kept, "w1"), ErrConflict},
		"a source that had no part":    {live(id, 4, 5, 6, []string{"w1", "w1", "w3", "w3"}, "w1", "w3"), ErrConflict},
		"a rank without a source":      {live(id, 4, 5, 6, kept[:3], "w1", "w2"), ErrConflict},
		"state of an older generation": {after(2, live(id, 4, 5, 6, kept, "w1", "w2")), ErrFenced},
	} {
		t.Run(what, func(t *testing.T) { (&bench{t, b.s}).refused(c.d, c.want) })
	}
	b.must(registerAs("w2", "w2-2"))
	again := live(id, 4, 5, 6, kept, "w1", "w2")
	again.Placement[1].Incarnation = "w2-2"
	b.refused(again, ErrConflict) // another process of that name
	b.must(generate(id, 4, 5, "w1"))
	if j = b.s.Jobs[id]; j.Live != nil || j.Began() != 5 {
		t.Errorf("from the checkpoint: live %+v, began at %d", j.Live, j.Began())
	}
}

func after(generation uint64, d *Generate) *Generate {
	d.Live.After = generation
	return d
}

func TestAWorkerThatLeavesStaysUntilItsStateHasMoved(t *testing.T) {
	b := newBench(t)
	id := b.in(Running)
	b.must(&Drain{"w1", "w1-1"}, register("w3"), &Drain{"w3", "w3-1"})
	kept := []string{"w1", "w1", "w2", "w2"}
	b.refused(generate(id, 2, 0, "w1", "w2"), ErrConflict)
	b.refused(live(id, 2, 0, 3, kept, "w1", "w2", "w3"), ErrConflict) // a leaver that joins
	b.must(live(id, 2, 0, 3, kept, "w1", "w2"))
}

func TestASuspendedJobIsParkedAndGoesOnLive(t *testing.T) {
	b := newBench(t)
	id := b.in(Running)
	b.must(&Suspend{Job: id, Generation: 2})
	j := b.s.Jobs[id]
	if j.Parked.Generation != 1 || len(j.Parked.Placement) != 2 || j.Holder("w2") == nil || len(b.s.Busy()) != 0 {
		t.Fatalf("parked as %+v, busy %v", j.Parked, b.s.Busy())
	}
	d := live(id, 3, 0, 7, []string{"w1", "w1", "w2", "w2"}, "w1", "w2")
	b.refused(d, ErrFenced) // generation 2 had no workers
	b.must(after(1, d))
	if j = b.s.Jobs[id]; j.Parked.Generation != 0 || j.Began() != 7 {
		t.Errorf("parked as %+v, began at %d", j.Parked, j.Began())
	}
	b.must(&Suspend{Job: id, Generation: 4})
	if j = b.s.Jobs[id]; j.Parked.Live == nil || j.Parked.From != 7 {
		t.Errorf("parked as %+v", j.Parked)
	}
	b.must(&Cancel{Job: id})
}

func TestScaleStaysBetweenTheMinimumAndTheWorldSize(t *testing.T) {
	b := newBench(t)
	id := b.in(Running)
	for _, n := range []int{0, -1, 5} {
		b.refused(&Scale{id, n}, ErrConflict)
	}
	b.must(&Scale{id, 1}, &Scale{id, 1})
	if j := b.s.Jobs[id]; j.WorkersMax != 1 || len(j.Placement) != 2 {
		t.Errorf("at most %d workers, placed on %d", j.WorkersMax, len(j.Placement))
	}
	kept := []string{"w1", "w1", "w2", "w2"}
	b.must(live(id, 2, 0, 3, kept, "w1", "w2")) // it shrinks by steps, and grows by none
	b.must(register("w3"))
	b.refused(live(id, 3, 0, 4, kept, "w1", "w2", "w3"), ErrConflict)
	b.must(&Cancel{Job: id})
	b.refused(&Scale{id, 2}, ErrIllegal)
}

func TestAPausedJobIsNotPlacedUntilItIsResumed(t *testing.T) {
	b := newBench(t)
	id := b.in(Running)
	b.must(&Pause{id}, &Pause{id})
	b.must(live(id, 2, 0, 3, []string{"w1", "w1", "w2", "w2"}, "w1", "w2")) // it runs until its step boundary
	b.must(&Suspend{Job: id, Generation: 3})
	b.refused(generate(id, 4, 0, "w1"), ErrConflict)
	b.must(&Resume{id}, &Resume{id}, generate(id, 4, 0, "w1"))
	b.must(&Cancel{Job: id})
	b.refused(&Pause{id}, ErrIllegal)
	b.refused(&Resume{id}, ErrIllegal)
}

func TestTheQueueIsByPriorityThenByAge(t *testing.T) {
	b := newBench(t)
	var ids []string
	for i, p := range []int{0, 5, 0, 5, -1} {
		d := submit("request-" + string(rune('a'+i)))
		d.Priority = p
		r := b.apply(d)
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		ids = append(ids, r.Job)
	}
	var got []string
	for _, j := range b.s.Queue() {
		got = append(got, j.ID)
	}
	if want := []string{ids[1], ids[3], ids[0], ids[2], ids[4]}; !slices.Equal(got, want) {
		t.Errorf("queue %v, want %v", got, want)
	}
}
