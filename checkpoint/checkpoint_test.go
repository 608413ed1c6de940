package checkpoint

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
)

// testGroups are a small model with odd sizes; its largest tensor spans several
// checksum blocks.
func testGroups(large int64) []shard.Group {
	return []shard.Group{
		{Name: "embedding", Tensors: []shard.Tensor{{Name: "embed", Elems: large, Decay: true}}},
		{Name: "layer.0", Tensors: []shard.Tensor{{Name: "norm", Elems: 13}, {Name: "q", Elems: 2777, Decay: true}, {Name: "k", Elems: 1, Decay: true}}},
		{Name: "head", Tensors: []shard.Tensor{{Name: "last", Elems: 301}}},
	}
}

func testTable(t testing.TB, worldSize int, large int64) shard.Table {
	t.Helper()
	table, err := shard.NewTable(testGroups(large), worldSize)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// fake is a source whose numbers follow from step, kind, tensor and element, and
// that hands out garbage as padding.
type fake struct {
	table shard.Table
	step  int64
}

func (f fake) element(kind Kind, tensor string, elem int64) uint32 {
	x := uint32(elem)*2654435761 + uint32(kind)*97 + uint32(f.step)*7919
	for _, c := range []byte(tensor) {
		x = x*31 + uint32(c)
	}
	return x &^ 0x40000000 // finite
}

func (f fake) ReadState(kind Kind, bucket int, lo int64, le []byte) error {
	for i := range le {
		le[i] = 0xEE
	}
	for _, s := range f.table.SpansOf(bucket, lo, lo+int64(len(le)/4)) {
		for e := range s.Bucket.Len() {
			binary.LittleEndian.PutUint32(le[(s.Bucket.Lo-lo+e)*4:], f.element(kind, s.Tensor, s.Lo+e))
		}
	}
	return nil
}

func testState(step int64) State {
	s := State{Job: "pronounce", Model: "tiny", Spec: shard.Digest{1}, Data: shard.Digest{2}, NumericClass: "generic r1",
		Step: step, Taken: step, Seeds: map[string]uint64{"data": 1, "init": math.MaxUint64}}
	for k := int64(1); k <= step; k++ {
		s.History = append(s.History, StepRecord{Step: k, Loss: Number(1 / float64(k)), GradNorm: 3, Tokens: 400 + k})
	}
	return s
}

// save publishes a step and fails the test if that fails.
func save(t testing.TB, fsys vfs.FS, table shard.Table, step int64) Manifest {
	t.Helper()
	m, err := Save(t.Context(), fsys, "ckpt", table, testState(step), fake{table, step})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// holds fails the test unless c has the numbers of fake for its step.
func holds(t testing.TB, c *Checkpoint, worldSize int) {
	t.Helper()
	table, err := shard.NewTable(testGroups(c.Manifest.Tensors[0].Elems), worldSize)
	if err != nil {
		t.Fatal(err)
	}
	src, err := c.Source(table)
	if err != nil {
		t.Fatal(err)
	}
	want := fake{table, c.Manifest.Step}
	for kind := range kindCount {
		for i := range table.Buckets() {
			b := table.Bucket(i)
			got := make([]byte, b.Padded*4)
			for r := range worldSize {
				p := b.Piece(shard.Rank(r))
				if err := src.ReadState(kind, i, p.Lo, got[p.Lo*4:p.Hi*4]); err != nil {
					t.Fatal(err)
				}
			}
			for _, s := range b.Tensors() {
				for e := range s.Bucket.Len() {
					if x := binary.LittleEndian.Uint32(got[(s.Bucket.Lo+e)*4:]); x != want.element(kind, s.Tensor, e) {
						t.Fatalf("%v of %q, element %d: %08x, saved %08x", kind, s.Tensor, e, x, want.element(kind, s.Tensor, e))
					}
				}
			}
			for _, x := range got[b.Elems*4:] {
				if x != 0 {
					t.Fatalf("padding of bucket %d does not read as zeros", i)
				}
			}
		}
	}
}

func TestACheckpointLoadsAtEveryWorldSize(t *testing.T) {
	var weights shard.Digest
	for saved := 1; saved <= 8; saved++ {
		fsys := vfs.NewMem()
		m := save(t, fsys, testTable(t, saved, 150_001), 12)
		if saved == 1 {
			weights = m.Weights
		}
		if m.Weights != weights {
			t.Errorf("world size %d: weights hash %s, at world size 1 %s", saved, m.Weights, weights)
		}
		c, notices, err := Latest(fsys, "ckpt", false)
		if err != nil || len(notices) != 0 {
			t.Fatal(notices, err)
		}
		for loaded := 1; loaded <= 8; loaded++ {
			holds(t, c, loaded)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestACheckpointSavedAgainAtAnotherWorldSizeHoldsTheSame(t *testing.T) {
	fsys := vfs.NewMem()
	m := save(t, fsys, testTable(t, 3, 5000), 4)
	c, err := Open(fsys, "ckpt", 4)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	table := testTable(t, 5, 5000)
	src, err := c.Source(table)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Save(t.Context(), fsys, "other", table, testState(4), src)
	if err != nil || again.Weights != m.Weights || again.WorldSize != 5 {
		t.Fatalf("weights %s at world size %d, %v; before %s", again.Weights, again.WorldSize, err, m.Weights)
	}
}

func TestRangesReadWhatWasSaved(t *testing.T) {
	fsys := vfs.NewMem()
	table := testTable(t, 2, 150_001) // pieces of 75,008 elements, blocks of 65,536
	save(t, fsys, table, 2)
	c, err := Open(fsys, "ckpt", 2)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, r := range [][2]int64{{0, 1}, {75_006, 3}, {65_535, 2}, {140_543, 2}, {0, 150_001}, {150_000, 1}, {77, 0}, {150_001, 0}} {
		dst := make([]float32, r[1])
		if err := c.ReadRange("embed", Moment2, r[0], dst); err != nil {
			t.Fatal(err)
		}
		for i, x := range dst {
			if want := (fake{table, 2}).element(Moment2, "embed", r[0]+int64(i)); math.Float32bits(x) != want {
				t.Fatalf("range %v, element %d: %08x, saved %08x", r, i, math.Float32bits(x), want)
			}
		}
	}
	for _, bad := range []struct {
		tensor string
		kind   Kind
		off    int64
		n      int
	}{{"nobody", Master, 0, 1}, {"embed", kindCount, 0, 1}, {"embed", Master, -1, 1}, {"embed", Master, 150_000, 2}, {"embed", Master, math.MaxInt64, 2}} {
		if err := c.ReadRange(bad.tensor, bad.kind, bad.off, make([]float32, bad.n)); err == nil {
			t.Errorf("%+v was read", bad)
		}
	}
}

func TestManifestCarriesStateAndChain(t *testing.T) {
	fsys := vfs.NewMem()
	table := testTable(t, 2, 3000)
	first := save(t, fsys, table, 5)
	state := testState(10)
	state.Taken = 9
	state.History[3] = StepRecord{Step: 4, Loss: Number(math.NaN()), GradNorm: Number(math.Inf(1)), Skipped: true}
	state.Chain = first.Chain
	if _, err := Save(t.Context(), fsys, "ckpt", table, state, fake{table, 10}); err != nil {
		t.Fatal(err)
	}
	c, _, err := Latest(fsys, "ckpt", false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m := c.Manifest
	if m.Step != 10 || m.Taken != 9 || m.Job != state.Job || m.NumericClass != state.NumericClass || m.Seeds["init"] != math.MaxUint64 {
		t.Errorf("state reads back as %+v", m.State)
	}
	if len(m.Chain) != 2 || m.Chain[0] != first.Chain[0] || m.Chain[1].Weights != m.Weights {
		t.Errorf("chain is %+v", m.Chain)
	}
	if !math.IsNaN(float64(m.History[3].Loss)) || !math.IsNaN(float64(m.History[3].GradNorm)) || m.History[2] != state.History[2] {
		t.Errorf("history reads back as %+v", m.History[2:4])
	}
}

func TestSavingTheSameTwiceGivesTheSameBytes(t *testing.T) {
	fsys := vfs.NewMem()
	table := testTable(t, 4, 3000)
	m := save(t, fsys, table, 5)
	before := readAll(t, fsys, m)
	if again := readAll(t, fsys, save(t, fsys, table, 5)); !bytes.Equal(before, again) {
		t.Error("the second save of one step wrote other bytes")
	}
}

func TestAnExtraPublishedStepChangesTheChainAndNothingElse(t *testing.T) {
	table := testTable(t, 2, 3000)
	run := func(steps ...int64) (Manifest, shard.Digest) {
		fsys := vfs.NewMem()
		var m Manifest
		for _, step := range steps {
			state := testState(step)
			state.Chain = m.Chain
			var err error
			if m, err = Save(t.Context(), fsys, "ckpt", table, state, fake{table, step}); err != nil {
				t.Fatal(err)
			}
		}
		file, err := vfs.ReadFile(fsys, filepath.Join("ckpt", stepName(m.Step), manifestName), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		return m, sha256.Sum256(file)
	}
	undisturbed, sum := run(5, 10)
	stopped, other := run(5, 7, 10)
	if again, sameSum := run(5, 10); sameSum != sum || len(again.Chain) != 2 {
		t.Error("steps published alike gave manifests of other bytes")
	}
	if sum == other || len(stopped.Chain) != 3 {
		t.Error("the extra step is not in the chain")
	}
	stopped.Chain = undisturbed.Chain
	if !reflect.DeepEqual(stopped, undisturbed) {
		t.Error("the extra step shows elsewhere than in the chain")
	}
}

func readAll(t *testing.T, fsys vfs.FS, m Manifest) []byte {
	names, err := fsys.ReadDir(filepath.Join("ckpt", stepName(m.Step)))
	if err != nil || len(names) != len(m.Objects)+1 {
		t.Fatalf("files %v, %v; the manifest names %d objects", names, err, len(m.Objects))
	}
	var all []byte
	for _, name := range names {
		b, err := vfs.ReadFile(fsys, filepath.Join("ckpt", stepName(m.Step), name), 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		all = append(append(all, name...), b...)
	}
	return all
}

func TestAStepThatComesOutDifferentlyIsReportedAndNotPublished(t *testing.T) {
	fsys := vfs.NewMem()
	table := testTable(t, 2, 3000)
	m := save(t, fsys, table, 5)
	before := readAll(t, fsys, m)
	_, err := Save(t.Context(), fsys, "ckpt", table, testState(5), fake{table, 6})
	if !errors.Is(err, ErrDiverged) {
		t.Errorf("error %v", err)
	}
	if !bytes.Equal(before, readAll(t, fsys, m)) {
		t.Error("the published checkpoint was touched")
	}
}

func TestCheckpointsOfOthersAreRefusedWithBothNames(t *testing.T) {
	fsys := vfs.NewMem()
	table := testTable(t, 2, 3000)
	m := save(t, fsys, table, 5)
	c, err := Open(fsys, "ckpt", 5)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	own := Want{"pronounce", "tiny", table.Fingerprint(), m.Spec, m.Data}
	if err := c.Check(own); err != nil {
		t.Errorf("its own job is refused: %v", err)
	}
	model, spec, data := own, own, own
	model.Model, model.Fingerprint = "huge", shard.Digest{7}
	spec.Job, spec.Spec = "another", shard.Digest{8}
	data.Data = shard.Digest{9}
	for _, x := range []struct {
		w     Want
		names []string
	}{{model, []string{`"tiny"`, `"huge"`}}, {spec, []string{`"pronounce"`, `"another"`}}, {data, []string{"02000000", "09000000"}}} {
		err := c.Check(x.w)
		if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), x.names[0]) || !strings.Contains(err.Error(), x.names[1]) {
			t.Errorf("error %v does not name %v", err, x.names)
		}
	}
	state := testState(5)
	state.Job, state.Spec = "another", shard.Digest{8}
	before := readAll(t, fsys, m)
	if _, err := Save(t.Context(), fsys, "ckpt", table, state, fake{table, 5}); !errors.Is(err, ErrForeign) {
		t.Errorf("another job may overwrite a published step: %v", err)
	}
	if !bytes.Equal(before, readAll(t, fsys, m)) {
		t.Error("the refused save touched the checkpoint")
	}
	if _, err := c.Source(testTable(t, 2, 3001)); !errors.Is(err, ErrForeign) {
		t.Errorf("a table of another model may read it: %v", err)
	}
}

func TestSaveStopsWhenItsContextEnds(t *testing.T) {
	fsys := vfs.NewMem()
	table := testTable(t, 2, 3000)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Save(ctx, fsys, "ckpt", table, testState(1), fake{table, 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	nothingOf(t, fsys, 1)
}

// nothingOf fails the test if a failed save left anything.
func nothingOf(t *testing.T, fsys vfs.FS, step int64) {
	t.Helper()
	if there, err := vfs.Exists(fsys, filepath.Join("ckpt", stepName(step))); there || err != nil {
		t.Errorf("the failed save of step %d left its folder (%v)", step, err)
	}
}

type broken struct{ fake }

func (b broken) ReadState(kind Kind, bucket int, lo int64, le []byte) error {
	if kind == Moment1 && bucket == 1 {
		return errors.New("rank 1 is gone")
	}
	return b.fake.ReadState(kind, bucket, lo, le)
}

func TestASourceThatFailsPublishesNothing(t *testing.T) {
	fsys := vfs.NewMem()
	table := testTable(t, 2, 3000)
	if _, err := Save(t.Context(), fsys, "ckpt", table, testState(1), broken{fake{table, 1}}); err == nil || !strings.Contains(err.Error(), "rank 1 is gone") {
		t.Errorf("error %v", err)
	}
	nothingOf(t, fsys, 1)
}

// zeros is a source that costs no time, for measuring memory.
type zeros struct{}

func (zeros) ReadState(_ Kind, _ int, _ int64, le []byte) error { clear(le); return nil }

func TestSavingAndLoadingNeedFixedMemory(t *testing.T) {
	dir := t.TempDir()
	table := testTable(t, 4, 4<<20) // 48 MiB on disk
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := Save(t.Context(), vfs.OS, dir, table, testState(3), zeros{}); err != nil {
		t.Fatal(err)
	}
	c, _, err := Latest(vfs.OS, dir, false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	src, err := c.Source(table)
	if err != nil {
		t.Fatal(err)
	}
	le := make([]byte, 1<<20)
	for lo := int64(0); lo+1<<18 <= 4<<20; lo += 1 << 18 {
		for kind := range kindCount {
			if err := src.ReadState(kind, 0, lo, le); err != nil {
				t.Fatal(err)
			}
		}
	}
	runtime.ReadMemStats(&after)
	// All that was ever allocated, collected or not: twelve blocks of Verify and change.
	if got := after.TotalAlloc - before.TotalAlloc; got > 8<<20 {
		t.Errorf("%d MiB were allocated for a checkpoint of 48 MiB", got>>20)
	}
}

func TestLatestOfNothingSaysSo(t *testing.T) {
	if _, _, err := Latest(vfs.NewMem(), "ckpt", false); !errors.Is(err, ErrNone) {
		t.Errorf("no folder: %v", err)
	}
	if _, err := Open(vfs.NewMem(), "ckpt", 3); !errors.Is(err, ErrNone) {
		t.Errorf("no such step: %v", err)
	}
}

func TestUnfinishedStepsArePassedOverWithANotice(t *testing.T) {
	fsys := vfs.NewMem()
	save(t, fsys, testTable(t, 2, 3000), 5)
	if err := fsys.MkdirAll("ckpt/step-00000010"); err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{"ckpt/step-7", "ckpt/notes", "ckpt/step-00000099x"} {
		if err := fsys.MkdirAll(other); err != nil {
			t.Fatal(err)
		}
	}
	c, notices, err := Latest(fsys, "ckpt", false)
	if err != nil || c.Manifest.Step != 5 || len(notices) != 1 || !strings.Contains(notices[0], "step-00000010") {
		t.Fatalf("notices %q, %v", notices, err)
	}
	c.Close()
}

// TestEveryDamagedByteIsNoticed flips a bit at many places of every file.
func TestEveryDamagedByteIsNoticed(t *testing.T) {
	fsys := vfs.NewMem()
	table := testTable(t, 2, 3000)
	save(t, fsys, table, 4)
	m := save(t, fsys, table, 5)
	folder := filepath.Join("ckpt", stepName(5))
	names, err := fsys.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		path := filepath.Join(folder, name)
		good, err := vfs.ReadFile(fsys, path, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(good); at += 1 + len(good)/97 {
			bad := bytes.Clone(good)
			bad[at] ^= 1 << (at % 8)
			if err := vfs.WriteFile(fsys, path, bad); err != nil {
				t.Fatal(err)
			}
			if _, _, err := Latest(fsys, "ckpt", false); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), name) {
				t.Fatalf("bit flipped at byte %d of %s: error %v", at, name, err)
			}
			c, notices, err := Latest(fsys, "ckpt", true)
			if err != nil || c.Manifest.Step != 4 || len(notices) != 1 {
				t.Fatalf("bit flipped at byte %d of %s: falling back gives %v, %v", at, name, notices, err)
			}
			c.Close()
		}
		if err := vfs.WriteFile(fsys, path, good[:len(good)-9]); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Latest(fsys, "ckpt", false); !errors.Is(err, ErrDamaged) {
			t.Fatalf("%s cut off by nine bytes: %v", name, err)
		}
		if err := vfs.WriteFile(fsys, path, good); err != nil {
			t.Fatal(err)
		}
	}
	if err := fsys.Remove(filepath.Join(folder, m.Objects[0].File)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Latest(fsys, "ckpt", false); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "is missing") {
		t.Errorf("an object that is gone: %v", err)
	}
}

func TestSavingAgainRepairsADamagedCheckpoint(t *testing.T) {
	fsys := vfs.NewMem()
	table := testTable(t, 2, 3000)
	m := save(t, fsys, table, 5)
	for _, name := range []string{m.Objects[1].File, manifestName} {
		if err := vfs.WriteFile(fsys, filepath.Join("ckpt", stepName(5), name), []byte("torn")); err != nil {
			t.Fatal(err)
		}
		save(t, fsys, table, 5)
		c, _, err := Latest(fsys, "ckpt", false)
		if err != nil {
			t.Fatalf("after %s was damaged and the step saved again: %v", name, err)
		}
		holds(t, c, 2)
		c.Close()
	}
}

func TestPruneKeepsTheNewestAndOneThatIsGood(t *testing.T) {
	fsys := vfs.NewMem()
	table := testTable(t, 2, 3000)
	var last Manifest
	for step := int64(1); step <= 5; step++ {
		last = save(t, fsys, table, step)
	}
	if err := fsys.MkdirAll("ckpt/step-00000009"); err != nil {
		t.Fatal(err)
	}
	prune := func(keep int, want string) {
		t.Helper()
		if _, err := Prune(fsys, "ckpt", keep); err != nil {
			t.Fatal(err)
		}
		steps, leftovers, err := Published(fsys, "ckpt")
		if err != nil || fmt.Sprint(steps, leftovers) != want {
			t.Errorf("after pruning to %d: %v %v, %v; want %s", keep, steps, leftovers, err, want)
		}
	}
	prune(3, "[3 4 5] []")
	object := filepath.Join("ckpt", stepName(5), last.Objects[0].File)
	good, err := vfs.ReadFile(fsys, object, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(good)
	bad[len(bad)/2] ^= 1
	if err := vfs.WriteFile(fsys, object, bad); err != nil {
		t.Fatal(err)
	}
	prune(1, "[4 5] []") // 5 is damaged, so 4 is the only good one
	if err := vfs.WriteFile(fsys, object, good); err != nil {
		t.Fatal(err)
	}
	prune(0, "[5] []")
}
