package checkpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/skein-ml/skein/internal/leak"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
)

func TestMain(m *testing.M) { leak.Main(m) }

// wire hands hashes from each worker to the next one.
type wire struct {
	links [][]chan []byte // by worker that passes, and bucket
}

func newWire(workers, buckets int) wire {
	w := wire{make([][]chan []byte, workers)}
	for i := range w.links {
		w.links[i] = make([]chan []byte, buckets)
		for b := range w.links[i] {
			w.links[i][b] = make(chan []byte, 1) // Pass never waits
		}
	}
	return w
}

// of is the chain that a worker sees.
func (w wire) of(worker int) Chain { return wireEnd{w, worker} }

type wireEnd struct {
	wire   wire
	worker int
}

func (e wireEnd) Take(ctx context.Context, bucket int) ([]byte, error) {
	select {
	case state := <-e.wire.links[e.worker-1][bucket]:
		return state, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (e wireEnd) Pass(_ context.Context, bucket int, state []byte) error {
	e.wire.links[e.worker][bucket] <- state
	return nil
}

// worker is one that saves its part.
type worker struct {
	fsys vfs.FS
	src  Source
}

// savers are workers that all see one file system.
func savers(n int, fsys vfs.FS, src Source) []worker {
	w := make([]worker, n)
	for i := range w {
		w[i] = worker{fsys, src}
	}
	return w
}

// saveParts saves the parts of all workers, at the same time or one after the other,
// and sends them through JSON.
func saveParts(ctx context.Context, table shard.Table, step int64, generation uint64, workers []worker, inTurn bool) ([]Part, error) {
	placement, err := shard.EvenPlacement(table.WorldSize(), len(workers))
	if err != nil {
		return nil, err
	}
	wire := newWire(len(workers), table.Buckets())
	parts := make([]Part, len(workers))
	one := func(ctx context.Context, i int) error {
		chain := wire.of(i)
		if len(workers) == 1 {
			chain = nil
		}
		part, err := SavePart(ctx, workers[i].fsys, "ckpt", table, step, generation, placement.Ranks(i), workers[i].src, chain)
		if err != nil {
			return err
		}
		text, err := json.Marshal(part)
		return errors.Join(err, json.Unmarshal(text, &parts[i]))
	}
	group, groupCtx := errgroup.WithContext(ctx)
	for i := range workers {
		if !inTurn {
			group.Go(func() error { return one(groupCtx, i) })
		} else if err := one(ctx, i); err != nil {
			return nil, err
		}
	}
	return parts, group.Wait()
}

// write saves all parts and writes the manifest, through the first worker.
func write(ctx context.Context, table shard.Table, step int64, generation uint64, workers []worker, inTurn bool) (Manifest, string, error) {
	parts, err := saveParts(ctx, table, step, generation, workers, inTurn)
	if err != nil {
		return Manifest{}, "", err
	}
	m, name, _, err := WriteManifest(ctx, workers[0].fsys, "ckpt", table, testState(step), generation, parts)
	return m, name, err
}

// publish writes and commits a step, and fails the test if that fails.
func publish(t testing.TB, fsys vfs.FS, table shard.Table, step int64, generation uint64, workers int) (Manifest, string) {
	t.Helper()
	m, name, err := write(t.Context(), table, step, generation, savers(workers, fsys, fake{table, step}), false)
	if err == nil {
		err = Commit(fsys, "ckpt", name)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m, name
}

func TestPartsOfAnyPlacementMakeTheCheckpointOfOneWorker(t *testing.T) {
	for _, worldSize := range []int{1, 2, 3, 5, 8, 16} {
		table := testTable(t, worldSize, 150_001)
		whole := save(t, vfs.NewMem(), table, 7)
		for workers := 1; workers <= min(worldSize, 5); workers++ {
			fsys := vfs.NewMem()
			generation := uint64(workers)
			parts, err := saveParts(t.Context(), table, 7, generation, savers(workers, fsys, fake{table, 7}), false)
			if err != nil {
				t.Fatal(err)
			}
			m, name, bytes, err := WriteManifest(t.Context(), fsys, "ckpt", table, testState(7), generation, parts)
			if err != nil {
				t.Fatal(err)
			}
			if m.Weights != whole.Weights || !slices.EqualFunc(m.Objects, whole.Objects, sameContent) || len(m.Chain) != 1 || m.Chain[0] != whole.Chain[0] {
				t.Fatalf("%d ranks on %d workers: other content than from one worker", worldSize, workers)
			}
			var sum int64
			for _, o := range m.Objects {
				sum += o.Bytes
			}
			if bytes != sum || !strings.HasPrefix(name, fmt.Sprintf("step-00000007/manifest-g%d-", workers)) {
				t.Errorf("manifest %s of %d bytes, the objects have %d", name, bytes, sum)
			}
			if _, _, err := Latest(fsys, "ckpt", false); !errors.Is(err, ErrNone) {
				t.Errorf("before the commit, readers of the folder see: %v", err)
			}
			opened(t, fsys, name, 3)
			for range 2 {
				if err := Commit(fsys, "ckpt", name); err != nil {
					t.Fatal(err)
				}
				c, notices, err := Latest(fsys, "ckpt", false)
				if err != nil || len(notices) != 0 {
					t.Fatal(notices, err)
				}
				holds(t, c, 2)
				c.Close()
			}
		}
	}
}

// opened opens a manifest by its name and compares all numbers.
func opened(t testing.TB, fsys vfs.FS, name string, worldSize int) {
	t.Helper()
	c, err := OpenNamed(fsys, "ckpt", name)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Verify(); err != nil {
		t.Fatal(err)
	}
	holds(t, c, worldSize)
}

func TestAStepSavedTwiceReusesItsObjects(t *testing.T) {
	mem := vfs.NewMem()
	table := testTable(t, 4, 3000)
	_, name := publish(t, mem, table, 7, 3, 2)
	before := readFolder(t, mem, 7)
	fault := vfs.NewFault(mem)
	if _, again := publish(t, fault, table, 7, 3, 2); again != name {
		t.Errorf("manifest %s, saved again %s", name, again)
	}
	for _, entry := range fault.Log() {
		if strings.HasPrefix(entry, "rename") && strings.HasSuffix(entry, objectSuffix) {
			t.Errorf("an object that was there was written over: %s", entry)
		}
	}
	same(t, mem, before)
	if after := readFolder(t, mem, 7); len(after) != len(before) {
		t.Errorf("%d files, before %d", len(after), len(before))
	}
	for path := range before {
		if strings.HasSuffix(path, objectSuffix) { // one that was damaged is written anew
			if err := vfs.WriteFile(mem, path, []byte("torn")); err != nil {
				t.Fatal(err)
			}
		}
	}
	publish(t, mem, table, 7, 3, 2)
	same(t, mem, before)
}

// readFolder is all files of a step's folder.
func readFolder(t testing.TB, fsys vfs.FS, step int64) map[string]string {
	t.Helper()
	folder := filepath.Join("ckpt", stepName(step))
	names, err := fsys.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, name := range names {
		b, err := vfs.ReadFile(fsys, filepath.Join(folder, name), 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Join(folder, name)] = string(b)
	}
	return files
}

func TestGenerationsShareNoFile(t *testing.T) {
	fsys := vfs.NewMem()
	table := testTable(t, 4, 3000)
	_, first := publish(t, fsys, table, 7, 3, 2)
	before := readFolder(t, fsys, 7)
	fault := vfs.NewFault(fsys)
	_, second := publish(t, fault, table, 7, 12, 3)
	for _, entry := range fault.Log() {
		op, path, _ := strings.Cut(entry, " ")
		name := filepath.Base(path)
		if op != "mkdir" && op != "syncdir" && !ofGeneration(name, 12) || ofGeneration(name, 3) || ofGeneration(name, 1) {
			t.Errorf("generation 12 did: %s", entry)
		}
	}
	same(t, fsys, before)
	opened(t, fsys, first, 2)
	opened(t, fsys, second, 2)
	c, _, err := Latest(fsys, "ckpt", false)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestRanksThatCannotBeSavedAreRefused(t *testing.T) {
	fsys := vfs.NewMem()
	table := testTable(t, 4, 3000)
	chain := newWire(4, table.Buckets()).of(1)
	for _, x := range []struct {
		ranks []shard.Rank
		chain Chain
	}{{nil, chain}, {[]shard.Rank{0, 2}, chain}, {[]shard.Rank{1, 0}, chain}, {[]shard.Rank{3, 4}, chain}, {[]shard.Rank{-1, 0}, chain}, {[]shard.Rank{0, 1}, nil}} {
		if _, err := SavePart(t.Context(), fsys, "ckpt", table, 1, 2, x.ranks, fake{table, 1}, x.chain); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("ranks %v: error %v", x.ranks, err)
		}
	}
	if _, err := SavePart(t.Context(), fsys, "ckpt", table, -1, 2, []shard.Rank{0, 1, 2, 3}, fake{table, 1}, nil); err == nil {
		t.Error("step −1 was saved")
	}
	if there, _ := vfs.Exists(fsys, "ckpt"); there {
		t.Error("a refused save made a folder")
	}
}

// lying hands on a state that is not the right one.
type lying struct {
	wireEnd
	state func([]byte) []byte
}

func (l lying) Take(ctx context.Context, bucket int) ([]byte, error) {
	state, err := l.wireEnd.Take(ctx, bucket)
	return l.state(state), err
}

func TestAStateOfTheHashThatIsNotThisOneIsRefusedAndNothingStays(t *testing.T) {
	table := testTable(t, 2, 3000)
	early := shard.NewWeightsHash(table) // a sound state, at the wrong element
	if err := early.Write(0, 0, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	wrong, err := early.State(0)
	if err != nil {
		t.Fatal(err)
	}
	for what, state := range map[string]func([]byte) []byte{
		"nothing":           func([]byte) []byte { return nil },
		"a flipped bit":     func(s []byte) []byte { s[len(s)/2] ^= 4; return s },
		"an earlier moment": func([]byte) []byte { return wrong },
	} {
		fsys := vfs.NewMem()
		wire := newWire(2, table.Buckets())
		if _, err := SavePart(t.Context(), fsys, "ckpt", table, 1, 2, []shard.Rank{0}, fake{table, 1}, wire.of(0)); err != nil {
			t.Fatal(err)
		}
		before := readFolder(t, fsys, 1)
		_, err := SavePart(t.Context(), fsys, "ckpt", table, 1, 2, []shard.Rank{1}, fake{table, 1}, lying{wireEnd{wire, 1}, state})
		if err == nil || !strings.Contains(err.Error(), "handed on") {
			t.Errorf("%s: error %v", what, err)
		}
		if after := readFolder(t, fsys, 1); len(after) != len(before) {
			t.Errorf("%s: left %d files, there were %d", what, len(after), len(before))
		}
	}
}

func TestSavePartStopsWhenItsContextEnds(t *testing.T) {
	table := testTable(t, 2, 3000)
	fsys := vfs.NewMem()
	ctx, cancel := context.WithCancel(t.Context())
	wire := newWire(2, table.Buckets()) // rank 0 never passes anything
	done := make(chan error, 1)
	go func() {
		_, err := SavePart(ctx, fsys, "ckpt", table, 1, 2, []shard.Rank{1}, fake{table, 1}, wire.of(1))
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if _, _, _, err := WriteManifest(ctx, fsys, "ckpt", table, testState(1), 2, nil); err == nil {
		t.Error("a manifest of nothing was written")
	}
}

// TestAPartThatFailsLeavesNothingOfIts fails one operation at a time.
func TestAPartThatFailsLeavesNothingOfIts(t *testing.T) {
	table := testTable(t, 2, 3000)
	for n := 1; ; n++ {
		mem := vfs.NewMem()
		wire := newWire(2, table.Buckets())
		if _, err := SavePart(t.Context(), mem, "ckpt", table, 1, 2, []shard.Rank{0}, fake{table, 1}, wire.of(0)); err != nil {
			t.Fatal(err)
		}
		before := readFolder(t, mem, 1)
		fault := vfs.NewFault(mem, vfs.FailNth(vfs.OpChange, n, syscall.EACCES))
		_, err := SavePart(t.Context(), fault, "ckpt", table, 1, 2, []shard.Rank{1}, fake{table, 1}, wire.of(1))
		if fault.Changes() < n {
			return
		}
		if log := fault.Log(); log[n-1] == "syncdir ." {
			continue // best effort: another's folder
		}
		if !errors.Is(err, syscall.EACCES) || !strings.Contains(err.Error(), "let the user that runs Skein write into ckpt") || strings.Contains(err.Error(), "\n") {
			t.Fatalf("operation %d, %s, fails: error %v", n, fault.Log()[n-1], err)
		}
		if after := readFolder(t, mem, 1); len(after) != len(before) {
			t.Fatalf("operation %d, %s, fails: %d files, before %d", n, fault.Log()[n-1], len(after), len(before))
		}
	}
}

// TestAPartThatCannotBeWrittenHandsTheHashOn fails everything that one of three workers
// writes from some operation on, as a full disk does.
func TestAPartThatCannotBeWrittenHandsTheHashOn(t *testing.T) {
	table := testTable(t, 3, 3000)
	good := mustSaveParts(t, table, savers(3, vfs.NewMem(), fake{table, 1}))
	for n := 1; ; n++ {
		mem := vfs.NewMem()
		workers := savers(3, mem, fake{table, 1})
		fault := vfs.NewFault(mem, vfs.FailNth(vfs.OpChange, n, syscall.ENOSPC))
		workers[1].fsys = fault
		errs, parts := eachPart(t, table, workers)
		if errs[0] != nil || errs[2] != nil {
			t.Fatalf("operation %d fails, and the others with it: %v", n, errs)
		}
		if *parts[2].Weights != *good[2].Weights {
			t.Fatalf("operation %d fails, and the hash of the weights is another", n)
		}
		if fault.Changes() < n {
			return
		}
		if log := fault.Log(); log[n-1] == "syncdir ." {
			continue // best effort: another's folder
		}
		if !errors.Is(errs[1], ErrUnwritten) || !errors.Is(errs[1], syscall.ENOSPC) {
			t.Fatalf("operation %d, %s, fails: error %v", n, fault.Log()[n-1], errs[1])
		}
		for _, i := range []int{0, 2} {
			Withdraw(mem, "ckpt", 1, parts[i])
		}
		if left := readFolder(t, mem, 1); len(left) > 0 {
			t.Fatalf("operation %d fails, all is withdrawn, and there are %d files", n, len(left))
		}
	}
}

// TestAFolderThatCannotBeLookedIntoIsTheStoresFaultAlone has one of three workers fail to
// read what was published of the step before.
func TestAFolderThatCannotBeLookedIntoIsTheStoresFaultAlone(t *testing.T) {
	table := testTable(t, 3, 3000)
	good := mustSaveParts(t, table, savers(3, vfs.NewMem(), fake{table, 1}))
	for _, op := range []vfs.Op{vfs.OpOpen, vfs.OpRead} {
		mem := vfs.NewMem()
		publish(t, mem, table, 1, 1, 3)
		workers := savers(3, mem, fake{table, 1})
		workers[1].fsys = vfs.NewFault(mem, vfs.Rule{Ops: op, Path: manifestName, Nth: 1, Err: syscall.EIO})
		errs, parts := eachPart(t, table, workers)
		if errs[0] != nil || errs[2] != nil {
			t.Fatalf("the others fail with it: %v", errs)
		}
		if !errors.Is(errs[1], ErrUnwritten) || !errors.Is(errs[1], syscall.EIO) {
			t.Errorf("error %v", errs[1])
		}
		if *parts[2].Weights != *good[2].Weights {
			t.Error("the hash of the weights is another")
		}
		if _, _, err := Latest(mem, "ckpt", true); err != nil {
			t.Errorf("what was published before: %v", err)
		}
	}
}

// eachPart saves the parts of all workers at the same time, whether others fail or not.
func eachPart(t *testing.T, table shard.Table, workers []worker) ([]error, []Part) {
	t.Helper()
	placement, err := shard.EvenPlacement(table.WorldSize(), len(workers))
	if err != nil {
		t.Fatal(err)
	}
	wire := newWire(len(workers), table.Buckets())
	errs, parts := make([]error, len(workers)), make([]Part, len(workers))
	var all sync.WaitGroup
	for i, w := range workers {
		all.Go(func() {
			parts[i], errs[i] = SavePart(t.Context(), w.fsys, "ckpt", table, 1, 2, placement.Ranks(i), w.src, wire.of(i))
		})
	}
	all.Wait()
	return errs, parts
}

func mustSaveParts(t *testing.T, table shard.Table, workers []worker) []Part {
	t.Helper()
	errs, parts := eachPart(t, table, workers)
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return parts
}

func TestPartsThatDoNotMakeAWholeAreRefused(t *testing.T) {
	table := testTable(t, 4, 3000)
	for what, x := range map[string]struct {
		change func(fsys vfs.FS, parts []Part) []Part
		says   string
	}{
		"a part is missing":            {func(_ vfs.FS, p []Part) []Part { return p[1:] }, "objects"},
		"a part is there twice":        {func(_ vfs.FS, p []Part) []Part { return append(p, Part{Objects: p[0].Objects}) }, "objects"},
		"an object twice, one missing": {func(_ vfs.FS, p []Part) []Part { p[0].Objects[0] = p[0].Objects[1]; return p }, "should be"},
		"no hash of the weights":       {func(_ vfs.FS, p []Part) []Part { p[1].Weights = nil; return p }, "no worker"},
		"two hashes of the weights":    {func(_ vfs.FS, p []Part) []Part { p[0].Weights = &shard.Digest{}; return p }, "two workers"},
		"a rank too many":              {func(_ vfs.FS, p []Part) []Part { p[1].Objects[0].Rank = 4; return p }, "should be"},
		"an unknown kind":              {func(_ vfs.FS, p []Part) []Part { p[1].Objects[0].Kind = 3; return p }, "should be"},
		"another generation": {func(_ vfs.FS, p []Part) []Part {
			o := &p[1].Objects[0]
			o.File = objectName(o.Kind, o.Rank, 9, o.SHA256)
			return p
		}, "should be"},
		"a path":               {func(_ vfs.FS, p []Part) []Part { p[1].Objects[0].File = "../" + p[1].Objects[0].File; return p }, "should be"},
		"a size":               {func(_ vfs.FS, p []Part) []Part { p[1].Objects[0].Bytes++; return p }, "should be"},
		"a number of elements": {func(_ vfs.FS, p []Part) []Part { p[1].Objects[0].Elems++; return p }, "should be"},
		"an object is not here": {func(fsys vfs.FS, p []Part) []Part {
			if err := fsys.Remove(filepath.Join("ckpt", stepName(7), p[1].Objects[2].File)); err != nil {
				t.Error(err)
			}
			return p
		}, "one folder that all machines see"},
		"an object is cut off": {func(fsys vfs.FS, p []Part) []Part {
			if err := vfs.WriteFile(fsys, filepath.Join("ckpt", stepName(7), p[1].Objects[2].File), []byte("torn")); err != nil {
				t.Error(err)
			}
			return p
		}, "has 4 bytes"},
	} {
		fsys := vfs.NewMem()
		parts, err := saveParts(t.Context(), table, 7, 2, savers(2, fsys, fake{table, 7}), true)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _, err := WriteManifest(t.Context(), fsys, "ckpt", table, testState(7), 2, x.change(fsys, parts))
		if err == nil || !strings.Contains(err.Error(), x.says) || name != "" {
			t.Errorf("%s: manifest %q, error %v", what, name, err)
		}
	}
}

// FuzzJoin makes manifests of parts that come from other machines.
func FuzzJoin(f *testing.F) {
	table := testTable(f, 2, 3000)
	parts, err := saveParts(f.Context(), table, 7, 3, savers(2, vfs.NewMem(), fake{table, 7}), true)
	if err != nil {
		f.Fatal(err)
	}
	text, err := json.Marshal(parts)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		var parts []Part
		if json.Unmarshal(text, &parts) != nil {
			return
		}
		m, err := join(table, testState(7), 3, parts)
		if err != nil {
			return
		}
		file, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeManifest(file); err != nil {
			t.Fatalf("parts were accepted and make a manifest that is not: %v", err)
		}
	})
}

// lent is a source that is told when it is free again.
type lent struct {
	Source
	done func()
}

func (l lent) ReadDone() { l.done() }

func TestASourceIsFreeBeforeTheDiskIsWaitedFor(t *testing.T) {
	table := testTable(t, 2, 3000)
	all := []shard.Rank{0, 1}
	for what, src := range map[string]Source{"sound": fake{table, 1}, "broken": broken{fake{table, 1}}} {
		fault := vfs.NewFault(vfs.NewMem())
		calls := 0
		lent := lent{src, func() {
			calls++
			if log := strings.Join(fault.Log(), " "); strings.Contains(log, "sync ") {
				t.Errorf("%s: freed after %s", what, log)
			}
		}}
		if _, err := SavePart(t.Context(), fault, "ckpt", table, 1, 2, all, lent, nil); (err == nil) != (what == "sound") || calls != 1 {
			t.Errorf("%s: told %d times, %v", what, calls, err)
		}
	}
	calls := 0
	if _, err := SavePart(t.Context(), vfs.NewMem(), "ckpt", table, 1, 2, nil, lent{fake{table, 1}, func() { calls++ }}, nil); err == nil || calls != 1 {
		t.Errorf("no ranks: told %d times, %v", calls, err)
	}
}
