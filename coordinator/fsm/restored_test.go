package fsm

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

func TestARestoredStateGoesOnUnderNewNumbersWithoutWorkers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, s := randomLog(t)
		before := bytesOf(t, s)
		r := s.Restored(77)
		if !bytes.Equal(before, bytesOf(t, s)) {
			t.Fatal("the backup itself changed")
		}
		r.check()
		if _, err := Restore(bytes.NewReader(bytesOf(t, r))); err != nil {
			t.Fatalf("it cannot be read back: %v", err)
		}
		if again := r.Restored(77); r.Epoch == s.Epoch || again.Epoch == r.Epoch {
			t.Fatalf("workers cannot tell epoch %d from %d and %d", r.Epoch, s.Epoch, again.Epoch)
		}
		if len(r.Workers) != 0 || len(r.Jobs) != len(s.Jobs) || len(r.Busy()) != 0 {
			t.Fatalf("%d workers, %d of %d jobs, busy %v", len(r.Workers), len(r.Jobs), len(s.Jobs), r.Busy())
		}
		for id, was := range s.Jobs {
			is := r.Jobs[id]
			switch {
			case was.Phase.Final() && (is.Phase != was.Phase || is.Generation != was.Generation || len(is.Events) != len(was.Events)):
				t.Fatalf("%s was over and changed to %+v", id, is)
			case (was.Phase == Queued || was.Phase == Running) && (is.Phase != Queued || is.Generation != was.Generation+restoreGap):
				t.Fatalf("%s was %s in generation %d and is %s in %d", id, was.Phase, was.Generation, is.Phase, is.Generation)
			case was.Phase == Preparing && (is.Phase != Preparing || is.Preparation.Worker != "" || is.Preparation.Number != was.Preparation.Number):
				t.Fatalf("%s was preparing by %+v, and is %s by %+v", id, was.Preparation, is.Phase, is.Preparation)
			case !was.Phase.Final() && is.Events[len(is.Events)-1].Index <= s.Index:
				t.Fatalf("%s: a watcher would miss that it was restored", id)
			}
		}
	})
}
