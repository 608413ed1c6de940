package depot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/skein-ml/skein/internal/leak"
	"github.com/skein-ml/skein/internal/vfs"
)

func TestMain(m *testing.M) { leak.Main(m) }

// lay writes files and the folders that they lie in, durable.
func lay(t testing.TB, fsys vfs.FS, files map[string]string) {
	t.Helper()
	for path, text := range files {
		if err := errors.Join(fsys.MkdirAll(filepath.Dir(path)), vfs.WriteFile(fsys, path, []byte(text)), fsys.SyncDir(filepath.Dir(path))); err != nil {
			t.Fatal(err)
		}
	}
}

// tree is all files below a folder, by name; folders end with a slash.
func tree(t testing.TB, fsys vfs.FS, root string) map[string]string {
	t.Helper()
	files := map[string]string{}
	var walk func(dir string)
	walk = func(dir string) {
		names, err := fsys.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			path := filepath.Join(dir, name)
			rel, err := filepath.Rel(root, path)
			if err != nil {
				t.Fatal(err)
			}
			info, err := fsys.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if info.IsDir() {
				files[rel+"/"] = ""
				walk(path)
				continue
			}
			b, err := vfs.ReadFile(fsys, path, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			files[rel] = string(b)
		}
	}
	walk(root)
	return files
}

// onBoth runs a test in memory and on the host's file system.
func onBoth(t *testing.T, test func(t *testing.T, fsys vfs.FS)) {
	t.Run("mem", func(t *testing.T) { test(t, vfs.NewMem()) })
	t.Run("os", func(t *testing.T) {
		t.Chdir(t.TempDir())
		test(t, vfs.OS)
	})
}

var model = map[string]string{"models/tiny/config.json": "{}", "models/tiny/model.safetensors": "weights", "models/tiny/sub/a/b.txt": "deep", "models/tiny/.git/HEAD": "ref"}

func TestANonceIsReadBackByItsName(t *testing.T) {
	onBoth(t, func(t *testing.T, fsys vfs.FS) {
		object, nonce, err := PutNonce(fsys, "new/store")
		if err != nil {
			t.Fatal(err)
		}
		second, other, err := PutNonce(fsys, "new/store")
		if err != nil || second == object || other == nonce || len(nonce) != 32 || strings.Contains(object, nonce) {
			t.Errorf("nonces %s in %s and %s in %s, %v", nonce, object, other, second, err)
		}
		if mem, ok := fsys.(*vfs.Mem); ok {
			mem.Crash()
		}
		for object, nonce := range map[string]string{object: nonce, second: other} {
			if got, err := ReadNonce(fsys, "new/store", object); err != nil || got != nonce {
				t.Errorf("%s reads as %q, %v; it holds %s", object, got, err, nonce)
			}
		}
		if _, err := ReadNonce(fsys, "another", object); err == nil || !strings.Contains(err.Error(), "one folder that all machines see") {
			t.Errorf("through another folder: %v", err)
		}
	})
}

func TestNamesThatAreNoNoncesAreRefused(t *testing.T) {
	fsys := vfs.NewMem()
	object, nonce, err := PutNonce(fsys, "store")
	if err != nil {
		t.Fatal(err)
	}
	lay(t, fsys, map[string]string{"secret": nonce + "\n", "store/lineage.json": nonce + "\n", "store/nonces/x": nonce + "\n"})
	for _, bad := range []string{"", "nonces", "secret", "../secret", "nonces/../../secret", "lineage.json", "nonces/x", "/" + object, "./" + object, object + "/", object + "\n",
		"../store/" + object, strings.ToUpper(object), strings.Replace(object, "/", `\`, 1), strings.Repeat("x", 1<<20)} {
		if got, err := ReadNonce(fsys, "store", bad); err == nil || got != "" || len(err.Error()) > 200 {
			t.Errorf("%.80q reads as %q, %.300v", bad, got, err)
		}
	}
	for _, text := range []string{"", nonce, nonce[:30] + "\n", nonce + nonce + "\n", strings.Replace(nonce, nonce[:1], "g", 1) + "\n", strings.Repeat(nonce, 1000)} {
		lay(t, fsys, map[string]string{filepath.Join("store", object): text})
		if got, err := ReadNonce(fsys, "store", object); err == nil || got != "" {
			t.Errorf("%.80q reads as %q, %v", text, got, err)
		}
	}
}

func TestAFileIsCopiedOnceUnderItsContentsName(t *testing.T) {
	onBoth(t, func(t *testing.T, fsys vfs.FS) {
		lay(t, fsys, map[string]string{"train.jsonl": "rows\n", "other/valid.jsonl": "rows\n"})
		path, err := PutFile(t.Context(), fsys, "store", "train.jsonl")
		if err != nil || filepath.Base(path) != "train.jsonl" || filepath.Dir(filepath.Dir(path)) != filepath.Join("store", inputs) {
			t.Fatalf("path %s, %v", path, err)
		}
		fault := vfs.NewFault(fsys)
		if again, err := PutFile(t.Context(), fault, "store", "train.jsonl"); err != nil || again != path || strings.Contains(fmt.Sprint(fault.Log()), "create") {
			t.Errorf("once more: path %s, changes %q, %v", again, fault.Log(), err)
		}
		second, err := PutFile(t.Context(), fsys, "store", "other/valid.jsonl") // the same content under another name
		if err != nil || filepath.Dir(second) != filepath.Dir(path) {
			t.Errorf("path %s, %v; the first is %s", second, err, path)
		}
		folder := "inputs/" + filepath.Base(filepath.Dir(path)) + "/"
		want := map[string]string{"inputs/": "", folder: "", folder + "train.jsonl": "rows\n", folder + "valid.jsonl": "rows\n"}
		if got := tree(t, fsys, "store"); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("the store holds %v, want %v", got, want)
		}
		if err := vfs.WriteFile(fsys, path, []byte("rowz\n")); err != nil {
			t.Fatal(err)
		}
		if _, err := PutFile(t.Context(), fsys, "store", "train.jsonl"); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "remove it") || !strings.Contains(err.Error(), path) {
			t.Errorf("a damaged copy: %v", err)
		}
	})
}

func TestAFolderIsCopiedWholeUnderTheHashOfNamesAndContents(t *testing.T) {
	onBoth(t, func(t *testing.T, fsys vfs.FS) {
		lay(t, fsys, model)
		visible := func(name string) bool { return !strings.HasPrefix(name, ".") }
		path, err := PutFolder(t.Context(), fsys, "store", "models/tiny", visible)
		if err != nil || filepath.Base(path) != "tiny" {
			t.Fatalf("path %s, %v", path, err)
		}
		want := map[string]string{"config.json": "{}", "model.safetensors": "weights", "sub/": "", "sub/a/": "", "sub/a/b.txt": "deep"}
		if got := tree(t, fsys, path); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("the copy holds %v, want %v", got, want)
		}
		if again, err := PutFolder(t.Context(), fsys, "store", "models/tiny/../tiny/", visible); err != nil || again != path {
			t.Errorf("once more: path %s, %v", again, err)
		}
		all, err := PutFolder(t.Context(), fsys, "store", "models/tiny", nil)
		if err != nil || all == path {
			t.Errorf("other files have the same path %s, %v", all, err)
		}
		set, err := PutDataset(t.Context(), fsys, "store", "models/tiny")
		if err != nil || filepath.Dir(set) != filepath.Join("store", "data") || filepath.Base(set) != filepath.Base(filepath.Dir(all)) {
			t.Errorf("as a data set: path %s, %v", set, err)
		}
		lay(t, fsys, map[string]string{filepath.Join(path, "more.txt"): "of somebody"})
		if _, err := PutFolder(t.Context(), fsys, "store", "models/tiny", visible); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "more.txt") {
			t.Errorf("with a file too many: %v", err)
		}
		if err := errors.Join(fsys.Remove(filepath.Join(path, "more.txt")), fsys.Remove(filepath.Join(path, "config.json"))); err != nil {
			t.Fatal(err)
		}
		if _, err := PutFolder(t.Context(), fsys, "store", "models/tiny", visible); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "config.json") {
			t.Errorf("with a file too few: %v", err)
		}
	})
}

func TestTheHashOfAFolderIsItsDefinition(t *testing.T) {
	l := listing{{"a", 1, [32]byte{1}}, {"b/c", 1 << 40, [32]byte{2}}}
	if got, want := l.hash().String(), "60a39181f720be3710507ef86ae452238e9c909de3a47557bbb5bee030c2ee45"; got != want {
		t.Errorf("the hash is %s, want %s", got, want)
	}
}

func TestWhatCannotBeCopiedIsRefused(t *testing.T) {
	t.Chdir(t.TempDir())
	lay(t, vfs.OS, map[string]string{"file": "x", "loop/file": "x", "deep/store/x": "x", "pipes/file": "x", "empty/.keep": "x"})
	if err := errors.Join(os.Symlink("../loop", "loop/again"), syscall.Mkfifo("pipes/pipe", 0o600)); err != nil {
		t.Fatal(err)
	}
	visible := func(name string) bool { return !strings.HasPrefix(filepath.Base(name), ".") }
	folder := func(name string) error {
		_, err := PutFolder(t.Context(), vfs.OS, "store", name, visible)
		return err
	}
	file := func(name string) error { _, err := PutFile(t.Context(), vfs.OS, "store", name); return err }
	inside := func(name string) error { _, err := PutDataset(t.Context(), vfs.OS, name+"/store", name); return err }
	for _, x := range []struct {
		name string
		put  func(string) error
		says string
	}{{"nobody", file, "no such file"}, {"nobody", folder, "no such file"}, {"loop", file, "is a folder"}, {"file", folder, "is a file"}, {"loop", folder, "folders deep"},
		{"pipes", folder, "neither a file nor a folder"}, {"pipes/pipe", file, "neither a file nor a folder"}, {"empty", folder, "no file"}, {"deep", inside, "lies inside"}} {
		if err := x.put(x.name); err == nil || !strings.Contains(err.Error(), x.says) || !strings.Contains(err.Error(), x.name) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want %q", x.name, err, x.says)
		}
	}
	if there, _ := vfs.Exists(vfs.OS, "store"); there {
		t.Error("something refused was written")
	}
}

func TestAnInputThatChangesMeanwhileIsNotStored(t *testing.T) {
	mem := vfs.NewMem()
	lay(t, mem, model)
	fault := vfs.NewFault(mem, vfs.Rule{Ops: vfs.OpCreate, Nth: 2, Do: func() { lay(t, mem, map[string]string{"models/tiny/model.safetensors": "changed"}) }})
	if _, err := PutFolder(t.Context(), fault, "store", "models/tiny", nil); err == nil || !strings.Contains(err.Error(), "model.safetensors was changed meanwhile") {
		t.Errorf("error %v", err)
	}
	for name := range tree(t, mem, "store") {
		if !strings.HasSuffix(name, "/") {
			t.Errorf("left %s", name)
		}
	}
}

func TestCopyingStopsWhenItsContextEnds(t *testing.T) {
	mem := vfs.NewMem()
	lay(t, mem, model)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := PutFolder(ctx, mem, "store", "models/tiny", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// TestACopyIsWholeOrNotThereWhateverIsKilled cuts the power at every change and then
// copies again.
func TestACopyIsWholeOrNotThereWhateverIsKilled(t *testing.T) {
	want := []string{".git/HEAD", "config.json", "model.safetensors", "sub/a/b.txt"}
	puts := map[string]func(vfs.FS) (string, error){
		"file": func(fsys vfs.FS) (string, error) {
			return PutFile(t.Context(), fsys, "store", "models/tiny/config.json")
		},
		"folder": func(fsys vfs.FS) (string, error) { return PutFolder(t.Context(), fsys, "store", "models/tiny", nil) },
		"data":   func(fsys vfs.FS) (string, error) { return PutDataset(t.Context(), fsys, "store", "models/tiny") },
	}
	for what, put := range puts {
		for n := 1; ; n++ {
			mem := vfs.NewMem()
			lay(t, mem, model)
			rule := vfs.CrashAt(n)
			rule.Torn = 3
			_, killed := put(vfs.NewFault(mem, rule))
			if n%2 == 0 {
				mem.Crash()
			}
			path, err := put(mem)
			if err != nil {
				t.Fatalf("%s, killed at change %d: again: %v", what, n, err)
			}
			mem.Crash()
			if what == "file" {
				if b, err := vfs.ReadFile(mem, path, 10); err != nil || string(b) != "{}" {
					t.Fatalf("file, killed at change %d: %q, %v", n, b, err)
				}
			} else {
				var got []string
				for name, text := range tree(t, mem, path) {
					if !strings.HasSuffix(name, "/") {
						got = append(got, name)
						if text != model["models/tiny/"+name] {
							t.Errorf("%s, killed at change %d: %s holds %q", what, n, name, text)
						}
					}
				}
				if slices.Sort(got); !slices.Equal(got, want) {
					t.Fatalf("%s, killed at change %d: files %v", what, n, got)
				}
			}
			if killed == nil {
				break
			}
		}
	}
}

func TestAFullStoreSaysWhatToDo(t *testing.T) {
	for err, says := range map[error]string{syscall.ENOSPC: "free space there", syscall.EROFS: "write into the other", syscall.EACCES: "write into the other"} {
		mem := vfs.NewMem()
		lay(t, mem, model)
		fault := vfs.NewFault(mem, vfs.Rule{Ops: vfs.OpWrite, Nth: 1, Err: err, Sticky: true})
		if _, got := PutFile(t.Context(), fault, "store", "models/tiny/config.json"); !errors.Is(got, err) || !strings.Contains(got.Error(), says) || strings.Contains(got.Error(), "\n") {
			t.Errorf("%v: %v", err, got)
		}
	}
}
