package checkpoint

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
)

func TestNamesOfManifestsAreReadStrictly(t *testing.T) {
	sum := shard.Digest{0xab, 31: 0xcd}
	name := manifestPath(12, 3, sum)
	step, generation, got, err := parseManifestPath(name)
	if err != nil || step != 12 || generation != 3 || got != sum {
		t.Errorf("%s reads as step %d, generation %d, %s, %v", name, step, generation, got, err)
	}
	for _, bad := range []string{"", "manifest.json", "step-00000012/manifest.json", "/" + name, "../" + name, "./" + name, "x/" + name, name + "\n", " " + name,
		strings.Replace(name, "/", `\`, 1), strings.Replace(name, "00000012", "0000012", 1), strings.Replace(name, "00000012", "000000012", 1),
		strings.Replace(name, "-g3-", "-g03-", 1), strings.Replace(name, "-g3-", "-g-3-", 1), strings.Replace(name, "-g3-", "-g18446744073709551616-", 1),
		strings.ToUpper(name), strings.Replace(name, "ab", "AB", 1), name[:len(name)-6] + ".json", strings.Repeat("a", 1<<20)} {
		if _, _, _, err := parseManifestPath(bad); err == nil || len(err.Error()) > 300 {
			t.Errorf("%.90q: error %.400v", bad, err)
		}
		if _, err := OpenNamed(vfs.NewMem(), "ckpt", bad); err == nil {
			t.Errorf("%.90q was opened", bad)
		}
		if err := Commit(vfs.NewMem(), "ckpt", bad); err == nil {
			t.Errorf("%.90q was committed", bad)
		}
	}
}

func TestAManifestIsOpenedOnlyIfItHasTheBytesOfItsName(t *testing.T) {
	fsys := vfs.NewMem()
	table := testTable(t, 2, 3000)
	_, name := publish(t, fsys, table, 7, 3, 2)
	_, other := publish(t, fsys, table, 8, 3, 2)
	path := filepath.Join("ckpt", filepath.FromSlash(name))
	theirs, err := vfs.ReadFile(fsys, filepath.Join("ckpt", filepath.FromSlash(other)), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	moved := strings.Replace(other, stepName(8), stepName(7), 1) // a sound manifest in the folder of another step
	put(t, fsys, map[string]string{path: string(theirs), filepath.Join("ckpt", filepath.FromSlash(moved)): string(theirs)})
	for _, bad := range []string{name, moved} {
		_, openErr := OpenNamed(fsys, "ckpt", bad)
		for what, err := range map[string]error{"open": openErr, "commit": Commit(fsys, "ckpt", bad)} {
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), filepath.Base(bad)) {
				t.Errorf("%s %s: error %v", what, bad, err)
			}
		}
	}
	if err := fsys.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenNamed(fsys, "ckpt", name); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "is missing") {
		t.Errorf("a manifest that is gone: %v", err)
	}
}

func TestOtherWeightsForACommittedStepAreRefused(t *testing.T) {
	table := testTable(t, 4, 3000)
	fsys := vfs.NewMem()
	_, right := publish(t, fsys, table, 7, 2, 2)
	other := savers(2, fsys, fake{table, 99})
	if _, _, err := write(t.Context(), table, 7, 3, other, false); !errors.Is(err, ErrDiverged) {
		t.Errorf("the manifest of other weights: %v", err)
	}
	moments := savers(2, fsys, otherMoments{fake{table, 7}})
	if _, _, err := write(t.Context(), table, 7, 3, moments, false); !errors.Is(err, ErrDiverged) || !strings.Contains(err.Error(), "moments") {
		t.Errorf("the manifest of other moments: %v", err)
	}
	c, _, err := Latest(fsys, "ckpt", false)
	if err != nil {
		t.Fatal(err)
	}
	holds(t, c, 2)
	c.Close()
	opened(t, fsys, right, 2)

	// Both wrote their manifests before either was committed.
	fsys = vfs.NewMem()
	_, wrong, err := write(t.Context(), table, 7, 3, savers(2, fsys, fake{table, 99}), false)
	if err != nil {
		t.Fatal(err)
	}
	publish(t, fsys, table, 7, 2, 2)
	for range 2 {
		if err := Commit(fsys, "ckpt", wrong); !errors.Is(err, ErrDiverged) {
			t.Errorf("commit: %v", err)
		}
	}
}

// otherMoments is a source with the same weights.
type otherMoments struct{ fake }

func (o otherMoments) ReadState(kind Kind, bucket int, lo int64, le []byte) error {
	err := o.fake.ReadState(kind, bucket, lo, le)
	if kind == Moment2 {
		le[0] ^= 1
	}
	return err
}

// TestOfTwoCommitsAtOnceOneIsComparedWithTheOther commits other weights at the very
// moment at which the manifest appears.
func TestOfTwoCommitsAtOnceOneIsComparedWithTheOther(t *testing.T) {
	table := testTable(t, 2, 3000)
	for _, step := range []int64{7, 99} {
		mem := vfs.NewMem()
		_, theirs, err := write(t.Context(), table, 7, 2, savers(1, mem, fake{table, 7}), false)
		if err != nil {
			t.Fatal(err)
		}
		_, ours, err := write(t.Context(), table, 7, 3, savers(2, mem, fake{table, step}), false)
		if err != nil {
			t.Fatal(err)
		}
		fault := vfs.NewFault(mem, vfs.Rule{Ops: vfs.OpRename, Nth: 1, Do: func() {
			if err := Commit(mem, "ckpt", theirs); err != nil {
				t.Error(err)
			}
		}})
		if err := Commit(fault, "ckpt", ours); (err == nil) != (step == 7) || err != nil && !errors.Is(err, ErrDiverged) {
			t.Errorf("weights of step %d: %v", step, err)
		}
		c, _, err := Latest(mem, "ckpt", false)
		if err != nil {
			t.Fatal(err)
		}
		holds(t, c, 2)
		c.Close()
		for path := range readFolder(t, mem, 7) {
			if strings.HasSuffix(path, tempSuffix) {
				t.Errorf("left %s", path)
			}
		}
	}
}

func TestCommitReplacesADamagedManifestAndKeepsAWholeOne(t *testing.T) {
	table := testTable(t, 2, 3000)
	fsys := vfs.NewMem()
	m, first := publish(t, fsys, table, 7, 2, 2)
	whole := readFolder(t, fsys, 7)[filepath.Join("ckpt", stepName(7), manifestName)]
	_, second := publish(t, fsys, table, 7, 3, 1)
	path := filepath.Join("ckpt", stepName(7), manifestName)
	same(t, fsys, map[string]string{path: whole})
	put(t, fsys, map[string]string{path: "torn"})
	if err := Commit(fsys, "ckpt", second); err != nil {
		t.Fatal(err)
	}
	if err := Commit(fsys, "ckpt", first); err != nil { // late
		t.Fatal(err)
	}
	put(t, fsys, map[string]string{path: whole})
	if err := fsys.Remove(filepath.Join("ckpt", stepName(7), m.Objects[3].File)); err != nil {
		t.Fatal(err)
	}
	if err := Commit(fsys, "ckpt", first); !errors.Is(err, ErrDamaged) {
		t.Errorf("a manifest whose object is gone was committed: %v", err)
	}
	if err := Commit(fsys, "ckpt", second); err != nil {
		t.Fatal(err)
	}
	c, _, err := Latest(fsys, "ckpt", false)
	if err != nil || !strings.Contains(c.Manifest.Objects[0].File, "-g3-") {
		t.Fatal(err)
	}
	holds(t, c, 2)
	c.Close()
}

func TestPartsAreKeptOutOfFoldersOfOthers(t *testing.T) {
	table := testTable(t, 2, 3000)
	theirs := map[string]string{"ckpt/step-00000007/manifest.json": `{"model": "of another tool"}`}
	fsys := vfs.NewMem()
	put(t, fsys, theirs)
	if _, err := saveParts(t.Context(), table, 7, 2, savers(2, fsys, fake{table, 7}), true); !errors.Is(err, ErrForeign) {
		t.Errorf("beside another program's manifest: %v", err)
	}
	same(t, fsys, theirs)

	fsys = vfs.NewMem()
	_, name := publish(t, fsys, table, 7, 2, 2)
	files := nextVersion(t, fsys, 7)
	_, partErr := saveParts(t.Context(), table, 7, 3, savers(2, fsys, fake{table, 7}), true)
	for what, err := range map[string]error{"save": partErr, "commit": Commit(fsys, "ckpt", name)} {
		if !errors.Is(err, ErrVersion) {
			t.Errorf("%s over another version: %v", what, err)
		}
	}
	same(t, fsys, files)

	fsys = vfs.NewMem()
	_, name = publish(t, fsys, table, 7, 2, 2)
	before := readFolder(t, fsys, 7)
	if _, err := saveParts(t.Context(), testTable(t, 2, 3001), 7, 3, savers(2, fsys, fake{testTable(t, 2, 3001), 7}), true); !errors.Is(err, ErrForeign) {
		t.Errorf("another model: %v", err)
	}
	parts, err := saveParts(t.Context(), table, 7, 3, savers(2, fsys, fake{table, 7}), true)
	if err != nil {
		t.Fatal(err)
	}
	state := testState(7)
	state.Spec = shard.Digest{8}
	if _, _, _, err := WriteManifest(t.Context(), fsys, "ckpt", table, state, 3, parts); !errors.Is(err, ErrForeign) {
		t.Errorf("another job: %v", err)
	}
	same(t, fsys, before)
	opened(t, fsys, name, 2)
}

func TestPruneOlderTouchesNothingAtOrAboveTheOldestThatIsKept(t *testing.T) {
	fsys := vfs.NewMem()
	table := testTable(t, 2, 3000)
	for step := int64(1); step <= 5; step++ {
		publish(t, fsys, table, step, uint64(step), 2)
	}
	for _, x := range []struct{ step, generation int64 }{{1, 9}, {4, 9}, {5, 1}, {6, 9}} { // zombies' and others' work under way
		if _, err := saveParts(t.Context(), table, x.step, uint64(x.generation), savers(2, fsys, fake{table, x.step}), true); err != nil {
			t.Fatal(err)
		}
	}
	put(t, fsys, map[string]string{
		"ckpt/step-00000000/rank-00-m-g1-0123456789abcdef.tmp": "left by a kill",
		"ckpt/step-00000002/notes.txt":                         "of somebody",
		"ckpt/step-00000004/rank-00-m-g1-0123456789abcdef.tmp": "of a writer at work, who knows",
	})
	kept := map[string]string{"ckpt/step-00000002/notes.txt": "of somebody"}
	for _, step := range []int64{4, 5, 6} {
		maps.Copy(kept, readFolder(t, fsys, step))
	}
	removed, err := PruneOlder(fsys, "ckpt", 2)
	if err != nil || len(removed) != 4 {
		t.Errorf("removed %q, %v", removed, err)
	}
	same(t, fsys, kept)
	steps, leftovers, err := Published(fsys, "ckpt")
	if got := fmt.Sprint(steps, leftovers); err != nil || got != "[4 5] [6]" {
		t.Errorf("published and leftovers: %s, %v", got, err)
	}
	if names, _ := fsys.ReadDir("ckpt"); !slices.Equal(names, []string{stepName(2), stepName(4), stepName(5), stepName(6)}) {
		t.Errorf("folders %v", names)
	}
	if removed, err := PruneOlder(fsys, "ckpt", 2); err != nil || len(removed) != 0 {
		t.Errorf("pruned once more: %q, %v", removed, err)
	}
	if removed, err := PruneOlder(vfs.NewMem(), "ckpt", 1); err != nil || len(removed) != 0 {
		t.Errorf("pruned nothing: %q, %v", removed, err)
	}
}

func TestPruneOlderRemovesNothingWhileWhatItKeepsIsDamaged(t *testing.T) {
	fsys := vfs.NewMem()
	table := testTable(t, 2, 3000)
	var m Manifest
	for step := int64(1); step <= 3; step++ {
		m, _ = publish(t, fsys, table, step, 1, 2)
	}
	put(t, fsys, map[string]string{filepath.Join("ckpt", stepName(3), m.Objects[0].File): "torn"})
	if removed, err := PruneOlder(fsys, "ckpt", 1); err != nil || len(removed) != 1 {
		t.Errorf("removed %q, %v; step 2 is the only good one", removed, err)
	}
	c, _, err := Latest(fsys, "ckpt", true)
	if err != nil || c.Manifest.Step != 2 {
		t.Fatal(err)
	}
	c.Close()
}

func TestACommitAfterOneThatWasKilledIsDurable(t *testing.T) {
	table := testTable(t, 2, 3000)
	for n := 1; ; n++ {
		mem := vfs.NewMem()
		_, name, err := write(t.Context(), table, 7, 2, savers(2, mem, fake{table, 7}), true)
		if err != nil {
			t.Fatal(err)
		}
		killed := Commit(vfs.NewFault(mem, vfs.CrashAt(n)), "ckpt", name)
		if err := Commit(mem, "ckpt", name); err != nil {
			t.Fatal(err)
		}
		mem.Crash()
		c, _, err := Latest(mem, "ckpt", false)
		if err != nil {
			t.Fatalf("killed at change %d, committed again, and then the power was cut: %v", n, err)
		}
		c.Close()
		if killed == nil {
			return
		}
	}
}
