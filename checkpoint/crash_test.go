package checkpoint

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/skein-ml/skein/internal/vfs"
)

// afterFault is what must hold of a folder in which step 5 was published, and the
// save of step 10 was disturbed: the newest checkpoint is whole and is one of the
// two, step 10 if Save said so; and saving once more works.
func afterFault(t *testing.T, what string, fsys *vfs.Mem, saved bool) {
	t.Helper()
	c, notices, err := Latest(fsys, "ckpt", false)
	if err != nil {
		t.Fatalf("%s: the last good checkpoint does not load: %v", what, err)
	}
	if step := c.Manifest.Step; step != 10 && (saved || step != 5) {
		t.Fatalf("%s: the newest checkpoint is of step %d, notices %q, though Save succeeded: %v", what, step, notices, saved)
	}
	holds(t, c, 3)
	c.Close()
	table := testTable(t, 2, 9_000)
	save(t, fsys, table, 10)
	if _, err := Prune(fsys, "ckpt", 1); err != nil {
		t.Fatalf("%s: prune afterwards: %v", what, err)
	}
	if c, notices, err = Latest(fsys, "ckpt", false); err != nil || c.Manifest.Step != 10 || len(notices) != 0 {
		t.Fatalf("%s: after saving again and pruning: notices %q, %v", what, notices, err)
	}
	holds(t, c, 1)
	c.Close()
}

// withFault publishes step 5, and saves step 10 through the rules.
func withFault(t *testing.T, rules ...vfs.Rule) (*vfs.Mem, *vfs.Fault, error) {
	t.Helper()
	mem := vfs.NewMem()
	table := testTable(t, 2, 9_000)
	save(t, mem, table, 5)
	fault := vfs.NewFault(mem, rules...)
	_, err := Save(t.Context(), fault, "ckpt", table, testState(10), fake{table, 10})
	return mem, fault, err
}

// TestKilledAtAnyMomentTheLastGoodCheckpointLoads kills the process at every
// operation of a save, with and without losing what was not synced.
func TestKilledAtAnyMomentTheLastGoodCheckpointLoads(t *testing.T) {
	_, undisturbed, err := withFault(t)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= undisturbed.Changes(); n++ {
		for _, powerCut := range []bool{false, true} {
			for _, torn := range []int{0, 7} {
				rule := vfs.CrashAt(n)
				rule.Torn = torn
				mem, _, err := withFault(t, rule)
				if powerCut {
					mem.Crash()
				}
				afterFault(t, fmt.Sprintf("crash at operation %d, power cut %v, torn %d", n, powerCut, torn), mem, err == nil)
			}
		}
	}
}

func TestAPowerCutAfterSaveLosesNothing(t *testing.T) {
	mem, _, err := withFault(t)
	if err != nil {
		t.Fatal(err)
	}
	mem.Crash()
	afterFault(t, "power cut after the save", mem, true)
}

// TestEveryFailedOperationLeavesTheLastGoodCheckpoint fails one operation at a
// time, after which the program lives on.
func TestEveryFailedOperationLeavesTheLastGoodCheckpoint(t *testing.T) {
	_, undisturbed, err := withFault(t)
	if err != nil {
		t.Fatal(err)
	}
	log := undisturbed.Log()
	for n := 1; n <= undisturbed.Changes(); n++ {
		what := fmt.Sprintf("operation %d, %s, fails", n, log[n-1])
		mem, _, err := withFault(t, vfs.FailNth(vfs.OpChange, n, syscall.EIO))
		if strings.Contains(log[n-1], "remove") || log[n-1] == "syncdir ." {
			if err != nil {
				t.Errorf("%s: cleaning up failed the save: %v", what, err)
			}
		} else if !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: error %v", what, err)
		}
		afterFault(t, what, mem, err == nil)
	}
}

func TestAFullDiskIsReportedAndCleanedUp(t *testing.T) {
	table := testTable(t, 2, 9_000)
	full := int64(3*4*(9_000+2777+13+1+301) + 1500)
	for space := int64(0); space < full; space += full / 37 {
		mem := vfs.NewMem()
		save(t, mem, table, 5)
		fault := vfs.NewFault(mem).LimitSpace(space)
		_, err := Save(t.Context(), fault, "ckpt", table, testState(10), fake{table, 10})
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "free space") || strings.Contains(err.Error(), "\n") {
			t.Fatalf("%d bytes free: error %v", space, err)
		}
		nothingOf(t, mem, 10)
		afterFault(t, fmt.Sprintf("%d bytes free", space), mem, false)
	}
}

// TestPruneKilledAtAnyMomentLeavesAWholeCheckpoint kills Prune at every operation.
func TestPruneKilledAtAnyMomentLeavesAWholeCheckpoint(t *testing.T) {
	for n := 1; ; n++ {
		for _, powerCut := range []bool{false, true} {
			mem := vfs.NewMem()
			table := testTable(t, 2, 9_000)
			for step := int64(5); step <= 10; step++ {
				save(t, mem, table, step)
			}
			fault := vfs.NewFault(mem, vfs.CrashAt(n))
			_, err := Prune(fault, "ckpt", 2)
			if powerCut {
				mem.Crash()
			}
			afterFault(t, fmt.Sprintf("prune killed at operation %d, power cut %v", n, powerCut), mem, true)
			if err == nil {
				if n < 5 {
					t.Fatalf("prune ended before operation %d", n)
				}
				return
			}
		}
	}
}
