package checkpoint

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
)

// put writes files, and the folders that they lie in.
func put(t testing.TB, fsys vfs.FS, files map[string]string) {
	t.Helper()
	for path, text := range files {
		if err := errors.Join(fsys.MkdirAll(filepath.Dir(path)), vfs.WriteFile(fsys, path, []byte(text))); err != nil {
			t.Fatal(err)
		}
	}
}

// same fails the test unless the files are there as they were put.
func same(t testing.TB, fsys vfs.FS, files map[string]string) {
	t.Helper()
	for path, text := range files {
		if b, err := vfs.ReadFile(fsys, path, 1<<30); err != nil || string(b) != text {
			t.Errorf("%s holds %.60q, %v; it held %.60q", path, b, err, text)
		}
	}
}

func TestWhatSaveWritesGoesByNamesOfItsOwn(t *testing.T) {
	mem := vfs.NewMem()
	fault := vfs.NewFault(mem)
	save(t, fault, testTable(t, shard.WorldSizeMax, 3000), 5)
	seen := 0
	for _, entry := range fault.Log() {
		op, path, _ := strings.Cut(entry, " ")
		if name := filepath.Base(path); op == "create" || op == "rename" && name != manifestName {
			seen++
			if !ownName.MatchString(name) {
				t.Errorf("%s is not known as a name of ours", name)
			}
		}
	}
	if want := 2*3*shard.WorldSizeMax + 1; seen != want {
		t.Errorf("%d names were checked, want %d", seen, want)
	}
	for _, name := range []string{manifestName, "weights.pt", "rank-00-master.bin", "rank-0-m.tmp", "notes.tmp", "rank-00-m-0123456789abcdef.obj.bak",
		"rank-00-w-0123456789abcdef.obj", "rank-00-m-0123456789abcde.obj", "xrank-00-m.tmp", "manifest.json.tmp2"} {
		if ownName.MatchString(name) {
			t.Errorf("%s is taken for a name of ours", name)
		}
	}
}

func TestPruneRemovesOnlyWhatSaveWrote(t *testing.T) {
	for name, fsys := range map[string]vfs.FS{"os": vfs.OS, "mem": vfs.NewMem()} {
		t.Run(name, func(t *testing.T) {
			dir := "ckpt"
			if name == "os" {
				t.Chdir(t.TempDir())
			}
			table := testTable(t, 2, 3000)
			for _, step := range []int64{5, 6} {
				save(t, fsys, table, step)
			}
			theirs := map[string]string{
				"ckpt/step-00001000/weights.pt":    "of another tool",
				"ckpt/step-00002000/weights.pt":    "beside an unfinished save",
				"ckpt/step-00003000":               "a file",
				"ckpt/step-00004000/manifest.json": `{"model": "of another tool"}`,
				"ckpt/step-00005000/sub/x":         "a folder in a folder",
				"ckpt/step-00000005/notes.txt":     "beside a checkpoint",
			}
			put(t, fsys, theirs)
			put(t, fsys, map[string]string{"ckpt/step-00002000/rank-00-m.tmp": "torn", "ckpt/step-00002000/rank-01-m-0123456789abcdef.obj": "torn",
				"ckpt/step-00007000/manifest.json.tmp": "torn"})
			steps, leftovers, err := Published(fsys, dir)
			if got := fmt.Sprint(steps, leftovers); err != nil || got != "[5 6] [2000 7000]" {
				t.Fatalf("published and leftovers: %s, %v", got, err)
			}
			c, notices, err := Latest(fsys, dir, true)
			if err != nil || c.Manifest.Step != 6 || len(notices) != 2 {
				t.Fatalf("latest: notices %q, %v", notices, err)
			}
			c.Close()
			if _, err := Prune(fsys, dir, 1); err != nil {
				t.Fatal(err)
			}
			same(t, fsys, theirs)
			for folder, want := range map[string]string{"step-00000005": "[notes.txt]", "step-00002000": "[weights.pt]"} {
				if names, err := fsys.ReadDir(filepath.Join(dir, folder)); err != nil || fmt.Sprint(names) != want {
					t.Errorf("%s holds %v, %v; want %s", folder, names, err, want)
				}
			}
			if there, _ := vfs.Exists(fsys, "ckpt/step-00007000"); there {
				t.Error("the folder of the unfinished save is still there")
			}
			if removed, err := Prune(fsys, dir, 1); err != nil || len(removed) != 0 {
				t.Errorf("pruned once more: %q, %v", removed, err)
			}
		})
	}
}

func TestASaveThatFailsLeavesFilesOfOthers(t *testing.T) {
	mem := vfs.NewMem()
	theirs := map[string]string{"ckpt/step-00000010/weights.pt": "of another tool"}
	put(t, mem, theirs)
	table := testTable(t, 2, 3000)
	fault := vfs.NewFault(mem, vfs.FailNth(vfs.OpWrite, 20, syscall.EIO))
	if _, err := Save(t.Context(), fault, "ckpt", table, testState(10), fake{table, 10}); !errors.Is(err, syscall.EIO) {
		t.Fatalf("error %v", err)
	}
	same(t, mem, theirs)
	if names, _ := mem.ReadDir("ckpt/step-00000010"); len(names) != 1 {
		t.Errorf("left: %v", names)
	}
	save(t, mem, table, 10)
	same(t, mem, theirs)
}

func TestAManifestOfAnotherProgramIsNotReplaced(t *testing.T) {
	mem := vfs.NewMem()
	theirs := map[string]string{"ckpt/step-00000010/manifest.json": `{"model": "of another tool"}`}
	put(t, mem, theirs)
	table := testTable(t, 2, 3000)
	if _, err := Save(t.Context(), mem, "ckpt", table, testState(10), fake{table, 10}); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "step-00000010") {
		t.Errorf("error %v, want ErrForeign", err)
	}
	if _, err := Open(mem, "ckpt", 10); !errors.Is(err, ErrNone) || errors.Is(err, ErrDamaged) {
		t.Errorf("opened: %v, want ErrNone", err)
	}
	same(t, mem, theirs)
	if names, _ := mem.ReadDir("ckpt/step-00000010"); len(names) != 1 {
		t.Errorf("the folder holds %v", names)
	}
}

// nextVersion replaces a step's manifest by one of a version to come, with a member
// that is not known today, and returns all of the folder's files.
func nextVersion(t *testing.T, fsys vfs.FS, step int64) map[string]string {
	t.Helper()
	folder := filepath.Join("ckpt", stepName(step))
	path := filepath.Join(folder, manifestName)
	file, err := vfs.ReadFile(fsys, path, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	body, err := unseal("manifest", file)
	if err != nil {
		t.Fatal(err)
	}
	next := bytes.Replace(body, []byte(`"version": 1,`), []byte(`"version": 2, "tensors_in_bf16": true,`), 1)
	if bytes.Equal(next, body) {
		t.Fatal("the version was not changed")
	}
	put(t, fsys, map[string]string{path: string(seal("manifest", next))})
	files := map[string]string{}
	names, err := fsys.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := vfs.ReadFile(fsys, filepath.Join(folder, name), 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Join(folder, name)] = string(b)
	}
	return files
}

func TestACheckpointOfAnotherVersionIsNeitherPassedOverNorReplacedNorRemoved(t *testing.T) {
	fsys := vfs.NewMem()
	table := testTable(t, 2, 3000)
	for step := int64(1); step <= 4; step++ {
		save(t, fsys, table, step)
	}
	files := nextVersion(t, fsys, 2)
	maps.Copy(files, nextVersion(t, fsys, 4))
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrVersion) || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), filepath.Join(stepName(4), manifestName)) ||
			!strings.Contains(err.Error(), "version 2") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v", what, err)
		}
	}
	for _, fallback := range []bool{false, true} {
		_, notices, err := Latest(fsys, "ckpt", fallback)
		refused(fmt.Sprintf("latest, falling back %v", fallback), err)
		if len(notices) != 0 {
			t.Errorf("notices %q", notices)
		}
	}
	_, err := Open(fsys, "ckpt", 4)
	refused("open", err)
	_, err = Save(t.Context(), fsys, "ckpt", table, testState(4), fake{table, 4})
	refused("save", err)
	if _, err := Prune(fsys, "ckpt", 1); err != nil {
		t.Error(err)
	}
	if steps, _, err := Published(fsys, "ckpt"); err != nil || !slices.Equal(steps, []int64{2, 3, 4}) {
		t.Errorf("pruned to steps %v, %v; want 2 and 4, of another version, and 3, the newest of this one", steps, err)
	}
	same(t, fsys, files)
}

func TestAnObjectOfAnotherVersionIsNotDamage(t *testing.T) {
	fsys := vfs.NewMem()
	table := testTable(t, 2, 3000)
	save(t, fsys, table, 4)
	m := save(t, fsys, table, 5)
	path := filepath.Join("ckpt", stepName(5), m.Objects[0].File)
	b, err := vfs.ReadFile(fsys, path, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	b[8] = 2
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	put(t, fsys, map[string]string{path: string(b)})
	if _, _, err := Latest(fsys, "ckpt", true); !errors.Is(err, ErrVersion) || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), m.Objects[0].File) {
		t.Errorf("error %v", err)
	}
}

func TestALineageOfAnotherVersionIsNotReplaced(t *testing.T) {
	fsys := vfs.NewMem()
	body, err := layout(testLineage())
	if err != nil {
		t.Fatal(err)
	}
	next := bytes.Replace(body, []byte(`"version": 1,`), []byte(`"version": 2, "clusters": 3,`), 1)
	files := map[string]string{"store/lineage.json": string(seal("lineage", next))}
	put(t, fsys, files)
	_, readErr := ReadLineage(fsys, "store/lineage.json")
	for what, err := range map[string]error{"read": readErr, "write": WriteLineage(fsys, "store/lineage.json", testLineage())} {
		if !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "store/lineage.json") || !strings.Contains(err.Error(), "version 2") {
			t.Errorf("%s: error %v", what, err)
		}
	}
	same(t, fsys, files)
	put(t, fsys, map[string]string{"store/lineage.json": "torn"})
	if err := WriteLineage(fsys, "store/lineage.json", testLineage()); err != nil {
		t.Errorf("a damaged one is in the way: %v", err)
	}
}

func TestErrorsOfTheDiskNameTheObjectOnce(t *testing.T) {
	mem := vfs.NewMem()
	table := testTable(t, 2, 3000)
	m := save(t, mem, table, 5)
	object := m.Objects[0].File
	_, _, readErr := Latest(vfs.NewFault(mem, vfs.Rule{Ops: vfs.OpRead, Path: object, Nth: 1, Err: syscall.EIO}), "ckpt", true)
	_, writeErr := Save(t.Context(), vfs.NewFault(mem, vfs.Rule{Ops: vfs.OpWrite, Path: "manifest-g0-", Nth: 1, Err: syscall.ENOSPC}), "ckpt", table, testState(6), fake{table, 6})
	for name, err := range map[string]error{object: readErr, "manifest-g0-": writeErr} {
		if err == nil || strings.Count(err.Error(), name) != 1 {
			t.Errorf("error %v, want %s in it once", err, name)
		}
	}
}

func TestAStoreFromBeforeGenerationsIsReadAndGoneOnWith(t *testing.T) {
	fsys := vfs.NewMem()
	table := testTable(t, 2, 3000)
	m := save(t, fsys, table, 5)
	folder := filepath.Join("ckpt", stepName(5))
	for i := range m.Objects {
		o := &m.Objects[i]
		was := o.File
		o.File = strings.Replace(was, "-g0-", "-", 1)
		if o.File == was || !ofGeneration(o.File, 0) || ofGeneration(o.File, 1) {
			t.Fatalf("%s is not the old name of an object", o.File)
		}
		if err := fsys.Rename(filepath.Join(folder, was), filepath.Join(folder, o.File)); err != nil {
			t.Fatal(err)
		}
	}
	file, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	put(t, fsys, map[string]string{filepath.Join(folder, manifestName): string(file), filepath.Join(folder, "rank-00-m.tmp"): "left by a kill"})
	c, _, err := Latest(fsys, "ckpt", false)
	if err != nil {
		t.Fatal(err)
	}
	holds(t, c, 3)
	c.Close()
	publish(t, fsys, table, 5, 4, 2) // a cluster goes on with it
	again := save(t, fsys, table, 5) // and so does one machine
	for path := range readFolder(t, fsys, 5) {
		if name := filepath.Base(path); ofGeneration(name, 0) && !strings.Contains(name, "-g0-") {
			t.Errorf("%s was left behind", name)
		}
	}
	if again.Weights != m.Weights {
		t.Error("other weights")
	}
	if _, err := Prune(fsys, "ckpt", 1); err != nil {
		t.Fatal(err)
	}
}
