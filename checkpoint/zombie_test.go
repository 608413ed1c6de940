package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
)

// attempt is what the workers of a generation do for a step, from the first object to
// the removal of older steps.
func attempt(ctx context.Context, table shard.Table, step int64, generation uint64, workers []worker, inTurn bool) (name string, err error) {
	_, name, err = write(ctx, table, step, generation, workers, inTurn)
	if err == nil {
		err = Commit(workers[0].fsys, "ckpt", name)
	}
	if err == nil {
		_, err = PruneOlder(workers[0].fsys, "ckpt", 1)
	}
	return name, err
}

// sound fails the test unless the newest checkpoint is one of the steps and is whole.
func sound(t *testing.T, what string, fsys vfs.FS, steps ...int64) {
	t.Helper()
	c, _, err := Latest(fsys, "ckpt", false)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer c.Close()
	if !slices.Contains(steps, c.Manifest.Step) {
		t.Fatalf("%s: the newest checkpoint is of step %d, expected one of %v", what, c.Manifest.Step, steps)
	}
	holds(t, c, 3)
}

// cluster is a store in which step 5 is published, and the workers of generation 1,
// which reach it through one Fault, or each through one of its own.
func cluster(t *testing.T, table shard.Table, faults ...*vfs.Rule) (*vfs.Mem, []worker, []*vfs.Fault) {
	t.Helper()
	mem := vfs.NewMem()
	publish(t, mem, table, 5, 1, 2)
	workers := make([]worker, len(faults))
	views := make([]*vfs.Fault, len(faults))
	for i, rule := range faults {
		views[i] = vfs.NewFault(mem)
		if rule != nil {
			views[i] = vfs.NewFault(mem, *rule)
		}
		workers[i] = worker{views[i], fake{table, 10}}
	}
	return mem, workers, views
}

// TestANewGenerationPublishesTheStepWhereverTheOldOneWasKilled kills one worker of two,
// or both at once, at every change that it makes; with and without losing what was not
// synced. What a new generation then publishes is whole, and so is what was there
// before. The workers of a generation take turns or write at the same time.
func TestANewGenerationPublishesTheStepWhereverTheOldOneWasKilled(t *testing.T) {
	table := testTable(t, 3, 3000)
	for _, inTurn := range []bool{true, false} {
		for victim := range 2 {
			_, workers, views := cluster(t, table, nil, nil)
			if _, err := attempt(t.Context(), table, 10, 1, workers, inTurn); err != nil {
				t.Fatal(err)
			}
			for n := 1; n <= views[victim].Changes(); n++ {
				for _, powerCut := range []bool{false, true} {
					what := fmt.Sprintf("in turn %v, worker %d killed at change %d, power cut %v", inTurn, victim, n, powerCut)
					rule := vfs.CrashAt(n)
					rule.Torn = n % 9
					rules := []*vfs.Rule{nil, nil}
					rules[victim] = &rule
					mem, workers, views := cluster(t, table, rules...)
					name, err := attempt(t.Context(), table, 10, 1, workers, inTurn)
					if log := views[victim].Log(); err == nil && log[n-1] != "syncdir ." { // which is best effort
						t.Fatalf("%s: and nobody noticed", what)
					}
					if powerCut {
						mem.Crash()
					}
					sound(t, what, mem, 5, 10)
					if name != "" { // the manifest was written, and the log may have published it
						opened(t, mem, name, 2)
					}
					second, err := attempt(t.Context(), table, 10, 2, savers(1+n%3, mem, fake{table, 10}), false)
					if err != nil {
						t.Fatalf("%s: the next generation: %v", what, err)
					}
					mem.Crash() // nothing of what was published needs luck
					sound(t, what, mem, 10)
					opened(t, mem, second, 2)
				}
			}
		}
	}
}

// TestAZombieHarmsNothing stops all workers of generation 1 before each change that
// they make; generation 2 publishes the step, and perhaps the next one, and prunes;
// then generation 1 goes on to its end, whatever it is told.
func TestAZombieHarmsNothing(t *testing.T) {
	table := testTable(t, 3, 3000)
	for _, further := range []bool{false, true} {
		for n := 1; ; n++ {
			what := fmt.Sprintf("generation 1 stopped before change %d, generation 2 goes further: %v", n, further)
			mem := vfs.NewMem()
			publish(t, mem, table, 5, 1, 2)
			last, name := int64(10), ""
			view := vfs.NewFault(mem, vfs.Rule{Nth: n, Do: func() {
				for step := int64(10); step <= 11; step++ {
					var err error
					if name, err = attempt(t.Context(), table, step, 2, savers(2, mem, fake{table, step}), false); err != nil {
						t.Errorf("%s: generation 2: %v", what, err)
					}
					if last = step; !further {
						return
					}
				}
			}})
			zombie, err := attempt(t.Context(), table, 10, 1, savers(2, view, fake{table, 10}), true)
			if view.Changes() < n {
				break
			}
			if err != nil && !further {
				t.Errorf("%s: the zombie fails: %v", what, err)
			}
			mem.Crash()
			sound(t, what, mem, last)
			opened(t, mem, name, 2)
			if !further {
				opened(t, mem, zombie, 2)
			}
			if n > 500 {
				t.Fatal("there is no end to it")
			}
		}
	}
}

// TestAZombieWithOtherWeightsIsRefusedOrRefuses is the same with a zombie whose
// hardware computes wrong: of two sets of weights one is published, and the other
// generation is told.
func TestAZombieWithOtherWeightsIsRefusedOrRefuses(t *testing.T) {
	table := testTable(t, 2, 3000)
	for n := 1; ; n++ {
		mem := vfs.NewMem()
		var name string
		var second error
		view := vfs.NewFault(mem, vfs.Rule{Nth: n, Do: func() {
			name, second = attempt(t.Context(), table, 10, 2, savers(2, mem, fake{table, 10}), false)
		}})
		_, first := attempt(t.Context(), table, 10, 1, savers(2, view, fake{table, 98}), true)
		if view.Changes() < n {
			return
		}
		if (first == nil) == (second == nil) || !errors.Is(errors.Join(first, second), ErrDiverged) {
			t.Fatalf("stopped before change %d: the zombie gets %v, generation 2 gets %v", n, first, second)
		}
		c, _, err := Latest(mem, "ckpt", false)
		if err != nil {
			t.Fatal(err)
		}
		if wrong := c.Manifest.Objects[0].File[:len("rank-00-master-g1")] == "rank-00-master-g1"; wrong != (first == nil) {
			t.Errorf("stopped before change %d: the manifest names %s; the zombie got %v", n, c.Manifest.Objects[0].File, first)
		}
		c.Close()
		if second == nil {
			opened(t, mem, name, 2)
		}
	}
}

func TestAFullStoreFailsTheSaveAndHarmsNothing(t *testing.T) {
	table := testTable(t, 3, 3000)
	full := int64(3*4*(3000+2777+13+1+301) + 9*256 + 3000)
	for space := int64(0); space < full; space += full / 41 {
		mem := vfs.NewMem()
		publish(t, mem, table, 5, 1, 2)
		view := vfs.NewFault(mem).LimitSpace(space)
		if _, err := attempt(t.Context(), table, 10, 1, savers(2, view, fake{table, 10}), false); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("%d bytes free: %v", space, err)
		}
		sound(t, fmt.Sprintf("%d bytes free", space), mem, 5)
		if _, err := attempt(t.Context(), table, 10, 2, savers(2, mem, fake{table, 10}), false); err != nil {
			t.Fatal(err)
		}
		sound(t, "with space again", mem, 10)
	}
}

// TestAnImportThatFailsTakesNothingFromTheNextOne stops a worker that imports step 0
// before each change; another one imports it; then the first one fails.
func TestAnImportThatFailsTakesNothingFromTheNextOne(t *testing.T) {
	table := testTable(t, 2, 3000)
	for n := 1; ; n++ {
		mem := vfs.NewMem()
		ctx, cancel := context.WithCancel(t.Context())
		view := vfs.NewFault(mem, vfs.Rule{Nth: n, Do: func() {
			if _, err := attempt(t.Context(), table, 0, 0, savers(1, mem, fake{table, 0}), true); err != nil {
				t.Errorf("stopped before change %d: the next import: %v", n, err)
			}
			cancel()
		}})
		_, err := attempt(ctx, table, 0, 0, savers(1, view, fake{table, 0}), true)
		cancel()
		if view.Changes() < n {
			return
		}
		mem.Crash()
		sound(t, fmt.Sprintf("stopped before change %d, then %v", n, err), mem, 0)
	}
}

// TestGenerationsThatAllWriteAtOnceEndOnAWholeCheckpoint lets four generations of two
// workers each save, commit and prune the same steps at the same time, on the host's
// file system. A generation may fail when others have pruned what it works on.
func TestGenerationsThatAllWriteAtOnceEndOnAWholeCheckpoint(t *testing.T) {
	table := testTable(t, 3, 3000)
	for round := range 5 {
		t.Chdir(t.TempDir())
		var group errgroup.Group
		var through atomic.Int32
		for generation := range uint64(4) {
			group.Go(func() error {
				for step := int64(10); step <= 12; step++ {
					_, err := attempt(t.Context(), table, step, generation, savers(2, vfs.OS, fake{table, step}), false)
					switch {
					case err == nil && step == 12:
						through.Add(1)
					case errors.Is(err, ErrDiverged), errors.Is(err, ErrForeign), errors.Is(err, ErrVersion), err != nil && step == 12:
						return fmt.Errorf("generation %d, step %d: %w", generation, step, err)
					}
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if through.Load() != 4 {
			t.Errorf("round %d: %d of 4 generations saved the last step", round, through.Load())
		}
		sound(t, fmt.Sprintf("round %d", round), vfs.OS, 12)
	}
}
